//! `cartwheel locate`: where one key lives, and who holds which clock of it.

use std::ffi::OsString;

use clap::Args;
use serde::Deserialize;

use super::status::read;
use super::{Align, Common, Exit, Failure, Format, Output};

/// Show a key's partition, its homes and fallbacks, and who holds which clock
#[derive(Debug, Clone, Args)]
#[command(after_help = "Example:\n  cartwheel locate carts alice")]
pub struct LocateArgs {
    /// The namespace
    #[arg(value_parser = super::namespace)]
    pub namespace: String,
    /// The key, 1 to 1024 bytes, taken as it is
    pub key: OsString,
    /// Options of every client command
    #[command(flatten)]
    pub common: Common,
}

/// `GET /v1/cluster/locate`, as far as the text shows it.
#[derive(Debug, Deserialize)]
struct Location {
    hash: String,
    partition: u64,
    homes: Vec<String>,
    #[serde(default)]
    fallbacks: Vec<String>,
    #[serde(default)]
    holders: Vec<Holder>,
}

#[derive(Debug, Deserialize)]
struct Holder {
    id: String,
    answer: String,
    #[serde(default)]
    clock: Option<String>,
    #[serde(default)]
    siblings: Option<u64>,
}

/// Runs `cartwheel locate`.
///
/// # Errors
/// Exit status 1 for a refusal or an unknown answer, 2 for a bad key, 3 without an answer.
pub async fn run(args: &LocateArgs, output: &mut Output) -> Result<Exit, Failure> {
    let key = super::key_bytes(&args.key)?;
    let mut path = format!("/v1/cluster/locate?namespace={}&key=", args.namespace);
    super::http::percent_encode(key, &mut path);
    let reply = args.common.client().get(&path).await?.success()?;
    let document = reply.json()?;
    match args.common.output {
        Format::Json => output.json(&document)?,
        Format::Text => output.raw(text(&read(document)?).as_bytes())?,
    }
    Ok(Exit::Done)
}

fn text(location: &Location) -> String {
    let role = |id: &str| {
        let place = |list: &[String]| list.iter().position(|member| member == id).map(|at| at + 1);
        match (place(&location.homes), place(&location.fallbacks)) {
            (Some(at), _) => format!("home {at}"),
            (None, Some(at)) => format!("fallback {at}"),
            (None, None) => "-".to_owned(),
        }
    };
    let rows: Vec<Vec<String>> = location
        .holders
        .iter()
        .map(|holder| {
            vec![
                holder.id.clone(),
                role(&holder.id),
                holder.answer.clone(),
                holder.siblings.map_or_else(|| "-".to_owned(), |count| count.to_string()),
                holder.clock.clone().filter(|clock| !clock.is_empty()).unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    let header = [
        ("ID", Align::Left),
        ("ROLE", Align::Left),
        ("ANSWER", Align::Left),
        ("SIBLINGS", Align::Right),
        ("CLOCK", Align::Left),
    ];
    format!(
        "hash       {}\npartition  {}\nhomes      {}\nfallbacks  {}\n\n{}",
        super::printable(&location.hash),
        location.partition,
        super::printable(&location.homes.join(" ")),
        super::printable(&location.fallbacks.join(" ")),
        super::table(&header, &rows)
    )
}

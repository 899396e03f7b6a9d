//! P10: a client that sends what nobody should: every request is refused as bad, with no trace of it anywhere. What it
//! writes is no value that any other client would write, so that the checker knows it if it ever shows.

use cartwheel_cluster::seams::Random;
use http::{Method, StatusCode};

use crate::checker::VAGUE;
use crate::claims::Ask;
use crate::client::{Client, now};
use crate::report::Check;
use crate::world::{SeededRandom, pass};

/// What is written.
const NONSENSE: &str = "nonsense";

/// A request that must be refused.
struct Odd {
    method: Method,
    path: String,
    clock: Option<String>,
    header: Option<(&'static str, String)>,
    expected: &'static [u16],
}

impl Odd {
    fn new(method: Method, path: &str, expected: &'static [u16]) -> Self {
        Self { method, path: path.to_owned(), clock: None, header: None, expected }
    }
}

/// A clock that nobody signed: one that was, with another count.
fn forged(clock: &str) -> String {
    let digit = clock.find('=').map_or(0, |at| at + 1);
    format!("{}9{}", &clock[..digit], &clock[digit..])
}

/// Sends nonsense until all others have stopped.
pub async fn be_odd(mut client: Client, random: SeededRandom) {
    client.ready().await;
    let below = |bound: u64| random.below(bound);
    while !client.others_have_stopped() {
        pass(random.millis(100..1_500)).await;
        let (cart, other) = (below(client.keys()), below(client.keys()));
        let key = format!("carts/cart-{cart}");
        let known = client.try_read(&key, &Ask::default()).await.flatten().and_then(|known| known.clock);
        let known = known.unwrap_or_else(|| "node-a.1=1, mac=:AAAAAAAAAAAAAAAAAAAAAA==:".to_owned());
        let method = [Method::PUT, Method::DELETE, Method::GET][usize::try_from(below(3)).unwrap()].clone();
        let plain = format!("/v1/kv/{key}");
        let with_clock =
            |path: &str, clock: String| Odd { clock: Some(clock), ..Odd::new(method.clone(), path, &[400]) };
        let query = |query: &str| Odd::new(method.clone(), &format!("{plain}?{query}"), &[400]);
        let odd = match below(22) {
            0 => with_clock(&plain, forged(&known)),
            1 => with_clock(&format!("/v1/kv/carts/cart-{}", client.keys() + other), known),
            2 => with_clock(&format!("/v1/kv/wishes/cart-{cart}"), known),
            3 => with_clock(&plain, "node-a.1=1".to_owned()),
            4 => with_clock(&plain, "((((".to_owned()),
            5 => Odd::new(method.clone(), &format!("/v1/kv/carts/{}", "k".repeat(1_025)), &[414]),
            6 => Odd::new(method.clone(), "/v1/kv/carts/%zz", &[400]),
            7 => Odd::new(method.clone(), "/v1/kv/CARTS/cart-1", &[400]),
            8 => Odd::new(method.clone(), &format!("/v1/kv/{}/cart-1", "n".repeat(64)), &[400]),
            9 => query("w=0"),
            10 => query("w=4"),
            11 => query("r=4"),
            12 => query("durability=tape"),
            13 => query("sloppy=perhaps"),
            14 => query("deadline=never"),
            15 => query("deadline=61s"),
            16 => query("sloppy=true&sloppy=false"),
            17 => query("colour=red"),
            18 => Odd::new(Method::PATCH, &plain, &[405]),
            19 => {
                Odd { header: Some(("if-match", "not a tag".to_owned())), ..Odd::new(method, &plain, &[400]) }
            }
            20 => Odd { header: Some(("host", String::new())), ..Odd::new(method, &plain, &[400]) },
            _ => Odd::new(Method::GET, &format!("/v1/nothing/{VAGUE}"), &[404]),
        };
        send(&mut client, odd).await;
    }
}

async fn send(client: &mut Client, odd: Odd) {
    let began = now();
    let Odd { method, path, clock, header, expected } = odd;
    let mut headers = Vec::new();
    headers.extend(clock.as_deref().map(|clock| ("vector-clock", clock)));
    headers.extend(header.as_ref().map(|(name, value)| (*name, value.as_str())));
    let writes = method == Method::PUT || method == Method::DELETE;
    let body = if method == Method::PUT { NONSENSE } else { "" };
    let Some(answer) = client.send(method.clone(), &path, &headers, body).await else { return };
    let said = String::from_utf8_lossy(&answer.body).into_owned();
    if let Some(what) = wrong(answer.status, &said, expected, writes, client.is_calm(began)) {
        client.violate(Check::Answer, &format!("{method} {path} {headers:?}: {what}"));
    } else {
        client.count_nonsense();
    }
}

/// What is wrong with the answer to a request that makes no sense. A gateway that knows no ring yet can't say much.
fn wrong(status: StatusCode, said: &str, expected: &[u16], writes: bool, calm: bool) -> Option<String> {
    let not_ready = status == StatusCode::SERVICE_UNAVAILABLE && !calm;
    if !expected.contains(&status.as_u16()) && !not_ready {
        return Some(format!("{status} in place of {expected:?}: {said}"));
    }
    let problem: serde_json::Value = serde_json::from_str(said).unwrap_or_default();
    let applied = problem["applied"].as_str();
    (writes && applied != Some("no") && status != StatusCode::METHOD_NOT_ALLOWED)
        .then(|| format!("{status}, and applied is {applied:?}: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_that_is_taken_or_breaks_something_is_seen() {
        let no = r#"{"applied": "no"}"#;
        let look = |status: u16, said: &str, calm| {
            wrong(StatusCode::from_u16(status).unwrap(), said, &[400], true, calm)
        };
        assert_eq!(look(400, no, true), None);
        assert_eq!(look(503, no, false), None);
        assert!(look(503, no, true).is_some());
        assert!(look(204, no, false).is_some());
        assert!(look(500, no, false).is_some());
        assert!(look(400, "{}", true).is_some());
        assert_eq!(forged("node-a.1=17, mac=:AA:"), "node-a.1=917, mac=:AA:");
    }
}

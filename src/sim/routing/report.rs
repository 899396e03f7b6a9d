//! Shows what was found: as tables with the answer in a sentence, as JSON, as a picture.

use serde_json::{Value, json};

use super::model::{CHANGE_BYTES, Cost, ENTRY_BYTES, HEADER_BYTES};
use super::{Crossover, RoutingArgs, Size};
use crate::client::{Align, table};
use crate::sim::stats::rounded;
use crate::sim::svg::{Axis, Lines, Series, picture};
use crate::units::format_duration;

const EVERYONE: &str = "everyone known";
const CHORD: &str = "Chord";
const AS_BUILT: &str = "Cartwheel as built";

/// The tables, and the answer.
pub(super) fn text(args: &RoutingArgs, sizes: &[Size], crossovers: &[Crossover]) -> String {
    let header = [
        ("NODES", Align::Right),
        ("WAY", Align::Left),
        ("STATE", Align::Right),
        ("HOPS", Align::Right),
        ("P99", Align::Right),
        ("UPKEEP B/S", Align::Right),
        ("WITH LOOKUPS B/S", Align::Right),
        ("STALE", Align::Right),
    ];
    let mut rows = Vec::new();
    for size in sizes {
        let mut row = |way: &str, cost: &Cost, hops: f64, p99: f64| {
            rows.push(vec![
                size.nodes.to_string(),
                way.to_owned(),
                format!("{:.0}", cost.state),
                format!("{hops:.2}"),
                format!("{p99:.0}"),
                format!("{:.1}", cost.upkeep),
                format!("{:.1}", cost.traffic()),
                format!("{:.3}%", cost.stale * 100.0),
            ]);
        };
        row(EVERYONE, &size.everyone, 1.0, 1.0);
        row(CHORD, &size.chord, size.hops, size.p99_hops);
        if let Some(cost) = &size.as_built {
            row(AS_BUILT, cost, 1.0, 1.0);
        }
    }
    let crossing =
        [("LIFETIME", Align::Left), ("UPKEEP ALONE", Align::Right), ("WITH LOOKUPS", Align::Right)];
    let crossing_rows: Vec<Vec<String>> = crossovers
        .iter()
        .map(|c| vec![format_duration(c.lifetime), nodes(c.upkeep), nodes(c.traffic)])
        .collect();
    format!(
        "lifetime {}, stabilise every {}, {} lookups/s per node; {} lookups simulated per size, seed {}\n\n{}\n\
         From how many nodes on Chord's traffic is less than that of knowing everyone:\n\n{}\n{}\n",
        format_duration(args.lifetime),
        format_duration(args.stabilise),
        args.rate,
        args.lookups,
        args.seed,
        table(&header, &rows),
        table(&crossing, &crossing_rows),
        answer(args, sizes, crossovers)
    )
}

/// A number of nodes, to two digits: the model knows no more.
fn nodes(count: Option<f64>) -> String {
    let Some(count) = count else { return "never".to_owned() };
    let scale = 10_f64.powf((count.log10().floor() - 1.0).max(0.0));
    let digits = format!("{:.0}", (count / scale).round() * scale);
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    groups.join(",")
}

fn answer(args: &RoutingArgs, sizes: &[Size], crossovers: &[Crossover]) -> String {
    let given = crossovers.iter().find(|c| c.lifetime == args.lifetime);
    let (upkeep, traffic) = given.map_or((None, None), |c| (c.upkeep, c.traffic));
    let hops = sizes.last().map_or(0.0, |size| size.hops);
    let largest = sizes.last().map_or(0, |size| size.nodes);
    format!(
        "Must every node know all key ranges? With nodes that stay {} it pays in upkeep alone up to {} nodes, and\n\
         with {} lookups/s per node up to {}; and a lookup is one hop, not {hops:.1} (at {largest} nodes).",
        format_duration(args.lifetime),
        nodes(upkeep),
        args.rate,
        nodes(traffic)
    )
}

/// The same as one JSON document. Traffic is in bytes received per second and node.
pub(super) fn json(args: &RoutingArgs, sizes: &[Size], crossovers: &[Crossover]) -> Value {
    let cost = |cost: &Cost| {
        json!({
            "state_bytes": rounded(cost.state, 1),
            "upkeep": rounded(cost.upkeep, 3),
            "lookups": rounded(cost.lookups, 3),
            "stale": rounded(cost.stale, 6),
        })
    };
    let size = |size: &Size| {
        let mut chord = cost(&size.chord);
        chord["hops"] = json!({ "mean": rounded(size.hops, 4), "p99": size.p99_hops });
        chord["fingers"] = json!(rounded(size.fingers, 2));
        json!({
            "nodes": size.nodes,
            "everyone": cost(&size.everyone),
            "chord": chord,
            "as_built": size.as_built.as_ref().map(cost),
        })
    };
    let crossing = |c: &Crossover| json!({ "lifetime_s": c.lifetime.as_secs_f64(), "upkeep": c.upkeep, "with_lookups": c.traffic });
    json!({
        "lifetime_s": args.lifetime.as_secs_f64(),
        "stabilise_s": args.stabilise.as_secs_f64(),
        "lookups_per_second": args.rate,
        "lookups": args.lookups,
        "seed": args.seed,
        "assumed_bytes": { "entry": ENTRY_BYTES, "message": HEADER_BYTES, "change": CHANGE_BYTES },
        "sizes": sizes.iter().map(size).collect::<Vec<Value>>(),
        "crossovers": crossovers.iter().map(crossing).collect::<Vec<Value>>(),
    })
}

/// A figure of each size that has it.
fn series(name: &str, sizes: &[Size], figure: impl Fn(&Size) -> Option<f64>) -> Series {
    let points = sizes.iter().filter_map(|size| Some((f64::from(size.nodes), figure(size)?)));
    Series { name: name.to_owned(), points: points.collect() }
}

fn log_plot(title: String, y: &str, sizes: &[Size], series: Vec<Series>) -> Lines {
    let values: Vec<f64> = series.iter().flat_map(|s| &s.points).map(|(_, y)| *y).collect();
    Lines { title, x: across(sizes), y: Axis::decades(y, values.into_iter()), series }
}

fn across(sizes: &[Size]) -> Axis {
    Axis::decades("nodes", sizes.iter().map(|size| f64::from(size.nodes)))
}

/// Traffic, hops and state, one below the other.
pub(super) fn routing_picture(args: &RoutingArgs, sizes: &[Size]) -> String {
    let mut sizes = sizes.to_vec();
    sizes.sort_by_key(|size| size.nodes);
    let by = |of: fn(&Cost) -> f64| {
        vec![
            series(EVERYONE, &sizes, |size| Some(of(&size.everyone))),
            series(CHORD, &sizes, |size| Some(of(&size.chord))),
            series(AS_BUILT, &sizes, |size| size.as_built.as_ref().map(of)),
        ]
    };
    let mut traffic = by(|cost| cost.upkeep);
    let with_lookups = format!("Chord with {} lookups/s per node", args.rate);
    traffic.push(series(&with_lookups, &sizes, |size| Some(size.chord.traffic())));
    let title = format!("Traffic to know where keys live; a node stays {}", format_duration(args.lifetime));
    let traffic = log_plot(title, "bytes received per second and node", &sizes, traffic);
    let most = sizes.iter().map(|size| size.p99_hops).fold(1.0, f64::max);
    let hops = Lines {
        title: "Hops from a node to a key's home".to_owned(),
        x: across(&sizes),
        y: Axis::linear("hops", 0.0, (most / 2.0).ceil() * 2.0, if most > 24.0 { 4.0 } else { 2.0 }),
        series: vec![
            series(EVERYONE, &sizes, |_| Some(1.0)),
            series("Chord, mean", &sizes, |size| Some(size.hops)),
            series("Chord, 99 of 100 within", &sizes, |size| Some(size.p99_hops)),
        ],
    };
    let state =
        log_plot("What a node has in memory".to_owned(), "bytes per node", &sizes, by(|cost| cost.state));
    let about =
        "Traffic, hops and state of knowing every node, beside Chord's finger tables, by the number of nodes";
    picture(about, &[&traffic, &hops, &state])
}

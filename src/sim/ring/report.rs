//! Shows what was measured: as a table, as JSON, as pictures.

use serde_json::{Value, json};

use super::RingArgs;
use super::measure::{Moves, Row};
use crate::client::{Align, table};
use crate::sim::stats::{least, rounded};
use crate::sim::svg::{Axis, Bars, Lines, Series, picture};

/// The table and what it is of.
pub(super) fn text(args: &RingArgs, rows: &[Row]) -> String {
    let header = [
        ("STRATEGY", Align::Left),
        ("T", Align::Right),
        ("Q", Align::Right),
        ("EFFICIENCY", Align::Right),
        ("WORST", Align::Right),
        ("JOIN MOVES", Align::Right),
        ("LEAST", Align::Right),
        ("TIMES", Align::Right),
        ("LEAVE MOVES", Align::Right),
        ("LEAST", Align::Right),
        ("TIMES", Align::Right),
        ("SHARED ZONE", Align::Right),
        ("ONE ZONE", Align::Right),
        ("BYTES KEPT", Align::Right),
        ("WORKED OUT", Align::Right),
    ];
    let number = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let percent = |part: f64| format!("{:.2}%", part * 100.0);
    let moves = |moves: &Moves| [percent(moves.moved), percent(moves.least), format!("{:.2}", moves.times)];
    let cells = |row: &Row| {
        let mut cells = vec![
            row.strategy.to_owned(),
            number(row.tokens),
            number(row.partitions),
            format!("{:.3}", row.efficiency),
            format!("{:.3}", row.worst_efficiency),
        ];
        cells.extend(moves(&row.join));
        cells.extend(moves(&row.leave));
        cells.extend([percent(row.zones.shared), percent(row.zones.single)]);
        cells.extend([row.bytes.kept.to_string(), row.bytes.worked_out.to_string()]);
        cells
    };
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    format!("{}\n\n{}", subject(args), table(&header, &rows))
}

fn subject(args: &RingArgs) -> String {
    let weights: Vec<String> = args.weights.iter().map(u32::to_string).collect();
    let loads = args.keys.map_or_else(|| "parts of the circle".to_owned(), |keys| format!("{keys} keys"));
    format!(
        "{} nodes of weight {}, zones {}, replicas {}, seeds {}, loads by {loads}",
        args.nodes,
        weights.join(","),
        args.zones,
        args.replicas,
        args.seeds
    )
}

/// The same as one JSON document. Parts are from 0 to 1.
pub(super) fn json(args: &RingArgs, rows: &[Row]) -> Value {
    let moves = |moves: &Moves| {
        json!({
            "moved": rounded(moves.moved, 6),
            "least": rounded(moves.least, 6),
            "times": rounded(moves.times, 4),
            "worst_times": rounded(moves.worst_times, 4),
        })
    };
    let row = |row: &Row| {
        json!({
            "strategy": row.strategy,
            "tokens": row.tokens,
            "partitions": row.partitions,
            "efficiency": { "median": rounded(row.efficiency, 6), "worst": rounded(row.worst_efficiency, 6) },
            "join": moves(&row.join),
            "leave": moves(&row.leave),
            "zones": { "shared": rounded(row.zones.shared, 6), "single": rounded(row.zones.single, 6) },
            "bytes": { "kept": row.bytes.kept, "worked_out": row.bytes.worked_out },
        })
    };
    json!({
        "nodes": args.nodes,
        "weights": args.weights,
        "zones": args.zones,
        "replicas": args.replicas,
        "seeds": args.seeds,
        "keys": args.keys,
        "rows": rows.iter().map(row).collect::<Vec<Value>>(),
    })
}

/// Rows by strategy, in the order in which the strategies come first.
fn by_strategy(rows: &[Row]) -> Vec<(&'static str, Vec<&Row>)> {
    let mut groups: Vec<(&'static str, Vec<&Row>)> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|(name, _)| *name == row.strategy) {
            Some((_, group)) => group.push(row),
            None => groups.push((row.strategy, vec![row])),
        }
    }
    groups
}

/// Efficiency over metadata, as the paper's Figure 8: everything in memory counts. Where tables are worked out, what
/// they are worked out from is shown alone, too.
pub(super) fn efficiency_picture(args: &RingArgs, rows: &[Row]) -> String {
    let all = |row: &Row| (row.bytes.kept + row.bytes.worked_out) as f64;
    let line = |name: String, rows: &[&Row], bytes: &dyn Fn(&Row) -> f64| Series {
        name,
        points: rows.iter().map(|row| (bytes(row), row.efficiency)).collect(),
    };
    let mut series = Vec::new();
    for (name, rows) in by_strategy(rows) {
        let works_out = rows.iter().any(|row| row.bytes.worked_out > 0);
        let note = if works_out { ", tables included" } else { "" };
        series.push(line(format!("{name}{note}"), &rows, &all));
        if works_out {
            series.push(line(format!("{name}, ring document alone"), &rows, &|row| row.bytes.kept as f64));
        }
    }
    let efficiencies: Vec<f64> = rows.iter().map(|row| row.efficiency).collect();
    let lowest = (least(&efficiencies) * 10.0).floor().min(9.0) / 10.0;
    let lines = Lines {
        title: format!("Load-balancing efficiency, {} nodes, N = {}", args.nodes, args.replicas),
        x: Axis::decades("metadata in each node's memory, bytes", rows.iter().map(all)),
        y: Axis::linear("mean load / greatest load", lowest, 1.0, 0.1),
        series,
    };
    let about =
        "How even four strategies spread load over nodes, by how much metadata each node has in memory";
    picture(about, &[&lines])
}

/// What moves when a node joins or leaves, over what must.
pub(super) fn movement_picture(args: &RingArgs, rows: &[Row]) -> String {
    let series: Vec<(String, Vec<f64>)> =
        rows.iter().map(|row| (row.strategy.to_owned(), vec![row.join.times, row.leave.times])).collect();
    let most = series.iter().flat_map(|(_, times)| times).copied().fold(1.0, f64::max);
    let bars = Bars {
        title: format!("Replicas moved over the least possible, {} nodes, N = {}", args.nodes, args.replicas),
        y: Axis::linear("moved / least possible", 0.0, (most * 1.1 * 2.0).ceil() / 2.0, 0.5),
        groups: vec!["a node joins".to_owned(), "a node leaves".to_owned()],
        series,
    };
    picture("How much four strategies move when a node joins or leaves, over the least possible", &[&bars])
}

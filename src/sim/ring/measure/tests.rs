//! The measure against values worked out by hand.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::sim::ring::first::First;
use crate::sim::ring::ours::Ours;
use crate::sim::ring::second::Second;
use crate::sim::ring::third::Third;

const QUARTER: u64 = 1 << 62;

fn nodes(weights: &[u32], zones: u16) -> Vec<Node> {
    let numbered = (0_u16..).zip(weights);
    numbered.map(|(number, weight)| Node { number, weight: *weight, zone: number % zones }).collect()
}

/// Four quarters with these homes.
fn quarters(homes: [[u16; 2]; 4]) -> Placement {
    let mut placement = Placement::default();
    for (start, homes) in (0..).zip(homes) {
        placement.push(start * QUARTER, &homes);
    }
    placement
}

#[test]
fn loads_are_parts_of_the_circle() {
    let placement = quarters([[0, 1], [0, 1], [0, 2], [2, 1]]);
    assert_eq!(exact_loads(&placement), BTreeMap::from([(0, 0.75), (1, 0.75), (2, 0.5)]));
    let drawn = drawn_loads(&placement, 40_000, &mut Draw::new(1, 0));
    for (node, load) in exact_loads(&placement) {
        assert!((drawn[&node] - load).abs() < 0.02, "{node}: {drawn:?}");
    }
}

#[test]
fn efficiency_is_mean_over_most() {
    let loads = exact_loads(&quarters([[0, 1], [0, 1], [0, 2], [2, 1]]));
    // Mean 2/3 over most 3/4.
    assert!((efficiency(&loads, &nodes(&[1, 1, 1], 1), 2) - 8.0 / 9.0).abs() < 1e-12);
    // By weight, 0.5 of the circle is fair for nodes 0 and 1, and 1.0 for node 2.
    assert!((efficiency(&loads, &nodes(&[1, 1, 2], 1), 2) - 0.5 / 0.75).abs() < 1e-12);
    // A node that is overloaded by nothing but its absence from a placement does not count.
    assert_eq!(efficiency(&BTreeMap::new(), &nodes(&[1, 1], 1), 2), 0.0);
}

#[test]
fn nobody_can_hold_anything_twice() {
    let fair = fair_loads(&nodes(&[100, 1, 1], 1), 2);
    assert_eq!(fair, BTreeMap::from([(0, 1.0), (1, 0.5), (2, 0.5)]));
    let fair = fair_loads(&nodes(&[100, 10, 1, 1], 1), 3);
    assert_eq!(fair, BTreeMap::from([(0, 1.0), (1, 1.0), (2, 0.5), (3, 0.5)]));
    assert_eq!(fair_loads(&nodes(&[1, 1], 1), 2), BTreeMap::from([(0, 1.0), (1, 1.0)]));
}

#[test]
fn movement_is_what_is_held_anew() {
    let before = quarters([[0, 1], [0, 1], [0, 1], [0, 1]]);
    // Node 2 takes two of eight slots; in the last quarter, nothing but the order changes.
    let after = quarters([[2, 1], [0, 2], [0, 1], [1, 0]]);
    assert_eq!(movement(&before, &after, 2), Movement { moved: 0.25, least: 0.25 });
    // Node 3 takes one slot, and node 4 one without need.
    let after = quarters([[3, 1], [0, 4], [0, 1], [0, 1]]);
    assert_eq!(movement(&before, &after, 3), Movement { moved: 0.25, least: 0.125 });
    // Node 1 leaves: its four slots go to others.
    let after = quarters([[0, 2], [0, 2], [0, 3], [0, 3]]);
    assert_eq!(movement(&before, &after, 1), Movement { moved: 0.5, least: 0.5 });
    assert_eq!(
        moves(&[Movement { moved: 0.3, least: 0.1 }, Movement { moved: 0.1, least: 0.1 }]),
        Moves { moved: 0.2, least: 0.1, times: 2.0, worst_times: 0.3 / 0.1 }
    );
}

#[test]
fn ranges_that_do_not_match_are_cut_to_pieces() {
    let mut before = Placement::default();
    before.push(0, &[0]);
    before.push(3 * QUARTER, &[1]);
    let mut after = Placement::default();
    after.push(0, &[0]);
    after.push(2 * QUARTER, &[1]);
    assert_eq!(movement(&before, &after, 1), Movement { moved: 0.25, least: 0.5 });
}

#[test]
fn zones_may_share_only_where_they_must() {
    let placement = quarters([[0, 1], [0, 2], [0, 2], [1, 2]]);
    // Zones 0, 1, 0: the homes 0 and 2 share one.
    assert_eq!(
        zone_violations(&placement, &nodes(&[1, 1, 1], 2), 2),
        ZoneViolations { shared: 0.5, single: 0.5 }
    );
    // One zone: nothing to keep apart.
    assert_eq!(
        zone_violations(&placement, &nodes(&[1, 1, 1], 1), 2),
        ZoneViolations { shared: 0.0, single: 0.0 }
    );
    assert_eq!(
        [(4, 2), (5, 3), (3, 3)].map(|(homes, zones)| zone_limit(&nodes(&[1; 6], zones), homes)),
        [2, 2, 1]
    );
    let three =
        [Node { number: 0, weight: 1, zone: 0 }; 5].into_iter().chain(nodes(&[1], 1)).collect::<Vec<_>>();
    assert_eq!(zone_limit(&three, 3), 3);
}

fn cluster(count: usize, partitions: u32, tokens: u32) -> Cluster {
    Cluster { nodes: nodes(&vec![1; count], 3), replicas: 3, tokens, partitions, seed: 0 }
}

fn newcomer(number: u16) -> Node {
    Node { number, weight: 1, zone: number % 3 }
}

#[test]
fn every_strategy_is_measured_and_only_ours_keeps_zones_apart() {
    let cluster = cluster(12, 64, 16);
    let strategies: [&dyn Strategy; 4] = [&First, &Second, &Third, &Ours];
    for strategy in strategies {
        let row = measure(strategy, &cluster, newcomer(12), 3, None).unwrap();
        assert!(row.efficiency > 0.3 && row.efficiency <= 1.0, "{row:?}");
        assert!(row.worst_efficiency <= row.efficiency, "{row:?}");
        for moves in [row.join, row.leave] {
            assert!(moves.times >= 1.0 - 1e-9 && moves.times < 3.0, "{row:?}");
        }
        if row.strategy == Ours.name() {
            assert_eq!(row.zones, ZoneViolations { shared: 0.0, single: 0.0 });
            assert!(row.efficiency >= 0.98, "{row:?}");
        } else {
            assert!(row.zones.shared > 0.3, "{row:?}");
        }
    }
}

/// A new node's tokens take ranges from one node each, and give those of one that leaves back: nothing else moves.
#[test]
fn random_tokens_move_no_more_than_they_must() {
    for strategy in [&First as &dyn Strategy, &Second] {
        let row = measure(strategy, &cluster(10, 256, 32), newcomer(10), 4, None).unwrap();
        assert!((row.join.times - 1.0).abs() < 1e-9 && (row.leave.times - 1.0).abs() < 1e-9, "{row:?}");
    }
}

#[test]
fn the_order_of_the_papers_figure_8() {
    // About the same bytes for each node: strategy 1 and 2 with 20 tokens of 30 nodes, strategy 3 with 2,048
    // entries (fewer bytes).
    let small = measure(&First, &cluster(30, 1, 20), newcomer(30), 6, None).unwrap();
    let coarse = measure(&Second, &cluster(30, 256, 20), newcomer(30), 6, None).unwrap();
    let equal = measure(&Third, &cluster(30, 2048, 1), newcomer(30), 6, None).unwrap();
    assert!(equal.bytes.kept <= small.bytes.kept);
    assert!(equal.efficiency > small.efficiency + 0.05, "{equal:?} {small:?}");
    assert!(equal.efficiency > coarse.efficiency + 0.05, "{equal:?} {coarse:?}");
}

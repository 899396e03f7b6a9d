//! Tests of plans.
#![allow(clippy::unwrap_used)]
use super::super::change::{Edit, Known, edit};
use super::super::{Change, Member, MemberState};
use super::*;

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn changed() -> Change {
    Change { at_ms: 1, by: "ops".into(), what: "test".into() }
}

fn cluster(members: u8) -> RingDocument {
    let member = |i: u8| Member {
        id: id(&char::from(b'a' + i).to_string()),
        address: format!("h:{i}"),
        zone: "z".into(),
        weight: 1,
        state: MemberState::Active,
        becomes: None,
        dead: false,
    };
    let members = (0..members).map(member).collect();
    RingDocument::found("c".into(), 7, 64, 16, 3, members, changed(), "n".into()).unwrap()
}

fn planned(doc: &RingDocument, edits: &[Edit], dead: &[&str]) -> Plan {
    let alive = |id: &NodeId| !dead.contains(&id.as_str());
    let after = edit(doc, edits, Known { alive: &alive, force: true }, changed(), "n".into()).unwrap();
    let figures =
        doc.members.iter().map(|m| (m.id.clone(), Figures { keys: Some(640), bytes: Some(6400) })).collect();
    plan(doc, &after, &figures, &alive)
}

fn step<'a>(plan: &'a Plan, name: &str) -> &'a Step {
    plan.steps.iter().find(|s| s.step == name).unwrap()
}

fn least(plan: &Plan) -> Vec<(&str, u32, u32)> {
    plan.steps.iter().map(|s| (s.step, s.least_to_write, s.least_to_read)).collect()
}

#[test]
fn a_fourth_member_takes_its_share_and_no_more() {
    let doc = cluster(3);
    let join = Edit::Join { id: id("d"), address: "h:9".into(), zone: "z".into(), weight: 1 };
    let plan = planned(&doc, &[join], &["d"]);
    assert_eq!((plan.slots_moved, plan.least_moved, plan.ratio_permille), (48, 48, Some(1000)));
    let d = plan.members.iter().find(|m| m.id == id("d")).unwrap();
    assert_eq!((d.slots, d.gained, d.lost, d.fair_milli), (Pair { before: 0, after: 48 }, 48, 0, 48_000));
    // Every member holds all 64 partitions and said 640 keys: ten in each slot.
    assert_eq!((plan.keys_moved, plan.bytes_from_bucket), (Some(480), Some(4800)));
    assert_eq!(plan.efficiency_permille, Pair { before: 1000, after: 1000 });
    // Until it is there, partitions that it will hold have two homes of three.
    assert_eq!(least(&plan), [("now", 3, 3), ("pending", 2, 3), ("copied", 3, 3), ("settled", 3, 3)]);
    assert!(!plan.breaks_quorum);
}

#[test]
fn what_brings_a_partition_below_its_quorum_is_seen() {
    let doc = cluster(3);
    let join = |name: &str| Edit::Join { id: id(name), address: "h:9".into(), zone: "z".into(), weight: 1 };
    // Two that do not run yet: some partition needs both of them.
    let plan = planned(&doc, &[join("d"), join("e")], &["d", "e"]);
    let pending = step(&plan, "pending");
    assert_eq!(pending.least_to_write, 1);
    assert!(pending.newly_below > 0 && plan.breaks_quorum);
    assert_eq!(step(&plan, "copied").newly_below, 0, "it does not come to that before they run");
    // What is below its quorum anyway is not the change's doing.
    let plan = planned(&cluster(5), &[Edit::Forget { id: id("a") }], &["a", "b"]);
    assert!(step(&plan, "now").below_quorum > 0);
    assert_eq!(step(&plan, "now").newly_below, 0);
}

#[test]
fn the_dead_do_not_count_as_alive() {
    let doc = cluster(4);
    let plan = planned(&doc, &[Edit::Forget { id: id("a") }], &[]);
    assert_eq!(least(&plan), [("now", 3, 3), ("pending", 2, 2), ("copied", 2, 3), ("settled", 3, 3)]);
}

#[test]
fn a_cancelled_change_moves_nothing() {
    let doc = cluster(4);
    let alive = |_: &NodeId| true;
    let known = Known { alive: &alive, force: false };
    let pending = edit(&doc, &[Edit::Leave { id: id("a") }], known, changed(), "n".into()).unwrap();
    let plan = planned(&pending, &[Edit::Cancel], &[]);
    assert_eq!((plan.slots_moved, plan.least_moved, plan.ratio_permille), (0, 0, None));
    assert_eq!(plan.steps.iter().map(|s| s.step).collect::<Vec<_>>(), ["now", "settled"]);
    assert_eq!((plan.keys_moved, plan.bytes_from_bucket), (Some(0), Some(0)));
}

#[test]
fn what_members_do_not_say_is_not_made_up() {
    let doc = cluster(3);
    let alive = |_: &NodeId| true;
    let join = Edit::Join { id: id("d"), address: "h:9".into(), zone: "z".into(), weight: 1 };
    let after = edit(&doc, &[join], Known { alive: &alive, force: false }, changed(), "n".into()).unwrap();
    let figures = BTreeMap::from([(id("a"), Figures { keys: Some(64), bytes: None })]);
    let plan = plan(&doc, &after, &figures, &alive);
    assert_eq!((plan.keys_moved, plan.bytes_from_bucket), (Some(48), None));
}

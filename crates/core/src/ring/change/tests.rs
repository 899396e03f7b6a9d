//! Tests of edits: what each makes of a document, and what is refused.
#![allow(clippy::unwrap_used)]
use super::super::MAX_WEIGHT;
use super::*;

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn changed() -> Change {
    Change { at_ms: 1, by: "ops".into(), what: "test".into() }
}

/// Active members named a, b, c… of three zones, three replicas.
fn cluster(members: u8) -> RingDocument {
    let member = |i: u8| Member {
        id: id(&char::from(b'a' + i).to_string()),
        address: format!("h:{i}"),
        zone: format!("z{}", i % 3),
        weight: 1,
        state: MemberState::Active,
        becomes: None,
        dead: false,
    };
    let members = (0..members).map(member).collect();
    RingDocument::found("c".into(), 7, 64, 16, 3, members, changed(), "n".into()).unwrap()
}

/// Everybody lives but those in `dead`.
fn with(doc: &RingDocument, edits: &[Edit], dead: &[&str], force: bool) -> Result<RingDocument, EditError> {
    let alive = |id: &NodeId| !dead.contains(&id.as_str());
    edit(doc, edits, Known { alive: &alive, force }, changed(), "n".into())
}

fn ok(doc: &RingDocument, edits: &[Edit]) -> RingDocument {
    with(doc, edits, &["dead"], false).unwrap()
}

fn refused(doc: &RingDocument, edits: &[Edit]) -> EditError {
    with(doc, edits, &[], false).unwrap_err()
}

fn copied(doc: &RingDocument) -> RingDocument {
    doc.with_copied(changed(), "n".into()).unwrap()
}

fn settled(doc: &RingDocument) -> RingDocument {
    doc.settled(changed(), "n".into()).unwrap()
}

fn leave(name: &str) -> Edit {
    Edit::Leave { id: id(name) }
}

fn forget(name: &str) -> Edit {
    Edit::Forget { id: id(name) }
}

fn weight(name: &str, weight: u32) -> Edit {
    Edit::Weight { id: id(name), weight }
}

fn zone(name: &str, zone: &str) -> Edit {
    Edit::Zone { id: id(name), zone: zone.into() }
}

fn join(name: &str) -> Edit {
    Edit::Join { id: id(name), address: "h:99".into(), zone: "z0".into(), weight: 2 }
}

fn names(doc: &RingDocument) -> Vec<&str> {
    doc.members.iter().map(|m| m.id.as_str()).collect()
}

#[test]
fn edits_are_staged_and_settled() {
    let doc = cluster(5);
    let next = ok(&doc, &[leave("a"), weight("b", 3), zone("b", "z9"), join("f")]);
    assert_eq!((next.version, next.copied, next.has_pending_change()), (2, false, true));
    assert_eq!(Ring::current(&next), Ring::current(&doc), "nothing has moved yet");
    let b = next.member(&id("b")).unwrap();
    assert_eq!((b.weight, b.zone.as_str()), (1, "z1"));
    assert_eq!(pending(&next), "a leaves, b gets weight 3 and goes to zone z9, f joins");
    let settled = settled(&copied(&next));
    assert_eq!(names(&settled), ["b", "c", "d", "e", "f"]);
    assert!(!settled.has_pending_change());
    let b = settled.member(&id("b")).unwrap();
    assert_eq!((b.weight, b.zone.as_str(), &b.becomes), (3, "z9", &None));
    assert_eq!(Ring::current(&settled), Ring::next(&next));
}

#[test]
fn a_cluster_that_forms_takes_members_at_once() {
    let next = ok(&cluster(2), &[join("f")]);
    assert!(!next.has_pending_change() && !next.is_forming());
}

#[test]
fn who_is_forgotten_is_a_home_until_it_is_settled_and_nobody_waits_for_it() {
    let doc = cluster(5);
    let next = with(&doc, &[forget("c")], &["c"], false).unwrap();
    let c = next.member(&id("c")).unwrap();
    assert_eq!((c.state, c.dead), (MemberState::Leaving, true));
    assert_eq!(Ring::current(&next).members().len(), 5);
    assert!(Ring::current(&next).members().iter().any(|m| m.dead));
    let who = |members: Vec<&Member>| members.iter().map(|m| m.id.to_string()).collect::<String>();
    assert_eq!(who(next.must_know().collect()), "abde");
    assert_eq!(who(next.must_be_ready().collect()), "abde");
    assert_eq!(names(&settled(&copied(&next))), ["a", "b", "d", "e"]);
}

#[test]
fn while_a_change_is_pending_its_members_can_be_forgotten() {
    let doc = ok(&cluster(5), &[join("f"), leave("a"), weight("b", 4)]);
    // Who joins and dies is simply not there any more; who leaves and dies is not waited for.
    let next = with(&doc, &[forget("f"), forget("a"), forget("b")], &["a", "b", "f"], false).unwrap();
    assert_eq!(names(&next), ["a", "b", "c", "d", "e"]);
    assert_eq!(pending(&next), "a is dead, b is dead");
    assert!(next.members.iter().all(|m| m.becomes.is_none()));
    assert_eq!(names(&settled(&copied(&next))), ["c", "d", "e"]);
    let error = with(&next, &[forget("a")], &["a"], false).unwrap_err();
    assert!(matches!(error, EditError::Forgotten { at: 0, .. }), "{error}");
}

/// What is read from already may not change under its readers: the change is completed, the dead go after it.
#[test]
fn while_a_change_is_copied_the_dead_hold_nothing_up_and_go_next() {
    let doc = copied(&ok(&cluster(6), &[join("g"), leave("a"), weight("b", 4)]));
    let next = with(&doc, &[forget("g"), forget("a"), forget("b")], &["a", "b", "g"], false).unwrap();
    assert!(next.copied);
    let places = |ring: &Ring| (0..64).map(|p| ring.homes(p).to_vec()).collect::<Vec<_>>();
    assert_eq!(places(&Ring::current(&next)), places(&Ring::current(&doc)));
    assert_eq!(places(&Ring::next(&next)), places(&Ring::next(&doc)));
    let left: Vec<&str> = next.must_be_ready().map(|m| m.id.as_str()).collect();
    assert_eq!(left, ["c", "d", "e", "f"]);
    let after = settled(&next);
    assert_eq!(Ring::current(&after), Ring::next(&next));
    assert_eq!(pending(&after), "b is dead, g is dead");
    assert!(after.members.iter().all(|m| m.becomes.is_none()));
    assert_eq!(names(&settled(&copied(&after))), ["c", "d", "e", "f"]);

    // A process that joins meanwhile begins the copy anew; the dead leave with it.
    let h = Member {
        id: id("h"),
        address: "h:1".into(),
        zone: "z".into(),
        weight: 1,
        state: MemberState::Joining,
        becomes: None,
        dead: false,
    };
    let anew = next.with_member(h, changed(), "n".into()).unwrap();
    assert!(!anew.copied);
    assert_eq!(pending(&anew), "a is dead, b is dead, h joins");
}

#[test]
fn a_cancelled_change_leaves_the_old_placement() {
    let doc = cluster(6);
    let pending = ok(&doc, &[join("g"), leave("a"), weight("b", 4), zone("c", "zz")]);
    let pending = with(&pending, &[forget("d")], &["d"], false).unwrap();
    let back = ok(&pending, &[Edit::Cancel]);
    assert_eq!((back.version, back.members), (4, doc.members));
}

#[test]
fn refusals_name_the_edit_and_the_field() {
    let doc = cluster(4);
    let busy = ok(&doc, &[join("f")]);
    let long = "x".repeat(64);
    let cases: Vec<(&RingDocument, Vec<Edit>, Refusal, &str)> = vec![
        (&doc, vec![], Refusal::Malformed, "edits has 0 entries; it must have 1 to 128"),
        (&doc, vec![Edit::Cancel; 129], Refusal::Malformed, "edits has 129 entries"),
        (&doc, vec![leave("x")], Refusal::Unknown, "edits[0].leave.id: x is not a member"),
        (&doc, vec![leave("a"), forget("x")], Refusal::Unknown, "edits[1].forget.id: x is not a member"),
        (&doc, vec![join("a")], Refusal::Conflict, "edits[0].join.id: a is a member of the ring already"),
        (&doc, vec![leave("a"), leave("b")], Refusal::Conflict, "2 members would be left, fewer than the 3"),
        (
            &doc,
            vec![leave("a"), leave("a")],
            Refusal::Malformed,
            "edits[1].leave.id: another edit is about a",
        ),
        (&doc, vec![weight("a", 2), leave("a")], Refusal::Malformed, "edits[1].leave.id: another edit"),
        (&doc, vec![weight("a", 2), weight("a", 3)], Refusal::Malformed, "edits[1].weight.id: another edit"),
        (&doc, vec![join("f"), weight("f", 3)], Refusal::Malformed, "edits[1].weight.id: another edit"),
        (&doc, vec![weight("a", 1)], Refusal::Conflict, "edits[0].weight.weight: a has it already"),
        (&doc, vec![zone("a", "z0")], Refusal::Conflict, "edits[0].zone.zone: a has it already"),
        (&doc, vec![weight("a", 0)], Refusal::Malformed, "edits[0].weight.weight is 0; it must be 1 to 1000"),
        (
            &doc,
            vec![zone("a", &long)],
            Refusal::Malformed,
            "edits[0].zone.zone is 64 characters long; it must be 1 to 63",
        ),
        (&doc, vec![zone("a", "z/1")], Refusal::Malformed, "edits[0].zone.zone is \"z/1\""),
        (
            &doc,
            vec![Edit::Join { id: id("f"), address: "a b".into(), zone: "z".into(), weight: 1 }],
            Refusal::Malformed,
            "edits[0].join.address is \"a b\"",
        ),
        (&doc, vec![Edit::Cancel], Refusal::Conflict, "edits[0].cancel: no change is pending"),
        (&busy, vec![leave("a")], Refusal::Conflict, "edits[0].leave: a change is pending (f joins)"),
        (&busy, vec![join("g")], Refusal::Conflict, "edits[0].join: a change is pending"),
        (
            &busy,
            vec![forget("f"), Edit::Cancel],
            Refusal::Conflict,
            "edits[0].forget.id: f seems to be alive",
        ),
        (
            &busy,
            vec![Edit::Cancel, Edit::Cancel],
            Refusal::Malformed,
            "edits[0].cancel must be the only edit",
        ),
        (&doc, vec![forget("a")], Refusal::Conflict, "edits[0].forget.id: a seems to be alive"),
    ];
    for (doc, edits, kind, expected) in cases {
        let error = refused(doc, &edits);
        assert!(error.to_string().contains(expected), "{edits:?}: {error}");
        assert_eq!(error.refusal(), kind, "{error}");
    }
    let error = refused(&copied(&busy), &[Edit::Cancel]);
    assert!(matches!(error, EditError::Copied { .. }), "{error}");
}

#[test]
fn all_weights_together_have_a_limit_now_and_afterwards() {
    let doc = RingDocument { tokens: 1024, ..cluster(4) };
    let heavy = MAX_WEIGHT;
    ok(&doc, &[weight("a", heavy)]);
    let error = refused(&doc, &[weight("a", heavy), weight("b", heavy)]);
    assert!(error.to_string().contains("edits: tokens times the sum of weights is 2050048"), "{error}");
    // A heavy member that leaves still counts until it is gone.
    let doc = settled(&ok(&doc, &[weight("a", heavy)]));
    let error = refused(&doc, &[leave("a"), weight("b", 30), join("f"), weight("c", heavy)]);
    assert!(error.to_string().contains("tokens times the sum of weights"), "{error}");
}

#[test]
fn forgetting_is_refused_where_nobody_alive_would_be_left() {
    let doc = cluster(6);
    let two = with(&doc, &[forget("a")], &["a", "b"], false);
    assert!(two.is_ok(), "one home of three lives everywhere");
    let error = with(&doc, &[forget("a")], &["a", "b", "c"], false).unwrap_err();
    assert!(matches!(error, EditError::NoLiveHome { .. }), "{error}");
    assert!(with(&doc, &[forget("a")], &["a", "b", "c"], true).is_ok());
    // The last N stay in any case.
    let error = with(&cluster(3), &[forget("a")], &["a"], true).unwrap_err();
    assert_eq!(error, EditError::TooFew { left: 2, replicas: 3 });
    // Unless another takes the place in the same change.
    let both = with(&cluster(3), &[join("f"), forget("a")], &["a"], false).unwrap();
    assert_eq!(names(&settled(&copied(&both))), ["b", "c", "f"]);
    assert!(with(&doc, &[forget("a")], &[], true).is_ok(), "forced, though it lives");
}

#[test]
fn many_edits_are_described_within_the_limit() {
    let edits: Vec<Edit> = (0..100).map(|i| leave(&format!("node-{i}"))).collect();
    assert_eq!(describe(&edits[..2]), "node-0 leaves; node-1 leaves");
    let what = describe(&edits);
    assert_eq!(what.chars().count(), MAX_WHAT);
    assert!(what.ends_with('…'));
}

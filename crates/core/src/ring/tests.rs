//! Tests of the ring document.
#![allow(clippy::unwrap_used)]
use serde_json::{Value, json};

use super::*;

fn valid() -> Value {
    json!({
        "format": 1, "version": 3, "cluster": "c-1", "hash_seed": "00000000000000ff",
        "partitions": 256, "tokens": 64, "replicas": 3,
        "members": [
            {"id": "a", "address": "10.0.0.1:7000", "zone": "z1", "weight": 1, "state": "active"},
            {"id": "b", "address": "10.0.0.2:7000", "zone": "z2", "weight": 2, "state": "joining"},
            {"id": "c", "address": "[::1]:7000", "zone": "z3", "weight": 1000, "state": "leaving"}
        ],
        "changed": {"at_ms": 1, "by": "ops", "what": "added b"}, "nonce": "n_-9"
    })
}

fn refusal(path: &str, value: Value) -> String {
    let mut doc = valid();
    let (parent, field) = path.rsplit_once('/').unwrap();
    doc.pointer_mut(parent).unwrap()[field] = value;
    RingDocument::parse(doc.to_string().as_bytes()).unwrap_err().to_string()
}

fn change() -> Change {
    Change { at_ms: 2, by: "ops".into(), what: "test".into() }
}

fn states(doc: &RingDocument) -> Vec<(&str, MemberState)> {
    doc.members.iter().map(|m| (m.id.as_str(), m.state)).collect()
}

#[test]
fn a_document_survives_its_own_json() {
    let doc = RingDocument::parse(valid().to_string().as_bytes()).unwrap();
    assert_eq!(doc.hash_seed, 255);
    let json = doc.to_json();
    assert!(json.ends_with(b"}\n"));
    assert_eq!(RingDocument::parse(&json).unwrap(), doc);
}

#[test]
fn errors_name_the_field_and_the_limit() {
    let member = |i: usize, id: &str| json!({"id": id, "address": format!("h:{i}"), "zone": "z", "weight": 1000, "state": "active"});
    let many = |n: usize| Value::from_iter((0..n).map(|i| member(i, &format!("n{i:05}"))));
    let cases = [
        ("/format", json!(2), "format is 2; it must be 1"),
        ("/version", json!(0), "version is 0; it must be 1 to 9999999999"),
        ("/version", json!(10_000_000_000_u64), "version is 10000000000; it must be 1 to 9999999999"),
        ("/cluster", json!("C"), "cluster is \"C\"; it must be of a-z, 0-9, '-'"),
        ("/cluster", json!(""), "cluster is 0 characters long; it must be 1 to 64 characters"),
        ("/hash_seed", json!("FF"), "hash_seed must be 16 lowercase hex digits"),
        ("/hash_seed", json!("00000000000000FF"), "hash_seed must be 16 lowercase hex digits"),
        ("/hash_seed", json!("+0000000000000ff"), "hash_seed must be 16 lowercase hex digits"),
        ("/partitions", json!(0), "partitions is 0; it must be 1 to 65536"),
        ("/partitions", json!(131_072), "partitions is 131072; it must be 1 to 65536"),
        ("/partitions", json!(100), "partitions is 100; it must be a power of two"),
        ("/tokens", json!(0), "tokens is 0; it must be 1 to 1024"),
        ("/tokens", json!(1025), "tokens is 1025; it must be 1 to 1024"),
        ("/replicas", json!(0), "replicas is 0; it must be 1 to 7"),
        ("/replicas", json!(8), "replicas is 8; it must be 1 to 7"),
        ("/members/1/id", json!("B"), "node id must be"),
        ("/members/1/id", json!("a"), "members[1].id is a; it must be unique, and sorted"),
        ("/members/0/id", json!("d"), "members[1].id is b; it must be unique, and sorted"),
        ("/members/0/address", json!(""), "members[0].address is 0 characters long"),
        ("/members/0/address", json!("a b"), "members[0].address is \"a b\"; it must be of visible ASCII"),
        ("/members/0/zone", json!("z/1"), "members[0].zone is \"z/1\""),
        ("/members/2/weight", json!(0), "members[2].weight is 0; it must be 1 to 1000"),
        ("/members/2/weight", json!(1001), "members[2].weight is 1001; it must be 1 to 1000"),
        ("/members/0/state", json!("gone"), "unknown variant `gone`"),
        (
            "/members/0/becomes",
            json!({"weight": 0, "zone": "z"}),
            "members[0].becomes.weight is 0; it must be 1 to 1000",
        ),
        ("/members/0/becomes", json!({"weight": 1, "zone": "a b"}), "members[0].becomes.zone is \"a b\""),
        ("/members/0/becomes", json!({"weight": 1, "zone": "z", "x": 1}), "unknown field `x`"),
        ("/members/1/becomes", json!({"weight": 1, "zone": "z"}), "members[1].becomes is that of a member"),
        ("/members/2/becomes", json!({"weight": 1, "zone": "z"}), "members[2].becomes is that of a member"),
        ("/members/0/dead", json!(true), "members[0].dead is true; it must be false, unless"),
        ("/members/1/dead", json!(true), "members[1].dead is true; it must be false, unless"),
        ("/members", many(1025), "members is 1025; it must be at most 1024"),
        ("/members", many(17), "tokens times the sum of weights is 1088000; it must be at most 1048576"),
        ("/changed/by", json!("a\nb"), "changed.by is \"a\\nb\""),
        ("/changed/what", json!("x".repeat(501)), "changed.what is 501 characters long"),
        ("/changed/at_ms", json!(-1), "invalid value"),
        ("/nonce", json!("a b"), "nonce is \"a b\""),
    ];
    for (path, value, expected) in cases {
        let error = refusal(path, value);
        assert!(error.contains(expected), "{path}: {error}");
    }
}

#[test]
fn partitions_times_members_has_a_limit() {
    let mut doc = valid();
    doc["partitions"] = json!(65_536);
    doc["tokens"] = json!(1);
    let member =
        |i| json!({"id": format!("n{i:03}"), "address": "h:1", "zone": "z", "weight": 1, "state": "active"});
    doc["members"] = (0..64).map(member).collect();
    assert!(RingDocument::parse(doc.to_string().as_bytes()).is_ok());
    doc["members"] = (0..65).map(member).collect();
    let error = RingDocument::parse(doc.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.contains("partitions times members is 4259840; it must be at most 4194304"), "{error}");
}

#[test]
fn unknown_and_missing_fields_are_refused() {
    let mut extra = valid();
    extra["colour"] = json!(1);
    let mut extra_in_member = valid();
    extra_in_member["members"][0]["rack"] = json!("r");
    let mut missing = valid();
    missing.as_object_mut().unwrap().remove("nonce");
    for (doc, name) in [(extra, "colour"), (extra_in_member, "rack"), (missing, "nonce")] {
        let error = RingDocument::parse(doc.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    assert!(matches!(RingDocument::parse(b"[1"), Err(RingError::Json(_))));
    assert!(matches!(RingDocument::parse(&[b' '; MAX_DOCUMENT_BYTES + 1]), Err(RingError::Limit { .. })));
}

#[test]
fn object_names_go_both_ways() {
    assert_eq!(RingDocument::object_name(3), "ring/0000000003.json");
    for version in [1, 3, MAX_VERSION] {
        assert_eq!(RingDocument::version_of_object(&RingDocument::object_name(version)), Some(version));
    }
    for bad in ["ring/3.json", "ring/0000000000.json", "ring/000000000a.json", "ring/+000000003.json"] {
        assert_eq!(RingDocument::version_of_object(bad), None, "{bad}");
    }
    for bad in ["0000000003.json", "ring/0000000003", "x/ring/0000000003.json", "ring/00000000003.json"] {
        assert_eq!(RingDocument::version_of_object(bad), None, "{bad}");
    }
}

#[test]
fn successors_count_up_and_stage_their_change() {
    let doc = RingDocument::parse(valid().to_string().as_bytes()).unwrap();
    assert!(doc.has_pending_change());
    let settled = doc.settled(change(), "m".into()).unwrap();
    assert_eq!(settled.version, 4);
    assert_eq!(states(&settled), [("a", MemberState::Active), ("b", MemberState::Active)]);
    assert!(!settled.has_pending_change());
    assert!(settled.is_forming(), "two members, three replicas");

    let mut member = settled.member(&NodeId::new("a").unwrap()).unwrap().clone();
    member.id = NodeId::new("aa").unwrap();
    member.state = MemberState::Joining;
    let joining = settled.with_member(member.clone(), change(), "m".into()).unwrap();
    assert!(joining.is_forming(), "a joining member holds nothing yet");
    assert_eq!(joining.members.iter().map(|m| m.id.as_str()).collect::<Vec<_>>(), ["a", "aa", "b"]);
    member.state = MemberState::Leaving;
    let leaving = joining.with_member(member, change(), "m".into()).unwrap();
    assert_eq!(leaving.version, 6);
    assert!(!leaving.is_forming(), "a leaving member is a home until it is gone");
    let error = joining.settled(change(), String::new()).unwrap_err().to_string();
    assert!(error.contains("nonce"), "{error}");
}

#[test]
fn the_last_version_has_no_successor() {
    let mut doc = RingDocument::parse(valid().to_string().as_bytes()).unwrap();
    doc.version = MAX_VERSION;
    assert!(doc.next(doc.members.clone(), change(), "m".into()).is_err());
}

/// All that a document can hold; a new cluster has none of the fields for changes.
#[test]
fn the_format_stays_what_it_is() {
    let mut doc = valid();
    doc["copied"] = json!(true);
    doc["members"][0]["becomes"] = json!({"weight": 7, "zone": "z9"});
    doc["members"][1]["dead"] = json!(true);
    doc["members"][2]["dead"] = json!(true);
    let doc = RingDocument::parse(doc.to_string().as_bytes()).unwrap();
    let golden = crate::golden::check("ring-v1.json", &doc.to_json());
    assert_eq!(RingDocument::parse(&golden).unwrap(), doc);
    let quiet = valid();
    let quiet = RingDocument::parse(quiet.to_string().as_bytes()).unwrap().to_json();
    for field in ["copied", "becomes", "dead"] {
        assert!(!String::from_utf8(quiet.clone()).unwrap().contains(field), "{field}");
    }
}

//! Has the cluster come to rest? No hint is left, every home counts, and homes that compare what they hold find no
//! difference.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::{Value, json};

use crate::client::{Client, Failure, Reply};

/// Looks at a cluster again and again, through one gateway.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    /// Which comparison of each node was asked for; nothing before one is under way.
    awaited: Option<BTreeMap<String, u64>>,
}

impl Rest {
    /// What keeps the cluster from rest; nothing when it is at rest. Has homes compare what they hold once nothing else
    /// is missing, and again until they find no difference.
    ///
    /// # Errors
    /// If the gateway does not answer.
    pub(crate) async fn look(&mut self, client: &Client) -> Result<Vec<String>, Failure> {
        let status = client.get("/v1/cluster").await.and_then(Reply::success)?.json()?;
        let hints = client.get("/v1/cluster/hints").await.and_then(Reply::success)?.json()?;
        let unrest = [uncounted(&status), kept(&hints)].concat();
        if !unrest.is_empty() {
            self.awaited = None;
            return Ok(unrest);
        }
        let Some(awaited) = &self.awaited else {
            let body = Bytes::from_static(b"{}");
            let sent = client.send(Method::POST, "/v1/cluster/repair", HeaderMap::new(), body).await;
            sent.and_then(Reply::success)?;
            let status = client.get("/v1/cluster").await.and_then(Reply::success)?.json()?;
            self.awaited = Some(orders(&status));
            return Ok(vec!["homes compare what they hold".to_owned()]);
        };
        match compared(&status, awaited) {
            None => Ok(vec!["homes compare what they hold".to_owned()]),
            Some(differing) => {
                if !differing.is_empty() {
                    // What was found has been repaired; another comparison has to show that.
                    self.awaited = None;
                }
                Ok(differing)
            }
        }
    }
}

fn members(status: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let members = status.get("members").and_then(Value::as_array).into_iter().flatten();
    members.map(|member| (member.get("id").and_then(Value::as_str).unwrap_or_default(), member))
}

/// Members that do not count, or do not hold what they should, as `GET /v1/cluster` says.
fn uncounted(status: &Value) -> Vec<String> {
    let mut unrest = Vec::new();
    for (id, member) in members(status) {
        let wanted = [
            ("reachable", json!(true)),
            ("standing", json!("counting")),
            ("partitions_not_held", json!(0)),
            ("hints", json!([])),
        ];
        for (name, wanted) in wanted {
            let is = member.get(name).unwrap_or(&Value::Null);
            if *is != wanted {
                unrest.push(format!("{id}: {name} is {is}"));
            }
        }
    }
    unrest
}

/// Hints that are left, inboxes among them, as `GET /v1/cluster/hints` says.
fn kept(hints: &Value) -> Vec<String> {
    let failed = hints.get("bucket_error").filter(|error| !error.is_null());
    let failed = failed.map(|error| format!("hints can't be listed: {error}"));
    let homes = hints.get("homes").and_then(Value::as_array).into_iter().flatten();
    homes.map(|home| format!("hints are left: {home}")).chain(failed).collect()
}

fn orders(status: &Value) -> BTreeMap<String, u64> {
    let asked = |member: &Value| member.get("repair")?.get("asked")?.as_u64();
    members(status).map(|(id, member)| (id.to_owned(), asked(member).unwrap_or(0))).collect()
}

/// What the comparisons found that were awaited; nothing while they are under way.
fn compared(status: &Value, awaited: &BTreeMap<String, u64>) -> Option<Vec<String>> {
    let mut found = Vec::new();
    for (id, member) in members(status) {
        let repair = member.get("repair").unwrap_or(&Value::Null);
        let figure = |name: &str| repair.get(name).and_then(Value::as_u64);
        let idle = repair.get("running") == Some(&Value::Bool(false));
        if !idle || figure("answered") < awaited.get(id).copied() {
            return None;
        }
        let unreached = repair.get("unreachable").and_then(Value::as_array).is_none_or(|all| !all.is_empty());
        let whole = figure("round_compared") == figure("round_pairs");
        if figure("round_differing") != Some(0) || unreached || !whole {
            found.push(format!("{id} differs from other homes: {repair}"));
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> Value {
        json!({"id": "node-a", "reachable": true, "standing": "counting", "partitions_not_held": 0, "hints": [],
            "repair": {"asked": 2, "answered": 2, "running": false, "round_differing": 0, "round_pairs": 4,
                       "round_compared": 4, "unreachable": []}})
    }

    fn status(member: &Value) -> Value {
        json!({ "members": [member] })
    }

    #[test]
    fn each_member_has_to_count() {
        assert_eq!(uncounted(&status(&member())), Vec::<String>::new());
        let breaks = [
            ("reachable", json!(false)),
            ("standing", json!("catching-up")),
            ("partitions_not_held", json!(1)),
            ("hints", json!([{"target": "node-b", "keys": 1}])),
        ];
        for (name, value) in breaks {
            let mut member = member();
            member[name] = value;
            assert_eq!(uncounted(&status(&member)).len(), 1, "{member}");
        }
    }

    #[test]
    fn hints_have_to_go() {
        assert_eq!(kept(&json!({"homes": [], "bucket_error": null})), Vec::<String>::new());
        assert_eq!(kept(&json!({"homes": [{"home": "node-a"}], "bucket_error": null})).len(), 1);
        assert_eq!(kept(&json!({"homes": [], "bucket_error": "late"})).len(), 1);
    }

    #[test]
    fn homes_have_to_agree() {
        let awaited = BTreeMap::from([("node-a".to_owned(), 2)]);
        assert_eq!(orders(&status(&member())), awaited);
        assert_eq!(compared(&status(&member()), &awaited), Some(Vec::new()));
        for (name, value) in [("answered", json!(1)), ("running", json!(true))] {
            let mut member = member();
            member["repair"][name] = value;
            assert_eq!(compared(&status(&member), &awaited), None, "{member}");
        }
        let breaks =
            [("round_differing", json!(1)), ("unreachable", json!(["node-b"])), ("round_compared", json!(3))];
        for (name, value) in breaks {
            let mut member = member();
            member["repair"][name] = value;
            assert_eq!(compared(&status(&member), &awaited).map(|found| found.len()), Some(1), "{member}");
        }
    }
}

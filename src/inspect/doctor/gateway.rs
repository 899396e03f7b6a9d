//! How is a gateway, and whom does it reach?

use serde_json::Value;

use super::Check;
use crate::client::Client;

/// All checks of a gateway; `ring_version` is that of the newest ring document in the bucket.
pub(super) async fn checks(client: &Client, ring_version: Option<u64>) -> Vec<Check> {
    let mut checks = Vec::new();
    for (what, path, advice) in [
        ("gateway", "/healthz", "is it running, and is --gateway right?"),
        (
            "gateway is ready",
            "/readyz",
            "it needs a ring document and enough storage nodes: see `cartwheel status`",
        ),
    ] {
        match client.get(path).await {
            Ok(reply) if reply.status.is_success() => checks.push(Check::ok(what, format!("{path} answers"))),
            Ok(reply) => checks.push(Check::fail(what, reply.refusal().message, advice)),
            Err(failure) => {
                checks.push(Check::fail(what, failure.message, advice));
                return checks;
            }
        }
    }
    let cluster = async { client.get("/v1/cluster").await?.success()?.json() };
    match cluster.await {
        Ok(cluster) => checks.extend(members(&cluster, ring_version)),
        Err(failure) => checks.push(Check::fail("members", failure.message, "see `cartwheel status`")),
    }
    checks
}

/// What `GET /v1/cluster` says of each member.
fn members(cluster: &Value, ring_version: Option<u64>) -> Vec<Check> {
    let mut checks = Vec::new();
    let follows = cluster["ring_version"].as_u64();
    if let (Some(follows), Some(newest)) = (follows, ring_version)
        && follows < newest
    {
        let detail = format!("the gateway follows version {follows}, the bucket has {newest}");
        checks.push(Check::warn(
            "ring version",
            detail,
            "it should take seconds: does the gateway reach the bucket, or storage nodes?",
        ));
    }
    for member in cluster["members"].as_array().into_iter().flatten() {
        let text = |field: &str| member[field].as_str().unwrap_or("-").to_owned();
        let (what, address) = (format!("node {}", text("id")), text("address"));
        if member["reachable"] != true {
            let detail = format!("not reachable at {address}");
            checks.push(Check::warn(
                &what,
                detail,
                "start it, or look at the network between it and the gateway",
            ));
        } else if text("standing") != "counting" {
            let detail = format!("reachable, but {}", text("standing"));
            checks.push(Check::warn(
                &what,
                detail,
                "it counts once it has what it missed: wait, and look again",
            ));
        } else {
            checks.push(Check::ok(&what, format!("reachable at {address}, counting")));
        }
    }
    checks
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use serde_json::json;

    use super::super::Level;
    use super::*;

    #[test]
    fn members_are_told_one_by_one() {
        let cluster = json!({
            "ring_version": 3,
            "members": [
                { "id": "node-a", "address": "a:1", "reachable": true, "standing": "counting" },
                { "id": "node-b", "address": "b:1", "reachable": true, "standing": "returning" },
                { "id": "node-c", "address": "c:1", "reachable": false },
            ],
        });
        let levels = |newest| members(&cluster, newest).iter().map(|c| c.level).collect::<Vec<_>>();
        assert_eq!(levels(Some(3)), [Level::Ok, Level::Warn, Level::Warn]);
        assert_eq!(levels(Some(4)).len(), 4);
        assert_eq!(members(&json!({}), None), []);
    }

    #[tokio::test]
    async fn a_gateway_that_is_not_there_fails() {
        // Bound and not listening: nobody answers.
        let nobody = tokio::net::TcpSocket::new_v4().unwrap();
        nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let gateway = format!("http://{}", nobody.local_addr().unwrap()).parse().unwrap();
        let checks = checks(&Client::new(gateway, Duration::from_secs(5)), None).await;
        assert_eq!(checks.iter().map(|c| c.level).collect::<Vec<_>>(), [Level::Fail]);
    }
}

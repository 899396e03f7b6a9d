//! Homes that can't be reached but run on: they don't know that they were away, and others must.

use tokio::net::TcpListener;

use crate::support::store::Kind;
use crate::support::{Cluster, until};

const CART: &str = "carts/alice";

/// Two homes are cut off for a while, and whoever kept the cart for them dies before they are reached again: nobody
/// tells them. The gateway that had others stand in does not rely on them before they have asked around themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_does_not_rely_on_homes_that_it_had_others_stand_in_for() {
    let mut cluster = Cluster::nodes(6).with_wires().store(Kind::HeldBack).start().await;
    let homes = cluster.homes("carts", "alice").await;
    let client = cluster.gateway(0);
    let old = client.put(CART, "old").query("w=all").gives(204).await;
    // The two that are asked first.
    cluster.cut(homes[0], true);
    cluster.cut(homes[1], true);
    cluster.gateway_reaches(0, 4).await;
    let new = client.put(CART, "new").seen(&old).query("w=all").gives(204).await;
    assert_eq!((new.quorum("home"), new.quorum("fallback")), ("1", "2"));
    until("the hints are in the bucket", || async {
        (cluster.hint_objects().await.len() == 2).then_some(())
    })
    .await;
    let holders: Vec<usize> = cluster.hints().await.into_iter().map(|(holder, _)| holder).collect();
    for holder in &holders {
        cluster.kill(*holder).await;
    }
    // Unless somebody asks them they count in their own eyes: what the bucket keeps for them is held back for now.
    cluster.hold_hints_back(true);
    cluster.cut(homes[0], false);
    cluster.cut(homes[1], false);
    cluster.gateway_reaches(0, 4).await;
    let read = client.get(CART).query("r=2&deadline=2s").gives(200).await;
    assert_eq!(read.text(), "new", "{read:?}");
    let strict = client.get(CART).query("r=2&sloppy=false&deadline=500ms").send().await;
    assert_eq!(strict.problem(503)["quorum"]["got"], 1, "one home is relied on: {strict:?}");
    cluster.hold_hints_back(false);
    let read = until("two homes are relied on again", || async {
        let read = client.get(CART).query("r=2&sloppy=false&deadline=500ms").send().await;
        (read.status == 200).then_some(read)
    })
    .await;
    assert_eq!((read.text(), read.clock()), ("new", new.clock()));
    cluster.start_nodes(&holders).await;
    cluster.serves().await;
    cluster.no_hints_are_left().await;
}

/// A write is answered at W, and a home that fails only then has missed it: it is kept for that home all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_home_that_fails_after_the_answer_is_stood_in_for_too() {
    let mut cluster = Cluster::nodes(5).store(Kind::Memory).start().await;
    let homes = cluster.homes("carts", "alice").await;
    // Ended cleanly, the home will know that it lost nothing, and ask for nothing.
    cluster.stop(homes[1]).await;
    // Somebody takes connections at its address and says nothing, as a machine that hangs.
    let silent = TcpListener::bind(cluster.address(homes[1])).await.unwrap();
    cluster.start_gateway().await;
    let client = cluster.gateway(1);
    client.is_ready().await;
    let write = client.put(CART, "milk").gives(204).await;
    assert_eq!(write.quorum("answered"), "2");
    until("the cart is kept for the home that missed it", || async {
        cluster.hints().await.iter().any(|(_, target)| *target == homes[1]).then_some(())
    })
    .await;
    drop(silent);
    cluster.start_node(homes[1]).await;
    cluster.serves().await;
    cluster.no_hints_are_left().await;
    // Those who acknowledged it are not needed any more.
    cluster.kill(homes[0]).await;
    cluster.kill(homes[2]).await;
    let read = client.get(CART).gives(200).await;
    assert_eq!((read.text(), read.quorum("home")), ("milk", "1"));
}

/// The same through another gateway, which had nobody stand in: it lost them too, and must not rely on them either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn homes_that_were_cut_off_serve_no_stale_read_through_any_gateway() {
    let mut cluster = Cluster::nodes(6).gateways(2).with_wires().store(Kind::HeldBack).start().await;
    let homes = cluster.homes("carts", "alice").await;
    let (writer, reader) = (cluster.gateway(0), cluster.gateway(1));
    let old = writer.put(CART, "old").query("w=all").gives(204).await;
    cluster.cut(homes[0], true);
    cluster.cut(homes[1], true);
    for gateway in 0..2 {
        cluster.gateway_reaches(gateway, 4).await;
    }
    writer.put(CART, "new").seen(&old).query("w=all").gives(204).await;
    until("the hints are in the bucket", || async {
        (cluster.hint_objects().await.len() == 2).then_some(())
    })
    .await;
    for (holder, _) in cluster.hints().await {
        cluster.kill(holder).await;
    }
    cluster.cut(homes[0], false);
    cluster.cut(homes[1], false);
    cluster.gateway_reaches(1, 4).await;
    let read = reader.get(CART).query("r=2&deadline=2s").gives(200).await;
    assert_eq!(read.text(), "new", "{read:?}");
}

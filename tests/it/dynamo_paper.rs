//! One test per claim of "Dynamo: Amazon's Highly Available Key-value Store" (SOSP 2007), by section.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use crate::support::{Answer, Client, Cluster, until};

/// The clocks that the homes of a key hold; `None` for one that holds nothing or can't say.
async fn held(cluster: &Cluster, namespace: &str, key: &str) -> Vec<Option<String>> {
    let location = cluster.locate(namespace, key).await;
    let holders = location["holders"].as_array().unwrap();
    holders.iter().map(|holder| Some(holder["clock"].as_str()?.to_owned())).collect()
}

/// Waits until all homes of a key hold the same clock.
async fn agree(cluster: &Cluster, namespace: &str, key: &str) -> String {
    until("all homes hold the same", || async {
        let clocks = held(cluster, namespace, key).await;
        let first = clocks.first()?.clone()?;
        clocks.iter().all(|clock| clock.as_deref() == Some(first.as_str())).then_some(first)
    })
    .await
}

fn texts(answer: &Answer) -> Vec<String> {
    answer.values().into_iter().map(|value| value.unwrap_or_else(|| "(deleted)".to_owned())).collect()
}

/// 4.1: "The get(key) operation locates the object replicas ... and returns a single object or a list of objects
/// with conflicting versions along with a context. The put(key, context, object) operation determines where the
/// replicas of the object should be placed".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_1_get_returns_a_context_that_put_takes() {
    let cluster = Cluster::nodes(5).quorum(3, 2, 2).gateways(2).start().await;
    let (one, other) = (cluster.gateway(0), cluster.gateway(1));
    one.put("carts/alice", "milk").gives(204).await;
    let read = other.get("carts/alice").gives(200).await;
    assert_eq!(read.text(), "milk");
    other.put("carts/alice", "milk, bread").seen(&read).gives(204).await;
    let read = one.get("carts/alice").gives(200).await;
    assert_eq!(read.text(), "milk, bread", "a write with the context replaces what the context has seen");
}

/// 4.2: "Each data item identified by a key is assigned to a node by hashing the data item's key", and each
/// physical node is "responsible for" about its share of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_2_keys_spread_evenly_over_partitions_and_nodes() {
    let cluster = Cluster::nodes(5).quorum(3, 2, 2).gateways(2).start().await;
    let ring = cluster.gateway(0).path(Method::GET, "/v1/cluster/ring").gives(200).await.json();
    assert_eq!(ring, cluster.gateway(1).path(Method::GET, "/v1/cluster/ring").gives(200).await.json());
    for member in ring["members"].as_array().unwrap() {
        let balance = member["share"].as_f64().unwrap() / member["fair_share"].as_f64().unwrap();
        assert!((0.9..1.1).contains(&balance), "{member}");
    }
    let mut partitions = BTreeSet::new();
    for key in 0..40 {
        let location = cluster.locate("carts", &format!("key-{key}")).await;
        let partition = location["partition"].as_u64().unwrap();
        partitions.insert(partition);
        let owners: BTreeSet<&str> = strings(&ring["owners"][usize::try_from(partition).unwrap()]);
        assert_eq!(owners, strings(&location["homes"]), "the ring and the key agree");
    }
    assert!(partitions.len() > 20, "40 keys in {} of 64 partitions", partitions.len());
}

fn strings(list: &Value) -> BTreeSet<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// 4.3: "the preference list for a key is constructed by skipping positions in the ring to ensure that the list
/// contains only distinct physical nodes", and "contains more than N nodes" to account for failures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_3_the_preference_list_holds_n_distinct_nodes_and_then_the_others() {
    let cluster = Cluster::nodes(5).quorum(3, 2, 2).start().await;
    for key in 0..20 {
        let location = cluster.locate("carts", &format!("key-{key}")).await;
        let (homes, fallbacks) = (strings(&location["homes"]), strings(&location["fallbacks"]));
        assert_eq!((homes.len(), fallbacks.len()), (3, 2), "{location}");
        assert!(homes.is_disjoint(&fallbacks), "{location}");
    }
}

/// 4.3: "each data item is replicated at N hosts", and at no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_3_a_write_reaches_all_n_homes_and_nobody_else() {
    let cluster = Cluster::nodes(5).quorum(3, 2, 2).start().await;
    let write = cluster.gateway(0).put("carts/alice", "milk").gives(204).await;
    assert!(write.quorum("answered").parse::<usize>().unwrap() >= 2);
    let clock = agree(&cluster, "carts", "alice").await;
    assert_eq!(clock, write.dot(), "the homes have seen this write and no other");
    let status = cluster.status(0).await;
    let keys: Vec<_> =
        status["members"].as_array().unwrap().iter().map(|m| m["keys"].as_u64().unwrap()).collect();
    assert_eq!(keys.iter().sum::<u64>(), 3, "{keys:?}");
    assert_eq!(keys.iter().max(), Some(&1), "{keys:?}");
}

/// 4.4: "concurrent changes ... conflicting versions of an object"; "the client must perform the reconciliation
/// in order to collapse multiple branches of data evolution back into one".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_4_concurrent_writes_become_siblings_and_one_write_reconciles_them() {
    let cluster = Cluster::nodes(5).quorum(3, 2, 2).gateways(2).start().await;
    let (one, other) = (cluster.gateway(0), cluster.gateway(1));
    let base = one.put("carts/alice", "base").gives(204).await;
    let writes = tokio::join!(
        one.put("carts/alice", "milk").seen(&base).gives(204),
        other.put("carts/alice", "bread").seen(&base).gives(204),
    );
    let read = one.get("carts/alice").gives(300).await;
    assert_eq!(texts(&read), ["bread", "milk"], "both were written with the same context; neither is lost");
    let dots: BTreeSet<_> = read.siblings().iter().map(|s| s.headers["dot"].clone()).collect();
    assert_eq!(dots, BTreeSet::from([writes.0.dot().to_owned(), writes.1.dot().to_owned()]));
    other.put("carts/alice", "milk, bread").seen(&read).gives(204).await;
    assert_eq!(one.get("carts/alice").gives(200).await.text(), "milk, bread");
}

/// 4.4: "an add to cart can never be lost": a writer that has seen only one branch replaces only that one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_4_a_context_replaces_only_what_it_has_seen() {
    let cluster = Cluster::nodes(5).quorum(3, 2, 2).start().await;
    let gateway = cluster.gateway(0);
    let milk = gateway.put("carts/alice", "milk").gives(204).await;
    gateway.put("carts/alice", "bread").gives(204).await;
    gateway.put("carts/alice", "oat milk").seen(&milk).gives(204).await;
    let read = gateway.get("carts/alice").gives(300).await;
    assert_eq!(texts(&read), ["bread", "oat milk"]);
}

/// 4.4: an answer's clock names what it has seen and nothing else, whoever wrote in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_4_the_clock_of_a_write_does_not_claim_what_its_writer_never_read() {
    let cluster = Cluster::nodes(3).quorum(3, 2, 2).start().await;
    let gateway = cluster.gateway(0);
    gateway.put("carts/alice", "another's").gives(204).await;
    let mine = gateway.put("carts/alice", "mine").gives(204).await;
    gateway.put("carts/alice", "mine again").seen(&mine).gives(204).await;
    let read = gateway.get("carts/alice").gives(300).await;
    assert_eq!(texts(&read), ["another's", "mine again"], "what the writer never read is still there");
}

/// 4.4, figure 3: D1 and D2 by one writer; D3 and D4 branch from D2; D5 reconciles them. With a container per
/// key the versions are named by who minted them, so the clocks are compared by what they cover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_4_figure_3_version_evolution() {
    let cluster = Cluster::nodes(5).quorum(3, 2, 2).start().await;
    let gateway = cluster.gateway(0);
    let key = "figure/3";
    let d1 = gateway.put(key, "D1").gives(204).await;
    let d2 = gateway.put(key, "D2").seen(&d1).gives(204).await;
    assert_eq!(texts(&gateway.get(key).gives(200).await), ["D2"], "D2 descends from D1 and overwrites it");
    let d3 = gateway.put(key, "D3").seen(&d2).gives(204).await;
    assert_eq!(texts(&gateway.get(key).gives(200).await), ["D3"]);
    let d4 = gateway.put(key, "D4").seen(&d2).gives(204).await;
    assert_ne!(d3.dot(), d4.dot());
    let both = gateway.get(key).gives(300).await;
    assert_eq!(texts(&both), ["D3", "D4"], "neither descends from the other");
    let d5 = gateway.put(key, "D5").seen(&both).gives(204).await;
    assert_eq!(texts(&gateway.get(key).gives(200).await), ["D5"], "D5 descends from both");
    // A node that receives D4 now can tell that it is old: the client who only saw D2 makes a new branch.
    gateway.put(key, "late").seen(&d2).gives(204).await;
    assert_eq!(texts(&gateway.get(key).gives(300).await), ["D5", "late"]);
    let all: BTreeSet<_> = [&d1, &d2, &d3, &d4, &d5].map(|answer| answer.dot().to_owned()).into();
    assert_eq!(all.len(), 5, "a dot names one write");
}

/// 4.5: "R + W > N yields a quorum-like system": with any one home down, what was written is read. Homes alone are
/// asked; `always_writeable` has the sloppy quorum.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_5_with_one_home_down_a_read_sees_the_last_write() {
    let mut cluster = Cluster::nodes(5).quorum(3, 2, 2).gateways(2).start().await;
    for (turn, home) in cluster.homes("carts", "alice").await.into_iter().enumerate() {
        let (writer, reader) = (cluster.gateway(0), cluster.gateway(1));
        cluster.kill(home).await;
        let value = format!("turn {turn}");
        let read = writer.get("carts/alice").query("sloppy=false").send().await;
        let put = writer.put("carts/alice", value.clone()).query("sloppy=false");
        let put = if read.status == 404 { put } else { put.seen(&read) };
        let write = put.gives(204).await;
        assert_eq!((write.quorum("answered"), write.quorum("home")), ("2", "2"), "{write:?}");
        let read = reader.get("carts/alice").query("sloppy=false").gives(200).await;
        assert_eq!((read.text(), read.quorum("home")), (&*value, "2"));
        cluster.start_node(home).await;
        cluster.serves().await;
    }
}

/// 4.5: "the main advantage of Dynamo is that its client applications can tune the values of N, R and W": here
/// with each request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_5_r_and_w_are_the_requests() {
    let mut cluster = Cluster::nodes(5).quorum(3, 2, 2).start().await;
    let gateway = cluster.gateway(0);
    for (asked, required) in [("1", "1"), ("2", "2"), ("3", "3"), ("quorum", "2"), ("all", "3")] {
        let write = gateway.put("tune/a", "x").query(&format!("w={asked}")).gives(204).await;
        assert_eq!(write.quorum("required"), required);
        assert!(write.quorum("answered") >= required, "{write:?}");
        let read = gateway.get("tune/a").query(&format!("r={asked}")).header("accept", "application/json");
        let read = read.send().await;
        assert_eq!(read.quorum("required"), required);
        assert!(read.quorum("answered") >= required, "{read:?}");
    }
    // With a home down all three can't answer: others stand in, or else it is said, not hidden.
    let home = cluster.homes("tune", "a").await[0];
    cluster.kill(home).await;
    gateway.get("tune/a").query("r=2").gives(300).await;
    let read = gateway.get("tune/a").query("r=all").gives(300).await;
    assert_eq!((read.quorum("home"), read.quorum("fallback")), ("2", "1"));
    let problem = gateway.get("tune/a").query("r=all&sloppy=false").send().await.problem(503);
    assert_eq!(
        (&problem["quorum"]["wanted"], &problem["quorum"]["got"]),
        (&json!(3), &json!(2)),
        "{problem}"
    );
    let write = gateway.put("tune/a", "y").query("w=3").gives(204).await;
    assert_eq!((write.quorum("home"), write.quorum("fallback")), ("2", "1"));
    let problem = gateway.put("tune/a", "y").query("w=3&sloppy=false").send().await.problem(503);
    assert_eq!(
        (&problem["quorum"]["wanted"], &problem["quorum"]["got"]),
        (&json!(3), &json!(2)),
        "{problem}"
    );
    assert_eq!(problem["applied"], "unknown", "two homes hold it");
    gateway.put("tune/a", "z").query("w=1").gives(204).await;
}

/// 5: "If stale versions were returned in any of the responses, the coordinator updates those nodes with the
/// latest version. This process is called read repair".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_read_repair_heals_a_stale_home() {
    let mut cluster = Cluster::nodes(5).quorum(3, 2, 2).start().await;
    let gateway = cluster.gateway(0);
    let first = gateway.put("carts/alice", "old").query("w=all").gives(204).await;
    let home = cluster.homes("carts", "alice").await[1];
    // Nobody stands in, and a clean end leaves nothing to ask for: the home can't know what it missed.
    cluster.stop(home).await;
    let second = gateway.put("carts/alice", "new").seen(&first).query("sloppy=false").gives(204).await;
    cluster.start_node(home).await;
    cluster.serves().await;
    let stale = held(&cluster, "carts", "alice").await[1].clone();
    assert_eq!(
        stale.as_deref(),
        Some(first.dot()),
        "the home that was away has not heard of the second write"
    );
    let read = gateway.get("carts/alice").query("r=all").gives(200).await;
    assert_eq!(read.text(), "new");
    let healed = agree(&cluster, "carts", "alice").await;
    assert!(second.clock().starts_with(&format!("{healed}, mac=")), "{healed} is not {}", second.clock());
    assert_eq!(gateway.get("carts/alice").query("r=1").gives(200).await.text(), "new");
}

/// A cart as clients of 6.1 keep it ("business logic specific reconciliation"): item to (added, removed) counts,
/// merged by maximum, so that the union never brings back what was taken out.
#[derive(Debug, Default, Clone, PartialEq)]
struct Cart(std::collections::BTreeMap<String, (u64, u64)>);

impl Cart {
    fn read(text: &str) -> Self {
        Self(serde_json::from_str(text).unwrap())
    }

    fn write(&self) -> String {
        serde_json::to_string(&self.0).unwrap()
    }

    fn merge(mut self, other: Self) -> Self {
        for (item, (added, removed)) in other.0 {
            let mine = self.0.entry(item).or_default();
            *mine = (mine.0.max(added), mine.1.max(removed));
        }
        self
    }

    fn items(&self) -> Vec<&str> {
        self.0.iter().filter(|(_, (added, removed))| added > removed).map(|(item, _)| item.as_str()).collect()
    }

    fn add(&mut self, item: &str) {
        let counts = self.0.entry(item.to_owned()).or_default();
        counts.0 = counts.0.max(counts.1) + 1;
    }

    fn remove(&mut self, item: &str) {
        let counts = self.0.entry(item.to_owned()).or_default();
        counts.1 = counts.0;
    }
}

/// Reads a cart, merging siblings; gives it with the answer whose clock covers them all.
async fn fetch(client: &Client) -> (Cart, Answer) {
    let answer = client.get("carts/alice").send().await;
    let carts = answer.values().into_iter().flatten().map(|text| Cart::read(&text));
    (carts.fold(Cart::default(), Cart::merge), answer)
}

async fn store(client: &Client, cart: &Cart, read: &Answer) {
    client.put("carts/alice", cart.write()).seen(read).gives(204).await;
}

/// 6.1: "Using this reconciliation mechanism, an 'add to cart' operation is never lost. However, deleted items
/// can resurface": not with a merge that remembers what was taken out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_1_merged_carts_lose_no_addition_and_deleted_items_stay_deleted() {
    let cluster = Cluster::nodes(5).quorum(3, 2, 2).gateways(2).start().await;
    let (phone, laptop) = (cluster.gateway(0), cluster.gateway(1));
    let mut cart = Cart::default();
    cart.add("milk");
    cart.add("bread");
    phone.put("carts/alice", cart.write()).gives(204).await;
    // Both read the same cart; then one takes the milk out, and the other adds eggs.
    let (mut on_phone, phone_read) = fetch(&phone).await;
    let (mut on_laptop, laptop_read) = fetch(&laptop).await;
    on_phone.remove("milk");
    on_laptop.add("eggs");
    store(&phone, &on_phone, &phone_read).await;
    store(&laptop, &on_laptop, &laptop_read).await;
    let (merged, read) = fetch(&phone).await;
    assert_eq!(read.status, 300);
    assert_eq!(merged.items(), ["bread", "eggs"], "no addition is lost and the milk stays out");
    store(&phone, &merged, &read).await;
    let (now, read) = fetch(&laptop).await;
    assert_eq!((read.status, now.items()), (200, vec!["bread", "eggs"]));
    // And it can be put back in.
    let (mut again, read) = (now, read);
    again.add("milk");
    store(&laptop, &again, &read).await;
    assert_eq!(fetch(&phone).await.0.items(), ["bread", "eggs", "milk"]);
}

/// A deleted key stays deleted when a home that missed the deletion comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_1_a_deleted_key_does_not_resurface_with_a_home_that_missed_it() {
    let mut cluster = Cluster::nodes(5).quorum(3, 2, 2).start().await;
    let gateway = cluster.gateway(0);
    gateway.put("carts/alice", "milk").query("w=all").gives(204).await;
    let home = cluster.homes("carts", "alice").await[0];
    cluster.kill(home).await;
    let read = gateway.get("carts/alice").gives(200).await;
    gateway.delete("carts/alice").seen(&read).gives(204).await;
    cluster.start_node(home).await;
    cluster.serves().await;
    let gone = gateway.get("carts/alice").query("r=all").gives(404).await;
    assert_eq!(gone.must("cartwheel-deleted"), "?1");
    agree(&cluster, "carts", "alice").await;
    assert_eq!(gateway.get("carts/alice").query("r=1").gives(404).await.must("cartwheel-deleted"), "?1");
}

//! The episodes: each leads to one moment that a rule of the protocol is for, and looks whether the promise holds.

use std::collections::BTreeMap;
use std::time::Duration;

use cartwheel_core::frame::FrameVersion;
use tokio::time::Instant;

use super::{Hand, NODES, Order, SPARE, TWIN, homes_now_and_then};
use crate::cluster::GATEWAYS;
use crate::report::Check;
use crate::versions::Versions;
use crate::world::pass;

const SECOND: Duration = Duration::from_secs(1);
/// Nodes to which a connection broke so long ago are as good as those to which none ever did.
const FORGIVEN: Duration = Duration::from_secs(11);
const MS: Duration = Duration::from_millis(1);

/// Plays the episode of this seed.
pub async fn play(seed: u64, hand: Hand) {
    match seed % 8 {
        0 => away_twice(hand).await,
        1 => deleted_meanwhile(hand).await,
        2 => broken_connections(hand).await,
        3 => written_amid_a_change(hand).await,
        4 => two_of_one_name(hand).await,
        5 => last_words(hand).await,
        6 => lost_disk(hand).await,
        _ => not_told_by_the_bucket(seed, hand).await,
    }
}

/// All homes of a key are away, twice; writers who have seen nothing write meanwhile, so that the nodes that stand in
/// mint, hand over, and mint again. No dot may name two writes (P3), and no write may be lost.
async fn away_twice(mut hand: Hand) {
    const KEY: &str = "away";
    let homes = hand.homes(KEY).await;
    let (mut written, mut dots) = (Vec::new(), BTreeMap::new());
    for round in 0..2 {
        hand.each(&homes, Order::Crash);
        pass(hand.random.millis(2_000..4_000)).await;
        for n in 0..2 + round {
            let value = format!("{round}-{n}");
            let Some(answer) = hand.put(0, KEY, "&w=2&durability=memory", None, &value).await else {
                continue;
            };
            let dot = answer.header("dot").to_owned();
            if let Some(other) = dots.insert(dot.clone(), value.clone()) {
                hand.violate(Check::Dot, &format!("{dot} names {other} and {value}"));
            }
            written.push(value);
        }
        hand.each(&homes, Order::Start);
        // Until the homes have all of it in the bucket, and the others have let go of it.
        pass(hand.random.millis(9_000..14_000)).await;
    }
    let Some((_, shown)) = hand.get(1, KEY, "&r=3").await else {
        return hand.violate(Check::Answer, "all is well, and nobody answers");
    };
    for value in written.iter().filter(|value| !shown.contains(value)) {
        hand.violate(Check::Lost, &format!("{value} is gone, of {shown:?}"));
    }
}

/// A key is deleted while one home of it is away, of which nobody keeps anything for that home; then the others have
/// all the time they want to forget the deletion. What the home brings back must stay deleted (P6).
async fn deleted_meanwhile(mut hand: Hand) {
    const KEY: &str = "deleted";
    let homes = hand.homes(KEY).await;
    let Some(written) = hand.put(0, KEY, "&w=3", None, "old").await else { return };
    // It is in the segments of all homes.
    pass(3 * SECOND).await;
    let away = homes[usize::try_from(hand.random.millis(0..3).as_millis()).unwrap()];
    hand.order(Order::Crash(away));
    pass(hand.random.millis(2_000..4_000)).await;
    let clock = written.header("vector-clock");
    if hand.delete(0, KEY, "&w=2&sloppy=false", clock).await.is_none() {
        return;
    }
    // Others write on, so that segments are merged and what is forgotten goes.
    for n in 0..60 {
        pass(hand.random.millis(200..500)).await;
        let _ = hand.put(0, &format!("else-{}", n % 9), "&w=2", None, "else").await;
    }
    hand.order(Order::Start(away));
    let until = Instant::now() + 6 * SECOND;
    while Instant::now() < until {
        pass(hand.random.millis(50..200)).await;
        for gateway in 0..GATEWAYS.len() {
            if let Some((_, shown)) = hand.get(gateway, KEY, "&r=2").await
                && !shown.is_empty()
            {
                return hand.violate(Check::Lost, &format!("{KEY} was deleted and shows {shown:?}"));
            }
        }
    }
}

/// The connections of a gateway break now and then, and nothing else goes wrong: the nodes are there, and a new
/// connection to them is open within milliseconds; it is long ago that one broke. So each write is minted once,
/// whatever answers were lost, and a client who always gives back what it has seen never sees siblings (P2).
async fn broken_connections(mut hand: Hand) {
    const KEY: &str = "broken";
    let mut clock: Option<String> = None;
    for n in 0..8 {
        pass(FORGIVEN).await;
        let value = format!("{n}");
        // Before the call is sent, while it is carried out, or while the answer is on its way.
        let breaks_after = hand.random.millis(0..16);
        let written = {
            let orders = std::sync::Arc::clone(&hand.shared);
            let breaking = async move {
                pass(breaks_after).await;
                orders.orders.lock().push(Order::Reset(0));
                std::future::pending::<()>().await;
            };
            let seen = clock.clone();
            tokio::select! {
                biased;
                answer = hand.put(0, KEY, "&w=2&durability=disk", seen.as_deref(), &value) => answer,
                () = breaking => None,
            }
        };
        // Whatever came of it: what is there, by a quorum that every write has met.
        pass(hand.random.millis(300..600)).await;
        let Some((seen, shown)) = hand.get(1, KEY, "&r=3").await else { continue };
        if shown.len() > 1 {
            let what =
                format!("one writer, and siblings: {shown:?}; the last answer was {}", written.is_some());
            return hand.violate(Check::Beside, &what);
        }
        if written.is_some() && shown != [value.as_str()] {
            return hand.violate(Check::Lost, &format!("{value} was acknowledged, and {shown:?} is shown"));
        }
        // A read would have shown it a write that was minted twice as one.
        clock = Some(written.map_or(seen, |answer| answer.header("vector-clock").to_owned()));
    }
}

/// A node joins and becomes home of a key in another's stead. The writer's gateway reaches neither the new home nor one
/// of those that stay, the reader's gateway reaches just those two. A write that is acknowledged before the change
/// ends must be seen after it (P1).
async fn written_amid_a_change(mut hand: Hand) {
    const WRITES: usize = 0;
    const READS: usize = 1;
    // It joins by itself.
    hand.order(Order::Start(SPARE));
    let give_up = Instant::now() + 60 * SECOND;
    let view = loop {
        let view = hand.ring().await;
        if view.document.has_pending_change() {
            break view;
        }
        if Instant::now() > give_up {
            return hand.violate(Check::Ring, "the node does not join");
        }
        pass(5 * MS).await;
    };
    let keys = (0..400).map(|n| format!("amid-{n}"));
    let moved: Vec<_> = keys
        .filter_map(|key| {
            let (now, then) = homes_now_and_then(&view, &key);
            let stay: Vec<_> = now.iter().copied().filter(|node| then.contains(node)).collect();
            let leaves = now.iter().copied().find(|node| !then.contains(node))?;
            (then.contains(&SPARE) && stay.len() == 2).then(|| (key, leaves, stay[0], stay[1]))
        })
        .collect();
    let Some((_, leaves, stays, other)) = moved.first().cloned() else { return };
    let keys: Vec<String> = moved
        .into_iter()
        .filter(|(_, l, a, b)| *l == leaves && [*a, *b].iter().all(|node| [stays, other].contains(node)))
        .map(|(key, ..)| key)
        .take(6)
        .collect();
    hand.say(&format!("{keys:?}: {leaves} goes, {SPARE} comes, {stays} and {other} stay"));
    for node in NODES.into_iter().filter(|node| ![leaves, stays].contains(node)) {
        hand.order(Order::Cut(GATEWAYS[WRITES], node));
    }
    for node in NODES.into_iter().filter(|node| ![SPARE, other].contains(node)) {
        hand.order(Order::Cut(GATEWAYS[READS], node));
    }
    hand.deadline = 300 * MS;
    let mut owed: BTreeMap<String, u64> = BTreeMap::new();
    let mut clocks: BTreeMap<String, String> = BTreeMap::new();
    let give_up = Instant::now() + 60 * SECOND;
    let mut n = 0;
    while Instant::now() < give_up && hand.ring().await.document.has_pending_change() {
        n += 1;
        let key = &keys[n % keys.len()];
        let clock = clocks.get(key).cloned();
        let written = hand
            .put(WRITES, key, "&w=2&sloppy=false&durability=memory", clock.as_deref(), &n.to_string())
            .await;
        if let Some(answer) = written {
            owed.insert(key.clone(), n as u64);
            clocks.insert(key.clone(), answer.header("vector-clock").to_owned());
        }
        pass(hand.random.millis(1..10)).await;
    }
    let until = Instant::now() + 3 * SECOND;
    while Instant::now() < until {
        for key in &keys {
            let Some(owed) = owed.get(key).copied() else { continue };
            let Some((_, shown)) = hand.get(READS, key, "&r=2&sloppy=false").await else { continue };
            let newest = shown.iter().filter_map(|value| value.parse::<u64>().ok()).max().unwrap_or(0);
            if newest < owed {
                return hand
                    .violate(Check::Stale, &format!("{key}: {owed} was acknowledged, {shown:?} is shown"));
            }
        }
        pass(50 * MS).await;
    }
}

/// A storage node is cut off from everybody but the bucket, and its place is taken by a process on another machine, with
/// an empty disk. The old one goes on by itself, whatever it does to the bucket. Every write was taken by all homes of its
/// key, or by somebody else for them; so once both have died and the new one is back, it has all of them (P1, P11).
async fn two_of_one_name(mut hand: Hand) {
    let old = NODES[0];
    let view = hand.ring().await;
    let keys =
        (0..).map(|n| format!("twin-{n}")).filter(|key| homes_now_and_then(&view, key).0.contains(&old));
    let keys: Vec<String> = keys.take(30).collect();
    let mut written: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut n = 0;
    let mut write_until = async |hand: &mut Hand, until: Instant| {
        while Instant::now() < until {
            n += 1;
            let (key, value) = (keys[n % keys.len()].clone(), n.to_string());
            let seen = written.get(&key).map(|(_, clock)| clock.clone());
            if let Some(answer) = hand.put(n % 2, &key, "&w=3", seen.as_deref(), &value).await {
                written.insert(key, (value, answer.header("vector-clock").to_owned()));
            }
            pass(hand.random.millis(20..120)).await;
        }
    };
    let lengths = [5_000..9_000, 0..500, 10_000..16_000].map(|range| hand.random.millis(range));
    write_until(&mut hand, Instant::now() + lengths[0]).await;
    for other in NODES.into_iter().filter(|node| *node != old).chain(GATEWAYS).chain([TWIN]) {
        hand.order(Order::Cut(old, other));
    }
    write_until(&mut hand, Instant::now() + lengths[1]).await;
    hand.order(Order::Replace(old));
    write_until(&mut hand, Instant::now() + lengths[2]).await;
    hand.order(Order::Crash(old));
    hand.order(Order::Crash(TWIN));
    pass(SECOND).await;
    hand.order(Order::Start(TWIN));
    pass(10 * SECOND).await;
    hand.each(&NODES[1..NODES.len() - 1], Order::Crash);
    pass(SECOND).await;
    for (key, (value, _)) in written {
        let Some((_, shown)) = hand.get(0, &key, "&r=1&sloppy=false").await else {
            return hand.violate(Check::Answer, "the home is there, and nobody answers");
        };
        if !shown.contains(&value) {
            return hand
                .violate(Check::Lost, &format!("{key}: {value} was acknowledged, and {shown:?} is shown"));
        }
    }
}

/// A gateway that reaches no storage node has the bucket take a write, and dies before it can tell anybody. Once it is
/// back every home is told to look, so the write is seen within seconds (P1).
async fn last_words(mut hand: Hand) {
    const KEY: &str = "words";
    const DIES: usize = 0;
    const LIVES: usize = 1;
    if hand.put(LIVES, KEY, "&w=3", None, "before").await.is_none() {
        return;
    }
    hand.each(&NODES, |node| Order::Cut(GATEWAYS[DIES], node));
    pass(hand.random.millis(0..4_000)).await;
    let mut written = None;
    for n in 0..10 {
        let value = n.to_string();
        if hand.put(DIES, KEY, "&w=2", None, &value).await.is_some() {
            written = Some(value);
            break;
        }
    }
    hand.order(Order::Crash(GATEWAYS[DIES]));
    hand.each(&NODES, |node| Order::Mend(GATEWAYS[DIES], node));
    pass(hand.random.millis(200..2_000)).await;
    hand.order(Order::Start(GATEWAYS[DIES]));
    pass(5 * SECOND).await;
    let Some(written) = written else {
        return hand.violate(Check::Refused, "the bucket is there, and takes nothing");
    };
    let Some((_, shown)) = hand.get(LIVES, KEY, "&r=2").await else {
        return hand.violate(Check::Answer, "all is well, and nobody answers");
    };
    if !shown.contains(&written) {
        hand.violate(Check::Lost, &format!("{written} was acknowledged, and {shown:?} is shown"));
    }
}

/// A write is on the disks of two homes, and the third has nothing of it. One of the two loses its disk before anything
/// is in the bucket, and the other dies. Who lost the disk must not vote before it has asked the others back (P1); once
/// all are there, the write is (P4).
async fn lost_disk(mut hand: Hand) {
    const KEY: &str = "disk";
    const WRITES: usize = 0;
    const READS: usize = 1;
    let homes = hand.homes(KEY).await;
    let Some(before) = hand.put(WRITES, KEY, "&w=3", None, "before").await else { return };
    // All of it is in the bucket.
    pass(hand.random.millis(3_000..5_000)).await;
    let first = usize::try_from(hand.random.millis(0..3).as_millis()).unwrap();
    let [loses, knows, lacks] = [0, 1, 2].map(|n| homes[(first + n) % 3]);
    hand.order(Order::Cut(GATEWAYS[WRITES], lacks));
    hand.deadline = 500 * MS;
    let mut written = false;
    for _ in 0..10 {
        let clock = before.header("vector-clock");
        // Nobody keeps anything for a home that such a write does not reach.
        let query = "&w=2&sloppy=false&durability=disk";
        if hand.put(WRITES, KEY, query, Some(clock), "after").await.is_some() {
            written = true;
            break;
        }
    }
    for order in [Order::Crash(loses), Order::Crash(knows), Order::Replace(loses)] {
        hand.order(order);
    }
    if !written {
        return;
    }
    let until = Instant::now() + 12 * SECOND;
    while Instant::now() < until {
        pass(hand.random.millis(50..200)).await;
        if let Some((_, shown)) = hand.get(READS, KEY, "&r=2&sloppy=false").await
            && !shown.contains(&"after".to_owned())
        {
            return hand.violate(Check::Stale, &format!("after was acknowledged, {shown:?} is shown"));
        }
    }
    hand.order(Order::Start(knows));
    pass(12 * SECOND).await;
    let Some((_, shown)) = hand.get(READS, KEY, "&r=3&sloppy=false").await else {
        return hand.violate(Check::Answer, "all is well, and nobody answers");
    };
    if !shown.contains(&"after".to_owned()) {
        hand.violate(Check::Lost, &format!("after was acknowledged, and {shown:?} is shown"));
    }
}

/// A gateway can't read the bucket, and the place of a node is taken by another machine: there is a new ring. The gateway
/// hears it from nodes, so that after a few seconds it has writes accepted again (P7).
async fn not_told_by_the_bucket(seed: u64, mut hand: Hand) {
    // Frames of the first version can't say it.
    let can_say = |who: &str| Versions::of(seed, who).next() >= FrameVersion::Two;
    let Some(gateway) = (0..GATEWAYS.len()).find(|gateway| can_say(GATEWAYS[*gateway])) else { return };
    let any = usize::try_from(hand.random.millis(0..6).as_millis()).unwrap();
    let goes = NODES[any];
    if NODES.into_iter().filter(|node| ![goes, SPARE].contains(node)).filter(|node| can_say(node)).count() < 2
    {
        return;
    }
    if hand.put(gateway, "told", "&w=3", None, "before").await.is_none() {
        return hand.violate(Check::Refused, "all is well, and a write is refused");
    }
    hand.order(Order::Blind(gateway));
    pass(hand.random.millis(0..3_000)).await;
    let before = hand.ring().await.version();
    hand.order(Order::Crash(goes));
    pass(hand.random.millis(0..3_000)).await;
    hand.order(Order::Replace(goes));
    let give_up = Instant::now() + 60 * SECOND;
    while hand.ring().await.version() == before {
        if Instant::now() > give_up {
            return hand.violate(Check::Ring, "the other machine is not in the ring");
        }
        pass(50 * MS).await;
    }
    pass(5 * SECOND).await;
    for n in 0..8 {
        let key = format!("told-{n}");
        if hand.put(gateway, &key, "&w=2&durability=disk", None, "after").await.is_none() {
            return hand
                .violate(Check::Refused, &format!("{key}: five nodes are there, and a write is refused"));
        }
    }
}

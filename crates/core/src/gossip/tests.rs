//! The rules of gossip one by one, its form, and thirty nodes of which some die.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn word(node: &str, generation: u64, beat: u64) -> Word {
    Word {
        node: id(node),
        generation,
        beat,
        ring_version: 7,
        standing: Standing::Counting,
        rounds: 2,
        bucket_fails: false,
        unflushed_bytes: 4096,
        hints: Vec::new(),
        away: Vec::new(),
    }
}

fn with_lists(node: &str, entries: u64) -> Word {
    let target = |n| id(&format!("n{n}"));
    let held = |n| HintsHeld { target: target(n), keys: n, bytes: 1000 * n, oldest_ms: 70_000 };
    let (hints, away) = ((0..entries).map(held).collect(), (0..entries).map(target).collect());
    Word { hints, away, bucket_fails: true, standing: Standing::Returning, ..word(node, 300, 1 << 40) }
}

fn fresh(word: Word) -> Heard {
    Heard { word, age_ms: 0, brief: false }
}

fn listener(me: &str) -> Gossip {
    Gossip::new(Some(id(me)))
}

/// Ticks as often as needed and hears `heard` at `now_ms`.
fn hear(gossip: &mut Gossip, heard: Heard, now_ms: u64) {
    gossip.tick(now_ms);
    gossip.merge(vec![heard], now_ms, |_| true);
}

/// Lets time pass without a word, listening.
fn listen(gossip: &mut Gossip, from_ms: u64, to_ms: u64) {
    let mut now = from_ms;
    while now < to_ms {
        now = (now + TICK_MS).min(to_ms);
        gossip.tick(now);
    }
}

#[test]
fn everything_round_trips_and_the_form_is_frozen() {
    let heard = [
        fresh(with_lists("node-a", 3)),
        Heard { word: word("node-b", 1, 2), age_ms: 3_600_000, brief: false },
        Heard { word: word("node-c", 3, 4), age_ms: 17, brief: true },
    ];
    let bytes = encode(&heard);
    assert_eq!(decode(bytes.clone()).unwrap(), heard);
    let golden = crate::golden::check("gossip-v1.bin", &bytes);
    assert_eq!(decode(golden.into()).unwrap(), heard);
    assert_eq!(decode(encode(&[])).unwrap(), []);
}

#[test]
fn damage_and_other_versions_are_refused() {
    let bytes = encode(&[fresh(with_lists("node-a", 2))]);
    for cut in 0..bytes.len() {
        assert!(decode(bytes.slice(..cut)).is_err(), "{cut}");
    }
    let other = [&[GOSSIP_VERSION + 1][..], &bytes[1..]].concat();
    assert!(matches!(decode(other.into()), Err(DecodeError::Version { found: 2, .. })));
    assert!(decode([&bytes[..], &[0]].concat().into()).is_err(), "bytes after the end");
    assert!(decode(vec![0; MAX_GOSSIP_BYTES + 1].into()).is_err());
    let mut many = BytesMut::from(&[GOSSIP_VERSION][..]);
    put_varint(&mut many, MAX_MEMBERS as u64 + 1);
    many.put_bytes(0, MAX_GOSSIP_BYTES - 16);
    assert_eq!(decode(many.freeze()), Err(DecodeError::Malformed("gossip: words")));
}

/// A full ring of which every node has all to say: no word stays behind, and lists come as far as there is room.
#[test]
fn where_lists_find_no_room_words_travel_brief() {
    let name = |n: usize| format!("{:a<36}{n:04}", "n");
    let heard: Vec<_> = (0..MAX_MEMBERS).map(|n| fresh(with_lists(&name(n), MAX_ENTRIES as u64))).collect();
    let bytes = encode(&heard);
    assert!(bytes.len() <= MAX_GOSSIP_BYTES, "{}", bytes.len());
    let read = decode(bytes).unwrap();
    assert_eq!(read.len(), MAX_MEMBERS);
    assert_eq!(read[0], heard[0], "the own word is whole");
    assert!(read[MAX_MEMBERS - 1].brief && read[MAX_MEMBERS - 1].word.away.is_empty());
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let _ = decode(bytes.clone().into());
        let _ = decode([&[GOSSIP_VERSION, 1], &bytes[..]].concat().into());
    }

    #[test]
    fn words_round_trip(generation: u64, beat: u64, rounds: u64, age_ms: u64, fails: bool, standing in 0_u8..3, n in 0_u64..9) {
        let standing = Standing::from_u8(standing).unwrap();
        let word = Word { generation, beat, rounds, standing, bucket_fails: fails, ..with_lists("a", n) };
        let heard = vec![Heard { word, age_ms, brief: false }];
        prop_assert_eq!(decode(encode(&heard)).unwrap(), heard);
    }
}

#[test]
fn the_larger_generation_wins_and_then_the_larger_beat() {
    let mut gossip = listener("me");
    let mut expect = |generation, beat, stays: (u64, u64)| {
        gossip.merge(vec![fresh(word("a", generation, beat))], 0, |_| true);
        assert_eq!(gossip.word(&id("a")).unwrap().age_order(), stays);
    };
    expect(4, 90, (4, 90));
    expect(4, 89, (4, 90));
    expect(4, 91, (4, 91));
    expect(3, 500, (4, 91));
    expect(5, 1, (5, 1));
}

#[test]
fn a_restarted_process_lives_at_once() {
    let mut gossip = listener("me");
    hear(&mut gossip, fresh(word("a", 4, 90)), 0);
    listen(&mut gossip, 0, 10_000);
    assert_eq!(gossip.liveness(&id("a"), 10_000), Liveness::Dead);
    hear(&mut gossip, fresh(word("a", 5, 1)), 10_000);
    assert_eq!(gossip.liveness(&id("a"), 10_000), Liveness::Alive);
}

#[test]
fn nobody_speaks_for_another_and_strangers_are_not_heard() {
    let mut gossip = listener("me");
    gossip.say(word("other", 4, 0));
    let own = gossip.word(&id("me")).unwrap().clone();
    assert_eq!((own.generation, own.beat), (4, 1));
    let forged = Word { standing: Standing::Returning, ..word("me", 9, 9) };
    gossip.merge(vec![fresh(forged), fresh(word("stranger", 1, 1))], 0, |node| *node != id("stranger"));
    assert_eq!(gossip.words().collect::<Vec<_>>(), [&own]);
    assert_eq!(gossip.liveness(&id("stranger"), 0), Liveness::Unknown);
    assert_eq!(gossip.liveness(&id("me"), 0), Liveness::Alive);
}

/// After a clean end a node keeps its epoch: others still have a higher beat of it.
#[test]
fn a_process_of_the_same_generation_goes_on_where_the_last_one_was() {
    let (mut new, mut other) = (listener("a"), listener("b"));
    hear(&mut other, fresh(word("a", 4, 10_000)), 0);
    listen(&mut other, 0, 60_000);
    new.say(word("a", 4, 0));
    other.merge(new.tell(0), 60_000, |_| true);
    assert_eq!(other.liveness(&id("a"), 60_000), Liveness::Dead, "it looks like an old word");
    new.merge(other.tell(60_000), 0, |_| true);
    new.say(word("a", 4, 0));
    other.merge(new.tell(0), 60_000, |_| true);
    assert_eq!(other.liveness(&id("a"), 60_000), Liveness::Alive);
    // A newer generation of the own name is another process's: this one does not chase it.
    new.merge(vec![fresh(word("a", 5, 700))], 0, |_| true);
    new.say(word("a", 4, 0));
    assert_eq!(new.word(&id("a")).unwrap().age_order(), (4, 10_002));
}

#[test]
fn silence_of_three_seconds_is_death() {
    let mut gossip = listener("me");
    assert_eq!(gossip.liveness(&id("a"), 0), Liveness::Unknown);
    hear(&mut gossip, fresh(word("a", 1, 1)), 100);
    hear(&mut gossip, fresh(word("a", 1, 1)), 1_000);
    listen(&mut gossip, 1_000, 3_099);
    assert_eq!(gossip.alive_members(3_099), [id("a"), id("me")]);
    gossip.tick(3_100);
    assert_eq!(gossip.liveness(&id("a"), 3_100), Liveness::Dead, "the same word again is no news");
    assert_eq!(gossip.alive_members(3_100), [id("me")]);
}

#[test]
fn who_was_dead_before_one_came_does_not_come_alive() {
    let mut gossip = listener("me");
    let long_dead = Heard { word: word("a", 1, 1), age_ms: 3_600_000, brief: false };
    hear(&mut gossip, long_dead, 10);
    assert_eq!(gossip.liveness(&id("a"), 10), Liveness::Dead);
    // Nor by a word that was news to the teller long ago.
    hear(&mut gossip, Heard { word: word("a", 1, 2), age_ms: 5_000, brief: false }, 20);
    assert_eq!(gossip.liveness(&id("a"), 20), Liveness::Dead);
    hear(&mut gossip, Heard { word: word("a", 1, 3), age_ms: 500, brief: false }, 30);
    assert_eq!(gossip.liveness(&id("a"), 30), Liveness::Alive);
}

#[test]
fn a_stopped_process_condemns_nobody() {
    let mut gossip = listener("me");
    hear(&mut gossip, fresh(word("a", 1, 1)), 0);
    listen(&mut gossip, 0, 2_000);
    // It stands still for a minute. Whoever asks before its first tick gets the answer of then.
    assert_eq!(gossip.liveness(&id("a"), 62_000), Liveness::Alive);
    gossip.tick(62_000);
    assert_eq!(gossip.liveness(&id("a"), 62_000), Liveness::Alive);
    listen(&mut gossip, 62_000, 62_000 + DEAD_AFTER_MS);
    assert_eq!(gossip.liveness(&id("a"), 62_000 + DEAD_AFTER_MS), Liveness::Dead);
}

#[test]
fn a_gateway_sees_as_its_teller_does_and_condemns_nobody_while_unanswered() {
    let mut gateway = Gossip::new(None);
    let tell = |beat, age_ms| vec![Heard { word: word("a", 1, beat), age_ms, brief: false }];
    gateway.merge(tell(1, 0), 1_000, |_| true);
    assert!(gateway.alive(&id("a"), 60_000), "nothing was heard since");
    gateway.merge(tell(2, 2_500), 60_000, |_| true);
    assert!(gateway.alive(&id("a"), 60_000));
    gateway.merge(tell(2, 3_000), 60_500, |_| true);
    assert_eq!(gateway.liveness(&id("a"), 60_500), Liveness::Dead);
    gateway.merge(tell(2, 100), 60_600, |_| true);
    assert!(gateway.alive(&id("a"), 60_600), "another teller heard it later");
    gateway.say(word("gateway", 1, 1));
    assert_eq!(gateway.tell(60_600).len(), 1);
}

#[test]
fn a_brief_word_counts_as_a_beat_and_keeps_the_lists() {
    let mut gossip = listener("me");
    let whole = |beat| Word { away: vec![id("me")], ..word("a", 1, beat) };
    let brief = |generation, beat| Heard { word: word("a", generation, beat), age_ms: 0, brief: true };
    hear(&mut gossip, fresh(whole(1)), 0);
    hear(&mut gossip, brief(1, 5), 1_000);
    assert_eq!(gossip.word(&id("a")), Some(&whole(5)));
    assert!(gossip.tell(1_000)[0].brief, "the lists are not of this beat");
    hear(&mut gossip, fresh(Word { away: vec![id("me"), id("b")], ..whole(4) }), 1_000);
    assert_eq!(gossip.word(&id("a")).unwrap().away, [id("me"), id("b")], "newer lists, older beat");
    hear(&mut gossip, brief(2, 1), 1_000);
    assert_eq!(gossip.away_from_me(), [], "those were the last process's");
}

#[test]
fn changes_are_noticed_once() {
    let mut gossip = listener("me");
    let mut step = |word: Word, now_ms| {
        hear(&mut gossip, fresh(word), now_ms);
        let Changes { any, died } = gossip.notice(now_ms);
        (any, died)
    };
    assert_eq!(step(word("a", 1, 1), 0), (true, vec![]));
    assert_eq!(step(word("a", 1, 2), 300), (false, vec![]));
    assert_eq!(step(Word { standing: Standing::Absorbing, ..word("a", 1, 3) }, 600), (true, vec![]));
    let away = |beat| Word { standing: Standing::Absorbing, away: vec![id("me")], ..word("a", 1, beat) };
    assert_eq!(step(away(4), 900), (true, vec![]));
    assert_eq!(step(away(5), 1_200), (false, vec![]));
    assert_eq!(step(word("b", 1, 1), 1_500), (true, vec![]));
    assert_eq!(step(word("b", 2, 1), 1_800), (true, vec![]), "another process");
    for now_ms in [2_700, 3_600] {
        assert_eq!(step(word("b", 2, now_ms), now_ms), (false, vec![]));
    }
    assert_eq!(step(word("b", 2, 9_000), 4_200), (true, vec![id("a")]));
    assert_eq!(step(word("b", 2, 9_001), 4_500), (false, vec![]));
    gossip.forget_non_members(|node| *node != id("a"));
    assert_eq!(gossip.liveness(&id("a"), 4_500), Liveness::Unknown);
}

#[test]
fn partners_are_some_that_are_not_dead_and_one_that_is() {
    let names: Vec<_> = (0..12).map(|n| id(&format!("n{n:02}"))).collect();
    let mut gossip = listener("n00");
    for (n, name) in names.iter().enumerate() {
        let age_ms = if n % 2 == 0 { 0 } else { DEAD_AFTER_MS };
        hear(&mut gossip, Heard { word: word(name.as_str(), 1, 1), age_ms, brief: false }, 0);
    }
    let mut random = splitmix(1);
    let mut drawn = BTreeSet::new();
    for _ in 0..200 {
        let partners = gossip.partners(&names, 0, |n| random() % n);
        let distinct: BTreeSet<_> = partners.iter().cloned().collect();
        assert_eq!((partners.len(), distinct.len()), (FANOUT + 1, FANOUT + 1), "{partners:?}");
        assert_eq!(partners.iter().filter(|node| gossip.alive(node, 0)).count(), FANOUT);
        drawn.extend(distinct);
    }
    assert_eq!(drawn.iter().collect::<Vec<_>>(), names[1..].iter().collect::<Vec<_>>(), "everyone in turn");
    let few = gossip.partners(&names[..4], 0, |_| 0);
    assert_eq!(few.len(), 3, "all others, dead or not: {few:?}");
}

#[test]
fn a_gateway_stays_with_who_answers_and_leaves_who_does_not() {
    let names = ["a", "b", "c"].map(id);
    let mut gateway = Gossip::new(None);
    let last = Some((&names[1], true));
    let tell = |node, age_ms| Heard { word: word(node, 1, 1), age_ms, brief: false };
    gateway.merge(vec![tell("a", 0), tell("b", 0), tell("c", 0)], 0, |_| true);
    assert_eq!(gateway.source(&names, last, 0, |_| 0), Some(id("b")));
    for drawn in 0..9 {
        let next = gateway.source(&names, Some((&names[1], false)), 0, |n| drawn % n);
        assert!(next.is_some_and(|next| next != id("b")));
    }
    // One that believes most others dead may be cut off itself.
    gateway.forget_non_members(|node| *node == id("b"));
    gateway.merge(vec![tell("a", 9_000), tell("c", 9_000)], 0, |_| true);
    assert_eq!(gateway.source(&names, last, 0, |_| 1), Some(id("b")));
    assert_eq!(gateway.source(&names, last, 0, |_| 0), Some(id("a")));
    assert_eq!(gateway.source(&names[1..2], Some((&names[1], false)), 0, |_| 0), Some(id("b")), "no other");
    assert_eq!(gateway.source(&[], last, 0, |_| 0), None);
}

fn splitmix(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// Thirty nodes exchange with random partners from the start; in the second second some die. Within 5 s of that
/// every other node knows, and no node that lives is ever believed dead.
#[test]
fn a_death_is_seen_by_all_within_five_seconds_from_the_first_second_on() {
    let names: Vec<_> = (0..30).map(|n| id(&format!("n{n:02}"))).collect();
    for (seed, dying) in [(1, 1), (2, 1), (3, 3), (4, 10), (5, 20)] {
        let mut random = splitmix(seed);
        let mut nodes: Vec<_> = names.iter().map(|name| Gossip::new(Some(name.clone()))).collect();
        let mut next: Vec<_> = names.iter().map(|_| random() % TICK_MS).collect();
        let died_ms = 1_000 + random() % TICK_MS;
        let dead = |n: usize, now: u64| n < dying && now >= died_ms;
        for now in 0..died_ms + 5_000 {
            for n in (0..names.len()).filter(|n| !dead(*n, now)) {
                if next[n] != now {
                    continue;
                }
                next[n] = now + 270 + random() % 61;
                nodes[n].tick(now);
                nodes[n].say(word("x", 1, 0));
                for partner in nodes[n].partners(&names, now, |below| random() % below) {
                    let other = names.binary_search(&partner).unwrap();
                    if dead(other, now) {
                        continue;
                    }
                    let asked = decode(encode(&nodes[n].tell(now))).unwrap();
                    nodes[other].merge(asked, now, |_| true);
                    let answer = decode(encode(&nodes[other].tell(now))).unwrap();
                    nodes[n].merge(answer, now, |_| true);
                }
                let condemned = (dying..30).find(|of| nodes[n].liveness(&names[*of], now) == Liveness::Dead);
                assert_eq!(condemned, None, "seed {seed}, at {now} ms, by {n}");
            }
        }
        let now = died_ms + 5_000;
        for (n, node) in nodes.iter().enumerate().skip(dying) {
            assert_eq!(node.alive_members(now), names[dying..], "seed {seed}, node {n}");
        }
    }
}

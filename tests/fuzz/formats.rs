//! The formats of core: what lies in logs and in the bucket, and what nodes say to each other.

use bytes::{Bytes, BytesMut};

use cartwheel_core::clock::Clock;
use cartwheel_core::clock_index::{ClockIndex, Known};
use cartwheel_core::codec::{DecodeError, Reader};
use cartwheel_core::container::Container;
use cartwheel_core::frame::{Frame, FrameKind};
use cartwheel_core::gossip::{self, Gossip, Heard};
use cartwheel_core::hash::{KeyHash, checksum};
use cartwheel_core::manifest::{Manifest, ManifestError};
use cartwheel_core::merkle::{LeafDeltas, Tree};
use cartwheel_core::namespace::NamespaceDocument;
use cartwheel_core::record::{
    Brief, Record, Version, decode_brief, decode_clock, decode_lone_version, encode_brief, encode_clock,
    encode_lone_version,
};
use cartwheel_core::ring::{MAX_DOCUMENT_BYTES, Ring, RingDocument};
use cartwheel_core::segment::{self, ClockColumn, SegmentMeta};
use cartwheel_core::wire::{Answer, Call, Precondition, Reply, Request, split_page};

use crate::harness::{Budget, Fate, Target, guarded, says_why, within};
use crate::samples::{self, golden};

/// A decoded clock entry is some 27 times as long as the least bytes that say it, an empty record of a page 32 times;
/// vectors grow by doubling. It is a small number all the same, and no count that is merely claimed reserves more.
pub(crate) const BINARY: Budget = Budget { fixed: 64 * 1024, per_byte: 128 };
/// JSON: the document, its checksum's copy of it and their texts.
pub(crate) const JSON: Budget = Budget { fixed: 64 * 1024, per_byte: 128 };

/// Puts the checksum of all before it into the last eight bytes.
pub(crate) fn mend_sum(input: &mut Vec<u8>) {
    if let Some(body) = input.len().checked_sub(8) {
        let sum = checksum(&input[..body]);
        input[body..].copy_from_slice(&sum.to_le_bytes());
    }
}

fn whole<T>(
    input: &[u8],
    read: impl FnOnce(&mut Reader) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let mut reader = Reader::new(Bytes::copy_from_slice(input));
    let value = read(&mut reader)?;
    reader.end("input")?;
    Ok(value)
}

fn written(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    write(&mut out);
    out.to_vec()
}

pub(crate) fn targets() -> Vec<Target> {
    let mut all = vec![record(), version(), brief(), clock(), page(), call(), answer(), frame(), gossip()];
    all.extend([segment_tail(), segment_block(), clock_column(), leaf_deltas(), merkle_leaves()]);
    all.extend([manifest(), ring(), namespace()]);
    all
}

/// What replicas do with a container that came in.
fn merge<T: Clone + PartialEq + std::fmt::Debug>(mine: &Container<T>, theirs: &Container<T>) {
    let (mut a, mut b) = (mine.clone(), theirs.clone());
    a.sync(theirs.clone());
    b.sync(mine.clone());
    assert!(a.same_as(&b), "merged in two orders: {a:?} and {b:?}");
    assert!(a.includes(theirs) && a.includes(mine), "{a:?} does not hold what went in");
    let again = a.clone();
    a.sync(theirs.clone());
    assert!(a.same_as(&again), "merged twice");
    for entry in mine.seen().entries() {
        let next = a.next_dot(&entry.actor, theirs.seen());
        assert!(!a.seen().contains(&next), "{next} names two writes");
    }
}

fn merge_clocks(clock: &Clock) {
    for other in samples::clocks() {
        let (mut a, mut b) = (clock.clone(), other.clone());
        a.join(&other);
        b.join(clock);
        assert_eq!(a, b);
        assert!(a.covers(clock) && a.covers(&other), "{a} does not cover what it was made of");
    }
    let _ = clock.to_string();
}

fn record() -> Target {
    let mut corpus: Vec<Vec<u8>> = samples::records().iter().map(|r| r.encode().to_vec()).collect();
    corpus.push(golden("record-v1.bin"));
    fn read(input: &[u8]) -> Result<Record, DecodeError> {
        Record::decode(&Bytes::copy_from_slice(input))
    }
    fn put_to_use(record: &Record) {
        let bytes = record.encode();
        let names = Record::decode_key(&bytes).unwrap();
        assert_eq!(names, (record.namespace.clone(), record.key.clone()));
        assert_eq!(Record::decode(&record.without_values().encode()).unwrap(), record.without_values());
        for other in samples::records() {
            merge(&record.container, &other.container);
        }
        merge_clocks(record.container.seen());
    }
    Target::codec("record", BINARY, corpus, (read, |r| r.encode().to_vec(), put_to_use)).mended(mend_sum)
}

fn version() -> Target {
    let versions = samples::records().into_iter().flat_map(|r| r.container.into_parts().1);
    let corpus = versions.map(|s| written(|out| encode_lone_version(out, &s.version))).collect();
    fn read(input: &[u8]) -> Result<Version, DecodeError> {
        whole(input, decode_lone_version)
    }
    fn put_to_use(version: &Version) {
        let _ = (version.clone().as_of(u64::MAX), version.without_value(), Brief::from(version));
    }
    Target::codec(
        "version",
        BINARY,
        corpus,
        (read, |v| written(|out| encode_lone_version(out, v)), put_to_use),
    )
}

fn brief() -> Target {
    let briefs = samples::records().into_iter().map(|r| samples::brief_of(&r.container));
    let corpus = briefs.map(|b| written(|out| encode_brief(out, &b))).collect();
    fn read(input: &[u8]) -> Result<Container<Brief>, DecodeError> {
        whole(input, decode_brief)
    }
    // The clock index keeps what clock columns and records say, packed in a form of its own.
    fn put_to_use(brief: &Container<Brief>) {
        let mut index = ClockIndex::default();
        index.set_complete();
        let hash = KeyHash(0xabcd << 100);
        let known = Known::All(brief.clone());
        index.set(hash, &known);
        assert_eq!(index.get(hash), known, "the index keeps it as it is");
        for other in samples::records() {
            let other = samples::brief_of(&other.container);
            merge(brief, &other);
            index.join(hash, other, true);
        }
        let _ = (index.dead_in(0xab, u64::MAX), index.group(0), index.leaf(hash));
        index.remove(hash);
    }
    Target::codec("brief", BINARY, corpus, (read, |b| written(|out| encode_brief(out, b)), put_to_use))
}

fn clock() -> Target {
    let corpus = samples::clocks().iter().map(|c| written(|out| encode_clock(out, c))).collect();
    fn read(input: &[u8]) -> Result<Clock, DecodeError> {
        whole(input, decode_clock)
    }
    Target::codec("clock", BINARY, corpus, (read, |c| written(|out| encode_clock(out, c)), merge_clocks))
}

fn page() -> Target {
    fn read(input: &[u8]) -> Result<Vec<Bytes>, DecodeError> {
        split_page(Bytes::copy_from_slice(input))
    }
    fn write(records: &Vec<Bytes>) -> Vec<u8> {
        written(|out| records.iter().for_each(|r| cartwheel_core::wire::push_to_page(out, r)))
    }
    Target::codec("page", BINARY, vec![Vec::new(), samples::page()], (read, write, |_| {}))
}

fn call() -> Target {
    fn read(input: &[u8]) -> Result<Call, DecodeError> {
        Call::decode(Bytes::copy_from_slice(input))
    }
    fn put_to_use(call: &Call) {
        match &call.request {
            Request::Mint { precondition, version, .. } => {
                for record in samples::records() {
                    let known = samples::brief_of(&record.container);
                    let _ = precondition.holds_at(&known, version.expires_ms);
                    merge(
                        &known,
                        &Container::delta(
                            &version.context,
                            samples::dot("node-x.1", 1),
                            Brief::from(version),
                        ),
                    );
                }
                let _ = Precondition::None;
            }
            Request::Confirm { dot, .. } => {
                let mut clock = Clock::new();
                clock.insert(dot);
                merge_clocks(&clock);
            }
            _ => {}
        }
    }
    let mut corpus = samples::calls();
    // The golden file holds one call after another; the first ends where nobody says.
    corpus.retain(|call| Call::decode(call.clone().into()).is_ok());
    Target::codec("call", BINARY, corpus, (read, samples::call, put_to_use))
}

fn answer() -> Target {
    fn read(input: &[u8]) -> Result<Answer, DecodeError> {
        Answer::decode(Bytes::copy_from_slice(input))
    }
    fn put_to_use(answer: &Answer) {
        match &answer.reply {
            // What a coordinator does with the dot of its write.
            Reply::Minted { dot, .. } => {
                let delta = Container::delta(&Clock::new(), dot.clone(), ());
                merge(&delta, &Container::from_parts(samples::clocks().pop().unwrap(), vec![]));
            }
            Reply::Clocks { clocks, .. } => clocks.iter().for_each(|(_, clock)| merge_clocks(clock)),
            _ => {}
        }
    }
    Target::codec("answer", BINARY, samples::answers(), (read, samples::answer, put_to_use))
}

fn frame() -> Target {
    let frame = |kind, payload: Vec<u8>| {
        let frame =
            Frame { kind, correlation: 77, deadline_ms: 1500, head: payload.into(), body: Bytes::new() };
        [&frame.header()[..], &frame.head].concat()
    };
    let mut corpus = vec![golden("frame-v1.bin"), golden("frame-v2.bin"), frame(FrameKind::Ping, vec![])];
    corpus
        .push([frame(FrameKind::Call, samples::calls().remove(0)), frame(FrameKind::Pong, vec![])].concat());
    /// All frames that are there, in one buffer.
    fn read(input: &[u8]) -> Result<(Vec<Frame>, Vec<u8>), DecodeError> {
        let mut buffer = BytesMut::from(input);
        let mut frames = Vec::new();
        while let Some(frame) = Frame::take(&mut buffer)? {
            frames.push(frame);
        }
        Ok((frames, buffer.to_vec()))
    }
    fn write((frames, rest): &(Vec<Frame>, Vec<u8>)) -> Vec<u8> {
        let mut out: Vec<u8> =
            frames.iter().flat_map(|f| [&f.header()[..], &f.head, &f.body].concat()).collect();
        out.extend_from_slice(rest);
        out
    }
    Target::codec("frame", BINARY, corpus, (read, write, |_| {})).mended(mend_frames)
}

/// Makes length and checksum of the first frame fit all that is there.
pub(crate) fn mend_frames(input: &mut Vec<u8>) {
    if input.len() < 8 {
        return;
    }
    let length = u32::try_from(input.len() - 4).unwrap().to_le_bytes();
    input[..4].copy_from_slice(&length);
    let sum = checksum(&input[8..]).to_le_bytes();
    for at in 0..4 {
        input[4 + at] = sum[at] ^ sum[4 + at];
    }
}

fn gossip() -> Target {
    let mut corpus: Vec<Vec<u8>> =
        samples::heard().iter().map(|heard| gossip::encode(heard).to_vec()).collect();
    corpus.push(golden("gossip-v1.bin"));
    fn read(input: &[u8]) -> Result<Vec<Heard>, DecodeError> {
        gossip::decode(Bytes::copy_from_slice(input))
    }
    fn put_to_use(heard: &Vec<Heard>) {
        for me in [Some(samples::node("node-a")), None] {
            let mut known = Gossip::new(me);
            known.say(samples::heard()[1][0].word.clone());
            known.tick(1_000);
            for now_ms in [1_000, 2_000, u64::MAX] {
                known.merge(heard.clone(), now_ms, |_| true);
                known.say(samples::heard()[1][0].word.clone());
                let _ = (known.notice(now_ms), known.alive_members(now_ms), known.away_from_me());
                let told = gossip::encode(&known.tell(now_ms));
                gossip::decode(told).expect("what is told of it can be read");
            }
            known.tick(u64::MAX);
            known.skip(u64::MAX);
            known.forget_non_members(|_| false);
        }
    }
    Target::codec("gossip", BINARY, corpus, (read, |heard| gossip::encode(heard).to_vec(), put_to_use))
}

/// `u64 tail offset | tail`: what the manifest says of an object, and its end.
fn segment_tail() -> Target {
    let parts = |built: &segment::BuiltSegment| {
        let tail = &built.bytes[usize::try_from(built.tail_offset).unwrap()..];
        [&built.tail_offset.to_le_bytes()[..], tail].concat()
    };
    let corpus = vec![parts(&samples::segment(1, 0)), parts(&samples::segment(300, 500))];
    fn read(input: &[u8]) -> Result<(), DecodeError> {
        let mut reader = Reader::new(Bytes::copy_from_slice(input));
        let offset = reader.u64("offset")?;
        let tail = reader.rest();
        let meta = SegmentMeta::decode(&tail, offset)?;
        let _ = segment::tail_offset(&tail, offset.saturating_add(tail.len() as u64));
        for hash in [KeyHash(0), meta.first, meta.last, KeyHash(u128::MAX)] {
            let _ = (
                meta.may_hold(hash),
                meta.blocks_in(hash, KeyHash(u128::MAX)),
                meta.blocks_in(KeyHash(0), hash),
            );
        }
        // Whoever reads a part of the object adds these up, so the sums must be there, and within it.
        let end = offset + tail.len() as u64;
        let parts = meta.blocks().iter().map(|b| (b.offset, b.length)).chain(meta.leaf_deltas());
        for (offset, length) in parts.chain([meta.clock_column()]) {
            assert!(offset.checked_add(length).is_some_and(|sum| sum <= end), "{offset} + {length} of {end}");
        }
        Ok(())
    }
    Target::reader("segment-tail", BINARY, corpus, read).mended(mend_tail)
}

/// Makes the checksums of footer, index and filter of a tail good, as far as its footer can be followed.
pub(crate) fn mend_tail(input: &mut Vec<u8>) {
    if let Some((offset, tail)) = input.split_at_mut_checked(8) {
        let offset = u64::from_le_bytes(offset.try_into().unwrap());
        mend_segment_tail(tail, offset);
    }
}

pub(crate) fn mend_segment_tail(tail: &mut [u8], offset: u64) {
    let Some(end) = tail.len().checked_sub(12) else { return };
    tail[end + 4..].copy_from_slice(b"CWSEGEND");
    let length = u32::from_le_bytes(tail[end..end + 4].try_into().unwrap()) as usize;
    let Some(start) = end.checked_sub(length).filter(|start| start + 8 <= end) else { return };
    seal(tail, start, end);
    let mut footer = Reader::new(Bytes::copy_from_slice(&tail[start..end]));
    let Ok(sections) = footer.count(3, "sections") else { return };
    for _ in 0..sections {
        let (Ok(_), Ok(from), Ok(length)) =
            (footer.u8("kind"), footer.varint("offset"), footer.varint("length"))
        else {
            return;
        };
        let from = from.checked_sub(offset).and_then(|from| usize::try_from(from).ok());
        let to = from.and_then(|from| from.checked_add(usize::try_from(length).ok()?));
        if let (Some(from), Some(to)) = (from, to)
            && from + 8 <= to
            && to <= start
        {
            seal(tail, from, to);
        }
    }
}

fn seal(bytes: &mut [u8], from: usize, to: usize) {
    let sum = checksum(&bytes[from..to - 8]).to_le_bytes();
    bytes[to - 8..to].copy_from_slice(&sum);
}

fn segment_block() -> Target {
    let built = samples::segment(20, 50);
    let tail = built.bytes.slice(usize::try_from(built.tail_offset).unwrap()..);
    let meta = SegmentMeta::decode(&tail, built.tail_offset).unwrap();
    let at = |n: u64| usize::try_from(n).unwrap();
    let blocks = meta.blocks().iter().map(|b| built.bytes[at(b.offset)..at(b.offset + b.length)].to_vec());
    fn read(input: &[u8]) -> Result<Vec<Bytes>, DecodeError> {
        segment::decode_block(&Bytes::copy_from_slice(input))
    }
    fn write(records: &Vec<Bytes>) -> Vec<u8> {
        let mut out = written(|out| records.iter().for_each(|r| cartwheel_core::wire::push_to_page(out, r)));
        out.extend_from_slice(&[0; 8]);
        mend_sum(&mut out);
        out
    }
    Target::codec("segment-block", BINARY, blocks.collect(), (read, write, |_| {})).mended(mend_sum)
}

fn clock_column() -> Target {
    let column = |count| {
        let built = samples::segment(count, 0);
        let tail = built.bytes.slice(usize::try_from(built.tail_offset).unwrap()..);
        let (offset, length) = SegmentMeta::decode(&tail, built.tail_offset).unwrap().clock_column();
        let at = |n: u64| usize::try_from(n).unwrap();
        built.bytes[at(offset)..at(offset + length)].to_vec()
    };
    type Entries = Vec<(KeyHash, Container<Brief>)>;
    fn read(input: &[u8]) -> Result<Entries, DecodeError> {
        let mut column = ClockColumn::open(&Bytes::copy_from_slice(input))?;
        let entries = column.by_ref().collect();
        assert!(column.next().is_none(), "it goes on after an entry that can't be read");
        entries
    }
    fn write(entries: &Entries) -> Vec<u8> {
        let mut out = written(|out| {
            for (hash, brief) in entries {
                out.extend_from_slice(&hash.0.to_be_bytes());
                encode_brief(out, brief);
            }
        });
        out.extend_from_slice(&[0; 8]);
        mend_sum(&mut out);
        out
    }
    let corpus = vec![column(1), column(20)];
    Target::codec("clock-column", BINARY, corpus, (read, write, |_| {})).mended(mend_sum)
}

fn leaf_deltas() -> Target {
    let built = samples::segment(40, 0);
    let tail = built.bytes.slice(usize::try_from(built.tail_offset).unwrap()..);
    let (offset, length) = SegmentMeta::decode(&tail, built.tail_offset).unwrap().leaf_deltas().unwrap();
    let at = |n: u64| usize::try_from(n).unwrap();
    let corpus = vec![built.bytes[at(offset)..at(offset + length)].to_vec()];
    fn read(input: &[u8]) -> Result<LeafDeltas, DecodeError> {
        segment::decode_leaf_deltas(&Bytes::copy_from_slice(input))
    }
    fn write(deltas: &LeafDeltas) -> Vec<u8> {
        let mut out = written(|out| deltas.encode(out));
        out.extend_from_slice(&[0; 8]);
        mend_sum(&mut out);
        out
    }
    Target::codec("leaf-deltas", BINARY, corpus, (read, write, |deltas| Tree::default().apply(deltas)))
        .mended(mend_sum)
        .costs(4)
}

/// Merkle leaves without what stands around them in a snapshot.
fn merkle_leaves() -> Target {
    let corpus = vec![written(|out| samples::tree().encode(out))];
    fn read(input: &[u8]) -> Result<Tree, DecodeError> {
        whole(input, Tree::decode)
    }
    Target::codec("merkle-leaves", BINARY, corpus, (read, |tree| written(|out| tree.encode(out)), |_| {}))
        .costs(100)
        .up_to(2 * Tree::BYTES)
}

fn manifest() -> Target {
    let mut corpus: Vec<Vec<u8>> = samples::manifests().iter().map(Manifest::to_json).collect();
    corpus.push(golden("manifest-v1.json"));
    fn put_to_use(manifest: &Manifest) {
        for entry in manifest.segments.iter().chain(&manifest.graves) {
            let _ =
                (entry.owner(), entry.covers(KeyHash(7)), entry.ranges(), manifest.has_taken(&entry.object));
            let _ = entry.restricted_to(&entry.ranges());
        }
    }
    fn mend(input: &mut Vec<u8>) {
        if let Ok(manifest) = serde_json::from_slice::<Manifest>(input) {
            *input = manifest.to_json();
        }
    }
    fn read(input: &[u8]) -> Result<Manifest, ManifestError> {
        Manifest::parse(input)
    }
    Target::codec("manifest", JSON, corpus, (read, Manifest::to_json, put_to_use)).mended(mend)
}

fn ring() -> Target {
    let founded = RingDocument::parse(&golden("ring-v1.json")).unwrap();
    let corpus =
        vec![golden("ring-v1.json"), RingDocument { partitions: 1, replicas: 1, ..founded }.to_json()];
    Target::new("ring-document", corpus, |input| {
        let doc = match within(JSON, input.len(), || RingDocument::parse(input))? {
            Ok(doc) => doc,
            Err(error) => return says_why(&error.to_string()),
        };
        let again = guarded("reading it again", || RingDocument::parse(&doc.to_json()))?;
        // Indented, a document may be longer than what it was read from.
        if doc.to_json().len() <= MAX_DOCUMENT_BYTES && again.as_ref() != Ok(&doc) {
            return Err(format!("not canonical: read {doc:?}, and written again {again:?}"));
        }
        // Placements of the largest documents take a moment; their limits are the document's own.
        if doc.partitions <= 64 && doc.tokens * doc.members.iter().map(|m| m.weight).sum::<u32>() <= 1024 {
            guarded("placing it", || {
                for ring in [Ring::current(&doc), Ring::next(&doc)] {
                    for partition in 0..ring.partitions() {
                        assert!(ring.homes(partition).len() <= ring.replicas());
                    }
                    let _ = (
                        ring.preference_list(KeyHash(7)),
                        ring.fallbacks(KeyHash(7)),
                        ring.efficiency_permille(),
                    );
                }
            })?;
        }
        Ok(Fate::Taken)
    })
}

fn namespace() -> Target {
    fn mend(input: &mut Vec<u8>) {
        if let Ok(document) = serde_json::from_slice::<NamespaceDocument>(input) {
            *input = document.to_json();
        }
    }
    fn read(input: &[u8]) -> Result<NamespaceDocument, cartwheel_core::namespace::NamespaceError> {
        NamespaceDocument::parse(input)
    }
    let corpus = vec![golden("namespace-v1.json")];
    Target::codec("namespace-document", JSON, corpus, (read, NamespaceDocument::to_json, |_| {})).mended(mend)
}

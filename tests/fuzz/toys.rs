//! Decoders that are broken on purpose: each property of the harness is seen to fail.

use std::fmt;
use std::sync::mpsc;
use std::time::Duration;

use crate::harness::{Budget, Fate, Run, Target, Watch};

const BUDGET: Budget = Budget { fixed: 1024, per_byte: 16 };
/// Enough to meet each bug below.
const CASES: u64 = 3_000;

#[derive(Debug)]
struct No(&'static str);

impl fmt::Display for No {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// `length | so many bytes`: as it should be.
fn sound(input: &[u8]) -> Result<Vec<u8>, No> {
    let (length, rest) = input.split_first().ok_or(No("truncated length"))?;
    if rest.len() == usize::from(*length) { Ok(rest.to_vec()) } else { Err(No("malformed length")) }
}

fn write(value: &Vec<u8>) -> Vec<u8> {
    [&[u8::try_from(value.len()).unwrap_or(u8::MAX)][..], value].concat()
}

type Read = fn(&[u8]) -> Result<Vec<u8>, No>;

fn toy(read: Read) -> Target {
    Target::codec("toy", BUDGET, vec![b"\x03abc".to_vec(), b"\x00".to_vec()], (read, write, |_| {}))
        .up_to(200)
}

/// What is found in a decoder, by the words that report it.
fn found(target: &Target) -> String {
    Run::of(CASES).find(target).expect_err("the bug must be found")
}

#[test]
fn a_sound_decoder_passes_and_sees_both_fates() {
    let found = Run::of(CASES).find(&toy(sound)).unwrap_or_else(|e| panic!("{e}"));
    assert!(found.taken > 100 && found.refused > 100, "{found:?}");
}

#[test]
fn a_panic_is_found() {
    let report = found(&toy(|input| {
        let value = sound(input)?;
        assert!(value.len() < 5, "five bytes are too much for me");
        Ok(value)
    }));
    assert!(report.contains("a panic in reading: five bytes"), "{report}");
    assert!(report.contains("CARTWHEEL_FUZZ_ONLY=toy:"), "{report}");
}

#[test]
fn believing_a_claimed_length_is_found() {
    let report = found(&toy(|input| {
        let claimed = usize::from(*input.first().ok_or(No("truncated length"))?);
        let reserved: Vec<u8> = Vec::with_capacity(claimed * 100);
        let value = sound(input);
        drop(reserved);
        value
    }));
    assert!(report.contains("bytes of memory for"), "{report}");
}

#[test]
fn what_does_not_read_back_is_found() {
    // It forgets the bytes, so what it writes is something else than what it read.
    let target = Target::codec(
        "toy",
        BUDGET,
        vec![b"\x01a".to_vec()],
        (sound as Read, |value| write(&value.iter().map(|b| b & 0x7f).collect()), |_| {}),
    );
    assert!(found(&target).contains("not canonical"));
}

#[test]
fn what_is_refused_once_it_is_written_is_found() {
    let target = Target::codec("toy", BUDGET, vec![b"\x01a".to_vec()], (sound as Read, |_| vec![9], |_| {}));
    assert!(found(&target).contains("written again, is refused"));
}

#[test]
fn an_error_without_words_is_found() {
    let report = found(&toy(|input| sound(input).map_err(|_| No("-1"))));
    assert!(report.contains("the error names nothing"), "{report}");
}

#[test]
fn what_breaks_only_in_use_is_found() {
    let target = Target::codec(
        "toy",
        BUDGET,
        vec![b"\x01a".to_vec()],
        (sound as Read, write, |value| assert!(!value.contains(&0xff), "a byte that is none")),
    );
    assert!(found(&target).contains("a panic in using what was read: a byte that is none"));
}

#[test]
fn a_corpus_of_junk_is_found() {
    let target = Target::codec("toy", BUDGET, vec![b"\x09".to_vec()], (sound as Read, write, |_| {}));
    assert!(found(&target).contains("an input of the corpus is refused"));
}

#[test]
fn what_stands_behind_a_checksum_is_reached_by_mending_it() {
    // One in 2^64 mutations would get here otherwise.
    fn sealed(input: &[u8]) -> Result<Vec<u8>, No> {
        let body = input.len().checked_sub(8).ok_or(No("truncated"))?;
        let mut again = input.to_vec();
        crate::formats::mend_sum(&mut again);
        if again != input {
            return Err(No("checksum mismatch"));
        }
        assert!(body != 3, "behind the checksum");
        Ok(input[..body].to_vec())
    }
    fn seal(value: &Vec<u8>) -> Vec<u8> {
        let mut out = [&value[..], &[0; 8]].concat();
        crate::formats::mend_sum(&mut out);
        out
    }
    let bare = || Target::codec("toy", BUDGET, vec![seal(&b"four".to_vec())], (sealed as Read, seal, |_| {}));
    Run::of(CASES).find(&bare()).unwrap_or_else(|e| panic!("nothing gets past the checksum: {e}"));
    assert!(found(&bare().mended(crate::formats::mend_sum)).contains("behind the checksum"));
}

#[test]
fn a_forgery_is_found() {
    // A signature over half of the input.
    let target = Target::new("toy", vec![b"signed-rest".to_vec()], |input| {
        let authentic = input.starts_with(b"signed-");
        match (authentic, input == b"signed-rest") {
            (true, false) => Err("a changed byte was taken as authentic".to_owned()),
            (true, true) => Ok(Fate::Taken),
            _ => Ok(Fate::Refused),
        }
    });
    assert!(found(&target).contains("a changed byte"));
}

#[test]
fn what_does_not_end_is_found() {
    let (tell, told) = mpsc::channel();
    let watch = Watch::start("toy", Duration::from_millis(20), move |words| tell.send(words).unwrap());
    watch.begins(Some(3), b"\x01\x02");
    // The decoder would be at it for ever; the watch speaks up meanwhile.
    let words = told.recv_timeout(Duration::from_secs(30)).expect("the watch must speak up");
    assert!(words.contains("no end after") && words.contains("toy:0102"), "{words}");
}

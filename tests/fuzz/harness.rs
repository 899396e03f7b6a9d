//! What every decoder is held to, and the loop that feeds it.
//!
//! A decoder that is given any bytes at all must end, must not panic, must not take more memory than its budget, and
//! must either say what is wrong or give a value that reads back as itself once it is written again. A case is drawn
//! from the seed, the decoder's name and the case's number alone, so that it can be had again by itself.

use std::fmt::{Debug, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::mutate::{Rng, mutate};

/// Cases of each decoder, if nobody asks for more.
const ITERATIONS: u64 = 1_500;
/// The seed, if nobody names another.
const SEED: u64 = 0x00ca_2714;
/// A case that takes longer does not end.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest input that a failure shows; longer ones are found again by their number.
const SHOWN: usize = 32 * 1024;
/// How long inputs get, if a target says nothing else.
const LONGEST: usize = 16 * 1024;

/// What came of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was refused, with words.
    Refused,
    /// It was taken.
    Taken,
}

/// How much memory a decoder may have at once, beyond its input: a part that does not depend on the input, and so
/// many bytes for each byte of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) fixed: u64,
    pub(crate) per_byte: u64,
}

type Check = Box<dyn Fn(&[u8]) -> Result<Fate, String>>;

/// How a format is read, written, and put to use.
type Codec<T, E> = (fn(&[u8]) -> Result<T, E>, fn(&T) -> Vec<u8>, fn(&T));

/// The case that is being read: its number, if it was drawn, and its input.
type Now = Arc<Mutex<(Option<u64>, Vec<u8>)>>;

/// A decoder with what it is held to.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// What mutations begin with. All of it is taken.
    pub(crate) corpus: Vec<Vec<u8>>,
    /// Makes good again what guards the input: a checksum, a length. Not applied to every case.
    pub(crate) mend: Option<fn(&mut Vec<u8>)>,
    pub(crate) check: Check,
    /// Only one of so many cases is run: this one is slow.
    pub(crate) cost: u64,
    pub(crate) longest: usize,
}

impl Target {
    /// Anything that can be checked.
    pub(crate) fn new(
        name: &'static str,
        corpus: Vec<Vec<u8>>,
        check: impl Fn(&[u8]) -> Result<Fate, String> + 'static,
    ) -> Self {
        Self { name, corpus, mend: None, check: Box::new(check), cost: 1, longest: LONGEST }
    }

    /// A format that is read and written: `read(write(read(x))) == read(x)`. What is read is also put to use.
    pub(crate) fn codec<T: PartialEq + Debug + 'static, E: Display + 'static>(
        name: &'static str,
        budget: Budget,
        corpus: Vec<Vec<u8>>,
        (read, write, put_to_use): Codec<T, E>,
    ) -> Self {
        Self::new(name, corpus, move |input| {
            let value = match within(budget, input.len(), || read(input))? {
                Ok(value) => value,
                Err(error) => return says_why(&error.to_string()),
            };
            guarded("writing what was read", || write(&value)).and_then(|again| {
                let back = guarded("reading it again", || read(&again))?;
                let back = back.map_err(|e| format!("what was read, written again, is refused: {e}"))?;
                if back == value {
                    Ok(())
                } else {
                    Err(format!("not canonical: read {value:?}, and written again {back:?}"))
                }
            })?;
            guarded("using what was read", || put_to_use(&value))?;
            Ok(Fate::Taken)
        })
    }

    /// Something that is only read.
    pub(crate) fn reader<T: 'static, E: Display + 'static>(
        name: &'static str,
        budget: Budget,
        corpus: Vec<Vec<u8>>,
        read: fn(&[u8]) -> Result<T, E>,
    ) -> Self {
        Self::new(name, corpus, move |input| match within(budget, input.len(), || read(input))? {
            Ok(_) => Ok(Fate::Taken),
            Err(error) => says_why(&error.to_string()),
        })
    }

    pub(crate) fn mended(self, mend: fn(&mut Vec<u8>)) -> Self {
        Self { mend: Some(mend), ..self }
    }

    pub(crate) fn costs(self, cost: u64) -> Self {
        Self { cost, ..self }
    }

    pub(crate) fn up_to(self, longest: usize) -> Self {
        Self { longest, ..self }
    }
}

/// An error must hold a word that a person can look for.
pub(crate) fn says_why(error: &str) -> Result<Fate, String> {
    let word = error.split(|c: char| !c.is_ascii_alphabetic()).any(|word| word.len() >= 3);
    if word { Ok(Fate::Refused) } else { Err(format!("the error names nothing: {error:?}")) }
}

/// Runs `work`; a panic becomes an error.
pub(crate) fn guarded<T>(what: &str, work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let words = panic.downcast_ref::<&str>().map(ToString::to_string);
        let words = words.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        format!("a panic in {what}: {words}")
    })
}

/// Runs `work` on `length` bytes; a panic or too much memory becomes an error.
pub(crate) fn within<T>(budget: Budget, length: usize, work: impl FnOnce() -> T) -> Result<T, String> {
    let mut done = None;
    let used = allocation_counter::measure(|| done = Some(guarded("reading", work)));
    let value = done.unwrap()?;
    let allowed = budget.fixed + budget.per_byte * length as u64;
    if used.bytes_max > allowed {
        return Err(format!(
            "{} bytes of memory for {length} of input; allowed are {allowed}",
            used.bytes_max
        ));
    }
    Ok(value)
}

/// What is asked for from outside.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    iterations: u64,
    seed: u64,
    only: Option<Only>,
    trace: bool,
}

/// One decoder; one input, or one case, of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Only {
    name: String,
    input: Option<Vec<u8>>,
    case: Option<u64>,
}

impl Only {
    /// Reads `decoder`, `decoder:hex` or `decoder@case`.
    fn parse(text: &str) -> Self {
        let (name, input, case) = match (text.split_once(':'), text.split_once('@')) {
            (Some((name, hex)), _) => (name, Some(from_hex(hex)), None),
            (None, Some((name, case))) => (name, None, Some(case.parse().expect("decoder@case: a number"))),
            (None, None) => (text, None, None),
        };
        Self { name: name.to_owned(), input, case }
    }
}

fn from_hex(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2) && hex.is_ascii(), "decoder:hex needs two digits for each byte");
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex digits"))
        .collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn asked<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is '{text}'; it must be a number")))
}

impl Run {
    /// As the environment says.
    pub(crate) fn asked() -> Self {
        Self {
            iterations: asked("CARTWHEEL_FUZZ_ITERATIONS").unwrap_or(ITERATIONS),
            seed: asked("CARTWHEEL_FUZZ_SEED").unwrap_or(SEED),
            only: std::env::var("CARTWHEEL_FUZZ_ONLY").ok().map(|text| Only::parse(&text)),
            trace: std::env::var_os("CARTWHEEL_FUZZ_TRACE").is_some(),
        }
    }

    /// So many cases, whatever is asked for.
    pub(crate) fn of(iterations: u64) -> Self {
        Self { iterations, seed: SEED, only: None, trace: false }
    }

    /// Is something of this decoder to be run?
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.name == name)
    }

    /// The decoder that alone is asked for.
    pub(crate) fn only(&self) -> Option<&str> {
        self.only.as_ref().map(|only| only.name.as_str())
    }

    fn input(&self, target: &Target, case: u64) -> Vec<u8> {
        let name = target.name.bytes().fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut rng = Rng(self.seed ^ name ^ case.wrapping_mul(0xd134_2543_de82_ef95));
        // Neighbouring seeds give neighbouring first states.
        rng.next();
        let (first, other) = (rng.one_of(&target.corpus).clone(), rng.one_of(&target.corpus).clone());
        let mut input = mutate(&mut rng, &first, &other, target.longest);
        if let Some(mend) = target.mend
            && rng.below(8) != 0
        {
            mend(&mut input);
        }
        input
    }

    /// Feeds the decoder. The error says what was found, and how to have it again.
    pub(crate) fn find(&self, target: &Target) -> Result<Found, String> {
        let watch = Watch::start(target.name, PATIENCE, |words| {
            complain(&words);
            process::abort();
        });
        let mut found = Found::default();
        match &self.only {
            Some(Only { input: Some(input), .. }) => {
                self.one(target, &watch, None, input)?;
            }
            Some(Only { case: Some(case), .. }) => {
                self.one(target, &watch, Some(*case), &self.input(target, *case))?;
            }
            _ => {
                for input in &target.corpus {
                    if self.one(target, &watch, None, input)? == Fate::Refused {
                        return Err(describe(
                            target.name,
                            self.seed,
                            None,
                            input,
                            "an input of the corpus is refused",
                        ));
                    }
                }
                for case in 0..(self.iterations / target.cost).max(4) {
                    match self.one(target, &watch, Some(case), &self.input(target, case))? {
                        Fate::Refused => found.refused += 1,
                        Fate::Taken => found.taken += 1,
                    }
                }
            }
        }
        Ok(found)
    }

    fn one(&self, target: &Target, watch: &Watch, case: Option<u64>, input: &[u8]) -> Result<Fate, String> {
        if self.trace {
            complain(&describe(target.name, self.seed, case, input, "it is being read"));
        }
        watch.begins(case, input);
        let fate = guarded("the check", || (target.check)(input)).and_then(|fate| fate);
        fate.map_err(|why| describe(target.name, self.seed, case, input, &why))
    }
}

fn describe(name: &str, seed: u64, case: Option<u64>, input: &[u8], why: &str) -> String {
    let shown = input.len() <= SHOWN;
    let hex = to_hex(if shown { input } else { &input[..64] });
    let number = case.map_or_else(|| "of the corpus".to_owned(), |case| case.to_string());
    let only = match case {
        Some(case) if !shown => format!("CARTWHEEL_FUZZ_SEED={seed} CARTWHEEL_FUZZ_ONLY={name}@{case}"),
        _ => format!("CARTWHEEL_FUZZ_ONLY={name}:{hex}"),
    };
    format!(
        "decoder {name}, seed {seed}, case {number}, {} bytes: {why}\n  input: {hex}\n  again: {only} cargo test --test fuzz",
        input.len()
    )
}

/// Says something even if the process ends in the next moment.
pub(crate) fn complain(words: &str) {
    eprintln!("{words}");
}

/// How many inputs were taken and refused.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) taken: u64,
    pub(crate) refused: u64,
}

/// Feeds decoders, and fails the test with the first thing found of each.
pub(crate) fn fuzz(targets: &[Target]) {
    let run = Run::asked();
    let mut failures = Vec::new();
    for target in targets.iter().filter(|target| run.wants(target.name)) {
        match run.find(target) {
            Ok(Found { taken, refused }) => {
                complain(&format!("{}: {taken} taken, {refused} refused", target.name));
            }
            Err(failure) => failures.push(failure),
        }
    }
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
}

/// Notices a case that does not end.
pub(crate) struct Watch {
    now: Now,
    beat: mpsc::Sender<()>,
}

impl Watch {
    /// Calls `late` once, if nothing begins for so long.
    pub(crate) fn start(
        name: &'static str,
        limit: Duration,
        late: impl FnOnce(String) + Send + 'static,
    ) -> Self {
        let now = Now::default();
        let (beat, beats) = mpsc::channel();
        let seen = Arc::clone(&now);
        let seed = Run::asked().seed;
        thread::spawn(move || {
            loop {
                match beats.recv_timeout(limit) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        let (case, input) = seen.lock().unwrap().clone();
                        return late(describe(name, seed, case, &input, &format!("no end after {limit:?}")));
                    }
                }
            }
        });
        Self { now, beat }
    }

    pub(crate) fn begins(&self, case: Option<u64>, input: &[u8]) {
        let mut now = self.now.lock().unwrap();
        now.0 = case;
        now.1.clear();
        now.1.extend_from_slice(input);
        let _ = self.beat.send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_alone_is_asked_for_reads_back() {
        let only = |input, case| Only { name: "record".to_owned(), input, case };
        assert_eq!(Only::parse("record"), only(None, None));
        assert_eq!(Only::parse("record:00ff"), only(Some(vec![0, 255]), None));
        assert_eq!(Only::parse("record@17"), only(None, Some(17)));
        assert_eq!(from_hex(&to_hex(b"\x00\x7f\xff")), b"\x00\x7f\xff");
    }

    #[test]
    fn a_case_is_the_same_every_time() {
        let target = Target::new("toy", vec![b"one".to_vec(), b"two".to_vec()], |_| Ok(Fate::Taken));
        let run = Run::of(8);
        let drawn: Vec<_> = (0..8).map(|case| run.input(&target, case)).collect();
        assert_eq!(drawn, (0..8).map(|case| run.input(&target, case)).collect::<Vec<_>>());
        assert!(drawn.iter().any(|input| input != &drawn[0]));
    }
}

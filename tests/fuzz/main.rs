//! Seeded fuzzing of everything that reads bytes from outside: short here, long by hand (docs/fuzzing.md).
//!
//! `CARTWHEEL_FUZZ_ITERATIONS` cases of each decoder are drawn from `CARTWHEEL_FUZZ_SEED`. A failure shows the input
//! and the command that reads it again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stderr, reason = "a run by hand shows how far it is")]
#![allow(clippy::ptr_arg, reason = "readers and writers of all targets have the same types")]

mod formats;
mod harness;
mod mutate;
mod objects;
mod running;
mod s3;
mod samples;
mod serving;
mod texts;
mod toys;

use harness::{Run, fuzz};

#[test]
fn formats() {
    fuzz(&formats::targets());
}

#[test]
fn objects() {
    fuzz(&objects::targets());
}

#[test]
fn texts() {
    fuzz(&texts::targets());
}

#[test]
fn serving() {
    fuzz(&serving::targets(&Run::asked()));
}

#[test]
fn s3() {
    fuzz(&s3::targets(&Run::asked()));
}

fn all() -> Vec<harness::Target> {
    [formats::targets(), objects::targets(), texts::targets()].into_iter().flatten().collect()
}

/// A name that nothing has would pass without having looked at anything.
#[test]
fn what_alone_is_asked_for_exists() {
    let targets = all();
    let cheap = targets.iter().map(|target| target.name);
    let names: Vec<&str> = cheap.chain(serving::NAMES).chain(s3::NAMES).collect();
    if let Some(only) = Run::asked().only() {
        assert!(names.contains(&only), "CARTWHEEL_FUZZ_ONLY={only}: there are {}", names.join(", "));
    }
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), names.len(), "each name once: {names:?}");
}

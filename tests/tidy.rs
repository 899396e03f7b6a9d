//! The rules of the house, as tests: which crate may use which, who may touch clock, randomness, sockets,
//! files and threads, and what no file may hold. Every check also meets a small sample that breaks it, so
//! that none passes because it sees nothing. An exception stands in a list here, with its reason; one that
//! is no longer needed fails too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "tidy/documents.rs"]
mod documents;
#[path = "tidy/reader.rs"]
mod reader;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use reader::{STD_INSTANT, Source, Text, lines_with, sample, sources, texts};

// ---- the lists ----

/// Crate directory, crates of ours it may use, and those that only its tests may use besides.
const ARROWS: &[(&str, &[&str], &[&str])] = &[
    (
        "",
        &["core", "bucket", "cluster", "segments", "telemetry", "gateway", "storage-node", "s3-server"],
        &[],
    ),
    ("gateway", &["core", "bucket", "cluster", "segments", "telemetry"], &[]),
    ("storage-node", &["core", "bucket", "cluster", "segments", "telemetry"], &[]),
    ("crates/cluster", &["core", "bucket"], &[]),
    ("crates/segments", &["core", "bucket", "telemetry"], &[]),
    ("crates/core", &[], &[]),
    ("crates/telemetry", &["core"], &[]),
    ("crates/bucket", &["telemetry"], &["s3-server"]),
    ("crates/s3-server", &[], &[]),
    ("tests/sim/interpose", &[], &[]),
    ("tests/sim", &["interpose", "core", "bucket", "cluster", "segments", "gateway", "storage-node"], &[]),
];

/// What `crates/core` may depend on: nothing that reads a clock, draws a number, or does I/O.
const CORE_DEPENDENCIES: &[&str] =
    &["base64", "blake3", "bytes", "hashbrown", "serde", "serde_json", "thiserror", "xxhash-rust"];

/// A file, or a directory with `/` at its end, and why it is excepted.
type Allowed = (&'static str, &'static str);

/// Something that only some files may touch.
struct Seam {
    what: &'static str,
    tokens: &'static [&'static str],
    instead: &'static str,
    allowed: &'static [Allowed],
}

const BENCH: Allowed = ("src/bench/", "the load generator measures real time over real sockets");
const CHAOS: &str = "src/chaos/";
const S3_SERVER: &str = "crates/s3-server/src/";
const S3_REASON: &str = "a process of its own: a server over a directory";

const SEAMS: &[Seam] = &[
    Seam {
        what: "the clock",
        tokens: &["SystemTime::now", STD_INSTANT],
        instead: "take `Seams::clock` for wall-clock time and `tokio::time::Instant` for deadlines",
        allowed: &[
            ("crates/cluster/src/seams.rs", "the seam"),
            ("crates/s3-server/src/store.rs", "stamps objects, as a store does"),
            (
                "crates/telemetry/src/trace.rs",
                "spans begin at a time in microseconds; there are none in a simulation",
            ),
            BENCH,
            ("examples/", "shows people how long a load took"),
        ],
    },
    Seam {
        what: "randomness",
        tokens: &["rand::", "thread_rng", "getrandom", "OsRng", "RandomState"],
        instead: "take `Seams::random`",
        allowed: &[
            ("crates/cluster/src/seams.rs", "the seam"),
            ("crates/bucket/src/s3.rs", "spreads the waits between attempts against a real store"),
            ("crates/telemetry/src/trace.rs", "makes up the ids of spans; there are none in a simulation"),
            BENCH,
        ],
    },
    Seam {
        what: "threads",
        tokens: &["thread::spawn", "thread::Builder", "thread::sleep", "spawn_blocking", "block_in_place"],
        instead: "use a task; blocking work on files belongs in storage-node/src/disk.rs",
        allowed: &[
            ("storage-node/src/disk.rs", "the disk has a thread of its own"),
            ("src/serve/telemetry.rs", "the last export of metrics blocks, and the process ends without it"),
            (S3_SERVER, S3_REASON),
            BENCH,
        ],
    },
    Seam {
        what: "files",
        tokens: &["std::fs", "tokio::fs", "File::open", "File::create", "OpenOptions"],
        instead: "go through `storage_node::disk::Disk`",
        allowed: &[
            ("storage-node/src/disk.rs", "the seam"),
            (S3_SERVER, S3_REASON),
            ("src/client/put.rs", "`put --file` reads the value"),
            ("src/serve/figures.rs", "reads this process's memory and processor time"),
            ("src/inspect/doctor/machine.rs", "reads this process's limits"),
            ("src/sim/mod.rs", "`sim --svg` writes the picture"),
            (CHAOS, "makes and wipes the data directories of the processes it starts, and reads their logs"),
            BENCH,
            ("benches/", "reads figures of processes and of the machine"),
            ("examples/", "reads the data set"),
        ],
    },
    Seam {
        what: "sockets",
        tokens: &["TcpStream", "TcpListener", "TcpSocket", "UdpSocket", "UnixStream", "UnixListener"],
        instead: "take `Seams::net`",
        allowed: &[
            ("crates/cluster/src/seams.rs", "the seam"),
            ("crates/s3-server/src/server.rs", S3_REASON),
            ("src/serve/dev.rs", "looks for free ports before the cluster starts"),
            (CHAOS, "keeps ports for processes that are killed and come back"),
            BENCH,
        ],
    },
];

/// Files of the gateway that may name `cartwheel_bucket`.
const GATEWAY_BUCKET: &[Allowed] = &[
    ("gateway/src/lib.rs", "hands the bucket to what follows the ring document"),
    ("gateway/src/config.rs", "names the meter that counts its requests"),
    ("gateway/src/namespaces/", "reads and writes the settings of namespaces"),
    ("gateway/src/last_resort/", "reads and writes data where too few storage nodes can be reached"),
];

/// The longest a source file may be, in lines, and those that may be longer.
const MAX_LINES: usize = 700;
const LONG_FILES: &[Allowed] = &[];

/// Tests that may sleep.
const SLEEPING_TESTS: &[Allowed] = &[];

/// Frozen formats: file, length, FNV-1a of its bytes. A new format adds a line; a line never changes.
const GOLDEN: &[(&str, usize, u64)] = &[
    ("answers-v1.bin", 203, 0x5019_7326_2b84_e7d1),
    ("answers-v2.bin", 4, 0x8fa0_bdfd_2bdc_1552),
    ("calls-v1.bin", 395, 0xefc7_525f_2644_826e),
    ("calls-v2.bin", 2, 0x0865_9c07_b516_eb82),
    ("frame-v1.bin", 33, 0x789d_d60f_4da1_5b56),
    ("frame-v2.bin", 58, 0x9bdd_b548_3432_80a1),
    ("gossip-v1.bin", 98, 0xcb33_6d46_7ed0_3831),
    ("manifest-v1.json", 1839, 0xc46f_b04a_0aec_a2c0),
    ("namespace-v1.json", 288, 0x1a30_89cd_73bb_b0fe),
    ("record-v1.bin", 188, 0x2b12_d41c_8370_85fd),
    ("ring-v1.json", 767, 0x73f0_8fb1_6482_b69d),
    ("segment-v1.bin", 299, 0x427e_484e_6cbf_72ce),
];

/// What no text may hold: split here, so that this file does not hold it either.
const FORBIDDEN_PHRASES: &[(&str, &str)] = &[
    (concat!("/ho", "me/"), "a path of one machine"),
    (concat!("/ro", "ot/"), "a path of one machine"),
    (concat!("/us", "ers/"), "a path of one machine"),
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("rese", "arch/"), "a folder that is not part of the project"),
    (concat!("issue", " #"), "say what is the case; the reader has no tracker at hand"),
    (concat!("fixes", " #"), "say what is the case; the reader has no tracker at hand"),
    (concat!("this ses", "sion"), "say what is the case, not how it came about"),
    (concat!("sub", "agent"), "say what is the case, not who made it"),
    (concat!("co-authored", "-by"), "say what is the case, not who made it"),
    (concat!("to", "do"), "do it, or say plainly what is not there yet"),
    (concat!("fix", "me"), "fix it"),
];

fn is_under(path: &str, allowed: &str) -> bool {
    path == allowed || (allowed.ends_with('/') && path.starts_with(allowed))
}

/// Uses of `tokens` in the part of each file that `part` gives, outside `allowed`; and exceptions not needed.
fn uses(
    sources: &[Source],
    part: impl Fn(&Source) -> &str,
    tokens: &[&str],
    allowed: &[Allowed],
    advice: &str,
) -> Vec<String> {
    let mut bad = Vec::new();
    let mut used = BTreeSet::new();
    for s in sources {
        for token in tokens {
            for line in lines_with(part(s), token) {
                match allowed.iter().find(|(path, _)| is_under(&s.path, path)) {
                    Some((path, _)) => drop(used.insert(*path)),
                    None => bad.push(format!("{}:{line}: {token}: {advice}", s.path)),
                }
            }
        }
    }
    let idle = allowed.iter().filter(|(path, _)| !used.contains(path));
    bad.extend(idle.map(|(path, _)| format!("{path}: excepted in tests/tidy.rs without need; take it off")));
    bad
}

fn assert_none(bad: &[String]) {
    assert!(bad.is_empty(), "\n{}\n", bad.join("\n"));
}

// ---- manifests ----

/// The names under the sections of a Cargo.toml that `section` accepts.
fn names_under(toml: &str, section: impl Fn(&str) -> bool) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in toml.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_matches(['[', ']']);
            inside = section(header);
            if let Some((table, name)) = header.rsplit_once('.')
                && section(table)
            {
                names.push(name.to_owned());
            }
        } else if inside && line.contains('=') && !line.starts_with('#') {
            names.push(line.split(['.', '=', ' ']).next().unwrap_or("").to_owned());
        }
    }
    names
}

fn dependencies(toml: &str) -> Vec<String> {
    let is = |s: &str| {
        !s.starts_with("workspace") && (s.ends_with("dependencies") && !s.ends_with("dev-dependencies"))
    };
    names_under(toml, is)
}

fn ours(names: &[String]) -> Vec<&str> {
    names.iter().filter_map(|name| name.strip_prefix("cartwheel-")).collect()
}

fn check_arrows(directory: &str, toml: &str) -> Vec<String> {
    let Some((_, may, tests_may)) = ARROWS.iter().find(|(d, _, _)| *d == directory) else {
        return vec![format!("{directory}: a new crate; give it its arrows in tests/tidy.rs")];
    };
    let advice =
        "the arrows of ARCHITECTURE.md forbid it; move what is shared into a crate that both may use";
    let mut bad = Vec::new();
    for name in ours(&dependencies(toml)) {
        if !may.contains(&name) {
            bad.push(format!("{directory} depends on {name}: {advice}"));
        }
    }
    for name in ours(&names_under(toml, |s| s.ends_with("dev-dependencies"))) {
        if !may.contains(&name) && !tests_may.contains(&name) {
            bad.push(format!("the tests of {directory} depend on {name}: {advice}"));
        }
    }
    bad
}

fn manifests() -> Vec<(String, String)> {
    let found = texts().into_iter().filter_map(|t| {
        let directory = t.path.strip_suffix("Cargo.toml")?;
        Some((directory.trim_end_matches('/').to_owned(), t.text))
    });
    found.collect()
}

#[test]
fn crates_keep_to_the_arrows() {
    let manifests = manifests();
    assert_eq!(manifests.len(), ARROWS.len(), "crates: {:?}", manifests.iter().map(|m| &m.0));
    let bad: Vec<String> = manifests.iter().flat_map(|(d, toml)| check_arrows(d, toml)).collect();
    assert_none(&bad);
}

#[test]
fn a_broken_arrow_is_seen() {
    let gateway = |text: &str| check_arrows("gateway", text).len();
    assert_eq!(gateway("[dependencies]\ncartwheel-core.workspace = true\n"), 0);
    assert_eq!(gateway("[dependencies]\ncartwheel-storage-node.workspace = true\n"), 1);
    assert_eq!(gateway("[dependencies]\ncartwheel-storage-node = { path = \"..\" }\n"), 1);
    assert_eq!(gateway("[dependencies.cartwheel-storage-node]\npath = \"..\"\n"), 1);
    assert_eq!(gateway("[target.'cfg(unix)'.dependencies]\ncartwheel-storage-node = \"1\"\n"), 1);
    assert_eq!(gateway("[dev-dependencies]\ncartwheel-s3-server.workspace = true\n"), 1);
    assert_eq!(
        check_arrows("crates/bucket", "[dev-dependencies]\ncartwheel-s3-server.workspace = true").len(),
        0
    );
    assert_eq!(check_arrows("crates/core", "[dependencies]\ncartwheel-bucket.workspace = true").len(), 1);
    assert_eq!(check_arrows("crates/new", "[dependencies]\n").len(), 1);
}

fn check_core(toml: &str, sources: &[Source]) -> Vec<String> {
    let strange = dependencies(toml).into_iter().filter(|d| !CORE_DEPENDENCIES.contains(&d.as_str()));
    let mut bad: Vec<String> =
        strange.map(|d| format!("crates/core depends on {d}: core is pure; see CORE_DEPENDENCIES")).collect();
    let core: Vec<&Source> = sources.iter().filter(|s| s.path.starts_with("crates/core/src/")).collect();
    let tokens =
        ["std::fs", "std::net", "std::env", "std::thread", "std::process", "std::io", "async fn", ".await"];
    for s in core {
        for token in tokens {
            for line in lines_with(&s.shipped, token) {
                bad.push(format!("{}:{line}: {token}: core does no I/O and waits for nothing", s.path));
            }
        }
    }
    bad
}

#[test]
fn core_is_pure() {
    let (_, toml) = manifests().into_iter().find(|(d, _)| d == "crates/core").unwrap();
    assert_none(&check_core(&toml, &sources(texts())));
}

#[test]
fn io_in_core_is_seen() {
    assert_eq!(check_core("[dependencies]\ntokio.workspace = true\n", &[]).len(), 1);
    assert_eq!(check_core("", &sample("crates/core/src/a.rs", "fn f() { std::fs::read(p); }")).len(), 1);
    assert_eq!(check_core("", &sample("crates/core/src/a.rs", "//! Unlike std::fs.")).len(), 0);
}

#[test]
fn the_gateway_reaches_the_bucket_in_few_places() {
    let gateway: Vec<Source> =
        sources(texts()).into_iter().filter(|s| s.path.starts_with("gateway/src/")).collect();
    assert_none(&check_gateway(&gateway, GATEWAY_BUCKET));
}

fn check_gateway(gateway: &[Source], allowed: &[Allowed]) -> Vec<String> {
    let advice = "a gateway needs the bucket for the ring document and as a last resort only";
    uses(gateway, |s| &s.shipped, &["cartwheel_bucket"], allowed, advice)
}

#[test]
fn another_use_of_the_bucket_is_seen() {
    let found = sample("gateway/src/put.rs", "use cartwheel_bucket::Bucket;");
    assert_eq!(check_gateway(&found, &[]).len(), 1);
    assert_eq!(check_gateway(&found, &[("gateway/src/put.rs", "a sample")]).len(), 0);
    assert_eq!(check_gateway(&found, &[("gateway/src/put.rs", ""), ("gateway/src/idle.rs", "")]).len(), 1);
}

// ---- seams ----

fn check_seam(sources: &[Source], seam: &Seam) -> Vec<String> {
    let advice = format!("this touches {}; {}", seam.what, seam.instead);
    uses(sources, |s| &s.shipped, seam.tokens, seam.allowed, &advice)
}

#[test]
fn the_outside_is_touched_at_the_seams_only() {
    let sources = sources(texts());
    let bad: Vec<String> = SEAMS.iter().flat_map(|seam| check_seam(&sources, seam)).collect();
    assert_none(&bad);
}

#[test]
fn a_way_around_each_seam_is_seen() {
    for (what, code) in [
        ("the clock", "let t = SystemTime::now();"),
        ("the clock", "use std::time::Instant;"),
        ("the clock", "use std::time::{\n    Duration,\n    Instant,\n};"),
        ("randomness", "let n: u64 = rand::random();"),
        ("threads", "std::thread::spawn(|| ());"),
        ("threads", "tokio::task::spawn_blocking(f)"),
        ("files", "tokio::fs::read(p)"),
        ("sockets", "TcpStream::connect(a)"),
        ("sockets", "tokio::net::TcpListener::bind(a)"),
    ] {
        let seam = SEAMS.iter().find(|s| s.what == what).unwrap();
        let bare = Seam { allowed: &[], ..*seam };
        assert_eq!(check_seam(&sample("gateway/src/a.rs", code), &bare).len(), 1, "{code}");
        let tested = format!("fn f() {{}}\n\n#[cfg(test)]\nmod tests {{\n    {code}\n}}\n");
        assert_eq!(check_seam(&sample("gateway/src/a.rs", &tested), &bare).len(), 0, "tests may: {code}");
    }
    let seam = SEAMS.iter().find(|s| s.what == "the clock").unwrap();
    let bare = Seam { allowed: &[], ..*seam };
    let fine =
        "use std::time::Duration;\nuse tokio::time::Instant;\nlet a = Instant::now(); // SystemTime::now";
    assert_eq!(check_seam(&sample("gateway/src/a.rs", fine), &bare).len(), 0);
}

// ---- source files ----

fn check_lengths(sources: &[Source], allowed: &[Allowed]) -> Vec<String> {
    let mut bad = Vec::new();
    for s in sources {
        let lines = s.text.lines().count();
        let excepted = allowed.iter().any(|(path, _)| *path == s.path);
        match (lines > MAX_LINES, excepted) {
            (true, false) => bad.push(format!(
                "{}: {lines} lines; split it by duty, or list it with a reason (limit {MAX_LINES})",
                s.path
            )),
            (false, true) => bad.push(format!("{}: no longer too long; take it off the list", s.path)),
            _ => {}
        }
    }
    bad
}

#[test]
fn no_file_is_too_long() {
    assert_none(&check_lengths(&sources(texts()), LONG_FILES));
}

#[test]
fn a_long_file_is_seen() {
    let long = sample("a.rs", &"//\n".repeat(MAX_LINES + 1));
    assert_eq!(check_lengths(&long, &[]).len(), 1);
    assert_eq!(check_lengths(&long, &[("a.rs", "a sample")]).len(), 0);
    assert_eq!(check_lengths(&sample("a.rs", "//"), &[("a.rs", "a sample")]).len(), 1);
}

fn check_unfinished(sources: &[Source]) -> Vec<String> {
    let tokens = ["todo!", "unimplemented!", "dbg!", "#[ignore"];
    let both = |part: fn(&Source) -> &str| {
        uses(sources, part, &tokens, &[], "finish it; a test that does not run is no test")
    };
    let mut bad = both(|s| &s.shipped);
    bad.extend(both(|s| &s.tests));
    for s in sources {
        let attributes = s.shipped.match_indices("[allow(").map(|(at, _)| at);
        for at in attributes.filter(|at| !s.shipped[*at..].split(']').next().unwrap_or("").contains("reason"))
        {
            let line = s.shipped[..at].matches('\n').count() + 1;
            bad.push(format!("{}:{line}: say why: `#[expect(lint, reason = \"...\")]`", s.path));
        }
    }
    bad
}

#[test]
fn nothing_is_unfinished_or_ignored() {
    assert_none(&check_unfinished(&sources(texts())));
}

#[test]
fn unfinished_code_is_seen() {
    for code in ["todo!()", "unimplemented!(\"x\")", "dbg!(x);", "#[test]\n#[ignore = \"slow\"]\nfn f() {}"] {
        assert_eq!(check_unfinished(&sample("src/a.rs", code)).len(), 1, "{code}");
        assert_eq!(check_unfinished(&sample("tests/a.rs", code)).len(), 1, "{code}");
    }
    assert_eq!(check_unfinished(&sample("src/a.rs", "#[allow(dead_code)]\nfn f() {}")).len(), 1);
    assert_eq!(check_unfinished(&sample("src/a.rs", "#[allow(x, reason = \"y\")]\nfn f() {}")).len(), 0);
    assert_eq!(check_unfinished(&sample("src/a.rs", "let text = \"dbg!\"; // dbg!")).len(), 0);
}

fn check_sleeps(sources: &[Source], allowed: &[Allowed]) -> Vec<String> {
    let advice = "wait for what should happen, or pause tokio's clock; a test that guesses a time is flaky";
    uses(sources, |s| &s.tests, &["sleep(", "sleep_until(", "sleep_ms("], allowed, advice)
}

#[test]
fn no_test_sleeps() {
    assert_none(&check_sleeps(&sources(texts()), SLEEPING_TESTS));
}

#[test]
fn a_sleeping_test_is_seen() {
    let code = "async fn t() { tokio::time::sleep(SECOND).await; }";
    assert_eq!(check_sleeps(&sample("tests/it/a.rs", code), &[]).len(), 1);
    assert_eq!(check_sleeps(&sample("tests/it/a.rs", code), &[("tests/it/a.rs", "a sample")]).len(), 0);
    assert_eq!(check_sleeps(&sample("src/a.rs", code), &[]).len(), 0, "code that ships may wait");
}

fn check_docs(sources: &[Source]) -> Vec<String> {
    let bare = sources.iter().filter(|s| !s.text.starts_with("//! "));
    bare.map(|s| format!("{}: starts without a `//!` line that says its duty", s.path)).collect()
}

#[test]
fn every_file_says_its_duty() {
    assert_none(&check_docs(&sources(texts())));
}

#[test]
fn a_file_without_words_is_seen() {
    assert_eq!(check_docs(&sample("a.rs", "use std::fmt;\n")).len(), 1);
    assert_eq!(check_docs(&sample("a.rs", "//! Says.\n")).len(), 0);
}

// ---- the workspace ----

/// The one crate with unsafe code: it has lints of its own.
const UNSAFE_CRATE: &str = "tests/sim/interpose";

fn check_lints(directory: &str, toml: &str) -> Vec<String> {
    if directory == UNSAFE_CRATE {
        return Vec::new();
    }
    let lines: Vec<&str> = toml.lines().map(str::trim).collect();
    if lines.windows(2).any(|pair| pair == ["[lints]", "workspace = true"]) {
        return Vec::new();
    }
    vec![format!("{directory}/Cargo.toml: add `[lints]` with `workspace = true`")]
}

#[test]
fn every_crate_has_the_lints_of_the_workspace() {
    assert_none(&manifests().iter().flat_map(|(d, toml)| check_lints(d, toml)).collect::<Vec<_>>());
}

#[test]
fn a_crate_without_lints_is_seen() {
    assert_eq!(check_lints("a", "[package]\nname = \"a\"\n").len(), 1);
    assert_eq!(check_lints("a", "[lints.rust]\nworkspace = true\n").len(), 1);
    assert_eq!(check_lints("a", "[lints]\nworkspace = true\n").len(), 0);
}

fn list_in(toml: &str, name: &str) -> BTreeSet<String> {
    let Some((_, rest)) = toml.split_once(&format!("\n{name} = [")) else { return BTreeSet::new() };
    let list = rest.split(']').next().unwrap_or("");
    list.split(',').map(|item| item.trim().trim_matches('"').to_owned()).filter(|i| !i.is_empty()).collect()
}

fn check_default_members(toml: &str) -> Vec<String> {
    let mut members = list_in(toml, "members");
    members.insert(".".to_owned());
    let default = list_in(toml, "default-members");
    let missing = members.difference(&default);
    missing.map(|m| format!("Cargo.toml: add {m:?} to default-members: `cargo test` skips it")).collect()
}

#[test]
fn plain_cargo_test_covers_the_workspace() {
    let (_, toml) = manifests().into_iter().find(|(d, _)| d.is_empty()).unwrap();
    assert_none(&check_default_members(&toml));
}

#[test]
fn a_crate_left_out_is_seen() {
    assert_eq!(check_default_members("[workspace]\nmembers = [\"a\"]\n").len(), 2);
    assert_eq!(check_default_members("\nmembers = [\"a\"]\ndefault-members = [\".\"]\n").len(), 1);
    assert_eq!(check_default_members("\nmembers = [\"a\"]\ndefault-members = [\".\", \"a\"]\n").len(), 0);
}

fn check_lock(lock: &str) -> Vec<String> {
    let index = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
    let strange = lock.lines().filter(|line| line.starts_with("source = ") && *line != index);
    strange.map(|line| format!("Cargo.lock: {line}: dependencies come from crates.io only")).collect()
}

#[test]
fn dependencies_come_from_crates_io() {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    assert!(lock.lines().filter(|l| l.starts_with("source = ")).count() > 100, "Cargo.lock reads oddly");
    assert_none(&check_lock(&lock));
}

#[test]
fn a_foreign_dependency_is_seen() {
    assert_eq!(check_lock("source = \"git+https://example.org/x#1\"\n").len(), 1);
}

// ---- all texts ----

fn check_words(texts: &[Text]) -> Vec<String> {
    let mut bad = Vec::new();
    for t in texts.iter().filter(|t| t.path != "Cargo.lock" && t.path != "LICENSE") {
        for (number, line) in (1..).zip(t.text.lines()) {
            let lower = line.to_lowercase();
            for (phrase, advice) in FORBIDDEN_PHRASES {
                if stands_alone(&lower, phrase) && !is_lint(&lower) {
                    bad.push(format!("{}:{number}: {phrase:?}: {advice}", t.path));
                }
            }
        }
    }
    bad
}

/// Does `phrase` stand in `line` with no letter, digit or path before it and, if it is a word, none after?
fn stands_alone(line: &str, phrase: &str) -> bool {
    let joined = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '}' | '/' | ')');
    let word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(phrase).any(|(at, _)| {
        let after = &line[at + phrase.len()..];
        let longer = phrase.ends_with(word) && after.starts_with(word);
        !line[..at].ends_with(joined) && !longer
    })
}

/// `todo = "warn"` in Cargo.toml and the macro's name in this file are the rule, not a breach of it.
fn is_lint(line: &str) -> bool {
    line.contains(concat!("to", "do = \"warn\"")) || line.contains(concat!("to", "do!"))
}

#[test]
fn texts_speak_of_the_project_only() {
    assert_none(&check_words(&texts()));
}

#[test]
fn words_from_elsewhere_are_seen() {
    let words = |text: &str| check_words(&[Text { path: "a.md".to_owned(), text: text.to_owned() }]).len();
    for (phrase, _) in FORBIDDEN_PHRASES {
        assert_eq!(words(&format!("See {phrase}x")), usize::from(!phrase.ends_with(char::is_alphabetic)));
        assert_eq!(words(&format!("// {}: later", phrase.to_uppercase())), 1, "{phrase}");
    }
    assert_eq!(words("the net/work/queue, a ${DIR}/work/a, and https://example.org/home/"), 0);
}

fn check_shell(texts: &[Text]) -> Vec<String> {
    let scripts = texts.iter().filter(|t| t.path.ends_with(".sh") || t.path.starts_with(".ci/"));
    let loose = scripts.filter(|t| {
        let strict = t.text.lines().any(|l| matches!(l, "set -euo pipefail" | "set -eu"));
        !(t.text.starts_with("#!") && strict)
    });
    loose.map(|t| format!("{}: start it with `#!` and `set -euo pipefail`", t.path)).collect()
}

#[test]
fn shell_scripts_stop_at_the_first_failure() {
    assert_none(&check_shell(&texts()));
}

#[test]
fn a_loose_script_is_seen() {
    let script = |text: &str| vec![Text { path: "a.sh".to_owned(), text: text.to_owned() }];
    assert_eq!(check_shell(&script("#!/bin/sh\ntrue\n")).len(), 1);
    assert_eq!(check_shell(&script("#!/usr/bin/env bash\nset -euo pipefail\n")).len(), 0);
}

// ---- frozen formats ----

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, b| (sum ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

fn check_golden(found: &[(String, Vec<u8>)], table: &[(&str, usize, u64)]) -> Vec<String> {
    let mut bad = Vec::new();
    for (name, bytes) in found {
        let sum = fnv1a(bytes);
        match table.iter().find(|(n, _, _)| n == name) {
            None => bad.push(format!(
                "{name}: a new golden file; list it: (\"{name}\", {}, {sum:#x}),",
                bytes.len()
            )),
            Some((_, length, known)) if (*length, *known) != (bytes.len(), sum) => bad.push(format!(
                "{name}: a frozen format changed; restore the file and give the new form a new version"
            )),
            Some(_) => {}
        }
    }
    let gone = table.iter().filter(|(n, _, _)| !found.iter().any(|(f, _)| f == n));
    bad.extend(gone.map(|(n, _, _)| format!("{n}: a golden file is gone; old data must stay readable")));
    bad
}

#[test]
fn golden_files_never_change() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/core/golden");
    let read = |e: fs::DirEntry| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap());
    let mut found: Vec<_> = fs::read_dir(directory).unwrap().map(|e| read(e.unwrap())).collect();
    found.sort();
    assert_none(&check_golden(&found, GOLDEN));
}

#[test]
fn a_changed_golden_file_is_seen() {
    let found = [("a-v1.bin".to_owned(), vec![1, 2, 3])];
    let sum = fnv1a(&[1, 2, 3]);
    assert_eq!(check_golden(&found, &[("a-v1.bin", 3, sum)]).len(), 0);
    assert_eq!(check_golden(&found, &[("a-v1.bin", 3, sum ^ 1)]).len(), 1);
    assert_eq!(check_golden(&found, &[]).len(), 1);
    assert_eq!(check_golden(&[], &[("a-v1.bin", 3, sum)]).len(), 1);
    assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8, "the published test vector");
}

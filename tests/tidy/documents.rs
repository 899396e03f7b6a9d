//! What the documents say must be so: links lead somewhere, every file of the library crates that ships stands
//! in ARCHITECTURE.md, and the tests that it cites exist.

use std::collections::BTreeSet;

use super::assert_none;
use crate::reader::{Source, Text, sources, texts};

/// The folders whose files ARCHITECTURE.md lists one by one.
const LISTED: &[&str] = &[
    "crates/core/src/",
    "crates/bucket/src/",
    "crates/cluster/src/",
    "crates/segments/src/",
    "crates/s3-server/src/",
    "gateway/src/",
    "storage-node/src/",
];

/// What stands in backquotes.
fn quoted(text: &str) -> BTreeSet<&str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

fn check_files(architecture: &str, paths: &[&str]) -> Vec<String> {
    let named = quoted(architecture);
    let mut bad = Vec::new();
    for path in paths {
        let file = LISTED.iter().find_map(|folder| path.strip_prefix(folder));
        let Some(file) = file.filter(|f| f.ends_with(".rs")) else { continue };
        // A crate with one file says all there is to say by its name.
        if file != "lib.rs" && !named.contains(file) {
            bad.push(format!("{path}: say its duty in ARCHITECTURE.md, as `{file}`"));
        }
    }
    bad
}

fn check_cited_tests(architecture: &str, code: &str) -> Vec<String> {
    let is_test = |name: &&str| {
        name.matches('_').count() >= 2 && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    let cited = quoted(architecture).into_iter().filter(is_test);
    let gone = cited.filter(|name| !code.contains(&format!("fn {name}(")));
    gone.map(|name| format!("ARCHITECTURE.md cites `{name}`, which does not exist")).collect()
}

fn check_links(documents: &[Text], exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut bad = Vec::new();
    for document in documents {
        let folder = document.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for link in document.text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or("");
            if target.is_empty() || target.contains("://") || target.contains(char::is_whitespace) {
                continue;
            }
            if !exists(&resolve(folder, target)) {
                bad.push(format!("{}: the link to {link} leads nowhere", document.path));
            }
        }
    }
    bad
}

fn resolve(folder: &str, target: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

fn architecture(texts: &[Text]) -> &str {
    texts.iter().find(|t| t.path == "ARCHITECTURE.md").map_or("", |t| t.text.as_str())
}

#[test]
fn architecture_names_every_file() {
    let sources: Vec<Source> = sources(texts()).into_iter().filter(|s| !s.shipped.is_empty()).collect();
    let paths: Vec<&str> = sources.iter().map(|s| s.path.as_str()).collect();
    assert_none(&check_files(architecture(&texts()), &paths));
}

#[test]
fn a_file_that_is_not_named_is_seen() {
    assert_eq!(check_files("the `put.rs`", &["crates/core/src/put.rs", "src/bench/run.rs"]).len(), 0);
    assert_eq!(check_files("the `put.rs`", &["crates/core/src/get.rs"]).len(), 1);
    assert_eq!(check_files("the `ring.rs`", &["crates/core/src/ring/quota.rs"]).len(), 1);
}

#[test]
fn architecture_cites_tests_that_exist() {
    let texts = texts();
    let code: Vec<&str> = texts.iter().filter(|t| t.path.ends_with(".rs")).map(|t| t.text.as_str()).collect();
    assert_none(&check_cited_tests(architecture(&texts), &code.join("\n")));
}

#[test]
fn a_cited_test_that_is_gone_is_seen() {
    let text = "`put.rs` `a_late_one_waits`, and `hint_for`";
    assert_eq!(check_cited_tests(text, "fn a_late_one_waits() {}").len(), 0);
    assert_eq!(check_cited_tests(text, "fn a_late_one() {}").len(), 1);
}

#[test]
fn links_lead_somewhere() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents: Vec<Text> = texts().into_iter().filter(|t| t.path.ends_with(".md")).collect();
    assert_none(&check_links(&documents, |path| root.join(path).exists()));
}

#[test]
fn a_link_to_nowhere_is_seen() {
    let text = "[a](../b.md#c) [d](https://example.org/x) [e](#f) [g](gone/h.md)".to_owned();
    let found = check_links(&[Text { path: "docs/a.md".to_owned(), text }], |path| path == "b.md");
    assert_eq!(found, ["docs/a.md: the link to gone/h.md leads nowhere"]);
}

//! What the checks read: every text of the project, and Rust as code, apart from comments and literals.

use std::fs;
use std::path::Path;
use std::process::Command;

/// A stand-in for "uses `Instant` of the standard library", however it is imported.
pub(crate) const STD_INSTANT: &str = "std::time::Instant";
/// Folders that hold nothing of ours.
const SKIPPED: &[&str] =
    &["target", ".git", ".cartwheel", ".terraform", "node_modules", ".venv", "__pycache__"];

/// A text file.
pub(crate) struct Text {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// A Rust file, with comments and the insides of literals blanked out.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
    /// The code that ships.
    pub(crate) shipped: String,
    /// The code of tests.
    pub(crate) tests: String,
}

/// Every text file, by path from the root: what git has, or would have; without git, all that is there.
pub(crate) fn texts() -> Vec<Text> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = of_git(root).unwrap_or_else(|| all_below(root));
    paths.sort();
    let read = |path: String| Some(Text { text: fs::read_to_string(root.join(&path)).ok()?, path });
    let found: Vec<Text> = paths.into_iter().filter_map(read).collect();
    assert!(found.len() > 50, "only {} files found: the search is broken", found.len());
    found
}

/// The files that git does not ignore; what tools leave beside them is none of ours.
fn of_git(root: &Path) -> Option<Vec<String>> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listed = Command::new("git").args(arguments).current_dir(root).output().ok()?;
    let names = String::from_utf8(listed.stdout).ok().filter(|names| !names.is_empty())?;
    let is_skipped = |path: &str| path.split('/').any(|folder| SKIPPED.contains(&folder));
    Some(names.split_terminator('\0').filter(|path| !is_skipped(path)).map(str::to_owned).collect())
}

fn all_below(root: &Path) -> Vec<String> {
    fn walk(directory: &Path, below: &str, found: &mut Vec<String>) {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
                walk(&entry.path(), &format!("{below}{name}/"), found);
            } else if kind.is_file() {
                found.push(format!("{below}{name}"));
            }
        }
    }
    let mut found = Vec::new();
    walk(root, "", &mut found);
    found
}

/// The Rust files among them.
pub(crate) fn sources(texts: Vec<Text>) -> Vec<Source> {
    let rust: Vec<Text> = texts.into_iter().filter(|t| t.path.ends_with(".rs")).collect();
    let mut test_modules: Vec<String> = Vec::new();
    for t in &rust {
        test_modules.extend(test_modules_of(&t.path, &t.text));
    }
    let make = |t: Text| {
        let code = code_of(&t.text);
        let all_test = t.path.starts_with("tests/")
            || t.path.contains("/tests/")
            || test_modules.iter().any(|m| t.path == *m || t.path.starts_with(&m.replace(".rs", "/")));
        let cut = if all_test { 0 } else { code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len()) };
        let (shipped, tests) = (code[..cut].to_owned(), code[cut..].to_owned());
        Source { path: t.path, text: t.text, shipped, tests }
    };
    rust.into_iter().map(make).collect()
}

/// The files of `#[cfg(test)] mod name;` in the file at `path`.
fn test_modules_of(path: &str, text: &str) -> Vec<String> {
    let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = file.trim_end_matches(".rs");
    let home = match stem {
        "lib" | "mod" | "main" => directory.to_owned(),
        _ => format!("{directory}/{stem}"),
    };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_test = |pair: &&[&str]| pair[0] == "#[cfg(test)]" && pair[1].ends_with(';');
    let name = |pair: &[&str]| Some(pair[1].split_once("mod ")?.1.trim_end_matches(';').to_owned());
    lines.windows(2).filter(is_test).filter_map(name).map(|name| format!("{home}/{name}.rs")).collect()
}

/// The text with comments and the insides of string and character literals as spaces; lines stay lines.
fn code_of(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(text.len());
    let blank = |out: &mut String, c: char| out.push(if c == '\n' { '\n' } else { ' ' });
    let mut i = 0;
    while i < chars.len() {
        let end = if at(i) == '/' && at(i + 1) == '/' {
            (i..chars.len()).find(|&j| at(j) == '\n').unwrap_or(chars.len())
        } else if at(i) == '/' && at(i + 1) == '*' {
            (i + 2..chars.len()).find(|&j| at(j) == '*' && at(j + 1) == '/').map_or(chars.len(), |j| j + 2)
        } else if let Some(hashes) = raw_string_at(&chars, i) {
            let close = |j: usize| at(j) == '"' && (1..=hashes).all(|h| at(j + h) == '#');
            (i + hashes + 2..chars.len()).find(|&j| close(j)).map_or(chars.len(), |j| j + 1 + hashes)
        } else if at(i) == '"' {
            let mut j = i + 1;
            while j < chars.len() && at(j) != '"' {
                j += if at(j) == '\\' { 2 } else { 1 };
            }
            j + 1
        } else if at(i) == '\'' && at(i + 1) == '\\' {
            (i + 3..chars.len()).find(|&j| at(j) == '\'').map_or(chars.len(), |j| j + 1)
        } else if at(i) == '\'' && at(i + 2) == '\'' {
            i + 3
        } else {
            out.push(at(i));
            i += 1;
            continue;
        };
        for c in &chars[i..end.min(chars.len())] {
            blank(&mut out, *c);
        }
        i = end;
    }
    out
}

/// If a raw string starts at `i` (its `r`), the number of its hashes.
fn raw_string_at(chars: &[char], i: usize) -> Option<usize> {
    let before = i.checked_sub(1).and_then(|b| chars.get(b)).copied().unwrap_or(' ');
    let starts = !(before.is_alphanumeric() || before == '_') || before == 'b';
    if chars.get(i) != Some(&'r') || !starts {
        return None;
    }
    let hashes = chars[i + 1..].iter().take_while(|c| **c == '#').count();
    (chars.get(i + 1 + hashes) == Some(&'"')).then_some(hashes)
}

/// Where `token` stands in `code` as a word of its own: line numbers.
pub(crate) fn lines_with(code: &str, token: &str) -> Vec<usize> {
    if token == STD_INSTANT {
        return std_instants(code);
    }
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let starts = |at: usize| !code[..at].ends_with(word) || !token.starts_with(word);
    let ends = |at: usize| !code[at + token.len()..].starts_with(word) || !token.ends_with(word);
    let hits = code.match_indices(token).filter(|(at, _)| starts(*at) && ends(*at));
    hits.map(|(at, _)| code[..at].matches('\n').count() + 1).collect()
}

fn std_instants(code: &str) -> Vec<usize> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("std::time::") {
        let rest = &code[at + "std::time::".len()..];
        let names = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or(""),
            None => rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or(""),
        };
        if names.split(|c: char| !c.is_alphanumeric()).any(|name| name == "Instant") {
            found.push(code[..at].matches('\n').count() + 1);
        }
    }
    found
}

/// A project of one file.
pub(crate) fn sample(path: &str, text: &str) -> Vec<Source> {
    sources(vec![Text { path: path.to_owned(), text: text.to_owned() }])
}

#[test]
fn comments_and_literals_are_not_code() {
    let code = code_of("a /* b */ c // d\n\"e \\\" f\" g 'h' '\\n' i r#\"j \" k\"# l<'m>(br\"n\")\n");
    let left: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(left, ["a", "c", "g", "i", "l<'m>(b", ")"]);
    assert_eq!(code.lines().count(), 2);
}

#[test]
fn modules_for_tests_are_tests() {
    let of = |path: &str| test_modules_of(path, "mod a;\n#[cfg(test)]\npub(crate) mod b;\nmod c;\n");
    assert_eq!(of("src/client/mod.rs"), ["src/client/b.rs"]);
    assert_eq!(of("crates/core/src/ring.rs"), ["crates/core/src/ring/b.rs"]);
}

//! Keys as file names: readable, reversible, and never a way out of the directory.
//!
//! A key is cut at its slashes. Each part but the last is a directory of that
//! name, the last one a file whose name ends in `%obj`, so `a` and `a/b` are
//! neighbours: `a%obj` and `a/b%obj`. Bytes that are not plain are written as
//! `%` and two hex digits, which no marker can be mistaken for. Parts of 80
//! bytes and more continue in a directory that ends in `%more`, because file
//! names are limited to 255 bytes.

use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The longest key, in bytes, as in S3.
pub(crate) const KEY_LIMIT: usize = 1024;

const OBJECT: &str = "%obj";
const MORE: &str = "%more";
const EMPTY: &str = "%empty";
const CHUNK: usize = 80;

/// What a name in a bucket's directory stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    /// An object: the rest of its key.
    Object(Vec<u8>),
    /// A directory: these bytes, the slash included if there is one, come
    /// before all keys within.
    Directory(Vec<u8>),
}

impl Name {
    /// The bytes, by which siblings sort as their keys do.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Object(bytes) | Self::Directory(bytes) => bytes,
        }
    }
}

/// The file of a key, under its bucket's directory.
pub(crate) fn path_of(bucket: &Path, key: &str) -> PathBuf {
    let mut path = bucket.to_path_buf();
    let mut parts = key.as_bytes().split(|byte| *byte == b'/').peekable();
    while let Some(mut part) = parts.next() {
        while let Some((chunk, rest)) = part.split_at_checked(CHUNK) {
            path.push(escape(chunk) + MORE);
            part = rest;
        }
        let name = escape(part);
        path.push(match (parts.peek(), name.as_str()) {
            (None, _) => name + OBJECT,
            (Some(_), "") => EMPTY.to_owned(),
            (Some(_), _) => name,
        });
    }
    path
}

/// Reads a name back; `None` if we did not write it.
pub(crate) fn read(name: &str) -> Option<Name> {
    if let Some(rest) = name.strip_suffix(OBJECT) {
        return unescape(rest).map(Name::Object);
    }
    if let Some(rest) = name.strip_suffix(MORE) {
        return unescape(rest).map(Name::Directory);
    }
    let mut bytes = if name == EMPTY { Vec::new() } else { unescape(name)? };
    bytes.push(b'/');
    Some(Name::Directory(bytes))
}

fn escape(part: &[u8]) -> String {
    let mut text = String::with_capacity(part.len());
    for (at, byte) in part.iter().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || b"-_=+,@~".contains(byte) || (*byte == b'.' && at > 0);
        if plain {
            text.push(char::from(*byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

fn unescape(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let (hex, tail) = tail.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
        rest = tail;
    }
    // Only names as we write them: a stray file must not show up as a second
    // spelling of a key.
    (escape(&bytes) == name).then_some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::{Component, Path};

    use super::{Name, path_of, read};

    fn back(key: &str) -> String {
        let path = path_of(Path::new(""), key);
        let mut bytes = Vec::new();
        for component in path.components() {
            let Component::Normal(name) = component else { unreachable!("{key:?} leaves its directory") };
            assert!(name.len() <= 255, "{key:?}");
            bytes.extend_from_slice(read(name.to_str().unwrap()).unwrap().bytes());
        }
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn every_key_reads_back() {
        let long = "x".repeat(1024);
        let umlauts = "ä".repeat(512);
        let deep = "a/".repeat(512);
        let keys = [
            "a",
            "a/b",
            "a/",
            "/",
            "//",
            "/a",
            "a//b",
            ".",
            "..",
            "../../etc/passwd",
            "a/../b",
            "./a",
            "%",
            "%2F",
            "a%obj",
            "a%obj/b",
            "a%more",
            "%empty/x",
            "key=1.2-3_4",
            "\u{0}",
            "a\nb",
            "C:\\x",
            &long,
            &umlauts,
            &deep,
        ];
        let mut paths = std::collections::HashSet::new();
        for key in keys {
            assert_eq!(back(key), key);
            assert!(paths.insert(path_of(Path::new(""), key)), "{key:?} shares a file with another key");
        }
    }

    #[test]
    fn people_can_read_it() {
        assert_eq!(path_of(Path::new("b"), "ring/0001.json"), Path::new("b/ring/0001.json%obj"));
        assert_eq!(path_of(Path::new("b"), "a/.."), Path::new("b/a/%2E.%obj"));
    }

    #[test]
    fn siblings_sort_as_their_keys_do() {
        let stem = "y".repeat(80);
        let mut keys = vec!["a".to_owned(), "a/b".into(), "a-b".into(), "a0".into(), "a/".into(), "b".into()];
        for tail in ["", "/z", "-z", "z", "/"] {
            keys.push(format!("{stem}{tail}"));
            keys.push(format!("{}{tail}", &stem[1..]));
        }
        for one in &keys {
            for other in &keys {
                let names = |key: &str| -> Vec<Vec<u8>> {
                    path_of(Path::new(""), key)
                        .iter()
                        .map(|name| read(name.to_str().unwrap()).unwrap().bytes().to_vec())
                        .collect()
                };
                assert_eq!(names(one).cmp(&names(other)), one.cmp(other), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn foreign_files_are_not_keys() {
        for name in ["a%2f%obj", "a%zz", "%41%obj", ".hidden%obj", "%"] {
            assert_eq!(read(name), None, "{name}");
        }
        assert_eq!(read("x%obj"), Some(Name::Object(b"x".to_vec())));
    }
}

//! `s3://name/prefix`: where a cluster's objects are.

use std::fmt;
use std::str::FromStr;

/// A bucket's name and the prefix under which all our keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketUrl {
    /// The S3 bucket's name.
    pub name: String,
    /// Empty, or a path that ends in `/`.
    pub prefix: String,
}

/// Why a bucket URL was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BucketUrlError {
    /// Another scheme, or none.
    #[error("bucket URL {0:?} must start with s3:// (as in s3://name/prefix)")]
    Scheme(String),
    /// The bucket's name is not one that S3 allows.
    #[error(
        "bucket name {0:?} must be 3 to 63 characters of a-z, 0-9, '-' and '.', with a letter or digit at each end"
    )]
    Name(String),
    /// The prefix is not one that every store takes.
    #[error(
        "bucket prefix {0:?} must be at most 256 bytes of A-Z, a-z, 0-9 and !-_.*'()=/ \
         with no empty, '.' or '..' parts"
    )]
    Prefix(String),
}

const PREFIX_LIMIT: usize = 256;

impl BucketUrl {
    /// Reads `s3://name`, `s3://name/` or `s3://name/some/prefix`.
    ///
    /// # Errors
    /// Says which part is wrong and what it must be.
    pub fn parse(text: &str) -> Result<Self, BucketUrlError> {
        let rest = text.strip_prefix("s3://").ok_or_else(|| BucketUrlError::Scheme(text.to_owned()))?;
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if !is_name(name) {
            return Err(BucketUrlError::Name(name.to_owned()));
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        if prefix.is_empty() {
            return Ok(Self { name: name.to_owned(), prefix: String::new() });
        }
        if prefix.len() > PREFIX_LIMIT || !prefix.split('/').all(is_part) {
            return Err(BucketUrlError::Prefix(prefix.to_owned()));
        }
        Ok(Self { name: name.to_owned(), prefix: format!("{prefix}/") })
    }
}

fn is_name(name: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    (3..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| alphanumeric(byte) || matches!(byte, b'-' | b'.'))
        && bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
}

fn is_part(part: &str) -> bool {
    !matches!(part, "" | "." | "..")
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!-_.*'()=".contains(&byte))
}

impl fmt::Display for BucketUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.name, self.prefix)
    }
}

impl FromStr for BucketUrl {
    type Err = BucketUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{BucketUrl, BucketUrlError};

    fn parts(text: &str) -> (String, String) {
        let url = BucketUrl::parse(text).unwrap();
        assert_eq!(BucketUrl::parse(&url.to_string()).unwrap(), url, "what is shown reads back");
        (url.name, url.prefix)
    }

    #[test]
    fn a_prefix_is_empty_or_ends_in_a_slash() {
        assert_eq!(parts("s3://name"), ("name".into(), String::new()));
        assert_eq!(parts("s3://name/"), ("name".into(), String::new()));
        assert_eq!(parts("s3://na-me.x/a"), ("na-me.x".into(), "a/".into()));
        assert_eq!(parts("s3://name/a/b=1/"), ("name".into(), "a/b=1/".into()));
    }

    #[test]
    fn says_which_part_is_wrong() {
        for text in ["", "name", "http://name/", "S3://name"] {
            assert_eq!(BucketUrl::parse(text), Err(BucketUrlError::Scheme(text.into())));
        }
        for name in ["", "ab", "Name", "-ab", "ab-", "a_b", &"a".repeat(64)] {
            assert_eq!(BucketUrl::parse(&format!("s3://{name}/p")), Err(BucketUrlError::Name(name.into())));
        }
        for prefix in ["a//b", "a/../b", "./a", "a b", "ä", &"p".repeat(257)] {
            assert_eq!(
                BucketUrl::parse(&format!("s3://name/{prefix}")),
                Err(BucketUrlError::Prefix(prefix.into()))
            );
        }
    }
}

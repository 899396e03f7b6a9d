//! What can go wrong between us and the object store.

/// An answer of the object store that is not the one hoped for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BucketError {
    /// There is no such object.
    #[error("object {key:?} does not exist")]
    NotFound {
        /// The key that was asked for.
        key: String,
    },
    /// The range is empty or reaches past the end of the object.
    #[error("bytes {start}..{end} of object {key:?} do not exist")]
    Range {
        /// The key that was asked for.
        key: String,
        /// First byte of the range.
        start: u64,
        /// The byte after the last one of the range.
        end: u64,
    },
    /// The store says no, and will say no again.
    #[error("object store refused {key:?}: {status} {code}: {detail}")]
    Refused {
        /// The key or prefix of the call.
        key: String,
        /// HTTP status, or the one that fits if the refusal is ours.
        status: u16,
        /// The store's error code, such as `AccessDenied`.
        code: String,
        /// What happened and what would help.
        detail: String,
    },
    /// No usable answer: a time limit, a 5xx, or no connection. A write may
    /// have happened.
    #[error("object store unavailable for {key:?}: {detail}")]
    Unavailable {
        /// The key or prefix of the call.
        key: String,
        /// What happened.
        detail: String,
    },
}

impl BucketError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// Whether the object is simply not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    pub(crate) fn not_found(key: &str) -> Self {
        Self::NotFound { key: key.to_owned() }
    }

    pub(crate) fn range(key: &str, range: &std::ops::Range<u64>) -> Self {
        Self::Range { key: key.to_owned(), start: range.start, end: range.end }
    }

    pub(crate) fn unavailable(key: &str, detail: impl Into<String>) -> Self {
        Self::Unavailable { key: key.to_owned(), detail: detail.into() }
    }
}

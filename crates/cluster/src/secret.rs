//! The cluster's secret, and what is derived from it: the key that signs clocks, and the token that lets
//! gateways and storage nodes talk to each other.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue, header};

use cartwheel_bucket::{Bucket, BucketError, Created};
use cartwheel_core::header::ClockKey;

use crate::seams::Random;

/// Where a cluster that was given no secret keeps the one it made.
pub const SECRET_OBJECT: &str = "cluster/secret";

/// The cluster's secret.
#[derive(Clone)]
pub struct ClusterSecret(Vec<u8>);

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(..)")
    }
}

impl ClusterSecret {
    /// A secret that the operator gave to every process.
    #[must_use]
    pub fn given(secret: &str) -> Self {
        Self(secret.as_bytes().to_vec())
    }

    /// The secret kept in the bucket, made there by the first process that looks for it. Whoever can read
    /// the bucket can read it.
    ///
    /// # Errors
    /// Those of the bucket.
    pub async fn from_bucket(bucket: &dyn Bucket, random: &dyn Random) -> Result<Self, BucketError> {
        loop {
            match bucket.get(SECRET_OBJECT).await {
                Ok(secret) => return Ok(Self(secret.to_vec())),
                Err(BucketError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
            let made = format!("{:032x}{:032x}", random.next_u128(), random.next_u128());
            if bucket.create(SECRET_OBJECT, made.clone().into()).await? == Created::New {
                return Ok(Self(made.into_bytes()));
            }
        }
    }

    /// The key that signs clocks.
    #[must_use]
    pub fn clock_key(&self) -> ClockKey {
        ClockKey::derive(&self.0)
    }

    /// The token between processes.
    #[must_use]
    pub fn node_token(&self) -> NodeToken {
        let key = blake3::derive_key("cartwheel 2026 node token v1", &self.0);
        NodeToken(format!("Bearer {}", URL_SAFE_NO_PAD.encode(key)))
    }
}

/// Proof of belonging to the cluster, as an `Authorization` header.
#[derive(Clone)]
pub struct NodeToken(String);

impl fmt::Debug for NodeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeToken(..)")
    }
}

impl NodeToken {
    /// The header to send.
    #[must_use]
    pub fn header(&self) -> HeaderValue {
        let mut value = HeaderValue::from_str(&self.0).unwrap_or_else(|_| HeaderValue::from_static("Bearer"));
        value.set_sensitive(true);
        value
    }

    /// Do these headers prove it? Compares in constant time.
    #[must_use]
    pub fn admits(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        blake3::hash(given) == blake3::hash(self.0.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_secret_admits() {
        let (a, b) = (ClusterSecret::given("a").node_token(), ClusterSecret::given("b").node_token());
        let mut headers = HeaderMap::new();
        assert!(!a.admits(&headers));
        headers.insert(header::AUTHORIZATION, a.header());
        assert!(a.admits(&headers));
        assert!(!b.admits(&headers));
    }
}

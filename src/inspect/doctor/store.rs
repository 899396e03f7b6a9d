//! Does the object store keep to what is asked of it, and how fast is it?

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use cartwheel_bucket::{Bucket, BucketError, ProbeVerdict, list_all, probe_conditional_create};
use cartwheel_cluster::seams::Seams;

use super::Check;
use crate::units::human_micros;

/// The check without which there is no point in the others.
pub(super) const REACH: &str = "object store";
/// How often each operation is tried.
const ROUNDS: usize = 5;
/// How far the store's clock may be off.
const MAX_SKEW_MS: u64 = 5_000;
/// Stores tell the time of a write to the second.
const RESOLUTION_MS: u64 = 1_000;
/// A median beyond this is slow.
const SLOW: Duration = Duration::from_millis(500);

/// What the rounds found.
#[derive(Debug, Default)]
struct Rounds {
    read: Option<String>,
    list: Option<String>,
    range: Option<String>,
    delete: Option<String>,
    /// By how many milliseconds the store's clock is ahead (behind if negative), at least; `None` if it tells no time.
    skew_ms: Option<i64>,
    put_took: Vec<Duration>,
    get_took: Vec<Duration>,
    list_took: Vec<Duration>,
}

/// All checks of the store. What they write is gone afterwards.
pub(super) async fn checks(bucket: &dyn Bucket, seams: &Seams) -> Vec<Check> {
    let nonce = seams.random.next_u128();
    let prefix = format!("probe/{nonce:032x}");
    let mut checks = Vec::new();
    match bucket.list(&prefix, None, 1).await {
        Ok(_) => checks.push(Check::ok(REACH, "answers")),
        Err(error) => {
            checks.push(refused(REACH, &error));
            return checks;
        }
    }
    checks.push(match probe_conditional_create(bucket, nonce).await {
        Ok(ProbeVerdict::Sound) => Check::ok("conditional creates", "one of nine creates of one name won"),
        Ok(ProbeVerdict::IgnoresConditions { winners }) => Check::fail(
            "conditional creates",
            format!("{winners} of nine creates of one name won: the store ignores If-None-Match"),
            "use a store that honours it; or start nodes with --unsafe-no-cas if no two processes ever change the \
             ring or share a node id",
        ),
        Err(error) => refused("conditional creates", &error),
    });
    match rounds(bucket, seams, &prefix).await {
        Ok(rounds) => checks.extend(rounds.checks()),
        Err(error) => checks.push(refused("reads and writes", &error)),
    }
    checks.push(clean(bucket, &prefix).await);
    checks
}

fn refused(what: &str, error: &BucketError) -> Check {
    let advice = match error {
        BucketError::Unavailable { .. } => "look at AWS_ENDPOINT_URL_S3, the network, and the store",
        _ => "look at --bucket, AWS_REGION and the credentials: they must allow get, put, list and delete",
    };
    Check::fail(what, error.to_string(), advice)
}

async fn rounds(bucket: &dyn Bucket, seams: &Seams, prefix: &str) -> Result<Rounds, BucketError> {
    let mut rounds = Rounds::default();
    for round in 0..ROUNDS {
        rounds.round(bucket, seams, &format!("{prefix}-{round}")).await?;
    }
    Ok(rounds)
}

/// Runs a call and notes how long it took.
async fn timed<T>(took: &mut Vec<Duration>, call: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let answer = call.await;
    took.push(begun.elapsed());
    answer
}

impl Rounds {
    async fn round(&mut self, bucket: &dyn Bucket, seams: &Seams, key: &str) -> Result<(), BucketError> {
        let body = Bytes::from(format!("the first body of {key}"));
        let second = Bytes::from(format!("another body of {key}, a little longer"));
        bucket.put(key, body.clone()).await?;
        if found(bucket.get(key).await)?.as_ref() != Some(&body) {
            first(&mut self.read, "an object that was just put did not read back".to_owned());
        }
        let before_ms = seams.clock.now_ms();
        timed(&mut self.put_took, bucket.put(key, second.clone())).await?;
        let after_ms = seams.clock.now_ms();
        if found(timed(&mut self.get_took, bucket.get(key)).await)?.as_ref() != Some(&second) {
            first(&mut self.read, "an object that was just overwritten read back as before".to_owned());
        }
        let listing = timed(&mut self.list_took, bucket.list(key, None, 1)).await?;
        match listing.objects.first().filter(|listed| listed.key == key) {
            Some(listed) if listed.size == second.len() as u64 => {
                self.skew_ms = skew_ms(before_ms, after_ms, listed.modified_ms);
            }
            Some(_) => first(&mut self.list, "a list shows an old size".to_owned()),
            None => first(&mut self.list, "an object that was just put is in no list".to_owned()),
        }
        self.ranges(bucket, key, &second).await?;
        bucket.delete(key).await?;
        let listing = bucket.list(key, None, 1).await?;
        if found(bucket.get(key).await)?.is_some() || !listing.objects.is_empty() {
            first(&mut self.delete, "an object that was deleted is still there".to_owned());
        }
        Ok(())
    }

    async fn ranges(&mut self, bucket: &dyn Bucket, key: &str, body: &Bytes) -> Result<(), BucketError> {
        let size = body.len() as u64;
        for range in [0..1, 3..11, size - 4..size] {
            let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
            let wanted = body.slice(at(range.start)..at(range.end));
            match bucket.get_range(key, range.clone()).await {
                Ok(bytes) if bytes == wanted => {}
                Err(error @ BucketError::Unavailable { .. }) => return Err(error),
                _ => first(&mut self.range, format!("bytes {range:?} of an object are not those")),
            }
        }
        match bucket.get_range(key, size - 1..size + 1).await {
            Err(BucketError::Range { .. }) => {}
            Err(error @ BucketError::Unavailable { .. }) => return Err(error),
            _ => first(&mut self.range, "a range past the end was answered".to_owned()),
        }
        Ok(())
    }

    fn checks(mut self) -> Vec<Check> {
        let advice = "a cluster needs a store whose reads and lists see every write that was answered";
        let verdict = |what: &str, wrong: Option<String>, right: &str| match wrong {
            None => Check::ok(what, right),
            Some(wrong) => Check::fail(what, wrong, advice),
        };
        vec![
            verdict("read after write", self.read.take(), "objects read back as they were put"),
            verdict("list after write", self.list.take(), "lists show what was put"),
            verdict("range reads", self.range.take(), "ranges are exact"),
            verdict("deletes", self.delete.take(), "what is deleted is gone"),
            self.clock(),
            self.latency(),
        ]
    }

    fn clock(&self) -> Check {
        const WHAT: &str = "store's clock";
        let Some(skew) = self.skew_ms else {
            return Check::warn(WHAT, "the store tells no time of a write", "ages of objects are not known");
        };
        let seconds = skew.unsigned_abs() as f64 / 1000.0;
        let side = if skew < 0 { "behind" } else { "ahead of" };
        if skew.unsigned_abs() > MAX_SKEW_MS {
            let detail = format!("{seconds:.1} s {side} this machine's");
            return Check::warn(
                WHAT,
                detail,
                "let both follow a time server; ages are told wrong until then",
            );
        }
        Check::ok(WHAT, "within 5 s of this machine's")
    }

    fn latency(&self) -> Check {
        let medians = [("put", &self.put_took), ("get", &self.get_took), ("list", &self.list_took)]
            .map(|(what, took)| (what, median(took)));
        let micros = |took: Duration| human_micros(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let each: Vec<String> =
            medians.iter().map(|(what, took)| format!("{what} {}", micros(*took))).collect();
        let detail = format!("{} (medians of {ROUNDS})", each.join(", "));
        if medians.iter().any(|(_, took)| *took > SLOW) {
            let advice = "durability=bucket and reads from segments will be as slow; use a nearer store";
            return Check::warn("latency", detail, advice);
        }
        Check::ok("latency", detail)
    }
}

/// The first thing that is wrong is enough.
fn first(wrong: &mut Option<String>, what: String) {
    wrong.get_or_insert(what);
}

/// What was found, if anything was.
fn found(got: Result<Bytes, BucketError>) -> Result<Option<Bytes>, BucketError> {
    match got {
        Ok(bytes) => Ok(Some(bytes)),
        Err(BucketError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// How far the store's clock is outside the time in which this machine saw the write happen.
fn skew_ms(before_ms: u64, after_ms: u64, modified_ms: u64) -> Option<i64> {
    if modified_ms == 0 {
        return None;
    }
    let ahead = modified_ms.saturating_sub(after_ms);
    let behind = before_ms.saturating_sub(modified_ms.saturating_add(RESOLUTION_MS));
    Some(i64::try_from(ahead).unwrap_or(i64::MAX) - i64::try_from(behind).unwrap_or(i64::MAX))
}

fn median(took: &[Duration]) -> Duration {
    let mut sorted = took.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Deletes whatever the checks left behind.
async fn clean(bucket: &dyn Bucket, prefix: &str) -> Check {
    let gone = async {
        for object in list_all(bucket, prefix).await? {
            bucket.delete(&object.key).await?;
        }
        Ok::<usize, BucketError>(list_all(bucket, prefix).await?.len())
    };
    match gone.await {
        Ok(0) => Check::ok("cleaning up", "nothing of this is left in the bucket"),
        Ok(left) => Check::warn("cleaning up", format!("{left} objects stay"), format!("delete {prefix}*")),
        Err(error) => Check::warn("cleaning up", error.to_string(), format!("delete {prefix}*")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use cartwheel_bucket::{CERTAIN, Faults, FaultyBucket, MemoryBucket, OperationFaults};
    use cartwheel_cluster::seams::WallClock;

    use super::super::Level;
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    /// A clock that stands still.
    #[derive(Debug)]
    struct Still(u64);

    impl WallClock for Still {
        fn now_ms(&self) -> u64 {
            self.0
        }
    }

    fn seams(now_ms: u64) -> Seams {
        Seams { clock: Arc::new(Still(now_ms)), ..Seams::real() }
    }

    fn faulty(faults: Faults) -> (Arc<MemoryBucket>, FaultyBucket) {
        let inner = Arc::new(MemoryBucket::new());
        inner.set_now_ms(NOW);
        let bucket = FaultyBucket::new(inner.clone(), 1);
        bucket.set(faults);
        (inner, bucket)
    }

    fn level(checks: &[Check], what: &str) -> (Level, String) {
        let check = checks.iter().find(|check| check.what == what).unwrap();
        (check.level, format!("{} → {}", check.detail, check.advice))
    }

    #[tokio::test(start_paused = true)]
    async fn a_good_store_passes_and_stays_as_it_was() {
        let (inner, bucket) = faulty(Faults::default());
        let checks = checks(&bucket, &seams(NOW)).await;
        assert_eq!(checks.iter().map(|c| c.level).max(), Some(Level::Ok), "{checks:?}");
        assert_eq!(checks.len(), 9);
        assert!(inner.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_ignores_conditions_fails_and_the_way_out_is_named() {
        let (inner, bucket) = faulty(Faults { ignore_conditions: true, ..Faults::default() });
        let checks = checks(&bucket, &seams(NOW)).await;
        let (found, words) = level(&checks, "conditional creates");
        assert!(found == Level::Fail && words.contains("--unsafe-no-cas"), "{words}");
        assert_eq!(checks.iter().filter(|c| c.level == Level::Fail).count(), 1);
        assert!(inner.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_off_and_a_slow_store_are_warned_of() {
        let slow = OperationFaults { slow: CERTAIN, ..OperationFaults::default() };
        let slow_by = Duration::from_secs(1);
        let (inner, bucket) = faulty(Faults { get: slow, slow_by, ..Faults::default() });
        let checks = checks(&bucket, &seams(NOW + 60_000)).await;
        assert_eq!(level(&checks, "store's clock").0, Level::Warn);
        assert!(level(&checks, "store's clock").1.contains("s behind this machine's"), "{checks:?}");
        assert_eq!(level(&checks, "latency").0, Level::Warn);
        assert!(level(&checks, "latency").1.contains("get 1.00 s"), "{checks:?}");
        assert!(inner.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_does_not_answer_fails_once() {
        let (_, bucket) = faulty(Faults { unavailable: true, ..Faults::default() });
        let checks = checks(&bucket, &seams(NOW)).await;
        assert_eq!((checks.len(), level(&checks, REACH).0), (1, Level::Fail));
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_gives_out_on_the_way_fails_and_is_cleaned_if_it_can_be() {
        let mute = OperationFaults { mute: CERTAIN, ..OperationFaults::default() };
        let (inner, bucket) = faulty(Faults { put: mute, ..Faults::default() });
        let checks = checks(&bucket, &seams(NOW)).await;
        assert_eq!(level(&checks, "reads and writes").0, Level::Fail);
        assert_eq!(level(&checks, "cleaning up").0, Level::Ok);
        assert!(inner.is_empty(), "the put that was done and not answered is gone too");
    }

    #[test]
    fn a_clock_is_off_only_beyond_what_can_be_seen() {
        assert_eq!(skew_ms(10_000, 11_000, 10_000), Some(0));
        assert_eq!(skew_ms(10_900, 11_000, 10_000), Some(0), "stores cut the time to the second");
        assert_eq!(skew_ms(20_000, 21_000, 10_000), Some(-9_000));
        assert_eq!(skew_ms(10_000, 11_000, 18_000), Some(7_000));
        assert_eq!(skew_ms(10_000, 11_000, 0), None);
    }
}

//! The cases that every bucket passes, whoever wrote it.
//!
//! Each case works under a prefix of its own, `conformance/CASE/`, which it
//! empties before and after. A store that fails one can't hold a cluster.

use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::{
    BucketError, Created, LIST_LIMIT, Listing, ProbeVerdict, SharedBucket, list_all, probe_conditional_create,
};

/// How many creates race for one key, and how often.
const RACERS: u8 = 16;
const ROUNDS: u32 = 20;
/// A body that needs many packets.
const LARGE: usize = 8 * 1024 * 1024;

type Verdict = Result<(), String>;

/// A bucket and the prefix that one case may use.
struct Ground {
    bucket: SharedBucket,
    prefix: String,
}

macro_rules! run_each {
    ($bucket:expr, [$($case:ident),* $(,)?]) => {{
        let mut passed = 0_u32;
        $(
            let ground = Ground { bucket: $bucket.clone(), prefix: format!("conformance/{}/", stringify!($case)) };
            let verdict = async {
                ground.clear().await?;
                $case(&ground).await?;
                ground.clear().await
            };
            Box::pin(verdict).await.map_err(|why| format!("{}: {why}", stringify!($case)))?;
            passed += 1;
        )*
        Ok(passed)
    }};
}

/// Runs every case, in order, and answers how many there are.
///
/// # Errors
/// The name of the first case that failed, and why.
pub async fn run(bucket: SharedBucket) -> Result<u32, String> {
    run_each!(
        bucket,
        [
            get_of_an_absent_object_is_not_found,
            range_of_an_absent_object_is_not_found,
            put_then_get,
            binary_body,
            empty_body,
            large_body,
            odd_keys,
            a_key_that_is_the_prefix_of_another,
            put_overwrites,
            ranges_inside,
            ranges_outside,
            ranges_of_a_large_body,
            delete_then_not_found,
            delete_of_an_absent_object,
            create_of_a_free_key,
            create_of_a_taken_key,
            create_of_a_key_that_was_put,
            create_again_with_the_same_body,
            create_after_delete,
            create_of_an_empty_body,
            create_races_have_one_winner,
            create_of_many_keys_at_once,
            list_of_nothing,
            list_is_in_byte_order,
            list_after_is_exclusive,
            list_after_a_key_that_is_absent,
            list_pages,
            list_prefix_is_exact,
            list_sizes_and_times,
            list_sees_writes_and_deletes_at_once,
            list_limits,
            list_all_crosses_pages,
            concurrent_writes_are_never_torn,
            the_probe_finds_it_sound,
        ]
    )
}

impl Ground {
    fn key(&self, rest: &str) -> String {
        format!("{}{rest}", self.prefix)
    }

    async fn clear(&self) -> Verdict {
        for object in list_all(&*self.bucket, &self.prefix).await.map_err(told("clear"))? {
            self.bucket.delete(&object.key).await.map_err(told("clear"))?;
        }
        Ok(())
    }

    async fn put(&self, rest: &str, body: impl Into<Bytes> + Send) -> Verdict {
        self.bucket.put(&self.key(rest), body.into()).await.map_err(told("put"))
    }

    async fn create(&self, rest: &str, body: &str) -> Result<Created, String> {
        self.bucket.create(&self.key(rest), Bytes::from(body.to_owned())).await.map_err(told("create"))
    }

    async fn delete(&self, rest: &str) -> Verdict {
        self.bucket.delete(&self.key(rest)).await.map_err(told("delete"))
    }

    async fn get(&self, rest: &str) -> Result<Bytes, BucketError> {
        self.bucket.get(&self.key(rest)).await
    }

    async fn holds(&self, rest: &str, body: &[u8]) -> Verdict {
        let found = self.get(rest).await.map_err(told("get"))?;
        let why = || format!("{rest:?} holds {} bytes, not the {} that were stored", found.len(), body.len());
        if found == body { Ok(()) } else { Err(why()) }
    }

    async fn is_absent(&self, rest: &str) -> Verdict {
        match self.get(rest).await {
            Err(BucketError::NotFound { key }) => same("the key of the error", &key, &self.key(rest)),
            other => Err(format!("get of {rest:?} answered {other:?}")),
        }
    }

    async fn range(&self, rest: &str, range: Range<u64>) -> Result<Bytes, BucketError> {
        self.bucket.get_range(&self.key(rest), range).await
    }

    async fn list(
        &self,
        rest: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<String>, bool), String> {
        let after = after.map(|after| self.key(after));
        let page = self.bucket.list(&self.key(rest), after.as_deref(), limit).await.map_err(told("list"))?;
        Ok((self.names(&page)?, page.more))
    }

    fn names(&self, page: &Listing) -> Result<Vec<String>, String> {
        let strip = |key: &str| key.strip_prefix(&self.prefix).map(str::to_owned);
        page.objects
            .iter()
            .map(|object| {
                strip(&object.key).ok_or_else(|| format!("listed {:?}, which is elsewhere", object.key))
            })
            .collect()
    }

    async fn fill(&self, names: &[&str]) -> Verdict {
        for name in names {
            self.put(name, name.as_bytes().to_vec()).await?;
        }
        Ok(())
    }
}

fn told(call: &'static str) -> impl Fn(BucketError) -> String {
    move |error| format!("{call}: {error}")
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Verdict {
    if found == expected { Ok(()) } else { Err(format!("{what} is {found:?}, not {expected:?}")) }
}

fn listed(found: &(Vec<String>, bool), names: &[&str], more: bool) -> Verdict {
    same("the page", found, &(names.iter().map(|name| (*name).to_owned()).collect(), more))
}

/// Bytes that do not repeat with any power of two.
fn pattern(length: usize, salt: u8) -> Vec<u8> {
    (0_u8..=250).cycle().map(|byte| byte.wrapping_add(salt)).take(length).collect()
}

async fn get_of_an_absent_object_is_not_found(on: &Ground) -> Verdict {
    on.is_absent("nothing").await
}

async fn range_of_an_absent_object_is_not_found(on: &Ground) -> Verdict {
    match on.range("nothing", 0..1).await {
        Err(BucketError::NotFound { .. }) => Ok(()),
        other => Err(format!("answered {other:?}")),
    }
}

async fn put_then_get(on: &Ground) -> Verdict {
    on.put("a", "hello").await?;
    on.holds("a", b"hello").await
}

async fn binary_body(on: &Ground) -> Verdict {
    let body: Vec<u8> = (0..=255).chain((0..=255).rev()).chain(*b"\r\n0\r\n\r\n").collect();
    on.put("a", body.clone()).await?;
    on.holds("a", &body).await
}

async fn empty_body(on: &Ground) -> Verdict {
    on.put("a", "").await?;
    on.holds("a", b"").await?;
    match on.range("a", 0..1).await {
        Err(BucketError::Range { .. }) => Ok(()),
        other => Err(format!("a range of an empty object answered {other:?}")),
    }
}

async fn large_body(on: &Ground) -> Verdict {
    let body = pattern(LARGE + 1, 7);
    on.put("a", body.clone()).await?;
    on.holds("a", &body).await
}

async fn odd_keys(on: &Ground) -> Verdict {
    let long = "k".repeat(400);
    let names = [
        "0",
        "00000000000000000001.json",
        "a.b.c",
        "key=value",
        "a=b/c=d/e.f",
        "UPPER/lower",
        "dash-under_score",
        "x/y/z/0123456789abcdef",
        "node-a.17/3",
        ".hidden",
        "..double",
        "a%2Fb",
        "100%",
        "plus+plus",
        &long,
    ];
    for name in names {
        on.put(name, name.as_bytes().to_vec()).await?;
    }
    for name in names {
        on.holds(name, name.as_bytes()).await?;
    }
    let found: BTreeSet<String> = on.list("", None, LIST_LIMIT).await?.0.into_iter().collect();
    same("the listing", &found, &names.iter().map(|name| (*name).to_owned()).collect())
}

async fn a_key_that_is_the_prefix_of_another(on: &Ground) -> Verdict {
    on.fill(&["a/b/c", "a", "a/b"]).await?;
    on.holds("a", b"a").await?;
    on.holds("a/b", b"a/b").await?;
    on.holds("a/b/c", b"a/b/c").await?;
    on.delete("a/b").await?;
    on.holds("a", b"a").await?;
    on.is_absent("a/b").await?;
    on.holds("a/b/c", b"a/b/c").await
}

async fn put_overwrites(on: &Ground) -> Verdict {
    on.put("a", "a longer first body").await?;
    on.put("a", "second").await?;
    on.holds("a", b"second").await?;
    listed(&on.list("", None, 10).await?, &["a"], false)
}

async fn ranges_inside(on: &Ground) -> Verdict {
    let body = pattern(1000, 1);
    on.put("a", body.clone()).await?;
    for range in [0..1, 0..1000, 999..1000, 1..999, 500..501, 0..999] {
        let found = on.range("a", range.clone()).await.map_err(told("get_range"))?;
        let at = |end: u64| usize::try_from(end).unwrap_or(usize::MAX);
        same(&format!("range {range:?}"), &Some(&*found), &body.get(at(range.start)..at(range.end)))?;
    }
    Ok(())
}

async fn ranges_outside(on: &Ground) -> Verdict {
    on.put("a", pattern(1000, 1)).await?;
    let backwards = Range { start: 7, end: 3 };
    for range in [0..1001, 999..1001, 1000..1001, 5000..6000, 0..0, 5..5, backwards] {
        match on.range("a", range.clone()).await {
            Err(BucketError::Range { start, end, .. }) if (start..end) == range => {}
            other => return Err(format!("range {range:?} answered {other:?}")),
        }
    }
    Ok(())
}

async fn ranges_of_a_large_body(on: &Ground) -> Verdict {
    let body = pattern(LARGE, 3);
    on.put("a", body.clone()).await?;
    for (start, end) in [(0, LARGE), (LARGE - 10, LARGE), (1_048_570, 1_048_590), (3, 5 * 1024 * 1024)] {
        let found = on.range("a", start as u64..end as u64).await.map_err(told("get_range"))?;
        if body.get(start..end) != Some(&*found) {
            return Err(format!("range {start}..{end} holds other bytes ({} of them)", found.len()));
        }
    }
    Ok(())
}

async fn delete_then_not_found(on: &Ground) -> Verdict {
    on.put("a", "x").await?;
    on.delete("a").await?;
    on.is_absent("a").await
}

async fn delete_of_an_absent_object(on: &Ground) -> Verdict {
    on.delete("never").await?;
    on.delete("no/such/path").await?;
    on.put("a", "x").await?;
    on.delete("a").await?;
    on.delete("a").await
}

async fn create_of_a_free_key(on: &Ground) -> Verdict {
    same("the answer", &on.create("a", "mine").await?, &Created::New)?;
    on.holds("a", b"mine").await
}

async fn create_of_a_taken_key(on: &Ground) -> Verdict {
    on.create("a", "first").await?;
    same("the answer", &on.create("a", "second").await?, &Created::Exists)?;
    on.holds("a", b"first").await
}

async fn create_of_a_key_that_was_put(on: &Ground) -> Verdict {
    on.put("a", "first").await?;
    same("the answer", &on.create("a", "second").await?, &Created::Exists)?;
    on.holds("a", b"first").await
}

async fn create_again_with_the_same_body(on: &Ground) -> Verdict {
    same("the first answer", &on.create("a", "mine").await?, &Created::New)?;
    same("the second answer", &on.create("a", "mine").await?, &Created::New)
}

async fn create_after_delete(on: &Ground) -> Verdict {
    on.create("a", "first").await?;
    on.delete("a").await?;
    same("the answer", &on.create("a", "second").await?, &Created::New)?;
    on.holds("a", b"second").await
}

async fn create_of_an_empty_body(on: &Ground) -> Verdict {
    same("the first answer", &on.create("a", "").await?, &Created::New)?;
    same("the second answer", &on.create("a", "other").await?, &Created::Exists)?;
    on.holds("a", b"").await
}

async fn create_races_have_one_winner(on: &Ground) -> Verdict {
    for round in 0..ROUNDS {
        let name = format!("race-{round}");
        let mut racers = JoinSet::new();
        for racer in 0..RACERS {
            let (bucket, key, body) = (on.bucket.clone(), on.key(&name), race_body(round, racer));
            racers.spawn(async move { (racer, bucket.create(&key, body).await) });
        }
        let mut winners = Vec::new();
        while let Some(joined) = racers.join_next().await {
            let (racer, answer) = joined.map_err(|error| error.to_string())?;
            if answer.map_err(told("create"))? == Created::New {
                winners.push(racer);
            }
        }
        let [winner] = winners.as_slice() else {
            return Err(format!("round {round} was won by {winners:?}"));
        };
        on.holds(&name, &race_body(round, *winner)).await?;
    }
    Ok(())
}

fn race_body(round: u32, racer: u8) -> Bytes {
    let mut body = format!("round {round} racer {racer} ").into_bytes();
    body.extend(pattern(4096, racer));
    body.into()
}

async fn create_of_many_keys_at_once(on: &Ground) -> Verdict {
    let mut creates = JoinSet::new();
    for number in 0..64 {
        // The keys share directories, which a store may have to make and remove.
        let key = on.key(&format!("d{}/e{}/{number}", number % 4, number % 8));
        let bucket = on.bucket.clone();
        creates.spawn(async move {
            let created = bucket.create(&key, Bytes::from(key.clone())).await?;
            if number % 2 == 0 {
                bucket.delete(&key).await?;
            }
            Ok::<_, BucketError>(created)
        });
    }
    while let Some(joined) = creates.join_next().await {
        let created = joined.map_err(|error| error.to_string())?.map_err(told("create"))?;
        same("an answer", &created, &Created::New)?;
    }
    same("the number of objects", &on.list("", None, LIST_LIMIT).await?.0.len(), &32)
}

async fn list_of_nothing(on: &Ground) -> Verdict {
    listed(&on.list("", None, 10).await?, &[], false)?;
    listed(&on.list("none", Some("none/a"), 1).await?, &[], false)
}

/// In byte order, whatever `/` does to a store's own order.
const ORDERED: [&str; 12] = ["+", "-", ".x", "0", "9", "=", "A", "_", "a", "a-b", "a/b", "a0"];

async fn list_is_in_byte_order(on: &Ground) -> Verdict {
    let mut shuffled = ORDERED;
    shuffled.reverse();
    shuffled.swap(2, 7);
    on.fill(&shuffled).await?;
    listed(&on.list("", None, LIST_LIMIT).await?, &ORDERED, false)
}

async fn list_after_is_exclusive(on: &Ground) -> Verdict {
    on.fill(&ORDERED).await?;
    for (at, name) in ORDERED.iter().enumerate() {
        let rest = ORDERED.get(at + 1..).unwrap_or_default();
        listed(&on.list("", Some(name), LIST_LIMIT).await?, rest, false)?;
    }
    Ok(())
}

async fn list_after_a_key_that_is_absent(on: &Ground) -> Verdict {
    on.fill(&["b", "d", "d/e", "f"]).await?;
    listed(&on.list("", Some("a"), 10).await?, &["b", "d", "d/e", "f"], false)?;
    listed(&on.list("", Some("c"), 10).await?, &["d", "d/e", "f"], false)?;
    listed(&on.list("", Some("d/"), 10).await?, &["d/e", "f"], false)?;
    listed(&on.list("d", Some("a"), 10).await?, &["d", "d/e"], false)?;
    listed(&on.list("", Some("z"), 10).await?, &[], false)
}

async fn list_pages(on: &Ground) -> Verdict {
    on.fill(&ORDERED).await?;
    for limit in [1, 5, 6, 11, 12, 13] {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let (names, more) = on.list("", after.as_deref(), limit).await?;
            let full = names.len() == limit;
            after = names.last().cloned();
            all.extend(names);
            if more != (all.len() < ORDERED.len()) || (more && !full) {
                return Err(format!("limit {limit}: after {} keys, more is {more}", all.len()));
            }
            if !more {
                break;
            }
        }
        listed(&(all, false), &ORDERED, false)?;
    }
    Ok(())
}

async fn list_prefix_is_exact(on: &Ground) -> Verdict {
    on.fill(&["a", "ab", "ab/c", "abc", "b", "B/ab"]).await?;
    listed(&on.list("ab", None, 10).await?, &["ab", "ab/c", "abc"], false)?;
    listed(&on.list("ab/", None, 10).await?, &["ab/c"], false)?;
    listed(&on.list("abc", None, 10).await?, &["abc"], false)?;
    listed(&on.list("b", None, 10).await?, &["b"], false)?;
    listed(&on.list("ab", None, 3).await?, &["ab", "ab/c", "abc"], false)?;
    listed(&on.list("ab", Some("ab"), 1).await?, &["ab/c"], true)
}

async fn list_sizes_and_times(on: &Ground) -> Verdict {
    on.put("a", "").await?;
    on.put("b", pattern(12_345, 0)).await?;
    let page = on.bucket.list(&on.prefix, None, 10).await.map_err(told("list"))?;
    let sizes: Vec<u64> = page.objects.iter().map(|object| object.size).collect();
    same("the sizes", &sizes, &vec![0, 12_345])?;
    let times: Vec<u64> = page.objects.iter().map(|object| object.modified_ms).collect();
    if times.is_sorted() { Ok(()) } else { Err(format!("the times {times:?} go back")) }
}

async fn list_sees_writes_and_deletes_at_once(on: &Ground) -> Verdict {
    for number in 0..20 {
        let name = format!("{number:02}");
        on.put(&name, "x").await?;
        listed(&on.list("", None, 10).await?, &[&name], false)?;
        on.delete(&name).await?;
        listed(&on.list("", None, 10).await?, &[], false)?;
    }
    Ok(())
}

async fn list_limits(on: &Ground) -> Verdict {
    for limit in [0, LIST_LIMIT + 1] {
        match on.bucket.list(&on.prefix, None, limit).await {
            Err(BucketError::Refused { detail, .. }) if detail.contains("limit") => {}
            other => return Err(format!("limit {limit} answered {other:?}")),
        }
    }
    Ok(())
}

async fn list_all_crosses_pages(on: &Ground) -> Verdict {
    let names: Vec<String> = (0..LIST_LIMIT + 5).map(|number| format!("{number:05}")).collect();
    let mut puts = JoinSet::new();
    for name in &names {
        if puts.len() >= 16 {
            finish(&mut puts).await?;
        }
        let (bucket, key) = (on.bucket.clone(), on.key(name));
        puts.spawn(async move { bucket.put(&key, Bytes::new()).await });
    }
    while !puts.is_empty() {
        finish(&mut puts).await?;
    }
    let found = list_all(&*on.bucket, &on.prefix).await.map_err(told("list_all"))?;
    let expected: Vec<String> = names.iter().map(|name| on.key(name)).collect();
    let found: Vec<String> = found.into_iter().map(|object| object.key).collect();
    if found == expected { Ok(()) } else { Err(format!("{} keys, not {}", found.len(), expected.len())) }
}

async fn finish(puts: &mut JoinSet<Result<(), BucketError>>) -> Verdict {
    match puts.join_next().await {
        Some(joined) => joined.map_err(|error| error.to_string())?.map_err(told("put")),
        None => Ok(()),
    }
}

async fn concurrent_writes_are_never_torn(on: &Ground) -> Verdict {
    const WRITERS: u8 = 4;
    const WRITES: usize = 10;
    /// Bodies differ in length as well, so a mixture can't look whole.
    fn body(writer: u8) -> Bytes {
        vec![writer; 300_000 + usize::from(writer)].into()
    }
    on.put("a", body(0)).await?;
    let mut tasks = JoinSet::new();
    for writer in 0..WRITERS {
        let (bucket, key) = (on.bucket.clone(), on.key("a"));
        tasks.spawn(async move {
            for _ in 0..WRITES {
                bucket.put(&key, body(writer)).await.map_err(told("put"))?;
            }
            Ok::<_, String>(())
        });
        let (bucket, key) = (on.bucket.clone(), on.key("a"));
        tasks.spawn(async move {
            for _ in 0..WRITES {
                let found = bucket.get(&key).await.map_err(told("get"))?;
                if !(0..WRITERS).any(|writer| found == body(writer)) {
                    return Err(format!("a mixture of {} bytes was read", found.len()));
                }
            }
            Ok(())
        });
    }
    while let Some(joined) = tasks.join_next().await {
        joined.map_err(|error| error.to_string())??;
    }
    Ok(())
}

async fn the_probe_finds_it_sound(on: &Ground) -> Verdict {
    for nonce in [0, 1, u128::MAX] {
        let verdict = probe_conditional_create(&*on.bucket, nonce).await.map_err(told("probe"))?;
        same("the verdict", &verdict, &ProbeVerdict::Sound)?;
        let left = on.bucket.list(&format!("probe/{nonce:032x}"), None, 1).await.map_err(told("list"))?;
        same("what is left of the probe", &left.objects, &Vec::new())?;
    }
    Ok(())
}

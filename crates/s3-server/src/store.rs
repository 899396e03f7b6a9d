//! The directory: objects as files, changed in single steps.
//!
//! ```text
//! lock                     held while a server runs
//! buckets/NAME/…           objects, named as names.rs says
//! tmp/…                    bodies on their way in; emptied at start
//! uploads/ID/…             unfinished multipart uploads
//! ```
//! A body is written to `tmp` and renamed into place under one lock, so a
//! killed process leaves either the old object or the new one, and racing
//! conditional writes have one winner. Readers hold an open file: an object
//! that is replaced meanwhile stays whole for them.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::names::{self, KEY_LIMIT};

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("no such bucket")]
    NoSuchBucket,
    #[error("no such object")]
    NoSuchKey,
    #[error("the bucket is not empty")]
    BucketNotEmpty,
    #[error("the condition does not hold")]
    Precondition,
    #[error("the key is longer than {KEY_LIMIT} bytes")]
    KeyTooLong,
    #[error("the file system says: {0}")]
    Io(#[from] io::Error),
}

/// What must hold for a write to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    None,
    Absent,
    Present,
    Tag(String),
}

/// What is known of an object without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) size: u64,
    pub(crate) modified: SystemTime,
    pub(crate) tag: String,
}

impl Meta {
    /// The tag is the object's time stamp, which [`Store::stamp`] makes unique,
    /// and its inode. It ends in `-1` so that no client takes it for an MD5.
    fn of(file: &fs::Metadata) -> io::Result<Self> {
        let modified = file.modified()?;
        let nanos = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        Ok(Self { size: file.len(), modified, tag: format!("{nanos:016x}{:016x}-1", file.ino()) })
    }
}

/// A body that is not yet an object; dropping it deletes it.
#[derive(Debug)]
pub(crate) struct Temp {
    path: PathBuf,
    pub(crate) file: File,
    kept: bool,
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.kept {
            // What stays behind is removed at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A directory that this process alone changes.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    sync: bool,
    changes: Mutex<()>,
    last_stamp: AtomicU64,
    next_temp: AtomicU64,
    _lock: File,
}

impl Store {
    pub(crate) fn open(root: &Path, sync: bool) -> io::Result<Self> {
        for part in ["buckets", "tmp", "uploads"] {
            fs::create_dir_all(root.join(part))?;
        }
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(root.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(
                ErrorKind::ResourceBusy,
                format!("the directory {} is in use by another server", root.display()),
            ),
            TryLockError::Error(error) => error,
        })?;
        for left in fs::read_dir(root.join("tmp"))? {
            fs::remove_file(left?.path())?;
        }
        let store = Self {
            root: root.to_path_buf(),
            sync,
            changes: Mutex::new(()),
            last_stamp: AtomicU64::new(0),
            next_temp: AtomicU64::new(0),
            _lock: lock,
        };
        store.sync_directory(root)?;
        Ok(store)
    }

    fn changes(&self) -> MutexGuard<'_, ()> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bucket_path(&self, bucket: &str) -> Result<PathBuf, StoreError> {
        let plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
        let whole = (3..=63).contains(&bucket.len()) && bucket.bytes().all(plain) && !bucket.starts_with('.');
        if whole { Ok(self.root.join("buckets").join(bucket)) } else { Err(StoreError::NoSuchBucket) }
    }

    /// The directory of a bucket that exists.
    pub(crate) fn bucket(&self, bucket: &str) -> Result<PathBuf, StoreError> {
        let path = self.bucket_path(bucket)?;
        if path.is_dir() { Ok(path) } else { Err(StoreError::NoSuchBucket) }
    }

    fn object_path(&self, bucket: &str, key: &str) -> Result<PathBuf, StoreError> {
        let bucket = self.bucket(bucket)?;
        if key.len() > KEY_LIMIT {
            return Err(StoreError::KeyTooLong);
        }
        Ok(names::path_of(&bucket, key))
    }

    /// Whether the bucket is new.
    pub(crate) fn create_bucket(&self, bucket: &str) -> Result<bool, StoreError> {
        let path = self.bucket_path(bucket)?;
        let _changes = self.changes();
        match fs::create_dir(&path) {
            Ok(()) => {
                self.sync_directory(&self.root.join("buckets"))?;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn delete_bucket(&self, bucket: &str) -> Result<(), StoreError> {
        let path = self.bucket(bucket)?;
        let _changes = self.changes();
        remove_empty(&path).map_err(|error| match error.kind() {
            ErrorKind::DirectoryNotEmpty => StoreError::BucketNotEmpty,
            ErrorKind::NotFound => StoreError::NoSuchBucket,
            _ => error.into(),
        })?;
        Ok(self.sync_directory(&self.root.join("buckets"))?)
    }

    /// Names and times of all buckets, in order.
    pub(crate) fn buckets(&self) -> Result<Vec<(String, SystemTime)>, StoreError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root.join("buckets"))? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                found.push((name, entry.metadata()?.modified()?));
            }
        }
        found.sort();
        Ok(found)
    }

    /// A new file for a body.
    pub(crate) fn temp(&self) -> io::Result<Temp> {
        let number = self.next_temp.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join("tmp").join(format!("{number:016x}"));
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(&path)?;
        Ok(Temp { path, file, kept: false })
    }

    /// Gives a body its time stamp and makes it durable; the last step before it is published.
    pub(crate) fn finish(&self, temp: &Temp) -> io::Result<()> {
        temp.file.set_modified(self.stamp())?;
        if self.sync { temp.file.sync_all() } else { Ok(()) }
    }

    /// Now, but never the same twice.
    fn stamp(&self) -> SystemTime {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let next = |last: u64| now.max(last.saturating_add(1));
        let last = self.last_stamp.update(Ordering::Relaxed, Ordering::Relaxed, next);
        UNIX_EPOCH + Duration::from_nanos(next(last))
    }

    /// Makes a finished body the object of `key`, if the condition holds.
    pub(crate) fn publish(
        &self,
        bucket: &str,
        key: &str,
        mut temp: Temp,
        condition: &Condition,
    ) -> Result<Meta, StoreError> {
        let path = self.object_path(bucket, key)?;
        let meta = Meta::of(&temp.file.metadata()?)?;
        let _changes = self.changes();
        // The bucket may have gone while we waited.
        self.bucket(bucket)?;
        let holds = match (condition, self.meta_at(&path)) {
            (Condition::None, _) => true,
            (Condition::Absent, found) => matches!(found, Err(StoreError::NoSuchKey)),
            (Condition::Present, found) => found.map(|_| true)?,
            (Condition::Tag(tag), found) => found?.tag == *tag,
        };
        if !holds {
            return Err(StoreError::Precondition);
        }
        let created = make_parents(&path)?;
        fs::rename(&temp.path, &path)?;
        temp.kept = true;
        for directory in created {
            self.sync_directory(&directory)?;
        }
        if let Some(parent) = path.parent() {
            self.sync_directory(parent)?;
        }
        Ok(meta)
    }

    fn meta_at(&self, path: &Path) -> Result<Meta, StoreError> {
        match fs::metadata(path) {
            Ok(found) => Ok(Meta::of(&found)?),
            Err(error) if is_absent(&error) => Err(StoreError::NoSuchKey),
            Err(error) => Err(error.into()),
        }
    }

    /// An object, open for reading, and what is known of it.
    pub(crate) fn open_object(&self, bucket: &str, key: &str) -> Result<(File, Meta), StoreError> {
        let path = self.object_path(bucket, key)?;
        match File::open(&path) {
            Ok(file) => {
                let meta = Meta::of(&file.metadata()?)?;
                Ok((file, meta))
            }
            Err(error) if is_absent(&error) => Err(StoreError::NoSuchKey),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn meta(&self, bucket: &str, key: &str) -> Result<Meta, StoreError> {
        self.meta_at(&self.object_path(bucket, key)?)
    }

    /// Deletes an object and the directories that it leaves empty.
    pub(crate) fn delete(&self, bucket: &str, key: &str) -> Result<(), StoreError> {
        let top = self.bucket(bucket)?;
        let path = self.object_path(bucket, key)?;
        let _changes = self.changes();
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let mut directory = path.parent();
        while let Some(parent) = directory.filter(|parent| *parent != top) {
            if fs::remove_dir(parent).is_err() {
                break;
            }
            directory = parent.parent();
        }
        Ok(directory.map_or(Ok(()), |parent| self.sync_directory(parent))?)
    }

    /// Where an upload's parts are. Ids are ours: 32 hex digits.
    pub(crate) fn upload_path(&self, id: &str) -> Option<PathBuf> {
        let whole = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        whole.then(|| self.root.join("uploads").join(id))
    }

    /// Moves a finished body to `path`, whose directory exists.
    pub(crate) fn keep(&self, mut temp: Temp, path: &Path) -> io::Result<Meta> {
        let meta = Meta::of(&temp.file.metadata()?)?;
        fs::rename(&temp.path, path)?;
        temp.kept = true;
        path.parent().map_or(Ok(()), |parent| self.sync_directory(parent))?;
        Ok(meta)
    }

    /// A number that no two calls of this server share, nor of its next run.
    pub(crate) fn unique(&self) -> u64 {
        let stamp = self.stamp().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(stamp.as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn file_meta(path: &Path) -> io::Result<Meta> {
        Meta::of(&fs::metadata(path)?)
    }

    /// Whether writes are made durable before they are answered.
    pub(crate) fn syncs(&self) -> bool {
        self.sync
    }

    pub(crate) fn sync_directory(&self, path: &Path) -> io::Result<()> {
        if self.sync { File::open(path)?.sync_all() } else { Ok(()) }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Removes a tree that holds no file. A killed delete may have left empty directories.
fn remove_empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_empty(&entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

/// Makes the directories above `path`; answers the directories that got a new entry.
fn make_parents(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut missing = Vec::new();
    let mut parent = path.parent();
    while let Some(directory) = parent.filter(|directory| !directory.is_dir()) {
        missing.push(directory);
        parent = directory.parent();
    }
    let mut changed = Vec::new();
    for directory in missing.into_iter().rev() {
        fs::create_dir(directory)?;
        changed.extend(directory.parent().map(Path::to_path_buf));
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;
    use std::io::{Read, Write};
    use std::path::{Path, PathBuf};
    use std::sync::Barrier;

    use super::{Condition, Meta, Store, StoreError};
    use crate::list::{Item, Query, list};

    const BUCKET: &str = "test-bucket";

    fn open(root: &Path) -> Store {
        let store = Store::open(root, false).unwrap();
        store.create_bucket(BUCKET).unwrap();
        store
    }

    fn put(store: &Store, key: &str, body: &str, condition: &Condition) -> Result<Meta, StoreError> {
        let mut temp = store.temp()?;
        temp.file.write_all(body.as_bytes())?;
        store.finish(&temp)?;
        store.publish(BUCKET, key, temp, condition)
    }

    fn get(store: &Store, key: &str) -> Result<String, StoreError> {
        let mut body = String::new();
        store.open_object(BUCKET, key)?.0.read_to_string(&mut body)?;
        Ok(body)
    }

    /// Everything under a directory, directories with a slash at the end.
    fn tree(root: &Path) -> HashSet<String> {
        let mut found = HashSet::new();
        let mut waiting: Vec<PathBuf> = vec![root.to_path_buf()];
        while let Some(directory) = waiting.pop() {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                if path.is_dir() {
                    found.insert(name + "/");
                    waiting.push(path);
                } else {
                    found.insert(name);
                }
            }
        }
        found
    }

    fn keys(store: &Store, query: &Query) -> (Vec<String>, bool) {
        let page = list(&store.bucket(BUCKET).unwrap(), query).unwrap();
        let name = |item| match item {
            Item::Object(name, _) | Item::Prefix(name) => name,
        };
        (page.items.into_iter().map(name).collect(), page.more)
    }

    #[test]
    fn a_restart_keeps_objects_and_drops_what_was_unfinished() {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        let tag = put(&store, "a/b", "body", &Condition::None).unwrap().tag;
        let unfinished = store.temp().unwrap();
        std::mem::forget(unfinished);
        drop(store);
        assert!(tree(root.path()).iter().any(|name| name.starts_with("tmp/") && name.len() > 4));
        let store = open(root.path());
        assert_eq!(get(&store, "a/b").unwrap(), "body");
        assert_eq!(store.meta(BUCKET, "a/b").unwrap().tag, tag, "the ETag outlives the process");
        assert!(!tree(root.path()).iter().any(|name| name.starts_with("tmp/") && name.len() > 4));
    }

    #[test]
    fn one_server_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        let error = Store::open(root.path(), false).unwrap_err();
        assert!(error.to_string().contains("in use by another server"), "{error}");
        drop(store);
        assert!(Store::open(root.path(), false).is_ok());
    }

    #[test]
    fn racing_creates_have_one_winner() {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        for round in 0..50 {
            // A new directory per round: making it is part of the race.
            let key = format!("race/{round}/key");
            let start = Barrier::new(8);
            let wins: Vec<String> = std::thread::scope(|scope| {
                let racers: Vec<_> = (0..8)
                    .map(|racer| {
                        let (store, key, start) = (&store, &key, &start);
                        scope.spawn(move || {
                            start.wait();
                            let body = format!("racer {racer}");
                            put(store, key, &body, &Condition::Absent).is_ok().then_some(body)
                        })
                    })
                    .collect();
                racers.into_iter().filter_map(|racer| racer.join().unwrap()).collect()
            });
            assert_eq!(wins, [get(&store, &key).unwrap()], "round {round}");
        }
    }

    #[test]
    fn racing_replacements_of_one_version_have_one_winner() {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        let mut tag = put(&store, "k", "0", &Condition::None).unwrap().tag;
        for _ in 0..50 {
            let wins: Vec<String> = std::thread::scope(|scope| {
                let racers: Vec<_> = (0..4)
                    .map(|racer| {
                        let (store, condition) = (&store, Condition::Tag(tag.clone()));
                        scope.spawn(move || {
                            put(store, "k", &racer.to_string(), &condition).map(|meta| meta.tag)
                        })
                    })
                    .collect();
                racers.into_iter().filter_map(|racer| racer.join().unwrap().ok()).collect()
            });
            assert_eq!(wins.len(), 1);
            tag.clone_from(&wins[0]);
        }
    }

    #[test]
    fn deletes_and_creates_in_one_directory_do_not_disturb_each_other() {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let store = &store;
                scope.spawn(move || {
                    for _ in 0..200 {
                        let key = format!("shared/deep/{writer}");
                        put(store, &key, "x", &Condition::Absent).unwrap();
                        store.delete(BUCKET, &key).unwrap();
                    }
                });
            }
        });
        let bucket = store.bucket(BUCKET).unwrap();
        assert!(tree(&bucket).is_empty(), "empty directories go with their last object");
    }

    #[test]
    fn no_key_leaves_the_bucket() {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        let before = tree(root.path());
        let long = "../".repeat(300);
        let keys = ["..", "../x", "../../lock", "/etc/passwd", "a/../../../b", "./.", &long];
        for key in keys {
            put(&store, key, key, &Condition::Absent).unwrap();
            assert_eq!(get(&store, key).unwrap(), key);
        }
        let inside = format!("buckets/{BUCKET}/");
        for name in tree(root.path()).difference(&before) {
            assert!(name.starts_with(&inside), "{name}");
        }
        for key in keys {
            store.delete(BUCKET, key).unwrap();
        }
        assert_eq!(tree(root.path()), before);
        for bucket in ["..", ".", "", "../tmp", "tmp/x", "A", "a/b"] {
            assert!(matches!(store.create_bucket(bucket), Err(StoreError::NoSuchBucket)), "{bucket}");
        }
    }

    #[test]
    fn conditions() {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        assert!(matches!(put(&store, "k", "1", &Condition::Present), Err(StoreError::NoSuchKey)));
        let first = put(&store, "k", "1", &Condition::Absent).unwrap().tag;
        assert!(matches!(put(&store, "k", "2", &Condition::Absent), Err(StoreError::Precondition)));
        let second = put(&store, "k", "1", &Condition::Tag(first.clone())).unwrap().tag;
        assert_ne!(first, second, "the same body written twice has two tags");
        assert!(matches!(put(&store, "k", "3", &Condition::Tag(first)), Err(StoreError::Precondition)));
        assert_eq!(get(&store, "k").unwrap(), "1");
        let temps = tree(&root.path().join("tmp"));
        assert!(temps.is_empty(), "a write that was refused leaves nothing behind");
    }

    #[test]
    fn a_key_has_at_most_1024_bytes() {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        put(&store, &"ä".repeat(512), "x", &Condition::None).unwrap();
        assert!(matches!(put(&store, &"k".repeat(1025), "x", &Condition::None), Err(StoreError::KeyTooLong)));
    }

    #[test]
    fn a_bucket_goes_when_it_is_empty() {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        put(&store, "a/b", "x", &Condition::None).unwrap();
        assert!(matches!(store.delete_bucket(BUCKET), Err(StoreError::BucketNotEmpty)));
        assert_eq!(get(&store, "a/b").unwrap(), "x");
        store.delete(BUCKET, "a/b").unwrap();
        // As a server that was killed within a delete leaves it.
        std::fs::create_dir_all(store.bucket(BUCKET).unwrap().join("a/b")).unwrap();
        store.delete_bucket(BUCKET).unwrap();
        assert!(matches!(store.delete_bucket(BUCKET), Err(StoreError::NoSuchBucket)));
        assert!(matches!(put(&store, "k", "x", &Condition::None), Err(StoreError::NoSuchBucket)));
    }

    #[test]
    fn listing_agrees_with_a_sorted_set_for_every_start_limit_and_delimiter() {
        let root = tempfile::tempdir().unwrap();
        let store = open(root.path());
        let stem = "s".repeat(80);
        let mut all: Vec<String> =
            ["a", "a/", "a/b", "a/b/c", "a-b", "a0", "b//c", "b/c", "ä/ö", "é"].map(str::to_owned).to_vec();
        all.extend(["", "-x", "/x", "x"].map(|tail| format!("{stem}{tail}")));
        for key in &all {
            put(&store, key, key, &Condition::None).unwrap();
        }
        std::fs::write(store.bucket(BUCKET).unwrap().join("stray file"), "").unwrap();
        all.sort();
        for prefix in ["", "a", "a/", "b/", "s", "none"] {
            for delimiter in ["", "/", "-"] {
                let expected = rolled_up(&all, prefix, delimiter);
                for limit in 1..=expected.len() + 1 {
                    let (mut found, mut after) = (Vec::new(), None);
                    loop {
                        let after_is_prefix = !delimiter.is_empty()
                            && after.as_ref().is_some_and(|name: &String| {
                                name.get(prefix.len()..).is_some_and(|rest| rest.ends_with(delimiter))
                            });
                        let query = Query {
                            prefix: prefix.to_owned(),
                            delimiter: delimiter.to_owned(),
                            after,
                            after_is_prefix,
                            limit,
                        };
                        let (page, more) = keys(&store, &query);
                        after = page.last().cloned();
                        found.extend(page);
                        if !more {
                            break;
                        }
                    }
                    assert_eq!(found, expected, "prefix {prefix:?} delimiter {delimiter:?} limit {limit}");
                }
            }
        }
        for start in &all {
            let query = Query { after: Some(start.clone()), limit: 1000, ..Query::default() };
            let expected: Vec<String> = all.iter().filter(|key| *key > start).cloned().collect();
            assert_eq!(keys(&store, &query), (expected, false), "after {start:?}");
        }
    }

    /// What a listing must show, the slow and obvious way.
    fn rolled_up(all: &[String], prefix: &str, delimiter: &str) -> Vec<String> {
        let mut expected: Vec<String> = Vec::new();
        for key in all.iter().filter(|key| key.starts_with(prefix)) {
            let rest = &key[prefix.len()..];
            let shown = match rest.find(delimiter).filter(|_| !delimiter.is_empty()) {
                Some(at) => key[..prefix.len() + at + delimiter.len()].to_owned(),
                None => key.clone(),
            };
            if expected.last() != Some(&shown) {
                expected.push(shown);
            }
        }
        expected
    }
}

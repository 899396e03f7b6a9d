//! The local disk, as little of it as a storage node needs: a flat set of files that are appended to and
//! synced, or replaced whole. The one place that touches files and threads.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Files of one storage node.
#[async_trait]
pub trait Disk: Send + Sync + std::fmt::Debug + 'static {
    /// The files' names, ascending.
    async fn list(&self) -> io::Result<Vec<String>>;
    /// A whole file.
    async fn read(&self, name: &str) -> io::Result<Bytes>;
    /// Appends to a file, creating it if need be; returns once the bytes are on the medium.
    async fn append(&self, name: &str, bytes: Bytes) -> io::Result<()>;
    /// Replaces a file by `bytes`, entirely or not at all; returns once they are on the medium.
    async fn replace(&self, name: &str, bytes: Bytes) -> io::Result<()>;
    /// Deletes a file; an absent one is no error.
    async fn delete(&self, name: &str) -> io::Result<()>;
}

/// What is kept of one open directory: a lock, so that no two processes use it.
const LOCK_FILE: &str = "lock";

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// A directory, worked on by a thread of its own so that no sync ever blocks the runtime.
#[derive(Debug)]
pub struct FileDisk {
    jobs: mpsc::Sender<Job>,
}

#[derive(Debug)]
struct Worker {
    directory: PathBuf,
    /// The file last appended to, kept open.
    appending: Option<(String, File)>,
    _lock: File,
}

impl FileDisk {
    /// Opens (and creates) the directory.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if another process has it open; others from the file system.
    pub fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(directory.join(LOCK_FILE))?;
        lock.try_lock().map_err(|e| match e {
            fs::TryLockError::WouldBlock => {
                let text = format!("{} is in use by another process", directory.display());
                io::Error::new(io::ErrorKind::WouldBlock, text)
            }
            fs::TryLockError::Error(error) => error,
        })?;
        let mut worker = Worker { directory: directory.to_owned(), appending: None, _lock: lock };
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::Builder::new().name("disk".to_owned()).spawn(move || {
            while let Ok(job) = queue.recv() {
                job(&mut worker);
            }
        })?;
        Ok(Self { jobs })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Worker) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let gone = || io::Error::other("the disk's thread has ended");
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move |worker| {
            // A caller that no longer waits is no error.
            let _ = done.send(work(worker));
        });
        self.jobs.send(job).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

impl Worker {
    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if self.appending.as_ref().is_none_or(|(open, _)| open != name) {
            let path = self.directory.join(name);
            let is_new = !path.exists();
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            if is_new {
                self.sync_directory()?;
            }
            self.appending = Some((name.to_owned(), file));
        }
        let Some((_, file)) = &mut self.appending else { return Ok(()) };
        file.write_all(bytes)?;
        file.sync_data()
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.directory.join(format!("{name}.new"));
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, self.directory.join(name))?;
        self.sync_directory()
    }

    fn delete(&mut self, name: &str) -> io::Result<()> {
        if self.appending.as_ref().is_some_and(|(open, _)| open == name) {
            self.appending = None;
        }
        match fs::remove_file(self.directory.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync_directory(),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_type()?.is_file()
                && let Ok(name) = entry.file_name().into_string()
                && name != LOCK_FILE
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

#[async_trait]
impl Disk for FileDisk {
    async fn list(&self) -> io::Result<Vec<String>> {
        self.run(|worker| worker.list()).await
    }

    async fn read(&self, name: &str) -> io::Result<Bytes> {
        let name = name.to_owned();
        self.run(move |worker| fs::read(worker.directory.join(name)).map(Bytes::from)).await
    }

    async fn append(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        let name = name.to_owned();
        self.run(move |worker| worker.append(&name, &bytes)).await
    }

    async fn replace(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        let name = name.to_owned();
        self.run(move |worker| worker.replace(&name, &bytes)).await
    }

    async fn delete(&self, name: &str) -> io::Result<()> {
        let name = name.to_owned();
        self.run(move |worker| worker.delete(&name)).await
    }
}

/// A disk in memory that outlives the node using it: what a simulated machine has.
#[derive(Debug, Default)]
pub struct MemoryDisk {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
}

#[async_trait]
impl Disk for MemoryDisk {
    async fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.files.lock().keys().cloned().collect())
    }

    async fn read(&self, name: &str) -> io::Result<Bytes> {
        let files = self.files.lock();
        files.get(name).map(|f| Bytes::copy_from_slice(f)).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    async fn append(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        self.files.lock().entry(name.to_owned()).or_default().extend_from_slice(&bytes);
        Ok(())
    }

    async fn replace(&self, name: &str, bytes: Bytes) -> io::Result<()> {
        self.files.lock().insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }

    async fn delete(&self, name: &str) -> io::Result<()> {
        self.files.lock().remove(name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    async fn behaves(disk: &dyn Disk) {
        assert!(disk.list().await.unwrap().is_empty());
        disk.append("a", Bytes::from_static(b"one")).await.unwrap();
        disk.append("b", Bytes::from_static(b"x")).await.unwrap();
        disk.append("a", Bytes::from_static(b"two")).await.unwrap();
        assert_eq!(disk.read("a").await.unwrap(), "onetwo");
        disk.replace("a", Bytes::from_static(b"new")).await.unwrap();
        assert_eq!(disk.read("a").await.unwrap(), "new");
        assert_eq!(disk.list().await.unwrap(), ["a", "b"]);
        disk.delete("b").await.unwrap();
        disk.delete("b").await.unwrap();
        assert_eq!(disk.list().await.unwrap(), ["a"]);
        assert_eq!(disk.read("b").await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn both_disks_behave_alike() {
        let directory = tempfile::tempdir().unwrap();
        behaves(&FileDisk::open(directory.path()).unwrap()).await;
        behaves(&MemoryDisk::default()).await;
    }

    #[tokio::test]
    async fn a_directory_in_use_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let _held = FileDisk::open(directory.path()).unwrap();
        let refused = FileDisk::open(directory.path()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        assert!(refused.to_string().contains("in use"));
    }
}

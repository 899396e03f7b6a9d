//! Does this machine give a process what it needs?

use std::path::Path;
use std::process::Command;

use super::Check;
use crate::units::human_size;

/// Open files below this are few: connections of clients and nodes take one each.
const FEW_FILES: u64 = 4096;
/// Room on the disk below this is little, and below the other too little for a log.
const LITTLE_ROOM: u64 = 1 << 30;
const NO_ROOM: u64 = 100 << 20;

/// All checks of the machine; `data_dir` is where a storage node keeps its log, if that is to be looked at.
pub(super) fn checks(data_dir: Option<&Path>) -> Vec<Check> {
    // Where there is no such file, there is nobody to ask.
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let mut checks = vec![files(open_files(&limits))];
    if let Some(directory) = data_dir {
        checks.push(room(directory, free(directory)));
    }
    checks
}

/// The soft limit of open files, as Linux shows it.
fn open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

fn files(limit: Option<u64>) -> Check {
    const WHAT: &str = "open files";
    match limit {
        None => Check::warn(WHAT, "the limit is not known here", "see that `ulimit -n` gives at least 4096"),
        Some(limit) if limit < FEW_FILES => {
            let detail = format!("{limit} at most");
            Check::warn(WHAT, detail, "raise the limit: `ulimit -n 65536`, or LimitNOFILE= of systemd")
        }
        Some(u64::MAX) => Check::ok(WHAT, "as many as one likes"),
        Some(limit) => Check::ok(WHAT, format!("{limit} at most")),
    }
}

/// The free bytes of the disk that holds `directory`, or will hold it; `None` if `df` does not say.
fn free(directory: &Path) -> Option<u64> {
    let there = directory.ancestors().find(|path| path.exists() || path.as_os_str().is_empty())?;
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let answer = Command::new("df").arg("-Pk").arg("--").arg(there).output().ok()?;
    free_of(&String::from_utf8_lossy(&answer.stdout))
}

/// The fourth column of the second line, in KiB, as POSIX lays it down.
fn free_of(df: &str) -> Option<u64> {
    let kibibytes: u64 = df.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn room(directory: &Path, free: Option<u64>) -> Check {
    const WHAT: &str = "disk";
    let at = directory.display();
    match free {
        None => Check::warn(WHAT, format!("the room at {at} is not known"), "look with `df`"),
        Some(free) if free < NO_ROOM => {
            let detail = format!("{} free at {at}", human_size(free));
            Check::fail(WHAT, detail, "make room: a log that can't grow refuses writes")
        }
        Some(free) if free < LITTLE_ROOM => {
            let detail = format!("{} free at {at}", human_size(free));
            Check::warn(WHAT, detail, "make room: the log grows while the bucket is out of reach")
        }
        Some(free) => Check::ok(WHAT, format!("{} free at {at}", human_size(free))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn limits_are_read_as_linux_writes_them() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             63432                63432                processes \n\
                    Max open files            1024                 1048576              files     \n";
        assert_eq!(open_files(text), Some(1024));
        assert_eq!(open_files(&text.replace("1024 ", "unlimited ")), Some(u64::MAX));
        assert_eq!(open_files(""), None);
        assert_eq!(files(Some(1024)).level, Level::Warn);
        assert_eq!(files(Some(65_536)).level, Level::Ok);
        assert_eq!(files(None).level, Level::Warn);
    }

    #[test]
    fn room_is_read_as_df_writes_it() {
        let text = "Filesystem     1024-blocks     Used Available Capacity Mounted on\n\
                    /dev/vda1         51474912 24601384  24226328      51% /\n";
        assert_eq!(free_of(text), Some(24_226_328 * 1024));
        assert_eq!(free_of("df: no such thing\n"), None);
        let level = |free| room(Path::new("data"), free).level;
        assert_eq!(
            [Some(1), Some(500 << 20), Some(2 << 30), None].map(level),
            [Level::Fail, Level::Warn, Level::Ok, Level::Warn]
        );
    }

    #[test]
    fn a_directory_that_is_still_to_be_made_lies_on_the_disk_of_its_parent() {
        assert!(free(Path::new("not/there/yet")).is_some());
        assert!(free(&std::env::temp_dir().join("not/there/yet")).is_some());
    }
}

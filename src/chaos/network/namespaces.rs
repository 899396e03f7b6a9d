//! A network namespace for each process, on a bridge that lies in a namespace, too: nothing of it shows on the machine's
//! own interfaces. A parent process makes and removes them and runs this same command inside. A link is cut by a
//! neighbour entry with an address that nobody has: packets leave, and nobody takes them.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::process::parent_id;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::Size;
use crate::chaos::schedule::{Link, Target};
use crate::client::{Exit, Failure, Output};

/// What the names of namespaces begin with; the process id of the run follows.
const PREFIX: &str = "cartwheel-chaos-";
/// The first bytes of all addresses.
const NET: &str = "10.91.0";
/// An Ethernet address that nobody has.
const NOBODY: &str = "02:00:00:00:00:01";
/// Where programs of the system are looked for.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How a link is made slow: late and lossy, or, where the kernel has no such queue, so narrow that packets wait and
/// get lost.
const LATE: &[&str] = &["netem", "delay", "80ms", "40ms", "loss", "3%"];
const NARROW: &[&str] = &["tbf", "rate", "400kbit", "burst", "3kb", "latency", "300ms"];
/// How often the parent looks at the process inside, and that at its parent.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const PARENT_EVERY: Duration = Duration::from_secs(1);

/// The namespaces of a run, as the process inside uses them.
#[derive(Debug)]
pub(crate) struct Namespaces {
    prefix: String,
    cuts: BTreeSet<Link>,
    slow: BTreeSet<Target>,
    /// Can a queue be late and lossy?
    netem: bool,
}

/// The last part of an address and of a name.
fn host(target: Target) -> (usize, String) {
    match target {
        Target::Clients => (1, "clients".to_owned()),
        Target::Bucket => (2, "bucket".to_owned()),
        Target::Node(at) => (10 + at, format!("node-{at}")),
        Target::Gateway(at) => (100 + at, format!("gateway-{at}")),
    }
}

fn ip_of(target: Target) -> String {
    format!("{NET}.{}", host(target).0)
}

fn name(prefix: &str, target: Target) -> String {
    format!("{prefix}-{}", host(target).1)
}

/// Runs a program of the system with these lines as its input.
fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", PATH);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let failed = |why: &dyn std::fmt::Display| format!("{program} {}: {why}", arguments.join(" "));
    let mut child = command.spawn().map_err(|e| failed(&e))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(|e| failed(&e))?;
    }
    let ended = child.wait_with_output().map_err(|e| failed(&e))?;
    if ended.status.success() {
        Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
    } else {
        Err(failed(&String::from_utf8_lossy(&ended.stderr).trim()))
    }
}

fn batch(input: &str) -> Result<(), String> {
    if input.is_empty() { Ok(()) } else { run("ip", &["-batch", "-"], input).map(drop) }
}

/// Commands for inside one namespace.
fn batch_in(namespace: &str, input: &str) -> Result<(), String> {
    run("ip", &["-n", namespace, "-batch", "-"], input).map(drop)
}

impl Namespaces {
    /// Those that the parent has made under this prefix.
    pub(crate) fn inside(prefix: &str) -> Self {
        let namespace = name(prefix, Target::Clients);
        let try_netem = ["-n", &namespace, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"];
        let netem = run("tc", &try_netem, "").is_ok();
        if netem {
            // It is in nobody's way if it stays.
            let _ = run("tc", &["-n", &namespace, "qdisc", "del", "dev", "lo", "root"], "");
        }
        Self { prefix: prefix.to_owned(), cuts: BTreeSet::new(), slow: BTreeSet::new(), netem }
    }

    pub(super) fn command(&self, target: Target) -> Vec<String> {
        ["ip", "netns", "exec"].map(str::to_owned).into_iter().chain([name(&self.prefix, target)]).collect()
    }

    pub(super) fn address(&self, target: Target) -> String {
        let port = match target {
            Target::Node(_) => 7101,
            Target::Gateway(_) => 8080,
            Target::Bucket => 9000,
            Target::Clients => 0,
        };
        format!("{}:{port}", ip_of(target))
    }

    /// On the loopback of the bucket's namespace.
    pub(super) fn s3_server(&self) -> String {
        "127.0.0.1:9001".to_owned()
    }

    pub(super) fn words(&self) -> String {
        let slow = if self.netem { "late and lossy" } else { "narrow" };
        format!("namespaces {}-*; slow links are {slow}", self.prefix)
    }

    pub(super) fn cut(&mut self, cuts: &BTreeSet<Link>) -> Result<(), Failure> {
        let senders: BTreeSet<Target> = cuts.symmetric_difference(&self.cuts).map(|link| link.from).collect();
        for from in senders {
            let of = |links: &BTreeSet<Link>| -> BTreeSet<Link> {
                links.iter().filter(|link| link.from == from).copied().collect()
            };
            let (now, before) = (of(cuts), of(&self.cuts));
            let closed = now.difference(&before).map(|link| {
                format!("neigh replace {} lladdr {NOBODY} nud permanent dev eth0\n", ip_of(link.to))
            });
            let opened =
                before.difference(&now).map(|link| format!("neigh del {} dev eth0\n", ip_of(link.to)));
            let lines: String = closed.chain(opened).collect();
            batch_in(&name(&self.prefix, from), &lines).map_err(Failure::failed)?;
        }
        self.cuts.clone_from(cuts);
        Ok(())
    }

    pub(super) fn slow(&mut self, slow: &BTreeSet<Target>) -> Result<(), Failure> {
        for target in slow.symmetric_difference(&self.slow) {
            let namespace = name(&self.prefix, *target);
            let hub = name(&self.prefix, Target::Clients);
            // What it sends, and what is sent to it.
            let port = host(*target).1;
            for (namespace, device) in [(namespace.as_str(), "eth0"), (hub.as_str(), port.as_str())] {
                let queue: &[&str] = match slow.contains(target) {
                    true if self.netem => LATE,
                    true => NARROW,
                    false => &[],
                };
                let verb = if queue.is_empty() { "del" } else { "replace" };
                let begin = ["-n", namespace, "qdisc", verb, "dev", device, "root"];
                run("tc", &[&begin[..], queue].concat(), "").map_err(Failure::failed)?;
            }
        }
        self.slow.clone_from(slow);
        Ok(())
    }

    /// Waits until the parent of this process is gone, and then removes the namespaces in its stead.
    pub(crate) async fn orphaned(prefix: &str) -> String {
        let parent = parent_id();
        while parent_id() == parent {
            tokio::time::sleep(PARENT_EVERY).await;
        }
        // What can't be removed now is when another run begins.
        let _ = remove(prefix);
        "the end of the process that had made the namespaces".to_owned()
    }
}

/// All namespaces that runs have made, with the process id of the run.
fn all() -> Result<Vec<(String, u32)>, String> {
    let listed = run("ip", &["netns", "list"], "")?;
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    let ours = names.filter_map(|name| {
        let pid = name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()?;
        Some((name.to_owned(), pid))
    });
    Ok(ours.collect())
}

/// Ends what still runs in the namespaces of one run, and removes them.
fn remove(prefix: &str) -> Result<(), String> {
    let names: Vec<String> = all()?.into_iter().map(|(name, _)| name).collect();
    let start = format!("{prefix}-");
    for name in names.iter().filter(|name| name.starts_with(&start)) {
        let own = std::process::id().to_string();
        let left = run("ip", &["netns", "pids", name], "")?;
        // Nobody else has any business in there.
        let left: Vec<&str> = left.split_whitespace().filter(|pid| *pid != own).collect();
        if !left.is_empty() {
            // Some may be gone by now.
            let _ = run("/bin/sh", &["-c", &format!("kill -9 {}", left.join(" "))], "");
        }
        run("ip", &["netns", "del", name], "")?;
    }
    Ok(())
}

/// The namespaces that this process has made. They are removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Made {
    prefix: String,
}

impl Made {
    /// Makes them; before that it removes those of runs that were killed.
    ///
    /// # Errors
    /// Why they can't be made here.
    pub(crate) fn make(size: Size) -> Result<Self, String> {
        for (name, pid) in all()? {
            if !std::path::Path::new(&format!("/proc/{pid}")).exists() {
                run("ip", &["netns", "del", &name], "")?;
            }
        }
        let made = Self { prefix: format!("{PREFIX}{}", std::process::id()) };
        let prefix = &made.prefix;
        let hub = name(prefix, Target::Clients);
        batch(
            &size.targets().map(|target| format!("netns add {}\n", name(prefix, target))).collect::<String>(),
        )?;
        batch_in(
            &hub,
            &format!(
                "link add eth0 type bridge\naddr add {}/24 dev eth0\nlink set eth0 up\nlink set lo up\n",
                ip_of(Target::Clients)
            ),
        )?;
        for target in size.targets().filter(|target| *target != Target::Clients) {
            let (namespace, port) = (name(prefix, target), host(target).1);
            batch(&format!("link add eth0 netns {namespace} type veth peer name {port} netns {hub}\n"))?;
            batch_in(&hub, &format!("link set {port} master eth0\nlink set {port} up\n"))?;
            let address = ip_of(target);
            batch_in(
                &namespace,
                &format!("addr add {address}/24 dev eth0\nlink set eth0 up\nlink set lo up\n"),
            )?;
        }
        Ok(made)
    }

    /// Runs this same command among them, to its end or until `told_to_end`.
    ///
    /// # Errors
    /// If it can't be started.
    pub(crate) async fn run(
        self,
        upstream: Option<String>,
        told_to_end: impl Future<Output = &'static str>,
        output: &mut Output,
    ) -> Result<Exit, Failure> {
        let failed = |e: std::io::Error| Failure::failed(format!("can't run in a namespace: {e}"));
        let hub = name(&self.prefix, Target::Clients);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &hub]).arg(std::env::current_exe().map_err(failed)?);
        command.args(std::env::args_os().skip(1)).args(["--inside", &self.prefix]);
        if let Some(upstream) = upstream {
            command.args(["--relay", &upstream]);
        }
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:{PATH}"));
        let mut child = command.spawn().map_err(failed)?;
        let mut told_to_end = std::pin::pin!(told_to_end);
        let mut told = false;
        let status = loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                signal = &mut told_to_end, if !told => {
                    told = true;
                    output.note(&format!("ended by {signal}"));
                    tell_to_end(&child);
                }
            }
            if let Some(status) = child.try_wait().map_err(failed)? {
                break status;
            }
        };
        remove(&self.prefix).map_err(Failure::failed)?;
        match status.code() {
            Some(0) => Ok(Exit::Done),
            Some(2) => Ok(Exit::Usage),
            _ => Ok(Exit::Failed),
        }
    }
}

fn tell_to_end(child: &Child) {
    // If it is gone, that is seen soon.
    let _ = run("/bin/sh", &["-c", &format!("kill -TERM {}", child.id())], "");
}

impl Drop for Made {
    fn drop(&mut self) {
        // After an orderly end nothing is left; after another this is the last that can be done.
        let _ = remove(&self.prefix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_process_has_an_address_and_a_name_of_its_own() {
        let size = Size { nodes: 26, gateways: 16 };
        let all: Vec<Target> = size.targets().collect();
        let addresses: BTreeSet<String> = all.iter().map(|target| ip_of(*target)).collect();
        let names: BTreeSet<String> = all.iter().map(|target| name("p", *target)).collect();
        assert_eq!((addresses.len(), names.len()), (all.len(), all.len()));
        // The name of a device has 15 characters at most.
        assert!(all.iter().all(|target| host(*target).1.len() < 16));
    }
}

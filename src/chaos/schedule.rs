//! Which fault comes when: worked out from the seed alone, so that a run can be repeated. Pure.

use std::time::Duration;

use clap::ValueEnum;

use super::dice::Dice;

/// From one fault to the next.
const GAP: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(8));
/// After a disk was wiped, and before the next one is.
const WIPE_GAP: Duration = Duration::from_secs(30);
/// How long the bucket and the node must have been up before that node's disk is wiped: what only this disk
/// held has then been flushed.
const WIPE_REST: Duration = Duration::from_secs(10);
/// How long all nodes must have been up by then: those started last have surely come back.
const WIPE_WHOLE: Duration = Duration::from_secs(4);
/// How long other faults may rest for the sake of a wipe.
const WIPE_WAIT: Duration = Duration::from_secs(15);
/// Storage nodes that are left running, except when all are killed at once.
const SPARED: usize = 2;
/// How long a process takes to serve after it was started, roughly.
const START: Duration = Duration::from_secs(1);

/// The kinds of faults that can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FaultKind {
    /// kill -9 of one or two storage nodes, rarely of all; started again later
    Kill,
    /// A storage node is stopped, and goes on later
    Pause,
    /// A storage node is killed, loses its disk, and is started again
    Wipe,
    /// Object storage is stopped, or killed and started again
    Bucket,
    /// A gateway is killed and started again
    Gateway,
}

/// A process that a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// A storage node, by its number.
    Node(usize),
    /// A gateway, by its number.
    Gateway(usize),
    /// The S3 server.
    Bucket,
}

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// SIGKILL, and a new start at the end.
    Kill,
    /// SIGSTOP, and SIGCONT at the end.
    Pause,
    /// SIGKILL, the data directory deleted, and a new start at the end.
    Wipe,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// When it begins, since the start of the load.
    pub(crate) at: Duration,
    /// Whom it hits.
    pub(crate) targets: Vec<Target>,
    /// What it does.
    pub(crate) how: How,
    /// How long it lasts.
    pub(crate) lasting: Duration,
}

impl Fault {
    /// The word that reports count it under.
    pub(crate) fn word(&self) -> &'static str {
        match (self.how, self.targets.as_slice()) {
            (How::Wipe, _) => "wipes",
            (_, [Target::Bucket]) => "bucket outages",
            (_, [Target::Gateway(_)]) => "gateway kills",
            (How::Pause, _) => "pauses",
            (How::Kill, [_] | [_, _]) => "kills",
            (How::Kill, _) => "blackouts",
        }
    }
}

/// Draws fault after fault, in the order of time, without end.
#[derive(Debug)]
pub(crate) struct Schedule {
    dice: Dice,
    kinds: Vec<FaultKind>,
    now: Duration,
    /// When each node, each gateway and the bucket is whole again.
    nodes: Vec<Duration>,
    gateways: Vec<Duration>,
    bucket: Duration,
    wiped: Option<Duration>,
}

impl Schedule {
    /// The faults of a seed, for a cluster of this size.
    pub(crate) fn new(seed: u64, nodes: usize, gateways: usize, kinds: &[FaultKind]) -> Self {
        Self {
            dice: Dice::new(seed, u64::MAX),
            kinds: kinds.to_vec(),
            now: Duration::ZERO,
            nodes: vec![Duration::ZERO; nodes],
            gateways: vec![Duration::ZERO; gateways],
            bucket: Duration::ZERO,
            wiped: None,
        }
    }

    fn seconds(&mut self, least: u64, most: u64) -> Duration {
        self.dice.between(Duration::from_secs(least), Duration::from_secs(most))
    }

    /// The nodes that are whole.
    fn whole(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node] <= self.now).collect()
    }

    /// So many of the nodes that are whole, if enough others are left.
    fn victims(&mut self, count: usize) -> Option<Vec<usize>> {
        let mut whole = self.whole();
        if whole.len() < count + SPARED {
            return None;
        }
        Some((0..count).map(|_| whole.swap_remove(self.dice.below(whole.len()))).collect())
    }

    /// The end of an outage of nodes that have to start again: not before the bucket is back, which they need.
    fn down_until(&self, lasting: Duration) -> Duration {
        (self.now + lasting).max(self.bucket) + START
    }

    fn draw(&mut self, kind: FaultKind) -> Option<Fault> {
        match kind {
            FaultKind::Kill if self.dice.one_in(12) => self.blackout(),
            FaultKind::Kill => {
                let count = 1 + usize::from(self.dice.one_in(3));
                let lasting = self.seconds(1, 15);
                self.hit_nodes(count, How::Kill, lasting)
            }
            FaultKind::Pause => {
                let lasting = self.seconds(1, 20);
                self.hit_nodes(1, How::Pause, lasting)
            }
            FaultKind::Wipe => self.wipe(),
            FaultKind::Bucket => self.outage(),
            FaultKind::Gateway => self.gateway(),
        }
    }

    fn hit_nodes(&mut self, count: usize, how: How, lasting: Duration) -> Option<Fault> {
        let victims = self.victims(count)?;
        let until = match how {
            How::Pause => self.now + lasting,
            How::Kill | How::Wipe => self.down_until(lasting),
        };
        for node in &victims {
            self.nodes[*node] = until;
        }
        let targets = victims.into_iter().map(Target::Node).collect();
        Some(Fault { at: self.now, targets, how, lasting })
    }

    fn blackout(&mut self) -> Option<Fault> {
        if self.whole().len() < self.nodes.len() {
            return None;
        }
        let lasting = self.seconds(3, 10);
        let until = self.down_until(lasting);
        self.nodes.fill(until);
        let targets = (0..self.nodes.len()).map(Target::Node).collect();
        Some(Fault { at: self.now, targets, how: How::Kill, lasting })
    }

    /// A wipe while nobody else is down, long after the last one, so that fewer than W copies are destroyed. Where
    /// that is not far off, nothing else happens until then.
    fn wipe(&mut self) -> Option<Fault> {
        let rested = |until: Duration| if until.is_zero() { until } else { until + WIPE_REST };
        let whole = self.nodes.iter().copied().max().unwrap_or_default() + WIPE_WHOLE;
        let again = self.wiped.map_or(Duration::ZERO, |at| at + WIPE_GAP);
        let least = self.nodes.iter().copied().map(rested).min().unwrap_or_default();
        let at = self.now.max(whole).max(again).max(least).max(rested(self.bucket));
        if at > self.now + WIPE_WAIT {
            return None;
        }
        self.now = at;
        let choices: Vec<usize> =
            (0..self.nodes.len()).filter(|node| rested(self.nodes[*node]) <= at).collect();
        let node = *self.dice.pick(&choices)?;
        let lasting = self.seconds(1, 5);
        self.nodes[node] = self.down_until(lasting);
        self.wiped = Some(at);
        Some(Fault { at, targets: vec![Target::Node(node)], how: How::Wipe, lasting })
    }

    fn outage(&mut self) -> Option<Fault> {
        if self.bucket > self.now {
            return None;
        }
        let lasting = self.seconds(2, 20);
        let how = if self.dice.one_in(2) { How::Kill } else { How::Pause };
        self.bucket = self.now + lasting;
        // Nodes that were to start meanwhile can't before it is back.
        for until in &mut self.nodes {
            if *until > self.now {
                *until = (*until).max(self.bucket + START);
            }
        }
        Some(Fault { at: self.now, targets: vec![Target::Bucket], how, lasting })
    }

    fn gateway(&mut self) -> Option<Fault> {
        let whole: Vec<usize> =
            (0..self.gateways.len()).filter(|gateway| self.gateways[*gateway] <= self.now).collect();
        // The last one goes only where there is one at all.
        if whole.len() < 2.min(self.gateways.len()) {
            return None;
        }
        let gateway = *self.dice.pick(&whole)?;
        let lasting = self.seconds(1, 10);
        self.gateways[gateway] = self.down_until(lasting);
        Some(Fault { at: self.now, targets: vec![Target::Gateway(gateway)], how: How::Kill, lasting })
    }

    /// How often a kind is drawn, relative to the others.
    fn weight(kind: FaultKind) -> usize {
        match kind {
            FaultKind::Kill => 36,
            FaultKind::Pause => 26,
            FaultKind::Wipe => 10,
            FaultKind::Bucket => 16,
            FaultKind::Gateway => 14,
        }
    }

    fn kind(&mut self) -> Option<FaultKind> {
        let all: usize = self.kinds.iter().map(|kind| Self::weight(*kind)).sum();
        let mut drawn = self.dice.below(all);
        for kind in &self.kinds {
            let weight = Self::weight(*kind);
            if drawn < weight {
                return Some(*kind);
            }
            drawn -= weight;
        }
        None
    }
}

impl Iterator for Schedule {
    type Item = Fault;

    fn next(&mut self) -> Option<Fault> {
        loop {
            self.now += self.dice.between(GAP.0, GAP.1);
            // Where this kind is not allowed now, another may be.
            for _ in 0..8 {
                let kind = self.kind()?;
                if let Some(fault) = self.draw(kind) {
                    return Some(fault);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn all() -> Vec<FaultKind> {
        FaultKind::value_variants().to_vec()
    }

    fn faults(seed: u64, nodes: usize) -> Vec<Fault> {
        Schedule::new(seed, nodes, 2, &all()).take(400).collect()
    }

    /// The nodes that a fault has not let go of at `at`, apart from that fault itself.
    fn down(faults: &[Fault], at: Duration) -> BTreeSet<usize> {
        let open = faults.iter().filter(|f| f.at < at && at < f.at + f.lasting);
        open.flat_map(|f| &f.targets)
            .filter_map(|t| if let Target::Node(node) = t { Some(*node) } else { None })
            .collect()
    }

    #[test]
    fn a_seed_gives_the_same_faults_again() {
        assert_eq!(faults(7, 5), faults(7, 5));
        assert_ne!(faults(7, 5), faults(8, 5));
    }

    #[test]
    fn every_kind_comes_and_in_time() {
        let faults = faults(7, 5);
        let words: BTreeSet<&str> = faults.iter().map(Fault::word).collect();
        assert_eq!(words.len(), 6, "{words:?}");
        for pair in faults.windows(2) {
            assert!(pair[0].at + GAP.0 <= pair[1].at, "{pair:?}");
        }
        for fault in &faults {
            let limits = match fault.word() {
                "pauses" => 1..=20,
                "bucket outages" => 2..=20,
                "blackouts" => 3..=10,
                _ => 1..=15,
            };
            assert!(limits.contains(&fault.lasting.as_secs()), "{fault:?}");
        }
        let only = Schedule::new(1, 5, 2, &[FaultKind::Gateway]);
        assert!(only.take(50).all(|fault| fault.word() == "gateway kills"));
    }

    #[test]
    fn two_nodes_are_spared_and_nobody_is_hit_twice() {
        for nodes in [3, 5] {
            let faults = faults(11, nodes);
            for fault in faults.iter().filter(|fault| fault.word() != "blackouts") {
                let down = down(&faults, fault.at);
                let hit: Vec<usize> =
                    (0..nodes).filter(|n| fault.targets.contains(&Target::Node(*n))).collect();
                assert!(hit.iter().all(|node| !down.contains(node)), "{fault:?}");
                assert!(hit.is_empty() || down.len() + hit.len() + SPARED <= nodes, "{fault:?} {down:?}");
            }
        }
    }

    #[test]
    fn a_wipe_destroys_one_copy_at_a_time() {
        let faults = faults(13, 5);
        let wipes: Vec<&Fault> = faults.iter().filter(|fault| fault.how == How::Wipe).collect();
        assert!(wipes.len() > 20, "{}", wipes.len());
        for pair in wipes.windows(2) {
            assert!(pair[0].at + WIPE_GAP <= pair[1].at);
        }
        for wipe in wipes {
            assert!(down(&faults, wipe.at).is_empty(), "{wipe:?}");
            let recent = faults.iter().filter(|f| f.at < wipe.at && wipe.at < f.at + f.lasting + WIPE_REST);
            for fault in recent {
                let same = wipe.targets.iter().any(|target| fault.targets.contains(target));
                assert!(!same && fault.targets != [Target::Bucket], "{wipe:?} after {fault:?}");
            }
        }
    }
}

//! Which fault comes when: worked out from the seed alone, so that a run can be repeated. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::ValueEnum;

use super::dice::Dice;
use super::network::Size;
use super::s3::Storm;

/// From one fault to the next.
const GAP: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(8));
/// After a disk was wiped, and before the next one is.
pub(crate) const WIPE_GAP: Duration = Duration::from_secs(30);
/// How long the bucket, every link and the node must have been well before that node's disk is wiped: what only this
/// disk held has then been flushed.
pub(crate) const WIPE_REST: Duration = Duration::from_secs(10);
/// How long all nodes must have been up by then: those started last have surely come back.
const WIPE_WHOLE: Duration = Duration::from_secs(4);
/// How long other faults may rest for the sake of a wipe.
const WIPE_WAIT: Duration = Duration::from_secs(25);
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
    /// Links between two processes are cut, one-way or both ways, or all of one storage node or gateway
    Cut,
    /// The cluster is split in halves that can't reach each other
    Split,
    /// All links of one process are slow and lose packets
    Slow,
    /// Object storage refuses, resets, loses answers, carries requests out late, answers slowly, half or not at all
    S3,
}

/// A process that a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// A storage node, by its number.
    Node(usize),
    /// A gateway, by its number.
    Gateway(usize),
    /// The S3 server.
    Bucket,
    /// Those who shop. Only their links are hit.
    Clients,
}

/// What one sends to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link {
    /// Who sends.
    pub(crate) from: Target,
    /// Who receives.
    pub(crate) to: Target,
}

/// Which links a cut takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// From one to another.
    OneWay,
    /// Between two.
    TwoWay,
    /// All of one.
    Isolation,
    /// Between two halves.
    Split,
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
    /// Links carry nothing until the end.
    Cut(Shape),
    /// All links are slow until the end.
    Slow,
    /// Requests go wrong until the end.
    Storm(Storm),
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
    /// The links of a cut.
    pub(crate) links: BTreeSet<Link>,
}

impl Fault {
    /// The word that reports count it under.
    pub(crate) fn word(&self) -> &'static str {
        match (self.how, self.targets.as_slice()) {
            (How::Wipe, _) => "wipes",
            (How::Cut(Shape::OneWay), _) => "one-way cuts",
            (How::Cut(Shape::TwoWay), _) => "cuts",
            (How::Cut(Shape::Isolation), _) => "isolations",
            (How::Cut(Shape::Split), _) => "splits",
            (How::Slow, _) => "slow links",
            (How::Storm(_), _) => "S3 storms",
            (_, [Target::Bucket]) => "bucket outages",
            (_, [Target::Gateway(_)]) => "gateway kills",
            (How::Pause, _) => "pauses",
            (How::Kill, [_] | [_, _]) => "kills",
            (How::Kill, _) => "blackouts",
        }
    }

    /// Its links where a storage node can only be cut off from all of its callers: a split takes the nodes of one half.
    pub(crate) fn coarse_links(&self) -> BTreeSet<Link> {
        if self.how != How::Cut(Shape::Split) {
            return self.links.clone();
        }
        let buckets = self.links.iter().filter(|l| l.from == Target::Bucket || l.to == Target::Bucket);
        let node = |target: &&Target| matches!(target, Target::Node(_));
        let nodes: Vec<Target> = self.targets.iter().filter(node).copied().collect();
        buckets.copied().chain(between(&nodes, &[Target::Clients])).collect()
    }

    fn new(at: Duration, targets: Vec<Target>, how: How, lasting: Duration) -> Self {
        Self { at, targets, how, lasting, links: BTreeSet::new() }
    }
}

/// All links between some and others, both ways.
fn between(some: &[Target], others: &[Target]) -> BTreeSet<Link> {
    let pairs = some.iter().flat_map(|one| others.iter().map(move |other| (*one, *other)));
    let pairs = pairs.filter(|(one, other)| one != other);
    pairs.flat_map(|(one, other)| [Link { from: one, to: other }, Link { from: other, to: one }]).collect()
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
    /// When all links, those of each gateway, and what object storage answers are well again.
    links: Duration,
    cut_gateways: Vec<Duration>,
    split: Duration,
    storm: Duration,
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
            links: Duration::ZERO,
            cut_gateways: vec![Duration::ZERO; gateways],
            split: Duration::ZERO,
            storm: Duration::ZERO,
            wiped: None,
        }
    }

    /// Of the cluster.
    pub(crate) fn size(&self) -> Size {
        Size { nodes: self.nodes.len(), gateways: self.gateways.len() }
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

    /// The end of an outage of nodes that have to start again: not before the bucket is back, which they need, and can be
    /// reached.
    fn down_until(&self, lasting: Duration) -> Duration {
        (self.now + lasting).max(self.bucket).max(self.links).max(self.storm) + START
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
            FaultKind::Cut => self.cut(),
            FaultKind::Split => self.split(),
            FaultKind::Slow => self.slow(),
            FaultKind::S3 => self.storm(),
        }
    }

    fn hit_nodes(&mut self, count: usize, how: How, lasting: Duration) -> Option<Fault> {
        let victims = self.victims(count)?;
        let until = match how {
            How::Kill | How::Wipe => self.down_until(lasting),
            How::Pause | How::Cut(_) | How::Slow | How::Storm(_) => self.now + lasting,
        };
        for node in &victims {
            self.nodes[*node] = until;
        }
        let targets = victims.into_iter().map(Target::Node).collect();
        Some(Fault::new(self.now, targets, how, lasting))
    }

    fn blackout(&mut self) -> Option<Fault> {
        if self.whole().len() < self.nodes.len() {
            return None;
        }
        let lasting = self.seconds(3, 10);
        let until = self.down_until(lasting);
        self.nodes.fill(until);
        let targets = (0..self.nodes.len()).map(Target::Node).collect();
        Some(Fault::new(self.now, targets, How::Kill, lasting))
    }

    /// A wipe while nobody else is down and every link is well, long after the last one, so that fewer than W copies are
    /// destroyed: a node that was cut off from the bucket holds alone what another lost in an earlier wipe. Where that is
    /// not far off, nothing else happens until then.
    fn wipe(&mut self) -> Option<Fault> {
        let rested = |until: Duration| if until.is_zero() { until } else { until + WIPE_REST };
        let whole = self.nodes.iter().copied().max().unwrap_or_default() + WIPE_WHOLE;
        let again = self.wiped.map_or(Duration::ZERO, |at| at + WIPE_GAP);
        let least = self.nodes.iter().copied().map(rested).min().unwrap_or_default();
        let outside = self.bucket.max(self.links).max(self.storm);
        let at = self.now.max(whole).max(again).max(least).max(rested(outside));
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
        Some(Fault::new(at, vec![Target::Node(node)], How::Wipe, lasting))
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
        Some(Fault::new(self.now, vec![Target::Bucket], how, lasting))
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
        Some(Fault::new(self.now, vec![Target::Gateway(gateway)], How::Kill, lasting))
    }

    /// Everything that has links worth a cut.
    fn parties(&self) -> Vec<Target> {
        let nodes = (0..self.nodes.len()).map(Target::Node);
        nodes.chain((0..self.gateways.len()).map(Target::Gateway)).chain([Target::Bucket]).collect()
    }

    fn cut(&mut self) -> Option<Fault> {
        let lasting = self.seconds(2, 20);
        let (shape, targets, links) = match self.dice.below(8) {
            0..3 => {
                let victim = self.victims(1)?.first().map(|node| Target::Node(*node))?;
                (Shape::Isolation, vec![victim], between(&[victim], &self.parties()))
            }
            3 => {
                // Another one is there for the clients.
                let well = |at: &usize| self.gateways[*at].max(self.cut_gateways[*at]) <= self.now;
                let well: Vec<usize> = (0..self.gateways.len()).filter(well).collect();
                if well.len() < 2.min(self.gateways.len()) {
                    return None;
                }
                let gateway = *self.dice.pick(&well)?;
                self.cut_gateways[gateway] = self.now + lasting;
                let everybody = [self.parties(), vec![Target::Clients]].concat();
                let victim = Target::Gateway(gateway);
                (Shape::Isolation, vec![victim], between(&[victim], &everybody))
            }
            drawn => {
                let mut parties = self.parties();
                let one = parties.swap_remove(self.dice.below(parties.len()));
                // Gateways have nothing to say to each other.
                parties.retain(|other| !matches!((one, other), (Target::Gateway(_), Target::Gateway(_))));
                let other = *self.dice.pick(&parties)?;
                match drawn {
                    4 | 5 => (Shape::OneWay, vec![one, other], [Link { from: one, to: other }].into()),
                    _ => (Shape::TwoWay, vec![one, other], between(&[one], &[other])),
                }
            }
        };
        self.links = self.links.max(self.now + lasting);
        Some(Fault { links, ..Fault::new(self.now, targets, How::Cut(shape), lasting) })
    }

    /// Two halves. The bucket is in one of them, or can be reached from both; clients reach all gateways.
    fn split(&mut self) -> Option<Fault> {
        if self.split > self.now {
            return None;
        }
        let lasting = self.seconds(3, 20);
        let mut rest = self.parties();
        if self.dice.one_in(3) {
            rest.retain(|party| *party != Target::Bucket);
        }
        let half = rest.len() / 2;
        let one: Vec<Target> = (0..half).map(|_| rest.swap_remove(self.dice.below(rest.len()))).collect();
        self.split = self.now + lasting;
        self.links = self.links.max(self.split);
        let links = between(&one, &rest);
        Some(Fault { links, ..Fault::new(self.now, one, How::Cut(Shape::Split), lasting) })
    }

    fn slow(&mut self) -> Option<Fault> {
        let lasting = self.seconds(3, 20);
        let victim = *self.dice.pick(&self.parties())?;
        self.links = self.links.max(self.now + lasting);
        Some(Fault::new(self.now, vec![victim], How::Slow, lasting))
    }

    fn storm(&mut self) -> Option<Fault> {
        if self.storm > self.now {
            return None;
        }
        let lasting = self.seconds(3, 20);
        let storm = *self.dice.pick(&Storm::ALL)?;
        self.storm = self.now + lasting;
        Some(Fault::new(self.now, vec![Target::Bucket], How::Storm(storm), lasting))
    }

    /// How often a kind is drawn, relative to the others.
    fn weight(kind: FaultKind) -> usize {
        match kind {
            FaultKind::Kill => 36,
            FaultKind::Pause => 26,
            FaultKind::Wipe => 10,
            FaultKind::Bucket => 16,
            FaultKind::Gateway => 14,
            FaultKind::Cut => 30,
            FaultKind::Split => 10,
            FaultKind::Slow => 10,
            FaultKind::S3 => 20,
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
    use super::*;

    fn all() -> Vec<FaultKind> {
        FaultKind::value_variants().to_vec()
    }

    fn faults(seed: u64, nodes: usize) -> Vec<Fault> {
        Schedule::new(seed, nodes, 2, &all()).take(400).collect()
    }

    /// The nodes that a fault has not let go of at `at`, apart from that fault itself.
    fn down(faults: &[Fault], at: Duration) -> BTreeSet<usize> {
        let processes = |f: &&Fault| matches!(f.how, How::Kill | How::Pause | How::Wipe);
        let open = faults.iter().filter(processes).filter(|f| f.at < at && at < f.at + f.lasting);
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
        assert_eq!(words.len(), 12, "{words:?}");
        for pair in faults.windows(2) {
            assert!(pair[0].at + GAP.0 <= pair[1].at, "{pair:?}");
        }
        for fault in &faults {
            let limits = match fault.word() {
                "pauses" | "cuts" | "one-way cuts" | "isolations" | "splits" | "slow links" | "S3 storms" => {
                    1..=20
                }
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
                if matches!(fault.how, How::Cut(Shape::OneWay | Shape::TwoWay | Shape::Split) | How::Slow) {
                    continue;
                }
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
            let ill = |fault: &&Fault| matches!(fault.how, How::Cut(_) | How::Slow | How::Storm(_));
            let ill =
                faults.iter().filter(ill).find(|f| f.at < wipe.at && wipe.at < f.at + f.lasting + WIPE_REST);
            assert_eq!(ill, None, "before {wipe:?}");
            let recent = faults.iter().filter(|f| f.at < wipe.at && wipe.at < f.at + f.lasting + WIPE_REST);
            for fault in recent {
                let same = wipe.targets.iter().any(|target| fault.targets.contains(target));
                assert!(!same && fault.targets != [Target::Bucket], "{wipe:?} after {fault:?}");
            }
        }
    }

    #[test]
    fn cuts_take_the_links_they_say() {
        let faults = faults(17, 5);
        let cuts = |shape| faults.iter().filter(move |fault| fault.how == How::Cut(shape));
        for fault in cuts(Shape::OneWay) {
            assert_eq!(fault.links, [Link { from: fault.targets[0], to: fault.targets[1] }].into());
        }
        for fault in cuts(Shape::TwoWay) {
            assert_eq!(fault.links, between(&fault.targets[..1], &fault.targets[1..]));
            assert_eq!(fault.links.len(), 2, "{fault:?}");
        }
        for fault in cuts(Shape::Isolation) {
            let others = if matches!(fault.targets[0], Target::Node(_)) { 7 } else { 8 };
            assert_eq!(fault.links.len(), 2 * others, "{fault:?}");
            assert!(
                fault
                    .links
                    .iter()
                    .all(|link| fault.targets.contains(&link.from) || fault.targets.contains(&link.to))
            );
        }
        for fault in cuts(Shape::Split) {
            assert!(
                fault.links.iter().all(|l| fault.targets.contains(&l.from) != fault.targets.contains(&l.to))
            );
            assert!(fault.targets.len() >= 3 && fault.links.len() >= 2 * 3 * 4, "{fault:?}");
        }
        for fault in cuts(Shape::Split) {
            let coarse = fault.coarse_links();
            let ends: BTreeSet<Target> = coarse.iter().flat_map(|link| [link.from, link.to]).collect();
            let nodes = ends.iter().filter(|end| matches!(end, Target::Node(_)));
            let to_bucket = |node: &Target| fault.links.contains(&Link { from: *node, to: Target::Bucket });
            assert!(nodes.clone().all(|node| fault.targets.contains(node) || to_bucket(node)), "{fault:?}");
        }
        let clients = faults.iter().filter(|f| f.links.iter().any(|l| l.from == Target::Clients));
        assert!(
            clients.clone().count() > 0
                && clients.clone().all(|f| matches!(f.targets[0], Target::Gateway(_)))
        );
    }
}

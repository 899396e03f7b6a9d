//! Which keys are this node's, under one version of the ring.

use cartwheel_cluster::membership::View;
use cartwheel_core::hash::KeyHash;
use cartwheel_core::names::NodeId;

/// A partition as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Range {
    /// It is a home.
    Home,
    /// It will be one when the pending change is complete.
    Coming,
    /// It will be one, and holds all that it will.
    Copied,
    /// Neither.
    Foreign,
}

/// The ring as this node sees it.
#[derive(Debug)]
pub(super) struct Ranges {
    pub(super) version: u64,
    by_partition: Vec<Range>,
}

impl Ranges {
    pub(super) fn of(view: &View, me: &NodeId) -> Self {
        let (now, next) = (view.current.index_of(me), view.next.index_of(me));
        let by_partition = (0..view.current.partitions())
            .map(|partition| {
                if now.is_some_and(|index| view.current.homes(partition).contains(&index)) {
                    Range::Home
                } else if next.is_some_and(|index| view.next.homes(partition).contains(&index)) {
                    if view.document.copied { Range::Copied } else { Range::Coming }
                } else {
                    Range::Foreign
                }
            })
            .collect();
        Self { version: view.version(), by_partition }
    }

    pub(super) fn range(&self, hash: KeyHash) -> Range {
        let partition = usize::try_from(hash.partition(self.partitions())).unwrap_or(0);
        self.by_partition.get(partition).copied().unwrap_or(Range::Foreign)
    }

    pub(super) fn of_partition(&self, partition: u32) -> Range {
        let partition = usize::try_from(partition).unwrap_or(usize::MAX);
        self.by_partition.get(partition).copied().unwrap_or(Range::Foreign)
    }

    /// How many partitions there are.
    pub(super) fn partitions(&self) -> u32 {
        u32::try_from(self.by_partition.len()).unwrap_or(1)
    }
}

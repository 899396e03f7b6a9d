//! Where every partition lives: computed once per document, then only looked up.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::assign::{Problem, assign};
use super::quota::{Node, Quotas, quotas};
use super::{MAX_REPLICAS, Member, MemberState, RingDocument};
use std::sync::Arc;

use crate::hash::KeyHash;
use crate::names::NodeId;

/// A position in [`Ring::members`].
pub type NodeIndex = u16;

/// A member that has a part in a placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingMember {
    /// Its name.
    pub id: NodeId,
    /// `host:port`.
    pub address: Arc<str>,
    /// Its failure zone.
    pub zone: String,
    /// Its weight.
    pub weight: u32,
    /// An operator has declared it dead for good: nobody waits for it.
    pub dead: bool,
}

impl RingMember {
    fn of(member: &Member) -> Self {
        Self {
            id: member.id.clone(),
            address: member.address.as_str().into(),
            zone: member.zone.clone(),
            weight: member.weight,
            dead: member.dead,
        }
    }
}

/// What one member holds, beside what would be fair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Slots held: partitions for which the member is a home.
    pub slots: u32,
    /// The fair number of slots, in thousandths.
    pub fair_milli: u64,
}

/// The homes of one key, first the one that should coordinate its writes. No allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreferenceList {
    nodes: [NodeIndex; MAX_REPLICAS as usize],
    len: usize,
    partition: u32,
}

impl PreferenceList {
    /// The homes, in order of preference.
    #[must_use]
    pub fn homes(&self) -> &[NodeIndex] {
        self.nodes.get(..self.len).unwrap_or_default()
    }

    /// The key's partition.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Whether `node` is one of the homes.
    #[must_use]
    pub fn is_home(&self, node: NodeIndex) -> bool {
        self.homes().contains(&node)
    }
}

/// One placement: the homes and the walk of every partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    members: Vec<RingMember>,
    partitions: u32,
    /// Homes per partition.
    homes: usize,
    /// `homes` entries for each partition, in walk order.
    owners: Vec<NodeIndex>,
    /// All members for each partition, in the order a clockwise walk meets them.
    walks: Vec<NodeIndex>,
    shares: Vec<Share>,
}

impl Ring {
    /// The placement that holds now: over active and leaving members.
    #[must_use]
    pub fn current(doc: &RingDocument) -> Self {
        Self::over(doc, |m| (m.state != MemberState::Joining).then(|| RingMember::of(m)))
    }

    /// The placement that will hold once the pending change is done: over active and joining members, as they will
    /// be then.
    #[must_use]
    pub fn next(doc: &RingDocument) -> Self {
        Self::over(doc, |m| m.settled().map(|m| RingMember::of(&m)))
    }

    fn over(doc: &RingDocument, takes_part: impl Fn(&Member) -> Option<RingMember>) -> Self {
        let members: Vec<RingMember> = doc.members.iter().filter_map(takes_part).collect();
        let mut zone_names: Vec<&str> = members.iter().map(|m| m.zone.as_str()).collect();
        zone_names.sort_unstable();
        zone_names.dedup();
        let nodes: Vec<Node> = members
            .iter()
            .map(|m| Node {
                weight: m.weight,
                zone: zone_names.binary_search(&m.zone.as_str()).unwrap_or_default(),
            })
            .collect();
        let quotas = quotas(&nodes, zone_names.len(), doc.partitions, doc.replicas as usize);
        let walks = walks(&members, doc);
        let owners = assign(&Problem {
            nodes: &nodes,
            zones: zone_names.len(),
            walks: &walks,
            partitions: doc.partitions as usize,
            quotas: &quotas,
            order: &(0..doc.partitions).map(|p| order(doc.hash_seed, p)).collect::<Vec<_>>(),
        });
        let shares = shares(&owners, &quotas);
        Self { members, partitions: doc.partitions, homes: quotas.homes, owners, walks, shares }
    }

    /// Q.
    #[must_use]
    pub fn partitions(&self) -> u32 {
        self.partitions
    }

    /// Homes per partition: N, or the number of members where there are fewer.
    #[must_use]
    pub fn replicas(&self) -> usize {
        self.homes
    }

    /// The members that take part, sorted by id.
    #[must_use]
    pub fn members(&self) -> &[RingMember] {
        &self.members
    }

    /// One member; `None` for an index of another ring.
    #[must_use]
    pub fn member(&self, node: NodeIndex) -> Option<&RingMember> {
        self.members.get(usize::from(node))
    }

    /// The index of a member that takes part.
    #[must_use]
    pub fn index_of(&self, id: &NodeId) -> Option<NodeIndex> {
        let index = self.members.binary_search_by(|m| m.id.cmp(id)).ok()?;
        NodeIndex::try_from(index).ok()
    }

    /// The homes of a partition: distinct nodes in walk order. Empty beyond the last partition.
    #[must_use]
    pub fn homes(&self, partition: u32) -> &[NodeIndex] {
        let start = partition as usize * self.homes;
        self.owners.get(start..start + self.homes).unwrap_or_default()
    }

    /// All members in the order in which a clockwise walk from the partition's position meets them. Empty
    /// beyond the last partition.
    #[must_use]
    pub fn walk(&self, partition: u32) -> &[NodeIndex] {
        let start = partition as usize * self.members.len();
        self.walks.get(start..start + self.members.len()).unwrap_or_default()
    }

    /// The homes of a key: its partition's, rotated by the key's second hash.
    #[must_use]
    pub fn preference_list(&self, hash: KeyHash) -> PreferenceList {
        let partition = hash.partition(self.partitions);
        let homes = self.homes(partition);
        let (tail, head) = homes.split_at(hash.rotation(homes.len()));
        let mut list = PreferenceList { nodes: [0; MAX_REPLICAS as usize], len: homes.len(), partition };
        for (slot, node) in list.nodes.iter_mut().zip(head.iter().chain(tail)) {
            *slot = *node;
        }
        list
    }

    /// Who stands in for a key's homes: every other member, in walk order.
    #[must_use]
    pub fn fallbacks(&self, hash: KeyHash) -> Vec<NodeIndex> {
        let partition = hash.partition(self.partitions);
        let homes = self.homes(partition);
        self.walk(partition).iter().copied().filter(|node| !homes.contains(node)).collect()
    }

    /// The partitions for which a member is a home, ascending; none for a stranger.
    #[must_use]
    pub fn partitions_of(&self, id: &NodeId) -> Vec<u32> {
        let Some(node) = self.index_of(id) else { return Vec::new() };
        (0..self.partitions).filter(|p| self.homes(*p).contains(&node)).collect()
    }

    /// What each member holds, in the order of [`Self::members`].
    #[must_use]
    pub fn shares(&self) -> &[Share] {
        &self.shares
    }

    /// How even the load is, in thousandths: the fair number of slots over the held one, of the fullest
    /// member. 1000 is perfect; it is what part of the cluster can be used before one member is full. 1000
    /// for an empty ring.
    #[must_use]
    pub fn efficiency_permille(&self) -> u32 {
        let holding = self.shares.iter().filter(|s| s.slots > 0);
        let rounded = holding.map(|s| (s.fair_milli + u64::from(s.slots) / 2) / u64::from(s.slots));
        u32::try_from(rounded.min().unwrap_or(1000).min(1000)).unwrap_or(1000)
    }
}

fn shares(owners: &[NodeIndex], quotas: &Quotas) -> Vec<Share> {
    let mut shares: Vec<Share> = quotas
        .fair
        .iter()
        .map(|fair| Share { slots: 0, fair_milli: ((fair * 1000) + (1 << 31)) >> 32 })
        .collect();
    for node in owners {
        if let Some(share) = shares.get_mut(usize::from(*node)) {
            share.slots += 1;
        }
    }
    shares
}

/// The position of a member's token on the circle.
fn token(seed: u64, id: &NodeId, number: u32) -> u64 {
    let mut input = Vec::with_capacity(id.as_str().len() + 5);
    input.extend_from_slice(id.as_str().as_bytes());
    // Ids have no NUL, so no two (id, number) pairs feed the same bytes.
    input.push(0);
    input.extend_from_slice(&number.to_be_bytes());
    xxh3_64_with_seed(&input, seed)
}

/// The partition's place in the order that decides between partitions a node could equally keep.
fn order(seed: u64, partition: u32) -> u64 {
    xxh3_64_with_seed(&partition.to_be_bytes(), seed)
}

/// For each partition, all members in the order of their first token at or after its position.
///
/// One sweep against the clock keeps the next token of each member, so the cost does not grow with how far
/// a light member's tokens are apart.
fn walks(members: &[RingMember], doc: &RingDocument) -> Vec<NodeIndex> {
    let mut tokens: Vec<(u64, NodeIndex)> = Vec::new();
    for (node, member) in (0..).zip(members) {
        tokens.extend((0..doc.tokens * member.weight).map(|i| (token(doc.hash_seed, &member.id, i), node)));
    }
    tokens.sort_unstable();
    // Beyond the last token the walk goes on at the first: the same tokens, one turn later.
    let mut next = vec![usize::MAX; members.len()];
    for (place, (_, node)) in tokens.iter().enumerate().rev() {
        if let Some(next) = next.get_mut(usize::from(*node)) {
            *next = tokens.len() + place;
        }
    }
    let width = members.len();
    let mut walks: Vec<NodeIndex> = Vec::with_capacity(doc.partitions as usize * width);
    let mut unseen = tokens.len();
    let bits = doc.partitions.trailing_zeros();
    // Rows are made last partition first, each in reverse, and the whole is turned around at the end.
    for partition in (0..doc.partitions).rev() {
        let position = if bits == 0 { 0 } else { u64::from(partition) << (64 - bits) };
        while let Some((at, node)) = unseen.checked_sub(1).and_then(|last| tokens.get(last))
            && *at >= position
        {
            unseen -= 1;
            if let Some(next) = next.get_mut(usize::from(*node)) {
                *next = unseen;
            }
        }
        let mut row: Vec<(usize, NodeIndex)> = next.iter().copied().zip(0..).collect();
        row.sort_unstable();
        walks.extend(row.iter().rev().map(|(_, node)| *node));
    }
    walks.reverse();
    walks
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::Change;
    use super::*;

    #[test]
    fn a_walk_meets_members_as_their_tokens_lie_clockwise() {
        let members = [("a", 1), ("b", 3), ("c", 1), ("d", 2), ("e", 1)].map(|(id, weight)| Member {
            id: NodeId::new(id).unwrap(),
            address: "h:1".to_owned(),
            zone: "z".to_owned(),
            weight,
            state: MemberState::Active,
            becomes: None,
            dead: false,
        });
        let change = Change { at_ms: 0, by: "t".to_owned(), what: "t".to_owned() };
        let doc = RingDocument::found("c".to_owned(), 5, 32, 3, 2, members.to_vec(), change, "n".to_owned());
        let doc = doc.unwrap();
        let ring = Ring::current(&doc);
        for partition in 0..32_u32 {
            let position = u64::from(partition) << 59;
            // The distance from the position to each member's nearest token, going round.
            let mut nearest: Vec<(u64, NodeIndex)> = (0..)
                .zip(&doc.members)
                .map(|(node, m)| {
                    let tokens = (0..doc.tokens * m.weight).map(|i| token(doc.hash_seed, &m.id, i));
                    (tokens.map(|at| at.wrapping_sub(position)).min().unwrap(), node)
                })
                .collect();
            nearest.sort_unstable();
            let expected: Vec<NodeIndex> = nearest.iter().map(|(_, node)| *node).collect();
            assert_eq!(ring.walk(partition), expected, "partition {partition}");
        }
    }
}

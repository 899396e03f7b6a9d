//! Rules of the protocol that can be switched off by name, one per process, to see that tests notice.
//!
//! Without the feature `mutations` nothing can be switched off: [`removed`] is `false` at compile time, and every
//! switch disappears. The simulation is the only one that turns the feature on, and never in what people run.

macro_rules! rules {
    ($($rule:ident, $name:literal, $says:literal;)+) => {
        /// A rule that can be switched off.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Rule {
            $(#[doc = $says] $rule,)+
        }

        impl Rule {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$rule,)+];

            /// What it is called on a command line.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$rule => $name,)+ }
            }

            /// What it says, in one line.
            #[must_use]
            pub fn says(self) -> &'static str {
                match self { $(Self::$rule => $says,)+ }
            }
        }
    };
}

rules! {
    AnswerAtW, "answer-at-w", "a write is answered once W have it, not one fewer";
    CountAsAsked, "count-as-asked", "only who holds a write as durably as asked counts for W";
    ConfirmMint, "confirm-mint", "the node that minted counts once it says that the version is as durable as asked";
    AskR, "ask-r", "a read is answered once R have answered, not one fewer";
    HomeInQuorum, "home-in-quorum", "nodes that stand in are no read quorum without a home";
    RetryMintThere, "retry-mint-there", "a mint of unknown fate is repeated at the same node first";
    KnowRequests, "know-requests", "a node knows the requests that it has minted, and mints none twice";
    ReplaceSeenOnly, "replace-seen-only", "a write replaces what its client has seen, and nothing else";
    SyncKeepsUnheard, "sync-keeps-unheard", "a merge keeps the siblings that the other side has never heard of";
    VerifyClock, "verify-clock", "a clock that the cluster has not signed for the key is refused";
    NewEpoch, "new-epoch", "a process that did not end cleanly mints under a new epoch";
    EpochOfHints, "epoch-of-hints", "a node that has let go of hints mints for others under a new epoch";
    DiskBeforeAnswer, "disk-before-answer", "a write is durable on a disk when the disk says so";
    BucketBeforeAnswer, "bucket-before-answer", "a write is durable in the bucket when the bucket says so";
    KeepLog, "keep-log", "the log is deleted only when what it holds is in the bucket";
    ReplayLog, "replay-log", "a process that starts reads the log of the one before";
    LeaveHints, "leave-hints", "a node that stands in for a home keeps a hint";
    KeepHints, "keep-hints", "hints are let go of once the home has them, not before";
    TellAll, "tell-all", "a home that comes back takes hints only when every live node knows that it is back";
    PullHints, "pull-hints", "a home that comes back takes what others kept for it in memory";
    PullHintObjects, "pull-hint-objects", "a home that comes back takes what was kept for it in the bucket";
    DeleteHintsLater, "delete-hints-later", "hint objects are deleted once what they held is durable at the home";
    AskToLook, "ask-to-look", "a gateway that starts asks homes to look for what one before it left in the bucket";
    CountingOnly, "counting-only", "a home that was away does not vote until it has caught up";
    NoticePauses, "notice-pauses", "a process that did not run for a while catches up before it votes";
    AskBackLostDisk, "ask-back-lost-disk", "a home that lost its disk asks the others for what it may have lost";
    TombstoneProof, "tombstone-proof", "a deletion is forgotten only when every home holds it and nobody keeps anything older";
    AskGraves, "ask-graves", "what comes for an unknown key meets the deletion that was forgotten";
    LookAgain, "look-again", "what is dropped is deleted only after a while, by the newest manifest";
    HeedPins, "heed-pins", "what another node has pinned is not deleted";
    Fence, "fence", "a process that was replaced writes no manifest, and stops";
    WriteBothRings, "write-both-rings", "while the ring changes, a write must be held by the homes of both rings";
    CopyBeforeReady, "copy-before-ready", "a new home says that it is ready once it holds its ranges";
    RefuseStaleRing, "refuse-stale-ring", "a node refuses writes under an older ring than it has said to know";
    LearnRing, "learn-ring", "who hears of a newer ring that the bucket does not show has a node show it";
}

#[cfg(feature = "mutations")]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Rule;

    /// 255: none.
    static REMOVED: AtomicU8 = AtomicU8::new(u8::MAX);

    /// Switches a rule off for the rest of the process.
    pub fn remove(rule: Rule) {
        REMOVED.store(rule as u8, Ordering::Relaxed);
    }

    /// Is the rule switched off?
    #[must_use]
    pub fn removed(rule: Rule) -> bool {
        REMOVED.load(Ordering::Relaxed) == rule as u8
    }
}

#[cfg(feature = "mutations")]
pub use switch::{remove, removed};

/// Is the rule switched off? Never: this was built without the feature `mutations`.
#[cfg(not(feature = "mutations"))]
#[must_use]
pub const fn removed(_: Rule) -> bool {
    false
}

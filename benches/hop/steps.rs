//! What is measured, in order, and what each is compared with.

use std::fmt;

/// A server under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    /// A handler that answers 1 KiB.
    Hello,
    /// A gateway and three backends without storage.
    FanOut,
    /// A cluster that does not flush while it is measured.
    Cluster,
    /// A cluster that flushes as usual: object storage has its share in the figures.
    Flushing,
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hello => "hello",
            Self::FanOut => "fan-out",
            Self::Cluster => "cartwheel",
            Self::Flushing => "cartwheel, flushing",
        })
    }
}

/// What the load does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Reads.
    Get,
    /// Writes of a durability.
    Put(&'static str),
}

/// What a step's CPU time is to be at most: a multiple of another step's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Aim {
    /// The other step's place in [`STEPS`].
    pub(crate) of: usize,
    /// The multiple.
    pub(crate) times: f64,
}

/// One measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) system: System,
    pub(crate) name: &'static str,
    pub(crate) operation: Operation,
    /// Is everything written once before, and read as written?
    pub(crate) prefill: bool,
    /// Are the values to be in the bucket and out of the memtables before the measurement?
    pub(crate) flushed: bool,
    pub(crate) aim: Option<Aim>,
}

const FANOUT_GET: usize = 1;
const FANOUT_PUT: usize = 2;
const GET: Option<Aim> = Some(Aim { of: FANOUT_GET, times: 1.5 });
const PUT_MEMORY: Option<Aim> = Some(Aim { of: FANOUT_PUT, times: 2.0 });
const PUT_DISK: Option<Aim> = Some(Aim { of: FANOUT_PUT, times: 2.5 });

/// The steps of a round.
pub(crate) const STEPS: [Step; 9] = [
    bare(System::Hello, "GET", Operation::Get),
    bare(System::FanOut, "GET", Operation::Get),
    bare(System::FanOut, "PUT", Operation::Put("memory")),
    whole(System::Cluster, "GET r=2", Operation::Get, GET),
    whole(System::Cluster, "PUT w=2 memory", Operation::Put("memory"), PUT_MEMORY),
    whole(System::Cluster, "PUT w=2 disk", Operation::Put("disk"), PUT_DISK),
    Step { flushed: true, ..whole(System::Flushing, "GET r=2", Operation::Get, GET) },
    whole(System::Flushing, "PUT w=2 memory", Operation::Put("memory"), PUT_MEMORY),
    whole(System::Flushing, "PUT w=2 disk", Operation::Put("disk"), PUT_DISK),
];

const fn bare(system: System, name: &'static str, operation: Operation) -> Step {
    Step { system, name, operation, prefill: false, flushed: false, aim: None }
}

const fn whole(system: System, name: &'static str, operation: Operation, aim: Option<Aim>) -> Step {
    Step { system, name, operation, prefill: true, flushed: false, aim }
}

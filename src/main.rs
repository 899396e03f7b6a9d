//! The `cartwheel` binary: parses the command line and runs one command.

use std::process::ExitCode;

/// Values, records and frames are allocated on one thread and freed on another; the system's allocator spends a
/// tenth of a write's time on that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cartwheel::cli::main()
}

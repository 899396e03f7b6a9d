//! The `cartwheel` binary: parses the command line and runs one command.

use std::process::ExitCode;

fn main() -> ExitCode {
    cartwheel::cli::main()
}

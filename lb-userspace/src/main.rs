//! The binary `ebb`: daemon and command line in one. All of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_userspace::cli::main()
}

//! The binary: hands its arguments to the command line and its exit code to the shell.

use std::process::ExitCode;

/// Pages and details are many small texts: this allocator halves their cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    lianbo::cli::main()
}

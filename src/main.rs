//! The binary: hands its arguments to the command line and its exit code to the shell.

use std::process::ExitCode;

/// Pages and details are many small texts: this allocator halves their cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    keep_pages_small();
    lianbo::cli::main()
}

/// The allocator asks for huge pages, and the system clears each whole before its first use: a third of the memory and a
/// tenth of the processor time of a sync, for pages of which little is ever used.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a setting of this process that only the system call changes")]
fn keep_pages_small() {
    // SAFETY: takes numbers alone. A system that knows no such setting says so, and everything is as before.
    unsafe {
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
    }
}

#[cfg(not(target_os = "linux"))]
fn keep_pages_small() {}

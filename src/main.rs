//! The binary: hands its arguments to the command line and its exit code to the shell.

use std::process::ExitCode;

/// Pages and details are many small texts: this allocator halves their cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    keep_pages_small();
    give_back_soon();
    lianbo::memory::given_back_by(give_back_now);
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

/// The allocator keeps what was given back for a second before the system has it again: on a long sync that is half as much
/// as all that is in use, and keeping it for 10 ms costs no time.
#[expect(unsafe_code, reason = "the allocator's settings are functions of C")]
fn give_back_soon() {
    /// `mi_option_purge_delay`, in milliseconds; how mimalloc numbers it is no promise, so that its value is looked at first.
    const PURGE_DELAY: libc::c_int = 15;
    const AS_DELIVERED: libc::c_long = 1_000;
    unsafe extern "C" {
        fn mi_option_get(option: libc::c_int) -> libc::c_long;
        fn mi_option_set(option: libc::c_int, value: libc::c_long);
    }
    // SAFETY: both take numbers alone and may be called at any time.
    unsafe {
        if mi_option_get(PURGE_DELAY) == AS_DELIVERED {
            mi_option_set(PURGE_DELAY, 10);
        }
    }
}

#[expect(unsafe_code, reason = "as above")]
fn give_back_now() {
    unsafe extern "C" {
        fn mi_collect(force: bool);
    }
    // SAFETY: takes a flag and may be called at any time, by any thread.
    unsafe { mi_collect(true) };
}

//! Memory that the allocator keeps for later.
#![allow(unsafe_code, reason = "asks the allocator of the system")]

/// Gives what was freed back to the system. Worth its milliseconds after a model has gone: its vocabulary, its tables and what its steps worked
/// in would else stay with the process, which may use no more than it was given.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it concerns memory that nobody holds, and takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

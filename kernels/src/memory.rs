//! Memory for weights and for keys and values, and what of it is kept for later.
//!
//! A model that goes makes room for another most of the time. Its weights' memory is kept for that one (`arena`), because a page that is new
//! to the process has to be cleared by the system, and on a virtual machine to be fetched from the host, which takes longer than to pack weights
//! into it. [`give_back`] ends that.
#![allow(unsafe_code, reason = "asks the system for memory")]

mod arena;
mod mapping;

pub(crate) use arena::Buffer;
pub(crate) use mapping::{Mapping, Pages};

/// Gives whatever was freed back to the system. Worth its milliseconds once another model is there in place of one that has gone, or none is to
/// come: its weights, its vocabulary, its tables and what its steps worked in would else stay with the process, which may use no more than it was given.
pub fn give_back() {
    arena::give_back();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it concerns memory that nobody holds, and takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

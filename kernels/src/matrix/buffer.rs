//! Memory for a matrix: zeroed, on a cache line's boundary, in huge pages where the system has them (a product reads every page once, and
//! the small ones cost a table walk each).
#![allow(unsafe_code, reason = "asks the system for memory")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// From this size on, memory is mapped for itself and huge pages are asked for.
#[cfg(unix)]
const HUGE: usize = 2 << 20;
const ALIGN: usize = 64;

#[derive(Debug)]
pub(super) struct Buffer {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory, as a `Box<[u8]>` does.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared use only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zeros, or `None` if the system has no memory.
    pub(super) fn zeroed(len: usize) -> Option<Self> {
        if len == 0 {
            return Some(Self { start: NonNull::<Line>::dangling().cast(), len });
        }
        #[cfg(unix)]
        if len >= HUGE {
            return Self::mapped(len);
        }
        let layout = Layout::from_size_align(len, ALIGN).ok()?;
        // SAFETY: the layout is not empty.
        NonNull::new(unsafe { alloc_zeroed(layout) }).map(|start| Self { start, len })
    }

    /// Anonymous memory that begins on a huge page's boundary.
    #[cfg(unix)]
    fn mapped(len: usize) -> Option<Self> {
        let whole = len.checked_next_multiple_of(1 << 16)?;
        let spare = whole.checked_add(HUGE)?;
        // SAFETY: a new private mapping that replaces none.
        let raw = unsafe {
            libc::mmap(std::ptr::null_mut(), spare, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if raw == libc::MAP_FAILED {
            return None;
        }
        let before = raw.cast::<u8>().align_offset(HUGE).min(HUGE);
        let start = raw.cast::<u8>().wrapping_add(before);
        // SAFETY: both ranges are parts of the mapping just made (whole pages: the start and `HUGE` are multiples of a page, and so is
        // `whole`), and nobody uses them.
        unsafe {
            if before > 0 {
                libc::munmap(raw, before);
            }
            if before < HUGE {
                libc::munmap(start.add(whole).cast(), HUGE - before);
            }
            #[cfg(target_os = "linux")]
            libc::madvise(start.cast(), whole, libc::MADV_HUGEPAGE); // advice: where it is not taken, small pages do
        }
        NonNull::new(start).map(|start| Self { start, len })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes that we own and that were zeroed at first.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

/// Only its alignment matters.
#[repr(align(64))]
struct Line;

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        #[cfg(unix)]
        if self.len >= HUGE {
            // SAFETY: the mapping that `mapped` left, whole.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.len.next_multiple_of(1 << 16)) };
            return;
        }
        // SAFETY: allocated in `zeroed` with this very layout.
        unsafe { dealloc(self.start.as_ptr(), Layout::from_size_align_unchecked(self.len, ALIGN)) };
    }
}

//! Memory of the system's, in whole pages.
#![allow(unsafe_code, reason = "asks the system for memory")]

#[cfg(not(unix))]
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Range;
use std::ptr::NonNull;
#[cfg(unix)]
use std::sync::OnceLock;

/// A huge page of x86-64, and of most aarch64 systems.
const HUGE: usize = 2 << 20;
/// Whole pages of every system.
const PAGES: usize = 1 << 16;

/// Pages that a mapping is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    /// As large as the system has them: for what is read from end to end, since each page costs a table walk, a long one on virtual machines.
    Huge,
    /// Small ones: for what may never be used for the most part, since what is not touched takes no memory.
    Small,
}

/// Memory of its own, zeros at first, which begins on a huge page's boundary.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory; whoever uses a part of it says why nobody else does.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// At least `len` zeros, `len` being more than 0; `None` if the system has no memory.
    #[cfg(unix)]
    pub(crate) fn new(len: usize, pages: Pages) -> Option<Self> {
        let len = len.checked_next_multiple_of(PAGES)?;
        let align = if pages == Pages::Huge { HUGE } else { PAGES };
        let spare = len.checked_add(align)?;
        // SAFETY: a new private mapping that replaces none.
        let raw = unsafe {
            libc::mmap(std::ptr::null_mut(), spare, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if raw == libc::MAP_FAILED {
            return None;
        }
        let before = raw.cast::<u8>().align_offset(align).min(align);
        let start = raw.cast::<u8>().wrapping_add(before);
        // SAFETY: both ranges are parts of the mapping just made (whole pages: the start, `align` and `len` are multiples of one), and
        // nobody uses them.
        unsafe {
            if before > 0 {
                libc::munmap(raw, before);
            }
            if before < align {
                libc::munmap(start.add(len).cast(), align - before);
            }
            #[cfg(target_os = "linux")]
            match pages {
                Pages::Huge => libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE), // advice: where it is not taken, small pages do
                Pages::Small => libc::madvise(start.cast(), len, libc::MADV_NOHUGEPAGE),
            };
        }
        NonNull::new(start).map(|start| Self { start, len })
    }

    /// At least `len` zeros, `len` being more than 0; `None` if the system has no memory.
    #[cfg(not(unix))]
    pub(crate) fn new(len: usize, _pages: Pages) -> Option<Self> {
        let layout = Layout::from_size_align(len, HUGE).ok()?;
        // SAFETY: the layout is not empty.
        NonNull::new(unsafe { alloc_zeroed(layout) }).map(|start| Self { start, len })
    }

    /// Where it begins.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Gives the whole pages within a part back to the system; they are zeros when they are used again.
    ///
    /// # Safety
    /// Nobody uses that part meanwhile, nor expects to find in it what was there.
    pub(crate) unsafe fn give_back(&self, part: Range<usize>) {
        debug_assert!(part.end <= self.len, "a part lies within the whole");
        #[cfg(unix)]
        {
            let start = self.start.as_ptr().wrapping_add(part.start);
            let before = start.align_offset(page()).min(part.len());
            let len = (part.len() - before) / page() * page();
            if len > 0 {
                // SAFETY: whole pages within the mapping; that nobody uses them is the caller's promise.
                unsafe { libc::madvise(start.add(before).cast(), len, libc::MADV_DONTNEED) };
            }
        }
    }
}

/// Bytes of a page of this system.
#[cfg(unix)]
fn page() -> usize {
    static PAGE: OnceLock<usize> = OnceLock::new();
    // SAFETY: it only asks.
    *PAGE.get_or_init(|| usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(PAGES))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        #[cfg(unix)]
        // SAFETY: the mapping that `new` left, whole; whoever used it is gone.
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.len);
        }
        #[cfg(not(unix))]
        // SAFETY: allocated in `new` with this very layout.
        unsafe {
            dealloc(self.start.as_ptr(), Layout::from_size_align_unchecked(self.len, HUGE));
        }
    }
}

//! Memory for matrices: zeroed, on a cache line's boundary, in huge pages where the system has them (a product reads every page once, and
//! the small ones cost a table walk each, a long one on virtual machines). Matrices share mappings, because many are smaller than a huge
//! page.
#![allow(unsafe_code, reason = "asks the system for memory")]

#[cfg(not(unix))]
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
#[cfg(unix)]
use std::sync::OnceLock;
use std::sync::{Arc, Mutex, PoisonError};

/// A huge page of x86-64, and of most aarch64 systems.
const HUGE: usize = 2 << 20;
/// Bytes of a mapping that matrices share. What is not used of it never becomes resident, but for the rest of a huge page at its end: so mappings
/// are large. They are smaller where memory is taken when it is asked for, and in tests.
const SHARED: usize = if cfg!(all(unix, not(test))) { 256 << 20 } else { 32 << 20 };
/// Whole pages of every system.
const PAGES: usize = 1 << 16;
const ALIGN: usize = 64;

#[derive(Debug)]
pub(super) struct Buffer {
    start: NonNull<u8>,
    len: usize,
    /// What the memory belongs to; absent where there is none.
    owner: Option<Arc<Mapping>>,
}

// SAFETY: it has its part of the memory for itself, as a `Box<[u8]>` does, and keeps it alive.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared use only reads.
unsafe impl Sync for Buffer {}

/// The mapping that is being handed out, and how much of it is.
static OPEN: Mutex<Option<(Arc<Mapping>, usize)>> = Mutex::new(None);

impl Buffer {
    /// `len` zeros, or `None` if the system has no memory.
    pub(super) fn zeroed(len: usize) -> Option<Self> {
        if len == 0 {
            return Some(Self { start: NonNull::<Line>::dangling().cast(), len, owner: None });
        }
        let room = len.checked_next_multiple_of(ALIGN)?;
        if room > SHARED / 2 {
            let owner = Arc::new(Mapping::new(room)?);
            return Some(Self { start: owner.start, len, owner: Some(owner) });
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let (owner, used) = match open.take() {
            // If nobody else holds it, its matrices are gone; what they left there is no zeros.
            Some((owner, used)) if Arc::strong_count(&owner) > 1 && SHARED - used >= room => (owner, used),
            _ => (Arc::new(Mapping::new(SHARED)?), 0),
        };
        // SAFETY: `used + room` is at most the length of the mapping.
        let start = unsafe { owner.start.add(used) };
        *open = Some((owner.clone(), used + room));
        Some(Self { start, len, owner: Some(owner) })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes that are ours alone and that were zeroed at first.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Buffer {
    /// Gives the whole pages of the memory back, though others may still use the mapping: this part of it is not handed out again. With its last
    /// buffer the mapping goes, too.
    fn drop(&mut self) {
        let Some(owner) = self.owner.take() else { return };
        #[cfg(unix)]
        {
            let before = self.start.as_ptr().align_offset(page());
            let len = self.len.saturating_sub(before) / page() * page();
            if len > 0 {
                // SAFETY: whole pages within our part of the mapping, which is still there and which nobody else uses.
                unsafe { libc::madvise(self.start.as_ptr().add(before).cast(), len, libc::MADV_DONTNEED) };
            }
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let is_last = Arc::strong_count(&owner) == 2 && open.as_ref().is_some_and(|(mapping, _)| Arc::ptr_eq(mapping, &owner));
        if is_last {
            *open = None;
        }
        drop(owner); // before others look at the count
    }
}

/// Bytes of a page of this system.
#[cfg(unix)]
fn page() -> usize {
    static PAGE: OnceLock<usize> = OnceLock::new();
    // SAFETY: it only asks.
    *PAGE.get_or_init(|| usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(PAGES))
}

/// Only its alignment matters.
#[repr(align(64))]
struct Line;

/// Memory of its own that begins on a huge page's boundary.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory; whoever uses a part of it says why nobody else does.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// At least `len` zeros, `len` being more than 0.
    #[cfg(unix)]
    fn new(len: usize) -> Option<Self> {
        let len = len.checked_next_multiple_of(PAGES)?;
        let spare = len.checked_add(HUGE)?;
        // SAFETY: a new private mapping that replaces none.
        let raw = unsafe {
            libc::mmap(std::ptr::null_mut(), spare, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        if raw == libc::MAP_FAILED {
            return None;
        }
        let before = raw.cast::<u8>().align_offset(HUGE).min(HUGE);
        let start = raw.cast::<u8>().wrapping_add(before);
        // SAFETY: both ranges are parts of the mapping just made (whole pages: the start, `HUGE` and `len` are multiples of one), and
        // nobody uses them.
        unsafe {
            if before > 0 {
                libc::munmap(raw, before);
            }
            if before < HUGE {
                libc::munmap(start.add(len).cast(), HUGE - before);
            }
            #[cfg(target_os = "linux")]
            libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE); // advice: where it is not taken, small pages do
        }
        NonNull::new(start).map(|start| Self { start, len })
    }

    /// At least `len` zeros, `len` being more than 0.
    #[cfg(not(unix))]
    fn new(len: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len, HUGE).ok()?;
        // SAFETY: the layout is not empty.
        NonNull::new(unsafe { alloc_zeroed(layout) }).map(|start| Self { start, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        #[cfg(unix)]
        // SAFETY: the mapping that `new` left, whole; every buffer in it is gone.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zeros_that_do_not_overlap_also_where_others_were_freed() {
        let mut held: Vec<Buffer> = Vec::new();
        for round in 0..60usize {
            let len = [1, 63, 64, 65, 5 << 20, 40 << 20, 0][round % 7];
            let mut buffer = Buffer::zeroed(len).unwrap();
            assert!(buffer.as_slice().iter().all(|byte| *byte == 0) && buffer.as_slice().as_ptr().align_offset(ALIGN) == 0);
            // SAFETY: `len` bytes that nobody else uses.
            unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr(), len) }.fill(round as u8 + 1);
            held.push(buffer);
            if round % 9 == 8 {
                held.drain(..4);
            }
            for (i, buffer) in held.iter().enumerate() {
                let first = buffer.as_slice().first();
                assert!(buffer.as_slice().iter().all(|byte| Some(byte) == first && *byte > 0), "buffer {i} was written to by another");
            }
        }
    }

    #[test]
    fn the_last_buffer_of_a_mapping_takes_it_along() {
        // Other tests share the mapping that is open, so that this can be seen only once they are not at it.
        let gone = (0..1000).any(|_| {
            let buffer = Buffer::zeroed(1 << 20).unwrap();
            let mapping = Arc::downgrade(buffer.owner.as_ref().unwrap());
            drop(buffer);
            std::thread::sleep(std::time::Duration::from_millis(10));
            mapping.strong_count() == 0
        });
        assert!(gone);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_dropped_is_given_back_while_its_neighbour_stays() {
        const LEN: usize = 4 << 20;
        let [one, mut two, three] = [(); 3].map(|()| {
            let mut buffer = Buffer::zeroed(LEN + 100).unwrap();
            // SAFETY: `LEN` bytes that nobody else uses.
            unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr(), LEN) }.fill(7);
            buffer
        });
        let inner = two.as_mut_ptr().wrapping_add(two.as_mut_ptr().align_offset(PAGES));
        let resident = || {
            let mut pages = vec![0u8; LEN / 4096];
            // SAFETY: whole pages of a mapping that `one` and `three` keep, and one byte for each, if pages are no smaller than usual.
            assert_eq!(unsafe { libc::mincore(inner.cast(), LEN - PAGES, pages.as_mut_ptr()) }, 0);
            pages.iter().filter(|page| **page & 1 == 1).count()
        };
        assert!(resident() > 0);
        drop(two);
        assert_eq!(resident(), 0);
        assert!([one, three].iter().all(|buffer| buffer.as_slice()[..LEN].iter().all(|byte| *byte == 7)));
    }
}

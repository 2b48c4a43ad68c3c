//! Memory for matrices, on a cache line's boundary, in huge pages where the system has them. Matrices share mappings, because many are smaller
//! than a huge page.
//!
//! ```text
//!   Buffer::new ──> in a mapping that others used ─────────────┐
//!                   in the open one, or in a new one: but      │── dropped ──> freed ──last of its mapping──> spare
//!                   first all that is idle goes ───────────────┘                 └───────── give_back ──────────┴──> the system's
//! ```
//! So what is in use and what is idle together are never more than what was in use before, or is now.
#![allow(unsafe_code, reason = "hands out parts of mappings")]

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::mapping::{Mapping, Pages};

/// Bytes of a mapping that matrices share. What is not used of it never becomes resident, but for the rest of a huge page at its end: so mappings
/// are large. They are smaller where memory is taken when it is asked for, and in tests.
const SHARED: usize = if cfg!(all(unix, not(test))) { 256 << 20 } else { 32 << 20 };
const ALIGN: usize = 64;

/// Bytes that one matrix has for itself.
#[derive(Debug)]
pub(crate) struct Buffer {
    start: NonNull<u8>,
    len: usize,
    /// What the memory is a part of; absent where there is none.
    part: Option<(Arc<Shared>, Range<usize>)>,
}

// SAFETY: it has its part of the memory for itself, as a `Box<[u8]>` does, and keeps it alive.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared use only reads.
unsafe impl Sync for Buffer {}

/// Mappings that are not, or not wholly, in the hands of buffers.
#[derive(Debug)]
struct Arena {
    /// The mapping that is being handed out, and how much of it is.
    open: Option<(Arc<Shared>, usize)>,
    /// Parts of mappings of which others are in use: what buffers left, and ends that no buffer had room in. They are not handed out again.
    freed: Vec<(Arc<Shared>, Range<usize>)>,
    /// Mappings without buffers, which hold what their last ones did.
    spare: Vec<Arc<Shared>>,
}

/// A mapping that buffers share.
#[derive(Debug)]
struct Shared {
    mapping: Mapping,
    /// So much of it, from its start, takes memory as far as buffers used all of theirs. 0 once a part was given back. Changed under the lock of
    /// the arena.
    resident: AtomicUsize,
}

impl Shared {
    fn len(&self) -> usize {
        self.mapping.len()
    }

    fn resident(&self) -> usize {
        self.resident.load(Ordering::Relaxed)
    }
}

static ARENA: Mutex<Arena> = Mutex::new(Arena { open: None, freed: Vec::new(), spare: Vec::new() });

impl Arena {
    fn lock() -> MutexGuard<'static, Self> {
        ARENA.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory that others left comes first; more is taken from the system only when nothing is idle any more.
    fn take(&mut self, room: usize) -> Option<(Arc<Shared>, Range<usize>)> {
        if let Some(part) = self.take_open(room, |mapping| mapping.resident()) {
            return Some(part);
        }
        let fits = self.spare.iter().enumerate().filter(|(_, mapping)| mapping.resident() >= room);
        let mapping = match fits.min_by_key(|(_, mapping)| mapping.resident()).map(|(i, _)| i) {
            Some(i) => self.spare.swap_remove(i),
            None => {
                self.give_back();
                if let Some((mapping, part)) = self.take_open(room, |mapping| mapping.len()) {
                    if mapping.resident() == part.start {
                        mapping.resident.store(part.end, Ordering::Relaxed);
                    }
                    return Some((mapping, part));
                }
                let mapping = Mapping::new(if room > SHARED / 2 { room } else { SHARED }, Pages::Huge)?;
                Arc::new(Shared { mapping, resident: room.into() })
            }
        };
        // Of two that have room left the larger is handed out on.
        let new = (mapping.clone(), room);
        let left = |open: &(Arc<Shared>, usize)| open.0.len() - open.1;
        let other = match &mut self.open {
            Some(open) if left(open) < left(&new) => Some(std::mem::replace(open, new)),
            Some(_) => Some(new),
            None => {
                self.open = Some(new);
                None
            }
        };
        self.freed.extend(other.filter(|other| left(other) > 0).map(|(mapping, used)| (mapping.clone(), used..mapping.len())));
        Some((mapping, 0..room))
    }

    fn take_open(&mut self, room: usize, end: impl Fn(&Shared) -> usize) -> Option<(Arc<Shared>, Range<usize>)> {
        let (mapping, used) = self.open.as_mut().filter(|(mapping, used)| *used + room <= end(mapping))?;
        *used += room;
        Some((mapping.clone(), *used - room..*used))
    }

    fn put_back(&mut self, mapping: Arc<Shared>, part: Range<usize>) {
        self.freed.push((mapping.clone(), part));
        let is = |other: &Arc<Shared>| Arc::ptr_eq(other, &mapping);
        let is_open = self.open.as_ref().is_some_and(|(open, _)| is(open));
        let n_freed = self.freed.iter().filter(|(other, _)| is(other)).count();
        // Held by `mapping`, by each part that was freed, and by the arena itself while it is open: by no buffer.
        if Arc::strong_count(&mapping) == 1 + n_freed + usize::from(is_open) {
            self.freed.retain(|(other, _)| !is(other));
            self.open.take_if(|(open, _)| is(open));
            if mapping.resident() > 0 {
                self.spare.push(mapping);
            }
        }
    }

    fn give_back(&mut self) {
        self.spare.clear();
        let open = self
            .open
            .iter()
            .filter(|(mapping, used)| mapping.resident() > *used)
            .map(|(mapping, used)| (mapping.clone(), *used..mapping.len()));
        let idle: Vec<_> = open.chain(self.freed.drain(..)).collect();
        for (mapping, part) in idle {
            // SAFETY: the part is no buffer's, and what is handed out of it later may hold anything.
            unsafe { mapping.mapping.give_back(part.clone()) };
            let resident = if part.start < mapping.resident() && part.end < mapping.len() { 0 } else { mapping.resident().min(part.start) };
            mapping.resident.store(resident, Ordering::Relaxed);
        }
    }
}

/// Gives what is idle back to the system.
pub(super) fn give_back() {
    Arena::lock().give_back();
}

impl Buffer {
    /// `len` bytes, whatever they are, or `None` if the system has no memory.
    pub(crate) fn new(len: usize) -> Option<Self> {
        if len == 0 {
            return Some(Self { start: NonNull::<Line>::dangling().cast(), len, part: None });
        }
        let (mapping, part) = Arena::lock().take(len.checked_next_multiple_of(ALIGN)?)?;
        // SAFETY: the part lies within the mapping.
        let start = unsafe { mapping.mapping.start().add(part.start) };
        Some(Self { start, len, part: Some((mapping, part)) })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: `len` bytes that are ours alone and that the system or a buffer before this one wrote.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((mapping, part)) = self.part.take() {
            Arena::lock().put_back(mapping, part);
        }
    }
}

/// Only its alignment matters.
#[repr(align(64))]
struct Line;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// As the global one, but no other test's.
    struct Alone(Arena);

    impl Alone {
        fn new() -> Self {
            Self(Arena { open: None, freed: Vec::new(), spare: Vec::new() })
        }

        fn take(&mut self, len: usize) -> (Arc<Shared>, Range<usize>) {
            self.0.take(len).unwrap()
        }

        /// Takes the part away from whoever holds it, as a buffer that is dropped does.
        fn put_back(&mut self, (mapping, part): (Arc<Shared>, Range<usize>)) {
            self.0.put_back(mapping, part);
        }
    }

    #[test]
    fn buffers_do_not_overlap_also_where_others_were_freed() {
        let mut held: Vec<Buffer> = Vec::new();
        for round in 0..60usize {
            let len = [1, 63, 64, 65, 5 * MIB, 40 * MIB, 0][round % 7];
            let mut buffer = Buffer::new(len).unwrap();
            assert_eq!((buffer.len(), buffer.as_slice().as_ptr().align_offset(ALIGN)), (len, 0));
            // SAFETY: `len` bytes that nobody else uses.
            unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr(), len) }.fill(round as u8 + 1);
            held.push(buffer);
            if round % 9 == 8 {
                held.drain(..4);
            }
            if round % 20 == 19 {
                give_back();
            }
            for (i, buffer) in held.iter().enumerate() {
                let first = buffer.as_slice().first();
                assert!(buffer.as_slice().iter().all(|byte| Some(byte) == first && *byte > 0), "buffer {i} was written to by another");
            }
        }
    }

    #[test]
    fn what_comes_takes_the_memory_of_what_went() {
        let mut arena = Alone::new();
        let (small, large) = (arena.take(3 * MIB), arena.take(40 * MIB));
        let (shared, own) = (small.0.mapping.start(), large.0.mapping.start());
        assert!(shared != own, "a large matrix has a mapping for itself");
        arena.put_back(large);
        let again = arena.take(30 * MIB);
        assert_eq!((again.0.mapping.start(), again.1.clone()), (own, 0..30 * MIB));
        arena.put_back(small);
        arena.put_back(again);
        assert_eq!((arena.0.spare.len(), arena.0.freed.len(), arena.0.open.is_none()), (2, 0, true));
        // Small ones share whatever takes memory already; the other had three MiB.
        let (one, two) = (arena.take(20 * MIB), arena.take(10 * MIB));
        assert_eq!((one.0.mapping.start(), two.0.mapping.start(), two.1.start), (own, own, 20 * MIB));
        let (rest, least) = (arena.take(10 * MIB), arena.take(2 * MIB));
        assert_eq!((rest.0.mapping.start(), least.0.mapping.start(), arena.0.spare.len()), (own, shared, 0));
    }

    #[test]
    fn what_is_idle_goes_before_what_is_left_of_a_new_mapping_is_used() {
        let mut arena = Alone::new();
        let (one, two) = (arena.take(10 * MIB), arena.take(10 * MIB));
        arena.put_back(one);
        assert_eq!(arena.0.freed.len(), 1);
        let three = arena.take(5 * MIB);
        assert_eq!((arena.0.freed.len(), three.0.mapping.start() == two.0.mapping.start()), (0, true));
        let large = arena.take(20 * MIB);
        arena.put_back(large);
        let small = arena.take(2 * MIB);
        assert_eq!((arena.0.spare.len(), small.0.mapping.start() == two.0.mapping.start()), (0, false), "what others used comes first");
        let more = arena.take(19 * MIB);
        assert!(more.0.resident() == 20 * MIB || more.0.mapping.start() != small.0.mapping.start(), "it is not counted twice");
        drop((two, three, small));
    }

    #[test]
    fn what_is_idle_goes_before_more_is_taken() {
        let mut arena = Alone::new();
        let (one, two, three) = (arena.take(MIB), arena.take(MIB), arena.take(40 * MIB));
        let spare = Arc::downgrade(&three.0);
        arena.put_back(one);
        arena.put_back(three);
        assert_eq!((arena.0.spare.len(), arena.0.freed.len()), (1, 1));
        let larger = arena.take(60 * MIB);
        assert_eq!((arena.0.spare.len(), arena.0.freed.len(), spare.strong_count()), (0, 0, 0));
        drop((two, larger));
    }

    #[cfg(target_os = "linux")]
    fn fill((mapping, part): &(Arc<Shared>, Range<usize>)) {
        // SAFETY: a part that nobody else uses.
        unsafe { std::slice::from_raw_parts_mut(mapping.mapping.start().as_ptr().add(part.start), part.len()) }.fill(7);
    }

    /// Pages of a part, but for its ends, that take memory.
    #[cfg(target_os = "linux")]
    fn n_resident(mapping: &Shared, part: Range<usize>) -> usize {
        const ENDS: usize = 1 << 16;
        let (first, last) = (part.start.next_multiple_of(ENDS), part.end / ENDS * ENDS);
        let mut pages = vec![0u8; (last - first) / 4096];
        // SAFETY: whole pages of a mapping that is there, and one byte for each, if pages are no smaller than usual.
        let asked = unsafe { libc::mincore(mapping.mapping.start().as_ptr().add(first).cast(), last - first, pages.as_mut_ptr()) };
        assert_eq!(asked, 0);
        pages.iter().filter(|page| **page & 1 == 1).count()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_smaller_one_leaves_of_a_mapping_is_given_back() {
        let mut arena = Alone::new();
        let old = [40, 48].map(|mib| arena.take(mib * MIB));
        old.iter().for_each(fill);
        old.into_iter().for_each(|part| arena.put_back(part));
        let new = [36, 38].map(|mib| arena.take(mib * MIB));
        assert!(new.iter().all(|(mapping, part)| n_resident(mapping, part.end..mapping.len()) > 0), "they have the memory of the old ones");
        arena.0.give_back();
        assert!(new.iter().all(|(mapping, part)| n_resident(mapping, part.end..mapping.len()) == 0));
        assert!(new.iter().all(|(mapping, part)| n_resident(mapping, part.clone()) > 0));
        new.into_iter().for_each(|part| arena.put_back(part));
        assert_eq!((arena.0.spare.len(), arena.0.freed.len(), arena.0.open.is_none()), (2, 0, true));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_given_back_takes_no_memory_while_its_neighbour_stays() {
        let mut arena = Alone::new();
        let parts = [(); 3].map(|()| arena.take(4 * MIB + 128));
        parts.iter().for_each(fill);
        let (mapping, part) = (parts[1].0.clone(), parts[1].1.clone());
        let resident = || n_resident(&mapping, part.clone());
        let [one, two, three] = parts;
        arena.put_back(two);
        assert!(resident() > 0, "it is kept for a while");
        arena.0.give_back();
        assert_eq!(resident(), 0);
        for (mapping, part) in [one, three] {
            // SAFETY: as above; it was written to.
            let bytes = unsafe { std::slice::from_raw_parts(mapping.mapping.start().as_ptr().add(part.start), part.len()) };
            assert!(bytes.iter().all(|byte| *byte == 7));
        }
    }
}

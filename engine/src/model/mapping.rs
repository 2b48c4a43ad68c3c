//! A file mapped into memory.
#![allow(unsafe_code, reason = "a map of a file, and advice about its pages")]

use std::fs::File;
use std::io;
use std::ops::Range;

use memmap2::Mmap;

/// The bytes of a file, read by the system where and when they are looked at.
#[derive(Debug)]
pub(super) struct Mapping(Mmap);

impl Mapping {
    /// Maps the whole of a file. Whoever looks at a page beyond a new and nearer end of the file is ended by a signal: see
    /// [`super::storage::Storage`].
    pub(super) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: the map is only read. It would break if the file were written to meanwhile; the documentation forbids that, `Storage`
        // checks length and time of the last change before each look, and nothing that is read is trusted beyond its own bounds:
        // other numbers give other logits.
        unsafe { Mmap::map(file) }.map(Self)
    }

    /// All of it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Tells the system that these bytes will not be read soon: they no longer count as this process's memory, and stay in the cache of files.
    pub(super) fn release(&self, range: Range<usize>) {
        if range.is_empty() || range.end > self.0.len() {
            return;
        }
        #[cfg(unix)]
        // SAFETY: the pages of a file that is mapped to be read hold the same bytes when they are looked at again.
        drop(unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) }); // advice: it may fail
    }
}

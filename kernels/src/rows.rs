//! The other factor of a product: rows of activations, in the form that the matrices want them.
//!
//! Byte matrices take activations as signed bytes: one scale per 32 for the formats with blocks of 32, one per 256 for the others, each with
//! the sums that minima and zero points need. BF16 matrices take bf16, the others f32. Rows lie in groups of 8: within a group
//! the rows alternate block by block, so that a kernel that computes eight rows at once reads one stream.
#![allow(unsafe_code, reason = "threads write the rows of one buffer, each its own")]

mod convert;

use crate::format::Format;
use crate::team::{SharedMut, Team};
use std::sync::Mutex;

/// Rows that lie together, and the most that a kernel computes at once.
pub(crate) const GROUP: usize = 8;

/// A set of forms of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forms(u8);

impl Forms {
    /// What matrices of `format` multiply.
    pub const fn of(format: Format) -> Self {
        Self(1 << Form::of(format) as u8)
    }

    /// Both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn has(self, form: Form) -> bool {
        self.0 & 1 << form as u8 != 0
    }
}

/// How activations lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// [`Block32`]s.
    Blocks32,
    /// [`Block256`]s.
    Blocks256,
    /// Pairs of bf16; an odd last column gets a zero beside it.
    Bf16,
    /// f32.
    F32,
}

/// 32 activations as bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block32 {
    pub(crate) qs: [i8; 32],
    pub(crate) d: f32,
    /// -128 times the sum of `qs`: what to add when weights are stored with 128 added.
    pub(crate) zero: i32,
    /// `d` times the sum of `qs`.
    pub(crate) sum: f32,
}

/// 256 activations as bytes.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Block256 {
    pub(crate) qs: [i8; 256],
    /// Sums of 16 each.
    pub(crate) sums16: [i16; 16],
    /// Sums of 32 each.
    pub(crate) sums32: [i16; 8],
    pub(crate) d: f32,
}

impl Form {
    const ALL: [Self; 4] = [Self::Blocks32, Self::Blocks256, Self::Bf16, Self::F32];

    pub(crate) const fn of(format: Format) -> Self {
        match format {
            Format::F32 | Format::F16 => Self::F32,
            Format::Bf16 => Self::Bf16,
            _ if format.block_len() == 32 => Self::Blocks32,
            _ => Self::Blocks256,
        }
    }

    /// Columns and bytes of a block.
    pub(crate) const fn block(self) -> (usize, usize) {
        match self {
            Self::Blocks32 => (32, size_of::<Block32>()),
            Self::Blocks256 => (256, size_of::<Block256>()),
            Self::Bf16 => (2, 4),
            Self::F32 => (1, 4),
        }
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(self, columns: usize) -> usize {
        columns.div_ceil(self.block().0) * self.block().1
    }
}

/// 64 bytes at an address that they divide.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
struct Line([u8; 64]);

/// Rows of activations `[n, columns]`, ready to be multiplied. Made once and filled again for each product: its memory stays.
#[derive(Debug, Default)]
pub struct Activations {
    n: usize,
    columns: usize,
    forms: Forms,
    rows: [Vec<Line>; 4],
    scratch: Vec<Mutex<Vec<f32>>>,
}

/// Where rows come from.
enum Source<'a> {
    Dense(&'a [f32]),
    Gathered(&'a [f32], &'a [u32]),
    Computed(&'a (dyn Fn(usize, &mut [f32]) + Sync)),
}

impl Activations {
    /// No rows yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rows held.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Numbers in a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes that the memory kept for the rows takes.
    pub fn bytes(&self) -> usize {
        self.rows.iter().map(|rows| rows.capacity() * size_of::<Line>()).sum()
    }

    /// Takes the rows `x`, `[n, columns]`, in the forms that the matrices to come want ([`Forms::of`] each).
    ///
    /// # Panics
    /// If `x` is no whole number of rows, or `columns` no whole number of blocks of a form.
    pub fn load(&mut self, team: &Team, x: &[f32], columns: usize, forms: Forms) {
        assert!(columns > 0 && x.len().is_multiple_of(columns), "{} numbers are no rows of {columns}", x.len());
        self.take(team, x.len() / columns, columns, forms, &Source::Dense(x));
    }

    /// As [`Activations::load`], for the rows of `x` that `rows` names, in its order.
    ///
    /// # Panics
    /// As `load`; also if a row lies beyond `x`.
    pub fn gather(&mut self, team: &Team, x: &[f32], columns: usize, rows: &[u32], forms: Forms) {
        let n = x.len() / columns.max(1);
        assert!(rows.iter().all(|&row| (row as usize) < n), "a row beyond the {n} there are");
        self.take(team, rows.len(), columns, forms, &Source::Gathered(x, rows));
    }

    /// As [`Activations::load`], for `n` rows that `row(index, out)` computes (a norm, a gated unit), on the thread that then converts them.
    /// `out` holds whatever was there before.
    ///
    /// # Panics
    /// As `load`.
    pub fn compute(&mut self, team: &Team, n: usize, columns: usize, forms: Forms, row: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        self.take(team, n, columns, forms, &Source::Computed(row));
    }

    fn take(&mut self, team: &Team, n: usize, columns: usize, forms: Forms, source: &Source<'_>) {
        // No rows until all are there: after a panic on the way none are taken for what they are not.
        (self.n, self.columns, self.forms) = (0, columns, Forms::default());
        // No form takes more than the 4 bytes of an f32, but for what rounds up to a block.
        let most = columns.checked_next_multiple_of(256).and_then(|columns| columns.checked_mul(4)?.checked_mul(n));
        assert!(columns > 0 && most.is_some_and(|bytes| bytes < isize::MAX as usize), "{n} rows of {columns} fit no memory");
        let mut starts = [SharedMut(std::ptr::null_mut::<u8>()); 4];
        for form in Form::ALL.into_iter().filter(|&form| forms.has(form)) {
            let whole = matches!(form, Form::Bf16) || columns.is_multiple_of(form.block().0);
            assert!(whole, "{columns} columns are no whole number of blocks of {}", form.block().0);
            let rows = &mut self.rows[form as usize];
            let len = (n * form.row_bytes(columns)).div_ceil(size_of::<Line>());
            if rows.len() < len {
                rows.resize(len, Line([0; 64]));
            }
            starts[form as usize] = SharedMut(rows.as_mut_ptr().cast());
        }
        if matches!(source, Source::Computed(_)) && self.scratch.len() < team.n_threads() {
            self.scratch.resize_with(team.n_threads(), Default::default);
        }
        let scratch = &self.scratch;
        let place = |index: usize, x: &[f32]| {
            let group = index / GROUP;
            let m = GROUP.min(n - group * GROUP);
            for form in Form::ALL.into_iter().filter(|&form| forms.has(form)) {
                let at = group * GROUP * form.row_bytes(columns) + (index % GROUP) * form.block().1;
                // SAFETY: the buffer has `n` rows of this form; a row's blocks, `m` blocks apart, lie within its group and belong to
                // no other row; each row is written by one task, and the buffer is borrowed until the team is done.
                unsafe { convert::row(form, x, starts[form as usize].get().add(at), m * form.block().1) };
            }
        };
        // A few thousand numbers are converted faster than a second thread is asked.
        let per_task = (2048 / columns).max(1);
        team.run_on(n.div_ceil(per_task), &|thread, task| {
            for index in task * per_task..n.min((task + 1) * per_task) {
                match source {
                    Source::Dense(x) => place(index, &x[index * columns..(index + 1) * columns]),
                    Source::Gathered(x, rows) => place(index, &x[rows[index] as usize * columns..][..columns]),
                    Source::Computed(compute) => {
                        // Never contended: the mutex is this thread's within the operation.
                        let mut row = scratch[thread].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        if row.len() < columns {
                            row.resize(columns, 0.0);
                        }
                        compute(index, &mut row[..columns]);
                        place(index, &row[..columns]);
                    }
                }
            }
        });
        (self.n, self.forms) = (n, forms);
    }

    /// The rows in `form`: the address of the first group, and the bytes of a row.
    ///
    /// # Panics
    /// If they were not taken in this form.
    pub(crate) fn form(&self, form: Form) -> (*const u8, usize) {
        assert!(self.forms.has(form), "activations were not made for {form:?}; see Forms::of");
        (self.rows[form as usize].as_ptr().cast(), form.row_bytes(self.columns))
    }
}

//! Products of rows of activations with packed matrices: what is computed by which thread, in which order.
//!
//! A task is some tiles of one matrix against a stripe of rows, few enough that their activations stay in a core's cache. A result
//! is computed by one thread, over the columns in one fixed order that depends on the format alone: so it never depends on how many rows there
//! are, nor on their places.
#![allow(unsafe_code, reason = "threads write to one output, each its columns")]

use super::{Matrix, TILE_ROWS, portable};
use crate::isa::Isa;
use crate::rows::{Activations, Form, GROUP};
use crate::team::{SharedMut, Team};

/// A matrix, and where its product with the rows goes.
#[derive(Debug)]
pub struct Product<'a> {
    /// The matrix, `[rows, columns]`.
    pub matrix: &'a Matrix,
    /// The product, `[n, matrix.rows()]`, wholly written.
    pub out: &'a mut [f32],
}

/// What one call of a kernel computes: the rows of a tile against `m` rows of activations.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    /// The tiles of 16 rows, `n_blocks` of them.
    pub(super) tile: *const u8,
    pub(super) n_blocks: usize,
    /// Block 0 of the first row of activations; rows are one block apart.
    pub(super) x: *const u8,
    /// Bytes from one block of a row to its next.
    pub(super) step: usize,
    /// Rows of activations, 1 to [`GROUP`].
    pub(super) m: usize,
    /// The first number of the result; rows are `stride` numbers apart.
    pub(super) out: *mut f32,
    pub(super) stride: usize,
    /// Numbers of each row to write, 1 to 16.
    pub(super) n_out: usize,
    /// Is the result added to what is there? Never, but for kernels of [`Isa::Avx512`].
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "other kernels go through whole rows"))]
    pub(super) add: bool,
}

/// A kernel.
///
/// # Safety
/// Everything in the span must be readable (`tile`, `x`) or writable (`out`, by this thread alone) as it says, the blocks of `x` be of the
/// form and the tiles of the format that the kernel is for, and the machine have its instructions.
pub(super) type Kernel = unsafe fn(&Span);

/// Bytes of activations of a stripe: half of a usual second-level cache, the other half being for weights and results. Of very long rows
/// there are 64, so that weights are not read from memory more often than they can be.
const STRIPE_BYTES: usize = 512 * 1024;
/// Bytes of weights of a task: some microseconds of reading, so that threads end together.
const TASK_BYTES: usize = 64 * 1024;

/// Bytes of a tile that a call of a kernel goes through: they stay in the first caches for all rows of the stripe. Results of longer rows are summed over several calls, in the same steps however many rows there are.
const CALL_BYTES: usize = 36 * 1024;

/// Computes `out[i, r] = sum over c of x[i, c] * matrix[r, c]` for all products at once, with the best instructions of this machine.
///
/// # Panics
/// If a matrix has other columns than the rows of `x`, an `out` is not `[n, rows]`, or `x` was not made for a matrix's format.
pub fn multiply(team: &Team, products: &mut [Product<'_>], x: &Activations) {
    multiply_as(Isa::best(), team, products, x);
}

/// As [`multiply`], with the instructions of `isa`.
///
/// # Panics
/// As `multiply`; also if this machine has not those instructions.
pub fn multiply_as(isa: Isa, team: &Team, products: &mut [Product<'_>], x: &Activations) {
    assert!(isa == Isa::best() || Isa::available().contains(&isa), "this machine has no {isa:?}");
    let n = x.n();
    if n == 0 {
        return;
    }
    let plans: Vec<Plan<'_>> = products.iter_mut().map(|product| Plan::of(isa, product, x)).collect();
    let row_bytes = plans.iter().map(|plan| plan.row_bytes).max().unwrap_or(1);
    let stripe = (STRIPE_BYTES / row_bytes / GROUP * GROUP).clamp(64, 256);
    let per_stripe: usize = plans.iter().map(|plan| plan.n_tasks).sum();
    team.run(per_stripe * n.div_ceil(stripe), &|task| {
        let first = task / per_stripe * stripe;
        let mut task = task % per_stripe;
        for plan in &plans {
            if task < plan.n_tasks {
                return plan.run(task, first, n.min(first + stripe), n);
            }
            task -= plan.n_tasks;
        }
    });
}

/// A product, checked and cut into tasks.
struct Plan<'a> {
    matrix: &'a Matrix,
    kernel: Kernel,
    x: SharedMut<u8>,
    row_bytes: usize,
    block_bytes: usize,
    out: SharedMut<f32>,
    tiles_per_task: usize,
    n_tasks: usize,
    blocks_per_call: usize,
}

impl<'a> Plan<'a> {
    fn of(isa: Isa, product: &'a mut Product<'_>, x: &Activations) -> Self {
        let matrix = product.matrix;
        assert_eq!(matrix.columns, x.columns(), "a matrix of {} columns and rows of {}", matrix.columns, x.columns());
        assert_eq!(product.out.len(), x.n() * matrix.rows, "room for {} rows of {}", x.n(), matrix.rows);
        let form = Form::of(matrix.format);
        let (start, row_bytes) = x.form(form);
        let n_tiles = matrix.rows.div_ceil(TILE_ROWS);
        let tiles_per_task = (TASK_BYTES * n_tiles / matrix.bytes().max(1)).clamp(1, n_tiles.max(1));
        let n_blocks = matrix.layout.n_blocks(matrix.columns).max(1);
        let n_calls = if isa == Isa::Avx512 { n_blocks.div_ceil((CALL_BYTES / matrix.layout.tile).max(1)) } else { 1 };
        Self {
            matrix,
            kernel: kernel(isa, matrix),
            x: SharedMut(start.cast_mut()),
            row_bytes,
            block_bytes: form.block().1,
            out: SharedMut(product.out.as_mut_ptr()),
            tiles_per_task,
            n_tasks: n_tiles.div_ceil(tiles_per_task),
            blocks_per_call: n_blocks.div_ceil(n_calls),
        }
    }

    /// Rows `from..to` of `n` against the tiles of task `task`.
    fn run(&self, task: usize, from: usize, to: usize, n: usize) {
        let rows = self.matrix.rows;
        let n_blocks = self.matrix.layout.n_blocks(self.matrix.columns);
        let tile_bytes = n_blocks * self.matrix.layout.tile;
        let last = rows.div_ceil(TILE_ROWS).min((task + 1) * self.tiles_per_task);
        for tile in task * self.tiles_per_task..last {
            let data = &self.matrix.data.as_slice()[tile * tile_bytes..(tile + 1) * tile_bytes];
            for block in (0..n_blocks).step_by(self.blocks_per_call) {
                for first in (from..to).step_by(GROUP) {
                    let m = GROUP.min(n - first); // stripes end with whole groups, but for the last of all rows
                    let span = Span {
                        tile: data[block * self.matrix.layout.tile..].as_ptr(),
                        n_blocks: self.blocks_per_call.min(n_blocks - block),
                        x: self.x.get().wrapping_add(first * self.row_bytes + block * m * self.block_bytes),
                        step: m * self.block_bytes,
                        m,
                        out: self.out.get().wrapping_add(first * rows + tile * TILE_ROWS),
                        stride: rows,
                        n_out: TILE_ROWS.min(rows - tile * TILE_ROWS),
                        add: block > 0,
                    };
                    // SAFETY: `data` is one tile of all columns, of which the span is some; `x` holds `n` rows in the form of the
                    // format, group by group, of which this is one, in it the blocks of a group's rows beside each other; `out` is
                    // `[n, rows]` (checked in `of`), and rows `first..first + m`, columns of this tile, are this task's alone. The
                    // kernel is one that this machine can run.
                    unsafe { (self.kernel)(&span) };
                }
            }
        }
    }
}

/// The kernel for a matrix on machines of `isa`.
fn kernel(isa: Isa, matrix: &Matrix) -> Kernel {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernel) = super::x86::kernel(isa, matrix.format) {
        return kernel;
    }
    #[cfg(target_arch = "aarch64")]
    if isa == Isa::Neon {
        return super::neon::kernel(matrix.format);
    }
    let _ = isa; // where no kernel is better than the portable one
    portable::kernel(matrix.format)
}

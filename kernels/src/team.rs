//! A team of threads that share the tasks of one operation.
//!
//! Between two operations of a forward pass there is no time to wake a thread (some microseconds), so the workers spin for a short while
//! after work and only then sleep. Each thread has a stretch of neighbouring tasks, which it claims one by one from a counter, and then helps the
//! others with theirs: a core that other work has taken away slows its own task and no other, and a worker that never woke up is not waited for.
//! Neighbouring tasks mostly read neighbouring memory, which comes half as fast again when each core follows a stretch of its own.
#![allow(unsafe_code, reason = "workers run a closure that the caller of `run` keeps alive on its stack")]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a worker spins for the next operation before it sleeps. Longer than what the owner computes alone between two operations of a
/// step, shorter than what anybody would notice as a busy core of an idle node.
pub const SPIN: Duration = Duration::from_millis(2);
/// Turns of a waiting loop between two looks at the clock.
const TURNS: u32 = 256;
/// In [`Shared::state`]: the operation is open, workers may enter. Above it the number of the operation, below it the workers inside.
const OPEN: u64 = 1 << 16;
const INSIDE: u64 = OPEN - 1;
const NUMBER: u32 = 17;

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// What the threads share. Cache lines apart, since every worker watches `state` while others claim from `claimed`.
#[derive(Debug)]
struct Shared {
    state: Line<AtomicU64>,
    /// Tasks claimed of each thread's stretch; more than it has when it is done.
    claimed: Vec<Line<AtomicUsize>>,
    job: UnsafeCell<Job>,
    stop: AtomicBool,
    asleep: Vec<AtomicBool>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    spin: Duration,
}

#[derive(Debug)]
#[repr(align(128))]
struct Line<T>(T);

#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    n_tasks: usize,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tasks", self.n_tasks)
    }
}

// SAFETY: `job` is written only by the owner while the state is closed with nobody inside, and read only by threads inside; entering
// (acquire) happens after opening (release). The task it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is not used once `run` has returned.
unsafe impl Send for Shared {}

/// A team of threads. The thread that calls [`Team::run`] takes part; a team of one is that thread alone and never synchronises.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
    /// Held by the thread whose tasks are being run.
    owner: Mutex<u64>,
}

impl Team {
    /// A team of `n_threads` (at least 1, the caller included), whose workers spin for [`SPIN`] after work.
    pub fn new(n_threads: usize) -> std::io::Result<Self> {
        Self::with_spin(n_threads, SPIN)
    }

    /// A team of `n_threads`, whose workers spin for `spin` after work. Errors: the system gives no more threads.
    pub fn with_spin(n_threads: usize, spin: Duration) -> std::io::Result<Self> {
        let n_workers = n_threads.clamp(1, 1024) - 1;
        fn none(_: usize, _: usize) {}
        let shared = Arc::new(Shared {
            state: Line(AtomicU64::new(0)),
            claimed: (0..=n_workers).map(|_| Line(AtomicUsize::new(0))).collect(),
            job: UnsafeCell::new(Job { task: &none, n_tasks: 0 }),
            stop: AtomicBool::new(false),
            asleep: (0..n_workers).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
            spin,
        });
        let mut team = Self { shared, workers: Vec::with_capacity(n_workers), owner: Mutex::new(0) };
        for worker in 0..n_workers {
            let shared = team.shared.clone();
            // When a later thread cannot be started, dropping `team` ends those that were.
            let handle = thread::Builder::new().name(format!("team-{}", worker + 1)).spawn(move || work(&shared, worker))?;
            team.workers.push((handle.thread().clone(), Some(handle)));
        }
        Ok(team)
    }

    /// Threads of the team, the caller included.
    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0) .. task(n_tasks - 1)`, each once, and returns when all have ended. A panic of a task is resumed here after the others
    /// ended; tasks that nobody had begun are then left out. Called while the team is already at work (from inside a task, or by another
    /// thread), the caller does its tasks alone.
    pub fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.run_on(n_tasks, &|_, index| task(index));
    }

    /// As [`Team::run`], but `task(thread, index)` also learns which thread runs it, `0 .. n_threads`, for scratch space of its own.
    /// While the team is already at work, all tasks come with a thread that is unique only within this call.
    pub fn run_on(&self, n_tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        if self.workers.is_empty() || n_tasks <= 1 {
            return (0..n_tasks).for_each(|index| task(0, index));
        }
        let Ok(mut number) = self.owner.try_lock() else {
            return (0..n_tasks).for_each(|index| task(0, index));
        };
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. No thread uses the pointer after this function: it returns only once the operation is closed
        // and nobody is inside, and it does not unwind before that.
        let erased = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(std::ptr::from_ref(task)) };
        // SAFETY: the state is closed and nobody is inside (see the end of this function), so no other thread reads `job`.
        unsafe { *shared.job.get() = Job { task: erased, n_tasks } };
        shared.claimed.iter().for_each(|claimed| claimed.0.store(0, Ordering::Relaxed));
        *number += 1;
        // Sequentially consistent, against the worker that says it sleeps and then looks at the state once more.
        shared.state.0.store(*number << NUMBER | OPEN, Ordering::SeqCst);
        for (worker, asleep) in self.workers.iter().zip(&shared.asleep) {
            if asleep.load(Ordering::SeqCst) {
                worker.0.unpark();
            }
        }
        claim(shared, 0, task, n_tasks);
        shared.state.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut turns = 0u32;
        while shared.state.0.load(Ordering::Acquire) & INSIDE != 0 {
            turns = turns.saturating_add(1);
            if turns > 16 * TURNS { thread::yield_now() } else { std::hint::spin_loop() }
        }
        drop(number);
        if let Some(panic) = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take() {
            resume_unwind(panic);
        }
    }

    /// Runs `task(index, chunk)` for each chunk of `chunk_len` elements of `data`; the last chunk may be shorter.
    pub fn run_chunks<T: Send>(&self, data: &mut [T], chunk_len: usize, task: &(dyn Fn(usize, &mut [T]) + Sync)) {
        let (len, start) = (data.len(), SharedMut(data.as_mut_ptr()));
        let chunk_len = chunk_len.max(1);
        self.run(len.div_ceil(chunk_len), &|index| {
            let from = index * chunk_len;
            // SAFETY: chunks of different indices do not overlap, each index runs once, and `data` is borrowed until `run` returns.
            let chunk = unsafe { std::slice::from_raw_parts_mut(start.get().add(from), chunk_len.min(len - from)) };
            task(index, chunk);
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (thread, handle) in &mut self.workers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                drop(handle.join()); // a worker catches the panics of its tasks, and has none of its own to tell
            }
        }
    }
}

/// A pointer that several threads write through, each to places of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedMut<T>(pub(crate) *mut T);

impl<T> SharedMut<T> {
    /// The pointer; a method, so that closures capture the whole and not its field.
    pub(crate) fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: whoever dereferences it says why no two threads touch the same element.
unsafe impl<T: Send> Sync for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<T> {}

/// Claims tasks until none is left, those of the thread's own stretch first. A panic is kept for the caller of `run`, and ends the claiming of all.
fn claim(shared: &Shared, thread: usize, task: &Task<'_>, n_tasks: usize) {
    let n_threads = shared.claimed.len();
    let result = catch_unwind(AssertUnwindSafe(|| {
        for whose in (thread..n_threads).chain(0..thread) {
            let (first, end) = (whose * n_tasks / n_threads, (whose + 1) * n_tasks / n_threads);
            loop {
                let index = first + shared.claimed[whose].0.fetch_add(1, Ordering::Relaxed);
                if index >= end {
                    break;
                }
                task(thread, index);
            }
        }
    }));
    if let Err(panic) = result {
        shared.claimed.iter().for_each(|claimed| claimed.0.store(n_tasks, Ordering::Relaxed));
        shared.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
    }
}

/// The life of a worker: wait for an operation that it has not seen, enter it, claim tasks, leave.
fn work(shared: &Shared, worker: usize) {
    let mut seen = 0;
    while let Some(state) = wait(shared, worker, seen) {
        if shared.state.0.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            continue;
        }
        seen = state >> NUMBER;
        // SAFETY: we are inside: the owner neither changes the job nor lets the task die before we leave.
        let (task, n_tasks) = unsafe { (&*(*shared.job.get()).task, (*shared.job.get()).n_tasks) };
        claim(shared, worker + 1, task, n_tasks);
        shared.state.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Waits for an open operation other than `seen`: spinning first, then asleep. `None` when the team ends.
fn wait(shared: &Shared, worker: usize, seen: u64) -> Option<u64> {
    let news = || {
        let state = shared.state.0.load(Ordering::SeqCst);
        (state & OPEN != 0 && state >> NUMBER != seen).then_some(state)
    };
    let begun = Instant::now();
    loop {
        for _ in 0..TURNS {
            if let Some(state) = news() {
                return Some(state);
            }
            std::hint::spin_loop();
        }
        if shared.stop.load(Ordering::SeqCst) {
            return None;
        }
        if begun.elapsed() < shared.spin {
            continue;
        }
        shared.asleep[worker].store(true, Ordering::SeqCst);
        while news().is_none() && !shared.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        shared.asleep[worker].store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once_however_many_threads() {
        for n_threads in [1, 2, 3, 8] {
            let team = Team::with_spin(n_threads, Duration::from_micros(50)).unwrap();
            for n_tasks in [0, 1, 2, 7, 1000] {
                let runs: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                team.run_on(n_tasks, &|thread, task| {
                    assert!(thread < n_threads);
                    runs[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(runs.iter().all(|n| n.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn many_short_operations_in_a_row_lose_nothing() {
        let team = Team::with_spin(3, Duration::from_micros(5)).unwrap(); // short enough that workers fall asleep in between
        let total = AtomicUsize::new(0);
        for round in 0..20_000 {
            team.run(3, &|task| {
                total.fetch_add(task, Ordering::Relaxed);
            });
            if round % 1000 == 0 {
                std::thread::yield_now();
            }
        }
        assert_eq!(total.into_inner(), 60_000);
    }

    #[test]
    fn a_panic_in_a_task_surfaces_at_the_caller_and_the_team_goes_on() {
        let team = Team::new(3).unwrap();
        for bad in [0, 5, 99] {
            let result = catch_unwind(AssertUnwindSafe(|| team.run(100, &|task| assert!(task != bad, "task {bad} is bad"))));
            let panic = result.unwrap_err();
            assert_eq!(panic.downcast_ref::<String>().unwrap(), &format!("task {bad} is bad"));
            let n = AtomicUsize::new(0);
            team.run(10, &|_| {
                n.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(n.into_inner(), 10);
        }
    }

    #[test]
    fn a_task_may_run_tasks_of_its_own_and_threads_may_share_a_team() {
        let team = Team::new(2).unwrap();
        let n = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    team.run(4, &|_| {
                        team.run(5, &|_| {
                            n.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                });
            }
        });
        assert_eq!(n.into_inner(), 60);
    }

    #[test]
    fn chunks_are_disjoint_and_cover_everything() {
        let team = Team::new(3).unwrap();
        let mut data = vec![0usize; 1003];
        team.run_chunks(&mut data, 10, &|index, chunk| chunk.iter_mut().for_each(|x| *x += index + 1));
        assert!(data.iter().enumerate().all(|(i, &x)| x == i / 10 + 1));
    }
}

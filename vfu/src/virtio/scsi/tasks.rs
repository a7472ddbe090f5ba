//! Which commands are in flight, for QUERY TASK and ABORT TASK: written by the request queues, each its own table, and read
//! by the control queue, which marks those that are to end.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU8, AtomicU64, Ordering},
};

/// The command that has a chain's id.
#[derive(Debug, Default)]
struct Task {
    tag: AtomicU64,
    /// Its target's number and one, with [`ABORTED`] or without; zero for none.
    target: AtomicU8,
}

/// The command is to end. In one byte with the target: the mark goes when the command does.
const ABORTED: u8 = 0x80;

/// The commands of one queue, by their chains' ids.
#[derive(Debug)]
pub(super) struct Tasks(Box<[Task]>);

impl Tasks {
    /// For chain ids below `depth`.
    pub(super) fn new(depth: u16) -> Self {
        Self((0..depth).map(|_| Task::default()).collect())
    }

    /// A command was accepted.
    #[inline]
    pub(super) fn started(&self, id: u16, target: u8, tag: u64) {
        let task = &self.0[usize::from(id)];
        task.tag.store(tag, Ordering::Relaxed);
        task.target.store(target + 1, Ordering::Release);
    }

    /// It has ended.
    #[inline]
    pub(super) fn ended(&self, id: u16) {
        self.0[usize::from(id)].target.store(0, Ordering::Release);
    }

    /// Whether it is to end before it is done.
    pub(super) fn is_aborted(&self, id: u16) -> bool {
        self.0[usize::from(id)].target.load(Ordering::Acquire) & ABORTED != 0
    }

    /// The commands of a target; with this tag, if one is asked for.
    fn of(&self, target: u8, tag: Option<u64>) -> impl Iterator<Item = &Task> {
        self.0.iter().filter(move |task| {
            task.target.load(Ordering::Acquire) & !ABORTED == target + 1
                && tag.is_none_or(|tag| task.tag.load(Ordering::Relaxed) == tag)
        })
    }

    fn abort(&self, target: u8, tag: Option<u64>) {
        for task in self.of(target, tag) {
            let marked = ABORTED | (target + 1);
            // One that has ended meanwhile needs no mark.
            let _ = task.target.compare_exchange(target + 1, marked, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

/// The commands of all queues of a device.
#[derive(Debug, Default)]
pub(super) struct AllTasks(Mutex<Vec<(u16, Arc<Tasks>)>>);

impl AllTasks {
    fn with<T>(&self, f: impl FnOnce(&mut Vec<(u16, Arc<Tasks>)>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A queue starts.
    pub(super) fn add(&self, queue: u16, tasks: Arc<Tasks>) {
        self.with(|all| all.push((queue, tasks)));
    }

    /// A queue ends.
    pub(super) fn remove(&self, queue: u16, tasks: &Arc<Tasks>) {
        self.with(|all| all.retain(|(number, there)| *number != queue || !Arc::ptr_eq(there, tasks)));
    }

    /// Whether a target has a command in flight; with this tag, if one is asked for.
    pub(super) fn holds(&self, target: u8, tag: Option<u64>) -> bool {
        self.with(|all| all.iter().any(|(_, tasks)| tasks.of(target, tag).next().is_some()))
    }

    /// Has the commands of a target end as soon as may be; only those with this tag, if one is named.
    pub(super) fn abort(&self, target: u8, tag: Option<u64>) {
        self.with(|all| all.iter().for_each(|(_, tasks)| tasks.abort(target, tag)));
    }
}

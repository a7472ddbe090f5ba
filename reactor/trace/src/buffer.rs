//! The file that events are written to, and the ring of each thread.
//!
//! A ring has one writer, its thread, and any number of readers, none of which it waits for: an entry is numbered when
//! it is whole, and its number is taken away while it is being written.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::group::{ARGS, Group};
use crate::layout::{self, entry, head, ring};
use crate::words::{WORD_BYTES, Words};

/// How events are dated.
#[derive(Clone, Copy, Debug)]
pub struct Ticks {
    /// The tick that it is.
    pub now: fn() -> u64,
    /// Ticks of a second.
    pub per_second: u64,
}

/// Why there is no buffer.
#[derive(Debug, thiserror::Error)]
pub enum BufferError {
    /// Another program writes to it.
    #[error("{0} is written by another target; choose another --shm-id")]
    InUse(PathBuf),
    /// The points have longer names than there is room for, or the rings do not fit an address space.
    #[error("the trace is too large")]
    TooLarge,
    /// The file cannot be made.
    #[error("cannot make {path}: {source}")]
    File {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// The file, made and mapped. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Buffer {
    words: Arc<Words>,
    path: PathBuf,
    entries: usize,
    cores: Vec<u32>,
    ticks: Ticks,
    /// Locked as long as it is written to.
    _file: Arc<File>,
}

impl Buffer {
    /// Makes the file, with a ring of so many entries, a power of two, for each core; takes the place of one that a dead
    /// program has left. Pages are taken as events are written.
    ///
    /// # Errors
    /// See [`BufferError`].
    pub fn create(
        path: &Path,
        cores: impl IntoIterator<Item = u32>,
        entries: u32,
        ticks: Ticks,
        groups: &[&Group],
    ) -> Result<Buffer, BufferError> {
        let failed = |source| BufferError::File { path: path.to_owned(), source };
        let cores: Vec<u32> = cores.into_iter().collect();
        let entries = usize::try_from(entries).ok().filter(|entries| entries.is_power_of_two());
        let entries = entries.ok_or(BufferError::TooLarge)?;
        let text = describe(groups);
        if text.len() > layout::TEXT_BYTES_MAX {
            return Err(BufferError::TooLarge);
        }
        take_over(path)?;
        let len = layout::file_words(cores.len(), entries);
        let options = File::options().read(true).write(true).create_new(true).mode(0o600).open(path);
        let file = options.map_err(failed)?;
        file.set_len((len * WORD_BYTES) as u64).map_err(failed)?;
        file.write_all_at(text.as_bytes(), (head::TEXT * WORD_BYTES) as u64).map_err(failed)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|errno| failed(errno.into()))?;
        let words = Words::map(&file, len, true).map_err(failed)?;
        let set = |word: usize, value: u64| words.all()[word].store(value, Ordering::Relaxed);
        set(head::TICKS_PER_SECOND, ticks.per_second);
        set(head::RINGS, cores.len() as u64);
        set(head::ENTRIES, entries as u64);
        set(head::PID, std::process::id().into());
        set(head::TEXT_BYTES, text.len() as u64);
        for (nth, core) in cores.iter().enumerate() {
            set(layout::RINGS_AT + nth * layout::ring_words(entries) + ring::CORE, (*core).into());
        }
        words.all()[head::MAGIC].store(layout::MAGIC, Ordering::Release);
        Ok(Buffer {
            words: Arc::new(words),
            path: path.to_owned(),
            entries,
            cores,
            ticks,
            _file: Arc::new(file),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on, events of the calling thread go into the ring of this core. It is the only thread that does this.
    pub fn attach(&self, core: u32) {
        let Some(nth) = self.cores.iter().position(|other| *other == core) else { return };
        let ring = Ring {
            words: Arc::clone(&self.words),
            at: self.ring_at(nth),
            entries: self.entries,
            written: 0,
            now: self.ticks.now,
        };
        RING.with_borrow_mut(|own| *own = Some(ring));
    }

    fn ring_at(&self, nth: usize) -> usize {
        layout::RINGS_AT + nth * layout::ring_words(self.entries)
    }

    /// Readers see none of the events up to now any more.
    pub fn clear(&self) {
        for nth in 0..self.cores.len() {
            let ring = &self.words.all()[self.ring_at(nth)..];
            let written = ring[ring::WRITTEN].load(Ordering::Relaxed);
            ring[ring::CLEARED].store(written, Ordering::Relaxed);
        }
    }

    /// Removes the file. Threads that are attached write on, for nobody.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// Removes what a program that is dead has left there.
fn take_over(path: &Path) -> Result<(), BufferError> {
    let failed = |source| BufferError::File { path: path.to_owned(), source };
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    match File::options().read(true).write(true).custom_flags(flags).open(path) {
        Ok(left) => match flock(&left, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => fs::remove_file(path).map_err(failed),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(BufferError::InUse(path.to_owned())),
            Err(errno) => Err(failed(errno.into())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// A line for each point: its numbers, its group, its name, its object, its arguments.
fn describe(groups: &[&Group]) -> String {
    let mut text = String::new();
    for group in groups {
        for (number, point) in group.points().iter().enumerate() {
            let id = id(group.id(), number as u8);
            text += &format!("{id} {} {} {}", group.name(), point.name, point.object);
            point.args.iter().for_each(|arg| text += &format!(" {arg}"));
            text.push('\n');
        }
    }
    text
}

/// The number of a point among all.
fn id(group: u8, point: u8) -> u64 {
    u64::from(group) << 6 | u64::from(point)
}

struct Ring {
    words: Arc<Words>,
    at: usize,
    entries: usize,
    written: u64,
    now: fn() -> u64,
}

thread_local! {
    static RING: RefCell<Option<Ring>> = const { RefCell::new(None) };
}

/// Writes an event into the ring of this thread. Nothing allocates, locks or calls the system, but for pages of the ring
/// that are touched for the first time.
#[cold]
#[inline(never)]
pub(crate) fn write(group: u8, point: u8, object: u64, args: [u64; ARGS]) {
    RING.with_borrow_mut(|ring| {
        if let Some(ring) = ring {
            ring.write(id(group, point), object, args);
        }
    });
}

impl Ring {
    fn write(&mut self, point: u64, object: u64, args: [u64; ARGS]) {
        let ring = &self.words.all()[self.at..];
        let nth = (self.written as usize) & (self.entries - 1);
        let entry = &ring[ring::HEAD + nth * entry::WORDS..][..entry::WORDS];
        let store = |word: &AtomicU64, value| word.store(value, Ordering::Relaxed);
        store(&entry[entry::NUMBER], 0);
        // Who reads any of the words below reads a number that is not the old one.
        fence(Ordering::Release);
        store(&entry[entry::TICK], (self.now)());
        store(&entry[entry::POINT], point);
        store(&entry[entry::OBJECT], object);
        for (word, value) in entry[entry::ARGS..].iter().zip(args) {
            store(word, value);
        }
        self.written += 1;
        entry[entry::NUMBER].store(self.written, Ordering::Release);
        store(&ring[ring::WRITTEN], self.written);
    }
}

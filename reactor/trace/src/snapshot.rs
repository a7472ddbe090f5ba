//! What a trace holds at one moment: read from its file, while the program writes on or after its end.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::group::ARGS;
use crate::layout::{self, entry, head, ring};
use crate::words::{WORD_BYTES, Words};

/// What a point's events mean, as the file says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The number that events carry.
    pub id: u64,
    /// Its group.
    pub group: String,
    /// Its name.
    pub name: String,
    /// What the object is.
    pub object: String,
    /// What the arguments are, as [`crate::Point::args`] has it.
    pub args: Vec<String>,
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, in ticks.
    pub tick: u64,
    /// The core of the thread.
    pub core: u32,
    /// The point's number.
    pub point: u64,
    /// What it happened to.
    pub object: u64,
    /// Its arguments.
    pub args: [u64; ARGS],
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be opened.
    #[error(transparent)]
    File(#[from] io::Error),
    /// It is something else, or cut off.
    #[error("the file is not a trace of this version")]
    NotATrace,
}

/// A trace.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Ticks of a second.
    pub ticks_per_second: u64,
    /// The program that wrote it.
    pub pid: u32,
    /// The points there are.
    pub points: Vec<Description>,
    /// The events, by their time.
    pub events: Vec<Event>,
}

impl Snapshot {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`SnapshotError`].
    pub fn read(path: &Path) -> Result<Snapshot, SnapshotError> {
        let file = File::open(path)?;
        let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX) / WORD_BYTES;
        if len < layout::RINGS_AT {
            return Err(SnapshotError::NotATrace);
        }
        let words = Words::map(&file, len, false)?;
        let word = |at: usize| words.all()[at].load(Ordering::Acquire);
        let [rings, entries, text] =
            [head::RINGS, head::ENTRIES, head::TEXT_BYTES].map(|at| usize::try_from(word(at)).ok());
        let (Some(rings), Some(entries), Some(text)) = (rings, entries, text) else {
            return Err(SnapshotError::NotATrace);
        };
        let ring_words = entries.checked_mul(entry::WORDS).and_then(|words| words.checked_add(ring::HEAD));
        let words_due = ring_words.and_then(|words| words.checked_mul(rings)?.checked_add(layout::RINGS_AT));
        if word(head::MAGIC) != layout::MAGIC
            || words_due.is_none_or(|due| due > len)
            || text > layout::TEXT_BYTES_MAX
        {
            return Err(SnapshotError::NotATrace);
        }
        let points = points(&words.all()[head::TEXT..], text).ok_or(SnapshotError::NotATrace)?;
        let mut events: Vec<Event> = Vec::new();
        for ring in words.all()[layout::RINGS_AT..].chunks(ring::HEAD + entries * entry::WORDS).take(rings) {
            events.extend(events_of(ring));
        }
        events.sort_by_key(|event| event.tick);
        let pid = u32::try_from(word(head::PID)).unwrap_or(0);
        Ok(Snapshot { ticks_per_second: word(head::TICKS_PER_SECOND).max(1), pid, points, events })
    }

    /// The description of the point of an event.
    pub fn point(&self, id: u64) -> Option<&Description> {
        self.points.iter().find(|point| point.id == id)
    }
}

fn points(words: &[AtomicU64], bytes: usize) -> Option<Vec<Description>> {
    let loaded = words.iter().take(bytes.div_ceil(WORD_BYTES));
    let mut text: Vec<u8> = loaded.flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
    text.truncate(bytes);
    let point = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let id = words.next()?.parse().ok()?;
        let (group, name, object) = (words.next()?, words.next()?, words.next()?);
        Some(Description { id, group, name, object, args: words.collect() })
    };
    String::from_utf8(text).ok()?.lines().map(point).collect()
}

/// The whole entries of a ring. One that is written at this moment is left out.
fn events_of(ring: &[AtomicU64]) -> Vec<Event> {
    let core = ring[ring::CORE].load(Ordering::Relaxed) as u32;
    let cleared = ring[ring::CLEARED].load(Ordering::Relaxed);
    let event = |entry: &[AtomicU64]| {
        let number = entry[entry::NUMBER].load(Ordering::Acquire);
        let load = |at: usize| entry[at].load(Ordering::Relaxed);
        let event = Event {
            tick: load(entry::TICK),
            core,
            point: load(entry::POINT),
            object: load(entry::OBJECT),
            args: std::array::from_fn(|nth| load(entry::ARGS + nth)),
        };
        // What was loaded above was there before the number is looked at again.
        fence(Ordering::Acquire);
        let is_whole = number > cleared && load(entry::NUMBER) == number;
        is_whole.then_some((number, event))
    };
    let mut events: Vec<(u64, Event)> =
        ring[ring::HEAD..].chunks_exact(entry::WORDS).filter_map(event).collect();
    events.sort_by_key(|(number, _)| *number);
    events.into_iter().map(|(_, event)| event).collect()
}

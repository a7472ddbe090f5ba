//! The file of `--state-dir`: a whole configuration, then one change after the other.
//!
//! A record is its length and its CRC-32C, four bytes each and little-endian, and JSON text. The first holds the whole
//! configuration; each one after it says what a call changed. The space of a record is allocated before the call runs,
//! so that a full disk refuses calls and never loses one that was made; it is written and synced before the call is
//! answered. What follows the last whole record is what a crash cut off, and is not read.
//!
//! A file is only ever appended to, or replaced as a whole by a rename: whenever the process dies, the file holds the
//! state before or after a call.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Name of the file.
const FILE: &str = "state.journal";
/// Name of the file that is to become it.
const NEW_FILE: &str = "state.journal.new";
/// Name of the file that keeps what was kept before, where a start has led to something else.
const OLD_FILE: &str = "state.journal.old";
/// Name of the file whose lock says that the folder is in use.
const LOCK_FILE: &str = "lock";
/// Room that a call needs to begin: more than any one call changes, save for some that undo a great deal.
const ROOM_BYTES: u64 = 1 << 20;
/// Room for each call besides that has been made and is not written yet. A create is as long as its request, and few are
/// longer.
const PENDING_BYTES: u64 = 64 << 10;
/// How much is allocated at once.
const CHUNK_BYTES: u64 = 4 << 20;
/// A file larger than this, and [`REWRITE_FACTOR`] times what it says, is written anew.
const REWRITE_BYTES: u64 = 4 << 20;
const REWRITE_FACTOR: u64 = 4;
/// Bytes before the text of a record.
const HEAD_BYTES: usize = 8;

/// Why the state cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// Another process keeps its state there.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// A file cannot be read, made or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// The file does not start with a whole configuration: it is not one of ours, or the disk has lost it.
    #[error("{0} does not hold a configuration")]
    Damaged(PathBuf),
}

impl JournalError {
    fn at(path: &Path) -> impl Fn(io::Error) -> JournalError {
        move |source| JournalError::File { path: path.to_owned(), source }
    }

    /// The errno for a client.
    pub(crate) fn errno(&self) -> i32 {
        const EIO: i32 = 5;
        match self {
            JournalError::File { source, .. } => source.raw_os_error().unwrap_or(EIO),
            JournalError::InUse(_) | JournalError::Damaged(_) => EIO,
        }
    }
}

/// The configuration as the file holds it: calls by subsystem.
pub(crate) type State = Vec<(String, Vec<Value>)>;

/// What one call changed in one subsystem: `remove` calls from the one at `at` on are replaced by `insert`.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Change {
    subsystem: String,
    at: usize,
    remove: usize,
    insert: Vec<Value>,
}

impl Change {
    fn between(subsystem: &str, before: &[Value], after: &[Value]) -> Option<Change> {
        let at = before.iter().zip(after).take_while(|(before, after)| before == after).count();
        let (before, after) = (&before[at..], &after[at..]);
        let tails = before.iter().rev().zip(after.iter().rev());
        let same = tails.take_while(|(before, after)| before == after).count();
        let (remove, insert) = (before.len() - same, after[..after.len() - same].to_vec());
        let subsystem = subsystem.to_owned();
        (remove > 0 || !insert.is_empty()).then_some(Change { subsystem, at, remove, insert })
    }

    fn apply(self, state: &mut State) -> Option<()> {
        if !state.iter().any(|(name, _)| *name == self.subsystem) {
            state.push((self.subsystem.clone(), Vec::new()));
        }
        let (_, calls) = state.iter_mut().find(|(name, _)| *name == self.subsystem)?;
        let end = self.at.checked_add(self.remove).filter(|end| *end <= calls.len())?;
        calls.splice(self.at..end, self.insert);
        Some(())
    }
}

/// The file, open and locked.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    /// None while it does not hold what it was told last: nothing was written yet, or writing failed.
    file: Option<File>,
    /// Where the next record goes.
    end: u64,
    /// Bytes that are allocated.
    allocated: u64,
    /// What the file says.
    state: State,
    _lock: File,
}

impl Journal {
    /// Opens the folder, which is made if it is missing; gives what was kept there, none if nothing was.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub(crate) fn open(dir: &Path) -> Result<(Journal, Option<State>), JournalError> {
        std::fs::create_dir_all(dir).map_err(JournalError::at(dir))?;
        let path = dir.join(LOCK_FILE);
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(JournalError::at(&path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(JournalError::InUse(dir.to_owned())),
            Err(errno) => return Err(JournalError::at(&path)(errno.into())),
        }
        let path = dir.join(FILE);
        let kept = match std::fs::read(&path) {
            Ok(bytes) => Some(replay(&bytes).ok_or_else(|| JournalError::Damaged(path.clone()))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(JournalError::at(&path)(error)),
        };
        let state = kept.clone().unwrap_or_default();
        // Not written before `begin`: until then the old file, or none, is the truth.
        let journal = Journal { dir: dir.to_owned(), file: None, end: 0, allocated: 0, state, _lock: lock };
        Ok((journal, kept))
    }

    /// Begins a file with this state in the place of the one that was read. Where that said something else, as calls of it
    /// were refused (`--json-ignore-init-errors`), it stays beside the new one: a disk may have been missing but once.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub(crate) fn begin(&mut self, state: State) -> Result<(), JournalError> {
        let (path, old) = (self.dir.join(FILE), self.dir.join(OLD_FILE));
        let is_other = without_empty(&self.state) != without_empty(&state);
        if is_other && path.try_exists().map_err(JournalError::at(&path))? {
            let copied = std::fs::copy(&path, &old).and_then(|_len| File::open(&old)?.sync_all());
            copied.map_err(JournalError::at(&old))?;
            tracing::warn!(kept = %old.display(), "the configuration is not what was kept; what was is in this file");
        }
        self.state = state;
        self.rewrite()
    }

    /// Bytes that are allocated and not written yet; none while the file cannot be written.
    pub(crate) fn room(&self) -> u64 {
        self.file.as_ref().map_or(0, |_| self.allocated - self.end)
    }

    /// Sees to it that a change can be written, behind those of so many calls that have been made.
    ///
    /// # Errors
    /// The disk is full, or broken.
    pub(crate) fn reserve(&mut self, pending: u64) -> Result<(), JournalError> {
        match &self.file {
            Some(file) if self.room() < room_for(pending) => {
                let room = room_for(pending);
                let more = allocate(file, self.end, CHUNK_BYTES.max(room))
                    .or_else(|_| allocate(file, self.end, room));
                let len = more.map_err(JournalError::at(&self.dir.join(FILE)))?;
                self.allocated = self.end + len;
                Ok(())
            }
            Some(_) => Ok(()),
            None => self.rewrite(),
        }
    }

    /// Writes what has changed since it was told last, and syncs it.
    ///
    /// # Errors
    /// The disk fails. The next call of [`Journal::reserve`] tries to write all of it.
    pub(crate) fn record(&mut self, state: State) -> Result<(), JournalError> {
        let changes: Vec<Change> = state
            .iter()
            .filter_map(|(name, after)| {
                let before = self.state.iter().find(|(other, _)| other == name);
                Change::between(name, before.map_or(&[], |(_, calls)| calls), after)
            })
            .collect();
        if changes.is_empty() {
            return Ok(());
        }
        self.state = state;
        let Some(file) = self.file.take() else { return self.rewrite() };
        let record = record_of(&serde_json::to_vec(&changes).expect("strings and values are JSON"));
        // Past what is allocated the file grows as it is written.
        let written = file.write_all_at(&record, self.end).and_then(|()| file.sync_data());
        written.map_err(JournalError::at(&self.dir.join(FILE)))?;
        self.file = Some(file);
        self.end += record.len() as u64;
        self.allocated = self.allocated.max(self.end);
        if self.end > REWRITE_BYTES && self.end > REWRITE_FACTOR * self.size_of_state() {
            // The old file is whole; it grows on if this fails.
            if let Err(error) = self.rewrite() {
                tracing::warn!(%error, "the state cannot be written anew");
            }
        }
        Ok(())
    }

    fn size_of_state(&self) -> u64 {
        whole(&self.state).len() as u64
    }

    fn rewrite(&mut self) -> Result<(), JournalError> {
        let (file, end, allocated) = write_anew(&self.dir, &self.state)?;
        (self.file, self.end, self.allocated) = (Some(file), end, allocated);
        Ok(())
    }
}

/// The parts of a state that say something.
fn without_empty(state: &State) -> Vec<&(String, Vec<Value>)> {
    state.iter().filter(|(_, calls)| !calls.is_empty()).collect()
}

/// The room that a call needs to begin, behind so many that have been made.
pub(crate) fn room_for(pending: u64) -> u64 {
    ROOM_BYTES + pending * PENDING_BYTES
}

/// Allocates so many bytes from `offset` on; gives how many are.
fn allocate(file: &File, offset: u64, len: u64) -> io::Result<u64> {
    match fallocate(file, FallocateFlags::empty(), offset, len) {
        // A file system that cannot: a full disk then shows when the change is written.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(len),
        Err(errno) => Err(errno.into()),
    }
}

/// The file with this one state, in the place of the one before: open, where it ends, and how much is allocated.
fn write_anew(dir: &Path, state: &State) -> Result<(File, u64, u64), JournalError> {
    let path = dir.join(NEW_FILE);
    let at = JournalError::at(&path);
    let mut file = File::options().create(true).truncate(true).write(true).open(&path).map_err(&at)?;
    let bytes = whole(state);
    file.write_all(&bytes).map_err(&at)?;
    let end = bytes.len() as u64;
    let room = allocate(&file, end, ROOM_BYTES).map_err(&at)?;
    file.sync_all().map_err(&at)?;
    std::fs::rename(&path, dir.join(FILE)).map_err(&at)?;
    // The rename is only sure when the folder is synced.
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(&at)?;
    Ok((file, end, end + room))
}

fn whole(state: &State) -> Vec<u8> {
    record_of(&serde_json::to_vec(state).expect("strings and values are JSON"))
}

fn record_of(text: &[u8]) -> Vec<u8> {
    let len = u32::try_from(text.len()).expect("a configuration is smaller than 4 GiB");
    let mut record = Vec::with_capacity(HEAD_BYTES + text.len());
    record.extend_from_slice(&len.to_le_bytes());
    record.extend_from_slice(&crc32c(text).to_le_bytes());
    record.extend_from_slice(text);
    record
}

/// The state that the bytes of a file lead to; none if they do not start with a whole one.
fn replay(bytes: &[u8]) -> Option<State> {
    let (first, mut rest) = split_record(bytes)?;
    let mut state: State = serde_json::from_slice(first).ok()?;
    while let Some((text, after)) = split_record(rest) {
        let changes: Vec<Change> = serde_json::from_slice(text).ok()?;
        changes.into_iter().try_for_each(|change| change.apply(&mut state))?;
        rest = after;
    }
    Some(state)
}

/// The text of the record that the bytes start with, and what follows it; none if it is not whole.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len) as usize;
    let (text, rest) = rest.split_at_checked(len).filter(|_| len > 0)?;
    (crc32c(text) == u32::from_le_bytes(*sum)).then_some((text, rest))
}

/// CRC-32C (RFC 3720, 12.1), bit by bit: the records are short.
fn crc32c(bytes: &[u8]) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (REVERSED_POLYNOMIAL & (sum & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn holding(bdevs: &[&str], endpoints: &[&str]) -> State {
        let calls = |names: &[&str]| {
            names.iter().map(|name| json!({"method": "m", "params": {"name": name}})).collect()
        };
        vec![("bdev".to_owned(), calls(bdevs)), ("vfio_user_target".to_owned(), calls(endpoints))]
    }

    /// What a target goes through.
    fn history() -> Vec<State> {
        vec![
            holding(&["a"], &[]),
            holding(&["a", "b"], &[]),
            holding(&["a", "b", "c"], &["e"]),
            holding(&["a", "c"], &["e", "f"]),
            holding(&["a", "x", "c"], &["f"]),
            holding(&[], &[]),
            holding(&["z"], &["z"]),
        ]
    }

    #[test]
    fn checksum_is_the_one_of_the_rfc() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn what_was_recorded_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (_, kept) = Journal::open(dir.path()).unwrap();
        assert_eq!(kept, None);
        for state in history() {
            let (mut journal, kept) = Journal::open(dir.path()).unwrap();
            journal.begin(kept.unwrap_or_else(|| holding(&[], &[]))).unwrap();
            journal.reserve(0).unwrap();
            journal.record(state.clone()).unwrap();
            drop(journal);
            assert_eq!(Journal::open(dir.path()).unwrap().1, Some(state));
        }
    }

    #[test]
    fn file_cut_off_anywhere_holds_a_state_before_or_after_a_call() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        journal.begin(holding(&[], &[])).unwrap();
        let mut ends = vec![journal.end];
        for state in history() {
            journal.record(state).unwrap();
            ends.push(journal.end);
        }
        let bytes = std::fs::read(dir.path().join(FILE)).unwrap();
        let states: Vec<State> = std::iter::once(holding(&[], &[])).chain(history()).collect();
        for cut in usize::try_from(ends[0]).unwrap()..usize::try_from(*ends.last().unwrap()).unwrap() {
            let whole = ends.iter().filter(|end| **end <= cut as u64).count() - 1;
            // What a crash leaves behind the cut: nothing, zeroes, or rubbish.
            for tail in [&[][..], &[0; 64], &[0xff; 64]] {
                let left = [&bytes[..cut], tail].concat();
                assert_eq!(replay(&left).as_ref(), Some(&states[whole]), "cut at {cut}");
            }
        }
    }

    #[test]
    fn file_that_is_not_ours_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "precious").unwrap();
        assert!(matches!(Journal::open(dir.path()), Err(JournalError::Damaged(_))));
        assert_eq!(std::fs::read(dir.path().join(FILE)).unwrap(), b"precious");
    }

    #[test]
    fn folder_is_kept_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Journal::open(dir.path()).unwrap();
        assert!(matches!(Journal::open(dir.path()), Err(JournalError::InUse(_))));
        drop(first);
        assert!(Journal::open(dir.path()).is_ok());
    }

    #[test]
    fn file_that_has_grown_is_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        journal.begin(holding(&[], &[])).unwrap();
        let large = "x".repeat(1 << 20);
        for round in 0..6 {
            let name = format!("{round}{large}");
            journal.record(holding(&[&name], &[])).unwrap();
        }
        assert!(journal.end < REWRITE_BYTES, "{}", journal.end);
        let kept = journal.state.clone();
        drop(journal);
        assert_eq!(Journal::open(dir.path()).unwrap().1, Some(kept));
    }
}

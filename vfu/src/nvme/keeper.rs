//! The file in which reservations outlive the target (Persist Through Power Loss; Base, 8.19).
//!
//! [`Reservations`](super::reservation::Reservations) hands over every state that is to be kept. A thread writes it, as no
//! reactor is to wait for a disk, and the commands that made it end once it, or a later one, is in the file for good.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use super::reservation::State;

#[derive(Debug)]
struct Wanted {
    state: State,
    /// The number of this state.
    change: u64,
    is_over: bool,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    wanted: Mutex<Wanted>,
    changed: Condvar,
    /// The last change that is in the file.
    kept: AtomicU64,
    /// The last one that could not be written.
    lost: AtomicU64,
}

/// Keeps the states of one namespace.
#[derive(Debug)]
pub(super) struct Keeper(Arc<Shared>);

impl Keeper {
    /// The keeper of a file, and the state that it remembers; the file is written once, to see that it can be. To be called by
    /// no reactor: it waits for the disk, and the thread inherits the caller's affinity.
    ///
    /// # Errors
    /// The file is not one of reservations, or cannot be read or written.
    pub(super) fn open(path: PathBuf) -> io::Result<(Self, State)> {
        let state = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(error),
        };
        write(&path, &state)?;
        let shared = Arc::new(Shared {
            path,
            wanted: Mutex::new(Wanted { state: state.clone(), change: 0, is_over: false }),
            changed: Condvar::new(),
            kept: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let keeper = Self(Arc::clone(&shared));
        thread::Builder::new().name("nvme-ptpl".to_owned()).spawn(move || shared.run())?;
        Ok((keeper, state))
    }

    /// Has a state written; the number of the change.
    pub(super) fn keep(&self, state: State) -> u64 {
        let mut wanted = self.0.lock();
        if wanted.state != state || self.is_kept(wanted.change) == Some(false) {
            wanted.state = state;
            wanted.change += 1;
            self.0.changed.notify_one();
        }
        wanted.change
    }

    /// Whether a change is in the file; none while it is on its way.
    pub(super) fn is_kept(&self, change: u64) -> Option<bool> {
        if self.0.kept.load(Ordering::Acquire) >= change {
            Some(true)
        } else {
            (self.0.lost.load(Ordering::Acquire) >= change).then_some(false)
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes whatever is wanted last, until it is over.
    fn run(&self) {
        let mut seen = 0;
        loop {
            let is_idle = |wanted: &mut Wanted| wanted.change == seen && !wanted.is_over;
            let wanted =
                self.changed.wait_while(self.lock(), is_idle).unwrap_or_else(PoisonError::into_inner);
            if wanted.change == seen {
                return;
            }
            let state = wanted.state.clone();
            seen = wanted.change;
            drop(wanted);
            let outcome = match write(&self.path, &state) {
                Ok(()) => &self.kept,
                Err(error) => {
                    tracing::error!(file = %self.path.display(), %error, "reservations cannot be kept");
                    &self.lost
                }
            };
            outcome.store(seen, Ordering::Release);
        }
    }
}

/// Puts a state in the place of the one before: whenever the power goes, the file holds one of both.
fn write(path: &Path, state: &State) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(state)?)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    // The rename is only sure when the folder is synced.
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn state(generation: u32) -> State {
        let state = serde_json::json!({
            "registrants": [], "holder": null, "kind": 0, "generation": generation, "ptpl": true,
        });
        serde_json::from_value(state).unwrap()
    }

    fn ends(keeper: &Keeper, change: u64) -> bool {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(is_kept) = keeper.is_kept(change) {
                return is_kept;
            }
            assert!(Instant::now() < deadline, "change {change} stays on its way");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn state_is_in_the_file_once_it_is_called_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ptpl");
        let (keeper, first) = Keeper::open(path.clone()).unwrap();
        assert_eq!((first, keeper.is_kept(0)), (State::default(), Some(true)));

        for generation in 1..20 {
            let change = keeper.keep(state(generation));
            assert_eq!(change, keeper.keep(state(generation)), "the same again is no change");
            assert!(ends(&keeper, change));
            let text = std::fs::read(&path).unwrap();
            assert_eq!(serde_json::from_slice::<State>(&text).unwrap(), state(generation));
        }
        assert!(!dir.path().join("ptpl.new").exists());
    }

    #[test]
    fn what_cannot_be_written_is_tried_again_with_the_next_command() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        std::fs::create_dir(&folder).unwrap();
        let (keeper, _) = Keeper::open(folder.join("ptpl")).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(!ends(&keeper, keeper.keep(state(1))));

        std::fs::create_dir(&folder).unwrap();
        assert!(ends(&keeper, keeper.keep(state(1))));
        drop(keeper);
        assert_eq!(Keeper::open(folder.join("ptpl")).unwrap().1, state(1));
    }

    #[test]
    fn file_that_is_torn_or_in_no_folder_is_refused_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ptpl");
        let text = serde_json::to_vec(&state(7)).unwrap();
        let torn = &text[..text.len() - 1];
        std::fs::write(&path, torn).unwrap();
        assert!(Keeper::open(path.clone()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), torn);
        assert!(Keeper::open(dir.path().join("none").join("ptpl")).is_err());
    }
}

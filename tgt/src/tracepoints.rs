//! The trace of the target: its groups, its file, and what turns points on and off.
//!
//! The file is made when the first point is turned on, so that a target that is never traced leaves nothing behind, and
//! stays where the target ends while points are on: then somebody means to read it.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use reactor::{Clock, Handle};
use trace::{Buffer, BufferError, Group, SelectError, Ticks};

/// All groups.
const GROUPS: &[&Group] =
    &[&bdev::TRACE, &reactor::TRACE, &vfu::points::ENDPOINT, &vfu::points::VIRTIO, &vfu::points::NVME];

/// Where the file of a target is, by the end of its name.
pub(crate) fn path(end: &str) -> PathBuf {
    Path::new("/dev/shm").join(format!("ringside_trace.{end}"))
}

/// Why points are not turned on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    /// `--num-trace-entries 0`.
    #[error("there is no trace: --num-trace-entries is 0")]
    None,
    /// No such points.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// No file.
    #[error(transparent)]
    Buffer(#[from] BufferError),
}

/// The trace.
#[derive(Debug)]
pub(crate) struct Tracepoints {
    reactors: Vec<Handle>,
    path: PathBuf,
    entries: u32,
    buffer: Mutex<Option<Buffer>>,
}

fn now() -> u64 {
    Clock::system().now().raw()
}

impl Tracepoints {
    /// With all points off. `entries` are those of each reactor's ring.
    pub(crate) fn new(reactors: Vec<Handle>, shm_id: Option<u32>, entries: u32) -> Self {
        let end = shm_id.map_or_else(|| format!("pid{}", std::process::id()), |id| id.to_string());
        Self { reactors, path: path(&end), entries, buffer: Mutex::new(None) }
    }

    /// All groups.
    pub(crate) fn groups(&self) -> &'static [&'static Group] {
        GROUPS
    }

    /// The group of this name.
    pub(crate) fn group(&self, name: &str) -> Option<&'static Group> {
        GROUPS.iter().copied().find(|group| group.name() == name)
    }

    /// Where the events are, once a point has been turned on.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn buffer(&self) -> MutexGuard<'_, Option<Buffer>> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Turns on what a value of `-e` says.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub(crate) fn enable_flag(&self, flag: &str) -> Result<(), TraceError> {
        trace::select(GROUPS, flag)?.into_iter().try_for_each(|(group, mask)| self.enable(group, mask))
    }

    /// Turns points on.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub(crate) fn enable(&self, group: &Group, mask: u64) -> Result<(), TraceError> {
        if self.entries == 0 {
            return Err(TraceError::None);
        }
        let mut buffer = self.buffer();
        if buffer.is_none() {
            *buffer = Some(self.start()?);
        }
        group.enable(mask);
        Ok(())
    }

    /// Makes the file, and has each reactor write to its ring.
    fn start(&self) -> Result<Buffer, BufferError> {
        let ticks = Ticks { now, per_second: Clock::system().ticks_per_second() };
        let cores = self.reactors.iter().map(Handle::core);
        let buffer = Buffer::create(&self.path, cores, self.entries, ticks, GROUPS)?;
        tracing::info!(file = %self.path.display(), "trace started");
        for reactor in &self.reactors {
            let (ring, core) = (buffer.clone(), reactor.core());
            // One that takes no messages stops, and has no events any more.
            let _ = reactor.send(Box::new(move |_reactor| ring.attach(core)));
        }
        Ok(buffer)
    }

    /// Readers see nothing of what was up to now.
    pub(crate) fn clear(&self) {
        if let Some(buffer) = &*self.buffer() {
            buffer.clear();
        }
    }

    /// The end of the target: the file goes, unless it is still being written to.
    pub(crate) fn close(&self) {
        let Some(buffer) = self.buffer().take() else { return };
        if GROUPS.iter().any(|group| group.mask() != 0) {
            tracing::info!(file = %self.path.display(), "the trace is kept; ringside trace -f prints it");
        } else if let Err(error) = buffer.remove() {
            tracing::warn!(%error, file = %self.path.display(), "the trace cannot be removed");
        }
    }
}

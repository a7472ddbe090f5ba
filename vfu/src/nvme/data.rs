//! How the core reaches a command's data, wherever its transport keeps it: PRPs and SGLs in guest memory over PCIe.

use bdev::{IoVec, iov};

use super::spec::{Command, Status};

/// Not a status of a command, and never told to a host: its data are not there yet. Whoever gave the command has to bring
/// them, and to give it again; it has done nothing.
pub const ABSENT: Status = Status(1 << 15);

/// The data of commands of one queue.
pub trait Data {
    /// Appends vectors over the first `len` bytes of the command's data; never more than `out` has room for. The memory
    /// stays valid while the command is in flight.
    ///
    /// # Errors
    /// The status to complete the command with, or [`ABSENT`].
    fn map(
        &self,
        command: &Command,
        len: u64,
        device_writes: bool,
        out: &mut Vec<IoVec>,
    ) -> Result<(), Status>;

    /// The vector over `len` bytes that one PRP says where they are, if it can be had at once. As of [`Self::map`].
    fn map_page(&self, prp: u64, len: u64, device_writes: bool) -> Option<IoVec> {
        let _ = (prp, len, device_writes);
        None
    }

    /// How much of the memory was lost so far, its owner having made its file shorter. A command between whose start and
    /// end this changed has failed.
    fn torn(&self) -> usize;
}

/// Success, unless memory was lost since `torn` was asked.
fn unless_torn(data: &impl Data, torn: usize) -> Result<(), Status> {
    if data.torn() == torn { Ok(()) } else { Err(Status::DATA_TRANSFER_ERROR) }
}

/// Most vectors of data of an admin command, or of a table that an I/O command brings.
const TABLE_SEGMENTS: usize = 64;

/// Copies the command's data to `to`. Not for the hot path.
///
/// # Errors
/// The status to complete the command with.
pub fn fetch(data: &impl Data, command: &Command, to: &mut [u8]) -> Result<(), Status> {
    fetch_by(data, command, to, &mut Vec::with_capacity(TABLE_SEGMENTS))
}

/// The same with the caller's list of vectors, which is empty before and after: allocates nothing.
///
/// # Errors
/// The status to complete the command with.
pub fn fetch_by(
    data: &impl Data,
    command: &Command,
    to: &mut [u8],
    vectors: &mut Vec<IoVec>,
) -> Result<(), Status> {
    let torn = data.torn();
    let mapped = data.map(command, to.len() as u64, false, vectors);
    if mapped.is_ok() {
        iov::gather(vectors, to);
    }
    vectors.clear();
    mapped.and_then(|()| unless_torn(data, torn))
}

/// Copies `from` to the command's data. Not for the hot path.
///
/// # Errors
/// The status to complete the command with.
pub fn store(data: &impl Data, command: &Command, from: &[u8]) -> Result<(), Status> {
    target(data, command, from.len())?.store(from)
}

/// Where the data of a command go.
pub struct Target<'a, D> {
    data: &'a D,
    vectors: Vec<IoVec>,
    torn: usize,
}

/// Finds the first `len` bytes of the command's data, for what changes as it is told: a command whose data cannot be
/// reached must change nothing.
///
/// # Errors
/// The status to complete the command with.
pub fn target<'a, D: Data>(data: &'a D, command: &Command, len: usize) -> Result<Target<'a, D>, Status> {
    let torn = data.torn();
    let mut vectors = Vec::with_capacity(TABLE_SEGMENTS);
    data.map(command, len as u64, true, &mut vectors)?;
    Ok(Target { data, vectors, torn })
}

impl<D: Data> Target<'_, D> {
    /// Copies `from` there, which has as many bytes.
    ///
    /// # Errors
    /// The status to complete the command with.
    pub fn store(&self, from: &[u8]) -> Result<(), Status> {
        iov::scatter(&self.vectors, from);
        unless_torn(self.data, self.torn)
    }
}

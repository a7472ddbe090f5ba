//! How the core reaches a command's data, wherever its transport keeps it: PRPs and SGLs in guest memory over PCIe.

use bdev::{IoVec, iov};

use super::spec::{Command, Status};

/// The data of commands of one queue.
pub trait Data {
    /// Appends vectors over the first `len` bytes of the command's data; never more than `out` has room for. The memory
    /// stays valid while the command is in flight.
    ///
    /// # Errors
    /// The status to complete the command with.
    fn map(
        &self,
        command: &Command,
        len: u64,
        device_writes: bool,
        out: &mut Vec<IoVec>,
    ) -> Result<(), Status>;
}

/// Most vectors of data of an admin command, or of a table that an I/O command brings.
const TABLE_SEGMENTS: usize = 64;

/// Copies the command's data to `to`. Not for the hot path.
///
/// # Errors
/// The status to complete the command with.
pub fn fetch(data: &impl Data, command: &Command, to: &mut [u8]) -> Result<(), Status> {
    let mut vectors = Vec::with_capacity(TABLE_SEGMENTS);
    data.map(command, to.len() as u64, false, &mut vectors)?;
    iov::gather(&vectors, to);
    Ok(())
}

/// Copies `from` to the command's data. Not for the hot path.
///
/// # Errors
/// The status to complete the command with.
pub fn store(data: &impl Data, command: &Command, from: &[u8]) -> Result<(), Status> {
    let mut vectors = Vec::with_capacity(TABLE_SEGMENTS);
    data.map(command, from.len() as u64, true, &mut vectors)?;
    iov::scatter(&vectors, from);
    Ok(())
}

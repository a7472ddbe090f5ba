//! Bytes and file descriptors over a Unix stream socket, without blocking.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::{Errno, retry_on_intr},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

use super::version::MAX_MSG_FDS;

/// What one receive brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing is there now.
    Empty,
    /// The peer closed its side.
    Closed,
    /// More descriptors than [`MAX_MSG_FDS`] for this message.
    TooManyFds,
}

/// Receives into `buf`, appending descriptors to `fds`.
pub(super) fn receive(socket: impl AsFd, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<Chunk, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MSG_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = retry_on_intr(|| recvmsg(&socket, &mut [IoSliceMut::new(buf)], &mut control, flags));
    let received = match received {
        Ok(received) => received,
        Err(Errno::AGAIN) => return Ok(Chunk::Empty),
        Err(Errno::CONNRESET) => return Ok(Chunk::Closed),
        Err(errno) => return Err(errno),
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    // The control buffer is rounded up, so one descriptor more than asked for may still come through.
    if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_MSG_FDS {
        return Ok(Chunk::TooManyFds);
    }
    Ok(if received.bytes == 0 { Chunk::Closed } else { Chunk::Bytes(received.bytes) })
}

/// Sends as much of `bytes` as the socket takes, with `fds` on the first of them.
///
/// # Errors
/// `EAGAIN` when it takes nothing now. A peer that is gone is `EPIPE`, never a signal.
pub(super) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MSG_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::INVAL);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags))
}

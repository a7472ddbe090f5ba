//! The wire, by hand: headers as bytes, descriptors beside them. Shares no code with the server.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Generous: a loaded machine is slow, and only a failing case waits this long.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) mod cmd {
    pub(crate) const VERSION: u16 = 1;
    pub(crate) const DMA_MAP: u16 = 2;
    pub(crate) const DMA_UNMAP: u16 = 3;
    pub(crate) const GET_INFO: u16 = 4;
    pub(crate) const GET_REGION_INFO: u16 = 5;
    pub(crate) const GET_REGION_IO_FDS: u16 = 6;
    pub(crate) const GET_IRQ_INFO: u16 = 7;
    pub(crate) const SET_IRQS: u16 = 8;
    pub(crate) const REGION_READ: u16 = 9;
    pub(crate) const REGION_WRITE: u16 = 10;
    pub(crate) const DMA_READ: u16 = 11;
    pub(crate) const DMA_WRITE: u16 = 12;
    pub(crate) const RESET: u16 = 13;
    pub(crate) const REGION_WRITE_MULTI: u16 = 15;
    pub(crate) const DEVICE_FEATURE: u16 = 16;
    pub(crate) const MIG_DATA_READ: u16 = 17;
    pub(crate) const MIG_DATA_WRITE: u16 = 18;
}

pub(super) mod errno {
    pub(crate) const ENOENT: u32 = 2;
    pub(crate) const EEXIST: u32 = 17;
    pub(crate) const EINVAL: u32 = 22;
    pub(crate) const ENOTTY: u32 = 25;
    pub(crate) const ENOSPC: u32 = 28;
}

pub(super) const REPLY: u32 = 1;
pub(super) const NO_REPLY: u32 = 1 << 4;
pub(super) const ERROR: u32 = 1 << 5;

/// Bytes of several fields.
macro_rules! bytes {
    ($($field:expr),* $(,)?) => {{
        let mut all = Vec::<u8>::new();
        $(all.extend_from_slice(&$field.to_ne_bytes());)*
        all
    }};
}
pub(super) use bytes;

/// A message as it came.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) id: u16,
    pub(super) command: u16,
    pub(super) flags: u32,
    pub(super) error: u32,
    pub(super) payload: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Message {
    /// The payload of a reply that is no error.
    pub(super) fn ok(self) -> Result<Vec<u8>> {
        ensure!(self.flags & ERROR == 0, "command {} was refused with errno {}", self.command, self.error);
        Ok(self.payload)
    }

    /// That it is an error, this one, and nothing but a header.
    pub(super) fn refused(&self, errno: u32) -> Result<()> {
        ensure!(self.flags & ERROR != 0, "command {} was not refused", self.command);
        ensure!(self.payload.is_empty(), "an error reply has {} bytes behind its header", self.payload.len());
        ensure!(self.error == errno, "refused with errno {} instead of {errno}", self.error);
        Ok(())
    }

    /// That it is an error of any kind.
    pub(super) fn is_refused(&self) -> Result<()> {
        ensure!(self.flags & ERROR != 0, "command {} was not refused", self.command);
        ensure!(self.payload.is_empty(), "an error reply has {} bytes behind its header", self.payload.len());
        Ok(())
    }

    pub(super) fn u32(&self, at: usize) -> Result<u32> {
        let bytes = self.payload.get(at..at + 4).context("the reply is too short")?;
        Ok(u32::from_ne_bytes(bytes.try_into()?))
    }

    pub(super) fn u64(&self, at: usize) -> Result<u64> {
        let bytes = self.payload.get(at..at + 8).context("the reply is too short")?;
        Ok(u64::from_ne_bytes(bytes.try_into()?))
    }
}

/// A message's bytes.
pub(super) fn message(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(16 + payload.len()).expect("a short payload");
    [&bytes!(id, command, size, flags, 0_u32)[..], payload].concat()
}

/// VERSION 0.0 with JSON.
pub(super) fn version(json: &str) -> Vec<u8> {
    [&bytes!(0_u16, 0_u16)[..], json.as_bytes(), &[0]].concat()
}

/// A connection.
pub(super) struct Wire {
    stream: UnixStream,
    next_id: u16,
    memory: Option<Private>,
}

/// Guest memory that the server gets at by messages only.
pub(super) struct Private {
    pub(super) file: OwnedFd,
    pub(super) base: u64,
    /// `count` has 32 bits, and data follow at once: as QEMU 10.1 to 11.1 have it.
    pub(super) narrow: bool,
    /// Commands answered.
    pub(super) answered: u64,
    /// Answer with an error from here on.
    pub(super) refuse: bool,
}

impl Private {
    /// The reply to a DMA command.
    fn reply(&mut self, command: &Message) -> Result<Vec<u8>> {
        self.answered += 1;
        let (address, count) = (command.u64(0)?, command.u32(8)?);
        let fault = || bytes!(command.id, command.command, 16_u32, REPLY | ERROR, 14_u32);
        let Some(at) = address.checked_sub(self.base).filter(|_| !self.refuse) else { return Ok(fault()) };
        let head = bytes!(address, u64::from(count));
        if command.command == cmd::DMA_READ {
            let mut data = vec![0; count as usize];
            if rustix::io::pread(&self.file, &mut data, at)? != data.len() {
                return Ok(fault());
            }
            let payload = if self.narrow {
                [&head[..12], &data, &[0; 4]].concat()
            } else {
                [&head[..], &data].concat()
            };
            return Ok(message(command.id, command.command, REPLY, &payload));
        }
        let from = if self.narrow { 12 } else { 16 };
        let data = command.payload.get(from..from + count as usize).context("less data than count says")?;
        ensure!(command.payload.len() == 16 + count as usize, "a DMA_WRITE of another length");
        ensure!(rustix::io::pwrite(&self.file, data, at)? == data.len());
        Ok(message(command.id, command.command, REPLY, if self.narrow { &[] } else { &head }))
    }
}

impl Wire {
    pub(super) fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
        Self::over(stream)
    }

    pub(super) fn over(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, next_id: 100, memory: None })
    }

    pub(super) fn negotiate(&mut self) -> Result<()> {
        self.ask(cmd::VERSION, &version(r#"{"capabilities":{"max_msg_fds":16}}"#))?.ok()?;
        Ok(())
    }

    /// Bytes as they are.
    pub(super) fn raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        ensure!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(fds)));
        let mut sent = 0;
        while sent < bytes.len() {
            let rest = [IoSlice::new(&bytes[sent..])];
            sent += sendmsg(&self.stream, &rest, &mut control, SendFlags::NOSIGNAL)?;
            control = SendAncillaryBuffer::default();
        }
        Ok(())
    }

    /// A command; its id.
    pub(super) fn send(
        &mut self,
        command: u16,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<u16> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.raw(&message(id, command, flags, payload), fds)?;
        Ok(id)
    }

    fn fill(&mut self, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<bool> {
        let mut have = 0;
        while have < buf.len() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut buf[have..])];
            let got = match recvmsg(&self.stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => received.bytes,
                Err(rustix::io::Errno::CONNRESET) => 0,
                Err(rustix::io::Errno::AGAIN) => bail!("no answer within {PATIENCE:?}"),
                Err(error) => return Err(error.into()),
            };
            for ancillary in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
                    fds.extend(rights);
                }
            }
            if got == 0 {
                ensure!(have == 0, "closed inside a message");
                return Ok(false);
            }
            have += got;
        }
        Ok(true)
    }

    /// The next message, or nothing when the server closed.
    pub(super) fn receive(&mut self) -> Result<Option<Message>> {
        let mut head = [0; 16];
        let mut fds = Vec::new();
        if !self.fill(&mut head, &mut fds)? {
            return Ok(None);
        }
        let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([head[at], head[at + 1]]);
        let size = word(4) as usize;
        ensure!((16..16 + (2 << 20)).contains(&size), "a message of {size} bytes");
        let mut payload = vec![0; size - 16];
        ensure!(payload.is_empty() || self.fill(&mut payload, &mut fds)?, "closed inside a message");
        Ok(Some(Message { id: half(0), command: half(2), flags: word(8), error: word(12), payload, fds }))
    }

    /// The reply to a command.
    pub(super) fn reply(&mut self, id: u16, command: u16) -> Result<Message> {
        let message = loop {
            let message = self.receive()?.context("the server closed the connection")?;
            if message.flags & 0xf == REPLY {
                break message;
            }
            let memory = self.memory.as_mut().context("a command from the server that was not expected")?;
            let answer = memory.reply(&message)?;
            self.raw(&answer, &[])?;
        };
        ensure!(message.flags & 0xf == REPLY, "not a reply: flags {:#x}", message.flags);
        ensure!(
            (message.id, message.command) == (id, command),
            "a reply to {} {}",
            message.id,
            message.command
        );
        Ok(message)
    }

    pub(super) fn ask(&mut self, command: u16, payload: &[u8]) -> Result<Message> {
        self.ask_with(command, payload, &[])
    }

    pub(super) fn ask_with(
        &mut self,
        command: u16,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Message> {
        let id = self.send(command, 0, payload, fds)?;
        self.reply(id, command)
    }

    /// That the server is still in step: a harmless command has its answer.
    pub(super) fn is_in_step(&mut self) -> Result<()> {
        let reply = self.ask(cmd::GET_INFO, &bytes!(16_u32, 0_u32, 0_u32, 0_u32))?;
        ensure!(reply.ok()?.len() == 16, "DEVICE_GET_INFO is not 16 bytes long");
        Ok(())
    }

    /// That the server has closed, whatever it said before.
    pub(super) fn is_closed(&mut self) -> Result<()> {
        for _ in 0..16 {
            if self.receive()?.is_none() {
                return Ok(());
            }
        }
        bail!("the server goes on")
    }

    pub(super) fn map(
        &mut self,
        flags: u32,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Message> {
        let fds: Vec<_> = fd.into_iter().collect();
        self.ask_with(cmd::DMA_MAP, &bytes!(32_u32, flags, offset, address, size), &fds)
    }

    pub(super) fn unmap(&mut self, flags: u32, address: u64, size: u64) -> Result<Message> {
        self.ask(cmd::DMA_UNMAP, &bytes!(24_u32, flags, address, size))
    }

    pub(super) fn read(&mut self, region: u32, offset: u64, count: u32) -> Result<Vec<u8>> {
        let reply = self.ask(cmd::REGION_READ, &bytes!(offset, region, count))?.ok()?;
        ensure!(reply.len() == 16 + count as usize, "{} bytes instead of {}", reply.len(), 16 + count);
        ensure!(reply[..16] == bytes!(offset, region, count), "the reply does not repeat the request");
        Ok(reply[16..].to_vec())
    }

    pub(super) fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<()> {
        let count = u32::try_from(data.len())?;
        let head = bytes!(offset, region, count);
        let reply = self.ask(cmd::REGION_WRITE, &[&head[..], data].concat())?.ok()?;
        ensure!(reply == head, "the reply does not repeat the request");
        Ok(())
    }

    pub(super) fn region_size(&mut self, region: u32) -> Result<u64> {
        let request = bytes!(32_u32, 0_u32, region, 0_u32, 0_u64, 0_u64);
        let reply = self.ask(cmd::GET_REGION_INFO, &request)?;
        reply.u64(16)
    }

    /// The first BAR there is.
    pub(super) fn some_bar(&mut self) -> Result<u32> {
        for bar in 0..6 {
            if self.region_size(bar)? > 0 {
                return Ok(bar);
            }
        }
        bail!("the device has no BAR")
    }

    /// From here on, answers DMA commands from this memory.
    pub(super) fn serve_memory(&mut self, memory: Private) {
        self.memory = Some(memory);
    }

    pub(super) fn answers_dma(&self) -> bool {
        self.memory.is_some()
    }

    /// A command while the server's DMA commands stay without an answer: those, and the reply.
    pub(super) fn ask_unanswering(
        &mut self,
        command: u16,
        payload: &[u8],
    ) -> Result<(Vec<Message>, Message)> {
        let id = self.send(command, 0, payload, &[])?;
        let mut unanswered = Vec::new();
        loop {
            let message = self.receive()?.context("the server closed the connection")?;
            if message.flags & 0xf == REPLY {
                ensure!(
                    (message.id, message.command) == (id, command),
                    "a reply to {} {}",
                    message.id,
                    message.command
                );
                return Ok((unanswered, message));
            }
            unanswered.push(message);
        }
    }

    /// Answers the server's commands that were left without an answer.
    pub(super) fn catch_up(&mut self, unanswered: &[Message]) -> Result<()> {
        for command in unanswered {
            let answer = self.private()?.reply(command)?;
            self.raw(&answer, &[])?;
        }
        Ok(())
    }

    /// The memory that DMA commands are answered from.
    pub(super) fn private(&mut self) -> Result<&mut Private> {
        self.memory.as_mut().context("no private memory")
    }

    /// Answers DMA commands until the server closes: for a twin socket. How many.
    pub(super) fn serve_until_closed(mut self) -> Result<u64> {
        let mut memory = self.memory.take().context("no private memory")?;
        while let Some(command) = self.receive()? {
            let answer = memory.reply(&command)?;
            match self.raw(&answer, &[]) {
                Ok(()) => {}
                // A queue that had one more question when the client went closes before the answer.
                Err(error) if error.downcast_ref() == Some(&rustix::io::Errno::PIPE) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(memory.answered)
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

/// A file to be guest memory.
pub(super) fn memory(len: u64) -> Result<OwnedFd> {
    let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, len)?;
    Ok(file)
}

pub(super) fn eventfd() -> Result<OwnedFd> {
    let flags = rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
    Ok(rustix::event::eventfd(0, flags)?)
}

/// Takes an eventfd's count; zero if it was not signalled.
pub(super) fn count(eventfd: impl AsFd) -> u64 {
    let mut bytes = [0; 8];
    rustix::io::read(eventfd, &mut bytes).map_or(0, |_| u64::from_ne_bytes(bytes))
}

/// Waits until an eventfd is signalled.
pub(super) fn wait_for(eventfd: impl AsFd) -> Result<u64> {
    let mut fds = [rustix::event::PollFd::new(&eventfd, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec::try_from(PATIENCE)?;
    ensure!(rustix::event::poll(&mut fds, Some(&patience))? == 1, "no signal within {PATIENCE:?}");
    Ok(count(eventfd))
}

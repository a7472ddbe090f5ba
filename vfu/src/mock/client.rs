//! A vfio-user client, as a VMM has one: each call is one message, and waits for its answer.
//!
//! Drivers and tests are the callers. A server that does not answer is an error after a while, never a hang. The
//! receive and send state machines are the server's own ([`crate::wire::frame`]); what travels is checked anew here.
//! Server-to-client DMA messages are refused: this guest's memory is always mappable.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::memory::{Memory, Region};
use crate::{
    dma::Protection,
    wire::{
        frame::{FrameError, Received, Receiver, Sender},
        spec::{
            Command, DeviceInfo, DmaMap, DmaUnmap, HEADER_LEN, Header, IrqInfo, IrqSet, RegionAccess,
            RegionInfo, RegionWriteEntry, SPARSE_CAP_ID, SparseArea, SparseCap, dma_flags, flags,
            irq_set_flags, region_flags, unmap_flags,
        },
        version::{self, Capabilities, MAX_MSG_FDS, VersionError},
    },
};

/// How long an answer may take. Generous: a test machine may be loaded, and only a failing test waits this long.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a command has no answer, or not the one asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or the path is wrong.
    #[error("connecting to {path} failed: {source}")]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// Sending or waiting failed.
    #[error("the socket failed: {0}")]
    Socket(Errno),
    /// The stream of replies is of no more use.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The server closed the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The server does not answer.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The server answered with an error.
    #[error("the server refused command {command}: {errno}")]
    Refused {
        /// The command's number.
        command: u16,
        /// The server's word.
        errno: Errno,
    },
    /// An answer that the specification does not allow.
    #[error("the answer to command {command} {what}")]
    Malformed {
        /// The command's number.
        command: u16,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The VERSION answer cannot be agreed to.
    #[error("version negotiation failed: {0}")]
    Version(#[from] VersionError),
}

impl ClientError {
    /// The errno of a refusal.
    #[must_use]
    pub fn refusal(&self) -> Option<Errno> {
        if let Self::Refused { errno, .. } = self { Some(*errno) } else { None }
    }
}

/// A message from the server.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// What is behind the header.
    pub payload: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// What a region is.
#[derive(Debug)]
pub struct RegionDetail {
    /// The fixed part of the answer.
    pub info: RegionInfo,
    /// Parts that can be mapped; a whole region that can be is one part.
    pub areas: Vec<SparseArea>,
    /// What to map.
    pub fd: Option<OwnedFd>,
}

/// A connection to a device.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    receiver: Receiver,
    sender: Sender,
    next_id: u16,
    timeout: Duration,
    capabilities: Capabilities,
}

impl Client {
    /// Connects, and agrees on the version.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let mut client = Self::connect_raw(path)?;
        client.negotiate()?;
        Ok(client)
    }

    /// Connects and says nothing.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect_raw(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path);
        let stream = stream.map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        Ok(Self {
            stream,
            receiver: Receiver::default(),
            sender: Sender::default(),
            next_id: 0,
            timeout: DEFAULT_TIMEOUT,
            capabilities: Capabilities::default(),
        })
    }

    /// Sends VERSION and takes the answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn negotiate(&mut self) -> Result<(), ClientError> {
        let answer = self.request(Command::VERSION, &[&version::encode(version::MINOR, None)], Vec::new())?;
        self.capabilities = version::decode(&answer.payload)?.capabilities;
        Ok(())
    }

    /// What the server can do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Sets how long an answer may take.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// How long an answer may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    fn wait(&self, events: PollFlags, deadline: Instant) -> Result<(), ClientError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ClientError::Timeout(self.timeout));
        }
        // A timespec that does not fit is longer than anybody waits.
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&self.stream, events)], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(ClientError::Socket(errno)),
        }
    }

    fn flush(&mut self) -> Result<(), ClientError> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match self.sender.flush(&self.stream) {
                Ok(true) => return Ok(()),
                Ok(false) => self.wait(PollFlags::OUT, deadline)?,
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(ClientError::Closed),
                Err(errno) => return Err(ClientError::Socket(errno)),
            }
        }
    }

    /// The next message from the server, whatever it is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn receive(&mut self) -> Result<Message, ClientError> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match self.receiver.receive(&self.stream)? {
                Received::Message { header, fds } => {
                    return Ok(Message { header, payload: self.receiver.payload().to_vec(), fds });
                }
                Received::TooLong(header) => {
                    return Err(ClientError::Malformed {
                        command: header.command.0,
                        what: "is longer than agreed",
                    });
                }
                Received::Closed => return Err(ClientError::Closed),
                Received::Pending => self.wait(PollFlags::IN, deadline)?,
            }
        }
    }

    /// Sends bytes as they are, with `fds` on the first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        use std::io::Write;
        let sent = self.stream.set_nonblocking(false).and_then(|()| self.stream.write_all(bytes));
        sent.map_err(|error| ClientError::Socket(Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }

    /// Sends a command and waits for nothing. Its id.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn send(
        &mut self,
        command: Command,
        flags: u32,
        payload: &[&[u8]],
        fds: Vec<OwnedFd>,
    ) -> Result<u16, ClientError> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.sender.push(Header { message_id: id, command, flags, ..Header::default() }, payload, fds);
        self.flush()?;
        Ok(id)
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn request(
        &mut self,
        command: Command,
        payload: &[&[u8]],
        fds: Vec<OwnedFd>,
    ) -> Result<Message, ClientError> {
        let id = self.send(command, flags::COMMAND, payload, fds)?;
        self.answer(id, command)
    }

    /// Waits for the answer to the command with this id.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn answer(&mut self, id: u16, command: Command) -> Result<Message, ClientError> {
        let malformed = |what| Err(ClientError::Malformed { command: command.0, what });
        loop {
            let message = self.receive()?;
            let header = message.header;
            if header.flags & flags::TYPE_MASK == flags::COMMAND {
                self.sender.refuse(&header, Errno::OPNOTSUPP);
                self.flush()?;
                continue;
            }
            if header.message_id != id || header.command != command {
                return malformed("belongs to another command");
            }
            if header.flags & flags::ERROR != 0 {
                if header.message_size as usize != HEADER_LEN {
                    return malformed("is an error with something behind it");
                }
                let errno = Errno::from_raw_os_error(header.error.cast_signed());
                return Err(ClientError::Refused { command: command.0, errno });
            }
            return Ok(message);
        }
    }

    /// Sends a struct and expects one of the same kind back, as most commands do.
    fn ask<T: FromBytes + IntoBytes + Immutable>(
        &mut self,
        command: Command,
        request: &T,
    ) -> Result<T, ClientError> {
        let answer = self.request(command, &[request.as_bytes()], Vec::new())?;
        let parsed = T::read_from_bytes(&answer.payload);
        parsed.map_err(|_length| ClientError::Malformed { command: command.0, what: "has another length" })
    }

    fn expect_empty(command: Command, answer: &Message) -> Result<(), ClientError> {
        if answer.payload.is_empty() && answer.fds.is_empty() {
            return Ok(());
        }
        Err(ClientError::Malformed { command: command.0, what: "is more than a header" })
    }

    /// Offers a window; without a file it is one that the device cannot reach.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn dma_map(
        &mut self,
        address: u64,
        size: u64,
        protection: Protection,
        file: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<(), ClientError> {
        let bits = [(protection.read, dma_flags::READ), (protection.write, dma_flags::WRITE)];
        let flags = bits.iter().filter(|(on, _)| *on).fold(0, |flags, (_, bit)| flags | bit);
        let offset = file.map_or(0, |(_, offset)| offset);
        let request = DmaMap { argsz: len32::<DmaMap>(), flags, offset, address, size };
        let fds = file.map(|(fd, _)| fd.try_clone_to_owned()).transpose();
        let fds = fds.map_err(|_limit| ClientError::Socket(Errno::MFILE))?.into_iter().collect();
        let answer = self.request(Command::DMA_MAP, &[request.as_bytes()], fds)?;
        Self::expect_empty(Command::DMA_MAP, &answer)
    }

    /// Offers one region of guest RAM.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn map_region(&mut self, memory: &Memory, region: Region) -> Result<(), ClientError> {
        let protection = Protection { read: true, write: true };
        self.dma_map(region.address, region.len, protection, Some((memory.file(), region.offset)))
    }

    /// Offers all guest RAM.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn map_memory(&mut self, memory: &Memory) -> Result<(), ClientError> {
        memory.regions().iter().try_for_each(|&region| self.map_region(memory, region))
    }

    /// Takes a window back.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn dma_unmap(&mut self, address: u64, size: u64) -> Result<(), ClientError> {
        let request = DmaUnmap { argsz: len32::<DmaUnmap>(), flags: 0, address, size };
        self.unmap(request)
    }

    /// Takes every window back.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn dma_unmap_all(&mut self) -> Result<(), ClientError> {
        self.unmap(DmaUnmap { argsz: len32::<DmaUnmap>(), flags: unmap_flags::ALL, address: 0, size: 0 })
    }

    fn unmap(&mut self, request: DmaUnmap) -> Result<(), ClientError> {
        if self.ask(Command::DMA_UNMAP, &request)? != request {
            return Err(ClientError::Malformed {
                command: Command::DMA_UNMAP.0,
                what: "names another range",
            });
        }
        Ok(())
    }

    /// What the device is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn device_info(&mut self) -> Result<DeviceInfo, ClientError> {
        let request = DeviceInfo { argsz: len32::<DeviceInfo>(), ..DeviceInfo::default() };
        self.ask(Command::DEVICE_GET_INFO, &request)
    }

    /// What a region is. Asks twice where the first answer says that there is more.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn region_info(&mut self, index: u32) -> Result<RegionDetail, ClientError> {
        let mut argsz = len32::<RegionInfo>();
        loop {
            let request = RegionInfo { argsz, index, ..RegionInfo::default() };
            let mut answer =
                self.request(Command::DEVICE_GET_REGION_INFO, &[request.as_bytes()], Vec::new())?;
            let malformed =
                |what| ClientError::Malformed { command: Command::DEVICE_GET_REGION_INFO.0, what };
            let (info, _) =
                RegionInfo::read_from_prefix(&answer.payload).map_err(|_short| malformed("is too short"))?;
            if answer.payload.len() > argsz as usize {
                return Err(malformed("is longer than asked for"));
            }
            if info.argsz > argsz && info.argsz <= 4096 {
                argsz = info.argsz;
                continue;
            }
            let mut areas = sparse_areas(&info, &answer.payload).map_err(malformed)?;
            if areas.is_empty() && info.flags & region_flags::MMAP != 0 {
                areas.push(SparseArea { offset: 0, size: info.size });
            }
            return Ok(RegionDetail { info, areas, fd: answer.fds.pop() });
        }
    }

    /// How many interrupts of a type there are.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn irq_info(&mut self, index: u32) -> Result<IrqInfo, ClientError> {
        self.ask(
            Command::DEVICE_GET_IRQ_INFO,
            &IrqInfo { argsz: len32::<IrqInfo>(), index, ..IrqInfo::default() },
        )
    }

    /// Reads a region.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), ClientError> {
        let access = access(region, offset, data.len());
        let answer = self.request(Command::REGION_READ, &[access.as_bytes()], Vec::new())?;
        match RegionAccess::read_from_prefix(&answer.payload) {
            Ok((echo, bytes)) if echo == access && bytes.len() == data.len() => data.copy_from_slice(bytes),
            _ => {
                return Err(ClientError::Malformed {
                    command: Command::REGION_READ.0,
                    what: "is of another access",
                });
            }
        }
        Ok(())
    }

    /// Writes a region, and waits until it is done.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let access = access(region, offset, data.len());
        let answer = self.request(Command::REGION_WRITE, &[access.as_bytes(), data], Vec::new())?;
        match RegionAccess::read_from_bytes(&answer.payload) {
            Ok(echo) if echo == access => Ok(()),
            _ => {
                Err(ClientError::Malformed { command: Command::REGION_WRITE.0, what: "is of another access" })
            }
        }
    }

    /// Writes a region and does not wait, as QEMU does with most writes. Allocates nothing once it was called before.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn region_post(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let access = access(region, offset, data.len());
        self.send(Command::REGION_WRITE, flags::NO_REPLY, &[access.as_bytes(), data], Vec::new())?;
        Ok(())
    }

    /// Writes several times with one message. How many writes the server did.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn region_write_multi(&mut self, entries: &[RegionWriteEntry]) -> Result<u64, ClientError> {
        let count = entries.len() as u64;
        let payload = [count.as_bytes(), entries.as_bytes()];
        let answer = self.request(Command::REGION_WRITE_MULTI, &payload, Vec::new())?;
        let done = u64::read_from_bytes(&answer.payload);
        done.map_err(|_length| ClientError::Malformed {
            command: Command::REGION_WRITE_MULTI.0,
            what: "is no count",
        })
    }

    /// Sets the eventfds of interrupts `start..`, in as many messages as the server wants.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn set_eventfds(
        &mut self,
        index: u32,
        start: u32,
        eventfds: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let chunk = (self.capabilities.max_msg_fds as usize).clamp(1, MAX_MSG_FDS);
        for (start, eventfds) in (start..).step_by(chunk).zip(eventfds.chunks(chunk)) {
            let fds: Result<Vec<OwnedFd>, _> = eventfds.iter().map(BorrowedFd::try_clone_to_owned).collect();
            let fds = fds.map_err(|_limit| ClientError::Socket(Errno::MFILE))?;
            let flags = irq_set_flags::DATA_EVENTFD | irq_set_flags::ACTION_TRIGGER;
            let count = u32::try_from(fds.len()).expect("at most MAX_MSG_FDS");
            self.set_irqs(IrqSet { argsz: len32::<IrqSet>(), flags, index, start, count }, &[], fds)?;
        }
        Ok(())
    }

    /// Takes away, masks, unmasks or triggers `count` interrupts from `start` on: no data, `flags` as they are.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn irq_action(&mut self, flags: u32, index: u32, start: u32, count: u32) -> Result<(), ClientError> {
        self.set_irqs(IrqSet { argsz: len32::<IrqSet>(), flags, index, start, count }, &[], Vec::new())
    }

    /// SET_IRQS as it is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn set_irqs(&mut self, request: IrqSet, data: &[u8], fds: Vec<OwnedFd>) -> Result<(), ClientError> {
        let answer = self.request(Command::DEVICE_SET_IRQS, &[request.as_bytes(), data], fds)?;
        Self::expect_empty(Command::DEVICE_SET_IRQS, &answer)
    }

    /// Resets the device.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn reset(&mut self) -> Result<(), ClientError> {
        let answer = self.request(Command::DEVICE_RESET, &[], Vec::new())?;
        Self::expect_empty(Command::DEVICE_RESET, &answer)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The length of a wire struct, as an `argsz`.
fn len32<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("wire structs are short")
}

fn access(region: u32, offset: u64, len: usize) -> RegionAccess {
    let count = u32::try_from(len).expect("an access is at most MAX_DATA_XFER_SIZE long");
    RegionAccess { offset, region, count }
}

/// The areas of the sparse-mmap capability, if there is one.
fn sparse_areas(info: &RegionInfo, payload: &[u8]) -> Result<Vec<SparseArea>, &'static str> {
    if info.flags & region_flags::CAPS == 0 || info.cap_offset == 0 {
        return Ok(Vec::new());
    }
    let bytes = payload.get(info.cap_offset as usize..).ok_or("has its capabilities outside")?;
    let (cap, areas) = SparseCap::read_from_prefix(bytes).map_err(|_short| "has a cut capability")?;
    if cap.id != SPARSE_CAP_ID || cap.version != 1 {
        return Ok(Vec::new());
    }
    let areas: Vec<SparseArea> = areas
        .chunks_exact(size_of::<SparseArea>())
        .take(cap.nr_areas as usize)
        .filter_map(|bytes| SparseArea::read_from_bytes(bytes).ok())
        .collect();
    if areas.len() == cap.nr_areas as usize { Ok(areas) } else { Err("has fewer areas than it says") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(cap: SparseCap, areas: &[SparseArea]) -> (RegionInfo, Vec<u8>) {
        let flags = region_flags::MMAP | region_flags::CAPS;
        let info = RegionInfo { argsz: 80, flags, cap_offset: 32, ..RegionInfo::default() };
        (info, [info.as_bytes(), cap.as_bytes(), areas.as_bytes()].concat())
    }

    #[test]
    fn areas_are_read_from_the_capability() {
        let areas = [SparseArea { offset: 0x3000, size: 0x1000 }, SparseArea { offset: 0, size: 0x1000 }];
        let cap = SparseCap { id: SPARSE_CAP_ID, version: 1, nr_areas: 2, ..SparseCap::default() };
        let (info, bytes) = payload(cap, &areas);
        assert_eq!(sparse_areas(&info, &bytes), Ok(areas.to_vec()));
    }

    #[test]
    fn capability_that_promises_more_areas_than_it_has_is_malformed() {
        let cap = SparseCap { id: SPARSE_CAP_ID, version: 1, nr_areas: u32::MAX, ..SparseCap::default() };
        let (info, bytes) = payload(cap, &[SparseArea::default()]);
        assert!(sparse_areas(&info, &bytes).is_err());
    }

    #[test]
    fn silent_server_is_a_timeout_and_a_gone_one_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut client = Client::connect_raw(&path).unwrap();
        client.set_timeout(Duration::from_millis(10));
        assert!(matches!(client.negotiate(), Err(ClientError::Timeout(_))));

        client.set_timeout(DEFAULT_TIMEOUT);
        drop(listener.accept().unwrap());
        assert!(matches!(client.receive(), Err(ClientError::Closed)));
    }
}

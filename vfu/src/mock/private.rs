//! Guest RAM that is not shared: a thread that answers the server's DMA_READ and DMA_WRITE on the twin socket, as a VMM does
//! whose guest has private memory.

use std::{
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::memory::Memory;
use crate::wire::spec::{Command, DmaAccess, HEADER_LEN, Header, flags};

/// Longest data of one message: what was agreed, and more than the server sends.
const DATA_MAX: usize = 1 << 20;

/// What a client with private memory keeps.
#[derive(Debug)]
pub(super) struct Private {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    answered: AtomicU64,
    /// Answers wait.
    holds: Mutex<bool>,
    changed: Condvar,
}

impl Shared {
    fn wait(&self) {
        let holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(holds, |holds| *holds));
    }
}

impl Private {
    /// Answers on `twin` until the server closes it.
    pub(super) fn serve(twin: OwnedFd, memory: &Memory) -> Result<Self, Errno> {
        let memory = memory.reopen()?;
        let shared = Arc::<Shared>::default();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("guest-dma".to_owned());
        let started = thread.spawn(move || {
            let mut twin = UnixStream::from(twin);
            // The connection ends when it ends: whoever waits for an answer notices.
            while answer(&mut twin, &memory, &theirs).is_ok() {
                theirs.answered.fetch_add(1, Ordering::Relaxed);
            }
        });
        started.map_err(|_limit| Errno::AGAIN)?;
        Ok(Self { shared })
    }

    pub(super) fn hold(&self, holds: bool) {
        *self.shared.holds.lock().unwrap_or_else(PoisonError::into_inner) = holds;
        self.shared.changed.notify_all();
    }

    pub(super) fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.hold(false);
    }
}

fn answer(twin: &mut UnixStream, memory: &Memory, shared: &Shared) -> std::io::Result<()> {
    let mut head = [0; HEADER_LEN];
    twin.read_exact(&mut head)?;
    let header: Header = zerocopy::transmute!(head);
    let len = (header.message_size as usize).saturating_sub(HEADER_LEN);
    if len > DATA_MAX + size_of::<DmaAccess>() {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut payload = vec![0; len];
    twin.read_exact(&mut payload)?;
    shared.wait();
    let reply = execute(header.command, &payload, memory);
    let (flags, payload) = match reply {
        Some(payload) => (flags::REPLY, payload),
        None => (flags::REPLY | flags::ERROR, Vec::new()),
    };
    let error = if flags & flags::ERROR == 0 { 0 } else { Errno::FAULT.raw_os_error().unsigned_abs() };
    let message_size = u32::try_from(HEADER_LEN + payload.len()).unwrap_or(u32::MAX);
    let header = Header { message_size, flags, error, ..header };
    twin.write_all(&[header.as_bytes(), &payload].concat())
}

/// The payload of the reply, or nothing where the guest has no such memory.
fn execute(command: Command, payload: &[u8], memory: &Memory) -> Option<Vec<u8>> {
    let (access, data) = DmaAccess::read_from_prefix(payload).ok()?;
    let count = usize::try_from(access.count).ok().filter(|count| *count <= DATA_MAX)?;
    let mut reply = access.as_bytes().to_vec();
    match command {
        Command::DMA_READ => {
            let at = reply.len();
            reply.resize(at + count, 0);
            memory.read(access.address, &mut reply[at..]).ok()?;
        }
        Command::DMA_WRITE if data.len() == count => memory.write(access.address, data).ok()?,
        _ => return None,
    }
    Some(reply)
}

//! Whole conversations with a live endpoint: typed messages, true and false, in any order, with descriptors, over guest
//! memory that holds anything. The server must answer what is to be answered, in order, and take the next client.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use bdev::types::{Malloc, MallocParams};
use vfu::{
    mock::{
        client::Client,
        server::{DiskOptions, Server},
    },
    wire::spec::{Command, flags},
};

use crate::choices::Choices;

/// Messages of one conversation.
const MESSAGES_MAX: usize = 48;
/// Bytes of guest memory.
const MEMORY_LEN: u64 = 0x2_0000;
/// Long: only a server that hangs is waited for so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// The endpoint under test lives as long as the process.
struct Rig {
    server: Server,
    dir: tempfile::TempDir,
    memory: OwnedFd,
    /// Descriptors of the process when the first conversation was over.
    descriptors: Option<usize>,
    conversations: u64,
}

fn rig() -> &'static Mutex<Rig> {
    static RIG: OnceLock<Mutex<Rig>> = OnceLock::new();
    RIG.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a folder");
        let mut server = Server::start(1);
        let disk = Malloc::new("disk".to_owned(), &MallocParams::new(512, 2048)).expect("memory for a disk");
        server.registry().register(Arc::new(disk)).expect("the first of its name");
        let options = DiskOptions { num_queues: 2, queue_size: 8, ..DiskOptions::new("disk") };
        server.serve(&dir.path().join("vfu.0"), &options);
        let memory = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("a descriptor");
        rustix::fs::ftruncate(&memory, MEMORY_LEN).expect("memory");
        Mutex::new(Rig { server, dir, memory, descriptors: None, conversations: 0 })
    })
}

fn word(choices: &mut Choices<'_>, usual: u32) -> u32 {
    if choices.u8() < 230 { usual } else { choices.u32() }
}

/// A payload that is right but for a few fields.
fn payload(command: u16, choices: &mut Choices<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut put = |part: &[u8]| bytes.extend_from_slice(part);
    match command {
        2 => {
            put(&word(choices, 32).to_ne_bytes());
            put(&word(choices, 3).to_ne_bytes());
            put(&(u64::from(choices.u8() % 32) << 12).to_ne_bytes());
            put(&choices.address().to_ne_bytes());
            put(&(u64::from(choices.u8() % 32) << 12).to_ne_bytes());
        }
        3 => {
            put(&word(choices, 24).to_ne_bytes());
            put(&u32::from(choices.u8() & 3).to_ne_bytes());
            put(&choices.address().to_ne_bytes());
            put(&choices.address().to_ne_bytes());
        }
        4..8 => {
            put(&word(choices, 96).to_ne_bytes());
            put(&word(choices, 0).to_ne_bytes());
            put(&u32::from(choices.u8() % 10).to_ne_bytes());
            put(&word(choices, 0).to_ne_bytes());
            if command == 5 {
                put(&[0; 16]);
            }
        }
        8 => {
            put(&word(choices, 20).to_ne_bytes());
            put(&u32::from(choices.u8() & 63).to_ne_bytes());
            put(&u32::from(choices.u8() % 6).to_ne_bytes());
            put(&u32::from(choices.u8() % 4).to_ne_bytes());
            put(&u32::from(choices.u8() % 4).to_ne_bytes());
        }
        9 | 10 => {
            let region = u32::from([7_u8, 4, 4, 4, 1, 2, 0, 9][usize::from(choices.u8() % 8)]);
            let len = u32::from(choices.u8() % 9);
            put(&u64::from(choices.below(0x4010)).to_ne_bytes());
            put(&region.to_ne_bytes());
            put(&len.to_ne_bytes());
            if command == 10 {
                put(choices.bytes(len as usize));
            }
        }
        15 => {
            let entries = usize::from(choices.u8() % 6);
            put(&(entries as u64).to_ne_bytes());
            for _ in 0..entries {
                put(&u64::from(choices.below(0x4010)).to_ne_bytes());
                put(&u32::from([7_u8, 4, 1, 9][usize::from(choices.u8() % 4)]).to_ne_bytes());
                put(&u32::from(choices.u8() % 10).to_ne_bytes());
                put(&choices.u64().to_ne_bytes());
            }
        }
        13 => {}
        _ => {
            let len = usize::from(choices.u8() % 40);
            put(choices.bytes(len));
        }
    }
    if choices.u8() > 240 {
        bytes.truncate(usize::from(choices.u8()));
    }
    bytes
}

/// A driver's way to a running queue, so that rings and requests are reached.
fn start_disk(client: &mut Client, memory: &OwnedFd, choices: &mut Choices<'_>) -> Option<()> {
    let both = vfu::dma::Protection { read: true, write: true };
    let shared = choices.u8() & 7 != 0;
    client.dma_map(0, MEMORY_LEN, both, shared.then(|| (memory.as_fd(), 0))).ok()?;
    client.region_write(7, 4, &[6, 0]).ok()?;
    client.region_write(4, 20, &[3]).ok()?;
    client.region_write(4, 8, &[1, 0, 0, 0, 1, 0, 0, 0]).ok()?;
    client.region_write(4, 20, &[11]).ok()?;
    client.region_write(4, 32, &0x0000_u64.to_le_bytes()).ok()?;
    client.region_write(4, 40, &0x1000_u64.to_le_bytes()).ok()?;
    client.region_write(4, 48, &0x2000_u64.to_le_bytes()).ok()?;
    client.region_write(4, 28, &[1, 0]).ok()?;
    client.region_write(4, 20, &[15]).ok()
}

/// Descriptors, an available ring, and requests, as the choices say.
fn fill_memory(memory: &OwnedFd, choices: &mut Choices<'_>) {
    let put = |at: u64, bytes: &[u8]| {
        let _ = rustix::io::pwrite(memory, bytes, at);
    };
    for index in 0..u64::from(choices.u8() % 9) {
        let address = 0x3000 + u64::from(choices.below(0x200)) * 16;
        let len = if choices.u8() < 200 { u32::from(choices.below(0x1201)) } else { choices.u32() };
        let (flags, next) = (choices.u8() & 7, choices.u8() % 10);
        let fields = [&address.to_le_bytes()[..], &len.to_le_bytes(), &[flags, 0], &[next, 0]];
        put(index * 16, &fields.concat());
    }
    let available = choices.u8() % 10;
    put(0x1000, &[choices.u8() & 1, 0, available, 0]);
    for slot in 0..8 {
        put(0x1004 + 2 * slot, &[choices.u8() % 9, 0]);
    }
    let kind = choices.u8() % 12;
    put(0x3000, &[kind, 0, 0, 0, 0, 0, 0, 0, choices.u8(), choices.u8() & 15, 0, 0, 0, 0, 0, 0]);
}

pub(super) fn run(input: &[u8]) {
    let mut rig = rig().lock().unwrap_or_else(PoisonError::into_inner);
    let mut choices = Choices::new(input);
    let path = rig.dir.path().join("vfu.0");
    let mut client = Client::connect_raw(&path).expect("the endpoint listens");
    client.set_timeout(PATIENCE);
    if choices.u8() < 240 {
        client.negotiate().expect("VERSION is answered");
    }
    if choices.u8() & 3 == 0 {
        fill_memory(&rig.memory, &mut choices);
        let _ = start_disk(&mut client, &rig.memory, &mut choices);
    }
    let mut open = true;
    for _ in 0..MESSAGES_MAX {
        if choices.is_empty() || !open {
            break;
        }
        let command = match choices.u8() {
            kind @ 0..200 => {
                [2_u8, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 15, 13, 16, 17, 18][usize::from(kind & 15)]
            }
            kind => kind,
        };
        let command = u16::from(command);
        let body = payload(command, &mut choices);
        let fds = match choices.u8() {
            0..100 if command == 2 => vec![rig.memory.try_clone().expect("a descriptor")],
            0..100 if command == 8 => vec![vfu::irq::eventfd().expect("a descriptor")],
            250.. => vec![rig.memory.try_clone().expect("a descriptor")],
            _ => Vec::new(),
        };
        let posted = choices.u8() > 200;
        let kind = if posted { flags::NO_REPLY } else { flags::COMMAND };
        open = match client.send(Command(command), kind, &[&body], fds) {
            Ok(id) => posted || !matches!(client.answer(id, Command(command)), Err(error) if is_end(&error)),
            Err(_) => false,
        };
    }
    drop(client);
    assert_eq!(rig.server.faults(), 0, "a poller panicked");
    rig.conversations += 1;
    if rig.conversations.is_multiple_of(256) {
        count_descriptors(&mut rig);
    }
}

/// Whether no more answers will come. A server that does not answer at all is a finding.
pub(super) fn is_end(error: &vfu::mock::client::ClientError) -> bool {
    use vfu::mock::client::ClientError;
    assert!(!matches!(error, ClientError::Timeout(_)), "the server does not answer");
    assert!(!matches!(error, ClientError::Malformed { .. }), "{error}");
    !matches!(error, ClientError::Refused { .. })
}

/// Nothing of a client is left when the next one is served.
fn count_descriptors(rig: &mut Rig) {
    for _ in 0..2 {
        let mut next = Client::connect(&rig.dir.path().join("vfu.0")).expect("the endpoint listens");
        next.device_info().expect("the next client is served");
    }
    let now = std::fs::read_dir("/proc/self/fd").expect("/proc is mounted").count();
    let before = *rig.descriptors.get_or_insert(now);
    assert!(now <= before + 1, "{before} descriptors at first, {now} now");
}

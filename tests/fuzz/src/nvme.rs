//! A driver that obeys nobody: typed NVMe commands, PRP lists and SGLs, register writes and doorbells, true and false, in any
//! order, at a live controller, in memory that is shared, or is not, or is so in parts. It must answer every message, stop when it is told to, and serve the next driver.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use bdev::types::{Malloc, MallocParams};
use vfu::{
    dma::Protection,
    mock::{
        client::Client,
        memory::Memory,
        nvme::{Nvme, read_command, status_of},
        server::Server,
    },
    nvme::{
        controller::ControllerOptions,
        namespace::NamespaceOptions,
        spec::{Command, admin, cc, csts, reg},
        subsystem::{Subsystem, SubsystemOptions},
    },
};
use zerocopy::IntoBytes;

use crate::{choices::Choices, conversation::is_end};

const STEPS_MAX: usize = 96;
/// Bytes of guest memory: rings, then lists, then data.
const MEMORY_LEN: u64 = 0x4_0000;
const LISTS: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const SHADOWS: u64 = 0xe000;
/// Entries of every queue.
const ENTRIES: u16 = 16;
const QUEUES: u16 = 3;
/// Long: only a controller that hangs is waited for so long.
const PATIENCE: Duration = Duration::from_secs(30);
const BOTH: Protection = Protection { read: true, write: true };

/// The controllers under test, one with mapped doorbells and one without, live as long as the process.
struct Rig {
    server: Server,
    dir: tempfile::TempDir,
    memory: Memory,
    runs: u64,
}

fn rig() -> &'static Mutex<Rig> {
    static RIG: OnceLock<Mutex<Rig>> = OnceLock::new();
    RIG.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a folder");
        let mut server = Server::start(1);
        let disk = Malloc::new("disk".to_owned(), &MallocParams::new(512, 2048)).expect("memory for a disk");
        server.registry().register(Arc::new(disk)).expect("the first of its name");
        let options =
            SubsystemOptions { enable_nssr: true, ana_reporting: true, ..SubsystemOptions::new("nqn.fuzz") };
        let subsystem = Subsystem::new(options);
        let namespace = NamespaceOptions::default();
        subsystem.add_namespace(server.registry(), "disk", namespace).expect("the first namespace");
        for (name, is_mapped) in [("trapped", false), ("mapped", true)] {
            let options = ControllerOptions { max_io_queues: QUEUES, ..ControllerOptions::default() };
            server.serve_nvme(&dir.path().join(name), &subsystem, options, is_mapped);
        }
        let memory = Memory::with_regions(&[(0, MEMORY_LEN)]).expect("memory");
        Mutex::new(Rig { server, dir, memory, runs: 0 })
    })
}

/// The driver.
struct Driver<'a> {
    client: Client,
    memory: &'a Memory,
    tails: [u16; QUEUES as usize + 1],
    /// The server has closed the connection.
    is_over: bool,
}

/// Where a queue's rings are.
fn rings(qid: u16) -> (u64, u64) {
    let base = u64::from(qid) * 0x2000;
    (base, base + 0x1000)
}

impl Driver<'_> {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        if let Err(error) = self.client.region_write(0, at, bytes) {
            self.is_over |= is_end(&error);
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        // Behind the end of the memory there is nothing to put it to.
        let _ = self.memory.write(at % MEMORY_LEN, bytes);
    }

    /// Offers the memory: rings and the rest, each shared or by messages only.
    fn map(&mut self, kind: u8) {
        let file = |is_private: bool, at| (!is_private).then(|| (self.memory.file(), at));
        let parts = [(0, LISTS, kind & 1 == 1), (LISTS, MEMORY_LEN - LISTS, kind & 2 == 2)];
        for (at, len, is_private) in parts {
            let _ = self.client.dma_map(at, len, BOTH, file(is_private, at));
        }
    }

    fn enable(&mut self) {
        let (sq, cq) = rings(0);
        let last = u32::from(ENTRIES - 1);
        self.write(reg::AQA as u64, (last << 16 | last).as_bytes());
        self.write(reg::ASQ as u64, sq.as_bytes());
        self.write(reg::ACQ as u64, cq.as_bytes());
        self.write(reg::CC as u64, (4_u32 << 20 | 6 << 16 | cc::EN).as_bytes());
        self.tails = [0; QUEUES as usize + 1];
    }

    fn push(&mut self, qid: u16, command: Command) {
        let tail = &mut self.tails[usize::from(qid)];
        let at = rings(qid).0 + u64::from(*tail) * 64;
        *tail = (*tail + 1) % ENTRIES;
        self.put(at, command.as_bytes());
    }

    fn ring(&mut self, qid: u16, head: bool, value: u32) {
        let at = reg::DOORBELLS + u64::from(qid) * 8 + u64::from(head) * 4;
        self.write(at, value.as_bytes());
    }

    /// Creates a queue pair, as a driver does.
    fn create(&mut self, qid: u16) {
        let (sq, cq) = rings(qid);
        let cdw10 = u32::from(ENTRIES - 1) << 16 | u32::from(qid);
        let common = Command { cdw10, ..Command::default() };
        let vector = u32::from(qid) << 16 | 0b11;
        self.push(0, Command { opcode: admin::CREATE_CQ, dptr: [cq, 0], cdw11: vector, ..common });
        let of = u32::from(qid) << 16 | 1;
        self.push(0, Command { opcode: admin::CREATE_SQ, dptr: [sq, 0], cdw11: of, ..common });
        self.tails[usize::from(qid)] = 0;
        self.ring(0, false, u32::from(self.tails[0]));
    }

    /// Tells it to stop, which it must.
    fn stop(mut self) {
        let deadline = Instant::now() + PATIENCE;
        self.write(reg::CC as u64, 0_u32.as_bytes());
        while !self.is_over {
            let mut status = [0; 4];
            match self.client.region_read(0, reg::CSTS as u64, &mut status) {
                Ok(()) if u32::from_le_bytes(status) & csts::RDY == 0 => return,
                Ok(()) => assert!(Instant::now() < deadline, "the controller does not stop"),
                Err(error) => self.is_over = is_end(&error),
            }
        }
    }
}

/// Where data or a list may be: mostly in the memory, at a page or not.
fn place(choices: &mut Choices<'_>) -> u64 {
    match choices.u8() {
        0..120 => DATA + u64::from(choices.u8() % 32) * 0x1000,
        120..170 => LISTS + u64::from(choices.u8() % 8) * 0x800,
        170..220 => DATA + u64::from(choices.below(0x8000)) * 4,
        _ => choices.address(),
    }
}

fn small(choices: &mut Choices<'_>, usual: u32) -> u32 {
    if choices.u8() < 220 { u32::from(choices.u8()) % usual } else { choices.u32() }
}

/// A command that is nearly right.
fn command(choices: &mut Choices<'_>, opcodes: &[u8]) -> Command {
    let opcode = match choices.u8() {
        nth @ 0..240 => opcodes[usize::from(nth) % opcodes.len()],
        _ => choices.u8(),
    };
    Command {
        opcode,
        flags: [0, 0, 0, 0x40, 0x80, 0x01, 0x02, 0x41][usize::from(choices.u8() % 8)],
        cid: choices.u8().into(),
        nsid: [1, 1, 1, 1, 0, 2, 0xffff_ffff, 1][usize::from(choices.u8() % 8)],
        dptr: [place(choices), place(choices)],
        cdw10: small(choices, 128),
        cdw11: small(choices, 8),
        cdw12: small(choices, 64),
        cdw13: small(choices, 2),
        ..Command::default()
    }
}

/// A PRP list, SGL descriptors, or a table that a command brings.
fn fill_list(driver: &Driver<'_>, choices: &mut Choices<'_>) {
    let at = LISTS + u64::from(choices.u8() % 8) * 0x800;
    for nth in 0..u64::from(choices.u8() % 40) {
        let entry = match choices.u8() {
            0..100 => [place(choices), place(choices)],
            kind @ 100..220 => {
                let kind = [0, 0x20, 0x30, 0, 0, 0x10, 0x01, 0x50][usize::from(kind % 8)];
                [place(choices), (u64::from(small(choices, 200)) * 16) | (kind << 56)]
            }
            _ => [choices.u64(), choices.u64()],
        };
        driver.put(at + nth * 16, entry.as_bytes());
    }
}

const ADMIN: &[u8] = &[0, 1, 2, 4, 5, 6, 8, 9, 0xa, 0xc, 0x18, 0x7c, 0x06, 0x02];
const IO: &[u8] = &[0, 1, 2, 4, 5, 8, 9, 0xc, 0xd, 0xe, 0x11, 0x15, 0x19, 1, 2, 5];

fn step(driver: &mut Driver<'_>, choices: &mut Choices<'_>) {
    let qid = u16::from(choices.u8()) % (QUEUES + 1);
    match choices.u8() % 16 {
        0..5 => {
            let opcodes = if qid == 0 { ADMIN } else { IO };
            let command = command(choices, opcodes);
            driver.push(qid, command);
        }
        5..8 => driver.ring(qid, false, driver.tails[usize::from(qid)].into()),
        8 => driver.ring(qid, true, u32::from(choices.u8() % 17)),
        9 => {
            let (qid, value) = (choices.u8() % 6, choices.u32());
            driver.ring(qid.into(), value & 1 == 1, ((value >> 1) & 0x1f) | (value & 0x8000_0000));
        }
        10 => fill_list(driver, choices),
        11 => driver.create(qid.max(1)),
        12 => {
            let (at, value) = (u64::from(choices.u8() % 0x50), choices.u64());
            let len = [1, 2, 4, 8][usize::from(choices.u8() % 4)];
            driver.write(at, &value.to_le_bytes()[..len]);
        }
        13 => {
            driver.write(reg::CC as u64, 0_u32.as_bytes());
            driver.enable();
        }
        14 => {
            let dptr = [SHADOWS, SHADOWS + 0x1000];
            driver.push(0, Command { opcode: admin::DOORBELL_BUFFER, dptr, ..Command::default() });
            driver.put(SHADOWS + u64::from(choices.u8() % 8) * 4, &[choices.u8() % 20, 0, 0, 0]);
        }
        _ if choices.u8() > 100 => {
            let _ = driver.client.dma_unmap(0, MEMORY_LEN);
            driver.map(choices.u8());
        }
        _ => {
            // Subsystem reset.
            driver.write(0x20, 0x4e56_4d65_u32.as_bytes());
        }
    }
}

pub(super) fn run(input: &[u8]) {
    let mut rig = rig().lock().unwrap_or_else(PoisonError::into_inner);
    let mut choices = Choices::new(input);
    let kind = choices.u8();
    let path = rig.dir.path().join(if kind & 1 == 0 { "trapped" } else { "mapped" });
    let mut client = Client::connect_private(&path, &rig.memory).expect("the endpoint listens");
    client.set_timeout(PATIENCE);
    // Memory and bus mastering.
    client.region_write(7, 4, &[6, 4]).expect("configuration space takes writes");
    let mut driver = Driver { client, memory: &rig.memory, tails: [0; QUEUES as usize + 1], is_over: false };
    driver.map(kind >> 1);
    driver.enable();
    driver.create(1);
    for _ in 0..STEPS_MAX {
        if choices.is_empty() || driver.is_over {
            break;
        }
        step(&mut driver, &mut choices);
    }
    driver.stop();
    assert_eq!(rig.server.faults(), 0, "a poller panicked");
    rig.runs += 1;
    if rig.runs.is_multiple_of(128) {
        obey(&path);
    }
}

/// A driver that obeys is served by the same controller.
fn obey(path: &std::path::Path) {
    let mut nvme = Nvme::connect(path, 8 << 20).expect("the endpoint listens");
    nvme.enable().expect("it comes up");
    nvme.create_queues(2, 8).expect("it has queues");
    let data = nvme.memory.allocate(4096, 4096).expect("room");
    let done = nvme.io(1, read_command(1, 0, 8, [data, 0])).expect("it answers");
    assert!(status_of(&done).is_success(), "{done:?}");
    nvme.disable().expect("it stops");
}

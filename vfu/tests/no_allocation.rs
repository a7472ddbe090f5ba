//! A reactor that serves requests allocates nothing: counted by a global allocator, on the reactor's own thread.
#![expect(unsafe_code, reason = "a global allocator that counts cannot be had without")]
#![cfg(feature = "mock")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::{Arc, Mutex, PoisonError},
};

use bdev::types::{Malloc, MallocParams};
use reactor::{Handle, Mode};
use vfu::{
    mock::{
        blk::{BlkDriver, BlkOptions},
        client::Client,
        memory::Memory,
        nvme::{Nvme, blocks_command, status_of},
        server::{DiskOptions, Server},
        split::SplitDriver,
    },
    nvme::{
        controller::ControllerOptions,
        namespace::NamespaceOptions,
        spec::{Command, CopyRange, DsmRange, nvm},
        subsystem::{Subsystem, SubsystemOptions},
    },
};
use zerocopy::IntoBytes;

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: hands everything on to the system's allocator; the counter is a plain cell of this thread without a
// destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as promised by our caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as promised by our caller.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Writes and reads, one after the other.
const ROUNDS: u64 = 10_000;

/// What two messages may allocate and free on the reactor's side.
const ASKING: u64 = 16;

/// One after the other: each has a reactor that never sleeps.
static ALONE: Mutex<()> = Mutex::new(());

/// Allocations and deallocations of the reactor's thread so far.
fn count(reactor: &Handle) -> u64 {
    reactor.call(|_| COUNT.get()).expect("a running reactor")
}

#[test]
fn requests_of_a_polled_queue_allocate_nothing_on_its_reactor() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(1);
    let reactor = server.reactors()[0].clone();
    // A queue that parks is kicked by messages, which are no part of the I/O path.
    reactor.set_mode(Mode::PollOnly);
    let malloc = Malloc::new("Malloc0".to_owned(), &MallocParams::new(512, 8192)).unwrap();
    server.registry().register(Arc::new(malloc)).unwrap();
    let socket = dir.path().join("disk");
    server.serve(&socket, &DiskOptions::new("Malloc0"));
    let memory = Memory::new(64 << 20).unwrap();
    let client = Client::connect(&socket).unwrap();
    let mut guest: BlkDriver<SplitDriver> = BlkDriver::new(client, memory, BlkOptions::default()).unwrap();
    guest.start().unwrap();
    let round = |guest: &mut BlkDriver<SplitDriver>, number: u64| {
        guest.write(0, number % 1000 * 8, &[7; 4096]).unwrap();
        guest.read(0, number % 1000 * 8, 4096).unwrap();
    };
    round(&mut guest, 0);

    let before = count(&reactor);
    (0..ROUNDS).for_each(|number| round(&mut guest, number));
    let made = count(&reactor) - before;

    // The messages that ask are boxes, freed by whichever side is last. One allocation per request would be thousands.
    assert!(made <= ASKING, "{made} in {ROUNDS} rounds");
}

#[test]
fn commands_of_a_polled_nvme_queue_allocate_nothing_once_each_kind_was_done() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(1);
    let reactor = server.reactors()[0].clone();
    reactor.set_mode(Mode::PollOnly);
    let malloc = Malloc::new("Malloc0".to_owned(), &MallocParams::new(512, 8192)).unwrap();
    server.registry().register(Arc::new(malloc)).unwrap();
    let subsystem = Subsystem::new(SubsystemOptions::new("nqn.2016-06.io.spdk:cnode1"));
    subsystem.add_namespace(server.registry(), "Malloc0", NamespaceOptions::default()).unwrap();
    let socket = dir.path().join("cntrl");
    server.serve_nvme(&socket, &subsystem, ControllerOptions::default(), true);
    let mut nvme = Nvme::connect(&socket, 64 << 20).unwrap();
    nvme.map_doorbells().unwrap();
    nvme.enable().unwrap();
    nvme.create_queues(1, 64).unwrap();
    let [data, tables] = [4096, 8192].map(|len| nvme.memory.allocate(len, 4096).unwrap());
    nvme.memory.write(tables, DsmRange { blocks: 8, slba: 64, ..DsmRange::default() }.as_bytes()).unwrap();
    nvme.memory
        .write(tables + 4096, CopyRange { slba: 8, blocks: 7, ..CopyRange::default() }.as_bytes())
        .unwrap();
    let blocks = |opcode| blocks_command(opcode, 1, 0, 8, [data, 0]);
    let deallocate = Command {
        opcode: nvm::DATASET_MANAGEMENT,
        nsid: 1,
        dptr: [tables, 0],
        cdw11: 4,
        ..Command::default()
    };
    let copy =
        Command { opcode: nvm::COPY, nsid: 1, dptr: [tables + 4096, 0], cdw10: 128, ..Command::default() };
    let commands = [
        blocks(nvm::WRITE),
        blocks(nvm::READ),
        blocks(nvm::COMPARE),
        blocks(nvm::VERIFY),
        blocks(nvm::WRITE_ZEROES),
        blocks(nvm::READ),
        Command { flags: Command::FUSE_FIRST, ..blocks(nvm::COMPARE) },
        Command { flags: Command::FUSE_SECOND, ..blocks(nvm::WRITE) },
        deallocate,
        copy,
        Command { opcode: nvm::FLUSH, nsid: 1, ..Command::default() },
    ];
    let round = |nvme: &mut Nvme| {
        for one in &commands[..6] {
            assert!(status_of(&nvme.io(0, *one).unwrap()).is_success(), "{one:?}");
        }
        nvme.submit(0, &commands[6..8]).unwrap();
        assert!(nvme.drain(0).unwrap().iter().all(|done| status_of(done).is_success()));
        for one in &commands[8..] {
            assert!(status_of(&nvme.io(0, *one).unwrap()).is_success(), "{one:?}");
        }
    };
    round(&mut nvme);

    let before = count(&reactor);
    (0..ROUNDS / 10).for_each(|_| round(&mut nvme));
    let made = count(&reactor) - before;

    assert!(made <= ASKING, "{made} in {} rounds", ROUNDS / 10);
}

//! A reactor that serves requests allocates nothing: counted by a global allocator, on the reactor's own thread.
#![expect(unsafe_code, reason = "a global allocator that counts cannot be had without")]
#![cfg(feature = "mock")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::Arc,
};

use bdev::types::{Malloc, MallocParams};
use reactor::{Handle, Mode};
use vfu::mock::{
    blk::{BlkDriver, BlkOptions},
    client::Client,
    memory::Memory,
    server::{DiskOptions, Server},
    split::SplitDriver,
};

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

/// Allocations and deallocations of the reactor's thread so far.
fn count(reactor: &Handle) -> u64 {
    reactor.call(|_| COUNT.get()).expect("a running reactor")
}

#[test]
fn requests_of_a_polled_queue_allocate_nothing_on_its_reactor() {
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

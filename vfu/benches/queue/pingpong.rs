//! Depth 1 between two cores: a disk's round trip beside that of a bare ring, with the same driver on the other core.
//!
//! The bare device does what any device must do with the guest's memory, and nothing else: it looks at the available
//! index, reads the head and the three descriptors and the header, writes status, used element and used index. It checks
//! nothing, knows no windows and has no disk.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use reactor::Mode;
use vfu::{
    dma::Span,
    mock::{
        blk::{BlkDriver, BlkOptions, BlkQueue, Chains, Io},
        client::Client,
        memory::Memory,
        server::{DiskOptions, Server},
        split::SplitDriver,
    },
    virtio::spec::{Desc, UsedElem, blk::kind},
};

use crate::{report, rig};

/// Round trips of one sample, and samples.
const TRIPS: u32 = 20_000;
const SAMPLES: usize = 51;
const RING: u16 = 128;
const RAM: u64 = 16 << 20;

pub(crate) fn pin(core: usize) {
    assert!(core_affinity::set_for_current(core_affinity::CoreId { id: core }), "core {core} is there");
}

/// Nanoseconds a round trip.
fn trips(queue: &mut BlkQueue<SplitDriver>) -> f64 {
    let start = Instant::now();
    for nth in 0..TRIPS {
        queue.submit(Io { kind: kind::IN, sector: u64::from(nth), len: 512 }).expect("an empty ring");
        queue.publish_quietly();
        while queue.poll().expect("a device that obeys").is_none() {}
    }
    start.elapsed().as_nanos() as f64 / f64::from(TRIPS)
}

fn guest(server: &mut Server, dir: &tempfile::TempDir, name: &str) -> BlkDriver<SplitDriver> {
    server.registry().register(rig::null(name, 512)).expect("a new name");
    let socket = dir.path().join(name);
    server.serve(&socket, &DiskOptions { num_queues: 1, queue_size: RING, ..DiskOptions::new(name) });
    let options =
        BlkOptions { ring_size: RING, max_io: 4096, chains: Chains::Direct, ..BlkOptions::default() };
    let memory = Memory::new(RAM).expect("memory for a guest");
    let guest = BlkDriver::new(Client::connect(&socket).expect("a server"), memory, options).expect("a disk");
    guest.memory.populate().expect("just made");
    guest
}

/// The memory of a ring that no server has, as the bare device sees it.
struct Bare {
    desc: Span,
    avail: Span,
    used: Span,
    ram: Span,
    base: u64,
}

impl Bare {
    /// Works from entry `next` on until told to stop, and says where it stopped.
    fn run(&self, mut next: u16, stop: &AtomicBool) -> u16 {
        let mask = RING - 1;
        let (desc, avail, used, ram) =
            (self.desc.slice(), self.avail.slice(), self.used.slice(), self.ram.slice());
        let at = |addr: u64| usize::try_from(addr - self.base).expect("inside");
        while !stop.load(Ordering::Relaxed) {
            // No pause: a reactor makes none either, and some hypervisors take it for a wish to sleep.
            if avail.load_u16(2, Ordering::Acquire) == next {
                continue;
            }
            let slot = usize::from(next & mask);
            let head: u16 = avail.read(4 + 2 * slot);
            let first: Desc = desc.read(16 * usize::from(head));
            let data: Desc = desc.read(16 * usize::from(first.next));
            let status: Desc = desc.read(16 * usize::from(data.next));
            let header: u128 = ram.read(at(first.addr));
            std::hint::black_box(header);
            ram.write(at(status.addr), 0_u8);
            used.write(4 + 8 * slot, UsedElem { id: u32::from(head), len: data.len + 1 });
            next = next.wrapping_add(1);
            used.store_u16(2, next, Ordering::Release);
        }
        next
    }
}

fn bare_ring() -> (BlkQueue<SplitDriver>, Bare) {
    let mut memory = Memory::new(RAM).expect("memory for a guest");
    let region = memory.regions()[0];
    let options =
        BlkOptions { ring_size: RING, max_io: 4096, chains: Chains::Direct, ..BlkOptions::default() };
    let mut queue: BlkQueue<SplitDriver> =
        BlkQueue::new(&mut memory, 0, RING, &options).expect("memory for a ring");
    memory.populate().expect("just made");
    let areas = vfu::mock::ring::DriverRing::areas(queue.ring());
    let size = usize::from(RING);
    let span = |addr, len| memory.span(addr, len).expect("the ring is in memory");
    let bare = Bare {
        desc: span(areas.desc, 16 * size),
        avail: span(areas.driver, 6 + 2 * size),
        used: span(areas.device, 6 + 8 * size),
        ram: span(region.address, usize::try_from(region.len).expect("64 bits")),
        base: region.address,
    };
    (queue, bare)
}

pub(crate) fn run() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut server = Server::start(1);
    let reactor = server.reactors()[0].clone();
    let mut guest = guest(&mut server, &dir, "null");
    let (mut queue, bare) = bare_ring();
    let bare = Arc::new(bare);
    pin(1);
    let mut next = 0;
    let (mut ours, mut bares, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        // One of the two has the other core; the reactor sleeps while the bare device works.
        reactor.set_mode(Mode::Interrupt);
        let stop = Arc::new(AtomicBool::new(false));
        let device = {
            let (stop, bare) = (Arc::clone(&stop), Arc::clone(&bare));
            std::thread::spawn(move || {
                pin(0);
                bare.run(next, &stop)
            })
        };
        let of_bare = trips(&mut queue);
        stop.store(true, Ordering::Relaxed);
        next = device.join().expect("it stops");
        reactor.set_mode(Mode::PollOnly);
        reactor.call(|_| pin(0)).expect("a running reactor");
        let of_disk = trips(&mut guest.queues[0]);
        ours.push(of_disk);
        bares.push(of_bare);
        ratios.push(of_disk / of_bare);
    }
    println!("depth 1, a round trip between two cores");
    report("bare ring", &mut bares);
    report("null disk", &mut ours);
    ratios.sort_by(f64::total_cmp);
    println!(
        "disk / bare ring: median {:.3}, {:.3} to {:.3}",
        ratios[SAMPLES / 2],
        ratios[0],
        ratios[SAMPLES - 1]
    );
}

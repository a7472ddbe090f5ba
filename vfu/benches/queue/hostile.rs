//! What a hostile guest costs its neighbour on the same reactor.
//!
//! One thread is both drivers, so that the hostile writes fall into the time in which the neighbour's requests are under
//! way. Rounds alternate: in one the hostile guest writes its live ring, in the next the same writes go to memory that no
//! device looks at. Half of its lives are noise in descriptors, heads and indices; the others are rings full of chains
//! that are as long as chains can be and say nothing. A ring that it has broken is reset, with the clock stopped.

use std::time::{Duration, Instant};

use reactor::Mode;
use vfu::{
    mock::{
        blk::{BlkDriver, BlkOptions, Chains, Io},
        client::Client,
        memory::{DEFAULT_BASE, Memory},
        ring::DriverRing,
        server::{DiskOptions, Server},
        split::SplitDriver,
        transport::Areas,
    },
    virtio::spec::{Desc, blk::kind, desc, status},
};
use zerocopy::IntoBytes;

use crate::{Chance, pingpong::pin, report, rig};

const DEPTH: u16 = 32;
const RING: u16 = 128;
const RAM: u64 = 16 << 20;
/// Batches of the neighbour in a round.
const BATCHES: u32 = 200;
/// Entries of the hostile guest's indirect table: as many as a chain may have, which is as many as the queue has.
const TABLE: u16 = RING;
const TABLE_AT: u64 = DEFAULT_BASE + RAM - 16 * TABLE as u64;

/// How a guest's life is hostile.
#[derive(Clone, Copy)]
enum Manner {
    Noise,
    Long,
}

/// The hostile guest, and memory where the same writes do nothing.
struct Hostile {
    guest: BlkDriver<SplitDriver>,
    idle: Memory,
    areas: Areas,
    index: u16,
    manner: Manner,
    chance: Chance,
    resets: u64,
}

fn driver(server: &mut Server, dir: &tempfile::TempDir, name: &str) -> BlkDriver<SplitDriver> {
    server.registry().register(rig::null(name, 512)).expect("a new name");
    let socket = dir.path().join(name);
    server.serve(&socket, &DiskOptions { num_queues: 1, queue_size: RING, ..DiskOptions::new(name) });
    let options =
        BlkOptions { ring_size: RING, max_io: 512, chains: Chains::Direct, ..BlkOptions::default() };
    let memory = Memory::new(RAM).expect("memory for a guest");
    let client = Client::connect(&socket).expect("a server");
    let guest = BlkDriver::new(client, memory, options).expect("a disk");
    guest.memory.populate().expect("just made");
    guest
}

impl Hostile {
    fn new(guest: BlkDriver<SplitDriver>) -> Self {
        let idle = Memory::new(RAM).expect("memory");
        let areas = Areas { desc: 0, driver: 0, device: 0 };
        let mut new =
            Self { guest, idle, areas, index: 0, manner: Manner::Noise, chance: Chance(77), resets: 0 };
        new.reboot();
        new
    }

    /// A new life, in new memory.
    fn reboot(&mut self) {
        let client = &mut self.guest.transport.client;
        client.dma_unmap_all().expect("the server answers");
        self.guest.memory = Memory::new(RAM).expect("memory");
        self.guest.transport.client.map_memory(&self.guest.memory).expect("the server answers");
        self.guest.start().expect("a reset mends all");
        self.areas = self.guest.queues[0].ring().areas();
        self.index = 0;
        self.resets += 1;
        self.manner = if self.resets.is_multiple_of(2) { Manner::Noise } else { Manner::Long };
        if let Manner::Long = self.manner {
            self.lay_long_chains();
        }
    }

    /// Every head is an indirect table of readable buffers, the last of them writable: no request, but a valid chain.
    fn lay_long_chains(&self) {
        let write = |at: u64, bytes: &[u8]| self.guest.memory.write(at, bytes).expect("inside");
        for nth in 0..TABLE {
            let last = nth + 1 == TABLE;
            let flags = if last { desc::WRITE } else { desc::NEXT };
            let entry = Desc { addr: DEFAULT_BASE, len: u32::from(last), flags, next: nth + 1 };
            write(TABLE_AT + 16 * u64::from(nth), entry.as_bytes());
        }
        let head = Desc { addr: TABLE_AT, len: 16 * u32::from(TABLE), flags: desc::INDIRECT, next: 0 };
        for nth in 0..RING {
            write(self.areas.desc + 16 * u64::from(nth), head.as_bytes());
            write(self.areas.driver + 4 + 2 * u64::from(nth), &nth.to_le_bytes());
        }
    }

    /// Some writes of a hostile driver.
    fn write(&mut self, is_live: bool) {
        let Self { guest, idle, areas, index, manner, chance, .. } = self;
        let memory = if is_live { &guest.memory } else { &*idle };
        let write = |at: u64, bytes: &[u8]| memory.write(at, bytes).expect("inside");
        let taken = guest.queues[0].ring().used_index();
        match manner {
            Manner::Long => *index = taken.wrapping_add(RING),
            Manner::Noise => {
                for _ in 0..4 {
                    let mut number = |end| chance.below(end);
                    let (at, head) = (number(RING.into()), number(RING.into()) as u16);
                    let flags = (number(8) & number(8)) as u16;
                    let addr = DEFAULT_BASE + number(RAM + 4096);
                    let len = [0, 1, 16, 512, 4096, u32::MAX][number(6) as usize];
                    let entry = Desc { addr, len, flags, next: number(u64::from(RING) + 1) as u16 };
                    write(areas.desc + 16 * at, entry.as_bytes());
                    write(areas.driver + 4 + 2 * number(RING.into()), &head.to_le_bytes());
                }
                *index = index.wrapping_add(chance.below(3) as u16);
            }
        }
        write(areas.driver + 2, &index.to_le_bytes());
    }

    fn is_broken(&mut self) -> bool {
        self.guest.transport.status().expect("the server answers") & status::NEEDS_RESET != 0
    }
}

/// Nanoseconds a request of the neighbour, over a round.
fn round(neighbour: &mut BlkDriver<SplitDriver>, hostile: &mut Hostile, is_live: bool) -> f64 {
    let queue = &mut neighbour.queues[0];
    let mut nanos = 0.0;
    for batch in 0..BATCHES {
        let start = Instant::now();
        for nth in 0..DEPTH {
            let sector = u64::from(batch) * 8 + u64::from(nth);
            queue.submit(Io { kind: kind::IN, sector, len: 512 }).expect("an empty ring");
        }
        queue.publish_quietly();
        hostile.write(is_live);
        let mut left = DEPTH;
        while left > 0 {
            if queue.poll().expect("a device that obeys").is_some() {
                left -= 1;
            }
        }
        nanos += start.elapsed().as_nanos() as f64;
    }
    nanos / f64::from(BATCHES * u32::from(DEPTH))
}

pub(crate) fn run(seconds: u64) {
    let dir = tempfile::tempdir().expect("a folder");
    let mut server = Server::start(1);
    let mut neighbour = driver(&mut server, &dir, "neighbour");
    let mut hostile = Hostile::new(driver(&mut server, &dir, "hostile"));
    let reactor = server.reactors()[0].clone();
    reactor.set_mode(Mode::PollOnly);
    reactor.call(|_| pin(0)).expect("a running reactor");
    pin(1);
    let mut samples: [[Vec<f64>; 2]; 2] = Default::default();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let of_manner = &mut samples[hostile.manner as usize];
        of_manner[0].push(round(&mut neighbour, &mut hostile, false));
        of_manner[1].push(round(&mut neighbour, &mut hostile, true));
        // Long chains break nothing; such a life ends now and then.
        let is_over = matches!(hostile.manner, Manner::Long) && hostile.chance.below(50) == 0;
        if is_over || hostile.is_broken() {
            hostile.reboot();
        }
    }
    println!("{seconds} s of hostile rings beside a neighbour at depth {DEPTH}, {} lives", hostile.resets);
    for (name, [quiet, live]) in ["noise", "long chains"].iter().zip(&mut samples) {
        let mut ratios: Vec<f64> = quiet.iter().zip(&*live).map(|(quiet, live)| live / quiet).collect();
        report(&format!("neighbour beside idle memory ({name})"), quiet);
        report("neighbour beside the live ring", live);
        ratios.sort_by(f64::total_cmp);
        let mean = live.iter().sum::<f64>() / quiet.iter().sum::<f64>();
        println!("live / idle: median {:.3}, of the sums {mean:.3}", ratios[ratios.len() / 2]);
    }
}

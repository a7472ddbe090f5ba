//! `rig`: a device and its driver in this process, driven pass by pass, so that what a request costs can be counted.
//!
//! The driver's thread puts a batch on the ring and lets the reactor make one pass; nothing else runs meanwhile. All of
//! the reactor's work is inside [`counted_pass`], which callgrind is told to count and nothing else
//! (`scripts/instructions`); the difference between a run and one twice as long is what the requests cost. The time per
//! request that is printed has no cache line crossing between cores in it.

use std::{
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use ::bdev::types::{Malloc, MallocParams, Null, NullParams};
use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use reactor::{Clock, Handle, Mode, Reactor, ReactorConfig};
use vfu::{
    mock::{
        blk::{BlkDriver, BlkOptions, Chains, Io},
        client::Client,
        memory::Memory,
        nvme::{Nvme, read_command},
        packed::PackedDriver,
        ring::DriverRing,
        server::{DiskOptions, Server},
        split::SplitDriver,
        transport::Kicks,
    },
    nvme::{
        controller::ControllerOptions,
        namespace::NamespaceOptions,
        subsystem::{Subsystem, SubsystemOptions},
    },
    virtio::{
        control::DoorbellMode,
        spec::{blk::kind, feature},
        transport::TransportOptions,
    },
};

const NAME: &str = "disk";
const BLOCK: u32 = 4096;
/// Sectors of the disk; 64 MiB, so that every request has data of its own.
const SECTORS: u64 = 131_072;
const MEMORY: u64 = 64 << 20;
/// Passes that a batch may take at most: more, and the device is stuck.
const PASSES_MAX: u32 = 1000;

/// What the driver speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Front {
    /// virtio-blk on a split ring
    Split,
    /// virtio-blk on a packed ring
    Packed,
    /// NVMe
    Nvme,
}

/// What is behind the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Takes everything and gives nothing
    Null,
    /// Memory
    Malloc,
}

/// Drives a device of this process pass by pass.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// What the driver speaks
    #[arg(long, value_enum)]
    front: Front,
    /// What is behind the device
    #[arg(long, value_enum, default_value = "null")]
    bdev: Kind,
    /// Requests in a batch, all found by one pass
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=256))]
    depth: u16,
    /// Batches
    #[arg(long, default_value_t = 10_000)]
    batches: u32,
    /// Chains in indirect tables (virtio)
    #[arg(long)]
    indirect: bool,
}

/// The one place where the reactor works while the driver waits; a name that callgrind finds.
#[inline(never)]
fn counted_pass(reactor: &mut Reactor) {
    reactor.poll_once();
}

/// The driver's end of the rope: one pass, and back.
struct Turns {
    go: mpsc::Sender<()>,
    done: mpsc::Receiver<()>,
}

impl Turns {
    fn pass(&self) -> anyhow::Result<()> {
        self.go.send(())?;
        Ok(self.done.recv()?)
    }

    /// Passes until `reap` has got back all of `depth`.
    fn until_done(&self, depth: u32, mut reap: impl FnMut() -> anyhow::Result<u32>) -> anyhow::Result<()> {
        let mut got = 0;
        for _ in 0..PASSES_MAX {
            self.pass()?;
            got += reap()?;
            if got >= depth {
                ensure!(got == depth, "{got} requests of {depth} came back");
                return Ok(());
            }
        }
        bail!("the device is stuck with {} requests", depth - got)
    }
}

/// A driver with everything set up.
trait Guest {
    /// Puts a batch on its ring, with data from this sector on.
    fn submit(&mut self, sector: u64) -> anyhow::Result<()>;
    /// Takes what has finished.
    fn reap(&mut self) -> anyhow::Result<u32>;
}

struct Blk<R> {
    driver: BlkDriver<R>,
    depth: u16,
}

impl<R: DriverRing> Blk<R> {
    fn connect(server: &mut Server, socket: &Path, args: &Args) -> anyhow::Result<Self> {
        let transport =
            TransportOptions { packed_ring: args.front == Front::Packed, ..TransportOptions::default() };
        let options = DiskOptions {
            num_queues: 1,
            queue_size: 1024,
            doorbell: DoorbellMode::Mapped,
            transport,
            ..DiskOptions::new(NAME)
        };
        server.serve(socket, &options);
        let options = BlkOptions {
            ring_size: 1024,
            features: feature::EVENT_IDX | feature::INDIRECT_DESC,
            chains: if args.indirect { Chains::Indirect } else { Chains::Direct },
            kicks: Kicks::Never,
            max_io: BLOCK,
            max_buffer: BLOCK,
            ..BlkOptions::default()
        };
        let mut driver = BlkDriver::new(Client::connect(socket)?, Memory::new(MEMORY)?, options)?;
        driver.memory.populate()?;
        driver.start()?;
        Ok(Self { driver, depth: args.depth })
    }
}

impl<R: DriverRing> Guest for Blk<R> {
    fn submit(&mut self, sector: u64) -> anyhow::Result<()> {
        let queue = &mut self.driver.queues[0];
        for nth in 0..u64::from(self.depth) {
            let sector = (sector + nth * u64::from(BLOCK / 512)) % SECTORS;
            queue.submit(Io { kind: kind::IN, sector, len: BLOCK }).context("room on the ring")?;
        }
        queue.publish_quietly();
        Ok(())
    }

    fn reap(&mut self) -> anyhow::Result<u32> {
        let mut count = 0;
        while let Some(done) = self.driver.queues[0].poll()? {
            ensure!(done.status == 0, "a request failed with status {}", done.status);
            count += 1;
        }
        Ok(count)
    }
}

struct Namespace {
    driver: Nvme,
    pages: Vec<[u64; 2]>,
}

impl Namespace {
    fn connect(server: &mut Server, socket: &Path, args: &Args) -> anyhow::Result<Self> {
        let subsystem = Subsystem::new(SubsystemOptions::new("nqn.2016-06.io.spdk:cnode1"));
        subsystem
            .add_namespace(server.registry(), NAME, NamespaceOptions::default())
            .map_err(|error| anyhow::anyhow!("the namespace: {error:?}"))?;
        server.serve_nvme(socket, &subsystem, ControllerOptions::default(), true);
        let mut driver = Nvme::connect(socket, MEMORY)?;
        driver.map_doorbells()?;
        driver.enable()?;
        driver.create_polled_queues(1, 256)?;
        driver.memory.populate()?;
        let page = |_| driver.memory.allocate(BLOCK as usize, BLOCK as usize).map(|at| [at, 0]);
        let pages = (0..args.depth).map(page).collect::<Result<_, _>>()?;
        Ok(Self { driver, pages })
    }
}

impl Guest for Namespace {
    fn submit(&mut self, sector: u64) -> anyhow::Result<()> {
        let sectors = BLOCK / 512;
        let command = |(nth, page): (u64, &[u64; 2])| {
            read_command(1, (sector + nth * u64::from(sectors)) % SECTORS, sectors, *page)
        };
        let commands: Vec<_> = (0..).zip(&self.pages).map(command).collect();
        let taken = self.driver.submit(0, &commands)?.len();
        ensure!(taken == commands.len(), "room for {taken} commands only");
        Ok(())
    }

    fn reap(&mut self) -> anyhow::Result<u32> {
        let done = self.driver.reap(0)?;
        ensure!(done.iter().all(|done| done.status >> 1 == 0), "a command failed");
        Ok(u32::try_from(done.len())?)
    }
}

/// The driver's thread: everything is set up while the reactor runs freely, then it goes by turns.
fn drive(args: &Args, reactor: Handle, turns: &Turns, ready: &AtomicBool) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join(NAME);
    let mut server = Server::on(vec![reactor]);
    let num_blocks = SECTORS;
    match args.bdev {
        Kind::Null => {
            let params =
                NullParams { name: NAME.into(), block_size: 512, num_blocks, ..NullParams::default() };
            let null = Null::new(params).map_err(|error| anyhow::anyhow!("{error:?}"))?;
            server.registry().register(Arc::new(null))?;
        }
        Kind::Malloc => {
            let malloc = Malloc::new(NAME.into(), &MallocParams::new(512, num_blocks))?;
            server.registry().register(Arc::new(malloc))?;
        }
    }
    let mut guest: Box<dyn Guest> = match args.front {
        Front::Split => Box::new(Blk::<SplitDriver>::connect(&mut server, &socket, args)?),
        Front::Packed => Box::new(Blk::<PackedDriver>::connect(&mut server, &socket, args)?),
        Front::Nvme => Box::new(Namespace::connect(&mut server, &socket, args)?),
    };
    let depth = u32::from(args.depth);
    // One batch by a reactor that runs freely: from then on the queue is known to work.
    guest.submit(0)?;
    let mut warm = 0;
    while warm < depth {
        warm += guest.reap()?;
        thread::yield_now();
    }
    ready.store(true, Ordering::Release);
    for batch in 0..u64::from(args.batches) {
        guest.submit(batch * 8 * u64::from(depth))?;
        turns.until_done(depth, || guest.reap())?;
    }
    Ok(())
}

/// Runs the subcommand.
///
/// # Errors
/// What was wrong, for people.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let clock = Clock::system();
    // Under callgrind every pass is long. A stall would have each poll timed for a while, which costs instructions.
    let stall_limit = Duration::from_hours(1);
    let config = ReactorConfig { mode: Mode::PollOnly, stall_limit, ..ReactorConfig::new(0, clock.clone()) };
    let mut reactor = Reactor::new(config)?;
    let handle = reactor.handle();
    let (go, gone) = mpsc::channel();
    let (finished, done) = mpsc::channel();
    let ready = Arc::new(AtomicBool::new(false));
    let driver = thread::spawn({
        let (args, ready) = (args.clone(), Arc::clone(&ready));
        let turns = Turns { go, done };
        move || {
            let driven = drive(&args, handle, &turns, &ready);
            // Whoever waits for it to be ready waits no longer.
            ready.store(true, Ordering::Release);
            driven
        }
    });
    while !ready.load(Ordering::Acquire) {
        reactor.poll_once();
    }
    let mut ticks = 0;
    while gone.recv().is_ok() {
        let start = clock.now();
        counted_pass(&mut reactor);
        ticks += clock.now().since(start);
        finished.send(()).context("the driver's thread")?;
    }
    driver.join().map_err(|_panic| anyhow::anyhow!("the driver's thread panicked"))??;
    let requests = u64::from(args.batches) * u64::from(args.depth);
    let ns = clock.duration(ticks).as_nanos() as f64 / requests.max(1) as f64;
    writeln!(std::io::stdout(), "{requests} requests, {ns:.1} ns each on the reactor")?;
    Ok(())
}

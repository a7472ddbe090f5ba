//! `load`: drives virtio-blk disks behind vfio-user sockets and says what they do.
//!
//! The guest's side is `vfu::mock`; any vfio-user server with a virtio-blk device will do. [`args`] checks the command
//! line, [`target`] chooses blocks and knows what they hold, [`engine`] is the loop, [`report`] tells.

mod args;
mod engine;
mod latency;
mod report;
mod stamp;
mod target;

use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::{Context as _, bail, ensure};
pub(crate) use args::Args;
use args::{Pattern, Plan};
use engine::{Disk, Engine, Schedule};
pub(crate) use latency::{Latency, Summary};
use reactor::Clock;
use report::{Context, Report};
use target::{Extent, Order, Target};
use vfu::{
    mock::{
        blk::BlkDriver,
        client::Client,
        memory::{Memory, REGION_ALIGN},
        packed::PackedDriver,
        ring::DriverRing,
        split::SplitDriver,
        transport::Kicks,
    },
    virtio::spec::blk::{SECTOR, feature},
};

use crate::{affinity, host::Disturbance};

/// Guest memory for rings and headers of a queue, beside its data.
const QUEUE_OVERHEAD: u64 = 64 << 10;
/// Guest memory for each ring entry, beside its data: descriptors, headers, indirect tables.
const ENTRY_OVERHEAD: u64 = 2 << 10;

/// Runs the subcommand.
///
/// # Errors
/// What was wrong, for people.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let plan = args.plan()?;
    if let Some(cpu) = plan.cpu {
        affinity::pin(cpu)?;
    }
    if plan.packed { run_on::<PackedDriver>(&plan) } else { run_on::<SplitDriver>(&plan) }
}

fn run_on<R: DriverRing>(plan: &Plan) -> anyhow::Result<()> {
    let disks = plan.sockets.iter().enumerate().map(|(nth, socket)| {
        open::<R>(plan, nth, socket).with_context(|| format!("disk {}", socket.display()))
    });
    let disks = disks.collect::<anyhow::Result<Vec<_>>>()?;
    let ring_size = disks[0].driver.queues.first().map_or(0, |queue| queue.size());

    let clock = Clock::system();
    let schedule = Schedule {
        warmup: clock.ticks(plan.warmup),
        measured: clock.ticks(plan.measured),
        interval: clock.ticks(plan.interval),
    };
    let never_kick = plan.driver.kicks == Kicks::Never;
    let ticks_per_second = clock.ticks_per_second();
    let mut engine = Engine::new(clock, disks, plan.depth, plan.block_size, never_kick);
    let before = Disturbance::now();
    let outcome = engine.run(&schedule)?;
    let disturbance = Disturbance::now().since(before);

    let verified_blocks = if plan.verify { Some(read_back(&mut engine)?) } else { None };
    let report =
        Report::new(plan, outcome, &Context { ticks_per_second, disturbance, ring_size, verified_blocks });
    io::stdout().write_all(report.table().as_bytes())?;
    if let Some(path) = &plan.json {
        report.append(path).with_context(|| format!("--json {}", path.display()))?;
    }
    ensure!(report.errors() == 0, "{} requests failed", report.errors());
    Ok(())
}

fn read_back<R: DriverRing>(engine: &mut Engine<R>) -> anyhow::Result<u64> {
    let blocks = engine.disks.iter().map(|disk| disk.target.written()).sum();
    let errors = engine.read_back()?;
    ensure!(errors == 0, "{errors} blocks could not be read back");
    Ok(blocks)
}

/// Connects to a disk and brings it up.
fn open<R: DriverRing>(plan: &Plan, nth: usize, socket: &Path) -> anyhow::Result<Disk<R>> {
    let ring = u64::from(plan.driver.ring_size);
    let queue = QUEUE_OVERHEAD + ring * (ENTRY_OVERHEAD + u64::from(plan.block_size));
    let memory = Memory::new(REGION_ALIGN + queue * u64::from(plan.driver.queues)).context("guest memory")?;
    let driver = BlkDriver::<R>::new(Client::connect(socket)?, memory, plan.driver)?;
    for queue in &driver.queues {
        let (size, capacity) = (queue.size(), queue.capacity());
        ensure!(
            plan.depth <= capacity,
            "--depth: the disk's rings of {size} entries have room for {capacity} requests"
        );
    }
    driver.memory.populate().context("guest memory")?;
    let extent = extent(plan, &driver)?;
    let order = match plan.pattern {
        Pattern::Read | Pattern::Write => Order::Sequential,
        Pattern::Randread | Pattern::Randwrite | Pattern::Randrw => Order::Random,
    };
    // Disks do not do the same at the same time.
    let seed = plan.seed.wrapping_add(nth as u64);
    Ok(Disk { driver, target: Target::new(extent, order, plan.read_percent, seed, plan.verify) })
}

/// The part of the disk that the plan means, checked against the disk.
fn extent<R: DriverRing>(plan: &Plan, driver: &BlkDriver<R>) -> anyhow::Result<Extent> {
    let (size, config) = (driver.size_bytes(), driver.config());
    let block = u64::from(plan.block_size);
    if driver.features() & feature::RO != 0 && plan.read_percent < 100 {
        bail!("the disk is read-only");
    }
    if driver.features() & feature::BLK_SIZE != 0 {
        let unit = u64::from(config.blk_size.max(1));
        for (name, value) in [("bs", block), ("offset", plan.offset)] {
            ensure!(
                value.is_multiple_of(unit),
                "--{name}: {value} is not a multiple of the disk's blocks of {unit} bytes"
            );
        }
    }
    let rest = size.checked_sub(plan.offset);
    let rest = rest.with_context(|| format!("--offset: the disk ends at {size}"))?;
    let region = plan.region_size.unwrap_or(rest);
    ensure!(region <= rest, "--region-size: the disk ends at {size}");
    let blocks = region / block;
    let requests = u64::from(plan.depth) * u64::from(plan.driver.queues);
    ensure!(blocks > 0, "the region of {region} bytes holds no block of {block}");
    // Each request has a block to itself.
    ensure!(
        !plan.verify || blocks > requests,
        "--verify: {requests} requests in flight need a region of more than {requests} blocks, and it has {blocks}"
    );
    Ok(Extent { sector: plan.offset / SECTOR, blocks, block_sectors: block / SECTOR })
}

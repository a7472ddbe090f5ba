//! `load`: drives virtio-blk or NVMe disks behind vfio-user sockets and says what they do.
//!
//! The guest's side is `vfu::mock`; any vfio-user server with such a device will do. [`args`] checks the command line,
//! [`drive`] is a disk of either kind, [`target`] chooses blocks and knows what they hold, [`engine`] is the loop,
//! [`report`] tells.

mod args;
mod drive;
mod engine;
mod latency;
mod pace;
mod report;
mod stamp;
mod target;

use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::{Context as _, ensure};
pub(crate) use args::Args;
use args::{Kind, Pattern, Plan};
use drive::{Drive, Virtio};
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
        nvme::{Nvme, disk::NvmeDisk},
        packed::PackedDriver,
        ring::DriverRing,
        split::SplitDriver,
    },
    virtio::spec::blk::SECTOR,
};

use crate::{affinity, host::Disturbance};

/// Guest memory for rings and headers of a queue, beside its data.
const QUEUE_OVERHEAD: u64 = 64 << 10;
/// Guest memory for each ring entry, beside its data: descriptors, headers, indirect tables.
const ENTRY_OVERHEAD: u64 = 2 << 10;

/// A page of guest memory.
const PAGE: u64 = 4096;

/// Runs the subcommand.
///
/// # Errors
/// What was wrong, for people.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let plan = args.plan()?;
    if let Some(cpu) = plan.cpu {
        affinity::pin(cpu)?;
    }
    match plan.kind {
        Kind::Nvme => run_on(&plan, open_nvme),
        Kind::Packed => run_on(&plan, open_blk::<PackedDriver>),
        Kind::Split => run_on(&plan, open_blk::<SplitDriver>),
    }
}

fn run_on<D: Drive>(plan: &Plan, open: impl Fn(&Plan, &Path) -> anyhow::Result<D>) -> anyhow::Result<()> {
    let disks = plan.sockets.iter().enumerate().map(|(nth, socket)| {
        let disk = open(plan, socket).and_then(|drive| disk(plan, nth, drive));
        disk.with_context(|| format!("disk {}", socket.display()))
    });
    let disks = disks.collect::<anyhow::Result<Vec<_>>>()?;
    let ring_size = disks[0].drive.slots(0);

    let clock = Clock::system();
    let schedule = Schedule {
        warmup: clock.ticks(plan.warmup),
        measured: clock.ticks(plan.measured),
        interval: clock.ticks(plan.interval),
    };
    let ticks_per_second = clock.ticks_per_second();
    let mut engine = Engine::new(clock, disks, plan.depth, plan.block_size);
    if let Some(rate) = plan.rate {
        engine.pace(rate);
    }
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

fn read_back<D: Drive>(engine: &mut Engine<D>) -> anyhow::Result<u64> {
    let blocks = engine.disks.iter().map(|disk| disk.target.written()).sum();
    let errors = engine.read_back()?;
    ensure!(errors == 0, "{errors} blocks could not be read back");
    Ok(blocks)
}

/// Guest memory for the plan, where each request has `block` bytes.
fn memory(plan: &Plan, block: u64) -> anyhow::Result<u64> {
    let queue = QUEUE_OVERHEAD + u64::from(plan.driver.ring_size) * (ENTRY_OVERHEAD + block);
    queue
        .checked_mul(plan.driver.queues.into())
        .and_then(|len| len.checked_add(REGION_ALIGN))
        .context("guest memory")
}

/// Connects to a virtio-blk disk and brings it up.
fn open_blk<R: DriverRing>(plan: &Plan, socket: &Path) -> anyhow::Result<Virtio<R>> {
    let memory = Memory::new(memory(plan, plan.block_size.into())?).context("guest memory")?;
    let driver = BlkDriver::<R>::new(Client::connect(socket)?, memory, plan.driver)?;
    Ok(Virtio::new(driver, plan.driver.kicks))
}

/// Connects to an NVMe disk and brings it up.
fn open_nvme(plan: &Plan, socket: &Path) -> anyhow::Result<NvmeDisk> {
    // Data begins at a page, and has a page for its list.
    let block = u64::from(plan.block_size).next_multiple_of(PAGE) + PAGE;
    Ok(NvmeDisk::new(Nvme::connect(socket, memory(plan, block)?)?, plan.nvme())?)
}

/// What is asked of a disk.
fn disk<D: Drive>(plan: &Plan, nth: usize, drive: D) -> anyhow::Result<Disk<D>> {
    let extent = extent(plan, &drive)?;
    let order = match plan.pattern {
        Pattern::Read | Pattern::Write => Order::Sequential,
        Pattern::Randread | Pattern::Randwrite | Pattern::Randrw => Order::Random,
    };
    // Disks do not do the same at the same time.
    let seed = plan.seed.wrapping_add(nth as u64);
    Ok(Disk { drive, target: Target::new(extent, order, plan.read_percent, seed, plan.verify) })
}

/// The part of the disk that the plan means, checked against the disk.
fn extent(plan: &Plan, drive: &impl Drive) -> anyhow::Result<Extent> {
    let (size, unit) = drive.check(plan)?;
    let block = u64::from(plan.block_size);
    for (name, value) in [("bs", block), ("offset", plan.offset)] {
        ensure!(
            value.is_multiple_of(unit),
            "--{name}: {value} is not a multiple of the disk's blocks of {unit} bytes"
        );
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

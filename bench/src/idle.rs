//! `idle`: guests that are connected and do nothing but one request now and then: what they cost the target, and how long
//! the first request after silence takes.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use vfu::{
    mock::{
        blk::{BlkDriver, BlkOptions, Io},
        client::Client,
        memory::Memory,
        nvme::{
            Nvme,
            disk::{NvmeDisk, NvmeOptions, Rings},
            status_of,
        },
        split::SplitDriver,
    },
    virtio::spec::blk::kind,
};

use crate::affinity;

/// Bytes of each guest's memory; only what is touched is there.
const RAM: u64 = 16 << 20;
const BLOCK: u32 = 4096;

/// Connects to disks, leaves them alone, and wakes one at a time.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Socket of a disk; again for each further disk
    #[arg(long, required = true, value_name = "PATH")]
    socket: Vec<PathBuf>,
    /// The disks are NVMe controllers
    #[arg(long)]
    nvme: bool,
    /// Seconds in which nothing at all happens
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Requests after silence, one at a time
    #[arg(long, default_value_t = 20)]
    wakes: u32,
    /// Milliseconds of silence before each
    #[arg(long, default_value_t = 1000)]
    silence_ms: u64,
    /// The target's process, whose time is taken
    #[arg(long)]
    pid: u32,
    /// Core to run on
    #[arg(long)]
    cpu: Option<usize>,
}

/// User and system time of a process (proc(5), /proc/PID/schedstat of each thread: nanoseconds on a processor).
fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let mut nanos = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).context("the target's process is gone")? {
        let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanos += text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

/// Resident bytes of a process.
fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    let kib: u64 = line.split_whitespace().next().unwrap_or("0").parse()?;
    Ok(kib << 10)
}

/// A guest with one queue.
enum Guest {
    Blk(BlkDriver<SplitDriver>),
    Nvme(NvmeDisk),
}

impl Guest {
    fn new(socket: &Path, nvme: bool) -> anyhow::Result<Self> {
        let what = || socket.display().to_string();
        if nvme {
            let options = NvmeOptions { queues: 1, queue_size: 8, rings: Rings::Auto, max_io: BLOCK };
            let nvme = Nvme::connect(socket, RAM).with_context(what)?;
            return Ok(Self::Nvme(NvmeDisk::new(nvme, options)?));
        }
        let client = Client::connect(socket).with_context(what)?;
        let options = BlkOptions { queues: 1, ring_size: 8, ..BlkOptions::default() };
        Ok(Self::Blk(BlkDriver::new(client, Memory::new(RAM)?, options)?))
    }

    fn request(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Blk(blk) => {
                blk.run(0, Io { kind: kind::IN, sector: 0, len: BLOCK }, &[])?;
            }
            Self::Nvme(disk) => {
                disk.submit(0, false, 0, BLOCK).context("no room for a command")?;
                disk.publish(0)?;
                let done = disk.nvme.drain(0)?;
                ensure!(done.iter().all(|done| status_of(done).is_success()), "a read failed: {done:?}");
            }
        }
        Ok(())
    }
}

/// Runs it.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    if args.wakes == 0 || args.seconds == 0 {
        bail!("--wakes and --seconds must be at least 1");
    }
    if let Some(cpu) = args.cpu {
        affinity::pin(cpu)?;
    }
    let before = resident(args.pid)?;
    let mut guests =
        args.socket.iter().map(|socket| Guest::new(socket, args.nvme)).collect::<anyhow::Result<Vec<_>>>()?;
    // Each has been heard kicking once, as a driver that works is.
    for _ in 0..2 {
        guests.iter_mut().try_for_each(Guest::request)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_secs(1));

    let (start, used) = (Instant::now(), cpu_time(args.pid)?);
    std::thread::sleep(Duration::from_secs(args.seconds));
    let (elapsed, used) = (start.elapsed(), cpu_time(args.pid)?.saturating_sub(used));

    let mut latencies = Vec::new();
    for turn in 0..args.wakes as usize {
        let index = turn % guests.len();
        std::thread::sleep(Duration::from_millis(args.silence_ms));
        let start = Instant::now();
        guests[index].request()?;
        latencies.push(start.elapsed());
    }
    latencies.sort();
    let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    let share = used.as_secs_f64() / elapsed.as_secs_f64() * 100.0;
    let after = resident(args.pid)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} guests, idle for {} s", guests.len(), args.seconds)?;
    writeln!(out, "  target's time      {share:.3} % of a core")?;
    writeln!(
        out,
        "  target's memory    {} KiB resident, {} KiB a guest more than before",
        after >> 10,
        (after.saturating_sub(before) / guests.len() as u64) >> 10
    )?;
    writeln!(
        out,
        "  first request after {} ms of silence, {} samples: p50 {:.1} us, p99 {:.1} us, max {:.1} us",
        args.silence_ms,
        latencies.len(),
        at(50),
        at(99),
        at(100)
    )?;
    Ok(())
}

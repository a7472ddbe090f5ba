//! `bdev`: drives a bdev's channel in this process, without any front end: what SPDK calls bdevperf.
//!
//! Bdevs are made by the same params as their RPC methods take. Each job is a thread with a channel of its own; [`job`] is
//! the loop, [`make`] makes the bdevs. Prints a table, and a line of JSON to a file if asked.

mod job;
mod make;

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ::bdev::{Access, Registry};
use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use job::{Job, Outcome};
use reactor::Clock;
use serde::Serialize;

use crate::{
    host::{Disturbance, Host},
    load::{Latency, Summary},
};

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Workload {
    /// One block size after the other, read.
    Read,
    /// The same, written.
    Write,
    /// The same, mixed.
    Rw,
    /// Anywhere, read.
    Randread,
    /// Anywhere, written.
    Randwrite,
    /// Anywhere, mixed.
    Randrw,
    /// Written anywhere, read back and compared.
    Verify,
    /// Written and flushed in turn.
    Flush,
    /// Discarded.
    Unmap,
    /// Zeroed.
    WriteZeroes,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A bdev to make, as its RPC method and params: bdev_malloc_create '{"name":"M","num_blocks":2048,"block_size":512}'.
    /// In the order of making; the last one is driven
    #[arg(long, value_names = ["METHOD", "PARAMS"], num_args = 2, required = true)]
    create: Vec<String>,
    /// The bdev to drive, if it is not the last one made
    #[arg(long)]
    bdev: Option<String>,
    /// What to do
    #[arg(short = 'w', long, default_value = "randread")]
    workload: Workload,
    /// Requests in flight per job
    #[arg(short = 'q', long, default_value_t = 32)]
    depth: u16,
    /// Bytes of a request
    #[arg(short = 'o', long, default_value_t = 4096)]
    block_size: u32,
    /// Reads of a mix, in percent
    #[arg(short = 'M', long, default_value_t = 50)]
    read_percent: u8,
    /// Threads, each with a channel
    #[arg(short = 'j', long, default_value_t = 1)]
    jobs: u16,
    /// Core of the first job; the others take the ones behind it. Not pinned if absent
    #[arg(long)]
    core: Option<usize>,
    /// Seconds to measure
    #[arg(short = 't', long, default_value_t = 5.0)]
    seconds: f64,
    /// Seconds before that
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
    /// Write the whole bdev first, so that files have blocks
    #[arg(long)]
    fill: bool,
    /// Keep a latency histogram on the bdev, for measuring what that costs
    #[arg(long)]
    histogram: bool,
    /// Limit of the bdev in requests a second, by its own rate limits
    #[arg(long)]
    limit_iops: Option<u64>,
    /// Append the figures to this file, as a line of JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    bench: &'static str,
    #[serde(flatten)]
    host: Host,
    command: Vec<String>,
    bdev: String,
    kind: &'static str,
    workload: Workload,
    jobs: u16,
    depth: u16,
    block_size: u32,
    seconds: f64,
    requests: u64,
    errors: u64,
    compared: u64,
    iops: f64,
    iops_by_job: Vec<f64>,
    mib_per_s: f64,
    ns_per_request: f64,
    latency: Summary,
    waited_ns: u64,
    stolen_ticks: u64,
}

/// Runs the subcommand.
///
/// # Errors
/// What was wrong, for people.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    ensure!(
        args.depth > 0 && args.jobs > 0 && args.seconds > 0.0,
        "depth, jobs and seconds must be more than 0"
    );
    ensure!(args.read_percent <= 100, "more than 100 % of reads");
    let clock = Clock::system();
    ::bdev::set_ticks_per_second(clock.ticks_per_second());
    let registry = Registry::new();
    let mut last = String::new();
    for pair in args.create.chunks(2) {
        let [method, params] = pair else { bail!("--create takes a method and its params") };
        last = make::make(&registry, method, params).with_context(|| format!("{method} {params}"))?;
    }
    let name = args.bdev.clone().unwrap_or(last);
    let descriptor = Arc::new(registry.open(&name, Access::ReadWrite, |_| ())?);
    let info = descriptor.info().clone();
    let per_request = u64::from(args.block_size) / u64::from(info.block_size);
    ensure!(
        per_request > 0 && args.block_size.is_multiple_of(info.block_size),
        "requests of {} bytes are no blocks of {}",
        args.block_size,
        info.block_size
    );
    let units = info.num_blocks() / per_request;
    let slots = u64::from(args.jobs) * u64::from(args.depth);
    ensure!(units >= slots, "the bdev holds {units} requests, fewer than are in flight");
    if args.fill {
        job::fill(&descriptor)?;
    }
    if args.histogram {
        descriptor.registered().enable_histogram(Some(::bdev::HistogramSpec::new(None, None, None, None)?));
    }
    if args.limit_iops.is_some() {
        descriptor
            .registered()
            .set_qos(::bdev::QosParams { rw_ios_per_sec: args.limit_iops, ..::bdev::QosParams::default() })?;
    }
    let job = |nth: u16| Job {
        descriptor: descriptor.clone(),
        clock: clock.clone(),
        workload: args.workload,
        depth: args.depth,
        per_request,
        units,
        read_percent: args.read_percent,
        nth,
        jobs: args.jobs,
        core: args.core.map(|first| first + usize::from(nth)),
        warmup: Duration::from_secs_f64(args.warmup),
        measured: Duration::from_secs_f64(args.seconds),
    };
    let before = Disturbance::now();
    let threads: Vec<_> = (0..args.jobs)
        .map(|nth| {
            let job = job(nth);
            std::thread::spawn(move || job.run())
        })
        .collect();
    let mut all = Outcome::new(clock.ticks_per_second());
    let mut iops_by_job = Vec::new();
    for thread in threads {
        let outcome = thread.join().map_err(|_panic| anyhow::anyhow!("a job panicked"))??;
        iops_by_job.push(outcome.requests as f64 / outcome.seconds);
        all.add(outcome);
    }
    let disturbance = Disturbance::now().since(before);
    report(&args, &name, info.type_name, all, iops_by_job, &disturbance, clock.ticks_per_second())
}

#[expect(clippy::too_many_arguments, reason = "the parts of a report, once")]
fn report(
    args: &Args,
    name: &str,
    kind: &'static str,
    mut all: Outcome,
    iops_by_job: Vec<f64>,
    disturbance: &Disturbance,
    ticks_per_second: u64,
) -> anyhow::Result<()> {
    let iops: f64 = iops_by_job.iter().sum();
    let latency: Latency = std::mem::replace(&mut all.latency, Latency::new(ticks_per_second));
    let mut latency = latency;
    let report = Report {
        bench: "bdev",
        host: Host::here(),
        command: std::env::args().collect(),
        bdev: name.to_owned(),
        kind,
        workload: args.workload,
        jobs: args.jobs,
        depth: args.depth,
        block_size: args.block_size,
        seconds: all.seconds,
        requests: all.requests,
        errors: all.errors,
        compared: all.compared,
        iops,
        mib_per_s: iops * f64::from(args.block_size) / f64::from(1 << 20),
        ns_per_request: 1e9 * f64::from(args.jobs) / iops,
        iops_by_job,
        latency: latency.summary(ticks_per_second),
        waited_ns: disturbance.waited_ns,
        stolen_ticks: disturbance.stolen_ticks,
    };
    let mut out = io::stdout();
    writeln!(
        out,
        "{:<12} {:<8} {:>5} {:>6} {:>8} {:>12} {:>10} {:>9} {:>10} {:>10} {:>7}",
        "bdev", "kind", "jobs", "depth", "bytes", "IOPS", "MiB/s", "ns/req", "p50 ns", "p99 ns", "errors"
    )?;
    writeln!(
        out,
        "{:<12} {:<8} {:>5} {:>6} {:>8} {:>12.0} {:>10.1} {:>9.1} {:>10.0} {:>10.0} {:>7}",
        report.bdev,
        report.kind,
        report.jobs,
        report.depth,
        report.block_size,
        report.iops,
        report.mib_per_s,
        report.ns_per_request,
        report.latency.p50_ns,
        report.latency.p99_ns,
        report.errors
    )?;
    if report.compared > 0 {
        writeln!(out, "{} requests read back and compared", report.compared)?;
    }
    if let Some(path) = &args.json {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        writeln!(file, "{}", serde_json::to_string(&report)?)?;
    }
    ensure!(report.errors == 0, "{} requests failed", report.errors);
    Ok(())
}

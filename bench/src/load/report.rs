//! What a run comes to, for people (a table) and for machines (one line of JSON).

use std::{
    fmt::Write,
    fs::OpenOptions,
    io::{self, Write as _},
    path::Path,
};

use serde::Serialize;

use super::{args::Plan, engine::Outcome, latency::Summary};
use crate::host::{Disturbance, Host};

/// Of the rate that was asked for so much must be done, or the run is behind.
const KEPT_UP: f64 = 0.99;
/// Of the measured time so much may be lost to others before the figures are called noisy, in thousandths.
const QUIET_PER_MILLE: f64 = 5.0;

/// A run's figures.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    bench: &'static str,
    #[serde(flatten)]
    host: Host,
    /// As it was typed.
    command: Vec<String>,
    disks: usize,
    queues: u16,
    depth: u16,
    /// Requests a second that were due, in open loop.
    rate: Option<u64>,
    block_size: u32,
    read_percent: u8,
    ring_size: u16,
    seconds: f64,
    requests: u64,
    reads: u64,
    writes: u64,
    errors: u64,
    iops: f64,
    mib_per_s: f64,
    latency: Summary,
    /// Requests a second in each interval.
    samples: Vec<f64>,
    /// The generator's own nanoseconds for each request.
    own_ns: f64,
    kicks: u64,
    /// Requests found finished together.
    batch: f64,
    waited_ns: u64,
    stolen_ticks: u64,
    /// Blocks read back and checked in the end.
    verified_blocks: Option<u64>,
}

/// What surrounds an outcome.
pub(crate) struct Context {
    pub(crate) ticks_per_second: u64,
    pub(crate) disturbance: Disturbance,
    pub(crate) ring_size: u16,
    pub(crate) verified_blocks: Option<u64>,
}

impl Report {
    /// Makes figures of an outcome.
    pub(crate) fn new(plan: &Plan, mut outcome: Outcome, context: &Context) -> Self {
        let rate = context.ticks_per_second as f64;
        let seconds = (outcome.elapsed as f64 / rate).max(f64::MIN_POSITIVE);
        let requests = outcome.counts.requests();
        let iops = requests as f64 / seconds;
        let interval = plan.interval.as_secs_f64();
        Self {
            bench: "load",
            host: Host::here(),
            command: std::env::args().collect(),
            disks: plan.sockets.len(),
            queues: plan.driver.queues,
            depth: plan.depth,
            rate: plan.rate,
            block_size: plan.block_size,
            read_percent: plan.read_percent,
            ring_size: context.ring_size,
            seconds,
            requests,
            reads: outcome.counts.reads,
            writes: outcome.counts.writes,
            errors: outcome.counts.errors,
            iops,
            mib_per_s: iops * f64::from(plan.block_size) / f64::from(1 << 20),
            latency: outcome.latency.summary(context.ticks_per_second),
            samples: outcome.samples.iter().map(|&count| (count as f64 / interval).round()).collect(),
            own_ns: outcome.own_cost * 1e9 / rate,
            kicks: outcome.counts.kicks,
            batch: outcome.latency.count() as f64 / outcome.counts.turns.max(1) as f64,
            waited_ns: context.disturbance.waited_ns,
            stolen_ticks: context.disturbance.stolen_ticks,
            verified_blocks: context.verified_blocks,
        }
    }

    /// The table.
    pub(crate) fn table(&self) -> String {
        let us = |ns: f64| format!("{:.2}", ns / 1000.0);
        let spread =
            |worst: fn(f64, f64) -> f64| self.samples.iter().copied().reduce(worst).unwrap_or(self.iops);
        let rows = [
            ("requests", format!("{} ({} reads, {} writes)", self.requests, self.reads, self.writes)),
            ("IOPS", format!("{:.0}", self.iops)),
            ("  in intervals", format!("{:.0} to {:.0}", spread(f64::min), spread(f64::max))),
            ("MiB/s", format!("{:.1}", self.mib_per_s)),
            ("latency us min", us(self.latency.min_ns)),
            ("  p50", us(self.latency.p50_ns)),
            ("  p99", us(self.latency.p99_ns)),
            ("  p99.9", us(self.latency.p99_9_ns)),
            ("  max", us(self.latency.max_ns)),
            ("own ns a request", format!("{:.1} (in batches of {:.1})", self.own_ns, self.batch)),
            ("kicks", self.kicks.to_string()),
            ("errors", self.errors.to_string()),
        ];
        let mut text = format!(
            "{} disk(s), {} queue(s), depth {}, {} bytes, {}% reads, rings of {}, {:.1} s\n",
            self.disks,
            self.queues,
            self.depth,
            self.block_size,
            self.read_percent,
            self.ring_size,
            self.seconds
        );
        for (name, value) in rows {
            // Writing to a String does not fail.
            let _ = writeln!(text, "  {name:<18} {value}");
        }
        if let Some(blocks) = self.verified_blocks {
            let _ = writeln!(text, "  {:<18} {blocks} blocks read back right", "verified");
        }
        if let Some(rate) = self.rate {
            let _ = writeln!(text, "  {:<18} {rate} a second, timed from when they were due", "due");
            if self.iops < rate as f64 * KEPT_UP {
                let _ = writeln!(text, "  BEHIND: more were due than were done");
            }
        }
        if self.is_noisy() {
            let waited_ms = self.waited_ns as f64 / 1e6;
            let stolen_ms = self.stolen_ticks * 10;
            let _ =
                writeln!(text, "  NOISY: waited {waited_ms:.1} ms for the processor; {stolen_ms} ms stolen");
        }
        text
    }

    /// Whether something else kept the generator from running.
    fn is_noisy(&self) -> bool {
        let lost_s = self.waited_ns as f64 / 1e9 + self.stolen_ticks as f64 / 100.0;
        lost_s * 1000.0 > self.seconds * QUIET_PER_MILLE
    }

    /// Requests that failed.
    pub(crate) fn errors(&self) -> u64 {
        self.errors
    }

    /// Appends one line of JSON to `path`; `-` is standard output.
    ///
    /// # Errors
    /// The file's.
    pub(crate) fn append(&self, path: &Path) -> io::Result<()> {
        let mut line = serde_json::to_string(self)?;
        line.push('\n');
        if path.as_os_str() == "-" {
            return io::stdout().write_all(line.as_bytes());
        }
        // In one write, so that two runs into the same file do not mix their lines.
        OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())
    }
}

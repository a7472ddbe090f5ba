//! The command line of `load`, and what it comes to: a checked [`Plan`].
//!
//! Everything that can be refused without a device is refused here, with the option's name.

use std::{path::PathBuf, time::Duration};

use clap::ValueEnum;
use vfu::{
    mock::{
        blk::{BlkOptions, Chains},
        nvme::disk::{NvmeOptions, Rings},
        ring::MAX_BUFFERS,
        transport::Kicks,
    },
    virtio::spec::{blk::SECTOR, feature},
};

/// Longest block of one request.
const MAX_BLOCK: u64 = 16 << 20;
/// Longest buffer of a request: some devices stop at that (SPDK's virtio devices at 128 KiB a segment).
const MAX_BUFFER: u64 = 128 << 10;
const MAX_RING: u16 = 32768;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Pattern {
    /// One block after the other is read
    Read,
    /// One block after the other is written
    Write,
    /// Blocks are read in random order
    Randread,
    /// Blocks are written in random order
    Randwrite,
    /// Blocks are read and written in random order
    Randrw,
}

/// How kicks go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KickMode {
    /// As the device wants it: by the mapped page, or by messages
    Auto,
    /// By messages, though there may be a page
    Message,
    /// Not at all: the device has to poll
    Never,
}

/// Where the descriptors of chains are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IndirectMode {
    /// In indirect tables only where the ring is too short
    Auto,
    /// Always in indirect tables
    On,
    /// Always in the ring's own table
    Off,
}

/// What disks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// virtio-blk with split rings
    Split,
    /// virtio-blk with packed rings
    Packed,
    /// NVMe controllers
    Nvme,
}

/// Drives virtio-blk or NVMe disks over vfio-user sockets. Closed loop, where each finished request is followed by the
/// next; or open loop (`--rate`), where requests come when they are due.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Socket of a disk; again for each further disk
    #[arg(long, required = true, value_name = "PATH")]
    socket: Vec<PathBuf>,
    /// The disks are NVMe controllers; their first namespaces are driven
    #[arg(long, conflicts_with_all = ["indirect", "no_event_idx", "packed_ring"])]
    nvme: bool,
    /// What is done
    #[arg(long, value_enum, default_value = "randread")]
    rw: Pattern,
    /// Share of reads in percent, with randrw
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    rwmixread: u8,
    /// Bytes of a request: 4096, 4k, 1m
    #[arg(long, default_value = "4k", value_parser = parse_size)]
    bs: u64,
    /// Requests in flight on each queue
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    depth: u16,
    /// Open loop: so many requests a second over all queues, each timed from when it was due; the depth bounds what is in
    /// flight on a queue
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    rate: Option<u64>,
    /// Queues of each disk
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    queues: u16,
    /// Measured time in seconds
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Time before that, not measured
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// Time of one sample in seconds
    #[arg(long, default_value_t = 0.5)]
    interval: f64,
    /// Core to run on; not pinned without
    #[arg(long)]
    cpu: Option<usize>,
    /// Stamp what is written, check what is read, and read everything back in the end
    #[arg(long)]
    verify: bool,
    /// Where on the disk the region starts that is used
    #[arg(long, default_value = "0", value_parser = parse_size)]
    offset: u64,
    /// How long that region is; up to the end of the disk without
    #[arg(long, value_parser = parse_size)]
    region_size: Option<u64>,
    /// Data begin so many bytes behind the start of a page
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..4096), conflicts_with = "nvme")]
    misalign: u32,
    /// Append a line of JSON to this file; `-` prints it
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How kicks go
    #[arg(long, value_enum, default_value = "auto")]
    kick: KickMode,
    /// Where the descriptors of chains are
    #[arg(long, value_enum, default_value = "auto")]
    indirect: IndirectMode,
    /// Do not use EVENT_IDX
    #[arg(long)]
    no_event_idx: bool,
    /// Packed rings
    #[arg(long)]
    packed_ring: bool,
    /// Entries of each ring at most; as many as the depth needs without
    #[arg(long, value_parser = clap::value_parser!(u16).range(2..=i64::from(MAX_RING)))]
    ring_size: Option<u16>,
    /// Where random numbers start
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Why a command line makes no sense.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum ArgsError {
    /// Not a multiple of the sector, or too long.
    #[error("--{0}: {1} is not a multiple of 512 bytes")]
    Sectors(&'static str, u64),
    /// A block that no request can carry.
    #[error("--bs: {0} is not between 512 and {MAX_BLOCK}")]
    Block(u64),
    /// NVMe queues are not polled without being told to.
    #[error("--kick: an NVMe controller has to be told")]
    Untold,
    /// A time that is none.
    #[error("--{0}: {1} is not a time in seconds")]
    Time(&'static str, f64),
    /// More requests than a ring can hold.
    #[error("--depth: {depth} requests do not fit into a ring of {ring}")]
    Depth {
        /// Asked for.
        depth: u16,
        /// Entries.
        ring: u16,
    },
}

/// A checked command line.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) sockets: Vec<PathBuf>,
    pub(crate) kind: Kind,
    pub(crate) pattern: Pattern,
    /// Of 100 requests so many are reads.
    pub(crate) read_percent: u8,
    pub(crate) block_size: u32,
    pub(crate) depth: u16,
    /// Requests a second, in open loop.
    pub(crate) rate: Option<u64>,
    pub(crate) warmup: Duration,
    pub(crate) measured: Duration,
    pub(crate) interval: Duration,
    pub(crate) cpu: Option<usize>,
    pub(crate) verify: bool,
    pub(crate) offset: u64,
    pub(crate) region_size: Option<u64>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) seed: u64,
    pub(crate) driver: BlkOptions,
}

/// Bytes, with k, m or g behind them for powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim().to_ascii_lowercase();
    let number = text.trim_end_matches("ib").trim_end_matches(['k', 'm', 'g', 't']);
    let shift = match &text[number.len()..] {
        "" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err("not a size".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_not_a_number| "not a size".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

fn time(name: &'static str, seconds: f64, least: f64) -> Result<Duration, ArgsError> {
    // A day is more than anybody measures, and far from every overflow.
    if (least..=86400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(ArgsError::Time(name, seconds))
    }
}

impl Args {
    /// Checks the command line.
    pub(crate) fn plan(self) -> Result<Plan, ArgsError> {
        if !(SECTOR..=MAX_BLOCK).contains(&self.bs) {
            return Err(ArgsError::Block(self.bs));
        }
        for (name, value) in
            [("bs", self.bs), ("offset", self.offset), ("region-size", self.region_size.unwrap_or(0))]
        {
            if !value.is_multiple_of(SECTOR) {
                return Err(ArgsError::Sectors(name, value));
            }
        }
        let block_size = u32::try_from(self.bs).map_err(|_too_large| ArgsError::Block(self.bs))?;
        let max_buffer = self.bs.min(MAX_BUFFER.max(self.bs.div_ceil(MAX_BUFFERS as u64 / 2)));
        let buffers = u16::try_from(self.bs.div_ceil(max_buffer)).unwrap_or(u16::MAX).saturating_add(2);
        let fits_direct = self.depth.checked_mul(buffers).and_then(u16::checked_next_power_of_two);
        let least = self.depth.checked_next_power_of_two().unwrap_or(MAX_RING).max(2);
        let ring = match self.indirect {
            IndirectMode::On => least,
            IndirectMode::Auto | IndirectMode::Off => fits_direct.unwrap_or(least),
        };
        // An NVMe command takes one entry, and one entry stays free.
        let ring = if self.nvme { self.depth.saturating_add(1) } else { ring };
        let ring_size = self.ring_size.unwrap_or_else(|| ring.clamp(2, MAX_RING));
        if self.depth > ring_size - u16::from(self.nvme) {
            return Err(ArgsError::Depth { depth: self.depth, ring: ring_size });
        }
        let kind = match (self.nvme, self.packed_ring) {
            (true, _) => Kind::Nvme,
            (false, true) => Kind::Packed,
            (false, false) => Kind::Split,
        };
        if kind == Kind::Nvme && self.kick == KickMode::Never {
            return Err(ArgsError::Untold);
        }
        let event_idx = if self.no_event_idx { 0 } else { feature::EVENT_IDX };
        let driver = BlkOptions {
            queues: self.queues,
            ring_size,
            features: event_idx | feature::INDIRECT_DESC,
            without: 0,
            chains: match self.indirect {
                IndirectMode::Auto => Chains::Fit(self.depth),
                IndirectMode::On => Chains::Indirect,
                IndirectMode::Off => Chains::Direct,
            },
            interrupts: false,
            kicks: match self.kick {
                KickMode::Auto => Kicks::Auto,
                KickMode::Message => Kicks::Messages,
                KickMode::Never => Kicks::Never,
            },
            max_io: block_size,
            max_buffer: u32::try_from(max_buffer).unwrap_or(u32::MAX),
            misalign: self.misalign,
        };
        Ok(Plan {
            sockets: self.socket,
            kind,
            pattern: self.rw,
            read_percent: match self.rw {
                Pattern::Read | Pattern::Randread => 100,
                Pattern::Write | Pattern::Randwrite => 0,
                Pattern::Randrw => self.rwmixread,
            },
            block_size,
            depth: self.depth,
            rate: self.rate,
            warmup: time("warmup", self.warmup, 0.0)?,
            measured: time("seconds", self.seconds, 0.001)?,
            interval: time("interval", self.interval, 0.001)?,
            cpu: self.cpu,
            verify: self.verify,
            offset: self.offset,
            region_size: self.region_size,
            json: self.json,
            seed: self.seed,
            driver,
        })
    }
}

impl Plan {
    /// How an NVMe disk is wanted.
    pub(crate) fn nvme(&self) -> NvmeOptions {
        let BlkOptions { queues, ring_size: queue_size, max_io, kicks, .. } = self.driver;
        let rings = if kicks == Kicks::Messages { Rings::Messages } else { Rings::Auto };
        NvmeOptions { queues, queue_size, rings, max_io }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn plan(line: &str) -> Result<Plan, ArgsError> {
        Cli::try_parse_from(["load", "--socket", "/x"].into_iter().chain(line.split_whitespace()))
            .unwrap()
            .args
            .plan()
    }

    #[test]
    fn sizes_have_binary_suffixes() {
        let sizes = ["512", "4k", "4KiB", "1m", "2g", "1T"].map(|text| parse_size(text).unwrap());
        assert_eq!(sizes, [512, 4096, 4096, 1 << 20, 2 << 30, 1 << 40]);
        let wrong = ["", "k", "4x", "-1", "4kk", "99999999999g"].map(|text| parse_size(text).is_err());
        assert_eq!(wrong, [true; 6]);
    }

    #[test]
    fn ring_has_room_for_the_depth_without_indirect_tables() {
        assert_eq!(plan("--depth 1").unwrap().driver.ring_size, 4);
        assert_eq!(plan("--depth 128").unwrap().driver.ring_size, 512);
        assert_eq!(plan("--depth 128 --indirect on").unwrap().driver.ring_size, 128);
        assert_eq!(plan("--depth 128 --ring-size 256").unwrap().driver.chains, Chains::Fit(128));
    }

    #[test]
    fn nvme_queue_has_an_entry_more_than_the_depth() {
        let plan_of = |line| plan(line).map(|plan| (plan.kind, plan.nvme().queue_size));
        assert_eq!(plan_of("--nvme --depth 128"), Ok((Kind::Nvme, 129)));
        assert_eq!(plan_of("--nvme --depth 4 --ring-size 4"), Err(ArgsError::Depth { depth: 4, ring: 4 }));
        assert_eq!(plan_of("--nvme --kick never"), Err(ArgsError::Untold));
    }

    #[test]
    fn long_blocks_are_cut_into_buffers_that_fit_a_chain() {
        let driver = plan("--bs 16m").unwrap().driver;
        assert!(driver.max_io.div_ceil(driver.max_buffer) as usize + 2 <= MAX_BUFFERS);
        assert_eq!(plan("--bs 128k").unwrap().driver.max_buffer, 128 << 10);
    }

    #[test]
    fn nonsense_is_refused_by_the_name_of_its_option() {
        let refused = |line| plan(line).unwrap_err().to_string();
        assert_eq!(refused("--bs 1000"), "--bs: 1000 is not a multiple of 512 bytes");
        assert_eq!(refused("--bs 32m"), "--bs: 33554432 is not between 512 and 16777216");
        assert_eq!(refused("--offset 7"), "--offset: 7 is not a multiple of 512 bytes");
        assert_eq!(refused("--seconds 0"), "--seconds: 0 is not a time in seconds");
        assert_eq!(refused("--seconds nan"), "--seconds: NaN is not a time in seconds");
        assert_eq!(refused("--depth 64 --ring-size 32"), "--depth: 64 requests do not fit into a ring of 32");
    }

    #[test]
    fn share_of_reads_goes_with_the_pattern() {
        assert_eq!(plan("--rw write --rwmixread 70").unwrap().read_percent, 0);
        assert_eq!(plan("--rw randrw --rwmixread 70").unwrap().read_percent, 70);
        assert_eq!(plan("--rw read").unwrap().read_percent, 100);
    }
}

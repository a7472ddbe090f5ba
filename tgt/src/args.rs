//! The command line: spdk_tgt's flags where they have a meaning here, and a few of our own.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgAction, ArgGroup, Parser};
use reactor::{CORE_LOCK_DIR, CoreMask, Mode};

use crate::log::Wishes;
use crate::show_trace::ShowTrace;
use crate::values::{FileMode, LcoreMap, MemSize, Owner};

/// A polled storage target that serves virtual PCI disks to virtual machines.
#[derive(Debug, Parser)]
#[command(name = "ringside", version, disable_version_flag = true)]
#[command(args_conflicts_with_subcommands = true)]
#[command(group(ArgGroup::new("hugepages").args(["single_file_segments", "huge_unlink", "huge_dir"]).multiple(true)))]
pub(crate) struct Args {
    /// What to do instead of serving disks.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Cores to run a reactor on: a mask (0x3) or a list ([0,2-4]).
    #[arg(short = 'm', long = "cpumask", value_name = "MASK|[LIST]", default_value = "0x1", value_parser = cores)]
    cpumask: CoreMask,

    /// Cores to run a reactor on, as DPDK maps them; each core is its own CPU here.
    #[arg(long, value_name = "MAP", conflicts_with = "cpumask")]
    lcores: Option<LcoreMap>,

    /// Core that hosts what belongs to no other; one of the mask. Default: the first.
    #[arg(short = 'p', long = "main-core", value_name = "CORE")]
    pub(crate) main_core: Option<u32>,

    /// Do not claim the cores by lock files in /var/tmp.
    #[arg(long)]
    pub(crate) disable_cpumask_locks: bool,

    /// Where the lock files of cores are; another place than SPDK's is for tests.
    #[arg(long, value_name = "DIR", default_value = CORE_LOCK_DIR, hide = true)]
    pub(crate) core_lock_dir: PathBuf,

    /// Unix socket of the JSON-RPC server.
    #[arg(short = 'r', long = "rpc-socket", value_name = "PATH", default_value = "/var/tmp/spdk.sock")]
    pub(crate) rpc_socket: PathBuf,

    /// Do not serve JSON-RPC at all.
    #[arg(long)]
    pub(crate) no_rpc_server: bool,

    /// Wait for the RPC framework_start_init before anything is initialised.
    #[arg(long)]
    pub(crate) wait_for_rpc: bool,

    /// The only methods that may be called, from clients and from a configuration file.
    #[arg(long, value_name = "METHODS", value_delimiter = ',')]
    pub(crate) rpcs_allowed: Option<Vec<String>>,

    /// Configuration to load, as save_config writes it; comments are welcome.
    #[arg(short = 'c', long = "config", visible_alias = "json", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Go on after an entry of the configuration that fails.
    #[arg(long)]
    pub(crate) json_ignore_init_errors: bool,

    /// Keep the configuration here, by itself, through crashes and restarts.
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    /// Directory in which endpoints create their sockets.
    #[arg(short = 'S', value_name = "DIR", default_value = ".")]
    pub(crate) socket_dir: PathBuf,

    /// Mode of the sockets, the RPC server's and the endpoints'.
    #[arg(long, value_name = "OCTAL", default_value = "0600")]
    pub(crate) socket_mode: FileMode,

    /// Owner of the sockets, by names or numbers. Default: who runs the target.
    #[arg(long, value_name = "USER[:GROUP]")]
    pub(crate) socket_owner: Option<Owner>,

    /// File to write the process id to, once the target runs.
    #[arg(short = 'f', value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,

    /// Most memory that disks in memory may take, in MiB or with a unit.
    #[arg(short = 's', long = "mem-size", value_name = "SIZE[K|M|G]")]
    pub(crate) mem_size: Option<MemSize>,

    /// Use no hugepages.
    #[arg(long, requires = "mem_size", conflicts_with = "hugepages")]
    pub(crate) no_huge: bool,

    /// Never poll: sleep as soon as there is nothing to do.
    #[arg(long, conflicts_with = "poll_only")]
    pub(crate) interrupt_mode: bool,

    /// Never sleep: poll all the time, as spdk_tgt does.
    #[arg(long)]
    pub(crate) poll_only: bool,

    /// How long a reactor polls without work before it sleeps.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50)]
    pub(crate) spin_us: u64,

    /// Print more: once for what is done, twice for how.
    #[arg(long = "verbose", action = ArgAction::Count)]
    pub(crate) verbose: u8,

    /// Print warnings and errors only.
    #[arg(long)]
    pub(crate) silence_noticelog: bool,

    /// Log more of a part of the target (wildcards, or all); may be repeated.
    #[arg(short = 'L', long = "logflag", value_name = "FLAG")]
    pub(crate) log_flags: Vec<String>,

    /// Leave the limit on core dumps as it is; it is lifted otherwise.
    #[arg(short = 'd', long)]
    pub(crate) limit_coredump: bool,

    /// The end of the name of the trace's file in /dev/shm. Default: pid and the process id.
    #[arg(short = 'i', long, value_name = "ID")]
    pub(crate) shm_id: Option<u32>,

    /// Trace points to turn on, or all.
    #[arg(short = 'e', long = "tpoint-group", value_name = "GROUP[:MASK|NAME+NAME]", value_delimiter = ',')]
    pub(crate) tpoint_groups: Vec<String>,

    /// Events that the trace keeps for each reactor: a power of two, or 0 for no trace.
    #[arg(long, value_name = "ENTRIES", default_value_t = 32768, value_parser = power_of_two)]
    pub(crate) num_trace_entries: u32,

    /// Give up, before anything is served, all that a storage target has no use for: programs to run, networks, other
    /// processes, and files outside of the folders named by other flags (docs/threat-model.md).
    #[arg(long)]
    pub(crate) sandbox: bool,

    /// A file or folder that disks are made of, which the sandbox leaves within reach; may be repeated.
    #[arg(long, value_name = "PATH", requires = "sandbox")]
    pub(crate) sandbox_path: Vec<PathBuf>,

    /// Print the version and exit.
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,

    #[command(flatten)]
    dpdk: Dpdk,
}

/// What the program does besides being a target.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Print the trace of a target, one that runs or one that has died.
    Trace(ShowTrace),
}

/// Flags about the memory and the PCI devices of DPDK. Neither is used here: they are accepted, and said to be idle.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Accepted for compatibility, without effect")]
struct Dpdk {
    #[arg(short = 'g', long)]
    single_file_segments: bool,

    #[arg(short = 'R', long)]
    huge_unlink: bool,

    #[arg(long, value_name = "PATH")]
    huge_dir: Option<PathBuf>,

    #[arg(short = 'n', long, value_name = "CHANNELS")]
    mem_channels: Option<u32>,

    #[arg(long, value_name = "SIZE")]
    msg_mempool_size: Option<u32>,

    #[arg(long, value_name = "MODE", value_parser = ["pa", "va"])]
    iova_mode: Option<String>,

    #[arg(long, value_name = "ADDRESS", value_parser = hexadecimal)]
    base_virtaddr: Option<u64>,

    #[arg(long)]
    enforce_numa: bool,

    #[arg(short = 'u', long)]
    no_pci: bool,

    #[arg(short = 'A', long = "pci-allowed", value_name = "BDF", conflicts_with = "pci_blocked")]
    pci_allowed: Vec<String>,

    #[arg(short = 'B', long = "pci-blocked", value_name = "BDF")]
    pci_blocked: Vec<String>,

    #[arg(long, value_name = "UUID")]
    vfio_vf_token: Option<String>,

    #[arg(long, value_name = "OPTIONS")]
    env_context: Option<String>,
}

impl Dpdk {
    /// The flags that were given, as they are spelled.
    fn given(&self) -> impl Iterator<Item = &'static str> {
        let all = [
            ("--single-file-segments", self.single_file_segments),
            ("--huge-unlink", self.huge_unlink),
            ("--huge-dir", self.huge_dir.is_some()),
            ("--mem-channels", self.mem_channels.is_some()),
            ("--msg-mempool-size", self.msg_mempool_size.is_some()),
            ("--iova-mode", self.iova_mode.is_some()),
            ("--base-virtaddr", self.base_virtaddr.is_some()),
            ("--enforce-numa", self.enforce_numa),
            ("--no-pci", self.no_pci),
            ("--pci-allowed", !self.pci_allowed.is_empty()),
            ("--pci-blocked", !self.pci_blocked.is_empty()),
            ("--vfio-vf-token", self.vfio_vf_token.is_some()),
            ("--env-context", self.env_context.is_some()),
        ];
        all.into_iter().filter_map(|(flag, given)| given.then_some(flag))
    }
}

fn power_of_two(text: &str) -> Result<u32, String> {
    let entries: u32 = text.parse().map_err(|error| format!("{error}"))?;
    if entries == 0 || entries.is_power_of_two() { Ok(entries) } else { Err("not a power of two".to_owned()) }
}

fn hexadecimal(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|error| format!("{error}"))
}

/// A mask with at least one core in it.
fn cores(text: &str) -> Result<CoreMask, String> {
    let mask: CoreMask = text.parse().map_err(|error: reactor::CoreMaskError| error.to_string())?;
    if mask.is_empty() { Err("no core in it".to_owned()) } else { Ok(mask) }
}

impl Args {
    /// The cores of the reactors.
    pub(crate) fn cores(&self) -> CoreMask {
        self.lcores.as_ref().map_or(self.cpumask, LcoreMap::cores)
    }

    /// What is to be logged.
    pub(crate) fn log_wishes(&self) -> Wishes<'_> {
        Wishes { silent: self.silence_noticelog, verbose: self.verbose, flags: &self.log_flags }
    }

    /// The file of the configuration.
    pub(crate) fn config_file(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Flags that were given and have no effect.
    pub(crate) fn idle_flags(&self) -> Vec<&'static str> {
        self.dpdk.given().collect()
    }

    /// When reactors poll and when they sleep.
    pub(crate) fn mode(&self) -> Mode {
        if self.poll_only {
            Mode::PollOnly
        } else if self.interrupt_mode {
            Mode::Interrupt
        } else {
            Mode::Adaptive { spin: Duration::from_micros(self.spin_us) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("ringside").chain(line.split_whitespace()))
    }

    fn cores(line: &str) -> Vec<u32> {
        parse(line).unwrap().cores().iter().collect()
    }

    #[test]
    fn masks_are_read_as_spdk_reads_them() {
        assert_eq!(cores("-m 0x3"), [0, 1]);
        assert_eq!(cores("-m 3"), [0, 1]);
        assert_eq!(cores("-m [0,2-3]"), [0, 2, 3]);
        assert_eq!(cores("--lcores 0-1,3@3"), [0, 1, 3]);
        assert!(parse("-m 0").is_err());
        assert!(parse("-m [3-1]").is_err());
    }

    #[test]
    fn polling_and_never_polling_exclude_each_other() {
        assert!(parse("--poll-only --interrupt-mode").is_err());
        assert_eq!(parse("--poll-only").unwrap().mode(), Mode::PollOnly);
        assert_eq!(parse("").unwrap().mode(), Mode::Adaptive { spin: Duration::from_micros(50) });
    }

    #[test]
    fn every_flag_of_spdk_tgt_is_accepted_and_the_idle_ones_are_told() {
        let flags = "-r /r -S /s -f /pid -i 7 -L bdev -L rpc* -e bdev,vfu:0x3 -d -p 0 -n 4 -u -A 0:1.0 -A 0:2.0 \
                     -s 512 --json /c --json-ignore-init-errors --rpcs-allowed a,b --interrupt-mode \
                     --disable-cpumask-locks --silence-noticelog --wait-for-rpc --num-trace-entries 1024 \
                     --msg-mempool-size 1024 --iova-mode va --base-virtaddr 0x200000000000 --enforce-numa -g -R \
                     --huge-dir /h --vfio-vf-token 00000000-0000-0000-0000-000000000000 --env-context x";
        let args = parse(flags).unwrap();
        assert_eq!(args.idle_flags().len(), 12);
        assert_eq!(args.log_flags, ["bdev", "rpc*"]);
        assert_eq!((args.shm_id, args.num_trace_entries), (Some(7), 1024));
        assert_eq!(args.tpoint_groups, ["bdev", "vfu:0x3"]);
        assert_eq!(args.rpcs_allowed.as_deref(), Some(&["a".to_owned(), "b".to_owned()][..]));
        assert_eq!(args.config_file(), Some(Path::new("/c")));
        assert!(parse("").unwrap().idle_flags().is_empty());
    }

    #[test]
    fn flags_that_contradict_each_other_or_make_no_sense_are_refused() {
        for line in [
            "-m 1 --lcores 0",
            "--no-huge",
            "--no-huge -s 64 -g",
            "-A 0:1.0 -B 0:2.0",
            "--lcores 0@1",
            "--num-trace-entries 3",
            "--iova-mode xa",
            "-s 12x",
            "--socket-mode 8",
            "-q",
            "-W",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("--no-huge -s 64").is_ok());
    }
}

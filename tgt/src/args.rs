//! The command line: spdk_tgt's flags where they have a meaning here, and a few of our own.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Parser};
use reactor::{CoreMask, Mode};
use tracing::Level;

/// A polled storage target that serves virtual PCI disks to virtual machines.
#[derive(Debug, Parser)]
#[command(name = "ringside", version, disable_version_flag = true)]
pub(crate) struct Args {
    /// Cores to run a reactor on: a mask (0x3) or a list ([0,2-4]).
    #[arg(short = 'm', long = "cpumask", value_name = "MASK|[LIST]", default_value = "0x1", value_parser = cores)]
    pub(crate) cpumask: CoreMask,

    /// Core that hosts what belongs to no other; one of the mask. Default: the first.
    #[arg(short = 'p', long = "main-core", value_name = "CORE")]
    pub(crate) main_core: Option<u32>,

    /// Unix socket of the JSON-RPC server.
    #[arg(short = 'r', long = "rpc-socket", value_name = "PATH", default_value = "/var/tmp/spdk.sock")]
    pub(crate) rpc_socket: PathBuf,

    /// Directory in which endpoints create their sockets.
    #[arg(short = 'S', value_name = "DIR", default_value = ".")]
    pub(crate) socket_dir: PathBuf,

    /// Wait for the RPC framework_start_init before anything is initialised.
    #[arg(long)]
    pub(crate) wait_for_rpc: bool,

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

    /// Print the version and exit.
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
}

/// A mask with at least one core in it.
fn cores(text: &str) -> Result<CoreMask, String> {
    let mask: CoreMask = text.parse().map_err(|error: reactor::CoreMaskError| error.to_string())?;
    if mask.is_empty() { Err("no core in it".to_owned()) } else { Ok(mask) }
}

impl Args {
    /// How much is logged.
    pub(crate) fn log_level(&self) -> Level {
        match (self.silence_noticelog, self.verbose) {
            (true, _) => Level::WARN,
            (false, 0) => Level::INFO,
            (false, 1) => Level::DEBUG,
            (false, _) => Level::TRACE,
        }
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

    #[test]
    fn masks_are_read_as_spdk_reads_them() {
        assert_eq!(parse("-m 0x3").unwrap().cpumask.iter().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(parse("-m 3").unwrap().cpumask.iter().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(parse("-m [0,2-3]").unwrap().cpumask.iter().collect::<Vec<_>>(), [0, 2, 3]);
        assert!(parse("-m 0").is_err());
        assert!(parse("-m [3-1]").is_err());
    }

    #[test]
    fn polling_and_never_polling_exclude_each_other() {
        assert!(parse("--poll-only --interrupt-mode").is_err());
        assert_eq!(parse("--poll-only").unwrap().mode(), Mode::PollOnly);
        assert_eq!(parse("").unwrap().mode(), Mode::Adaptive { spin: Duration::from_micros(50) });
    }
}

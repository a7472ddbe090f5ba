//! `ringside-bench`: measures block devices behind vfio-user sockets, without a VM.
//!
//! One subcommand is one file or folder: [`load`] drives a disk, [`idle`] leaves disks alone, [`serve`] is a disk to drive where nothing else is
//! there. Needs no root, no hugepages and no configuration.

mod affinity;
mod bdev;
mod crash;
mod host;
mod idle;
mod limits;
mod load;
mod rig;
mod serve;
mod spread;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "ringside-bench", version, about = "Measures block devices behind vfio-user sockets")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Drives virtio-blk disks from one core and prints what they do
    Load(load::Args),
    /// Leaves disks alone and tells what that costs the target
    Idle(idle::Args),
    /// Drives a bdev in this process, without a front end
    Bdev(bdev::Args),
    /// Kills a writer at random moments and looks what is on the disk
    Crash(crash::Args),
    /// Measures what this machine can do at best
    Limits(limits::Args),
    /// Drives a device of this process pass by pass, to count what a request costs
    Rig(rig::Args),
    /// Serves one disk, for a load generator to drive
    Serve(serve::Args),
    /// Compares the queues of a disk on one reactor with the same on two
    Spread(spread::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Load(args) => load::run(args),
        Command::Idle(args) => idle::run(args),
        Command::Bdev(args) => bdev::run(args),
        Command::Crash(args) => crash::run(args),
        Command::Limits(args) => limits::run(args),
        Command::Rig(args) => rig::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Spread(args) => spread::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write;
            // With nobody to read it there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "ringside-bench: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, but for those that it has told itself.
fn explain(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |text, cause| {
        let cause = cause.to_string();
        match text.is_empty() {
            true => cause,
            false if text.contains(&cause) => text,
            false => format!("{text}: {cause}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cause_is_told_once() {
        let error = anyhow::anyhow!("not found").context("opening failed: not found").context("disk 1");
        assert_eq!(explain(&error), "disk 1: opening failed: not found");
    }
}

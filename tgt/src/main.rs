//! `ringside`: a polled storage target that serves virtual PCI disks to virtual machines.
//!
//! The program wires the crates together: flags ([`args`]), the target that RPC methods work on ([`target`]), the
//! methods ([`methods`]), and the order of starting and stopping ([`run`]). The work itself is done elsewhere.

mod args;
mod endpoints;
mod methods;
mod monitor;
mod run;
mod scheduler;
mod target;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    let (writer, _flushes_when_dropped) = tracing_appender::non_blocking(std::io::stderr());
    tracing_subscriber::fmt().with_writer(writer).with_ansi(false).with_max_level(args.log_level()).init();
    match run::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

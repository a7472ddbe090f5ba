//! `ringside`: a polled storage target that serves virtual PCI disks to virtual machines.
//!
//! The program wires the crates together: flags ([`args`]), the target that RPC methods work on ([`target`]), the
//! methods ([`methods`]), configurations ([`config`], [`subsystems`], [`state`]), and the order of starting and stopping
//! ([`run`]). The work itself is done elsewhere.

mod args;
mod config;
mod cores;
mod endpoints;
mod log;
mod methods;
mod monitor;
mod nvmf;
mod run;
mod sandbox;
mod scheduler;
mod show_trace;
mod state;
mod subsystems;
mod target;
mod tracepoints;
mod values;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, error::ErrorKind};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

fn main() -> ExitCode {
    let mut args = args::Args::parse();
    if let Some(args::Command::Trace(show)) = args.command.take() {
        return show_trace::run(&show);
    }
    if let Err(error) = log::apply(args.log_wishes()) {
        args::Args::command().error(ErrorKind::InvalidValue, error).exit();
    }
    let (writer, _flushes_when_dropped) = tracing_appender::non_blocking(std::io::stderr());
    tracing_subscriber::registry().with(log::Log::new(writer)).init();
    match run::run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(run::Failure { code, error }) => {
            if let Some(error) = error {
                tracing::error!("{error:#}");
            }
            ExitCode::from(code)
        }
    }
}

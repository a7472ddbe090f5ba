//! Starting and stopping, in order: RPC thread, reactors, target, socket; and back.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use reactor::{Config, Group, Reactors};
use rpc::{Listen, MethodTable, RpcThread};
use tokio::signal::unix::{SignalKind, signal};

use crate::{args::Args, endpoints::Endpoints, methods, monitor, scheduler, target::Target};

/// How long the end waits for endpoints whose I/O does not finish.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);

/// Runs the target until a signal, or an RPC, stops it.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    // Threads inherit the pinning of the thread that starts them: the RPC thread comes before the reactors.
    let rpc = RpcThread::start().context("Cannot start the RPC thread")?;
    // The first group gets id 1, as SPDK's app_thread has it.
    let app_thread = Group::new("app_thread", args.cpumask);
    let mut config = Config::new(args.cpumask);
    config.main_core = args.main_core;
    config.mode = args.mode();
    let reactors = Reactors::start(config)?;
    let handles = reactors.handles().to_vec();
    let endpoints = Endpoints::new(handles.clone(), args.socket_dir.clone());
    let target = Arc::new(Target::new(handles, app_thread, endpoints));

    let mut table = MethodTable::new(Arc::clone(&target), target.stage.clone());
    for methods in methods::TABLES {
        table.register(methods)?;
    }
    let dispatcher = table.finish();
    if !args.wait_for_rpc {
        target.initialise();
    }
    rpc.spawn(scheduler::run(Arc::clone(&target)));
    rpc.spawn(monitor::run(Arc::clone(&target)));
    // Signals are caught before anybody can connect: who sees the socket may send one.
    let signals = rpc.run(async {
        Ok::<_, std::io::Error>((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
    });
    let (mut interrupt, mut terminate) = signals?.context("Cannot catch signals")?;
    let server = rpc.serve(Listen::on(&args.rpc_socket), dispatcher)?;
    tracing::info!(cores = %args.cpumask, mode = ?args.mode(), socket = %args.rpc_socket.display(), "ringside {} started", env!("CARGO_PKG_VERSION"));

    rpc.run(async move {
        tokio::select! {
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        }
    })?;

    server.stop();
    let all = target.endpoints.delete_all();
    rpc.run(async move {
        let gone = async {
            for endpoint in all {
                // An error is an endpoint that is gone without a word: its reactor has dropped it.
                let _ = endpoint.await;
            }
        };
        if tokio::time::timeout(STOP_TIME_MAX, gone).await.is_err() {
            tracing::warn!("endpoints have I/O that does not finish; stopping all the same");
        }
    })?;
    reactors.stop();
    tracing::info!("stopped");
    Ok(())
}

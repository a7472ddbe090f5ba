//! Starting and stopping, in order: RPC thread, reactors, target, configuration, socket; and back.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow};
use reactor::{Config, Group, Reactors};
use rpc::{Dispatcher, Listen, MethodTable, RpcThread, Server};
use rustix::process::{Resource, Rlimit, setpriority_process, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    args::Args,
    config::{ConfigError, Document, load::Loader},
    cores::CoreClaims,
    endpoints::{Endpoints, Sockets},
    methods, monitor, sandbox, scheduler,
    state::{self, Journal, Keeper},
    target::{Launch, Target},
    tracepoints::Tracepoints,
};

/// How long the end waits for endpoints whose I/O does not finish.
const STOP_TIME_MAX: Duration = Duration::from_secs(10);
/// Niceness of the RPC thread (sched(7): on Linux it is a thread's).
const RPC_NICENESS: i32 = -10;
/// Exit status of most failures.
const FAILURE: u8 = 1;
/// Exit status of what spdk_tgt calls invalid: the low byte of -EINVAL.
const INVALID: u8 = 234;

/// Why the target does not run, and the exit status that says so.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Exit status.
    pub(crate) code: u8,
    /// What to say; nothing if it was said.
    pub(crate) error: Option<anyhow::Error>,
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure { code: FAILURE, error: Some(error.into()) }
    }
}

fn invalid(error: impl Into<anyhow::Error>) -> Failure {
    Failure { code: INVALID, error: Some(error.into()) }
}

/// Runs the target until a signal, or an RPC, stops it.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    if args.wait_for_rpc && args.no_rpc_server {
        return Err(anyhow!("--wait-for-rpc and --no-rpc-server: nobody could ever start the target").into());
    }
    for flag in args.idle_flags() {
        tracing::info!("{flag} is accepted and has no effect: what it is about is not here");
    }
    if !args.limit_coredump
        && let Err(error) = setrlimit(Resource::Core, Rlimit { current: None, maximum: None })
    {
        tracing::debug!(%error, "the limit on core dumps cannot be lifted");
    }
    bdev::arena::set_budget(args.mem_size.map(|size| size.0), !args.no_huge);
    let (journal, document) = configuration(&args)?;

    if args.sandbox {
        // Threads inherit it, too.
        sandbox::enter(&reachable(&args)).context("Cannot enter the sandbox")?;
    }
    // Threads inherit the pinning of the thread that starts them: the RPC thread comes before the reactors.
    let rpc = RpcThread::start().context("Cannot start the RPC thread")?;
    // Reactors may fill every core; a call takes microseconds and goes first. Not everybody may ask for that.
    if let Err(error) = rpc.run(async { setpriority_process(None, RPC_NICENESS) })? {
        tracing::debug!(%error, "the RPC thread runs at the usual priority");
    }
    // The first group gets id 1, as SPDK's app_thread has it.
    let app_thread = Group::new("app_thread", args.cores());
    let mut config = Config::new(args.cores());
    config.main_core = args.main_core;
    config.mode = args.mode();
    let reactors = Reactors::start(config)?;
    let handles = reactors.handles().to_vec();
    let sockets = Sockets {
        dir: args.socket_dir.clone(),
        mode: args.socket_mode.0,
        owner: args.socket_owner.unwrap_or_default(),
    };
    let core_claims = CoreClaims::new(args.cores(), args.core_lock_dir.clone());
    let endpoints = Endpoints::new(handles.clone(), sockets);
    let tracepoints = Tracepoints::new(handles.clone(), args.shm_id, args.num_trace_entries);
    for flag in &args.tpoint_groups {
        tracepoints.enable_flag(flag)?;
    }
    let target = Arc::new(Target::new(handles, app_thread, endpoints, core_claims, tracepoints));
    if !args.disable_cpumask_locks {
        target.core_claims.claim()?;
    }
    let served = serve(&args, &rpc, &target, journal, document);

    target.stop();
    let mut all = target.endpoints.delete_all();
    all.extend(target.nvmf.delete_all());
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
    target.tracepoints.close();
    target.core_claims.release();
    tracing::info!("stopped");
    served
}

/// The folders that flags name: what the sandbox leaves within reach.
fn reachable(args: &Args) -> Vec<PathBuf> {
    let folder = |file: &Path| match file.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => PathBuf::from("/"),
    };
    let mut paths = args.sandbox_path.clone();
    paths.extend([args.socket_dir.clone(), args.core_lock_dir.clone(), folder(&args.rpc_socket)]);
    paths.extend(args.state_dir.clone());
    paths.extend(args.pid_file.as_deref().map(folder));
    paths
}

/// What to load: the state that was kept, or the file that was named. A state goes before a file, which is for the
/// first start then.
fn configuration(args: &Args) -> Result<(Option<Journal>, Document), Failure> {
    let (journal, kept) = match &args.state_dir {
        Some(dir) => {
            let (journal, kept) = Journal::open(dir)?;
            (Some(journal), kept)
        }
        None => (None, None),
    };
    let document = match (kept, args.config_file()) {
        (Some(kept), file) => {
            if let Some(file) = file {
                tracing::info!(file = %file.display(), "the configuration was kept from before; the file is not read");
            }
            state::document(kept).map_err(invalid)?
        }
        (None, Some(file)) => Document::read(file).map_err(|error| match error {
            ConfigError::Unreadable { .. } => Failure::from(error),
            ConfigError::Syntax { .. } | ConfigError::Shape { .. } => invalid(error),
        })?,
        (None, None) => Document::default(),
    };
    Ok((journal, document))
}

/// Loads the configuration and serves until the end.
fn serve(
    args: &Args,
    rpc: &RpcThread,
    target: &Arc<Target>,
    journal: Option<Journal>,
    document: Document,
) -> Result<(), Failure> {
    let dispatcher = dispatcher(args, target)?;
    let loader = Loader::new(dispatcher.clone(), document, args.json_ignore_init_errors);
    let launch = Launch { loader, then: running(args, target, &dispatcher, journal) };
    let preparing = Arc::clone(target);
    rpc.run(async move { preparing.prepare(launch).await })?.map_err(|error| {
        let code = error.exit_code();
        Failure { code, error: Some(error.into()) }
    })?;

    // Signals are caught before anybody can connect: who sees the socket may send one.
    let signals = rpc.run(async {
        Ok::<_, std::io::Error>((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
    });
    let (interrupt, terminate) = signals?.context("Cannot catch signals")?;
    if !args.wait_for_rpc {
        // Clients can connect at once, and are answered when all is loaded.
        target.stage.pause();
    }
    let server = if args.no_rpc_server { None } else { Some(listen(args, rpc, dispatcher)?) };
    tracing::info!(cores = %args.cores(), mode = ?args.mode(), socket = %args.rpc_socket.display(), "ringside {} started", env!("CARGO_PKG_VERSION"));
    rpc.spawn(scheduler::run(Arc::clone(target)));
    rpc.spawn(monitor::run(Arc::clone(target)));

    let waiting = Arc::clone(target);
    let wait_for_rpc = args.wait_for_rpc;
    let ended = rpc.run(async move {
        if !wait_for_rpc && waiting.initialise().await.is_err() {
            return Some(waiting.failure().await);
        }
        until_the_end(&waiting, interrupt, terminate).await
    })?;
    drop(server);
    match ended {
        None => Ok(()),
        Some(code) => Err(Failure { code, error: None }),
    }
}

/// The exit status, if it is a failure.
async fn until_the_end(target: &Target, mut interrupt: Signal, mut terminate: Signal) -> Option<u8> {
    tokio::select! {
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        code = target.failure() => return Some(code),
    }
    None
}

fn dispatcher(args: &Args, target: &Arc<Target>) -> Result<Dispatcher, Failure> {
    let mut table = MethodTable::new(Arc::clone(target), target.stage.clone());
    for methods in methods::TABLES {
        table.register(methods)?;
    }
    if let Some(allowed) = &args.rpcs_allowed {
        table.allow_only(allowed.iter().map(|name| name.trim().to_owned()));
    }
    Ok(table.finish())
}

fn listen(args: &Args, rpc: &RpcThread, dispatcher: Dispatcher) -> Result<Server, Failure> {
    let server =
        rpc.serve(Listen::on(&args.rpc_socket).mode(args.socket_mode.0), dispatcher).map_err(invalid)?;
    let owner = args.socket_owner.unwrap_or_default();
    std::os::unix::fs::chown(&args.rpc_socket, owner.uid, owner.gid)
        .with_context(|| format!("Cannot change the owner of {}", args.rpc_socket.display()))?;
    Ok(server)
}

/// What follows the initialisation: from then on the state is kept, and the process id can be read.
fn running(
    args: &Args,
    target: &Arc<Target>,
    dispatcher: &Dispatcher,
    journal: Option<Journal>,
) -> Box<dyn FnOnce() -> anyhow::Result<()> + Send> {
    let (target, dispatcher) = (Arc::downgrade(target), dispatcher.clone());
    let pid_file = args.pid_file.clone();
    Box::new(move || {
        if let (Some(journal), Some(target)) = (journal, target.upgrade()) {
            dispatcher.set_journal(Keeper::start(&target, journal)?);
        }
        pid_file.as_deref().map_or(Ok(()), write_pid)
    })
}

fn write_pid(path: &Path) -> anyhow::Result<()> {
    std::fs::write(path, format!("{}\n", std::process::id()))
        .with_context(|| format!("Cannot write the process id to {}", path.display()))
}

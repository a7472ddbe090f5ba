//! A target without devices: names in maps, and methods that hold, panic or answer much. Each test serves its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rpc::{Dispatcher, Listen, MethodTable, RpcThread, Server, Stage, State};
use serde_json::{Map, Value};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::client::{Client, PATIENCE};
use crate::methods;

/// What the handlers see.
pub(crate) struct Model {
    pub(crate) stage: Stage,
    /// Name and the params it was created with.
    pub(crate) bdevs: Mutex<BTreeMap<String, Map<String, Value>>>,
    pub(crate) endpoints: Mutex<BTreeMap<String, Map<String, Value>>>,
    /// The names that `test_hold` need not wait for any more.
    pub(crate) released: watch::Sender<Vec<String>>,
    /// Calls of `test_hold` that have begun.
    pub(crate) begun: AtomicUsize,
    /// Those that have ended.
    pub(crate) held: AtomicUsize,
}

/// A served model.
pub(crate) struct Rig {
    // Fields are dropped in this order: the server before its thread, the files last.
    pub(crate) server: Option<Server>,
    pub(crate) thread: RpcThread,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) model: Arc<Model>,
    pub(crate) directory: TempDir,
}

impl Rig {
    pub(crate) fn start() -> Rig {
        Rig::in_state(State::Runtime)
    }

    pub(crate) fn in_state(state: State) -> Rig {
        Rig::with(state, None, |listen| listen)
    }

    pub(crate) fn with(
        state: State,
        allowed: Option<&[&str]>,
        configure: impl FnOnce(Listen) -> Listen,
    ) -> Rig {
        let stage = Stage::new(state);
        let model = Arc::new(Model {
            stage: stage.clone(),
            bdevs: Mutex::default(),
            endpoints: Mutex::default(),
            released: watch::Sender::new(Vec::new()),
            begun: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
        });
        let mut table = MethodTable::new(Arc::clone(&model), stage);
        table.register(methods::SPDK).unwrap();
        table.register(methods::TEST).unwrap();
        if let Some(allowed) = allowed {
            table.allow_only(allowed.iter().map(|name| (*name).to_owned()));
        }
        let dispatcher = table.finish();
        let directory = tempfile::tempdir().unwrap();
        let thread = RpcThread::start().unwrap();
        let listen = configure(Listen::on(directory.path().join("rpc.sock")));
        let server = Some(thread.serve(listen, dispatcher.clone()).unwrap());
        Rig { server, thread, dispatcher, model, directory }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("rpc.sock")
    }

    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.path())
    }

    /// Waits until so many calls of `test_hold` have begun.
    pub(crate) fn until_begun(&self, calls: usize) {
        until(|| self.model.begun.load(Ordering::SeqCst) >= calls);
    }

    /// Waits until so many calls of `test_hold` have ended.
    pub(crate) fn until_held(&self, calls: usize) {
        until(|| self.model.held.load(Ordering::SeqCst) >= calls);
    }

    pub(crate) fn release(&self, name: &str) {
        self.model.released.send_modify(|released| released.push(name.to_owned()));
    }
}

/// Waits for what must come to pass, if not at once.
fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "it does not come to pass");
        thread::sleep(Duration::from_millis(1));
    }
}

/// The path of a file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

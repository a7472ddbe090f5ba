//! NVMe subsystems of the target with their namespaces and listeners: made and deleted on the RPC thread.
//!
//! The one transport is VFIOUSER: a listener is an endpoint whose socket is `<traddr>/cntrl`, with one controller behind
//! it. Names and order are those of SPDK's `nvmf_*` methods; errors say what went wrong, and the methods how it is told.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bdev::Registry;
use reactor::{CoreMask, Group, Handle};
use tokio::sync::oneshot;
use vfu::{
    endpoint::{self, BindError, EndpointHandle, Listener, Spec},
    nvme::{
        controller::ControllerOptions,
        link::{AnaState, AnaStates},
        pcie::{MAX_IO_QUEUES, NvmePci, NvmeSpec, vectors},
        subsystem::{Subsystem, SubsystemOptions},
    },
};

/// Name of the socket in a listener's folder.
const SOCKET_NAME: &str = "cntrl";
/// The discovery subsystem, which is always there.
pub(crate) const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// Most subsystems unless `nvmf_set_max_subsystems` said otherwise.
const DEFAULT_MAX_SUBSYSTEMS: u32 = 1024;

/// Why something is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NvmfError {
    /// There is no such subsystem.
    #[error("Subsystem with NQN '{0}' not found")]
    NoSubsystem(String),
    /// The name is taken, malformed, or there are too many.
    #[error("Unable to create subsystem {0}")]
    Create(String),
    /// No transport of this type was created.
    #[error("Unable to find {0} transport")]
    NoTransport(String),
    /// The listener is there already, or is not there.
    #[error("listener {0}")]
    Listener(String),
    /// The socket cannot be made.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The reactor takes no messages.
    #[error("the reactor does not answer: {0}")]
    Reactor(#[from] reactor::SendError),
    /// Every controller ID of the subsystem is taken.
    #[error("the subsystem has no controller ID left")]
    NoControllerId,
}

/// The VFIOUSER transport as it was created.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transport {
    pub(crate) controller: ControllerOptions,
    pub(crate) max_aq_depth: u32,
    pub(crate) disable_mappable_bar0: bool,
    pub(crate) disable_adaptive_irq: bool,
    pub(crate) kas: u16,
    pub(crate) min_kato: u32,
    pub(crate) abort_timeout_sec: u32,
    pub(crate) disable_command_passthru: bool,
}

/// One way in to a subsystem.
pub(crate) struct Way {
    pub(crate) traddr: String,
    pub(crate) ana: Arc<AnaStates>,
    endpoint: EndpointHandle,
    /// As clients see a thread.
    group: Group,
}

impl Way {
    /// The name of its thread.
    pub(crate) fn thread(&self) -> &str {
        self.group.name()
    }
}

/// A subsystem with what only the control side knows of it.
pub(crate) struct Entry {
    pub(crate) core: Arc<Subsystem>,
    pub(crate) allow_any_host: bool,
    pub(crate) admin_label: Option<String>,
    pub(crate) passthrough: bool,
    pub(crate) hosts: BTreeSet<String>,
    pub(crate) ways: Vec<Way>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) transport: Option<Transport>,
    pub(crate) subsystems: Vec<Entry>,
    pub(crate) max_subsystems: Option<u32>,
    pub(crate) poll_groups_mask: Option<CoreMask>,
    /// What `nvmf_set_config` was told, to be saved again.
    pub(crate) config: Option<serde_json::Value>,
    /// Listeners made so far: their homes go round the reactors.
    made: usize,
}

impl State {
    /// A subsystem by its name.
    pub(crate) fn subsystem(&mut self, nqn: &str) -> Result<&mut Entry, NvmfError> {
        let found = self.subsystems.iter_mut().find(|entry| entry.core.options().nqn == nqn);
        found.ok_or_else(|| NvmfError::NoSubsystem(nqn.to_owned()))
    }
}

/// What a new subsystem is besides its options.
pub(crate) struct Admission {
    pub(crate) allow_any_host: bool,
    pub(crate) admin_label: Option<String>,
    pub(crate) passthrough: bool,
}

/// All subsystems.
pub(crate) struct Nvmf {
    reactors: Vec<Handle>,
    state: Mutex<State>,
}

/// Whether a name is an NVMe qualified name (Base, 4.5).
fn is_nqn(nqn: &str) -> bool {
    let Some(rest) = nqn.strip_prefix("nqn.") else { return false };
    if nqn.len() > 223 || nqn == DISCOVERY_NQN {
        return false;
    }
    if let Some(uuid) = rest.strip_prefix("2014-08.org.nvmexpress:uuid:") {
        return uuid.len() == 36;
    }
    // nqn.yyyy-mm.reverse.domain:anything
    let bytes = rest.as_bytes();
    let dated = bytes.len() > 8
        && bytes[4] == b'-'
        && bytes[7] == b'.'
        && [0, 1, 2, 3, 5, 6].into_iter().all(|at| bytes[at].is_ascii_digit());
    let Some((domain, user)) = rest.get(8..).and_then(|name| name.split_once(':')) else { return false };
    let label = |label: &str| {
        let ends = label.starts_with(|c: char| c.is_ascii_alphabetic()) && !label.ends_with('-');
        ends && label.len() <= 63 && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    dated && !user.is_empty() && domain.split('.').all(label)
}

/// Whether text fits a field of Identify Controller.
fn is_text(text: &str, most: usize) -> bool {
    text.len() <= most && text.bytes().all(|byte| (0x20..=0x7e).contains(&byte))
}

impl Nvmf {
    /// No subsystems yet.
    pub(crate) fn new(reactors: Vec<Handle>) -> Self {
        Self { reactors, state: Mutex::default() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reactors, for statistics.
    pub(crate) fn reactors(&self) -> &[Handle] {
        &self.reactors
    }

    /// Makes a subsystem.
    pub(crate) fn create(&self, options: SubsystemOptions, admission: Admission) -> Result<(), NvmfError> {
        let mut state = self.lock();
        let nqn = options.nqn.clone();
        let most = state.max_subsystems.unwrap_or(DEFAULT_MAX_SUBSYSTEMS) as usize;
        let taken = state.subsystems.iter().any(|entry| entry.core.options().nqn == nqn);
        let ids = options.min_cntlid >= 1
            && options.min_cntlid <= options.max_cntlid
            && options.max_cntlid <= 0xffef;
        // One more is the discovery subsystem: SPDK counts it too.
        let is_full = state.subsystems.len() + 1 >= most;
        if taken || !is_nqn(&nqn) || is_full || !ids {
            return Err(NvmfError::Create(nqn));
        }
        if !is_text(&options.serial, 20) || !is_text(&options.model, 40) {
            return Err(NvmfError::Create(nqn));
        }
        let Admission { allow_any_host, admin_label, passthrough } = admission;
        state.subsystems.push(Entry {
            core: Subsystem::new(options),
            allow_any_host,
            admin_label,
            passthrough,
            hosts: BTreeSet::new(),
            ways: Vec::new(),
        });
        tracing::info!(nqn, "subsystem created");
        Ok(())
    }

    /// Deletes a subsystem with its listeners; told when nothing of it is left.
    pub(crate) fn delete(&self, nqn: &str) -> Result<Vec<oneshot::Receiver<()>>, NvmfError> {
        let mut state = self.lock();
        state.subsystem(nqn)?;
        let at = state.subsystems.iter().position(|entry| entry.core.options().nqn == nqn);
        let Some(mut entry) = at.map(|at| state.subsystems.remove(at)) else { return Ok(Vec::new()) };
        Ok(entry.ways.drain(..).map(end).collect())
    }

    /// Lets clients in by a socket in folder `traddr`.
    pub(crate) fn listen(
        &self,
        nqn: &str,
        traddr: &str,
        ana: Option<AnaState>,
        bind: impl FnOnce(&Path) -> Result<Listener, BindError>,
    ) -> Result<(), NvmfError> {
        let mut state = self.lock();
        state.subsystem(nqn)?;
        let transport = state.transport.ok_or_else(|| NvmfError::NoTransport("VFIOUSER".to_owned()))?;
        let taken = state.subsystems.iter().any(|entry| entry.ways.iter().any(|way| way.traddr == traddr));
        if taken {
            return Err(NvmfError::Listener(format!("{traddr} is in use")));
        }
        let mut reactors: Vec<Handle> = self
            .reactors
            .iter()
            .filter(|reactor| state.poll_groups_mask.is_none_or(|mask| mask.contains(reactor.core())))
            .cloned()
            .collect();
        let mask: CoreMask = reactors.iter().map(Handle::core).collect();
        // Homes, and with them the first queues, go round the reactors.
        let turn = state.made % reactors.len().max(1);
        reactors.rotate_left(turn);
        state.made += 1;
        let entry = state.subsystem(nqn)?;
        let ids = usize::from(entry.core.options().max_cntlid - entry.core.options().min_cntlid) + 1;
        if entry.core.links().len() >= ids {
            return Err(NvmfError::NoControllerId);
        }
        let listener = bind(&Path::new(traddr).join(SOCKET_NAME))?;
        let states = Arc::new(AnaStates::default());
        if let Some(state) = ana {
            for group in 1..=entry.core.options().max_namespaces {
                states.set(group, state);
            }
        }
        let spec = NvmeSpec {
            subsystem: Arc::clone(&entry.core),
            ana: Arc::clone(&states),
            options: transport.controller,
            is_mappable: !transport.disable_mappable_bar0,
        };
        let group = Group::new(format!("nvmf_{traddr}"), mask);
        let endpoint = endpoint::start(Spec {
            name: group.name().to_owned(),
            listener,
            reactors,
            group: group.clone(),
            vectors: vectors(transport.controller.max_io_queues),
            model: Box::new(move |home, bus| Box::new(NvmePci::new(spec, home.clone(), Arc::clone(bus)))),
        })?;
        tracing::info!(nqn, traddr, "listener added");
        entry.ways.push(Way { traddr: traddr.to_owned(), ana: states, endpoint, group });
        Ok(())
    }

    /// Removes a listener; told when its endpoint is gone.
    pub(crate) fn unlisten(&self, nqn: &str, traddr: &str) -> Result<oneshot::Receiver<()>, NvmfError> {
        let mut state = self.lock();
        let entry = state.subsystem(nqn)?;
        let at = entry.ways.iter().position(|way| way.traddr == traddr);
        let at = at.ok_or_else(|| NvmfError::Listener(format!("{traddr} is not there")))?;
        Ok(end(entry.ways.remove(at)))
    }

    /// Deals the queues of the controller that SPDK's clients know as this thread to these reactors. False if there is none.
    pub(crate) fn place(&self, thread: u64, mask: CoreMask, reactors: Vec<Handle>) -> bool {
        self.with_way(thread, |way| {
            way.group.set_cpumask(mask);
            way.endpoint.place(reactors);
        })
    }

    /// Moves one queue of a controller. False if there is no such controller.
    pub(crate) fn move_queue(&self, thread: u64, queue: u16, to: &Handle) -> bool {
        self.with_way(thread, |way| way.endpoint.move_queue(queue, to.clone()))
    }

    fn with_way(&self, thread: u64, work: impl FnOnce(&Way)) -> bool {
        let state = self.lock();
        let mut ways = state.subsystems.iter().flat_map(|entry| &entry.ways);
        ways.find(|way| way.group.id() == thread).map(work).is_some()
    }

    /// Deletes everything: the target stops.
    pub(crate) fn delete_all(&self) -> Vec<oneshot::Receiver<()>> {
        let names: Vec<String> =
            self.lock().subsystems.iter().map(|entry| entry.core.options().nqn.clone()).collect();
        names.iter().filter_map(|nqn| self.delete(nqn).ok()).flatten().collect()
    }

    /// Adds a namespace.
    pub(crate) fn add_namespace(
        &self,
        registry: &Registry,
        nqn: &str,
        bdev: &str,
        options: vfu::nvme::namespace::NamespaceOptions,
    ) -> Result<u32, AddError> {
        // Out of the lock before the bdev is opened.
        let core = Arc::clone(&self.lock().subsystem(nqn)?.core);
        Ok(core.add_namespace(registry, bdev, options)?)
    }
}

/// Why a namespace is not added.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddError {
    /// The subsystem.
    #[error(transparent)]
    Subsystem(#[from] NvmfError),
    /// The namespace.
    #[error(transparent)]
    Namespace(#[from] vfu::nvme::subsystem::AddError),
}

fn end(way: Way) -> oneshot::Receiver<()> {
    let (gone, wait) = oneshot::channel();
    way.endpoint.delete(move || {
        // Nobody waits any more if the client has gone.
        let _ = gone.send(());
    });
    wait
}

/// Options of a transport, checked.
///
/// # Errors
/// What is wrong, for the log.
pub(crate) fn check_transport(options: &ControllerOptions) -> Result<(), &'static str> {
    if !(1..=MAX_IO_QUEUES).contains(&options.max_io_queues) {
        return Err("max_io_qpairs_per_ctrlr must be 1 to 512");
    }
    if !(2..=4096).contains(&options.max_queue_depth) {
        return Err("max_queue_depth must be 2 to 4096");
    }
    // 2 MiB in pages are half of the segments that a bdev takes.
    let size = options.max_io_size;
    if !size.is_power_of_two() || !(8192..=2 << 20).contains(&size) {
        return Err("max_io_size must be a power of two from 8192 to 2097152");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_nqn;

    #[test]
    fn names_are_checked_as_the_specification_has_them() {
        assert!(is_nqn("nqn.2016-06.io.spdk:cnode1"));
        assert!(is_nqn("nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555"));
        for bad in [
            "",
            "nqn.2016-06.io.spdk",
            "nqn.2016-06.io.spdk:",
            "nqn.216-06.io:x",
            "iqn.2016-06.io:x",
            "nqn.2016-06.io.-a:x",
        ] {
            assert!(!is_nqn(bad), "{bad}");
        }
    }
}

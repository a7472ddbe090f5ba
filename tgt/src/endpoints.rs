//! The endpoints of the target: made and deleted on the RPC thread, each living on its reactors.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bdev::{Access, BdevInfo, Registry};
use reactor::{CoreMask, Group, Handle};
use rustix::io::Errno;
use tokio::sync::oneshot;
use vfu::{
    endpoint::{self, BindError, BuildModel, EndpointHandle, Listener, SocketOwner, Spec},
    virtio::{
        blk::{Blk, BlkSpec, Events},
        scsi::{ReservationTable, Scsi, TargetError, Targets, spec::OWN_QUEUES},
        transport::{MAX_QUEUES, TransportOptions, VirtioPci},
    },
};

use crate::{config::Entry, values::Owner};

/// Longest name of an endpoint, as SPDK has it (`SPDK_VFU_MAX_NAME_LEN` with its end).
const MAX_NAME_LEN: usize = 62;
/// Queues of a disk when nothing else, or nonsense, is asked for.
const DEFAULT_QUEUES: u16 = 64;
/// Entries of a queue when nothing else, or nonsense, is asked for.
const DEFAULT_QUEUE_SIZE: u16 = 128;
/// Most entries of a queue.
const MAX_QUEUE_SIZE: u16 = 1024;

/// Why an endpoint cannot be made. The text is for the log; clients get that of the errno.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EndpointError {
    /// Longer than [`MAX_NAME_LEN`], or with a slash in it.
    #[error("\"{0}\" cannot be the name of an endpoint")]
    Name(String, Errno),
    /// There is one of this name.
    #[error("endpoint {0} exists")]
    Exists(String),
    /// There is none of this name.
    #[error("there is no endpoint {0}")]
    Missing(String),
    /// The mask does not parse, or names cores that the target does not run on.
    #[error("cpumask {0}: the target does not run on all of these cores")]
    Mask(String, Errno),
    /// The bdev cannot be opened.
    #[error("bdev: {0}")]
    Bdev(#[from] bdev::Error),
    /// virtio-blk counts in sectors, and drivers take a block of a power of two of them only (virtio 1.2, 5.2.4). Linux's
    /// SCSI disks of other blocks have no capacity.
    #[error("bdev {0}: blocks of {1} bytes; a virtio disk's are a power of two")]
    BlockSize(String, u32),
    /// The socket cannot be made.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Not a SCSI endpoint, or a target it does not have.
    #[error("endpoint {0} is no SCSI endpoint")]
    NotScsi(String),
    /// What is to be a SCSI target does not exist.
    #[error("bdev: {0}")]
    TargetBdev(bdev::Error),
    /// A SCSI target that cannot be added or removed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The reactor takes no messages.
    #[error("the reactor does not answer: {0}")]
    Reactor(#[from] reactor::SendError),
}

impl EndpointError {
    /// The errno whose text SPDK's clients get.
    pub(crate) fn errno(&self) -> i32 {
        let errno = match self {
            Self::Name(_, errno) | Self::Mask(_, errno) => *errno,
            Self::Exists(_) => Errno::EXIST,
            Self::Missing(_) => Errno::NOENT,
            Self::Bdev(error) => return error.errno(),
            Self::Bind(BindError::TooLong(_)) => Errno::NAMETOOLONG,
            Self::Bind(BindError::InUse(_)) => Errno::ADDRINUSE,
            Self::Bind(BindError::NotASocket(_)) => Errno::EXIST,
            Self::Bind(BindError::Create { source, .. }) => return source.raw_os_error().unwrap_or(5),
            Self::Target(TargetError::InUse(_)) => Errno::EXIST,
            Self::Target(TargetError::Missing(_)) => Errno::NOENT,
            Self::TargetBdev(_) => Errno::FAULT,
            Self::Target(TargetError::Number(_)) | Self::NotScsi(_) | Self::BlockSize(..) => Errno::INVAL,
            Self::Reactor(_) => Errno::AGAIN,
        };
        errno.raw_os_error()
    }
}

/// What a virtio-blk endpoint is made of, as clients say it.
#[derive(Debug)]
pub(crate) struct BlkOptions {
    /// Its name.
    pub(crate) name: String,
    /// The bdev behind it.
    pub(crate) bdev_name: String,
    /// Cores for its queues; all of the target's if absent.
    pub(crate) cpumask: Option<String>,
    /// Queues.
    pub(crate) num_queues: Option<u16>,
    /// Entries of a queue.
    pub(crate) qsize: Option<u16>,
    /// Doorbells, rings and interrupts.
    pub(crate) transport: TransportOptions,
}

/// What a virtio-scsi endpoint is made of, as clients say it.
#[derive(Debug)]
pub(crate) struct ScsiOptions {
    /// Its name.
    pub(crate) name: String,
    /// Cores for its queues; all of the target's if absent.
    pub(crate) cpumask: Option<String>,
    /// Queues for commands.
    pub(crate) num_io_queues: Option<u16>,
    /// Entries of a queue.
    pub(crate) qsize: Option<u16>,
    /// Doorbells, rings and interrupts.
    pub(crate) transport: TransportOptions,
}

/// What is behind an endpoint.
enum Backend {
    Blk(String),
    Scsi(Targets),
}

impl Backend {
    /// The bdev, or the bdevs in the order of their targets.
    fn bdev_name(&self) -> String {
        match self {
            Self::Blk(name) => name.clone(),
            Self::Scsi(targets) => {
                targets.list().into_iter().map(|(_, name)| name).collect::<Vec<_>>().join(",")
            }
        }
    }

    /// Whether what it is made of is there.
    fn is_there(&self, registry: &Registry) -> bool {
        match self {
            Self::Blk(name) => registry.get(name).is_ok(),
            Self::Scsi(_) => true,
        }
    }

    /// Whether a call has a part in what it is now.
    fn is_made_by(&self, call: &Entry) -> bool {
        match (self, target_of(call)) {
            (Self::Scsi(targets), Some(target)) => {
                targets.list().iter().any(|(there, _)| u64::from(*there) == target)
            }
            _ => true,
        }
    }
}

/// The SCSI target that a call adds.
fn target_of(call: &Entry) -> Option<u64> {
    call.params.as_ref()?.get("scsi_target_num")?.as_u64()
}

/// An endpoint as its owner knows it.
struct Endpoint {
    handle: EndpointHandle,
    backend: Backend,
    /// What its pollers belong to.
    group: Group,
    /// The calls that made it what it is, as its clients sent them.
    calls: Vec<Entry>,
    /// The base path that was set when it was made; none if none had been.
    base: Option<PathBuf>,
    /// Its place in the order of creation.
    order: u64,
}

struct Inner {
    /// As clients have set it.
    base: Option<PathBuf>,
    by_name: BTreeMap<String, Endpoint>,
    created: u64,
}

/// Where and how endpoints make their sockets.
#[derive(Clone, Debug)]
pub(crate) struct Sockets {
    /// The folder, until clients set another.
    pub(crate) dir: PathBuf,
    /// Mode bits.
    pub(crate) mode: u32,
    /// Owner.
    pub(crate) owner: Owner,
}

/// What an endpoint is and does.
#[derive(Clone, Debug)]
pub(crate) struct Description {
    /// Its name.
    pub(crate) name: String,
    /// The bdev behind it.
    pub(crate) bdev_name: String,
    /// Its cores.
    pub(crate) cpumask: CoreMask,
    /// Its socket.
    pub(crate) socket: PathBuf,
    /// What it says itself; none if it is gone.
    pub(crate) state: Option<endpoint::Description>,
}

impl Description {
    /// Queues that work.
    pub(crate) fn running_queues(&self) -> usize {
        let queues = self.state.iter().flat_map(|state| &state.device.queues);
        queues.filter(|queue| queue.state == "running").count()
    }
}

/// Entries of a queue: a power of two, as a split ring has (virtio 1.2, 2.7).
fn queue_size(asked: Option<u16>) -> u16 {
    let size = asked.filter(|n| (1..=MAX_QUEUE_SIZE).contains(n)).unwrap_or(DEFAULT_QUEUE_SIZE);
    1 << size.max(2).ilog2()
}

fn check_blocks(info: &BdevInfo) -> Result<(), EndpointError> {
    let block_size = info.block_size;
    let refused = || EndpointError::BlockSize(info.name.clone(), block_size);
    block_size.is_power_of_two().then_some(()).ok_or_else(refused)
}

/// A serial number that is the same for the same name.
fn uuid_of(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// All endpoints.
pub(crate) struct Endpoints {
    reactors: Vec<Handle>,
    sockets: Sockets,
    reservations: ReservationTable,
    inner: Mutex<Inner>,
}

impl Endpoints {
    /// No endpoints yet.
    pub(crate) fn new(reactors: Vec<Handle>, sockets: Sockets) -> Self {
        let inner = Inner { base: None, by_name: BTreeMap::new(), created: 0 };
        Self { reactors, sockets, reservations: ReservationTable::default(), inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the sockets of endpoints to come are made.
    pub(crate) fn set_base(&self, base: PathBuf) {
        self.lock().base = Some(base);
    }

    /// The reactors of a mask; all of the target's without one.
    pub(crate) fn reactors_of(&self, mask: Option<&str>) -> Result<(CoreMask, Vec<Handle>), EndpointError> {
        let all: CoreMask = self.reactors.iter().map(Handle::core).collect();
        let mask = match mask {
            None => all,
            Some(text) => {
                text.parse().map_err(|_syntax| EndpointError::Mask(text.to_owned(), Errno::INVAL))?
            }
        };
        if mask.is_empty() {
            return Err(EndpointError::Mask(mask.to_string(), Errno::INVAL));
        }
        if !mask.is_subset(&all) {
            return Err(EndpointError::Mask(mask.to_string(), Errno::PERM));
        }
        Ok((mask, self.reactors.iter().filter(|reactor| mask.contains(reactor.core())).cloned().collect()))
    }

    /// Makes a virtio-blk endpoint; `call` is what its client sent. The receiver is told when its reactor has it.
    pub(crate) fn create_blk(
        &self,
        registry: &Registry,
        options: BlkOptions,
        call: Entry,
    ) -> Result<oneshot::Receiver<()>, EndpointError> {
        let BlkOptions { name, bdev_name, cpumask, num_queues, qsize, transport } = options;
        let num_queues = num_queues.filter(|n| (1..=MAX_QUEUES).contains(n)).unwrap_or(DEFAULT_QUEUES);
        let queue_size = queue_size(qsize);
        let vectors = transport.vectors(num_queues);
        self.create(&name, cpumask.as_deref(), vectors, call, || {
            let events = Arc::new(Events::default());
            let descriptor = Arc::new(open(registry, &bdev_name, &events)?);
            check_blocks(descriptor.bdev().info())?;
            let blk = BlkSpec { descriptor, events, num_queues, queue_size };
            let model: BuildModel = Box::new(move |home, bus| {
                Box::new(VirtioPci::new(Blk::new(blk), transport, home.clone(), Arc::clone(bus)))
            });
            Ok((model, Backend::Blk(bdev_name)))
        })
    }

    /// Makes a virtio-scsi endpoint without targets; the receiver is told when its reactor has it.
    pub(crate) fn create_scsi(
        &self,
        options: ScsiOptions,
        call: Entry,
    ) -> Result<oneshot::Receiver<()>, EndpointError> {
        let ScsiOptions { name, cpumask, num_io_queues, qsize, transport } = options;
        let most = MAX_QUEUES - OWN_QUEUES;
        let num_io_queues = num_io_queues.filter(|n| (1..=most).contains(n)).unwrap_or(most);
        let queue_size = queue_size(qsize);
        let vectors = transport.vectors(num_io_queues + OWN_QUEUES);
        self.create(&name, cpumask.as_deref(), vectors, call, || {
            let targets = Targets::default();
            let serial = uuid_of(&name);
            let scsi = Scsi::new(&targets, num_io_queues, queue_size, serial);
            let model: BuildModel = Box::new(move |home, bus| {
                Box::new(VirtioPci::new(scsi, transport, home.clone(), Arc::clone(bus)))
            });
            Ok((model, Backend::Scsi(targets)))
        })
    }

    /// What endpoints of all types have in common; `make` says what is behind this one.
    fn create(
        &self,
        name: &str,
        cpumask: Option<&str>,
        vectors: u16,
        call: Entry,
        make: impl FnOnce() -> Result<(BuildModel, Backend), EndpointError>,
    ) -> Result<oneshot::Receiver<()>, EndpointError> {
        if name.len() > MAX_NAME_LEN {
            return Err(EndpointError::Name(name.to_owned(), Errno::NAMETOOLONG));
        }
        if name.is_empty() || name.contains('/') {
            return Err(EndpointError::Name(name.to_owned(), Errno::INVAL));
        }
        let mut inner = self.lock();
        inner.by_name.retain(|_, endpoint| endpoint.handle.state() != endpoint::State::Gone);
        if inner.by_name.contains_key(name) {
            return Err(EndpointError::Exists(name.to_owned()));
        }
        let (mask, reactors) = self.reactors_of(cpumask)?;
        let (model, backend) = make()?;
        let listener = self.bind(&inner, name)?;
        let path = listener.path().to_owned();
        let group = Group::new(name.to_owned(), mask);
        let home = reactors[0].clone();
        let handle = endpoint::start(Spec {
            name: name.to_owned(),
            listener,
            reactors,
            group: group.clone(),
            vectors,
            model,
        })?;
        tracing::info!(endpoint = name, bdev = backend.bdev_name(), socket = %path.display(), vectors, "endpoint created");
        let (calls, base, order) = (vec![call], inner.base.clone(), inner.created);
        inner.created += 1;
        inner.by_name.insert(name.to_owned(), Endpoint { handle, group, backend, calls, base, order });
        // Messages of one sender are done in order: when this one is, the endpoint is there.
        let (there, wait) = oneshot::channel();
        home.send(Box::new(move |_reactor| {
            let _ = there.send(());
        }))?;
        Ok(wait)
    }

    /// Adds a bdev as unit 0 of a target of a SCSI endpoint.
    pub(crate) fn add_target(
        &self,
        registry: &Registry,
        name: &str,
        target: u8,
        bdev_name: &str,
        call: Entry,
    ) -> Result<(), EndpointError> {
        let mut inner = self.lock();
        let endpoint = inner.by_name.get_mut(name).ok_or_else(|| EndpointError::Missing(name.to_owned()))?;
        let Backend::Scsi(targets) = &endpoint.backend else {
            return Err(EndpointError::NotScsi(name.to_owned()));
        };
        let slot = targets.slot(target)?;
        let bdev = registry.get(bdev_name).map_err(EndpointError::TargetBdev)?;
        check_blocks(bdev.info())?;
        let access = if bdev.info().read_only { Access::Read } else { Access::ReadWrite };
        let descriptor = Arc::new(registry.open(bdev_name, access, slot.callback())?);
        slot.add(descriptor, &self.reservations)?;
        // One whose bdev was removed has left its call here.
        endpoint.calls.retain(|call| target_of(call) != Some(target.into()));
        endpoint.calls.push(call);
        Ok(())
    }

    /// Takes a target out of a SCSI endpoint.
    pub(crate) fn remove_target(&self, name: &str, target: u8) -> Result<(), EndpointError> {
        let mut inner = self.lock();
        let endpoint = inner.by_name.get_mut(name).ok_or_else(|| EndpointError::Missing(name.to_owned()))?;
        let Backend::Scsi(targets) = &endpoint.backend else {
            return Err(EndpointError::NotScsi(name.to_owned()));
        };
        targets.remove(target)?;
        endpoint.calls.retain(|call| target_of(call) != Some(target.into()));
        Ok(())
    }

    /// Deals the queues of the endpoint that SPDK's clients know as this thread to the cores of a mask. False if there is
    /// no such endpoint.
    pub(crate) fn set_cpumask(&self, thread: u64, mask: &str) -> Result<bool, EndpointError> {
        let (mask, reactors) = self.reactors_of(Some(mask))?;
        let mut inner = self.lock();
        let Some(entry) = inner.by_name.values_mut().find(|entry| entry.group.id() == thread) else {
            return Ok(false);
        };
        entry.group.set_cpumask(mask);
        entry.handle.place(reactors);
        // Its create call comes first: from now on it makes an endpoint that is there.
        if let Some(params) = entry.calls.first_mut().and_then(|create| create.params.as_mut()) {
            params["cpumask"] = format!("0x{mask}").into();
        }
        Ok(true)
    }

    /// Moves one queue of an endpoint within its cpumask. False if there is no such endpoint.
    pub(crate) fn move_queue(&self, thread: u64, queue: u16, to: &Handle) -> bool {
        let inner = self.lock();
        let entry = inner.by_name.values().find(|entry| entry.group.id() == thread);
        entry.map(|entry| entry.handle.move_queue(queue, to.clone())).is_some()
    }

    fn bind(&self, inner: &Inner, name: &str) -> Result<Listener, EndpointError> {
        let path = inner.base.as_ref().unwrap_or(&self.sockets.dir).join(name);
        Ok(self.bind_at(&path)?)
    }

    /// Binds a socket with the mode and owner that all sockets here have.
    pub(crate) fn bind_at(&self, path: &std::path::Path) -> Result<Listener, BindError> {
        let Owner { uid, gid } = self.sockets.owner;
        Listener::bind_for(path, self.sockets.mode, SocketOwner { uid, gid })
    }

    /// The calls that make these endpoints, in the order in which they were made: the base path changes in between. A disk
    /// whose bdev is gone is not made again: nothing would be there to make it of, and the start that tries would fail.
    pub(crate) fn config(&self, registry: &Registry) -> Vec<Entry> {
        let inner = self.lock();
        let mut endpoints: Vec<&Endpoint> =
            inner.by_name.values().filter(|one| one.handle.state() != endpoint::State::Gone).collect();
        endpoints.sort_by_key(|endpoint| endpoint.order);
        let mut entries = Vec::new();
        let mut base = None;
        let mut move_to = |next: &Option<PathBuf>, entries: &mut Vec<Entry>| {
            if let Some(path) = next.as_ref().filter(|_| *next != base) {
                entries.push(Entry::new("vfu_tgt_set_base_path", serde_json::json!({ "path": path })));
                base.clone_from(next);
            }
        };
        for endpoint in endpoints.into_iter().filter(|endpoint| endpoint.backend.is_there(registry)) {
            move_to(&endpoint.base, &mut entries);
            let calls = endpoint.calls.iter().filter(|call| endpoint.backend.is_made_by(call));
            entries.extend(calls.cloned());
        }
        move_to(&inner.base, &mut entries);
        entries
    }

    /// What endpoints are and do: the one of this name, or all.
    pub(crate) async fn describe(&self, name: Option<&str>) -> Vec<Description> {
        let asked: Vec<_> = {
            let inner = self.lock();
            let wanted = inner.by_name.iter().filter(|(other, _)| name.is_none_or(|name| name == *other));
            let ask = |(name, endpoint): (&String, &Endpoint)| {
                let (answer, wait) = oneshot::channel();
                endpoint.handle.describe(move |state| {
                    // Nobody waits any more if the target is stopping.
                    let _ = answer.send(state);
                });
                let description = Description {
                    name: name.clone(),
                    bdev_name: endpoint.backend.bdev_name(),
                    cpumask: endpoint.group.cpumask(),
                    socket: endpoint.handle.path().to_owned(),
                    state: None,
                };
                (description, wait)
            };
            wanted.map(ask).collect()
        };
        let mut described = Vec::with_capacity(asked.len());
        for (mut description, wait) in asked {
            description.state = wait.await.ok();
            described.push(description);
        }
        described
    }

    /// Deletes an endpoint; the receiver is told when nothing of it is left.
    pub(crate) fn delete(&self, name: &str) -> Result<oneshot::Receiver<()>, EndpointError> {
        let endpoint =
            self.lock().by_name.remove(name).ok_or_else(|| EndpointError::Missing(name.to_owned()))?;
        let (gone, wait) = oneshot::channel();
        // Nobody waits any more if the client has gone and the target is stopping.
        endpoint.handle.delete(move || {
            let _ = gone.send(());
        });
        Ok(wait)
    }

    /// Deletes all of them.
    pub(crate) fn delete_all(&self) -> Vec<oneshot::Receiver<()>> {
        let names: Vec<String> = self.lock().by_name.keys().cloned().collect();
        names.iter().filter_map(|name| self.delete(name).ok()).collect()
    }
}

/// Opens the bdev for writing, or for reading where it cannot be written.
fn open(registry: &Registry, name: &str, events: &Arc<Events>) -> Result<bdev::Descriptor, bdev::Error> {
    let access = if registry.get(name)?.info().read_only { Access::Read } else { Access::ReadWrite };
    registry.open(name, access, events.callback())
}

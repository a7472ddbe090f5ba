//! An NVM subsystem: namespaces that its controllers share, and who is told when they change.
//!
//! Made and changed on the RPC thread; controllers and their queues read it when they are told of a change.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use bdev::{Access, ClaimKind, Event, Registry};

use super::{
    link::{Link, flag},
    namespace::{Namespace, NamespaceOptions},
    reservation::Reservations,
};

/// What a subsystem is, fixed for its life.
#[derive(Clone, Debug)]
pub struct SubsystemOptions {
    /// NVMe qualified name.
    pub nqn: String,
    /// Serial number, at most 20 characters.
    pub serial: String,
    /// Model number, at most 40 characters.
    pub model: String,
    /// Highest namespace number.
    pub max_namespaces: u32,
    /// Hosts are told of access states.
    pub ana_reporting: bool,
    /// Lowest controller ID.
    pub min_cntlid: u16,
    /// Highest controller ID.
    pub max_cntlid: u16,
    /// Most blocks of one range of Dataset Management.
    pub dmrsl: u32,
    /// Most bytes of one Write Zeroes, as a power of two of pages.
    pub wzsl: u8,
    /// Hosts may reset it.
    pub enable_nssr: bool,
}

impl SubsystemOptions {
    /// Usual options.
    #[must_use]
    pub fn new(nqn: impl Into<String>) -> Self {
        Self {
            nqn: nqn.into(),
            serial: "00000000000000000000".to_owned(),
            model: "Ringside bdev Controller".to_owned(),
            max_namespaces: 32,
            ana_reporting: false,
            min_cntlid: 1,
            max_cntlid: 0xffef,
            dmrsl: 2_097_152,
            wzsl: 12,
            enable_nssr: false,
        }
    }
}

/// Who claims the bdevs of namespaces, as SPDK's clients know it.
const CLAIM_HOLDER: &str = "NVMe-oF Target";

/// Most namespaces of a subsystem: tables of queues are sized by it.
pub const MAX_NAMESPACES: u32 = 1024;

/// Why a namespace is not added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The number is taken, above the subsystem's highest, or none is free.
    #[error("namespace {0} cannot be added")]
    Number(u32),
    /// ANA groups are numbered as namespaces are.
    #[error("there is no ANA group {0}")]
    AnaGroup(u32),
    /// The bdev cannot be opened, or it is somebody else's: it is claimed for this namespace alone.
    #[error("bdev: {0}")]
    Bdev(#[from] bdev::Error),
    /// A block size that no host would take (below 512 bytes or no power of two).
    #[error("blocks of {0} bytes cannot be a namespace")]
    BlockSize(u32),
    /// The file of its reservations. A broken one is not begun anew: hosts rely on what it fenced.
    #[error("ptpl_file {0}: {1} (a file that is no use any more can be removed)")]
    Reservations(PathBuf, io::Error),
}

#[derive(Debug, Default)]
struct Inner {
    namespaces: BTreeMap<u32, Arc<Namespace>>,
    links: Vec<Weak<Link>>,
}

/// A subsystem.
#[derive(Debug)]
pub struct Subsystem {
    options: SubsystemOptions,
    inner: Mutex<Inner>,
    regroupings: AtomicU64,
}

impl Subsystem {
    /// A subsystem without namespaces.
    #[must_use]
    pub fn new(options: SubsystemOptions) -> Arc<Self> {
        Arc::new(Self { options, inner: Mutex::default(), regroupings: AtomicU64::new(0) })
    }

    /// What it is.
    #[must_use]
    pub fn options(&self) -> &SubsystemOptions {
        &self.options
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a namespace over a bdev; its number.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add_namespace(
        self: &Arc<Self>,
        registry: &Registry,
        bdev: &str,
        options: NamespaceOptions,
    ) -> Result<u32, AddError> {
        // Out of the lock, which reactors take, as it waits for the disk.
        let file = options.ptpl_file.clone();
        let reservations = Reservations::load(file.clone())
            .map_err(|error| AddError::Reservations(file.unwrap_or_default(), error))?;
        let mut inner = self.lock();
        let highest = self.options.max_namespaces;
        let wanted = options.nsid.filter(|&nsid| nsid != 0);
        let nsid = wanted.or_else(|| (1..=highest).find(|nsid| !inner.namespaces.contains_key(nsid)));
        let nsid = nsid.ok_or(AddError::Number(0))?;
        if nsid > highest || inner.namespaces.contains_key(&nsid) {
            return Err(AddError::Number(nsid));
        }
        if let Some(group) = options.anagrpid.filter(|&group| group > highest) {
            return Err(AddError::AnaGroup(group));
        }
        let found = registry.get(bdev)?;
        let block_size = found.info().block_size;
        if block_size < 512 || !block_size.is_power_of_two() {
            return Err(AddError::BlockSize(block_size));
        }
        let access = if found.info().read_only { Access::Read } else { Access::ReadWrite };
        let subsystem = Arc::downgrade(self);
        let descriptor = registry.open(bdev, access, move |event| {
            if let Some(subsystem) = subsystem.upgrade() {
                subsystem.bdev_event(nsid, event);
            }
        })?;
        descriptor.claim(ClaimKind::ExclusiveWrite, CLAIM_HOLDER)?;
        inner.namespaces.insert(nsid, Arc::new(Namespace::new(nsid, options, descriptor, reservations)));
        drop(inner);
        self.changed(nsid);
        Ok(nsid)
    }

    /// Removes a namespace; false if there is none. Its bdev is closed when the last queue has let go of it.
    pub fn remove_namespace(&self, nsid: u32) -> bool {
        // Out of the lock before it is dropped: closing a bdev may call others.
        let removed = self.lock().namespaces.remove(&nsid);
        if removed.is_some() {
            self.changed(nsid);
        }
        removed.is_some()
    }

    fn bdev_event(&self, nsid: u32, event: Event) {
        match event {
            Event::Removed => {
                tracing::warn!(
                    nqn = self.options.nqn,
                    nsid,
                    "the bdev of a namespace is removed, and the namespace with it"
                );
                self.remove_namespace(nsid);
            }
            Event::Resized { .. } => self.changed(nsid),
            _ => {}
        }
    }

    fn changed(&self, nsid: u32) {
        for link in self.links() {
            link.namespace_changed(nsid);
        }
    }

    /// Moves a namespace to another ANA group; false if there is none.
    pub fn set_ana_group(&self, nsid: u32, group: u32) -> bool {
        let Some(namespace) = self.namespace(nsid) else { return false };
        namespace.set_anagrpid(group);
        self.regroupings.fetch_add(1, Ordering::AcqRel);
        for link in self.links() {
            link.namespace_changed(nsid);
            link.notify(flag::ANA);
        }
        true
    }

    /// How often a namespace was moved to another ANA group.
    #[must_use]
    pub fn regroupings(&self) -> u64 {
        self.regroupings.load(Ordering::Acquire)
    }

    /// Tells the controllers that access states changed.
    pub fn ana_changed(&self) {
        for link in self.links() {
            link.notify(flag::ANA);
        }
    }

    /// Resets every controller (Base, 3.7.1).
    pub fn reset(&self) {
        for link in self.links() {
            link.notify(flag::SUBSYSTEM_RESET);
        }
    }

    /// A namespace.
    #[must_use]
    pub fn namespace(&self, nsid: u32) -> Option<Arc<Namespace>> {
        self.lock().namespaces.get(&nsid).cloned()
    }

    /// The namespaces, by number.
    #[must_use]
    pub fn namespaces(&self) -> Vec<Arc<Namespace>> {
        self.lock().namespaces.values().cloned().collect()
    }

    /// The controllers.
    #[must_use]
    pub fn links(&self) -> Vec<Arc<Link>> {
        let mut inner = self.lock();
        inner.links.retain(|link| link.strong_count() > 0);
        inner.links.iter().filter_map(Weak::upgrade).collect()
    }

    /// Makes a controller with a free ID; none if all are taken.
    pub fn attach(&self, make: impl FnOnce(u16) -> Arc<Link>) -> Option<Arc<Link>> {
        let mut inner = self.lock();
        inner.links.retain(|link| link.strong_count() > 0);
        let taken: BTreeSet<u16> =
            inner.links.iter().filter_map(|link| Some(link.upgrade()?.cntlid)).collect();
        let cntlid = (self.options.min_cntlid..=self.options.max_cntlid).find(|id| !taken.contains(id))?;
        let link = make(cntlid);
        inner.links.push(Arc::downgrade(&link));
        Some(link)
    }
}

//! What the tests stand on.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bdev::{
    Registry,
    types::{Malloc, MallocParams},
};
use tempfile::TempDir;
use vfu::{
    dma::Protection,
    mock::{
        client::Client,
        memory::Memory,
        nvme::{Nvme, blocks_command, status_of},
        server::Server,
    },
    nvme::{
        controller::ControllerOptions,
        namespace::NamespaceOptions,
        spec::{Status, nvm},
        subsystem::{Subsystem, SubsystemOptions},
    },
};

/// How doorbells reach the controller, and whether it reaches the guest's memory by mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doorbells {
    Trapped,
    Mapped,
    Shadow,
    /// Trapped, and the guest shares no memory.
    Private,
}

pub(crate) const ALL: [Doorbells; 4] =
    [Doorbells::Trapped, Doorbells::Mapped, Doorbells::Shadow, Doorbells::Private];

/// Shows the same with shared memory and with private.
pub(crate) fn in_either_memory(show: impl Fn(Doorbells)) {
    [Doorbells::Trapped, Doorbells::Private].into_iter().for_each(show);
}

pub(crate) const BLOCK: usize = 512;
pub(crate) const BLOCKS: u64 = 8192;
const MEMORY: u64 = 64 << 20;

pub(crate) struct Rig {
    pub(crate) server: Server,
    pub(crate) subsystem: Arc<Subsystem>,
    pub(crate) options: ControllerOptions,
    dir: TempDir,
}

pub(crate) fn malloc(registry: &Registry, name: &str, blocks: u64) {
    let params = serde_json::json!({ "name": name, "num_blocks": blocks, "block_size": BLOCK });
    let params: MallocParams = serde_json::from_value(params).unwrap();
    registry.register(Arc::new(Malloc::new(name.to_owned(), &params).unwrap())).unwrap();
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(SubsystemOptions {
            enable_nssr: true,
            ..SubsystemOptions::new("nqn.2016-06.io.spdk:cnode1")
        })
    }

    /// A subsystem with one namespace over a malloc bdev, and two reactors.
    pub(crate) fn with(options: SubsystemOptions) -> Self {
        let server = Server::start(2);
        let subsystem = Subsystem::new(options);
        let rig = Self {
            server,
            subsystem,
            options: ControllerOptions::default(),
            dir: tempfile::tempdir().unwrap(),
        };
        rig.add("Malloc0");
        rig
    }

    /// Adds a namespace over a new malloc bdev; its number.
    pub(crate) fn add(&self, name: &str) -> u32 {
        malloc(self.server.registry(), name, BLOCKS);
        self.subsystem.add_namespace(self.server.registry(), name, NamespaceOptions::default()).unwrap()
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Serves a controller; its socket.
    pub(crate) fn serve(&mut self, name: &str, doorbells: Doorbells) -> PathBuf {
        let socket = self.socket(name);
        self.server.serve_nvme(&socket, &self.subsystem, self.options, doorbells == Doorbells::Mapped);
        socket
    }

    /// Serves a controller and connects a driver to it; nothing is enabled.
    pub(crate) fn connect(&mut self, name: &str, doorbells: Doorbells) -> Nvme {
        let socket = self.serve(name, doorbells);
        let mut nvme = connect(&socket, doorbells);
        if doorbells == Doorbells::Mapped {
            nvme.map_doorbells().unwrap();
        }
        nvme
    }

    /// A driver with an enabled controller and so many I/O queues of 64 entries.
    pub(crate) fn driver(&mut self, doorbells: Doorbells, queues: u16) -> Nvme {
        let mut nvme = self.connect("cntrl", doorbells);
        nvme.enable().unwrap();
        nvme.create_queues(queues, 64).unwrap();
        if doorbells == Doorbells::Shadow {
            nvme.use_shadow_doorbells().unwrap();
        }
        nvme
    }
}

/// Connects a driver.
pub(crate) fn connect(socket: &Path, doorbells: Doorbells) -> Nvme {
    let memory = Memory::new(MEMORY).unwrap();
    let is_private = doorbells == Doorbells::Private;
    let client = if is_private { Client::connect_private(socket, &memory) } else { Client::connect(socket) };
    let mut client = client.unwrap();
    client.map_memory(&memory).unwrap();
    Nvme::over(client, memory).unwrap()
}

/// Waits for what must come, however slow the machine is.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Takes the guest's memory away and shares it again.
pub(crate) fn remap(nvme: &mut Nvme) {
    nvme.client().dma_unmap_all().unwrap();
    share(nvme);
}

/// Shares all of the guest's memory.
pub(crate) fn share(nvme: &mut Nvme) {
    for nth in 0..nvme.memory.regions().len() {
        share_region(nvme, nth);
    }
}

/// Shares one of its regions.
pub(crate) fn share_region(nvme: &mut Nvme, nth: usize) {
    let region = nvme.memory.regions()[nth];
    let file = nvme.memory.file().try_clone_to_owned().unwrap();
    let both = Protection { read: true, write: true };
    let file = Some((file.as_fd(), region.offset));
    nvme.client().dma_map(region.address, region.len, both, file).unwrap();
}

/// Data of up to two pages in guest memory.
pub(crate) fn buffer(nvme: &mut Nvme) -> [u64; 2] {
    let at = nvme.memory.allocate(8192, 4096).unwrap();
    [at, at + 4096]
}

pub(crate) fn write(nvme: &mut Nvme, nsid: u32, lba: u64, bytes: &[u8]) -> Status {
    let dptr = buffer(nvme);
    nvme.memory.write(dptr[0], bytes).unwrap();
    let blocks = u32::try_from(bytes.len() / BLOCK).unwrap();
    status_of(&nvme.io(0, blocks_command(nvm::WRITE, nsid, lba, blocks, dptr)).unwrap())
}

pub(crate) fn read(nvme: &mut Nvme, nsid: u32, lba: u64, blocks: u32) -> (Status, Vec<u8>) {
    let dptr = buffer(nvme);
    let done = nvme.io(0, blocks_command(nvm::READ, nsid, lba, blocks, dptr)).unwrap();
    let mut bytes = vec![0; blocks as usize * BLOCK];
    nvme.memory.read(dptr[0], &mut bytes).unwrap();
    (status_of(&done), bytes)
}

//! What every test here starts from: a server in a directory of its own, and guests.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bdev::{
    Bdev,
    types::{Malloc, MallocParams, Null, NullParams},
};
use tempfile::TempDir;
use vfu::{
    endpoint::EndpointHandle,
    mock::{
        blk::{BlkDriver, BlkOptions},
        client::Client,
        memory::Memory,
        server::{DiskOptions, Server},
        split::SplitDriver,
    },
};

/// Long enough for any machine; only a failing test waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing may happen before a test says that it does not happen. Too short, and a wrong server may pass; never
/// the other way round.
pub(crate) const SHORT: Duration = Duration::from_millis(30);
/// Bytes of guest RAM, unless a test says otherwise. Only what is touched is there.
pub(crate) const RAM: u64 = 256 << 20;

pub(crate) type Guest = BlkDriver<SplitDriver>;

/// A server whose endpoints are deleted, and whose pollers are looked after, when the test ends.
pub(crate) struct Rig {
    pub(crate) server: Server,
    dir: TempDir,
}

impl Rig {
    /// With one reactor.
    pub(crate) fn new() -> Self {
        Self::with_reactors(1)
    }

    pub(crate) fn with_reactors(reactors: u32) -> Self {
        Self { server: Server::start(reactors), dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn register(&self, bdev: Arc<dyn Bdev>) {
        self.server.registry().register(bdev).unwrap();
    }

    /// A malloc bdev of `mib` MiB.
    pub(crate) fn malloc(&self, name: &str, block_size: u32, mib: u64) {
        let blocks = (mib << 20) / u64::from(block_size);
        self.register(Arc::new(
            Malloc::new(name.to_owned(), &MallocParams::new(block_size, blocks)).unwrap(),
        ));
    }

    /// A null bdev of 1 GiB.
    pub(crate) fn null(&self, name: &str) {
        let params = NullParams {
            name: name.to_owned(),
            block_size: 512,
            num_blocks: 2 << 20,
            ..NullParams::default()
        };
        self.register(Arc::new(Null::new(params).unwrap()));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn serve(&mut self, name: &str, options: &DiskOptions<'_>) -> EndpointHandle {
        let path = self.path(name);
        self.server.serve(&path, options)
    }

    /// A connection to an endpoint.
    pub(crate) fn client(&self, name: &str) -> Client {
        Client::connect(&self.path(name)).unwrap()
    }

    /// A guest with a running disk.
    pub(crate) fn guest(&self, name: &str, options: BlkOptions) -> Guest {
        Guest::new(self.client(name), Memory::new(RAM).unwrap(), options).unwrap()
    }

    /// A malloc disk of 16 MiB named "disk", with blocks of 512 bytes, served with usual queues.
    pub(crate) fn with_disk() -> Self {
        let mut rig = Self::new();
        rig.malloc("Malloc0", 512, 16);
        rig.serve("disk", &DiskOptions::new("Malloc0"));
        rig
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        assert!(self.server.delete_endpoints(PATIENCE), "an endpoint does not go");
        assert_eq!(self.server.faults(), 0, "a poller panicked");
    }
}

/// Bytes that are different everywhere, and different for each `seed`.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = std::iter::repeat_with(move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()[3]
    });
    next.take(len).collect()
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

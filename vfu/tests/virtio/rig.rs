//! What every test here starts from: a server with a bdev, and guests on its endpoints.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bdev::{
    Bdev,
    types::{Malloc, MallocParams},
};
use tempfile::TempDir;
use vfu::{
    mock::{
        blk::{BlkDriver, BlkOptions},
        client::Client,
        memory::Memory,
        ring::DriverRing,
        server::{DiskOptions, Server},
    },
    virtio::transport::TransportOptions,
};

/// Long enough for any machine; only a failing test waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const RAM: u64 = 64 << 20;

/// A server whose endpoints are deleted when the test ends, and whose pollers did not panic.
pub(crate) struct Rig {
    pub(crate) server: Server,
    dir: TempDir,
}

impl Rig {
    /// With so many reactors and the bdev `Malloc0` of 16 MiB.
    pub(crate) fn new(reactors: u32) -> Self {
        let rig = Self { server: Server::start(reactors), dir: tempfile::tempdir().unwrap() };
        let malloc = Malloc::new("Malloc0".to_owned(), &MallocParams::new(512, 32768)).unwrap();
        rig.server.registry().register(Arc::new(malloc)).unwrap();
        rig
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Serves another bdev as "disk", with two queues.
    pub(crate) fn serve_bdev(&mut self, bdev: Arc<dyn Bdev>) {
        let name = bdev.info().name.clone();
        self.server.registry().register(bdev).unwrap();
        let path = self.path("disk");
        self.server.serve(&path, &DiskOptions { num_queues: 2, ..DiskOptions::new(&name) });
    }

    /// Serves Malloc0 as "disk".
    pub(crate) fn serve(&mut self, num_queues: u16, queue_size: u16, transport: TransportOptions) {
        let path = self.path("disk");
        self.server
            .serve(&path, &DiskOptions { num_queues, queue_size, transport, ..DiskOptions::new("Malloc0") });
    }

    /// A guest on "disk".
    pub(crate) fn guest<R: DriverRing>(&self, options: BlkOptions) -> BlkDriver<R> {
        let client = Client::connect(&self.path("disk")).unwrap();
        BlkDriver::new(client, Memory::new(RAM).unwrap(), options).unwrap()
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
        assert!(Instant::now() < deadline, "{what} does not come true");
        std::thread::sleep(Duration::from_millis(1));
    }
}

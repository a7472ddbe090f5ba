//! A reactor driven by hand on this thread, with disks on it and guests at the disks.

use std::sync::Arc;

use bdev::{
    Bdev,
    types::{Malloc, MallocParams, Null, NullParams},
};
use reactor::{Clock, Mode, Reactor, ReactorConfig};
use tempfile::TempDir;
use vfu::{
    mock::{
        blk::{BlkDriver, BlkOptions, Chains, Io},
        client::Client,
        memory::Memory,
        ring::DriverRing,
        server::{DiskOptions, Server},
    },
    virtio::{spec::blk::kind, transport::TransportOptions},
};

/// Requests of one batch.
pub(crate) const DEPTH: u16 = 128;
/// Room for a batch of three descriptors a request.
const QUEUE_SIZE: u16 = 512;
pub(crate) const IO_BYTES: u32 = 4096;
const RAM: u64 = 64 << 20;
/// The largest malloc disk, well beyond any cache.
pub(crate) const DISK_BYTES: u64 = 512 << 20;

pub(crate) fn null(name: &str, block_size: u32) -> Arc<dyn Bdev> {
    let num_blocks = (1 << 40) / u64::from(block_size);
    let params = NullParams { name: name.into(), block_size, num_blocks, ..NullParams::default() };
    Arc::new(Null::new(params).expect("valid"))
}

pub(crate) fn malloc(name: &str) -> Arc<dyn Bdev> {
    let params = MallocParams::new(512, DISK_BYTES / 512);
    Arc::new(Malloc::new(name.into(), &params).expect("memory for a disk"))
}

pub(crate) struct Rig {
    pub(crate) reactor: Reactor,
    server: Server,
    dir: TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let config = ReactorConfig { mode: Mode::PollOnly, ..ReactorConfig::new(0, Clock::system()) };
        let reactor = Reactor::new(config).expect("descriptors for a reactor");
        let server = Server::on(vec![reactor.handle()]);
        Self { reactor, server, dir: tempfile::tempdir().expect("a folder") }
    }

    /// A disk over this bdev, and a guest on it. The reactor is polled here meanwhile.
    pub(crate) fn guest<R: DriverRing + Send + 'static>(
        &mut self,
        bdev: Arc<dyn Bdev>,
        chains: Chains,
    ) -> BlkDriver<R> {
        let name = bdev.info().name.clone();
        self.server.registry().register(bdev).expect("a new name");
        let transport = TransportOptions { packed_ring: R::PACKED, ..TransportOptions::default() };
        let socket = self.dir.path().join(&name);
        let disk =
            DiskOptions { num_queues: 1, queue_size: QUEUE_SIZE, transport, ..DiskOptions::new(&name) };
        self.server.serve(&socket, &disk);
        let options = BlkOptions { ring_size: QUEUE_SIZE, max_io: IO_BYTES, chains, ..BlkOptions::default() };
        let guest = std::thread::spawn(move || {
            let memory = Memory::new(RAM).expect("memory for a guest");
            let client = Client::connect(&socket).expect("a server");
            let guest: BlkDriver<R> = BlkDriver::new(client, memory, options).expect("a disk");
            guest.memory.populate().expect("just made");
            guest
        });
        while !guest.is_finished() {
            self.reactor.poll_once();
        }
        guest.join().expect("the guest comes up")
    }
}

/// Puts a batch of reads on a guest's ring, at these sectors.
pub(crate) fn submit<R: DriverRing>(guest: &mut BlkDriver<R>, sectors: &[u64]) {
    let queue = &mut guest.queues[0];
    for &sector in sectors {
        queue.submit(Io { kind: kind::IN, sector, len: IO_BYTES }).expect("room for a batch");
    }
    queue.publish_quietly();
}

/// Takes back what is done. How many there were.
pub(crate) fn collect<R: DriverRing>(guest: &mut BlkDriver<R>) -> usize {
    let queue = &mut guest.queues[0];
    let mut count = 0;
    while let Some(done) = queue.poll().expect("a device that obeys") {
        assert_eq!(done.status, 0);
        count += 1;
    }
    count
}

//! What every test here starts from, on top of what those of `tests/endpoint` do: a server with a bdev, and disks with rings
//! of every kind on its endpoint "disk".

#[path = "../endpoint/rig.rs"]
#[expect(dead_code, reason = "the tests of the endpoint use all of it")]
mod shared;

use std::sync::Arc;

use bdev::Bdev;
pub(crate) use shared::{PATIENCE, Rig, eventually, pattern};
use vfu::{
    mock::{
        blk::{BlkDriver, BlkOptions},
        client::Client,
        memory::Memory,
        ring::DriverRing,
        server::DiskOptions,
    },
    virtio::transport::TransportOptions,
};

const RAM: u64 = 64 << 20;

impl Rig {
    /// With so many reactors and the bdev `Malloc0` of 16 MiB.
    pub(crate) fn with_malloc(reactors: u32) -> Self {
        let rig = Self::with_reactors(reactors);
        rig.malloc("Malloc0", 512, 16);
        rig
    }

    /// Serves another bdev as "disk", with two queues.
    pub(crate) fn serve_bdev(&mut self, bdev: Arc<dyn Bdev>) {
        let name = bdev.info().name.clone();
        self.register(bdev);
        self.serve("disk", &DiskOptions { num_queues: 2, ..DiskOptions::new(&name) });
    }

    /// Serves Malloc0 as "disk".
    pub(crate) fn serve_rings(&mut self, num_queues: u16, queue_size: u16, transport: TransportOptions) {
        self.serve("disk", &DiskOptions { num_queues, queue_size, transport, ..DiskOptions::new("Malloc0") });
    }

    /// A driver on "disk".
    pub(crate) fn driver<R: DriverRing>(&self, options: BlkOptions) -> BlkDriver<R> {
        BlkDriver::new(self.client("disk"), Memory::new(RAM).unwrap(), options).unwrap()
    }

    /// A driver on "disk" whose memory is not shared.
    pub(crate) fn private_driver<R: DriverRing>(&self, options: BlkOptions) -> BlkDriver<R> {
        let memory = Memory::new(RAM).unwrap();
        let client = Client::connect_private(&self.path("disk"), &memory).unwrap();
        BlkDriver::new(client, memory, options).unwrap()
    }
}

//! The vfio-user server, driven by a client that is not ours: rust-vmm's, which Cloud Hypervisor uses. And the load generator,
//! against a server that is not ours.

#![expect(clippy::unwrap_used, reason = "all of it is a test, the steps that tests share too")]

mod disk;

use std::{
    fs::File,
    os::{fd::AsRawFd, unix::fs::FileExt},
    process::Command,
};

use ringside_tests::{Target, binary};
use serde_json::json;
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_BAR4_REGION_INDEX,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vfio_user::Client;
use vmm_sys_util::{eventfd::EventFd, tempfile::TempFile};

/// Offsets in the common configuration (virtio 1.2, 4.1.4.3).
mod common {
    pub(super) const DEVICE_FEATURE: u64 = 4;
    pub(super) const DRIVER_FEATURE_SELECT: u64 = 8;
    pub(super) const DRIVER_FEATURE: u64 = 12;
    pub(super) const NUM_QUEUES: u64 = 18;
    pub(super) const STATUS: u64 = 20;
    pub(super) const QUEUE_SIZE: u64 = 24;
    pub(super) const QUEUE_VECTOR: u64 = 26;
    pub(super) const QUEUE_ENABLE: u64 = 28;
    pub(super) const QUEUE_DESC: u64 = 32;
    pub(super) const QUEUE_DRIVER: u64 = 40;
    pub(super) const QUEUE_DEVICE: u64 = 48;
}

const BAR: u32 = VFIO_PCI_BAR4_REGION_INDEX;
const NOTIFY: u64 = 0x3000;
const MEMORY: u64 = 1 << 20;
/// Where guest memory starts, for the guest.
const BASE: u64 = 0x10_0000;
const QUEUE_SIZE: u64 = 8;

fn target() -> Target {
    let target = Target::start().unwrap();
    target
        .call("bdev_malloc_create", json!({"name": "Malloc0", "num_blocks": 2048, "block_size": 512}))
        .unwrap();
    let endpoint = json!({"name": "vfu.0", "bdev_name": "Malloc0", "num_queues": 2, "qsize": 8});
    target.call("vfu_virtio_create_blk_endpoint", endpoint).unwrap();
    target
}

/// A guest of one queue, by hand.
struct Guest {
    client: Client,
    memory: File,
    interrupt: EventFd,
    next: u16,
}

impl Guest {
    fn new(target: &Target) -> Self {
        let mut client = Client::new(&target.endpoint("vfu.0")).unwrap();
        let memory = TempFile::new().unwrap().into_file();
        memory.set_len(MEMORY).unwrap();
        client.dma_map(0, BASE, MEMORY, memory.as_raw_fd()).unwrap();
        let interrupt = EventFd::new(libc_nonblock()).unwrap();
        Self { client, memory, interrupt, next: 0 }
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.client.region_write(BAR, at, bytes).unwrap();
    }

    fn read<const N: usize>(&mut self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.client.region_read(BAR, at, &mut bytes).unwrap();
        bytes
    }

    /// What a driver does to a modern device (virtio 1.2, 3.1.1), with MSI-X vector 1 for queue 0.
    fn start(&mut self) {
        let config = VFIO_PCI_CONFIG_REGION_INDEX;
        self.client.region_write(config, 4, &[6, 0]).unwrap();
        let mut msix = 0x40;
        let mut id = [0; 2];
        loop {
            self.client.region_read(config, msix, &mut id).unwrap();
            if id[0] == 0x11 {
                break;
            }
            msix = u64::from(id[1]);
        }
        self.client.region_write(config, msix + 3, &[0x80]).unwrap();
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        let fds = [self.interrupt.as_raw_fd()];
        self.client.set_irqs(VFIO_PCI_MSIX_IRQ_INDEX, flags, 1, 1, &fds).unwrap();

        self.write(common::STATUS, &[0]);
        self.write(common::STATUS, &[3]);
        self.write(common::DRIVER_FEATURE_SELECT, &1_u32.to_le_bytes());
        self.write(common::DRIVER_FEATURE, &1_u32.to_le_bytes());
        self.write(common::STATUS, &[11]);
        assert_eq!(self.read(common::STATUS), [11]);
        assert_eq!(self.read(common::QUEUE_SIZE), [8, 0]);
        self.write(common::QUEUE_DESC, &BASE.to_le_bytes());
        self.write(common::QUEUE_DRIVER, &(BASE + 0x1000).to_le_bytes());
        self.write(common::QUEUE_DEVICE, &(BASE + 0x2000).to_le_bytes());
        self.write(common::QUEUE_VECTOR, &[1, 0]);
        self.write(common::QUEUE_ENABLE, &[1, 0]);
        self.write(common::STATUS, &[15]);
        assert_eq!(self.read(common::STATUS), [15]);
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).unwrap();
    }

    fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn descriptor(&self, index: u64, addr: u64, len: u32, flags: u16) {
        let next = u16::try_from(index + 1).unwrap();
        let bytes =
            [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat();
        self.put(index * 16, &bytes);
    }

    /// One request over descriptors 0 to 2: header at 0x3000, data at 0x4000, status at 0x3100. Returns the status.
    fn request(&mut self, kind: u32, sector: u64, len: u32) -> u8 {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.put(0x3000, &header);
        self.put(0x3100, &[0xff]);
        self.descriptor(0, BASE + 0x3000, 16, 1);
        self.descriptor(1, BASE + 0x4000, len, if kind == 1 { 1 } else { 3 });
        self.descriptor(2, BASE + 0x3100, 1, 2);
        self.put(0x1004 + 2 * (u64::from(self.next) % QUEUE_SIZE), &[0, 0]);
        self.next += 1;
        self.put(0x1002, &self.next.to_le_bytes());
        self.write(NOTIFY, &[0, 0]);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while u16::from_le_bytes(self.get(0x2002)) != self.next {
            assert!(std::time::Instant::now() < deadline, "no answer");
            std::thread::yield_now();
        }
        self.get::<1>(0x3100)[0]
    }
}

fn libc_nonblock() -> i32 {
    // EFD_NONBLOCK is O_NONBLOCK.
    i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap()
}

#[test]
fn client_finds_a_pci_device_that_can_be_reset() {
    let target = target();
    let mut client = Client::new(&target.endpoint("vfu.0")).unwrap();

    let mut id = [0; 4];
    client.region_read(VFIO_PCI_CONFIG_REGION_INDEX, 0, &mut id).unwrap();
    assert_eq!(id, [0xf4, 0x1a, 0x42, 0x10]);
    assert_eq!(client.region(BAR).unwrap().size, 0x4000);
    assert_eq!(client.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX).unwrap().count, 3);
    client.reset().unwrap();
}

#[test]
fn data_that_was_written_is_read_back_and_the_interrupt_fires() {
    let target = target();
    let mut guest = Guest::new(&target);
    guest.start();
    assert_eq!(guest.read(common::NUM_QUEUES), [2, 0]);
    let text = b"what the guest wrote, and wants back";
    guest.put(0x4000, text);

    assert_eq!(guest.request(1, 7, 512), 0);
    guest.put(0x4000, &[0; 512]);
    assert_eq!(guest.request(0, 7, 512), 0);

    assert_eq!(&guest.get::<36>(0x4000), text);
    assert!(guest.interrupt.read().unwrap() >= 1);
}

#[test]
fn request_behind_the_end_of_the_disk_fails_and_the_next_one_works() {
    let target = target();
    let mut guest = Guest::new(&target);
    guest.start();
    assert_eq!(guest.request(0, 2048, 512), 1);
    assert_eq!(guest.request(0, 2047, 512), 0);
    assert_eq!(guest.request(99, 0, 512), 2, "an unknown request is unsupported");
}

#[test]
fn features_are_those_of_a_modern_disk() {
    let target = target();
    let mut client = Client::new(&target.endpoint("vfu.0")).unwrap();
    let mut low = [0; 4];
    client.region_read(BAR, common::DEVICE_FEATURE, &mut low).unwrap();
    let low = u32::from_le_bytes(low);
    for (bit, name) in [(2, "SEG_MAX"), (6, "BLK_SIZE"), (12, "MQ"), (28, "INDIRECT_DESC")] {
        assert_ne!(low & 1 << bit, 0, "{name} is not offered");
    }
}

#[test]
fn clients_come_and_go_and_the_target_keeps_nothing_of_them() {
    let target = target();
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", target.pid())).unwrap().count();
    Guest::new(&target).start();
    // The next one is served only when nothing of the first is left.
    drop(Client::new(&target.endpoint("vfu.0")).unwrap());
    let mut client = Client::new(&target.endpoint("vfu.0")).unwrap();
    client.reset().unwrap();
    let before = descriptors();
    drop(client);
    for _ in 0..50 {
        let mut guest = Guest::new(&target);
        guest.start();
        assert_eq!(guest.request(0, 0, 512), 0);
    }
    let mut client = Client::new(&target.endpoint("vfu.0")).unwrap();
    client.reset().unwrap();
    assert_eq!(descriptors(), before);
}

#[test]
fn load_generator_drives_a_server_that_is_not_ours() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("disk");
    let listening = disk::listen(&socket);
    let server = std::thread::spawn(move || listening.run(&mut disk::Disk::new(4 << 20)).unwrap());

    let mut load = Command::new(binary("ringside-bench"));
    load.args(["load", "--rw", "randrw", "--depth", "8", "--verify", "--seconds", "0.2", "--warmup", "0"]);
    let output = load.args(["--json", "-", "--socket"]).arg(&socket).output().unwrap();

    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let report: serde_json::Value =
        serde_json::from_str(text.lines().find(|line| line.starts_with('{')).unwrap()).unwrap();
    assert!(report["requests"].as_u64() > Some(0), "{report}");
    assert_eq!(report["errors"], 0);
    server.join().unwrap();
}

//! Real Linux guests under QEMU on disks that the target serves.
//!
//! Guests here run without hardware virtualization, so each boot counts: a test does as much as fits into one.

#![expect(clippy::unwrap_used, reason = "all of it is a test, the steps that tests share too")]

mod changes;
mod firmware;
mod spdk;

use std::path::PathBuf;

use ringside_tests::{Guest, Target};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// A target with one disk of so many MiB behind an endpoint `vfu.0` with two queues.
fn target_with_disk(mib: u64, block_size: u64) -> Target {
    let target = Target::start().unwrap();
    let disk = json!({"name": "Malloc0", "num_blocks": mib * MIB / block_size, "block_size": block_size});
    target.call("bdev_malloc_create", disk).unwrap();
    serve(&target, "Malloc0");
    target
}

/// The same with a disk on a file, by io_uring.
fn target_with_file(mib: u64, block_size: u64) -> Target {
    let target = Target::start().unwrap();
    let filename = target.dir().join("disk");
    std::fs::File::create(&filename).unwrap().set_len(mib * MIB).unwrap();
    let disk = json!({"name": "Uring0", "filename": filename, "block_size": block_size});
    target.call("bdev_uring_create", disk).unwrap();
    serve(&target, "Uring0");
    target
}

fn serve(target: &Target, bdev: &str) {
    let endpoint = json!({"name": "vfu.0", "bdev_name": bdev, "num_queues": 2, "qsize": 256});
    target.call("vfu_virtio_create_blk_endpoint", endpoint).unwrap();
}

/// A target with one NVMe controller over a disk of 64 MiB, and the controller's socket.
fn target_with_nvme(transport: serde_json::Value) -> (Target, PathBuf) {
    const NQN: &str = "nqn.2016-06.io.spdk:guest";
    let target = Target::start().unwrap();
    let disk = json!({"name": "Malloc0", "num_blocks": 64 * MIB / 512, "block_size": 512});
    target.call("bdev_malloc_create", disk).unwrap();
    target.call("nvmf_create_transport", transport).unwrap();
    target
        .call("nvmf_create_subsystem", json!({"nqn": NQN, "allow_any_host": true, "enable_nssr": true}))
        .unwrap();
    target.call("nvmf_subsystem_add_ns", json!({"nqn": NQN, "namespace": {"bdev_name": "Malloc0"}})).unwrap();
    let dir = target.endpoint("nvme");
    std::fs::create_dir(&dir).unwrap();
    let address = json!({"trtype": "VFIOUSER", "traddr": dir});
    target.call("nvmf_subsystem_add_listener", json!({"nqn": NQN, "listen_address": address})).unwrap();
    (target, dir.join("cntrl"))
}

/// nvme-cli's commands, resets under load, and verified data in every block size. nvme-cli maps the registers, which
/// needs `iomem=relaxed` beside a driver.
fn nvme_guest(processors: &str) -> Guest {
    let guest = Guest::new("nvme.sh").arg("--smp").arg(processors).env("QUEUES", processors);
    guest.arg("--append").arg("iomem=relaxed")
}

#[test]
fn nvme_guest_passes_nvme_cli_and_verifies_every_block_size_on_four_queues() {
    let (_target, socket) = target_with_nvme(json!({"trtype": "VFIOUSER"}));
    nvme_guest("4").disk(socket).run().unwrap().assert_passed();
}

#[test]
fn nvme_guest_passes_the_same_on_one_queue_with_shadow_doorbells() {
    let (_target, socket) = target_with_nvme(json!({"trtype": "VFIOUSER", "disable_mappable_bar0": true}));
    nvme_guest("1").disk(socket).env("SHADOW", "1").run().unwrap().assert_passed();
}

#[test]
fn nvme_guest_whose_memory_is_not_shared_verifies_its_data_by_the_pin() {
    let (_target, socket) = target_with_nvme(json!({"trtype": "VFIOUSER"}));
    let guest = Guest::new("io.sh").arg("--private-ram").arg("--append").arg("pci=nomsi").disk(socket);
    guest.env("IRQ", "pin").run().unwrap().assert_passed();
}

#[test]
fn guest_verifies_its_data_with_two_queues_and_checks_a_file_system() {
    let target = target_with_disk(256, 512);
    let guest = Guest::new("disk.sh")
        .disk(target.endpoint("vfu.0"))
        .env("SIZE_BYTES", &(256 * MIB).to_string())
        .env("BLOCK_SIZE", "512")
        .env("QUEUES", "2")
        .env("DISCARD", "1");
    guest.run().unwrap().assert_passed();
}

#[test]
fn guest_verifies_its_data_on_a_file_with_blocks_of_4096_bytes() {
    // mkfs.xfs refuses partitions below 300 MiB.
    let target = target_with_file(1024, 4096);
    let guest = Guest::new("disk.sh")
        .disk(target.endpoint("vfu.0"))
        .env("SIZE_BYTES", &(1024 * MIB).to_string())
        .env("BLOCK_SIZE", "4096")
        .env("DISCARD", "1")
        .env("FILESYSTEMS", "ext4 xfs");
    guest.run().unwrap().assert_passed();
}

#[test]
fn data_is_still_there_after_the_guest_reboots_and_the_next_guest_finds_the_endpoint_ready() {
    let target = target_with_disk(128, 512);
    let reboot = || Guest::new("reboot.sh").arg("--allow-reboot").disk(target.endpoint("vfu.0"));
    reboot().run().unwrap().assert_passed();
    reboot().run().unwrap().assert_passed();
}

#[test]
fn guest_whose_memory_is_not_shared_verifies_its_data_by_the_pin() {
    let target = target_with_disk(64, 512);
    let guest = Guest::new("io.sh")
        .arg("--private-ram")
        .arg("--append")
        .arg("pci=nomsi")
        .disk(target.endpoint("vfu.0"))
        .env("IRQ", "pin");
    guest.run().unwrap().assert_passed();
}

#[test]
fn guest_sees_the_device_it_was_given() {
    let target = target_with_disk(64, 512);
    let guest = Guest::new("identify.sh")
        .disk(target.endpoint("vfu.0"))
        .env("PCI_ID", "1af4:1042")
        .env("SERIAL", "Malloc0");
    guest.run().unwrap().assert_passed();
}

#[test]
fn guest_verifies_its_data_on_packed_rings_with_four_queues_and_with_one_beside_another_disk() {
    let target = Target::start().unwrap();
    for (number, queues) in [(0, 4), (1, 1)] {
        let bdev = format!("Malloc{number}");
        let disk = json!({"name": bdev, "num_blocks": 128 * MIB / 512, "block_size": 512});
        target.call("bdev_malloc_create", disk).unwrap();
        let endpoint = json!({"name": format!("vfu.{number}"), "bdev_name": bdev, "num_queues": queues,
            "qsize": 256, "packed_ring": true});
        target.call("vfu_virtio_create_blk_endpoint", endpoint).unwrap();
    }
    let other = json!({"driver": "vfio-user-pci", "addr": "5.0",
        "socket": {"type": "unix", "path": target.endpoint("vfu.1")}});
    for (device, queues) in [("/dev/vda", "4"), ("/dev/vdb", "1")] {
        let guest = Guest::new("disk.sh")
            .arg("--smp")
            .arg("4")
            .disk(target.endpoint("vfu.0"))
            .arg("--device")
            .arg(&other.to_string())
            .env("DEVICE", device)
            .env("QUEUES", queues)
            .env("DISCARD", "1");
        guest.run().unwrap().assert_passed();
    }
}

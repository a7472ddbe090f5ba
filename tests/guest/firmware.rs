//! Firmware that boots a guest from a disk of ours, with drivers of its own: SeaBIOS' virtio-blk and OVMF's. On plain
//! shared RAM, as a VMM's defaults have it.

use std::process::Command;

use ringside_tests::{Guest, Target, root};
use serde_json::json;

/// Boots an image behind an endpoint: boot loader or UEFI kernel, initramfs and script come from there alone.
fn boots(bios: &str) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let scripts = root().join("scripts/guest");
    let made = Command::new(scripts.join("bootimage"))
        .arg("--script")
        .arg(scripts.join("tests/identify.sh"))
        .args(["--env", "PCI_ID=1af4:1042", "--env", "SERIAL=Aio0", "--output"])
        .arg(&image)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let target = Target::start().unwrap();
    target.call("bdev_aio_create", json!({"name": "Aio0", "filename": image, "block_size": 512})).unwrap();
    let endpoint = json!({"name": "vfu.0", "bdev_name": "Aio0", "num_queues": 2, "qsize": 128});
    target.call("vfu_virtio_create_blk_endpoint", endpoint).unwrap();
    let disk = json!({"driver": "vfio-user-pci", "addr": "4.0", "bootindex": 0,
        "socket": {"type": "unix", "path": target.endpoint("vfu.0")}});

    let guest = Guest::of_firmware(bios).arg("--device").arg(&disk.to_string());

    guest.run().unwrap().assert_passed();
}

#[test]
fn seabios_boots_a_guest_from_the_disk() {
    boots("seabios");
}

#[test]
fn ovmf_boots_a_guest_from_the_disk() {
    boots("ovmf");
}

//! What changes behind a disk while a guest works on it: its size, its end, SCSI targets that come and go.

use ringside_tests::{Guest, Target};
use serde_json::json;

use crate::MIB;

#[test]
fn guest_sees_each_kind_of_disk_as_it_is_its_new_size_and_its_end_under_load() {
    let target = Target::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    let mut content = vec![0; 4 << 20];
    content[..14].copy_from_slice(b"read-only disk");
    std::fs::write(&file, content).unwrap();
    let call = |method: &str, params| target.call(method, params).unwrap();
    let blocks = |mib: u64| mib * MIB / 512;
    call("bdev_malloc_create", json!({"name": "Cached0", "num_blocks": blocks(64), "block_size": 512}));
    call("bdev_null_create", json!({"name": "Null0", "num_blocks": blocks(64), "block_size": 512}));
    call("bdev_aio_create", json!({"name": "Fixed0", "filename": file, "block_size": 512, "readonly": true}));
    call("bdev_malloc_create", json!({"name": "Single0", "num_blocks": blocks(64), "block_size": 512}));
    let mut guest = Guest::new("changes.sh").arg("--smp").arg("4").env("NEW_SIZE", &blocks(96).to_string());
    for (address, bdev, queues) in
        [("4.0", "Cached0", 4), ("5.0", "Null0", 2), ("6.0", "Fixed0", 2), ("7.0", "Single0", 1)]
    {
        let endpoint = json!({"name": bdev, "bdev_name": bdev, "num_queues": queues, "qsize": 128});
        call("vfu_virtio_create_blk_endpoint", endpoint);
        guest = guest.disk_at(address, target.endpoint(bdev));
    }

    let mut guest = guest.start().unwrap();
    guest.wait_for("RESIZE NOW").unwrap();
    call("bdev_null_resize", json!({"name": "Null0", "new_size": 96}));
    guest.wait_for("REMOVE NOW").unwrap();
    call("bdev_malloc_delete", json!({"name": "Cached0"}));

    guest.finish().unwrap().assert_passed();
}

#[test]
fn scsi_guest_verifies_two_units_and_sees_a_third_come_and_go_under_load() {
    let target = Target::start().unwrap();
    let call = |method: &str, params| target.call(method, params).unwrap();
    call(
        "vfu_virtio_create_scsi_endpoint",
        json!({"name": "scsi", "num_io_queues": 2, "qsize": 128, "packed_ring": true}),
    );
    let add = |number: u8| {
        let params =
            json!({"name": "scsi", "scsi_target_num": number, "bdev_name": format!("Malloc{number}")});
        call("vfu_virtio_scsi_add_target", params);
    };
    for number in 0..3 {
        let bdev =
            json!({"name": format!("Malloc{number}"), "num_blocks": 64 * MIB / 512, "block_size": 512});
        call("bdev_malloc_create", bdev);
    }
    add(0);
    add(1);

    let mut guest = Guest::new("scsi-hotplug.sh").disk(target.endpoint("scsi")).start().unwrap();
    for round in 1..=2 {
        guest.wait_for(&format!("PLUG {round}")).unwrap();
        add(2);
        guest.wait_for(&format!("UNPLUG {round}")).unwrap();
        call("vfu_virtio_scsi_remove_target", json!({"name": "scsi", "scsi_target_num": 2}));
    }

    guest.finish().unwrap().assert_passed();
}

#[test]
fn scsi_commands_of_sg3_utils_do_what_they_say() {
    let target = Target::start().unwrap();
    let call = |method: &str, params| target.call(method, params).unwrap();
    call("bdev_malloc_create", json!({"name": "Malloc0", "num_blocks": 64 * MIB / 512, "block_size": 512}));
    call("vfu_virtio_create_scsi_endpoint", json!({"name": "scsi", "num_io_queues": 2, "qsize": 128}));
    call("vfu_virtio_scsi_add_target", json!({"name": "scsi", "scsi_target_num": 0, "bdev_name": "Malloc0"}));

    let guest = Guest::new("scsi.sh").disk(target.endpoint("scsi"));

    guest.run().unwrap().assert_passed();
}

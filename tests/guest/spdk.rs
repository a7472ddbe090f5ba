//! SPDK's own NVMe driver in a guest (`scripts/guest/spdk`), which polls. Linux' driver must find after it what it
//! has written.

use std::process::Command;

use ringside_tests::{Guest, root};
use serde_json::json;

use crate::target_with_nvme;

fn passes(transport: serde_json::Value) {
    let built = Command::new(root().join("scripts/guest/spdk/build")).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let (_target, socket) = target_with_nvme(transport);
    let mut guest = Guest::new("spdk.sh").disk(socket);
    for file in String::from_utf8(built.stdout).unwrap().lines() {
        guest = guest.arg("--file").arg(file);
    }
    guest.run().unwrap().assert_passed();
}

#[test]
fn spdk_driver_reads_and_writes_by_lists_resets_and_comes_back_by_mapped_doorbells() {
    passes(json!({"trtype": "VFIOUSER"}));
}

#[test]
fn spdk_driver_does_the_same_by_shadow_doorbells() {
    passes(json!({"trtype": "VFIOUSER", "disable_mappable_bar0": true}));
}

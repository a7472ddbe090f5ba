//! Every example of docs/rpc.md does what it shows: it succeeds on a target that has what it speaks of.

use ringside_tests::{Target, root};
use serde_json::{Value, json};

/// The requests in the reference, and the states in which their methods may be called.
fn examples() -> Vec<(Value, bool)> {
    let text = std::fs::read_to_string(root().join("docs/rpc.md")).unwrap();
    let sections = text.split("\n### ").skip(1);
    let example = |section: &str| {
        let (_, rest) = section.split_once("```json\n")?;
        let (request, _) = rest.split_once("\n```")?;
        let is_startup = section.contains("State: startup.\n");
        Some((serde_json::from_str(request).unwrap(), is_startup))
    };
    sections.filter_map(example).collect()
}

/// What the examples speak of.
fn furnish(target: &Target) {
    for file in ["disk.img", "other.img"] {
        std::fs::File::create(target.dir().join(file)).unwrap().set_len(64 << 20).unwrap();
    }
    for folder in ["old", "new"] {
        std::fs::create_dir(target.dir().join(folder)).unwrap();
    }
    let disk = |name: &str| json!({"name": name, "num_blocks": 8192, "block_size": 512});
    for nth in 0..8 {
        target.call("bdev_malloc_create", disk(&format!("Malloc{nth}"))).unwrap();
    }
    for name in ["Null0", "Null2"] {
        target.call("bdev_null_create", disk(name)).unwrap();
    }
    target.call("vfu_virtio_create_blk_endpoint", json!({"name": "vfu.0", "bdev_name": "Null0"})).unwrap();
}

/// What the example of a method speaks of besides.
fn furnish_for(target: &Target, method: &str) {
    let call = |method: &str, params: Value| drop(target.call(method, params).unwrap());
    let other = target.dir().join("other.img");
    let nqn = "nqn.2026-11.org.example:disk0";
    let delay = json!({"base_bdev_name": "Malloc2", "name": "Delay1", "avg_read_latency": 10, "p99_read_latency": 20,
        "avg_write_latency": 10, "p99_write_latency": 20});
    let raid = |name: &str, bases: [&str; 2]| json!({"name": name, "strip_size_kb": 64, "raid_level": "concat", "base_bdevs": bases});
    match method {
        // Deleting a bdev waits for those who have it open: the example's must be free.
        "bdev_null_delete" => call("vfu_virtio_delete_endpoint", json!({"name": "vfu.0"})),
        "bdev_null_resize" => {
            call("bdev_null_create", json!({"name": "Null1", "num_blocks": 2048, "block_size": 512}));
        }
        "bdev_aio_delete" | "bdev_aio_rescan" => {
            call("bdev_aio_create", json!({"filename": other, "name": "Aio1", "block_size": 512}));
        }
        "bdev_uring_delete" | "bdev_uring_rescan" => {
            call("bdev_uring_create", json!({"filename": other, "name": "Uring1", "block_size": 512}));
        }
        "bdev_delay_delete" | "bdev_delay_update_latency" => call("bdev_delay_create", delay),
        "bdev_error_delete" | "bdev_error_inject_error" | "bdev_error_resume_pending" => {
            call("bdev_error_create", json!({"base_name": "Malloc3"}));
        }
        "bdev_passthru_delete" => {
            call("bdev_passthru_create", json!({"base_bdev_name": "Malloc4", "name": "Pass1"}));
        }
        "bdev_split_delete" => call("bdev_split_create", json!({"base_bdev": "Malloc5", "split_count": 2})),
        "bdev_raid_delete" => call("bdev_raid_create", raid("Raid1", ["Malloc6", "Malloc7"])),
        "bdev_raid_remove_base_bdev" => call("bdev_raid_create", raid("Raid2", ["Malloc6", "Later"])),
        "bdev_raid_add_base_bdev" => {
            call("bdev_raid_create", raid("Raid3", ["Malloc7", "Later"]));
            call("bdev_raid_remove_base_bdev", json!({"name": "Malloc7"}));
        }
        "vfu_virtio_scsi_add_target" | "vfu_virtio_scsi_remove_target" => {
            call("vfu_virtio_create_scsi_endpoint", json!({"name": "scsi.0"}));
            let first = json!({"name": "scsi.0", "scsi_target_num": 0, "bdev_name": "Malloc1"});
            call("vfu_virtio_scsi_add_target", first);
        }
        nvmf if nvmf.starts_with("nvmf_") && nvmf != "nvmf_create_transport" => {
            call("nvmf_create_transport", json!({"trtype": "VFIOUSER"}));
            call("nvmf_create_subsystem", json!({"nqn": nqn, "ana_reporting": true}));
            call(
                "nvmf_subsystem_add_ns",
                json!({"nqn": nqn, "namespace": {"bdev_name": "Malloc7", "nsid": 1}}),
            );
            call("nvmf_subsystem_add_host", json!({"nqn": nqn, "host": "nqn.2026-11.org.example:host0"}));
            let address = json!({"trtype": "VFIOUSER", "traddr": target.dir().join("old")});
            call("nvmf_subsystem_add_listener", json!({"nqn": nqn, "listen_address": address}));
        }
        _ => {}
    }
}

/// A target for an example; one that examines bdevs by itself refuses to be told to.
fn target_for(method: &str, args: &[&str]) -> Target {
    if method != "bdev_examine" {
        return Target::start_with(args).unwrap();
    }
    let target = Target::start_with(&[args, &["--wait-for-rpc"]].concat()).unwrap();
    target.call("bdev_set_options", json!({"bdev_auto_examine": false})).unwrap();
    target.call("framework_start_init", Value::Null).unwrap();
    target
}

#[test]
fn every_example_of_the_reference_succeeds() {
    let examples = examples();
    let text = std::fs::read_to_string(root().join("docs/rpc.md")).unwrap();
    // One that takes no params, or needs none, is shown by its line on the command line.
    let with_params = text.split("\n### ").skip(1).filter(|section| section.contains("| yes |"));
    assert!(with_params.clone().count() > 50);
    with_params.for_each(|section| assert!(section.contains("```json"), "no example: {section}"));
    let runtime: Vec<&Value> =
        examples.iter().filter(|(_, is_startup)| !is_startup).map(|(request, _)| request).collect();
    for request in runtime {
        let locks = tempfile::tempdir().unwrap();
        let args = ["-m", "0x1", "--core-lock-dir", &locks.path().display().to_string()];
        let method = request["method"].as_str().unwrap();
        let target = target_for(method, &args);
        furnish(&target);
        furnish_for(&target, method);
        // Files of examples are in the folder of the target.
        let text = request["params"].to_string().replace("/path/to", &target.dir().display().to_string());
        let reply = target.call(method, serde_json::from_str(&text).unwrap());
        assert!(reply.is_ok(), "{request}: {reply:?}");
        // A target that ends while points are on leaves their file to be read.
        if method.starts_with("trace_") {
            target.call("trace_disable_tpoint_group", json!({"name": "all"})).unwrap();
        }
    }
    for (request, _) in examples.iter().filter(|(_, is_startup)| *is_startup) {
        let target = Target::start_with(&["--wait-for-rpc"]).unwrap();
        let reply = target.call(request["method"].as_str().unwrap(), request["params"].clone());
        assert!(reply.is_ok(), "{request}: {reply:?}");
    }
}

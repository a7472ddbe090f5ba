//! Configurations: loaded from files and by the clients, saved, and the same when they come back.

use std::path::PathBuf;

use ringside_tests::{Target, root};
use serde_json::{Value, json};

use crate::clients::{both, run, spdk, succeed};

/// What a target is told to make: bdevs of the types that need nothing from the machine, and endpoints in two folders.
fn furnish(target: &Target) {
    let other = target.dir().join("other");
    std::fs::create_dir_all(&other).unwrap();
    for (method, params) in [
        (
            "bdev_malloc_create",
            json!({"name": "M0", "num_blocks": 2048, "block_size": 512, "optimal_io_boundary": 8}),
        ),
        ("bdev_malloc_create", json!({"num_blocks": 256, "block_size": 4096, "physical_block_size": 4096})),
        ("bdev_null_create", json!({"name": "N0", "num_blocks": 2048, "block_size": 512})),
        (
            "bdev_null_create",
            json!({"name": "N1", "num_blocks": 2048, "block_size": 512,
            "uuid": "5f1b9c9e-0000-4000-8000-0123456789ab", "preferred_unmap_granularity": 8}),
        ),
        (
            "vfu_virtio_create_blk_endpoint",
            json!({"name": "z", "bdev_name": "M0", "num_queues": 2, "qsize": 256}),
        ),
        ("vfu_tgt_set_base_path", json!({"path": other})),
        (
            "vfu_virtio_create_blk_endpoint",
            json!({"name": "a", "bdev_name": "N0", "cpumask": "0x1",
            "doorbell": "trapped"}),
        ),
        ("vfu_tgt_set_base_path", json!({"path": target.dir()})),
    ] {
        target.call(method, params.clone()).unwrap_or_else(|error| panic!("{method} {params}: {error:?}"));
    }
}

/// Every method that makes something, with most of what it takes: stacks, files, services, NVMe and SCSI.
fn furnish_with_everything(target: &Target) {
    furnish(target);
    let dir = target.dir();
    for file in ["aio.img", "uring.img"] {
        std::fs::File::create(dir.join(file)).unwrap().set_len(8 << 20).unwrap();
    }
    std::fs::create_dir_all(dir.join("nvme")).unwrap();
    let disk = |name: &str| json!({"name": name, "num_blocks": 16_384, "block_size": 512});
    let nqn = "nqn.2026-11.org.example:disk";
    let address = json!({"trtype": "VFIOUSER", "traddr": dir.join("nvme")});
    let latencies = json!({"base_bdev_name": "B1", "name": "Delay", "avg_read_latency": 10, "p99_read_latency": 50,
        "avg_write_latency": 20, "p99_write_latency": 60, "uuid": "5f1b9c9e-0000-4000-8000-000000000001"});
    let mut calls = vec![
        (
            "bdev_aio_create",
            json!({"filename": dir.join("aio.img"), "name": "Aio", "block_size": 4096, "readonly": true}),
        ),
        ("bdev_uring_create", json!({"filename": dir.join("uring.img"), "name": "Uring", "block_size": 512})),
    ];
    calls.extend(["B1", "B2", "B3", "B4", "B5", "B6", "B7"].map(|name| ("bdev_malloc_create", disk(name))));
    calls.extend([
        ("bdev_delay_create", latencies),
        ("bdev_delay_update_latency", json!({"delay_bdev_name": "Delay", "latency_type": "p99_write", "latency_us": 70})),
        ("bdev_error_create", json!({"base_name": "B2", "uuid": "5f1b9c9e-0000-4000-8000-000000000002"})),
        ("bdev_passthru_create", json!({"base_bdev_name": "EE_B2", "name": "Pass"})),
        ("bdev_split_create", json!({"base_bdev": "B3", "split_count": 2, "split_size_mb": 2})),
        ("bdev_raid_set_options", json!({"process_window_size_kb": 2048})),
        ("bdev_raid_create", json!({"name": "Raid", "strip_size_kb": 32, "raid_level": "0", "base_bdevs": ["B4", "B5"]})),
        ("bdev_raid_create", json!({"name": "Rows", "strip_size_kb": 64, "raid_level": "concat", "base_bdevs": ["B6", "Later"]})),
        ("bdev_passthru_create", json!({"base_bdev_name": "NotYet", "name": "Waiting"})),
        ("bdev_set_qos_limit", json!({"name": "Raid", "rw_ios_per_sec": 20_000, "r_mbytes_per_sec": 100})),
        ("bdev_enable_histogram", json!({"name": "B7", "enable": true})),
        ("nvmf_create_transport", json!({"trtype": "VFIOUSER", "max_queue_depth": 128, "masked_oncs": ["nvmwzsv"]})),
        ("nvmf_create_subsystem", json!({"nqn": nqn, "serial_number": "RS1", "model_number": "Disk", "max_namespaces": 8,
            "ana_reporting": true, "min_cntlid": 2, "max_cntlid": 99})),
        ("nvmf_subsystem_add_ns", json!({"nqn": nqn, "namespace": {"bdev_name": "Raid", "nsid": 3, "eui64": "0102030405060708",
            "anagrpid": 2}})),
        ("nvmf_subsystem_add_ns", json!({"nqn": nqn, "namespace": {"bdev_name": "B7"}})),
        ("nvmf_subsystem_set_ns_ana_group", json!({"nqn": nqn, "nsid": 1, "anagrpid": 4})),
        ("nvmf_subsystem_add_host", json!({"nqn": nqn, "host": "nqn.2026-11.org.example:host"})),
        ("nvmf_subsystem_add_listener", json!({"nqn": nqn, "listen_address": address})),
        ("nvmf_subsystem_listener_set_ana_state", json!({"nqn": nqn, "listen_address": address, "ana_state": "inaccessible",
            "anagrpid": 2})),
        ("vfu_virtio_create_scsi_endpoint", json!({"name": "scsi", "num_io_queues": 2, "packed_ring": true})),
        ("vfu_virtio_scsi_add_target", json!({"name": "scsi", "scsi_target_num": 5, "bdev_name": "Pass"})),
        ("vfu_virtio_create_blk_endpoint", json!({"name": "blk", "bdev_name": "Delay", "num_queues": 3, "in_order": true,
            "coalesce_count": 8, "coalesce_us": 50, "disable_msix": true})),
        ("reactor_set_mode", json!({"mode": "adaptive", "spin_us": 75})),
        ("framework_set_scheduler", json!({"name": "dynamic", "period": 400_000, "load_limit": 30})),
    ]);
    for (method, params) in calls {
        target.call(method, params.clone()).unwrap_or_else(|error| panic!("{method} {params}: {error:?}"));
    }
}

/// The thread of an endpoint.
fn thread(target: &Target, name: &str) -> u64 {
    let stats = target.call("thread_get_stats", Value::Null).unwrap();
    let threads = stats["threads"].as_array().unwrap().iter();
    threads.clone().find(|thread| thread["name"] == name).unwrap()["id"].as_u64().unwrap()
}

fn saved(target: &Target) -> String {
    succeed(&spdk("spdk-rpc"), target, "save_config", "")
}

/// Writes a configuration where the target will find it.
fn file(target: &Target, text: &str) -> PathBuf {
    let path = target.dir().join("config.json");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn saved_configuration_comes_back_to_the_byte() {
    let mut target = Target::start().unwrap();
    furnish(&target);
    let before = saved(&target);
    let path = file(&target, &before);

    target.restart_with(&["-c", path.to_str().unwrap()]).unwrap();

    assert_eq!(saved(&target), before);
    assert!(target.endpoint("z").exists() && target.endpoint("other/a").exists());
    assert_eq!(succeed(&both()[1], &target, "save_config", ""), before, "both clients write the same");
}

#[test]
fn disk_whose_bdev_is_gone_does_not_keep_the_others_from_coming_back() {
    let mut target = Target::start().unwrap();
    let disk = |name: &str| json!({"name": name, "num_blocks": 2048, "block_size": 512});
    let unit = |target: u8, bdev: &str| json!({"name": "scsi", "scsi_target_num": target, "bdev_name": bdev});
    for (method, params) in [
        ("bdev_malloc_create", disk("Stays")),
        ("bdev_malloc_create", disk("Goes")),
        ("vfu_virtio_create_blk_endpoint", json!({"name": "without", "bdev_name": "Goes"})),
        ("vfu_virtio_create_blk_endpoint", json!({"name": "with", "bdev_name": "Stays"})),
        ("vfu_virtio_create_scsi_endpoint", json!({"name": "scsi"})),
        ("vfu_virtio_scsi_add_target", unit(0, "Goes")),
        ("vfu_virtio_scsi_add_target", unit(1, "Goes")),
        ("bdev_malloc_delete", json!({"name": "Goes"})),
        ("bdev_null_create", disk("New")),
    ] {
        target.call(method, params.clone()).unwrap_or_else(|error| panic!("{method} {params}: {error:?}"));
    }
    // Its place is free when its reactor has heard of it.
    target.wait_until(|| target.call("vfu_virtio_scsi_add_target", unit(0, "New")).is_ok()).unwrap();
    let before = saved(&target);
    assert!(
        !before.contains("Goes") && before.matches("vfu_virtio_scsi_add_target").count() == 1,
        "{before}"
    );
    let path = file(&target, &before);

    target.restart_with(&["-c", path.to_str().unwrap()]).unwrap();

    assert_eq!(saved(&target), before);
    assert!(target.endpoint("with").exists() && !target.endpoint("without").exists());
}

#[test]
fn everything_that_can_be_made_comes_back_to_the_byte() {
    let mut target = Target::start().unwrap();
    furnish_with_everything(&target);
    let before = saved(&target);
    for word in [
        "bdev_aio_create",
        "bdev_uring_create",
        "bdev_delay_create",
        "bdev_error_create",
        "bdev_passthru_create",
        "bdev_split_create",
        "bdev_raid_create",
        "bdev_set_qos_limit",
        "bdev_enable_histogram",
        "nvmf_create_transport",
        "nvmf_create_subsystem",
        "nvmf_subsystem_add_ns",
        "nvmf_subsystem_add_host",
        "nvmf_subsystem_add_listener",
        "vfu_virtio_create_scsi_endpoint",
        "vfu_virtio_scsi_add_target",
        "reactor_set_mode",
        "framework_set_scheduler",
    ] {
        assert!(before.contains(word), "{word} is not saved");
    }
    let path = file(&target, &before);

    target.restart_with(&["-c", path.to_str().unwrap()]).unwrap();
    assert_eq!(saved(&target), before, "by the file");

    for client in both() {
        target.restart_with(&[]).unwrap();
        succeed(&client, &target, "load_config", &before);
        assert_eq!(saved(&target), before, "by {}", client.display());
    }
    let state = target.dir().join("state");
    target.restart_with(&["-c", path.to_str().unwrap(), "--state-dir", state.to_str().unwrap()]).unwrap();
    assert_eq!(saved(&target), before, "by the file, into the journal");
    target.crash().unwrap();
    target.restart_with(&["--state-dir", state.to_str().unwrap()]).unwrap();
    assert_eq!(saved(&target), before, "by the journal");
}

#[test]
fn modes_and_places_that_were_set_by_rpc_come_back() {
    let mut target = Target::start_with(&["-m", "0x3"]).unwrap();
    let disk = json!({"name": "N", "num_blocks": 2048, "block_size": 512});
    target.call("bdev_null_create", disk).unwrap();
    target.call("vfu_virtio_create_blk_endpoint", json!({"name": "e", "bdev_name": "N"})).unwrap();
    assert!(!saved(&target).contains("reactor_set_mode"), "the flags say it");
    target.call("thread_set_cpumask", json!({"id": thread(&target, "e"), "cpumask": "0x2"})).unwrap();
    target.call("reactor_set_mode", json!({"mode": "interrupt", "lcore": 1})).unwrap();
    let before = saved(&target);
    let config: Value = serde_json::from_str(&before).unwrap();
    assert_eq!(config["subsystems"][0]["config"][1]["params"], json!({"mode": "interrupt", "lcore": 1}));
    let path = file(&target, &before);

    target.restart_with(&["-m", "0x3", "-c", path.to_str().unwrap()]).unwrap();

    assert_eq!(saved(&target), before);
    let endpoints = target.call("vfu_get_endpoints", Value::Null).unwrap();
    assert_eq!(endpoints[0]["cpumask"], "2");
}

#[test]
fn both_clients_load_what_both_have_saved() {
    let mut target = Target::start().unwrap();
    furnish(&target);
    let before = saved(&target);
    for client in both() {
        target.restart_with(&[]).unwrap();
        succeed(&client, &target, "load_config", &before);
        assert_eq!(saved(&target), before);
        target.restart_with(&["--wait-for-rpc"]).unwrap();
        succeed(&client, &target, "load_config", &before);
        assert_eq!(saved(&target), before);
        assert_eq!(
            run(&client, &target, "load_config", &before).status.code(),
            Some(1),
            "it is there already"
        );
    }
}

#[test]
fn both_clients_save_and_load_single_subsystems() {
    let mut target = Target::start().unwrap();
    furnish(&target);
    let [theirs, ours] = both();
    let mut printed = Vec::new();
    for line in [
        "save_config -i -1",
        "save_config -i 4",
        "save_config -s bdev",
        "save_config -s vfio_user_target --with-batches",
        "save_subsystem_config -n bdev",
        "framework_get_subsystems",
        "framework_get_config bdev",
    ] {
        let text = succeed(&theirs, &target, line, "");
        assert_eq!(succeed(&ours, &target, line, ""), text, "{line}");
        printed.push(text);
    }
    let unknown = target.call("framework_get_config", json!({"name": "x"})).unwrap_err();
    assert_eq!((unknown.code, unknown.message.as_str()), (-32602, "Subsystem 'x' not found"));
    for client in both() {
        target.restart_with(&[]).unwrap();
        succeed(&client, &target, "load_subsystem_config", &printed[4]);
        assert_eq!(succeed(&theirs, &target, "save_subsystem_config -n bdev", ""), printed[4]);
    }
}

#[test]
fn load_config_refuses_methods_that_do_not_exist_before_it_calls_any() {
    let target = Target::start().unwrap();
    let config = json!({"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_null_create", "params": {"name": "N", "num_blocks": 8, "block_size": 512}},
        {"method": "bdev_no_such_create"}]}]});
    for client in both() {
        let output = run(&client, &target, "load_config", &config.to_string());
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(target.call("bdev_get_bdevs", Value::Null), Ok(json!([])));
    }
}

#[test]
fn order_of_the_sections_does_not_matter() {
    let mut target = Target::start().unwrap();
    furnish(&target);
    let before = saved(&target);
    let mut config: Value = serde_json::from_str(&before).unwrap();
    config["subsystems"].as_array_mut().unwrap().reverse();
    let path = file(&target, &format!("// reversed\n{config}"));

    target.restart_with(&["-c", path.to_str().unwrap()]).unwrap();

    assert_eq!(saved(&target), before);
}

#[test]
fn entries_that_fail_end_the_target_unless_told_otherwise() {
    let mut target = Target::start().unwrap();
    let config = json!({"subsystems": [
        {"subsystem": "sock", "config": [{"method": "sock_impl_set_options", "params": {"impl_name": "posix"}}]},
        {"subsystem": "bdev", "config": [
            {"method": "bdev_null_create", "params": {"name": "N", "num_blocks": 0, "block_size": 512}},
            {"method": "bdev_null_create", "params": {"name": "After", "num_blocks": 8, "block_size": 512}}]}]});
    let path = file(&target, &config.to_string());
    let args = ["-c", path.to_str().unwrap(), "--json-ignore-init-errors"];
    let dir = tempfile::tempdir().unwrap();
    let (status, said) = Target::run_to_end(dir.path(), &args[..2]).unwrap();
    assert_eq!(status.code(), Some(234), "{said}");

    target.restart_with(&args).unwrap();

    let bdevs = target.call("bdev_get_bdevs", Value::Null).unwrap();
    assert_eq!(bdevs.as_array().map(Vec::len), Some(1));
    assert_eq!(bdevs[0]["name"], "After");
    target.wait_until(|| target.log().contains("skipping a call of a subsystem that is not here")).unwrap();
}

#[test]
fn rest_of_a_configuration_is_loaded_when_the_target_is_started_by_rpc() {
    let mut target = Target::start().unwrap();
    furnish(&target);
    let before = saved(&target);
    let path = file(&target, &before);

    target.restart_with(&["-c", path.to_str().unwrap(), "--wait-for-rpc"]).unwrap();

    assert_eq!(target.call("bdev_get_bdevs", Value::Null).unwrap_err().code, -1);
    target.call("framework_start_init", Value::Null).unwrap();
    assert_eq!(saved(&target), before);
}

#[test]
fn wrong_entry_after_a_start_by_rpc_ends_the_target_too() {
    let mut target = Target::start().unwrap();
    let config = json!({"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_null_delete", "params": {"name": "Missing"}}]}]});
    let path = file(&target, &config.to_string());
    target.restart_with(&["-c", path.to_str().unwrap(), "--wait-for-rpc"]).unwrap();

    assert!(target.call("framework_start_init", Value::Null).is_err());

    // The low byte of -ENODEV.
    assert_eq!(target.wait().unwrap().code(), Some(237));
}

#[test]
fn configuration_that_spdk_has_saved_loads() {
    let config = root().join("tests/control/spdk_save_config.json");
    let target = Target::start_with(&["-c", config.to_str().unwrap()]).unwrap();
    let bdevs = target.call("bdev_get_bdevs", Value::Null).unwrap();
    let names: Vec<&Value> = bdevs.as_array().unwrap().iter().map(|bdev| &bdev["name"]).collect();
    assert_eq!(names, ["Malloc0", "Null0"]);
    let subsystems = target.call("nvmf_get_subsystems", Value::Null).unwrap();
    assert!(subsystems.as_array().unwrap().iter().any(|one| one["nqn"] == "nqn.2016-06.io.spdk:cnode1"));
    assert_eq!(bdevs[0]["uuid"], "4f9bd3b5-9d80-4b24-9d54-7d0d2a6ad3f1");
}

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
    assert_eq!(bdevs[0]["uuid"], "4f9bd3b5-9d80-4b24-9d54-7d0d2a6ad3f1");
}

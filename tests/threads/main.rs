//! Queues on several reactors: dealt, moved under load, and found again by SPDK's view of threads.

#![expect(clippy::unwrap_used, reason = "all of it is a test, the steps that tests share too")]

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use ringside_tests::{Target, binary};
use serde_json::{Value, json};

/// A target on two cores with one disk of 32 MiB behind `vfu.0`.
fn target() -> Target {
    let target = Target::start_with(&["-m", "0x3"]).unwrap();
    target
        .call("bdev_malloc_create", json!({"name": "Malloc0", "num_blocks": 65536, "block_size": 512}))
        .unwrap();
    let endpoint = json!({"name": "vfu.0", "bdev_name": "Malloc0", "num_queues": 4, "qsize": 64});
    target.call("vfu_virtio_create_blk_endpoint", endpoint).unwrap();
    target
}

/// Reads and writes with verification on two queues, for so many seconds.
fn load(target: &Target, seconds: u32) -> Child {
    let mut command = Command::new(binary("ringside-bench"));
    command.args(["load", "--rw", "randrw", "--depth", "16", "--queues", "2", "--verify", "--warmup", "0"]);
    command.args(["--seconds", &seconds.to_string()]).arg("--socket").arg(target.endpoint("vfu.0"));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn thread_id(target: &Target, name: &str) -> u64 {
    let reactors = target.call("framework_get_reactors", Value::Null).unwrap();
    let threads =
        reactors["reactors"].as_array().unwrap().iter().flat_map(|r| r["lw_threads"].as_array().unwrap());
    threads.clone().find(|thread| thread["name"] == name).unwrap()["id"].as_u64().unwrap()
}

fn cores_of(target: &Target, name: &str) -> Vec<u64> {
    let reactors = target.call("framework_get_reactors", Value::Null).unwrap();
    let has = |reactor: &&Value| reactor["lw_threads"].as_array().unwrap().iter().any(|t| t["name"] == name);
    reactors["reactors"]
        .as_array()
        .unwrap()
        .iter()
        .filter(has)
        .map(|r| r["lcore"].as_u64().unwrap())
        .collect()
}

#[test]
fn queues_are_dealt_to_all_reactors_and_moved_under_load_without_a_loss() {
    let target = target();
    let id = thread_id(&target, "vfu.0");
    let load = load(&target, 4);
    std::thread::sleep(Duration::from_millis(1000));
    assert_eq!(cores_of(&target, "vfu.0"), [0, 1]);
    for mask in ["0x1", "0x2", "0x3", "0x2", "0x1", "0x3"].into_iter().cycle().take(40) {
        target.call("thread_set_cpumask", json!({"id": id, "cpumask": mask})).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    // With nothing of it left on the first core, the endpoint's own poller included.
    target.call("thread_set_cpumask", json!({"id": id, "cpumask": "0x2"})).unwrap();
    let limit = Instant::now() + Duration::from_secs(30);
    while cores_of(&target, "vfu.0") != [1] {
        assert!(Instant::now() < limit, "it stays where it was: {:?}", cores_of(&target, "vfu.0"));
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = load.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn queues_of_a_controller_are_moved_under_load_without_a_loss() {
    let target = target();
    let traddr = target.dir().join("nvme");
    std::fs::create_dir(&traddr).unwrap();
    let (nqn, name) = ("nqn.2026-11.org.example:disk", format!("nvmf_{}", traddr.display()));
    for (method, params) in [
        ("bdev_malloc_create", json!({"name": "Malloc1", "num_blocks": 65536, "block_size": 512})),
        ("nvmf_create_transport", json!({"trtype": "VFIOUSER"})),
        ("nvmf_create_subsystem", json!({"nqn": nqn, "allow_any_host": true})),
        ("nvmf_subsystem_add_ns", json!({"nqn": nqn, "namespace": {"bdev_name": "Malloc1"}})),
        (
            "nvmf_subsystem_add_listener",
            json!({"nqn": nqn, "listen_address": {"trtype": "VFIOUSER", "traddr": traddr}}),
        ),
    ] {
        target.call(method, params).unwrap();
    }
    // The listener's reactor hears of it a little later than its client.
    target.wait_until(|| !cores_of(&target, &name).is_empty()).unwrap();
    let id = thread_id(&target, &name);
    let mut command = Command::new(binary("ringside-bench"));
    command.args(["load", "--nvme", "--rw", "randrw", "--depth", "16", "--queues", "2", "--verify"]);
    command.args(["--warmup", "0", "--seconds", "3", "--socket"]).arg(traddr.join("cntrl"));
    let load = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    target.wait_until(|| cores_of(&target, &name) == [0, 1]).unwrap();
    let qpairs = || target.call("nvmf_subsystem_get_qpairs", json!({"nqn": nqn})).unwrap();
    for mask in ["0x1", "0x2", "0x3", "0x2", "0x1"].into_iter().cycle().take(20) {
        target.call("thread_set_cpumask", json!({"id": id, "cpumask": mask})).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    target.wait_until(|| cores_of(&target, &name) == [0]).unwrap();
    assert_eq!(qpairs().as_array().map(Vec::len), Some(3), "{}", qpairs());
    let output = load.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn controllers_are_made_where_the_mask_of_poll_groups_lets_them() {
    let target = Target::start_with(&["-m", "0x3", "--wait-for-rpc"]).unwrap();
    let (traddr, nqn) = (target.dir().join("nvme"), "nqn.2026-11.org.example:disk");
    std::fs::create_dir(&traddr).unwrap();
    for (method, params) in [
        ("nvmf_set_config", json!({"poll_groups_mask": "0x2"})),
        ("framework_start_init", Value::Null),
        ("nvmf_create_transport", json!({"trtype": "VFIOUSER"})),
        ("nvmf_create_subsystem", json!({"nqn": nqn, "allow_any_host": true})),
        (
            "nvmf_subsystem_add_listener",
            json!({"nqn": nqn, "listen_address": {"trtype": "VFIOUSER", "traddr": traddr}}),
        ),
    ] {
        target.call(method, params).unwrap();
    }
    let name = format!("nvmf_{}", traddr.display());
    target.wait_until(|| !cores_of(&target, &name).is_empty()).unwrap();
    assert_eq!(cores_of(&target, &name), [1]);
}

#[test]
fn modes_are_changed_under_load_without_a_loss() {
    let target = target();
    let load = load(&target, 3);
    for mode in ["poll", "interrupt", "adaptive"].into_iter().cycle().take(30) {
        target.call("reactor_set_mode", json!({"mode": mode})).unwrap();
        std::thread::sleep(Duration::from_millis(80));
    }
    let output = load.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn endpoint_is_deleted_and_made_again_under_load() {
    let target = target();
    for _ in 0..10 {
        let load = load(&target, 30);
        std::thread::sleep(Duration::from_millis(200));
        target.call("vfu_virtio_delete_endpoint", json!({"name": "vfu.0"})).unwrap();
        assert!(!load.wait_with_output().unwrap().status.success(), "its disk is gone");
        let endpoint = json!({"name": "vfu.0", "bdev_name": "Malloc0", "num_queues": 4, "qsize": 64});
        target.call("vfu_virtio_create_blk_endpoint", endpoint).unwrap();
    }
    assert!(load(&target, 1).wait_with_output().unwrap().status.success());
}

#[test]
fn dynamic_scheduler_is_set_and_read_back() {
    let target = target();
    let set = json!({"name": "dynamic", "period": 50_000, "core_busy": 60});
    target.call("framework_set_scheduler", set).unwrap();
    let settings = target.call("framework_get_scheduler", Value::Null).unwrap();
    assert_eq!(settings["scheduler_name"], "dynamic");
    assert_eq!(settings["scheduler_period"], 50_000);
    assert_eq!(settings["core_busy"], 60);
    let output = load(&target, 2).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn bad_schedulers_masks_periods_and_threads_are_refused() {
    let target = target();
    let id = thread_id(&target, "vfu.0");
    for (method, params, code) in [
        ("framework_set_scheduler", json!({"name": "none-such"}), -32602),
        ("framework_set_scheduler", json!({"name": "dynamic", "period": 1}), -32602),
        ("framework_set_scheduler", json!({"name": "dynamic", "period": u64::MAX}), -32602),
        ("framework_set_scheduler", json!({"name": "dynamic", "core_busy": 101}), -32602),
        ("framework_set_scheduler", json!({"name": "static", "mappings": "1-2"}), -32602),
        ("thread_set_cpumask", json!({"id": id, "cpumask": "0x8000"}), -22),
        ("thread_set_cpumask", json!({"id": id, "cpumask": "0"}), -22),
        ("thread_set_cpumask", json!({"id": id, "cpumask": "zz"}), -22),
        ("thread_set_cpumask", json!({"id": 4_000_000, "cpumask": "0x1"}), -2),
        ("reactor_set_mode", json!({"mode": "sometimes"}), -32602),
        ("reactor_set_mode", json!({"mode": "poll", "lcore": 77}), -32602),
    ] {
        assert_eq!(
            target.call(method, params.clone()).map_err(|error| error.code),
            Err(code),
            "{method} {params}"
        );
    }
}

#[test]
fn time_of_requests_is_told_by_stage_while_they_run() {
    let target = target();
    let mut load = load(&target, 60);
    let stages = || {
        let answer = target.call("vfu_get_stages", json!({"name": "vfu.0"})).unwrap();
        answer["stages"].as_array().unwrap().first().cloned()
    };
    let seen = (0..1000).find_map(|_| {
        std::thread::sleep(Duration::from_millis(50));
        stages()
    });
    load.kill().unwrap();
    load.wait().unwrap();

    let seen = seen.unwrap();
    assert_eq!(seen["name"], "vfu.0");
    assert!(seen["passes"].as_u64() > Some(0) && seen["taken"].as_u64() > Some(0), "{seen}");
    let each = seen["ns_per_request"].as_object().unwrap();
    let names = ["pickup", "translate", "submit", "backend", "complete", "interrupt"];
    let sum: f64 = names.iter().map(|name| each[*name].as_f64().unwrap()).sum();
    assert!(each["pickup"].as_f64() > Some(0.0), "{seen}");
    // Each is rounded to a tenth.
    assert!((sum - each["sum"].as_f64().unwrap()).abs() < 1.0, "{seen}");
    let nobody = target.call("vfu_get_stages", json!({"name": "nobody"}));
    assert!(nobody.is_err());
}

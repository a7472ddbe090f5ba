//! The target driven by SPDK's own client (`spdk-rpc`, installed by `scripts/test`) and by `scripts/rpc.py`.

mod nvmf;

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use ringside_tests::{RpcError, Target, root};
use rustix::process::Signal;
use serde_json::{Value, json};

/// SPDK's client; its path comes from `scripts/test`.
fn spdk_rpc() -> PathBuf {
    let default = root().join(".cache/spdk-26.9/bin/spdk-rpc");
    std::env::var_os("SPDK_RPC").map_or(default, PathBuf::from)
}

fn run(client: PathBuf, target: &Target, line: &str) -> Output {
    let mut command = Command::new(client);
    command.arg("-s").arg(target.rpc_socket()).args(line.split_whitespace());
    command.output().expect("the client starts")
}

/// Runs a line by SPDK's client and by ours; both must end and print alike. `{}` in the line is 1 and 2.
fn both(target: &Target, line: &str) -> (i32, String) {
    let theirs = run(spdk_rpc(), target, &line.replace("{}", "1"));
    let ours = run(root().join("scripts/rpc.py"), target, &line.replace("{}", "2"));
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(theirs.status.code(), ours.status.code(), "{line}: {}", String::from_utf8_lossy(&ours.stderr));
    (theirs.status.code().unwrap_or(-1), text(&theirs))
}

/// As [`both`], for a line that must succeed.
fn succeed(target: &Target, line: &str) -> String {
    let (status, printed) = both(target, line);
    assert_eq!(status, 0, "{line}: {printed}");
    printed.trim_end().to_owned()
}

fn error(code: i64, message: &str) -> Result<Value, RpcError> {
    Err(RpcError { code, message: message.to_owned() })
}

#[test]
fn both_clients_drive_every_method() {
    let target = Target::start().unwrap();
    assert!(succeed(&target, "spdk_get_version").contains("Ringside"));
    assert!(succeed(&target, "rpc_get_methods").contains("vfu_virtio_create_blk_endpoint"));
    assert!(succeed(&target, "framework_get_reactors").contains("lw_threads"));
    succeed(&target, "framework_wait_init");
    assert!(succeed(&target, "framework_monitor_context_switch --monitor").contains("true"));
    succeed(&target, "framework_set_scheduler dynamic -p 500000 --core-busy 90");
    assert!(succeed(&target, "framework_get_scheduler").contains("dynamic"));
    succeed(&target, "thread_set_cpumask -i 1 -m 0x1");
    assert_eq!(succeed(&target, "bdev_malloc_create -b M{} 16 512"), "M1");
    assert_eq!(succeed(&target, "bdev_null_create N{} 1024 4096"), "N1");
    assert!(succeed(&target, "bdev_get_bdevs -b M{}").contains("Malloc disk"));
    succeed(&target, &format!("vfu_tgt_set_base_path {}", target.dir().display()));
    succeed(
        &target,
        "vfu_virtio_create_blk_endpoint vfu.{} --bdev-name M{} --num-queues 2 --qsize 256 --cpumask 0x1",
    );
    assert!(target.endpoint("vfu.1").exists() && target.endpoint("vfu.2").exists());
    succeed(&target, "vfu_virtio_delete_endpoint vfu.{}");
    assert!(!target.endpoint("vfu.1").exists());
    succeed(&target, "bdev_malloc_delete M{}");
    succeed(&target, "bdev_null_delete N{}");
    assert_eq!(target.call("bdev_get_bdevs", Value::Null), Ok(json!([])));
}

#[test]
fn clients_exit_with_one_when_the_target_refuses() {
    let target = Target::start().unwrap();
    let (status, printed) = both(&target, "bdev_malloc_delete Missing");
    assert_eq!(status, 1);
    assert!(printed.contains("No such device"), "{printed}");
}

#[test]
fn bdevs_are_described_with_every_field() {
    let target = Target::start().unwrap();
    target.call("bdev_null_create", json!({"name": "Null0", "num_blocks": 2048, "block_size": 512})).unwrap();

    let bdevs = target.call("bdev_get_bdevs", Value::Null).unwrap();

    for field in [
        "name",
        "aliases",
        "product_name",
        "block_size",
        "num_blocks",
        "uuid",
        "assigned_rate_limits",
        "claimed",
        "zoned",
        "supported_io_types",
        "driver_specific",
    ] {
        assert!(!bdevs[0][field].is_null(), "{field} is missing");
    }
    let uuid = bdevs[0]["uuid"].as_str().unwrap().to_owned();
    assert_eq!(target.call("bdev_get_bdevs", json!({"name": uuid})).unwrap(), bdevs);
}

#[test]
fn errors_have_the_codes_and_texts_of_spdk() {
    let target = Target::start().unwrap();
    let null = json!({"name": "Null0", "num_blocks": 2048, "block_size": 512});
    target.call("bdev_null_create", null.clone()).unwrap();
    let endpoint = |name: &str, bdev: &str| json!({"name": name, "bdev_name": bdev});
    target.call("vfu_virtio_create_blk_endpoint", endpoint("vfu.0", "Null0")).unwrap();
    let decode = error(-32603, "spdk_json_decode_object failed");
    let cases = [
        ("no_such_method", Value::Null, error(-32601, "Method not found")),
        ("bdev_null_create", null, error(-17, "File exists")),
        (
            "bdev_null_create",
            json!({"name": "x", "num_blocks": 1, "block_size": 512, "colour": 1}),
            decode.clone(),
        ),
        ("bdev_null_create", json!({"name": "x", "num_blocks": 1}), decode.clone()),
        ("bdev_null_create", json!({"name": "x", "num_blocks": "1", "block_size": 512}), decode.clone()),
        ("bdev_null_create", json!({"name": "x", "num_blocks": 1, "block_size": null}), decode),
        ("bdev_malloc_create", json!({"num_blocks": 1, "block_size": 100}), error(-22, "Invalid argument")),
        ("bdev_get_bdevs", json!({"name": "Missing"}), error(-19, "No such device")),
        ("bdev_get_bdevs", json!({"name": "Missing", "timeout": 20}), error(-110, "Connection timed out")),
        ("bdev_null_delete", json!({"name": "Missing"}), error(-19, "No such device")),
        ("spdk_get_version", json!({}), error(-32602, "spdk_get_version method requires no parameters")),
        ("vfu_virtio_create_blk_endpoint", endpoint("vfu.0", "Null0"), error(-32602, "File exists")),
        ("vfu_virtio_create_blk_endpoint", endpoint("vfu.1", "Missing"), error(-32602, "No such device")),
        (
            "vfu_virtio_create_blk_endpoint",
            endpoint(&"x".repeat(63), "Null0"),
            error(-32602, "File name too long"),
        ),
        (
            "vfu_virtio_create_blk_endpoint",
            json!({"name": "vfu.1", "bdev_name": "Null0", "cpumask": "0x8000"}),
            error(-32602, "Operation not permitted"),
        ),
        (
            "vfu_virtio_create_blk_endpoint",
            json!({"name": "vfu.1", "bdev_name": "Null0", "num_queues": 65536}),
            error(-32602, "Invalid argument"),
        ),
        ("vfu_virtio_create_blk_endpoint", json!({"name": "vfu.1"}), error(-32602, "Invalid argument")),
        (
            "vfu_virtio_delete_endpoint",
            json!({"name": "Missing"}),
            error(-32602, "No such file or directory"),
        ),
    ];
    for (method, params, expected) in cases {
        assert_eq!(target.call(method, params.clone()), expected, "{method} {params}");
    }
}

#[test]
fn endpoint_whose_socket_cannot_be_made_is_refused_and_told() {
    let target = Target::start().unwrap();
    target.call("bdev_null_create", json!({"name": "Null0", "num_blocks": 2048, "block_size": 512})).unwrap();
    target.call("vfu_tgt_set_base_path", json!({"path": "/proc"})).unwrap();
    let refused =
        target.call("vfu_virtio_create_blk_endpoint", json!({"name": "vfu.0", "bdev_name": "Null0"}));
    assert_eq!(refused.unwrap_err().code, -32602);
    target.call("vfu_tgt_set_base_path", json!({"path": target.dir()})).unwrap();
    target.call("vfu_virtio_create_blk_endpoint", json!({"name": "vfu.0", "bdev_name": "Null0"})).unwrap();
}

#[test]
fn target_waits_for_the_start_when_told_to() {
    let target = Target::start_with(&["--wait-for-rpc"]).unwrap();
    let refused = target.call("bdev_get_bdevs", Value::Null).unwrap_err();
    assert_eq!(refused.code, -1);
    assert!(refused.message.contains("framework_start_init"), "{}", refused.message);

    target.call("framework_start_init", Value::Null).unwrap();

    assert_eq!(target.call("bdev_get_bdevs", Value::Null), Ok(json!([])));
    assert_eq!(target.call("framework_start_init", Value::Null).unwrap_err().code, -1);
}

#[test]
fn signals_and_the_kill_method_stop_the_target_in_order() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut target = Target::start().unwrap();
        target.signal(signal).unwrap();
        assert_eq!(target.wait().unwrap().code(), Some(0));
        assert!(!target.rpc_socket().exists());
    }
    let mut target = Target::start().unwrap();
    assert_eq!(run(spdk_rpc(), &target, "spdk_kill_instance SIGTERM").status.code(), Some(0));
    assert_eq!(target.wait().unwrap().code(), Some(0));
}

#[test]
fn second_target_on_the_same_socket_is_refused_and_a_dead_ones_socket_is_taken_over() {
    let mut target = Target::start().unwrap();
    let (status, said) = target.start_rival().unwrap();
    assert!(!status.success());
    assert!(said.contains("in use. Specify another."), "{said}");

    target.crash_and_restart().unwrap();

    assert!(target.call("spdk_get_version", Value::Null).is_ok());
}

#[test]
fn core_that_does_not_exist_is_refused_by_name() {
    let error = Target::start_with(&["-m", "[999]"]).err().unwrap().to_string();
    assert!(error.contains("core 999"), "{error}");
}

#[test]
fn scsi_targets_come_and_go_by_both_clients_and_wrong_ones_are_refused() {
    let target = Target::start().unwrap();
    succeed(&target, "bdev_malloc_create -b Malloc{} 16 512");
    succeed(&target, "vfu_virtio_create_scsi_endpoint scsi{} --num-io-queues 2 --qsize 256");
    succeed(&target, "vfu_virtio_scsi_add_target scsi{} --scsi-target-num 0 --bdev-name Malloc{}");
    let add = |number: u8, bdev: &str| {
        let params = json!({"name": "scsi1", "scsi_target_num": number, "bdev_name": bdev});
        target.call("vfu_virtio_scsi_add_target", params)
    };
    assert_eq!(add(8, "Malloc1"), error(-32602, "Invalid argument"));
    assert_eq!(add(0, "Malloc2"), error(-32602, "File exists"));
    assert_eq!(add(1, "Malloc9"), error(-32602, "Bad address"));
    let remove = |name: &str, number: u8| {
        target.call("vfu_virtio_scsi_remove_target", json!({"name": name, "scsi_target_num": number}))
    };
    assert_eq!(remove("scsi1", 3), error(-32602, "No such file or directory"));
    assert_eq!(remove("scsi9", 0), error(-32602, "No such file or directory"));
    succeed(&target, "vfu_virtio_scsi_remove_target scsi{} --scsi-target-num 0");
    succeed(&target, "vfu_virtio_delete_endpoint scsi{}");
}

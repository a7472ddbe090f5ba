//! What the flags do, and the exit statuses.

use std::os::unix::{fs::PermissionsExt, net::UnixStream};

use ringside_tests::Target;
use serde_json::{Value, json};

/// How a target with these arguments ends by itself.
fn end(args: &[&str]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let (status, said) = Target::run_to_end(dir.path(), args).unwrap();
    (status.code(), said)
}

#[test]
fn exit_statuses_are_those_of_spdk_tgt() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let entry = |method: &str, params: Value| {
        json!({"subsystems": [{"subsystem": "bdev", "config": [{"method": method, "params": params}]}]})
            .to_string()
    };
    let bad = file("bad", "{ no json");
    let shape = file("shape", "{\"subsystems\": 1}");
    let unknown = file("unknown", &entry("bdev_no_such_create", json!({})));
    let block_size = json!({"name": "x", "num_blocks": 1, "block_size": 100});
    let invalid = file("invalid", &entry("bdev_malloc_create", block_size));
    let null = json!({"name": "Null0", "num_blocks": 8, "block_size": 512});
    let hidden = file("hidden", &entry("bdev_null_create", null));
    for (args, expected) in [
        (&["--version"][..], 0),
        (&["--help"], 0),
        (&["--no-such-flag"], 2),
        (&["-L", "no-such-part"], 2),
        (&["--wait-for-rpc", "--no-rpc-server"], 1),
        (&["-c", "/no/such/file"], 1),
        (&["-c", &bad], 234),
        (&["-c", &shape], 234),
        (&["-c", &unknown], 254),
        (&["--json", &invalid], 234),
        (&["-c", &hidden, "--rpcs-allowed", "bdev_get_bdevs"], 254),
        (&["-m", "[999]"], 1),
        (&["--state-dir", "/proc/no"], 1),
    ] {
        let (code, said) = end(args);
        assert_eq!(code, Some(expected), "{args:?}: {said}");
    }
}

#[test]
fn target_whose_socket_is_taken_ends_with_234() {
    let target = Target::start().unwrap();
    let (status, said) = target.start_rival().unwrap();
    assert_eq!(status.code(), Some(234), "{said}");
}

#[test]
fn cores_are_claimed_by_lock_files_until_told_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let locks = dir.path().display().to_string();
    let args = ["-m", "0x1", "--core-lock-dir", &locks];
    let target = Target::start_with(&args).unwrap();
    let lock = dir.path().join("spdk_cpu_lock_000");
    assert_eq!(std::fs::read(&lock).unwrap(), target.pid().to_ne_bytes());

    let (code, said) = end(&args);
    assert_eq!(code, Some(1));
    let pid = target.pid();
    let expected = format!("Cannot create lock on core 0, probably process {pid} has claimed it.");
    assert!(said.contains(&expected), "{said}");

    target.call("framework_disable_cpumask_locks", Value::Null).unwrap();
    let rival = Target::start_with(&args).unwrap();
    let refused = target.call("framework_enable_cpumask_locks", Value::Null).unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), (-32603, "Failed to claim CPU core: 0"));
    drop(rival);
    target.call("framework_enable_cpumask_locks", Value::Null).unwrap();
    drop(target);
    assert!(!lock.exists());
}

#[test]
fn process_id_is_written_once_the_target_runs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let target = Target::start_with(&["-f", &file.display().to_string(), "--wait-for-rpc"]).unwrap();
    assert!(!file.exists());
    target.call("framework_start_init", Value::Null).unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap().trim(), target.pid().to_string());
    drop(target);
    assert!(file.exists(), "it is never removed");
}

#[test]
fn sockets_have_the_mode_and_the_owner_that_were_asked_for() {
    let target = Target::start_with(&["--socket-mode", "0660"]).unwrap();
    let null = json!({"name": "Null0", "num_blocks": 8, "block_size": 512});
    target.call("bdev_null_create", null).unwrap();
    target.call("vfu_virtio_create_blk_endpoint", json!({"name": "e", "bdev_name": "Null0"})).unwrap();
    for socket in [target.rpc_socket(), target.endpoint("e")] {
        assert_eq!(
            std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
            0o660,
            "{}",
            socket.display()
        );
    }
    let own = Target::start_with(&["--socket-owner", &rustix::process::geteuid().as_raw().to_string()]);
    assert!(own.is_ok());
    let (code, _) = end(&["--socket-owner", "no-such-user"]);
    assert_eq!(code, Some(2));
}

#[test]
fn flags_without_a_meaning_here_are_told_once_each() {
    let target = Target::start_with(&["-n", "4", "-u", "--iova-mode", "va", "--huge-dir", "/mnt"]).unwrap();
    target.wait_until(|| target.log().matches("has no effect").count() == 4).unwrap();
}

#[test]
fn memory_of_disks_is_bounded() {
    let target = Target::start_with(&["-s", "2", "--no-huge"]).unwrap();
    let disk = |mib: u64| json!({"num_blocks": mib * 2048, "block_size": 512});
    assert_eq!(target.call("bdev_malloc_create", disk(3)).unwrap_err().code, -12);
    target.call("bdev_malloc_create", disk(1)).unwrap();
    target.call("bdev_malloc_create", disk(1)).unwrap();
    assert_eq!(target.call("bdev_malloc_create", disk(1)).unwrap_err().code, -12);
    target.call("bdev_malloc_delete", json!({"name": "Malloc1"})).unwrap();
    target.call("bdev_malloc_create", disk(1)).unwrap();
}

#[test]
fn target_without_a_server_serves_what_its_configuration_says() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("served");
    let config = json!({"subsystems": [
        {"subsystem": "bdev", "config": [
            {"method": "bdev_null_create", "params": {"name": "Null0", "num_blocks": 8, "block_size": 512}}]},
        {"subsystem": "vfio_user_target", "config": [
            {"method": "vfu_tgt_set_base_path", "params": {"path": dir.path()}},
            {"method": "vfu_virtio_create_blk_endpoint", "params": {"name": "served", "bdev_name": "Null0"}}]}]});
    let file = dir.path().join("config");
    std::fs::write(&file, config.to_string()).unwrap();
    let mut target = Target::spawn_with(&["-c", &file.display().to_string(), "--no-rpc-server"]).unwrap();
    target.wait_until(|| UnixStream::connect(&socket).is_ok()).unwrap();
    assert!(!target.rpc_socket().exists());
    target.signal(rustix::process::Signal::INT).unwrap();
    assert_eq!(target.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn methods_that_are_not_allowed_do_not_exist() {
    let target = Target::start_with(&["--rpcs-allowed", "rpc_get_methods,bdev_get_bdevs"]).unwrap();
    assert_eq!(target.call("rpc_get_methods", Value::Null), Ok(json!(["bdev_get_bdevs", "rpc_get_methods"])));
    assert_eq!(target.call("spdk_get_version", Value::Null).unwrap_err().code, -32601);
}

#[test]
fn log_follows_levels_and_flags() {
    let target = Target::start_with(&["--silence-noticelog"]).unwrap();
    let null = |name: &str| json!({"name": name, "num_blocks": 8, "block_size": 512});
    target.call("bdev_null_create", null("Quiet")).unwrap();
    assert_eq!(target.call("log_get_print_level", Value::Null), Ok(json!("WARNING")));
    target.call("log_set_print_level", json!({"level": "NOTICE"})).unwrap();
    target.call("log_enable_timestamps", json!({"enabled": false})).unwrap();
    target.call("bdev_null_create", null("Loud")).unwrap();
    target.call("log_set_flag", json!({"flag": "VFU*"})).unwrap();
    let flags = target.call("log_get_flags", Value::Null).unwrap();
    assert_eq!(
        (&flags["vfu"], &flags["vfu_virtio"], &flags["bdev"]),
        (&json!(true), &json!(true), &json!(false))
    );
    target
        .wait_until(|| target.log().starts_with("*NOTICE*: bdev::registry: bdev registered bdev=Loud"))
        .unwrap();
    assert!(!target.log().contains("Quiet"));
}

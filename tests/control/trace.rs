//! The trace: real events of reactors, endpoints, queues and bdevs, turned on by flags and by RPC, printed by the program.

use std::{
    path::Path,
    process::{Command, Output},
};

use ringside_tests::{Target, binary};
use serde_json::{Value, json};

/// A target with one disk.
fn target(args: &[&str]) -> Target {
    let target = Target::start_with(args).unwrap();
    let disk = json!({"name": "Traced", "num_blocks": 2048, "block_size": 512});
    target.call("bdev_null_create", disk).unwrap();
    let endpoint = json!({"name": "e", "bdev_name": "Traced", "num_queues": 1});
    target.call("vfu_virtio_create_blk_endpoint", endpoint).unwrap();
    target
}

/// A driver that comes, reads for a while, and goes.
fn load(target: &Target) {
    let mut load = Command::new(binary("ringside-bench"));
    load.args(["load", "--rw", "randread", "--depth", "4", "--seconds", "1", "--warmup", "0", "--socket"]);
    let output = load.arg(target.endpoint("e")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn file(target: &Target) -> String {
    let info = target.call("trace_get_info", Value::Null).unwrap();
    info["tpoint_shm_path"].as_str().unwrap().to_owned()
}

fn show(args: &[&str]) -> Output {
    Command::new(binary("ringside")).arg("trace").args(args).output().unwrap()
}

/// The events in a file.
fn events(file: &str, more: &[&str]) -> Vec<Value> {
    let output = show(&[&["-j", "-f", file], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of<'a>(events: &'a [Value], name: &'a str) -> impl Iterator<Item = &'a Value> {
    events.iter().filter(move |event| event["name"] == name)
}

#[test]
fn events_of_a_client_and_its_reads_are_kept_and_printed() {
    let target = target(&["-m", "0x1", "-e", "bdev,vfu,vfu_virtio", "--num-trace-entries", "65536"]);

    load(&target);

    let file = file(&target);
    let gone = || {
        let events = events(&file, &[]);
        of(&events, "VFU_CLIENT_DISCONNECT").count() == 1 && of(&events, "BDEV_IOCH_DESTROY").count() == 1
    };
    target.wait_until(gone).unwrap();
    drop(target);
    let events = events(&file, &[]);
    std::fs::remove_file(&file).unwrap();
    // The ring has wrapped: the last of each kind are there.
    let done: Vec<&Value> = of(&events, "BDEV_IO_DONE").collect();
    assert!(done.len() > 100, "{}", done.len());
    assert!(done.iter().all(|event| event["args"]["status"] == "success" && event["group"] == "bdev"));
    let started = of(&events, "BDEV_IO_START").last().unwrap();
    assert_eq!((&started["args"]["op"], &started["core"]), (&json!("read"), &json!(0)));
    assert!(started["args"]["lba"].as_u64().unwrap() < 2048);
    // Each end is told with the time since its start.
    let last = done.last().unwrap();
    assert!(last["since_us"].as_f64().unwrap() >= 0.0);
    assert_eq!(of(&events, "BDEV_IOCH_DESTROY").last().unwrap()["args"]["bdev"], "Traced");
    assert_eq!(of(&events, "QUEUE_STOP").last().unwrap()["group"], "vfu_virtio");
    assert_eq!(of(&events, "VFU_CLIENT_DISCONNECT").last().unwrap()["args"]["endpoint"], "e");
    assert!(of(&events, "REACTOR_SLEEP").next().is_none(), "that group is off");
    let times: Vec<f64> = events.iter().map(|event| event["us"].as_f64().unwrap()).collect();
    assert!(times.is_sorted());
}

#[test]
fn points_are_turned_on_and_off_by_rpc_and_events_cleared() {
    let target = target(&["-m", "0x1"]);
    let file = file(&target);
    assert!(!Path::new(&file).exists(), "a target that is not traced leaves nothing");
    target.call("trace_enable_tpoint_group", json!({"name": "vfu"})).unwrap();
    target.call("trace_set_tpoint_mask", json!({"name": "vfu_virtio", "tpoint_mask": 1})).unwrap();
    let mask = target.call("trace_get_tpoint_group_mask", Value::Null).unwrap();
    assert_eq!(mask["tpoint_group_mask"], "0x600000000");
    assert_eq!((&mask["vfu"]["enabled"], &mask["bdev"]["enabled"]), (&json!(true), &json!(false)));
    assert_eq!((&mask["bdev"]["mask"], &mask["vfu_virtio"]["tpoint_mask"]), (&json!("0x8"), &json!("0x1")));
    assert_eq!(
        mask["bdev"]["tpoints"][0],
        json!({"name": "BDEV_IO_START", "tpoint_id": 0, "enabled": false})
    );

    load(&target);
    let gone = || of(&events(&file, &[]), "VFU_CLIENT_DISCONNECT").count() == 1;
    target.wait_until(gone).unwrap();

    let seen = events(&file, &[]);
    assert_eq!(of(&seen, "VFU_CLIENT_CONNECT").count(), 1);
    // VERSION is command 1, and the first.
    let commands: Vec<&Value> = of(&seen, "VFU_COMMAND").collect();
    assert_eq!(commands[0]["args"]["command"], 1);
    let replies = of(&seen, "VFU_REPLY").filter(|reply| reply["args"]["errno"] == 0).count();
    assert!(replies > 5, "{replies}");
    assert_eq!(of(&seen, "QUEUE_START").count(), 1);
    assert_eq!(of(&seen, "QUEUE_STOP").count(), 0, "that point is off");
    assert_eq!(events(&file, &["-t", "QUEUE"]).len(), 1);
    assert_eq!(events(&file, &["-n", "3"]).len(), 3);
    assert_eq!(events(&file, &["-c", "1"]), Vec::<Value>::new());

    target.call("trace_clear", Value::Null).unwrap();
    assert_eq!(events(&file, &[]), Vec::<Value>::new());
    target.call("trace_disable_tpoint_group", json!({"name": "all"})).unwrap();
    load(&target);
    assert_eq!(events(&file, &[]), Vec::<Value>::new());
    drop(target);
    assert!(!Path::new(&file).exists(), "nobody means to read it");
}

#[test]
fn reactors_tell_when_they_sleep_and_wake() {
    let target = target(&["-m", "0x1", "-e", "reactor"]);
    let file = file(&target);
    let slept = || of(&events(&file, &[]), "REACTOR_WAKE").count() > 3;
    target
        .wait_until(|| {
            target.call("vfu_get_endpoints", Value::Null).unwrap();
            slept()
        })
        .unwrap();
    drop(target);
    let events = events(&file, &[]);
    std::fs::remove_file(&file).unwrap();
    assert!(of(&events, "REACTOR_WAKE").last().unwrap()["args"]["slept_ticks"].as_u64().unwrap() > 0);
    assert!(
        of(&events, "POLLER_PARK")
            .any(|event| event["args"]["poller"].as_str().is_some_and(|name| !name.is_empty()))
    );
    assert!(of(&events, "POLLER_WAKE").count() > 0);
}

#[test]
fn trace_survives_its_target_under_the_name_that_was_asked_for() {
    // Another run of the tests on this machine has another process id.
    let id = (1 << 20 | std::process::id() & 0xf_ffff).to_string();
    let mut target = target(&["-m", "0x1", "-e", "all", "-i", &id, "--num-trace-entries", "1024"]);
    load(&target);
    let file = file(&target);
    assert_eq!(file, format!("/dev/shm/ringside_trace.{id}"));
    let rival = Target::start_with(&["-m", "0x1", "--shm-id", &id]).unwrap();
    let refused = rival.call("trace_enable_tpoint_group", json!({"name": "bdev"})).unwrap_err();
    assert_eq!(refused.code, -16);

    target.crash().unwrap();

    let printed = show(&["-i", &id, "-n", "5"]);
    let text = String::from_utf8(printed.stdout).unwrap();
    assert_eq!(text.lines().count(), 5, "{text}");
    rival.call("trace_enable_tpoint_group", json!({"name": "bdev"})).unwrap();
    assert_eq!(events(&file, &[]), Vec::<Value>::new(), "the file of the dead was replaced");
    drop(rival);
    assert!(Path::new(&file).exists(), "points were on: it is kept");
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn trace_that_was_turned_away_or_does_not_exist_is_refused() {
    let target = Target::start_with(&["-m", "0x1", "--num-trace-entries", "0"]).unwrap();
    for name in ["bdev", "all", "no_such_group"] {
        let refused = target.call("trace_enable_tpoint_group", json!({"name": name})).unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (-32602, "Invalid parameters"));
    }
    let dir = tempfile::tempdir().unwrap();
    for flag in ["no_such_group", "bdev:NO_SUCH_POINT"] {
        let (status, said) = Target::run_to_end(dir.path(), &["-e", flag]).unwrap();
        assert_eq!(status.code(), Some(1), "{said}");
    }
    for args in [&["-f", "/no/such/file"][..], &["-f", "/proc/version"], &[], &["-p", "1", "-i", "1"]] {
        assert_eq!(show(args).status.code(), Some(1), "{args:?}");
    }
}

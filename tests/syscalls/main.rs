//! How many system calls a reactor makes while it serves a million requests: counted by the kernel's own tracer.

#![expect(clippy::unwrap_used, reason = "all of it is a test, the steps that tests share too")]

use std::process::{Command, Stdio};

use ringside_tests::{Target, binary};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Over both queues; most are on the reactor that is traced.
const REQUESTS: u64 = 2_000_000;

/// Calls by name, as `strace -c` sums them up.
fn counts(summary: &str) -> Vec<(String, u64)> {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        Some((words.last()?.to_string(), words.get(3)?.parse().ok()?))
    };
    summary.lines().filter_map(row).filter(|(name, _)| name != "total").collect()
}

/// Reads for two seconds; how many requests that were.
fn load(target: &Target) -> u64 {
    let json = target.dir().join("load.json");
    let mut load = Command::new(binary("ringside-bench"));
    load.args([
        "load",
        "--rw",
        "randread",
        "--depth",
        "64",
        "--queues",
        "2",
        "--seconds",
        "2",
        "--warmup",
        "0",
        "--cpu",
        "0",
    ]);
    let output =
        load.arg("--json").arg(&json).arg("--socket").arg(target.endpoint("vfu.0")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line = std::fs::read_to_string(&json).unwrap();
    std::fs::remove_file(&json).unwrap();
    let report: Value = serde_json::from_str(line.trim()).unwrap();
    report["requests"].as_u64().unwrap_or_else(|| panic!("no requests in {report}"))
}

#[test]
fn reactor_that_polls_makes_no_system_call_per_request() {
    let target = Target::start_with(&["-m", "0x3", "--poll-only"]).unwrap();
    target
        .call("bdev_null_create", json!({"name": "Null0", "num_blocks": 2_097_152, "block_size": 512}))
        .unwrap();
    let endpoint = json!({"name": "vfu.0", "bdev_name": "Null0", "num_queues": 2, "qsize": 256});
    target.call("vfu_virtio_create_blk_endpoint", endpoint).unwrap();
    let reactors = target.call("framework_get_reactors", Value::Null).unwrap();
    // The second queue is on core 1, alone; the endpoint and its messages are on core 0 with the first.
    let tid = reactors["reactors"][1]["tid"].as_u64().unwrap();
    let summary = target.dir().join("strace");
    let mut strace = Command::new("strace");
    strace.args(["-c", "-p", &tid.to_string(), "-o"]).arg(&summary);
    let mut strace = strace.stderr(Stdio::null()).spawn().expect("strace is installed by scripts/test");

    let mut requests = 0;
    while requests < REQUESTS {
        requests += load(&target);
    }

    kill_process(Pid::from_child(&strace), Signal::INT).unwrap();
    strace.wait().unwrap();
    let counts = counts(&std::fs::read_to_string(summary).unwrap());
    println!("in {requests} requests: {counts:?}");
    // What is left is the look at epoll, by the clock and not by requests, and what starts and ends the queue (its
    // channel, its memory): a few calls a run.
    let per_run = |(name, calls): &&(String, u64)| !name.starts_with("epoll_") && *calls > 200;
    assert_eq!(counts.iter().find(per_run), None, "{counts:?}");
}

//! Block devices through RPC, driven by the load generator behind a virtio-blk endpoint: stacks, injected errors, delays, rate
//! limits, histograms, and files that fail. Times are asserted only from below.

#![expect(clippy::unwrap_used, reason = "all of it is a test, the steps that tests share too")]

mod files;
mod services;
mod stacks;

use std::process::{Child, Command, Output, Stdio};

use ringside_tests::{Target, binary};
use serde_json::{Value, json};

/// Puts a bdev behind an endpoint of one queue that is called as the bdev.
fn serve(target: &Target, bdev: &str) {
    let endpoint = json!({"name": bdev, "bdev_name": bdev, "num_queues": 1, "qsize": 256});
    target.call("vfu_virtio_create_blk_endpoint", endpoint).unwrap();
}

fn malloc(target: &Target, name: &str) {
    target.call("bdev_malloc_create", json!({"name": name, "num_blocks": 16384, "block_size": 512})).unwrap();
}

/// Starts requests of 4 KiB to the endpoint of that name.
fn start_load(target: &Target, endpoint: &str, args: &str) -> Child {
    let mut load = Command::new(binary("ringside-bench"));
    load.args(["load", "--warmup", "0", "--json", "-"]).args(args.split_whitespace());
    load.arg("--socket").arg(target.endpoint(endpoint));
    load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What a load has reported: a line of JSON.
fn report(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with('{'));
    let line = line.unwrap_or_else(|| panic!("no report: {}", String::from_utf8_lossy(&output.stderr)));
    serde_json::from_str(line).unwrap()
}

/// Runs loads to their end, as many as it takes for some requests: how many succeeded, and how many failed.
fn load(target: &Target, endpoint: &str, args: &str) -> (u64, u64) {
    load_of(64, target, endpoint, args)
}

/// As [`load`], for so many requests at least: a slow machine may get few of them done in a load's time.
fn load_of(least: u64, target: &Target, endpoint: &str, args: &str) -> (u64, u64) {
    let (mut requests, mut failed) = (0, 0);
    while requests + failed < least {
        let report = report(&start_load(target, endpoint, args).wait_with_output().unwrap());
        requests += report["requests"].as_u64().unwrap();
        failed += report["errors"].as_u64().unwrap();
    }
    (requests, failed)
}

/// The counters of a bdev.
fn iostat(target: &Target, name: &str) -> Value {
    target.call("bdev_get_iostat", json!({"names": [name]})).unwrap()["bdevs"][0].take()
}

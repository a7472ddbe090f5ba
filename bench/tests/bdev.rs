//! `bdev` and `crash`: bdevs without a front end, every workload, many jobs, figures for people and machines.
#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringside-bench");
const MALLOC: [&str; 3] =
    ["--create", "bdev_malloc_create", r#"{"name":"M","num_blocks":16384,"block_size":512}"#];

fn drive(args: &[&str]) -> Output {
    let short = ["--seconds", "0.05", "--warmup", "0", "--depth", "8"];
    Command::new(PROGRAM).arg("bdev").args(MALLOC).args(short).args(args).output().unwrap()
}

#[test]
fn every_workload_runs_without_errors() {
    let workloads = [
        "read",
        "write",
        "rw",
        "randread",
        "randwrite",
        "randrw",
        "verify",
        "flush",
        "unmap",
        "write-zeroes",
    ];
    for workload in workloads {
        let output = drive(&["--workload", workload]);

        assert!(output.status.success(), "{workload}: {output:?}");
    }
}

#[test]
fn jobs_compare_what_they_wrote_and_tell_it_in_a_table_and_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("figures");

    let output = drive(&["--workload", "verify", "--jobs", "3", "--fill", "--json", json.to_str().unwrap()]);

    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(table.contains("MiB/s") && table.contains("read back and compared"), "{table}");
    let figures: serde_json::Value =
        serde_json::from_str(std::fs::read_to_string(&json).unwrap().trim()).unwrap();
    assert_eq!((&figures["jobs"], &figures["errors"]), (&3.into(), &0.into()));
    assert_eq!(figures["iops_by_job"].as_array().unwrap().len(), 3);
    assert!(figures["compared"].as_u64() > Some(0), "{figures}");
}

#[test]
fn a_stack_is_made_in_order_and_its_last_bdev_is_driven() {
    let passthru = r#"{"name":"P","base_bdev_name":"M"}"#;

    let output = drive(&["--create", "bdev_passthru_create", passthru, "--workload", "randrw"]);

    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("passthru"), "{output:?}");
}

#[test]
fn a_bdev_that_is_not_there_is_an_error() {
    let output = drive(&["--bdev", "Missing"]);

    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn what_was_flushed_is_on_the_disk_after_every_kill() {
    let dir = tempfile::tempdir().unwrap();

    let output = Command::new(PROGRAM)
        .arg("crash")
        .arg(dir.path().join("disk"))
        .args(["--kills", "12", "--life-ms", "60"])
        .output()
        .unwrap();

    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("12 kills, "), "{output:?}");
}

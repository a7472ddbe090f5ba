//! The program as people run it: a disk served by `serve`, driven by `load`.
#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ringside-bench");

/// A served disk; ended with the test.
struct Served {
    child: Child,
    dir: TempDir,
}

impl Served {
    fn new(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(PROGRAM);
        command
            .arg("serve")
            .arg("--socket")
            .arg(dir.path().join("disk"))
            .args(["--size-mib", "16"])
            .args(args);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        // It says a line when the socket is there.
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("serving"), "{line:?}");
        Self { child, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// A short run.
    fn load(&self, args: &[&str]) -> Output {
        load(
            &self.socket(),
            &[&["--seconds", "0.2", "--warmup", "0.05", "--interval", "0.05"], args].concat(),
        )
    }

    /// The figures of a short run that succeeds.
    fn figures(&self, args: &[&str]) -> serde_json::Value {
        let json = self.dir.path().join("figures");
        let output = self.load(&[args, &["--json", json.to_str().unwrap()]].concat());
        assert!(output.status.success(), "{output:?}");
        let lines = std::fs::read_to_string(&json).unwrap();
        serde_json::from_str(lines.lines().last().unwrap()).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn load(socket: &Path, args: &[&str]) -> Output {
    Command::new(PROGRAM).arg("load").arg("--socket").arg(socket).args(args).output().unwrap()
}

/// What a run that fails says.
fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn reads_are_counted_and_told_in_a_table() {
    let served = Served::new(&["--bdev", "null"]);
    let output = served.load(&["--depth", "8", "--queues", "2"]);
    assert!(output.status.success(), "{output:?}");
    let table = String::from_utf8(output.stdout).unwrap();
    for row in ["IOPS", "MiB/s", "latency us min", "p50", "p99.9", "own ns a request"] {
        assert!(table.contains(row), "{row} is not in\n{table}");
    }
}

#[test]
fn figures_agree_with_each_other() {
    let served = Served::new(&["--bdev", "malloc"]);
    let figures = served.figures(&["--rw", "randrw", "--rwmixread", "70", "--depth", "16", "--bs", "8k"]);
    let number = |name: &str| figures[name].as_f64().unwrap();
    assert!(number("requests") > 0.0);
    assert_eq!(number("reads") + number("writes"), number("requests"));
    assert!(number("reads") > number("writes"));
    let iops = number("requests") / number("seconds");
    assert!((number("iops") - iops).abs() < 1.0 + iops * 1e-9);
    assert!((number("mib_per_s") - iops / 128.0).abs() < 1.0);
    let latency = |name: &str| figures["latency"][name].as_f64().unwrap();
    let ordered = ["min_ns", "p50_ns", "p90_ns", "p99_ns", "p99_9_ns", "max_ns"].map(latency);
    assert!(ordered.is_sorted() && ordered[0] > 0.0, "{ordered:?}");
    assert!(!figures["samples"].as_array().unwrap().is_empty());
    assert!(
        figures["kernel"].is_string() && figures["revision"].is_string() && figures["command"].is_array()
    );
}

#[test]
fn open_loop_makes_as_many_requests_as_are_due_and_times_them_from_then() {
    let served = Served::new(&["--bdev", "null"]);
    let figures = served.figures(&["--rate", "2000", "--queues", "2", "--depth", "4"]);
    assert_eq!(figures["rate"], 2000);
    assert!(figures["requests"].as_u64() > Some(0), "{figures}");

    // Far more than any device does: what waits has been due for long, so the latency grows to a share of the run.
    let behind = served.figures(&["--rate", "1000000000", "--depth", "1"]);
    assert!(behind["latency"]["p50_ns"].as_f64() > Some(10e6), "{behind}");
}

#[test]
fn json_lines_are_appended() {
    let served = Served::new(&["--bdev", "null"]);
    served.figures(&[]);
    served.figures(&["--rw", "write"]);
    let lines = std::fs::read_to_string(served.dir.path().join("figures")).unwrap();
    assert_eq!(lines.lines().count(), 2);
}

#[test]
fn json_can_go_to_standard_output() {
    let served = Served::new(&["--bdev", "null"]);
    let output = served.load(&["--json", "-"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(line["bench"], "load");
}

#[test]
fn data_that_is_right_is_verified() {
    let served = Served::new(&["--bdev", "malloc"]);
    for args in [
        &["--rw", "randwrite", "--depth", "32"][..],
        &["--rw", "randrw", "--depth", "32", "--queues", "4"],
        &["--rw", "write", "--bs", "128k", "--depth", "4"],
        &[
            "--rw",
            "randrw",
            "--bs",
            "512",
            "--indirect",
            "on",
            "--depth",
            "64",
            "--offset",
            "1m",
            "--region-size",
            "64k",
        ],
    ] {
        let figures = served.figures(&[args, &["--verify"]].concat());
        assert!(figures["verified_blocks"].as_u64().unwrap() > 0, "{args:?}");
    }
}

#[test]
fn nvme_controller_is_driven_and_verified_whatever_its_doorbells() {
    for (doorbell, kick) in
        [("mapped", "auto"), ("mapped", "message"), ("trapped", "auto"), ("trapped", "message")]
    {
        let served = Served::new(&["--bdev", "malloc", "--nvme", "--doorbell", doorbell]);
        for args in [
            &["--depth", "32", "--queues", "4"][..],
            &["--depth", "4", "--bs", "8k"],
            &["--depth", "8", "--bs", "128k"],
            &["--depth", "64", "--bs", "512", "--offset", "1m", "--region-size", "64k"],
        ] {
            let args = [args, &["--nvme", "--rw", "randrw", "--verify", "--kick", kick]].concat();
            let figures = served.figures(&args);
            assert!(figures["verified_blocks"].as_u64().unwrap() > 0, "{doorbell}: {args:?}");
        }
    }
}

#[test]
fn disk_that_forgets_is_found_out() {
    // A null bdev keeps nothing and leaves read buffers as they are.
    let served = Served::new(&["--bdev", "null"]);
    let output = served.load(&["--rw", "randwrite", "--verify"]);
    let complaint = complaint(&output);
    assert!(complaint.contains("holds no data of this run"), "{complaint}");
}

#[test]
fn device_that_is_never_kicked_is_driven_too() {
    for doorbell in ["auto", "mapped"] {
        let served = Served::new(&["--bdev", "malloc", "--doorbell", doorbell]);
        let figures = served.figures(&["--kick", "never", "--depth", "4"]);
        assert_eq!(figures["kicks"], 0, "{doorbell}");
        assert!(figures["requests"].as_u64().unwrap() > 0, "{doorbell}");
    }
}

#[test]
fn several_disks_are_driven_at_once() {
    let (first, second) =
        (Served::new(&["--bdev", "malloc"]), Served::new(&["--bdev", "malloc", "--cpu", "0"]));
    let figures =
        first.figures(&["--socket", second.socket().to_str().unwrap(), "--rw", "randrw", "--verify"]);
    assert_eq!(figures["disks"], 2);
}

#[test]
fn what_does_not_fit_the_disk_is_refused_by_name() {
    let served = Served::new(&["--bdev", "null", "--block-size", "4096", "--ring-size", "64"]);
    for (args, part) in [
        (&["--bs", "512"][..], "--bs: 512 is not a multiple of the disk's blocks of 4096 bytes"),
        (&["--offset", "512"], "--offset: 512 is not a multiple"),
        (&["--offset", "17m"], "--offset: the disk ends at 16777216"),
        (&["--region-size", "17m"], "--region-size: the disk ends at 16777216"),
        (
            &["--region-size", "4k", "--verify"],
            "--verify: 1 requests in flight need a region of more than 1 blocks",
        ),
        (&["--queues", "9"], "9 queues are wanted and the device has 4"),
        (&["--depth", "100"], "--depth: the disk's rings of 64 entries have room for 64 requests"),
        (
            &["--depth", "30", "--indirect", "off"],
            "--depth: the disk's rings of 64 entries have room for 21 requests",
        ),
    ] {
        let complaint = complaint(&served.load(args));
        assert!(complaint.contains(part), "{args:?}: {complaint}");
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_connected() {
    let nowhere = Path::new("/nonexistent/disk");
    for (args, part) in [
        (&["--bs", "1000"][..], "--bs: 1000 is not a multiple of 512 bytes"),
        (&["--cpu", "4000"], "core 4000 is not available"),
        (&["--seconds=-1"], "--seconds: -1 is not a time"),
        (&[], "connecting to /nonexistent/disk failed: No such file"),
    ] {
        let complaint = complaint(&load(nowhere, args));
        assert!(complaint.contains(part), "{args:?}: {complaint}");
    }
}

#[test]
fn peer_that_is_no_vfio_user_server_is_an_error_and_no_hang() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("disk");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let closer = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let complaint = complaint(&load(&socket, &[]));
    assert!(complaint.contains("closed the connection"), "{complaint}");
    closer.join().unwrap();
}

#[test]
fn server_on_a_core_that_does_not_exist_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("disk");
    let output = Command::new(PROGRAM)
        .args(["serve", "--cpu", "999", "--size-mib", "1", "--socket"])
        .arg(&socket)
        .output();
    let complaint = complaint(&output.unwrap());
    assert!(complaint.contains("--cpu") && complaint.contains("999"), "{complaint}");
}

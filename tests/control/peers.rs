//! Other peers: SPDK's shell, a client that closes its half after writing, many at once, and noise.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    process::Command,
    time::Duration,
};

use ringside_tests::Target;
use serde_json::{Value, json, value::RawValue};

use crate::clients::spdk;

fn shell(target: &Target, commands: &str) -> String {
    let mut command = Command::new(spdk("python3"));
    // The shell keeps its history in the home folder.
    command.arg(spdk("spdk-cli")).arg("-s").arg(target.rpc_socket()).arg(commands).env("HOME", target.dir());
    let output = command.output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{commands}: {said}");
    said
}

#[test]
fn spdks_shell_lists_the_tree_and_makes_and_deletes_bdevs() {
    let target = Target::start().unwrap();
    shell(&target, "/bdevs/malloc create 16 512 Shell0");
    shell(&target, "/bdevs/null create Shell1 16 512");
    let tree = shell(&target, "ls /");
    for word in ["bdevs", "malloc", "null", "Shell0", "Shell1"] {
        assert!(tree.contains(word), "{word} is missing:\n{tree}");
    }
    shell(&target, "/bdevs/malloc delete Shell0");
    shell(&target, "/bdevs/null delete Shell1");
    assert_eq!(target.call("bdev_get_bdevs", Value::Null), Ok(json!([])));
}

#[test]
fn client_that_closes_its_half_gets_replies_that_come_later() {
    let target = Target::start().unwrap();
    let mut stream = UnixStream::connect(target.rpc_socket()).unwrap();
    // The reply waits 300 ms for a bdev that never comes: long after the end of input was seen.
    let request = json!({"jsonrpc": "2.0", "id": 7, "method": "bdev_get_bdevs", "params": {"name": "x", "timeout": 300}});
    stream.write_all(request.to_string().as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let expected = r#"{"jsonrpc":"2.0","id":7,"error":{"code":-110,"message":"Connection timed out"}}"#;
    assert_eq!(text.trim_end(), expected);
}

#[test]
fn thousand_clients_at_once_are_all_answered() {
    let target = Target::start().unwrap();
    let clients: Vec<UnixStream> = (0..1000)
        .map(|id| {
            let mut stream = UnixStream::connect(target.rpc_socket()).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let request = json!({"jsonrpc": "2.0", "id": id, "method": "thread_get_stats"});
            stream.write_all(request.to_string().as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        })
        .collect();
    for (id, mut stream) in clients.into_iter().enumerate() {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let reply: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(reply["id"], id);
        assert!(reply["result"]["threads"].is_array());
    }
}

#[test]
fn client_that_never_reads_and_one_that_never_ends_its_request_harm_nobody() {
    let target = Target::start().unwrap();
    let mut deaf = UnixStream::connect(target.rpc_socket()).unwrap();
    deaf.set_nonblocking(true).unwrap();
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "rpc_get_methods"}).to_string();
    while deaf.write(request.as_bytes()).is_ok_and(|length| length == request.len()) {}
    let mut slow = UnixStream::connect(target.rpc_socket()).unwrap();
    slow.write_all(b"{\"jsonrpc\": ").unwrap();
    for _ in 0..100 {
        target.call("spdk_get_version", Value::Null).unwrap();
    }
}

/// A small generator (xorshift64*): the seed names the run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }
}

/// Requests that are nearly right, with bytes changed, cut out, doubled or made up.
fn mutated(noise: &mut Noise, methods: &[String]) -> Vec<u8> {
    let method = &methods[noise.below(methods.len())];
    let values = [
        "1",
        "-1",
        "1e999",
        "null",
        "\"\\ud800\"",
        "{\"a\":{}}",
        "[[[]]]",
        "\"x\"",
        "18446744073709551616",
        "true",
    ];
    let value = values[noise.below(values.len())];
    let keys = ["name", "bdev_name", "id", "num_blocks", "cpumask", "timeout", "flag", "level", "path"];
    let key = keys[noise.below(keys.len())];
    let text =
        format!(r#"{{"jsonrpc":"2.0","id":{value},"method":"{method}","params":{{"{key}":{value}}}}}"#);
    let mut bytes =
        if noise.below(4) == 0 { format!("[{text},{text}]").into_bytes() } else { text.into_bytes() };
    for _ in 0..noise.below(4) {
        let at = noise.below(bytes.len().max(1));
        match noise.below(4) {
            _ if bytes.is_empty() => break,
            0 => bytes[at] = noise.next().to_le_bytes()[0],
            1 => drop(bytes.remove(at)),
            2 => bytes.insert(at, b"{}[]\",:\\"[noise.below(8)]),
            _ => bytes.truncate(at.max(1)),
        }
    }
    bytes
}

#[test]
fn front_door_survives_thousands_of_broken_requests() {
    let target = Target::start().unwrap();
    let methods = target.call("rpc_get_methods", Value::Null).unwrap();
    let methods: Vec<String> = methods
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap().to_owned())
        // Nonsense may be a valid path for these two, and writes there.
        .filter(|name| !["spdk_kill_instance", "env_dpdk_get_mem_stats"].contains(&name.as_str()))
        .collect();
    let mut noise = Noise(0x5eed_0000_0000_0007);
    for round in 0..3000 {
        let bytes = mutated(&mut noise, &methods);
        let mut stream = UnixStream::connect(target.rpc_socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // The target may close before all of it is written.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        let shown = String::from_utf8_lossy(&bytes);
        assert!(reply.is_ascii(), "round {round}: {shown}");
        for line in reply.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            // Not read as values: an id may be a number that no value holds, and comes back as it was.
            assert!(serde_json::from_slice::<Box<RawValue>>(line).is_ok(), "round {round}: {shown}");
        }
    }
    assert!(target.call("spdk_get_version", Value::Null).is_ok());
    assert!(!target.log().contains("panicked"), "{}", target.log());
}

#[test]
fn threads_pollers_and_channels_tell_of_endpoints() {
    let target = Target::start().unwrap();
    let disk = json!({"name": "Null0", "num_blocks": 2048, "block_size": 512});
    target.call("bdev_null_create", disk).unwrap();
    target
        .call(
            "vfu_virtio_create_blk_endpoint",
            json!({"name": "vfu.0", "bdev_name": "Null0", "num_queues": 2}),
        )
        .unwrap();
    let stats = target.call("thread_get_stats", Value::Null).unwrap();
    assert_eq!((&stats["threads"][0]["name"], &stats["threads"][0]["id"]), (&json!("app_thread"), &json!(1)));
    assert_eq!(stats["threads"][1]["name"], "vfu.0");
    let pollers = target.call("thread_get_pollers", Value::Null).unwrap();
    assert_eq!(pollers["threads"][1]["paused_pollers"][0]["state"], "paused");
    let channels = target.call("thread_get_io_channels", Value::Null).unwrap();
    assert_eq!(channels["threads"][1], json!({"name": "vfu.0", "io_channels": []}));
    let endpoints = target.call("vfu_get_endpoints", Value::Null).unwrap();
    let expected = json!([{"name": "vfu.0", "bdev_name": "Null0", "socket": target.endpoint("vfu.0"), "cpumask": "1",
        "state": "listening", "client_pid": null, "device": "virtio_blk", "doorbell": "auto", "running": false,
        "num_queues": 2, "queues": []}]);
    assert_eq!(endpoints, expected);
    let client = UnixStream::connect(target.endpoint("vfu.0")).unwrap();
    let connected =
        || target.call("vfu_get_endpoints", json!({"name": "vfu.0"})).unwrap()[0]["state"] == "connected";
    target.wait_until(connected).unwrap();
    let endpoints = target.call("vfu_get_endpoints", Value::Null).unwrap();
    assert_eq!(endpoints[0]["client_pid"], std::process::id());
    drop(client);
    let missing = target.call("vfu_get_endpoints", json!({"name": "x"})).unwrap_err();
    assert_eq!((missing.code, missing.message.as_str()), (-32602, "No such file or directory"));
}

//! Every example of docs/rpc.md does what it shows: it succeeds on a target that has what it speaks of.

use ringside_tests::{Target, root};
use serde_json::{Value, json};

/// The requests in the reference, and the states in which their methods may be called.
fn examples() -> Vec<(Value, bool)> {
    let text = std::fs::read_to_string(root().join("docs/rpc.md")).unwrap();
    let sections = text.split("\n### ").skip(1);
    let example = |section: &str| {
        let (_, rest) = section.split_once("```json\n")?;
        let (request, _) = rest.split_once("\n```")?;
        let is_startup = section.contains("State: startup.\n");
        Some((serde_json::from_str(request).unwrap(), is_startup))
    };
    sections.filter_map(example).collect()
}

/// What the examples speak of.
fn furnish(target: &Target) {
    let disk = |name: &str| json!({"name": name, "num_blocks": 131_072, "block_size": 512});
    target.call("bdev_malloc_create", disk("Malloc0")).unwrap();
    target.call("bdev_null_create", disk("Null0")).unwrap();
    target.call("vfu_virtio_create_blk_endpoint", json!({"name": "vfu.0", "bdev_name": "Null0"})).unwrap();
    for file in ["disk.img", "other.img"] {
        std::fs::File::create(target.dir().join(file)).unwrap().set_len(64 << 20).unwrap();
    }
}

/// Deleting a bdev waits for those who have it open: the example's must be free.
fn prepare(target: &Target, method: &str) {
    furnish(target);
    if method == "bdev_null_delete" {
        target.call("vfu_virtio_delete_endpoint", json!({"name": "vfu.0"})).unwrap();
    }
}

#[test]
fn every_example_of_the_reference_succeeds() {
    let examples = examples();
    assert!(examples.len() > 30, "only {} examples", examples.len());
    let runtime: Vec<&Value> =
        examples.iter().filter(|(_, is_startup)| !is_startup).map(|(request, _)| request).collect();
    for request in runtime {
        let locks = tempfile::tempdir().unwrap();
        let args = ["-m", "0x1", "--core-lock-dir", &locks.path().display().to_string()];
        let target = Target::start_with(&args).unwrap();
        let method = request["method"].as_str().unwrap();
        prepare(&target, method);
        // Files of examples are in the folder of the target.
        let text = request["params"].to_string().replace("/path/to", &target.dir().display().to_string());
        let reply = target.call(method, serde_json::from_str(&text).unwrap());
        assert!(reply.is_ok(), "{request}: {reply:?}");
    }
    for (request, _) in examples.iter().filter(|(_, is_startup)| *is_startup) {
        let target = Target::start_with(&["--wait-for-rpc"]).unwrap();
        let reply = target.call(request["method"].as_str().unwrap(), request["params"].clone());
        assert!(reply.is_ok(), "{request}: {reply:?}");
    }
}

//! Bdevs on others by RPC: made before their bases, claimed, gone and back with them; and what is told of all that.

use ringside_tests::Target;
use serde_json::{Value, json};

use super::{iostat, malloc, report, serve, start_load};

fn names(target: &Target) -> Vec<String> {
    let bdevs = target.call("bdev_get_bdevs", Value::Null).unwrap();
    let mut names: Vec<String> =
        bdevs.as_array().unwrap().iter().map(|bdev| bdev["name"].as_str().unwrap().to_owned()).collect();
    names.sort_unstable();
    names
}

fn delete(target: &Target, name: &str) {
    assert_eq!(target.call("bdev_malloc_delete", json!({"name": name})), Ok(json!(true)));
}

fn passthru(name: &str, base: &str) -> Value {
    json!({"name": name, "base_bdev_name": base})
}

#[test]
fn stacks_are_made_as_their_bases_appear_and_go_and_come_back_with_them() {
    let target = Target::start().unwrap();
    let raid = json!({"name": "R", "strip_size_kb": 64, "raid_level": "raid0", "base_bdevs": ["A", "B"]});
    target.call("bdev_raid_create", raid).unwrap();
    target.call("bdev_split_create", json!({"base_bdev": "R", "split_count": 2})).unwrap();
    target.call("bdev_passthru_create", passthru("P", "Rp1")).unwrap();
    let state = || {
        let arrays = target.call("bdev_raid_get_bdevs", json!({"category": "all"})).unwrap();
        (arrays[0]["state"].clone(), arrays[0]["num_base_bdevs_discovered"].clone())
    };
    assert_eq!(names(&target), [""; 0]);

    malloc(&target, "A");
    assert_eq!(state(), (json!("configuring"), json!(1)));
    malloc(&target, "B");

    assert_eq!(target.call("bdev_wait_for_examine", Value::Null), Ok(json!(true)));
    assert_eq!(names(&target), ["A", "B", "P", "R", "Rp0", "Rp1"]);
    assert_eq!(state(), (json!("online"), json!(2)));
    let uuid = |name: &str| target.call("bdev_get_bdevs", json!({"name": name})).unwrap()[0]["uuid"].clone();
    let before = uuid("P");
    delete(&target, "A");
    target.wait_until(|| names(&target) == ["B"]).unwrap();
    malloc(&target, "A");
    assert_eq!(names(&target), ["A", "B", "P", "R", "Rp0", "Rp1"]);
    assert_eq!(uuid("P"), before, "it is the same bdev");
}

#[test]
fn a_base_has_one_holder_and_the_log_says_who() {
    let target = Target::start().unwrap();
    malloc(&target, "M");
    target.call("bdev_passthru_create", passthru("P", "M")).unwrap();

    let second = target.call("bdev_passthru_create", passthru("Q", "M")).unwrap_err();
    let endpoint =
        target.call("vfu_virtio_create_blk_endpoint", json!({"name": "e", "bdev_name": "M"})).unwrap_err();

    assert_eq!((second.code, second.message.as_str()), (-1, "Operation not permitted"));
    assert_eq!((endpoint.code, endpoint.message.as_str()), (-32602, "Operation not permitted"));
    target.wait_until(|| target.log().contains("is claimed by passthru (exclusive_write)")).unwrap();
    let described = target.call("bdev_get_bdevs", json!({"name": "M"})).unwrap();
    assert_eq!(
        (&described[0]["claimed"], &described[0]["claim_type"]),
        (&json!(true), &json!("exclusive_write"))
    );
    assert_eq!(target.call("bdev_passthru_delete", json!({"name": "P"})), Ok(json!(true)));
    target.call("bdev_passthru_create", passthru("Q", "M")).unwrap();
}

#[test]
fn without_auto_examine_only_bases_that_are_named_are_used() {
    let target = Target::start_with(&["-m", "0x1", "--wait-for-rpc"]).unwrap();
    target.call("bdev_set_options", json!({"bdev_auto_examine": false})).unwrap();
    target.call("framework_start_init", Value::Null).unwrap();
    target.call("bdev_passthru_create", passthru("P", "M")).unwrap();
    malloc(&target, "M");
    assert_eq!(names(&target), ["M"]);

    target.call("bdev_examine", json!({"name": "M"})).unwrap();

    assert_eq!(names(&target), ["M", "P"]);
    assert_eq!(target.call("bdev_examine", json!({"name": "M"})).unwrap_err().code, -17);
}

#[test]
fn a_stack_goes_under_load_and_its_client_has_an_end() {
    let target = Target::start().unwrap();
    malloc(&target, "M");
    let delay = json!({"name": "D", "base_bdev_name": "M", "avg_read_latency": 500, "p99_read_latency": 900,
        "avg_write_latency": 500, "p99_write_latency": 900});
    target.call("bdev_delay_create", delay).unwrap();
    target.call("bdev_passthru_create", passthru("P", "D")).unwrap();
    serve(&target, "P");
    let client = start_load(&target, "P", "--rw randrw --depth 16 --seconds 1");
    target.wait_until(|| iostat(&target, "P")["num_read_ops"].as_u64() > Some(20)).unwrap();

    delete(&target, "M");

    client.wait_with_output().unwrap();
    assert_eq!(names(&target), [""; 0]);
    malloc(&target, "M");
    assert_eq!(names(&target), ["D", "M", "P"]);
}

#[test]
fn who_asks_for_a_bdev_that_comes_later_waits_for_it() {
    let target = Target::start().unwrap();

    let found = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| target.call("bdev_get_bdevs", json!({"name": "M", "timeout": 25_000})));
        malloc(&target, "M");
        waiting.join().unwrap()
    });

    assert_eq!(found.unwrap()[0]["name"], "M");
}

#[test]
fn bdevs_that_come_and_go_and_grow_are_notified() {
    let target = Target::start().unwrap();
    target.call("bdev_null_create", json!({"name": "N", "num_blocks": 2048, "block_size": 512})).unwrap();
    target.call("bdev_null_resize", json!({"name": "N", "new_size": 2})).unwrap();
    target.call("bdev_null_delete", json!({"name": "N"})).unwrap();

    let all = target.call("notify_get_notifications", json!({"id": 0})).unwrap();
    let second = target.call("notify_get_notifications", json!({"id": 1, "max": 1})).unwrap();

    let expected = json!([
        {"type": "bdev_register", "ctx": "N", "id": 0},
        {"type": "bdev_resize", "ctx": "N", "id": 1},
        {"type": "bdev_unregister", "ctx": "N", "id": 2},
    ]);
    assert_eq!(all, expected);
    assert_eq!(second[0], expected[1]);
}

#[test]
fn statistics_are_told_by_bdev_and_by_channel_sampled_and_reset() {
    let target = Target::start().unwrap();
    malloc(&target, "M");
    let delay = json!({"name": "D", "base_bdev_name": "M", "avg_read_latency": 2000, "p99_read_latency": 2000,
        "avg_write_latency": 2000, "p99_write_latency": 2000});
    target.call("bdev_delay_create", delay).unwrap();
    serve(&target, "D");
    target.call("bdev_set_qd_sampling_period", json!({"name": "D", "period": 1000})).unwrap();
    let client = start_load(&target, "D", "--rw randrw --depth 8 --seconds 1");
    target.wait_until(|| iostat(&target, "D")["io_time"].as_u64() > Some(0)).unwrap();
    let channels = target.call("bdev_get_iostat", json!({"names": ["D"], "per_channel": true})).unwrap();

    let done = report(&client.wait_with_output().unwrap());

    assert!(channels["channels"][0]["thread_id"].as_u64().is_some(), "{channels}");
    let stat = iostat(&target, "D");
    assert!(stat["num_read_ops"].as_u64() >= done["reads"].as_u64(), "{stat}");
    assert_eq!(stat["bytes_read"].as_u64(), stat["num_read_ops"].as_u64().map(|reads| reads * 4096));
    assert_eq!(stat["queue_depth_polling_period"], 1000);
    target.call("bdev_get_iostat", json!({"names": ["D"], "reset_mode": "all"})).unwrap();
    assert_eq!(iostat(&target, "D")["num_read_ops"], 0);
    target.call("bdev_set_qd_sampling_period", json!({"name": "D", "period": 0})).unwrap();
    assert_eq!(iostat(&target, "D")["io_time"], Value::Null);
}

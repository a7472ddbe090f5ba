//! What is set and asked for by RPC while a client does I/O.

use ringside_tests::Target;
use serde_json::{Value, json};

use super::{iostat, load, load_of, malloc, report, serve, start_load};

fn error_bdev() -> Target {
    let target = Target::start().unwrap();
    malloc(&target, "M");
    target.call("bdev_error_create", json!({"base_name": "M"})).unwrap();
    serve(&target, "EE_M");
    target
}

fn inject(target: &Target, more: Value) {
    let mut params = json!({"name": "EE_M"});
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    assert_eq!(target.call("bdev_error_inject_error", params), Ok(json!(true)));
}

#[test]
fn as_many_requests_fail_as_errors_were_injected() {
    let target = error_bdev();
    inject(&target, json!({"io_type": "read", "error_type": "failure", "num": 7}));

    let (_, failed) = load(&target, "EE_M", "--rw randread --depth 4 --seconds 0.3");
    let (_, failed_later) = load(&target, "EE_M", "--rw randread --depth 4 --seconds 0.1");

    // The client does not count what ends after its time.
    assert!(failed <= 7, "{failed}");
    assert_eq!(failed_later, 0);
    assert_eq!(iostat(&target, "EE_M")["io_error"], json!({"failed": 7}));
    inject(&target, json!({"io_type": "write", "error_type": "failure", "num": 1000}));
    inject(&target, json!({"io_type": "clear", "error_type": "failure"}));
    assert_eq!(load(&target, "EE_M", "--rw randwrite --seconds 0.1").1, 0, "taken back");
}

#[test]
fn errors_for_a_queue_depth_spare_clients_with_less_in_flight() {
    let target = error_bdev();
    inject(&target, json!({"io_type": "all", "error_type": "failure", "num": 5, "queue_depth": 3}));

    let (_, alone) = load(&target, "EE_M", "--rw randrw --depth 1 --seconds 0.1");
    assert_eq!(iostat(&target, "EE_M")["io_error"], json!({}));
    load_of(1000, &target, "EE_M", "--rw randrw --depth 16 --seconds 0.3");

    assert_eq!(alone, 0);
    assert_eq!(iostat(&target, "EE_M")["io_error"], json!({"failed": 10}), "so many of each kind");
}

#[test]
fn a_bdev_without_memory_is_asked_again_and_nothing_fails() {
    let target = error_bdev();
    inject(&target, json!({"io_type": "all", "error_type": "nomem", "num": 500}));

    let (requests, failed) = load(&target, "EE_M", "--rw randrw --depth 8 --seconds 0.3");

    assert!(requests > 0);
    assert_eq!(failed, 0);
}

#[test]
fn requests_that_find_no_buffer_wait_and_none_fails() {
    let target = Target::start_with(&["--wait-for-rpc"]).unwrap();
    let pools = json!({"small_pool_count": 64, "large_pool_count": 8});
    target.call("iobuf_set_options", pools).unwrap();
    // No buffer is a reactor's own.
    let caches = json!({"iobuf_small_cache_size": 0, "iobuf_large_cache_size": 0});
    target.call("bdev_set_options", caches).unwrap();
    target.call("framework_start_init", Value::Null).unwrap();
    let filename = target.dir().join("disk");
    std::fs::File::create(&filename).unwrap().set_len(16 << 20).unwrap();
    // Memory has to be aligned to blocks, and is not; a request of 64 KiB takes a large buffer.
    let disk = json!({"name": "U", "filename": filename, "block_size": 4096});
    target.call("bdev_uring_create", disk).unwrap();
    serve(&target, "U");

    let large = "--rw randrw --bs 64k --depth 32 --misalign 3 --seconds 0.2 --verify";
    let (requests, failed) = load_of(200, &target, "U", large);
    let (small_requests, small_failed) =
        load_of(200, &target, "U", "--rw randread --depth 32 --misalign 3 --seconds 0.2");

    assert!(requests > 0 && small_requests > 0);
    assert_eq!((failed, small_failed), (0, 0));
    let stats = target.call("iobuf_get_stats", Value::Null).unwrap();
    assert!(stats[0]["large_pool"]["retry"].as_u64() > Some(0), "{stats}");
    assert!(stats[0]["large_pool"]["main"].as_u64() >= Some(200), "{stats}");
    assert!(stats[0]["small_pool"]["main"].as_u64() >= Some(200), "{stats}");
}

#[test]
fn pending_requests_hang_until_they_are_resumed() {
    let target = error_bdev();
    inject(&target, json!({"io_type": "read", "error_type": "pending", "num": 3}));
    target.call("bdev_set_timeout", json!({"name": "EE_M", "timeout_us": 20_000})).unwrap();
    let mut client = start_load(&target, "EE_M", "--rw randread --depth 3 --seconds 0.1");
    let timeout = || target.call("bdev_get_bdevs", json!({"name": "EE_M"})).unwrap()[0]["timeout"].take();
    target.wait_until(|| timeout() == json!({"timeout_us": 20_000, "expired": 3})).unwrap();
    // All it may have in flight hangs: it cannot come to its end.
    assert!(client.try_wait().unwrap().is_none(), "it ended");
    target.wait_until(|| target.log().contains("requests take longer than the timeout")).unwrap();

    assert_eq!(target.call("bdev_error_resume_pending", json!({"name": "EE_M"})), Ok(json!(true)));

    let report = report(&client.wait_with_output().unwrap());
    assert_eq!(report["errors"], 0);
    assert_eq!(iostat(&target, "EE_M")["io_error"], json!({}));
}

#[test]
fn removal_ends_requests_that_hang() {
    let target = error_bdev();
    inject(&target, json!({"io_type": "read", "error_type": "pending", "num": 2}));
    let client = start_load(&target, "EE_M", "--rw randread --depth 2 --seconds 0.1");
    std::thread::sleep(std::time::Duration::from_millis(300));

    assert_eq!(target.call("bdev_error_delete", json!({"name": "EE_M"})), Ok(json!(true)));

    // The client waits for what it has in flight: it has an end.
    client.wait_with_output().unwrap();
    assert_eq!(target.call("bdev_malloc_delete", json!({"name": "M"})), Ok(json!(true)));
}

#[test]
fn a_corrupted_byte_is_found_by_a_client_that_verifies() {
    let target = error_bdev();
    assert_eq!(load(&target, "EE_M", "--rw randrw --depth 4 --seconds 0.1 --verify --region-size 64k").1, 0);
    let corrupt = json!({"io_type": "read", "error_type": "corrupt_data", "num": 1, "corrupt_offset": 1000,
        "corrupt_value": 255});
    inject(&target, corrupt);

    let client = start_load(&target, "EE_M", "--rw write --depth 1 --seconds 0.1 --verify --region-size 64k");

    let output = client.wait_with_output().unwrap();
    assert!(!output.status.success());
    let refused = target.call(
        "bdev_error_inject_error",
        json!({"name": "EE_M", "io_type": "read", "error_type": "corrupt_data"}),
    );
    assert_eq!(refused.unwrap_err().code, -22, "a value of 0 would change nothing");
}

#[test]
fn one_in_a_hundred_requests_takes_the_long_delay() {
    let target = Target::start().unwrap();
    malloc(&target, "M");
    let delay = json!({"name": "D", "base_bdev_name": "M", "avg_read_latency": 0, "p99_read_latency": 2_000_000,
        "avg_write_latency": 0, "p99_write_latency": 0});
    target.call("bdev_delay_create", delay).unwrap();
    target.call("bdev_enable_histogram", json!({"name": "D", "enable": true})).unwrap();
    serve(&target, "D");

    // Up to 12800 requests at a time, until all that are in flight take the long delay; then those end.
    load_of(4000, &target, "D", "--rw randread --depth 128 --seconds 1");

    let counts =
        target.call("bdev_get_histogram_borders", json!({"name": "D", "borders": [500_000]})).unwrap();
    // A border far from both: the target's figures are differences of passes, which others may hold up.
    let counts: Vec<u64> = serde_json::from_value(counts["borders_count"].clone()).unwrap();
    let (fast, all) = (counts[0], counts[1]);
    assert!((2..=30).contains(&(1000 * (all - fast) / all)), "{counts:?}: 10 in 1000 are slow");
    let faster = json!({"delay_bdev_name": "D", "latency_type": "p99_read", "latency_us": 0});
    assert_eq!(target.call("bdev_delay_update_latency", faster), Ok(json!(true)));
    target.call("bdev_enable_histogram", json!({"name": "D", "enable": true})).unwrap();
    load(&target, "D", "--rw randread --depth 8 --seconds 0.2");
    let counts =
        target.call("bdev_get_histogram_borders", json!({"name": "D", "borders": [500_000]})).unwrap();
    assert_eq!(counts["borders_count"][0], counts["borders_count"][1]);
}

#[test]
fn delays_hold_requests_at_least_as_long_as_they_say() {
    let target = Target::start().unwrap();
    malloc(&target, "M");
    let delay = json!({"name": "D", "base_bdev_name": "M", "avg_read_latency": 20_000, "p99_read_latency": 20_000,
        "avg_write_latency": 0, "p99_write_latency": 0});
    target.call("bdev_delay_create", delay).unwrap();
    target.call("bdev_enable_histogram", json!({"name": "D", "enable": true, "opc": "read"})).unwrap();
    serve(&target, "D");
    load(&target, "D", "--rw randwrite --depth 8 --seconds 0.1");

    let output = start_load(&target, "D", "--rw randread --depth 8 --seconds 2").wait_with_output().unwrap();

    // By the client's clock: the target's own figures are differences of passes, which others may hold up.
    let latency_ns = report(&output)["latency"]["min_ns"].as_f64().unwrap();
    assert!(latency_ns >= 19_900_000.0, "{latency_ns}");
    let counts = target.call("bdev_get_histogram_borders", json!({"name": "D", "borders": [1]})).unwrap();
    assert_eq!(counts["borders_count"], json!([0, iostat(&target, "D")["num_read_ops"]]), "reads only");
}

#[test]
fn a_limit_bounds_all_clients_together_and_is_taken_away_again() {
    let target = Target::start().unwrap();
    malloc(&target, "M");
    serve(&target, "M");
    let limit = |limits: Value| {
        let mut params = json!({"name": "M"});
        params.as_object_mut().unwrap().extend(limits.as_object().unwrap().clone());
        target.call("bdev_set_qos_limit", params)
    };
    assert_eq!(limit(json!({})).unwrap_err().message, "No rate limits specified");
    assert_eq!(limit(json!({})).unwrap_err().code, -22);
    limit(json!({"rw_ios_per_sec": 2000})).unwrap();

    let output = start_load(&target, "M", "--rw randrw --depth 32 --seconds 2").wait_with_output().unwrap();
    let limited = report(&output);
    limit(json!({"rw_ios_per_sec": 0, "w_mbytes_per_sec": 4})).unwrap();
    let output =
        start_load(&target, "M", "--rw randwrite --depth 32 --seconds 2").wait_with_output().unwrap();
    let by_bytes = report(&output);

    let described = target.call("bdev_get_bdevs", json!({"name": "M"})).unwrap();
    assert_eq!(described[0]["assigned_rate_limits"]["w_mbytes_per_sec"], 4);
    assert_eq!(limited["errors"], 0);
    // A bucket holds a hundredth of a second, and the clocks of both sides may differ by a pass.
    assert!(limited["iops"].as_f64().unwrap() <= 2000.0 * 1.05, "{}", limited["iops"]);
    assert!(by_bytes["mib_per_s"].as_f64().unwrap() <= 4.0 * 1.05, "{}", by_bytes["mib_per_s"]);
    limit(json!({"w_mbytes_per_sec": 0})).unwrap();
    let (requests, failed) = load(&target, "M", "--rw randrw --depth 32 --seconds 0.2");
    assert!(requests > 0);
    assert_eq!(failed, 0);
}

#[test]
fn a_histogram_holds_every_request_as_spdks_decoder_reads_it() {
    let target = Target::start().unwrap();
    malloc(&target, "M");
    serve(&target, "M");
    target.call("bdev_enable_histogram", json!({"name": "M", "enable": true})).unwrap();

    load(&target, "M", "--rw randrw --depth 8 --seconds 0.2");

    let histogram = target.call("bdev_get_histogram", json!({"name": "M"})).unwrap();
    let stat = iostat(&target, "M");
    let requests = stat["num_read_ops"].as_u64().unwrap() + stat["num_write_ops"].as_u64().unwrap();
    let buckets = words(histogram["histogram"].as_str().unwrap());
    assert_eq!(buckets.iter().sum::<u64>(), requests);
    let ranges = histogram["max_range"].as_u64().unwrap() - histogram["min_range"].as_u64().unwrap() + 1;
    assert_eq!(buckets.len() as u64, ranges << histogram["granularity"].as_u64().unwrap());
    target.call("bdev_enable_histogram", json!({"name": "M", "enable": false})).unwrap();
    load(&target, "M", "--rw randrw --depth 8 --seconds 0.1");
    let histogram = target.call("bdev_get_histogram", json!({"name": "M"})).unwrap();
    assert_eq!(words(histogram["histogram"].as_str().unwrap()).iter().sum::<u64>(), 0, "it is stopped");
}

/// Little-endian words in base64.
fn words(text: &str) -> Vec<u64> {
    let value = |digit: u8| match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|digit| *digit != b'=').map(value).collect();
    let bytes: Vec<u8> = digits
        .chunks(4)
        .flat_map(|four| {
            let word =
                four.iter().zip([18, 12, 6, 0]).map(|(digit, at)| u32::from(*digit) << at).sum::<u32>();
            word.to_be_bytes()[1..four.len()].to_vec()
        })
        .collect();
    bytes.chunks(8).map(|eight| u64::from_le_bytes(eight.try_into().unwrap())).collect()
}

//! Files that are not there, fill up, shrink or go: each a clear error, and a target that goes on.

use std::fs::File;

use ringside_tests::Target;
use serde_json::{Value, json};

use super::{iostat, load, load_of, serve};

const MIB: u64 = 1 << 20;

/// A file of that many MiB in the target's folder.
fn sparse(target: &Target, name: &str, mib: u64) -> String {
    let path = target.dir().join(name);
    File::create(&path).unwrap().set_len(mib * MIB).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn files_that_cannot_be_disks_are_refused_with_the_systems_reason() {
    let target = Target::start().unwrap();
    let aio = |filename: &str| {
        let params = json!({"name": "A", "filename": filename, "block_size": 512});
        let refused = target.call("bdev_aio_create", params).unwrap_err();
        (refused.code, refused.message)
    };
    let empty = sparse(&target, "empty", 0);
    let folder = target.dir().to_str().unwrap().to_owned();

    assert_eq!(aio("/dev/no-such-disk"), (-2, "No such file or directory".to_owned()));
    assert_eq!(aio(&folder), (-21, "Is a directory".to_owned()));
    assert_eq!(aio("/dev/null"), (-22, "Invalid argument".to_owned()));
    assert_eq!(aio(&empty), (-22, "Invalid argument".to_owned()));
    let uring = json!({"name": "U", "filename": "/dev/no-such-disk"});
    let refused = target.call("bdev_uring_create", uring).unwrap_err();
    assert_eq!((refused.code, refused.message.as_str()), (-32603, "Unable to create URING bdev."));
    target.wait_until(|| target.log().contains("/dev/no-such-disk: cannot be opened")).unwrap();
    assert_eq!(target.call("bdev_get_bdevs", Value::Null), Ok(json!([])));
}

#[test]
fn metadata_is_refused_in_words() {
    let target = Target::start().unwrap();
    let params =
        json!({"name": "M", "num_blocks": 2048, "block_size": 512, "md_size": 8, "md_interleave": true});

    let refused = target.call("bdev_malloc_create", params).unwrap_err();

    assert_eq!((refused.code, refused.message.as_str()), (-95, "metadata is not supported"));
}

#[test]
fn a_full_file_system_fails_the_writes_it_has_no_room_for_and_nothing_else() {
    let target = Target::start_with_small_disk(512 << 10, 4 * MIB).unwrap();
    let filename = target.dir().join("small/disk");
    let disk = json!({"name": "A", "filename": filename, "block_size": 4096, "fallocate": true});
    target.call("bdev_aio_create", disk).unwrap();
    serve(&target, "A");

    let (requests, failed) = load_of(1000, &target, "A", "--rw randwrite --depth 8 --seconds 0.2");
    let (reads, failed_reads) = load(&target, "A", "--rw randread --depth 8 --seconds 0.1");

    assert!(failed > 0 && requests > 0, "{failed} failed, {requests} did not: what fits is written");
    assert!(reads > 0);
    assert_eq!(failed_reads, 0);
    let errors = iostat(&target, "A")["io_error"].take();
    // The client does not count what ends after its time.
    assert!(
        errors["no_space"].as_u64() >= Some(failed) && errors.as_object().unwrap().len() == 1,
        "{errors}"
    );
    target.call("vfu_virtio_delete_endpoint", json!({"name": "A"})).unwrap();
    assert_eq!(target.call("bdev_aio_delete", json!({"name": "A"})), Ok(json!(true)));
}

#[test]
fn a_truncated_file_fails_reads_behind_its_end_until_it_is_long_again() {
    let target = Target::start().unwrap();
    let filename = sparse(&target, "disk", 8);
    target.call("bdev_uring_create", json!({"name": "U", "filename": filename, "block_size": 512})).unwrap();
    serve(&target, "U");
    let file = File::options().write(true).open(&filename).unwrap();

    file.set_len(4 * MIB).unwrap();
    let (_, failed) = load(&target, "U", "--rw randread --depth 8 --seconds 0.1 --offset 4m");
    let (_, failed_in_front) = load(&target, "U", "--rw randread --depth 8 --seconds 0.1 --region-size 4m");
    let shrunk = target.call("bdev_uring_rescan", json!({"name": "U"}));
    file.set_len(16 * MIB).unwrap();
    target.call("bdev_uring_rescan", json!({"name": "U"})).unwrap();

    assert!(failed > 0);
    assert_eq!(failed_in_front, 0);
    assert_eq!(shrunk.unwrap_err().code, -16, "it is in use");
    let described = target.call("bdev_get_bdevs", json!({"name": "U"})).unwrap();
    assert_eq!(described[0]["num_blocks"], 16 * MIB / 512);
    assert_eq!(load(&target, "U", "--rw randrw --depth 8 --seconds 0.1 --offset 8m").1, 0);
}

#[test]
fn a_file_that_is_replaced_stays_the_one_that_was_opened() {
    let target = Target::start().unwrap();
    let filename = sparse(&target, "disk", 8);
    target.call("bdev_uring_create", json!({"name": "U", "filename": filename, "block_size": 512})).unwrap();
    serve(&target, "U");

    std::fs::remove_file(&filename).unwrap();
    std::fs::write(&filename, "another file").unwrap();

    assert_eq!(load(&target, "U", "--rw randrw --depth 8 --seconds 0.1 --verify").1, 0);
    assert_eq!(std::fs::read_to_string(&filename).unwrap(), "another file");
}

#[test]
fn memory_is_there_when_a_malloc_bdev_is() {
    let target = Target::start().unwrap();
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", target.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
    };
    let before = resident();

    let disk = json!({"name": "M", "num_blocks": 64 * MIB / 512, "block_size": 512});
    target.call("bdev_malloc_create", disk).unwrap();

    assert!(resident() >= before + 64 * MIB, "no reactor takes the page faults");
}

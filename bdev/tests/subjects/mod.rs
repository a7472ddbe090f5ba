//! Files and stacks as subjects of the conformance suite, for the tests of this folder.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use bdev::conformance::Subject;
use bdev::types::{
    AioParams, DelayParams, ErrorParams, MallocParams, PassthruParams, RaidParams, SplitParams, UringParams,
    aio, delay, error, malloc, passthru, raid, split, uring,
};
use bdev::{Error, Registry};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

fn base(registry: &Arc<Registry>, name: &str, num_blocks: u64) {
    let params = MallocParams { name: Some(name.into()), ..MallocParams::new(512, num_blocks) };
    malloc::create(registry, params).expect("memory");
}

fn delay_on(registry: &Arc<Registry>, base: &str, us: u64) -> String {
    let params = DelayParams {
        name: "Delay0".into(),
        base_bdev_name: base.into(),
        uuid: None,
        avg_read_latency: us,
        p99_read_latency: 2 * us,
        avg_write_latency: us,
        p99_write_latency: 2 * us,
    };
    delay::create(registry, params).expect("the base is there");
    "Delay0".into()
}

fn raid_on(registry: &Arc<Registry>, level: raid::Level, bases: &[&str]) -> String {
    let params = RaidParams {
        name: "Raid0".into(),
        strip_size_kb: 4,
        raid_level: level,
        base_bdevs: bases.iter().map(|b| (*b).to_owned()).collect(),
        uuid: None,
        superblock: false,
    };
    raid::create(registry, params).expect("the bases are there");
    "Raid0".into()
}

/// A file in memory that has a path and goes with the process.
fn memory_file(size_bytes: u64) -> String {
    let fd: OwnedFd = memfd_create("subject", MemfdFlags::CLOEXEC).expect("a file in memory");
    ftruncate(&fd, size_bytes).expect("a sparse file");
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::mem::forget(fd);
    path
}

fn file(registry: &Arc<Registry>, name: &str) -> String {
    let filename = memory_file(1 << 20);
    let params = UringParams { name: name.into(), filename, block_size: 512, ..UringParams::default() };
    uring::create(registry, params).expect("a file can be opened").name().to_owned()
}

/// Makes the file of a uring bdev larger, and has that looked at.
fn grow_file(registry: &Arc<Registry>, name: &str, num_blocks: u64) -> Result<(), Error> {
    let described = registry.get(name)?.bdev().driver_specific();
    let filename = described["uring"]["filename"].as_str().expect("a uring bdev has a file");
    let file = std::fs::OpenOptions::new().write(true).open(filename).expect("the file is there");
    file.set_len(num_blocks * 512).expect("it grows");
    uring::rescan(registry, name)
}

pub(crate) const URING: Subject =
    Subject { make: |registry| file(registry, "Uring0"), keeps_data: true, grow: Some(grow_file) };

pub(crate) const AIO: Subject = Subject {
    make: |registry| {
        let filename = memory_file(1 << 20);
        let params = AioParams {
            name: "Aio0".into(),
            filename,
            block_size: 512,
            fallocate: true,
            ..AioParams::default()
        };
        aio::create(registry, params).expect("a file can be opened").name().to_owned()
    },
    keeps_data: true,
    grow: None,
};

pub(crate) const PASSTHRU: Subject = Subject {
    make: |registry| {
        base(registry, "M", 2048);
        let params = PassthruParams { name: "PT0".into(), base_bdev_name: "M".into(), uuid: None };
        passthru::create(registry, params).expect("the base is there");
        "PT0".into()
    },
    keeps_data: true,
    grow: None,
};

pub(crate) const DELAY: Subject = Subject {
    make: |registry| {
        base(registry, "M", 2048);
        delay_on(registry, "M", 1)
    },
    keeps_data: true,
    grow: None,
};

/// It grows with the file below it.
pub(crate) const DELAY_ON_URING: Subject = Subject {
    make: |registry| {
        let below = file(registry, "Uring0");
        delay_on(registry, &below, 1)
    },
    keeps_data: true,
    grow: Some(|registry, _name, num_blocks| grow_file(registry, "Uring0", num_blocks)),
};

pub(crate) const ERROR: Subject = Subject {
    make: |registry| {
        base(registry, "M", 2048);
        error::create(registry, ErrorParams { base_name: "M".into(), uuid: None })
            .expect("the base is there");
        "EE_M".into()
    },
    keeps_data: true,
    grow: None,
};

pub(crate) const SPLIT: Subject = Subject {
    make: |registry| {
        base(registry, "M", 3 * 2048);
        let params = SplitParams { base_bdev: "M".into(), split_count: 3, split_size_mb: 1 };
        assert_eq!(split::create(registry, params).expect("it fits"), ["Mp0", "Mp1", "Mp2"]);
        "Mp1".into()
    },
    keeps_data: true,
    grow: None,
};

pub(crate) const RAID0: Subject = Subject {
    make: |registry| {
        ["A", "B", "C"].iter().for_each(|name| base(registry, name, 1000));
        raid_on(registry, raid::Level::Raid0, &["A", "B", "C"])
    },
    keeps_data: true,
    grow: None,
};

pub(crate) const CONCAT: Subject = Subject {
    make: |registry| {
        [("A", 1000), ("B", 24), ("C", 1024)].iter().for_each(|(name, blocks)| base(registry, name, *blocks));
        raid_on(registry, raid::Level::Concat, &["A", "B", "C"])
    },
    keeps_data: true,
    grow: None,
};

/// delay on split on raid0 on uring.
pub(crate) const STACK: Subject = Subject {
    make: |registry| {
        file(registry, "U0");
        file(registry, "U1");
        let raid = raid_on(registry, raid::Level::Raid0, &["U0", "U1"]);
        let params = SplitParams { base_bdev: raid, split_count: 2, split_size_mb: 0 };
        split::create(registry, params).expect("it fits");
        delay_on(registry, "Raid0p1", 1)
    },
    keeps_data: true,
    grow: None,
};

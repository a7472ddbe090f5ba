//! The conformance suite on bdevs that stand on others, alone and in a stack.

use std::sync::Arc;

use bdev::Registry;
use bdev::conformance::Subject;
use bdev::types::{
    DelayParams, ErrorParams, MallocParams, PassthruParams, RaidParams, SplitParams, UringParams, delay,
    error, malloc, passthru, raid, split, uring,
};

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

mod passthru_on_malloc {
    use super::*;

    const SUBJECT: Subject = Subject {
        make: |registry| {
            base(registry, "M", 2048);
            let params = PassthruParams { name: "PT0".into(), base_bdev_name: "M".into(), uuid: None };
            passthru::create(registry, params).expect("the base is there");
            "PT0".into()
        },
        keeps_data: true,
        grows: false,
    };

    bdev::conformance_suite!(SUBJECT);
}

mod delay_on_malloc {
    use super::*;

    const SUBJECT: Subject = Subject {
        make: |registry| {
            base(registry, "M", 2048);
            delay_on(registry, "M", 1)
        },
        keeps_data: true,
        grows: false,
    };

    bdev::conformance_suite!(SUBJECT);
}

mod error_on_malloc {
    use super::*;

    const SUBJECT: Subject = Subject {
        make: |registry| {
            base(registry, "M", 2048);
            error::create(registry, ErrorParams { base_name: "M".into(), uuid: None })
                .expect("the base is there");
            "EE_M".into()
        },
        keeps_data: true,
        grows: false,
    };

    bdev::conformance_suite!(SUBJECT);
}

mod split_of_malloc {
    use super::*;

    const SUBJECT: Subject = Subject {
        make: |registry| {
            base(registry, "M", 3 * 2048);
            let params = SplitParams { base_bdev: "M".into(), split_count: 3, split_size_mb: 1 };
            assert_eq!(split::create(registry, params).expect("it fits"), ["Mp0", "Mp1", "Mp2"]);
            "Mp1".into()
        },
        keeps_data: true,
        grows: false,
    };

    bdev::conformance_suite!(SUBJECT);
}

mod raid0_of_three {
    use super::*;

    const SUBJECT: Subject = Subject {
        make: |registry| {
            ["A", "B", "C"].iter().for_each(|name| base(registry, name, 1000));
            raid_on(registry, raid::Level::Raid0, &["A", "B", "C"])
        },
        keeps_data: true,
        grows: false,
    };

    bdev::conformance_suite!(SUBJECT);
}

mod concat_of_three {
    use super::*;

    const SUBJECT: Subject = Subject {
        make: |registry| {
            [("A", 1000), ("B", 24), ("C", 1024)]
                .iter()
                .for_each(|(name, blocks)| base(registry, name, *blocks));
            raid_on(registry, raid::Level::Concat, &["A", "B", "C"])
        },
        keeps_data: true,
        grows: false,
    };

    bdev::conformance_suite!(SUBJECT);
}

/// delay on split on raid0 on uring.
mod stack_of_four {
    use super::*;

    fn file(registry: &Arc<Registry>, name: &str) {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a temporary file");
        file.as_file().set_len(1 << 20).expect("a sparse file");
        let filename = file.path().to_str().expect("a plain path").to_owned();
        let params = UringParams { name: name.into(), filename, block_size: 512, ..UringParams::default() };
        uring::create(registry, params).expect("a file can be opened");
    }

    const SUBJECT: Subject = Subject {
        make: |registry| {
            file(registry, "U0");
            file(registry, "U1");
            let raid = raid_on(registry, raid::Level::Raid0, &["U0", "U1"]);
            let params = SplitParams { base_bdev: raid, split_count: 2, split_size_mb: 0 };
            split::create(registry, params).expect("it fits");
            delay_on(registry, "Raid0p1", 1)
        },
        keeps_data: true,
        grows: false,
    };

    bdev::conformance_suite!(SUBJECT);
}

//! The conformance suite on `aio` as it is made without further params; `stacks.rs` has it with fallocate.

use bdev::conformance::Subject;
use bdev::types::{AioParams, aio};

const SUBJECT: Subject = Subject {
    make: |registry| {
        let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a temporary file");
        file.as_file().set_len(1 << 20).expect("a sparse file");
        let filename = file.path().to_str().expect("a plain path").to_owned();
        let params = AioParams { name: "Aio0".to_owned(), filename, block_size: 512, ..AioParams::default() };
        aio::create(registry, params).expect("a file can be opened").name().to_owned()
    },
    keeps_data: true,
    grow: None,
};

bdev::conformance_suite!(SUBJECT);

//! The conformance suite on `aio`, with and without fallocate.

use std::sync::Arc;

use bdev::Registry;
use bdev::conformance::Subject;
use bdev::types::{AioParams, aio};

fn make(registry: &Arc<Registry>, fallocate: bool) -> String {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").expect("a temporary file");
    file.as_file().set_len(1 << 20).expect("a sparse file");
    let filename = file.path().to_str().expect("a plain path").to_owned();
    let params =
        AioParams { name: "Aio0".to_owned(), filename, block_size: 512, fallocate, ..AioParams::default() };
    aio::create(registry, params).expect("a file can be opened").name().to_owned()
}

mod plain {
    use super::*;

    const SUBJECT: Subject =
        Subject { make: |registry| make(registry, false), keeps_data: true, grows: false };

    bdev::conformance_suite!(SUBJECT);
}

mod with_fallocate {
    use super::*;

    const SUBJECT: Subject =
        Subject { make: |registry| make(registry, true), keeps_data: true, grows: false };

    bdev::conformance_suite!(SUBJECT);
}

//! The conformance suite on `malloc`, with blocks of 512 and 4096 bytes.

use std::sync::Arc;

use bdev::Registry;
use bdev::conformance::Subject;
use bdev::types::{Malloc, MallocParams};

fn make(registry: &Arc<Registry>, block_size: u32, num_blocks: u64) -> String {
    let malloc =
        Malloc::new("Malloc0".to_owned(), &MallocParams::new(block_size, num_blocks)).expect("memory");
    registry.register(Arc::new(malloc)).expect("a new registry").name().to_owned()
}

mod blocks_of_512 {
    use super::*;

    // 1 MiB: four times what is copied within one submit.
    const SUBJECT: Subject =
        Subject { make: |registry| make(registry, 512, 2048), keeps_data: true, grow: None };

    bdev::conformance_suite!(SUBJECT);
}

mod blocks_of_4096 {
    use super::*;

    // 4 MiB: four steps of a long transfer.
    const SUBJECT: Subject =
        Subject { make: |registry| make(registry, 4096, 1024), keeps_data: true, grow: None };

    bdev::conformance_suite!(SUBJECT);
}

//! The conformance suite on `null`: everything but contents.

use std::sync::Arc;

use bdev::conformance::Subject;
use bdev::types::{Null, NullParams};

const SUBJECT: Subject = Subject {
    make: |registry| {
        let params =
            NullParams { name: "Null0".into(), block_size: 512, num_blocks: 2048, ..NullParams::default() };
        registry
            .register(Arc::new(Null::new(params).expect("valid")))
            .expect("a new registry")
            .name()
            .to_owned()
    },
    keeps_data: false,
    grow: Some(bdev::conformance::by_resize),
};

bdev::conformance_suite!(SUBJECT);

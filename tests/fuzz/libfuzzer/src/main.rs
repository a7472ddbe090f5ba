//! The fuzz targets under libFuzzer, which guides them by coverage: `scripts/fuzz` builds and calls it.
//!
//! The target's name is in the variable FUZZ_TARGET.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

fn chosen() -> fuzz::Target {
    static CHOSEN: OnceLock<fuzz::Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        fuzz::target(&name).expect("FUZZ_TARGET names a target")
    })
}

fuzz_target!(|input: &[u8]| (chosen().run)(input));

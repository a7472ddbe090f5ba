//! Accesses to the configuration space: what is read-only stays, the list of capabilities never breaks.

use vfu::pci::{Bar, ConfigSpace, Identity, Layout, VendorCap};

use crate::choices::Choices;

pub(crate) fn layout() -> Layout {
    let identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1042,
        revision: 1,
        class: [1, 0, 0],
    };
    let mut bars = [None; 6];
    bars[0] = Some(Bar { size: 0x4000, wide: true });
    bars[2] = Some(Bar { size: 0x1000, wide: false });
    bars[3] = Some(Bar { size: 0x1000, wide: false });
    let window = VendorCap {
        body: vec![5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        writable: vec![
            0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ],
    };
    Layout {
        identity,
        bars,
        vectors: 5,
        msix_table_bar: 2,
        msix_pba_bar: 3,
        vendor_caps: vec![VendorCap { body: vec![1, 0, 0, 0], writable: vec![] }, window],
        serial: 0x1234_5678_9abc_def0,
    }
}

/// What a driver relies on, whatever it has written.
pub(crate) fn check(config: &ConfigSpace) {
    let mut head = [0; 64];
    config.read(0, &mut head);
    assert_eq!(head[..4], [0xf4, 0x1a, 0x42, 0x10]);
    assert_eq!(head[6] & 0x10, 0x10);
    assert_eq!(head[0x0e], 0);
    let bar = u32::from_le_bytes([head[0x10], head[0x11], head[0x12], head[0x13]]);
    assert_eq!(bar & 0x3fff, 4, "BAR 0 is 16 KiB and 64-bit");
    let mut at = head[0x34];
    let mut links = 0;
    while at != 0 {
        assert!(at >= 0x40 && at % 4 == 0);
        let mut next = [0];
        config.read(u64::from(at) + 1, &mut next);
        at = next[0];
        links += 1;
        assert!(links < 48, "the list loops");
    }
}

pub(super) fn run(input: &[u8]) {
    thread_local! {
        static FRESH: ConfigSpace = layout().config_space();
    }
    let mut config = FRESH.with(ConfigSpace::clone);
    let mut choices = Choices::new(input);
    while !choices.is_empty() {
        let kind = choices.u8();
        let offset = match kind >> 4 {
            0..12 => u64::from(choices.u8()),
            12..14 => u64::from(choices.below(0x1010)),
            _ => choices.address(),
        };
        let len = usize::from(choices.u8() % 17);
        match kind & 7 {
            0..5 => {
                let mut data = [0; 16];
                let from = choices.bytes(len.min(16));
                data[..from.len()].copy_from_slice(from);
                let effects = config.write(offset, &data[..len.min(16)]);
                if effects.reset {
                    config.reset();
                }
            }
            5 | 6 => {
                let mut data = [0; 16];
                config.read(offset, &mut data[..len.min(16)]);
            }
            _ => config.reset(),
        }
    }
    check(&config);
}

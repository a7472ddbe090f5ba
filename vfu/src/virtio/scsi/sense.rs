//! How a command ends badly: sense data in the fixed format (SPC-4, 4.5.3).

/// Bytes of fixed-format sense data.
pub(super) const FIXED_LEN: usize = 18;

/// A sense key with its code and qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sense {
    /// Sense key.
    pub(super) key: u8,
    /// Additional sense code.
    pub(super) code: u8,
    /// Its qualifier.
    pub(super) qualifier: u8,
}

const fn sense(key: u8, code: u8, qualifier: u8) -> Sense {
    Sense { key, code, qualifier }
}

impl Sense {
    pub(super) const NONE: Self = sense(0, 0, 0);
    pub(super) const MEDIUM_GONE: Self = sense(0x2, 0x3a, 0);
    pub(super) const READ_ERROR: Self = sense(0x3, 0x11, 0);
    pub(super) const WRITE_ERROR: Self = sense(0x3, 0x0c, 0);
    pub(super) const HARDWARE: Self = sense(0x4, 0x44, 0);
    pub(super) const INVALID_OPCODE: Self = sense(0x5, 0x20, 0);
    pub(super) const OUT_OF_RANGE: Self = sense(0x5, 0x21, 0);
    pub(super) const INVALID_FIELD: Self = sense(0x5, 0x24, 0);
    pub(super) const BAD_LUN: Self = sense(0x5, 0x25, 0);
    pub(super) const BAD_PARAMETER: Self = sense(0x5, 0x26, 0);
    pub(super) const BAD_RELEASE: Self = sense(0x5, 0x26, 0x04);
    pub(super) const PARAMETER_LENGTH: Self = sense(0x5, 0x1a, 0);
    pub(super) const NO_REGISTRATIONS_LEFT: Self = sense(0x5, 0x55, 0x04);
    pub(super) const RESET: Self = sense(0x6, 0x29, 0x03);
    pub(super) const CAPACITY_CHANGED: Self = sense(0x6, 0x2a, 0x09);
    pub(super) const PREEMPTED: Self = sense(0x6, 0x2a, 0x03);
    pub(super) const RESERVATIONS_RELEASED: Self = sense(0x6, 0x2a, 0x04);
    pub(super) const REGISTRATIONS_PREEMPTED: Self = sense(0x6, 0x2a, 0x05);
    pub(super) const WRITE_PROTECTED: Self = sense(0x7, 0x27, 0);
    pub(super) const NO_SPACE: Self = sense(0x7, 0x27, 0x07);
    pub(super) const ABORTED: Self = sense(0xb, 0, 0);
    pub(super) const MISCOMPARE: Self = sense(0xe, 0x1d, 0);

    /// As bytes.
    pub(super) fn bytes(self) -> [u8; FIXED_LEN] {
        let mut bytes = [0; FIXED_LEN];
        // Current error, fixed format.
        bytes[0] = 0x70;
        bytes[2] = self.key;
        bytes[7] = (FIXED_LEN - 8) as u8;
        bytes[12] = self.code;
        bytes[13] = self.qualifier;
        bytes
    }

    /// As one number, for an atomic; never zero but for [`Self::NONE`].
    pub(super) fn packed(self) -> u32 {
        u32::from(self.key) << 16 | u32::from(self.code) << 8 | u32::from(self.qualifier)
    }

    /// The other way round.
    pub(super) fn unpacked(word: u32) -> Self {
        let [_, key, code, qualifier] = word.to_be_bytes();
        sense(key, code, qualifier)
    }
}

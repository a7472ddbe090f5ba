//! The register file as bytes (Base, 3.1.3): what reads where, and which registers a write touches.

use crate::nvme::spec::{self, reg};

/// A register that a host may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Intms,
    Intmc,
    Cc,
    Csts,
    Nssr,
    Aqa,
    Asq,
    Acq,
}

impl Register {
    /// In the order in which one write takes effect: the one that enables comes last.
    const WRITABLE: [Self; 8] =
        [Self::Intms, Self::Intmc, Self::Csts, Self::Aqa, Self::Asq, Self::Acq, Self::Nssr, Self::Cc];

    const fn place(self) -> (usize, usize) {
        match self {
            Self::Intms => (reg::INTMS, 4),
            Self::Intmc => (reg::INTMC, 4),
            Self::Cc => (reg::CC, 4),
            Self::Csts => (reg::CSTS, 4),
            Self::Nssr => (reg::NSSR, 4),
            Self::Aqa => (reg::AQA, 4),
            Self::Asq => (reg::ASQ, 8),
            Self::Acq => (reg::ACQ, 8),
        }
    }
}

/// Values of the registers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Registers {
    pub(super) cap: u64,
    pub(super) intms: u32,
    pub(super) cc: u32,
    pub(super) csts: u32,
    pub(super) aqa: u32,
    pub(super) asq: u64,
    pub(super) acq: u64,
}

/// Time until ready, in units of 500 ms: CAP.TO and CRTO.CRWMT.
const READY_TIMEOUT: u32 = 40;

/// Controller Capabilities (Base, 3.1.3.1).
pub(super) fn capabilities(max_queue_depth: u16, subsystem_reset: bool) -> u64 {
    // MQES is zero-based. Queues are contiguous (CQR); doorbells are four bytes apart; pages of 4 KiB.
    let mqes = u64::from(max_queue_depth - 1);
    let contiguous = 1 << 16;
    let timeout = u64::from(READY_TIMEOUT) << 24;
    let nssrs = u64::from(subsystem_reset) << 36;
    // The NVM command set, alone and among I/O command sets.
    let css = 1 << 37 | 1 << 43;
    // Controller Ready With Media (CRMS.CRWMS).
    let crms = 1 << 59;
    mqes | contiguous | timeout | nssrs | css | crms
}

impl Registers {
    fn image(&self) -> [u8; reg::LEN] {
        let mut bytes = [0; reg::LEN];
        let mut put = |at: usize, value: u64, len: usize| {
            bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
        };
        put(reg::CAP, self.cap, 8);
        put(reg::VS, spec::VERSION.into(), 4);
        put(reg::INTMS, self.intms.into(), 4);
        put(reg::INTMC, self.intms.into(), 4);
        put(reg::CC, self.cc.into(), 4);
        put(reg::CSTS, self.csts.into(), 4);
        put(reg::AQA, self.aqa.into(), 4);
        put(reg::ASQ, self.asq, 8);
        put(reg::ACQ, self.acq, 8);
        put(reg::CRTO, READY_TIMEOUT.into(), 4);
        bytes
    }

    /// Reads; what lies behind the registers reads as zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let image = self.image();
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| image.get(at)).copied().unwrap_or(0);
        }
    }

    /// The registers that a write touches, with their new values. A part of a register leaves the rest as it is, but
    /// where writing means an action the rest is zero.
    pub(super) fn patch(&self, offset: u64, data: &[u8]) -> Vec<(Register, u64)> {
        let mut image = self.image();
        for at in [reg::INTMS, reg::INTMC, reg::CSTS, reg::NSSR] {
            image[at..at + 4].fill(0);
        }
        let from = usize::try_from(offset).unwrap_or(reg::LEN).min(reg::LEN);
        let to = (from + data.len()).min(reg::LEN);
        image[from..to].copy_from_slice(&data[..to - from]);
        let touched = Register::WRITABLE.into_iter().filter_map(|register| {
            let (at, len) = register.place();
            let mut value = [0; 8];
            value[..len].copy_from_slice(&image[at..at + len]);
            (at < to && from < at + len).then(|| (register, u64::from_le_bytes(value)))
        });
        touched.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_an_address_keeps_the_other_half() {
        let registers = Registers { asq: 0x1111_2222_3333_4000, ..Registers::default() };
        let touched = registers.patch(reg::ASQ as u64 + 4, &0xaaaa_bbbb_u32.to_le_bytes());
        assert_eq!(touched, [(Register::Asq, 0xaaaa_bbbb_3333_4000)]);
    }

    #[test]
    fn write_over_several_registers_enables_last() {
        let touched = Registers::default().patch(reg::CC as u64, &[1; 36]);
        assert_eq!(touched.last().unwrap().0, Register::Cc);
        assert_eq!(touched.len(), 6);
    }

    #[test]
    fn capabilities_and_version_are_read_only() {
        assert!(Registers::default().patch(0, &[0xff; 12]).is_empty());
    }

    #[test]
    fn reads_at_any_width_and_behind_the_end() {
        let registers = Registers { cap: capabilities(256, false), ..Registers::default() };
        let mut mqes = [0; 2];
        registers.read(0, &mut mqes);
        assert_eq!(u16::from_le_bytes(mqes), 255);
        let mut behind = [7; 8];
        registers.read(reg::LEN as u64 - 4, &mut behind);
        assert_eq!(behind, [0; 8]);
    }
}

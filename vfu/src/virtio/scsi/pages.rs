//! What a unit says of itself: INQUIRY with its vital product data, MODE SENSE, READ CAPACITY, REPORT LUNS. Pure: a
//! description in, bytes out. The pages are those that Linux and Windows read.

use bdev::{BdevInfo, OpKind};

/// What of a bdev the pages tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) info: &'a BdevInfo,
    pub(super) writable: bool,
    pub(super) unmaps: bool,
    pub(super) target: u8,
}

impl<'a> Facts<'a> {
    pub(super) fn of(descriptor: &'a bdev::Descriptor, target: u8) -> Self {
        let writable = descriptor.is_writable();
        let unmaps = writable && descriptor.bdev().supports(OpKind::Unmap);
        Self { info: descriptor.info(), writable, unmaps, target }
    }

    fn caches(&self) -> bool {
        self.info.write_cache
    }
}

fn text(to: &mut Vec<u8>, text: &str, len: usize) {
    let bytes = text.bytes().map(|byte| if byte.is_ascii_graphic() || byte == b' ' { byte } else { b'_' });
    to.extend(bytes.chain(std::iter::repeat(b' ')).take(len));
}

/// Standard INQUIRY data (SPC-4, 6.6.2); for a unit that is not there, a peripheral that cannot be.
pub(super) fn inquiry(facts: Option<Facts<'_>>) -> Vec<u8> {
    let peripheral = if facts.is_some() { 0 } else { 0x7f };
    // SPC-4; hierarchical format 2; command queuing.
    let mut data = vec![peripheral, 0, 6, 0x12, 0, 0, 0, 2];
    text(&mut data, "RINGSIDE", 8);
    text(&mut data, facts.map_or("", |facts| facts.info.product_name), 16);
    text(&mut data, "0001", 4);
    data.resize(58, 0);
    // Version descriptors: SAM-5, SPC-4, SBC-3.
    for version in [0x00a0_u16, 0x0460, 0x04c0] {
        data.extend(version.to_be_bytes());
    }
    data.resize(74, 0);
    data[4] = (data.len() - 5) as u8;
    data
}

/// The pages there are, in order.
const VITAL: [u8; 6] = [0x00, 0x80, 0x83, 0xb0, 0xb1, 0xb2];

/// A vital product data page (SPC-4, 7.8; SBC-3, 6.5).
pub(super) fn vital(facts: Facts<'_>, page: u8) -> Option<Vec<u8>> {
    let info = facts.info;
    let mut body = Vec::new();
    match page {
        0x00 => body.extend(VITAL),
        0x80 => body.extend(info.name.bytes().take(64)),
        0x83 => {
            // A T10 vendor ID that is the name, and a locally assigned NAA that is the UUID's start.
            let name = info.name.as_bytes();
            let name = &name[..name.len().min(64)];
            body.extend([2, 1, 0, 8 + name.len() as u8]);
            text(&mut body, "RINGSIDE", 8);
            body.extend(name);
            let naa = info.uuid.as_u64_pair().0 >> 4 | 0x3 << 60;
            body.extend([1, 3, 0, 8]);
            body.extend(naa.to_be_bytes());
            // The relative target port.
            body.extend([1, 0x14, 0, 4, 0, 0, 0, facts.target + 1]);
        }
        0xb0 => {
            body.resize(60, 0);
            let mut put = |at: usize, value: u32| body[at..at + 4].copy_from_slice(&value.to_be_bytes());
            // Offsets are the page's less its header of four bytes.
            put(4, info.max_io_blocks);
            put(8, info.optimal_write_size);
            if facts.unmaps {
                put(16, u32::MAX);
                put(20, super::steps::MAX_UNMAPS);
                put(24, info.preferred_unmap_granularity.max(1));
            }
            // WSNZ stays off: a WRITE SAME of no blocks goes to the end.
            body[32..40].copy_from_slice(&u64::from(u32::MAX).to_be_bytes());
        }
        0xb1 => {
            body.resize(60, 0);
            // Non-rotating.
            body[1] = 1;
        }
        0xb2 => {
            let unmaps = if facts.unmaps { 0xe0 } else { 0 };
            let reads_zero = if facts.unmaps && info.unmap_reads_zero { 4 } else { 0 };
            body.extend([0, unmaps | reads_zero, if facts.unmaps { 2 } else { 0 }, 0]);
        }
        _ => return None,
    }
    let mut data = vec![0, page];
    data.extend((body.len() as u16).to_be_bytes());
    data.extend(body);
    Some(data)
}

/// The mode pages there are: caching (SBC-3, 6.4.5), control (SPC-4, 7.5.8), informational exceptions (7.5.14).
fn mode_pages(facts: Facts<'_>, page: u8, changeable: bool) -> Option<Vec<u8>> {
    let mut caching = vec![0; 20];
    (caching[0], caching[1]) = (0x08, 18);
    let mut control = vec![0; 12];
    (control[0], control[1]) = (0x0a, 10);
    let mut exceptions = vec![0; 12];
    (exceptions[0], exceptions[1]) = (0x1c, 10);
    if !changeable {
        caching[2] = if facts.caches() { 4 } else { 0 };
        // Unrestricted reordering; the busy timeout is unlimited.
        control[3] = 0x10;
        control[8..10].copy_from_slice(&[0xff, 0xff]);
    }
    match page {
        0x08 => Some(caching),
        0x0a => Some(control),
        0x1c => Some(exceptions),
        0x3f => Some([caching, control, exceptions].concat()),
        _ => None,
    }
}

/// MODE SENSE data, in the form that was asked for.
pub(super) fn mode_sense(facts: Facts<'_>, command: super::cdb::Command) -> Option<Vec<u8>> {
    let super::cdb::Command::ModeSense { page, subpage, long, no_descriptor, changeable, .. } = command
    else {
        return None;
    };
    if !matches!(subpage, 0 | 0xff) {
        return None;
    }
    let pages = mode_pages(facts, page, changeable)?;
    // Write protection, and that DPO and FUA are understood.
    let flags = 0x10 | if facts.writable { 0 } else { 0x80 };
    let descriptor = if no_descriptor {
        vec![]
    } else {
        let blocks = u32::try_from(facts.info.num_blocks()).unwrap_or(u32::MAX);
        [blocks.to_be_bytes(), facts.info.block_size.to_be_bytes()].concat()
    };
    let mut data = if long {
        vec![0, 0, 0, flags, 0, 0, 0, descriptor.len() as u8]
    } else {
        vec![0, 0, flags, descriptor.len() as u8]
    };
    data.extend(descriptor);
    data.extend(pages);
    if long {
        let len = (data.len() - 2) as u16;
        data[..2].copy_from_slice(&len.to_be_bytes());
    } else {
        data[0] = (data.len() - 1) as u8;
    }
    Some(data)
}

/// READ CAPACITY (10): all ones where it does not fit.
pub(super) fn capacity(info: &BdevInfo) -> Vec<u8> {
    let last = u32::try_from(info.num_blocks().saturating_sub(1)).unwrap_or(u32::MAX);
    [last.to_be_bytes(), info.block_size.to_be_bytes()].concat()
}

/// READ CAPACITY (16) (SBC-3, 5.16).
pub(super) fn capacity_long(facts: Facts<'_>) -> Vec<u8> {
    let info = facts.info;
    let mut data = info.num_blocks().saturating_sub(1).to_be_bytes().to_vec();
    data.extend(info.block_size.to_be_bytes());
    data.resize(32, 0);
    data[13] = u8::try_from((info.physical_block_size / info.block_size).max(1).ilog2()).unwrap_or(0);
    if facts.unmaps {
        data[14] = 0x80 | if info.unmap_reads_zero { 0x40 } else { 0 };
    }
    data
}

/// REPORT LUNS: unit 0, where there is one.
pub(super) fn report_luns(exists: bool) -> Vec<u8> {
    let mut data = vec![0; 8];
    if exists {
        data[3] = 8;
        data.extend([0; 8]);
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> BdevInfo {
        let mut info = BdevInfo::new("test", "Test disk", "Test0".to_owned(), 512, 1 << 33);
        info.physical_block_size = 4096;
        info.unmap_reads_zero = true;
        info
    }

    fn facts(info: &BdevInfo) -> Facts<'_> {
        Facts { info, writable: true, unmaps: true, target: 3 }
    }

    #[test]
    fn every_page_that_is_listed_is_there_and_says_its_number_and_length() {
        let info = info();
        let list = vital(facts(&info), 0).unwrap();
        for &page in &list[4..] {
            let data = vital(facts(&info), page).unwrap();
            assert_eq!(data[1], page);
            assert_eq!(usize::from(u16::from_be_bytes([data[2], data[3]])), data.len() - 4);
        }
        assert!(vital(facts(&info), 0x85).is_none());
    }

    #[test]
    fn large_unit_tells_its_size_in_the_long_form_only() {
        let info = info();
        assert_eq!(capacity(&info)[..4], [0xff; 4]);
        let long = capacity_long(facts(&info));
        assert_eq!(long[..8], ((1_u64 << 33) - 1).to_be_bytes());
        assert_eq!((long[13], long[14]), (3, 0xc0));
    }

    #[test]
    fn mode_pages_tell_cache_and_protection() {
        let mut info = info();
        info.write_cache = true;
        let read_only = Facts { writable: false, ..facts(&info) };
        let sense = |page, no_descriptor| super::super::cdb::Command::ModeSense {
            page,
            subpage: 0,
            long: false,
            no_descriptor,
            changeable: false,
            room: 255,
        };
        let data = mode_sense(read_only, sense(0x3f, false)).unwrap();
        assert_eq!((data[2], data[3]), (0x90, 8));
        assert_eq!((data[12], data[14]), (0x08, 4), "the caching page, with its cache on");
        assert_eq!(usize::from(data[0]), data.len() - 1);
        assert!(mode_sense(read_only, sense(0x05, true)).is_none());
    }
}

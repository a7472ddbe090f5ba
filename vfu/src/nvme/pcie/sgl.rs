//! Scatter Gather Lists (Base, 4.1.2): data blocks, segments, last segments.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::memory::Lists;
use crate::nvme::spec::Status;

/// Descriptors that are read at a time.
const CHUNK: usize = 32;
/// Most segments of a list: a list that does not end is not walked to the end.
const MAX_SEGMENTS: u32 = 256;
/// Most descriptors of a list. A data block of no bytes is allowed, so the data do not bound them.
const MAX_DESCRIPTORS: u64 = 16_384;

/// A descriptor.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Descriptor {
    addr: u64,
    len: u32,
    reserved: [u8; 3],
    /// Type in the upper half, subtype in the lower.
    id: u8,
}
const _: () = assert!(size_of::<Descriptor>() == 16);

const DATA_BLOCK: u8 = 0x0;
const SEGMENT: u8 = 0x2;
const LAST_SEGMENT: u8 = 0x3;

impl Descriptor {
    /// Its type; the only subtype over PCIe is an address.
    fn kind(&self) -> Result<u8, Status> {
        if self.id & 0xf == 0 { Ok(self.id >> 4) } else { Err(Status::SGL_TYPE) }
    }
}

/// Calls `each` with address and length of every piece of `len` bytes of data, in order.
///
/// # Errors
/// The status of the command; `each` may have been called before.
pub(super) fn walk(
    lists: &impl Lists,
    pointer: [u64; 2],
    len: u64,
    mut each: impl FnMut(u64, u32) -> Result<(), Status>,
) -> Result<(), Status> {
    let mut segment: Descriptor = zerocopy::transmute!(pointer);
    let mut left = len;
    let mut block = |descriptor: &Descriptor, left: &mut u64| {
        if u64::from(descriptor.len) > *left {
            // Longer lists than data are not offered (SGLS bit 18).
            return Err(Status::DATA_SGL_LENGTH);
        }
        *left -= u64::from(descriptor.len);
        if descriptor.len == 0 { Ok(()) } else { each(descriptor.addr, descriptor.len) }
    };
    if segment.kind()? == DATA_BLOCK {
        block(&segment, &mut left)?;
        return if left == 0 { Ok(()) } else { Err(Status::DATA_SGL_LENGTH) };
    }
    let mut seen = 0;
    for _ in 0..MAX_SEGMENTS {
        let is_last = match segment.kind()? {
            SEGMENT => false,
            LAST_SEGMENT => true,
            _ => return Err(Status::SGL_TYPE),
        };
        let count = u64::from(segment.len) / 16;
        if count == 0
            || !segment.len.is_multiple_of(16)
            || segment.addr.checked_add(segment.len.into()).is_none()
        {
            return Err(Status::INVALID_SGL_SEGMENT);
        }
        seen += count;
        if seen > MAX_DESCRIPTORS {
            return Err(Status::INVALID_SGL_COUNT);
        }
        match self::segment(lists, segment.addr, count, is_last, &mut left, &mut block)? {
            Some(next) => segment = next,
            None if left == 0 => return Ok(()),
            None => return Err(Status::DATA_SGL_LENGTH),
        }
    }
    Err(Status::INVALID_SGL_COUNT)
}

/// One segment: its blocks, and where the next one is.
fn segment(
    lists: &impl Lists,
    start: u64,
    count: u64,
    is_last: bool,
    left: &mut u64,
    block: &mut impl FnMut(&Descriptor, &mut u64) -> Result<(), Status>,
) -> Result<Option<Descriptor>, Status> {
    let mut chunk = [Descriptor::default(); CHUNK];
    for from in (0..count).step_by(CHUNK) {
        let n = usize::try_from(count - from).unwrap_or(CHUNK).min(CHUNK);
        lists.read(start + from * 16, chunk[..n].as_mut_bytes())?;
        for (at, descriptor) in (from..).zip(&chunk[..n]) {
            match descriptor.kind()? {
                DATA_BLOCK => block(descriptor, left)?,
                // Only the last descriptor of a segment that is not the last may point on.
                SEGMENT | LAST_SEGMENT if !is_last && at == count - 1 => return Ok(Some(*descriptor)),
                SEGMENT | LAST_SEGMENT => return Err(Status::INVALID_SGL_SEGMENT),
                _ => return Err(Status::SGL_TYPE),
            }
        }
    }
    if is_last { Ok(None) } else { Err(Status::INVALID_SGL_SEGMENT) }
}

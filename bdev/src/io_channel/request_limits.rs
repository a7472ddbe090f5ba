//! What a type cannot take in one request, and whether a request is such a one. Pure.

use crate::bdev::Boundary;
use crate::{BdevInfo, IoVec, Request};

/// The limits of a type, as a channel looks at them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The stricter of both alignments of memory, less one: what keeps to it needs no second look.
    align_mask: usize,
    /// Alignment of bases, and of lengths, less one.
    base_mask: usize,
    len_mask: usize,
    max_io_blocks: u64,
    /// Blocks between boundaries, as a power of two; 63 for none.
    boundary_shift: u32,
    has_list: bool,
}

impl Limits {
    pub(super) fn of(info: &BdevInfo) -> Limits {
        let (base_mask, len_mask) = (info.buf_align as usize - 1, info.len_align() as usize - 1);
        Limits {
            align_mask: base_mask | len_mask,
            base_mask,
            len_mask,
            max_io_blocks: if info.max_io_blocks == 0 { u64::MAX } else { info.max_io_blocks.into() },
            boundary_shift: match info.boundary {
                Boundary::Every { shift } => shift.min(63),
                _ => 63,
            },
            has_list: matches!(info.boundary, Boundary::At(_)),
        }
    }

    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        self.wants_alignment() || self.max_io_blocks != u64::MAX || self.boundary_shift != 63 || self.has_list
    }

    /// Whether some memory is not aligned as the type wants it.
    pub(super) fn wants_alignment(&self) -> bool {
        self.align_mask != 0
    }

    /// Whether a read or write has to be cut.
    #[inline]
    pub(super) fn exceeds(&self, info: &BdevInfo, req: &Request<'_>) -> bool {
        let (lba, blocks) = (req.lba, req.blocks);
        // A range inside a bdev does not wrap; one of no blocks crosses nothing.
        let last = lba.wrapping_add(blocks).wrapping_sub(1);
        self.is_unaligned(req.iov)
            || blocks > self.max_io_blocks
            || ((lba ^ last) >> self.boundary_shift != 0 && blocks > 0)
            || (self.has_list && blocks > 0 && self.longest_from(info, lba, blocks) < blocks)
    }

    /// The longest piece of a range, from its start, that the type takes.
    pub(super) fn longest_from(&self, info: &BdevInfo, lba: u64, blocks: u64) -> u64 {
        let to_boundary = match &info.boundary {
            Boundary::None => u64::MAX,
            Boundary::Every { shift } => {
                let len = 1u64 << shift;
                len - (lba & (len - 1))
            }
            Boundary::At(ends) => {
                ends.get(ends.partition_point(|end| *end <= lba)).map_or(u64::MAX, |end| end - lba)
            }
        };
        blocks.min(self.max_io_blocks).min(to_boundary)
    }

    /// Whether memory is not aligned as the type wants it.
    #[inline]
    pub(super) fn is_unaligned(&self, iov: &[IoVec]) -> bool {
        iov.iter().any(|v| (v.as_ptr().addr() | v.len()) & self.align_mask != 0) && self.breaks_a_mask(iov)
    }

    /// Bases by theirs, lengths by theirs.
    #[cold]
    fn breaks_a_mask(&self, iov: &[IoVec]) -> bool {
        iov.iter().any(|v| v.as_ptr().addr() & self.base_mask != 0 || v.len() & self.len_mask != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::Limits;
    use crate::BdevInfo;
    use crate::arena::StaticBuffer;

    #[test]
    fn bases_are_aligned_to_theirs_and_lengths_to_theirs() {
        let memory = StaticBuffer::new(8192).unwrap();
        let is_unaligned = |buf_align, len_align, vectors: &[(usize, usize)]| {
            let mut info = BdevInfo::new("null", "Null disk", "n".into(), 512, 64);
            (info.buf_align, info.len_align) = (buf_align, len_align);
            let iov: Vec<_> = vectors.iter().map(|&(at, len)| memory.iovec(at, len).unwrap()).collect();
            Limits::of(&info).is_unaligned(&iov)
        };

        // An NVMe disk: 4 and 512.
        assert!(!is_unaligned(4, 512, &[(0, 512), (4096, 512)]));
        assert!(!is_unaligned(4, 512, &[(16, 1024)]));
        assert!(is_unaligned(4, 512, &[(16, 4080), (4096, 16)]));
        assert!(is_unaligned(4, 512, &[(2, 512)]));
        // Bases aligned more than lengths.
        assert!(!is_unaligned(4096, 512, &[(4096, 512)]));
        assert!(is_unaligned(4096, 512, &[(512, 512)]));
        // One for both, and none.
        assert!(is_unaligned(4096, 0, &[(4096, 512)]));
        assert!(!is_unaligned(1, 0, &[(3, 1), (7, 511)]));
    }
}

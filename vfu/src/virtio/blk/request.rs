//! One virtio-blk request, decoded from its chain (virtio 1.2, 5.2.6): pure, and nothing in it is trusted further than
//! it was checked here. Ranges against the disk's size are checked by the bdev's channel.

use bdev::{IoVec, Op};
use zerocopy::FromBytes;

use crate::{
    dma::{Fault, View},
    virtio::{
        queue::{Chain, Segment, Triple},
        spec::blk::{Header, Range, SECTOR, kind},
    },
};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// A request of the bdev, in its blocks.
    Io { op: Op, lba: u64, blocks: u64 },
    /// The ID string.
    GetId,
    /// How worn the medium is.
    GetLifetime,
}

/// A transfer as every driver asks for it: header, data and status in a buffer each, in memory of the window used last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain {
    pub(super) lba: u64,
    pub(super) blocks: u64,
    pub(super) data: IoVec,
    /// Where the status goes.
    pub(super) status: u64,
}

impl Plain {
    /// Of a read, or of a write. None for every other request, and for one that is wrong: [`Frame`] has the answers.
    #[inline(always)]
    pub(super) fn of(triple: &Triple, is_read: bool, view: &View, terms: Terms) -> Option<Self> {
        let [header, data, status] = triple.buffers;
        if header.len as usize != size_of::<Header>() || status.len != 1 {
            return None;
        }
        let Header { kind, sector, .. } = view.get(header.addr).ok()?;
        if kind != if is_read { kind::IN } else { kind::OUT } {
            return None;
        }
        let (lba, blocks) = terms.whole_blocks(sector, data.len.into())?;
        let data = view.near_iovec(data.addr, data.len, is_read)?;
        Some(Self { lba, blocks, data, status: status.addr })
    }
}

/// What of a disk decides about its requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Sectors per block, and bytes, as powers of two.
    block_shift: u32,
    bytes_shift: u32,
    /// What is no multiple of a block's bytes has one of these bits.
    inside: u64,
    /// SECURE_ERASE was agreed to.
    erases: bool,
}

impl Terms {
    pub(super) fn new(block_size: u32, erases: bool) -> Self {
        let block_shift = (u64::from(block_size) / SECTOR).max(1).ilog2();
        let bytes_shift = block_shift + SECTOR.ilog2();
        Self { block_shift, bytes_shift, inside: (1 << bytes_shift) - 1, erases }
    }

    /// Bytes of so many blocks.
    pub(super) fn bytes(self, blocks: u64) -> u64 {
        blocks << self.bytes_shift
    }

    /// A transfer of `len` bytes in blocks, if it is of some, and of whole ones.
    #[inline(always)]
    fn whole_blocks(self, sector: u64, len: u64) -> Option<(u64, u64)> {
        // Sectors beyond all bytes lose bits here that say nothing about blocks.
        let is_whole = (len | sector << SECTOR.ilog2()) & self.inside == 0;
        (len != 0 && is_whole).then_some((sector >> self.block_shift, len >> self.bytes_shift))
    }

    fn transfer(self, op: Op, sector: u64, len: u64) -> Result<Ask, Bad> {
        let (lba, blocks) = self.whole_blocks(sector, len).ok_or(Bad::Malformed)?;
        Ok(Ask::Io { op, lba, blocks })
    }

    /// A range of sectors in blocks, if it is of whole ones.
    fn blocks(self, sector: u64, sectors: u64) -> Option<(u64, u64)> {
        let shift = self.block_shift;
        let inside = (1 << shift) - 1;
        ((sector | sectors) & inside == 0).then_some((sector >> shift, sectors >> shift))
    }
}

/// Why a request is answered with an error status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// IOERR.
    Malformed,
    /// UNSUPP.
    Unsupported,
}

impl From<Fault> for Bad {
    fn from(_: Fault) -> Self {
        Self::Malformed
    }
}

/// A part of a chain's buffers, by bytes: what lies behind the header, or in front of the status.
#[derive(Clone, Copy, Debug)]
pub(in crate::virtio) struct Data<'a> {
    segments: &'a [Segment],
    /// Bytes of the first segment that do not belong to it.
    skip: u32,
    /// Bytes of the last segment that do not belong to it.
    cut: u32,
}

impl<'a> Data<'a> {
    /// Everything behind the first `n` bytes; none if there are fewer.
    pub(in crate::virtio) fn behind(segments: &'a [Segment], n: u32) -> Option<Self> {
        let mut left = n;
        for (at, segment) in segments.iter().enumerate() {
            if left < segment.len {
                return Some(Self { segments: &segments[at..], skip: left, cut: 0 });
            }
            left -= segment.len;
        }
        (left == 0).then_some(Self { segments: &[], skip: 0, cut: 0 })
    }

    /// Everything in front of the last byte, and the address of that; none if there is none.
    fn in_front_of_last(segments: &'a [Segment]) -> Option<(Self, u64)> {
        let end = segments.iter().rposition(|segment| segment.len > 0)?;
        let last = segments[end];
        let status = last.addr.checked_add(u64::from(last.len - 1))?;
        Some((Self { segments: &segments[..=end], skip: 0, cut: 1 }, status))
    }

    /// The pieces, empty ones left out.
    pub(in crate::virtio) fn pieces(self) -> impl Iterator<Item = Segment> {
        let end = self.segments.len().wrapping_sub(1);
        self.segments.iter().enumerate().filter_map(move |(at, &segment)| {
            let skip = if at == 0 { self.skip } else { 0 };
            let cut = if at == end { self.cut } else { 0 };
            let len = segment.len - skip - cut;
            // A segment that wraps the address space faults where it is looked up.
            (len > 0).then(|| Segment { addr: segment.addr.wrapping_add(u64::from(skip)), len })
        })
    }

    /// Bytes.
    pub(in crate::virtio) fn len(self) -> u64 {
        self.pieces().map(|piece| u64::from(piece.len)).sum()
    }
}

/// The frame of a request: where its parts are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    /// What the device reads, behind the header.
    pub(super) out: Data<'a>,
    /// What the device writes, in front of the status.
    pub(super) into: Data<'a>,
    /// Where the status goes.
    pub(super) status: u64,
    /// The header, unless it is too short or cannot be read.
    pub(super) header: Option<Header>,
}

impl<'a> Frame<'a> {
    /// Takes a chain apart, however its driver has cut it into buffers (virtio 1.2, 2.7.4.1). None without room for
    /// the status.
    pub(super) fn of(chain: &'a Chain, view: &View) -> Option<Self> {
        // As every driver does it: header and status in buffers of their own.
        if let ([header, out @ ..], [into @ .., status]) = (chain.readable(), chain.writable())
            && header.len as usize == size_of::<Header>()
            && status.len == 1
        {
            return Some(Self {
                out: Data { segments: out, skip: 0, cut: 0 },
                into: Data { segments: into, skip: 0, cut: 0 },
                status: status.addr,
                header: view.get(header.addr).ok(),
            });
        }
        Self::of_any(chain, view)
    }

    #[cold]
    fn of_any(chain: &'a Chain, view: &View) -> Option<Self> {
        let (into, status) = Data::in_front_of_last(chain.writable())?;
        let readable = chain.readable();
        let header_len = u32::try_from(size_of::<Header>()).expect("16 bytes");
        let out = Data::behind(readable, header_len);
        let mut bytes = [0; size_of::<Header>()];
        let header = match readable.first() {
            Some(first) if first.len >= header_len => view.read(first.addr, &mut bytes).is_ok(),
            _ => out.is_some() && gather(readable, view, &mut bytes).is_ok(),
        };
        let header = header.then(|| zerocopy::transmute!(bytes));
        Some(Self { out: out.unwrap_or(Data { segments: &[], skip: 0, cut: 0 }), into, status, header })
    }

    /// What is asked, in blocks of the disk.
    pub(super) fn decode(&self, view: &View, terms: Terms) -> Result<Ask, Bad> {
        let header = self.header.ok_or(Bad::Malformed)?;
        match header.kind {
            kind::IN => terms.transfer(Op::Read, header.sector, self.into.len()),
            kind::OUT => terms.transfer(Op::WRITE, header.sector, self.out.len()),
            kind::FLUSH => Ok(Ask::Io { op: Op::Flush, lba: 0, blocks: 0 }),
            kind::GET_ID => Ok(Ask::GetId),
            kind::GET_LIFETIME => Ok(Ask::GetLifetime),
            kind::DISCARD | kind::WRITE_ZEROES => self.range(header.kind, view, terms),
            kind::SECURE_ERASE if terms.erases => self.range(header.kind, view, terms),
            _ => Err(Bad::Unsupported),
        }
    }

    /// DISCARD, WRITE_ZEROES and SECURE_ERASE: one range, as `max_discard_seg` says.
    fn range(&self, kind: u32, view: &View, terms: Terms) -> Result<Ask, Bad> {
        let mut bytes = [0; size_of::<Range>()];
        if self.out.len() != bytes.len() as u64 {
            return Err(Bad::Malformed);
        }
        let mut at = 0;
        for piece in self.out.pieces() {
            let end = at + piece.len as usize;
            view.read(piece.addr, &mut bytes[at..end])?;
            at = end;
        }
        let Ok(range) = Range::read_from_bytes(&bytes) else { return Err(Bad::Malformed) };
        let unmap = range.flags & 1 != 0;
        // Other flags are unsupported, and unmap is but for write-zeroes (virtio 1.2, 5.2.6.2).
        if range.flags & !1 != 0 || (kind != kind::WRITE_ZEROES && unmap) {
            return Err(Bad::Unsupported);
        }
        let op = match kind {
            kind::DISCARD => Op::Unmap,
            kind::SECURE_ERASE => Op::WriteZeroes { unmap: false, fua: true },
            _ => Op::WriteZeroes { unmap, fua: false },
        };
        let (lba, blocks) = terms.blocks(range.sector, range.num_sectors.into()).ok_or(Bad::Malformed)?;
        Ok(Ask::Io { op, lba, blocks })
    }
}

fn gather(segments: &[Segment], view: &View, bytes: &mut [u8]) -> Result<(), Fault> {
    let mut at = 0;
    for segment in segments {
        let n = (segment.len as usize).min(bytes.len() - at);
        view.read(segment.addr, &mut bytes[at..at + n])?;
        at += n;
    }
    Ok(())
}

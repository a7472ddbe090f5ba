//! What travels over a channel: operations, requests, tokens, statuses, completions.
//!
//! Device models build a [`Request`] and get a [`Completion`]; bdev types read the one and write the other.
//! Plain `Copy` data, no behaviour: the rules of the exchange stand on [`Channel`](crate::Channel).

use crate::IoVec;

/// The caller's name for one request: the index of a slot of the caller's own.
///
/// Must be below the depth the channel was opened with and must not be in flight already; comes back
/// unchanged in the [`Completion`], so that the caller finds its request without a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u32);

/// What a request asks for.
///
/// Device models only build these; the types inside this crate match on them exhaustively, so a new operation
/// is a compile error in every type until it has an answer there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[repr(u8)] // Tagged as `OpKind` is, so that the kind is a load.
pub enum Op {
    /// Fill the vectors from the medium.
    Read,
    /// Store the vectors on the medium.
    Write {
        /// Complete only when the data is on stable storage (NVMe FUA, SCSI FUA).
        fua: bool,
    },
    /// Make every write that has *completed* before this submit durable. `lba` and `blocks` are not looked
    /// at: a flush is always of the whole bdev (virtio-blk and NVMe know no other).
    Flush,
    /// The blocks are no longer needed (discard, deallocate, TRIM). A hint: what they read as afterwards is
    /// up to the type, see [`BdevInfo::unmap_reads_zero`](crate::BdevInfo::unmap_reads_zero).
    Unmap,
    /// The blocks read as zeroes from completion on.
    WriteZeroes {
        /// The storage behind the blocks may be given back.
        unmap: bool,
        /// Complete only when the zeroes are on stable storage.
        fua: bool,
    },
}

impl Op {
    /// A write that may rest in a volatile cache until the next flush.
    pub const WRITE: Op = Op::Write { fua: false };
    /// Zeroes that keep the storage allocated and may rest in a volatile cache.
    pub const WRITE_ZEROES: Op = Op::WriteZeroes { unmap: false, fua: false };

    /// The kind of this operation, without its flags.
    #[inline]
    pub const fn kind(self) -> OpKind {
        match self {
            Op::Read => OpKind::Read,
            Op::Write { .. } => OpKind::Write,
            Op::Flush => OpKind::Flush,
            Op::Unmap => OpKind::Unmap,
            Op::WriteZeroes { .. } => OpKind::WriteZeroes,
        }
    }
}

/// An operation without its flags: what a bdev is asked whether it supports, and what counters are kept by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum OpKind {
    /// [`Op::Read`]
    Read = 0,
    /// [`Op::Write`]
    Write = 1,
    /// [`Op::Flush`]
    Flush = 2,
    /// [`Op::Unmap`]
    Unmap = 3,
    /// [`Op::WriteZeroes`]
    WriteZeroes = 4,
}

impl OpKind {
    /// How many kinds there are.
    pub const COUNT: usize = Self::ALL.len();
    /// Every kind, at the index of its discriminant.
    pub const ALL: [OpKind; 5] =
        [OpKind::Read, OpKind::Write, OpKind::Flush, OpKind::Unmap, OpKind::WriteZeroes];

    /// Whether requests of this kind carry data in their vectors.
    #[inline]
    pub const fn has_data(self) -> bool {
        matches!(self, OpKind::Read | OpKind::Write)
    }

    /// Whether requests of this kind change the medium; refused on a read-only bdev.
    #[inline]
    pub const fn modifies(self) -> bool {
        matches!(self, OpKind::Write | OpKind::Unmap | OpKind::WriteZeroes)
    }
}

const _: () = {
    let mut i = 0;
    while i < OpKind::COUNT {
        assert!(OpKind::ALL[i] as usize == i, "ALL is indexed by discriminant");
        i += 1;
    }
};

/// One request, as handed to a submit call.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What is asked.
    pub op: Op,
    /// First block, in blocks of the bdev.
    pub lba: u64,
    /// Number of blocks, in blocks of the bdev. Zero is legal and completes with [`Status::Ok`] having done
    /// nothing.
    pub blocks: u64,
    /// The memory, for reads and writes: its lengths add up to `blocks` times the block size; empty
    /// otherwise.
    ///
    /// The slice is borrowed for the submit call only; a type that needs it later copies it into its own
    /// slot. The *memory* it points to stays valid until the request has been reaped.
    pub iov: &'a [IoVec],
    /// The caller's slot.
    pub token: Token,
}

/// How a request ended. Device models map it to a virtio, SCSI or NVMe status in one function of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Status {
    /// Done as asked.
    Ok = 0,
    /// The backend failed and gave no better reason.
    IoError = 1,
    /// The request contradicts itself: vector lengths, alignment, token.
    Invalid = 2,
    /// Reaches past the last block.
    OutOfRange = 3,
    /// The bdev does not know this operation.
    Unsupported = 4,
    /// A change was asked of a read-only bdev, or through a descriptor opened for reading.
    ReadOnly = 5,
    /// The storage behind a thin bdev is full.
    NoSpace = 6,
    /// Memory for the request could not be had.
    NoMemory = 7,
    /// The medium could not give the data back.
    MediaError = 8,
    /// Given up on request.
    Aborted = 9,
    /// The bdev is gone, or going.
    Removed = 10,
    /// The backend did not answer in time.
    TimedOut = 11,
}

impl Status {
    /// How many statuses there are.
    pub const COUNT: usize = Self::ALL.len();
    /// Every status, at the index of its discriminant.
    pub const ALL: [Status; 12] = [
        Status::Ok,
        Status::IoError,
        Status::Invalid,
        Status::OutOfRange,
        Status::Unsupported,
        Status::ReadOnly,
        Status::NoSpace,
        Status::NoMemory,
        Status::MediaError,
        Status::Aborted,
        Status::Removed,
        Status::TimedOut,
    ];

    /// The key this status is counted under in the `io_error` object of `bdev_get_iostat`.
    ///
    /// SPDK's clients know `failed`, `nomem` and `aborted`; the rest have no counterpart there and keep a
    /// name of their own, which those clients print as it is.
    pub const fn name(self) -> &'static str {
        match self {
            Status::Ok => "success",
            Status::IoError => "failed",
            Status::Invalid => "invalid",
            Status::OutOfRange => "out_of_range",
            Status::Unsupported => "unsupported",
            Status::ReadOnly => "read_only",
            Status::NoSpace => "no_space",
            Status::NoMemory => "nomem",
            Status::MediaError => "media_error",
            Status::Aborted => "aborted",
            Status::Removed => "removed",
            Status::TimedOut => "timed_out",
        }
    }
}

const _: () = {
    let mut i = 0;
    while i < Status::COUNT {
        assert!(Status::ALL[i] as usize == i, "ALL is indexed by discriminant");
        i += 1;
    }
};

/// The end of one request, handed out by a reap call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The token the request was submitted with; free to be used again.
    pub token: Token,
    /// How it ended.
    pub status: Status,
}

impl Completion {
    /// A filler for the arrays that are passed to reap calls; never handed out.
    pub const EMPTY: Completion = Completion { token: Token(u32::MAX), status: Status::IoError };
}

/// Why a submit call did not take a request. Either way the request is still the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    /// No room now: submit it again after a reap, or on a later pass. A rate limit answers so too, with
    /// nothing in flight: who holds a refused request must not go to sleep waiting for a completion.
    Full,
    /// Will never be accepted: the caller answers it with this status.
    Failed(Status),
}

//! A file or block device behind a bdev: opened, measured, and what it can do found out.
//!
//! The types `uring` and `aio` are made of this; [`FileChannel`] does their I/O. Control path only.

mod channel;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags, fallocate, ioctl_blkpbszget, ioctl_blksszget, statx};
use rustix::io::Errno;

use crate::arena::StaticBuffer;
use crate::ring::{self, Kind};
use crate::{BdevInfo, Error};

pub(crate) use channel::FileChannel;

/// What O_DIRECT asks of buffers and offsets where the system does not say: a logical block of most disks.
const DIRECT_ALIGN_BYTES: u32 = 512;
/// Length of the write that tries a ring: aligned for every O_DIRECT.
const SCRATCH_BYTES: usize = 4096;
/// Longest single read or write: below the kernel's MAX_RW_COUNT, which would cut it short.
const MAX_IO_BYTES: u32 = 1 << 30;

/// How a file is opened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    pub(crate) filename: String,
    /// Of a logical block; 0 for that of the device.
    pub(crate) block_size: u32,
    pub(crate) read_only: bool,
    /// Discards and zeroes by fallocate.
    pub(crate) fallocate: bool,
    pub(crate) iopoll: bool,
    pub(crate) sqpoll: bool,
}

/// An open file and what is known of it.
#[derive(Debug)]
pub(crate) struct Backing {
    pub(crate) file: File,
    /// Bypasses the page cache.
    pub(crate) is_direct: bool,
    pub(crate) block_size: u32,
    pub(crate) physical_block_size: u32,
    pub(crate) buf_align: u32,
    pub(crate) len_align: u32,
    pub(crate) num_blocks: u64,
    /// fallocate(FALLOC_FL_PUNCH_HOLE) works.
    pub(crate) punches: bool,
    /// The mode of fallocate that zeroes and keeps the storage, or comes closest.
    pub(crate) zero_mode: Option<i32>,
    /// Which ring reads and writes take; what else there is takes the plain one.
    pub(crate) data_ring: Kind,
}

fn failed(options: &Options, what: &str, source: io::Error) -> Error {
    Error::Io { what: format!("{}: {what}", options.filename), source }
}

fn open(options: &Options, flags: i32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .custom_flags(flags)
        .open(Path::new(&options.filename))
}

/// The alignment that O_DIRECT asks of memory, and of offsets and lengths (statx(2), STATX_DIOALIGN, Linux 6.1). Each
/// vector's length, not their sum: Linux checks them one by one up to 6.17.
fn direct_alignment(file: &File, logical: Option<u32>) -> (u32, u32) {
    const DIOALIGN: StatxFlags = StatxFlags::from_bits_retain(libc::STATX_DIOALIGN);
    let told = statx(file, "", AtFlags::EMPTY_PATH, DIOALIGN)
        .ok()
        .filter(|s| s.stx_mask & libc::STATX_DIOALIGN != 0 && s.stx_dio_offset_align != 0)
        .map(|s| (s.stx_dio_mem_align.max(1), s.stx_dio_offset_align));
    let guess = logical.unwrap_or(DIRECT_ALIGN_BYTES);
    told.unwrap_or((guess, guess))
}

fn size_bytes(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

impl Backing {
    /// Opens the file, with O_DIRECT where that works.
    pub(crate) fn open(options: &Options) -> Result<Backing, Error> {
        let neither = || Error::Invalid(format!("{} is neither a file nor a block device", options.filename));
        // To open a FIFO is to wait for somebody at its other end.
        if std::fs::metadata(&options.filename).is_ok_and(|found| found.file_type().is_fifo()) {
            return Err(neither());
        }
        let buffered = open(options, 0).map_err(|e| failed(options, "cannot be opened", e))?;
        let kind = buffered.metadata().map_err(|e| failed(options, "cannot be examined", e))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(neither());
        }
        let logical =
            kind.is_block_device().then(|| ioctl_blksszget(&buffered).unwrap_or(DIRECT_ALIGN_BYTES));
        let block_size = match (options.block_size, logical) {
            (0, Some(detected)) => detected,
            (0, None) => {
                return Err(Error::Invalid(format!("{}: a file needs a block size", options.filename)));
            }
            (asked, detected) if asked < detected.unwrap_or(0) => {
                return Err(Error::Invalid(format!(
                    "{}: blocks of {asked} bytes are smaller than the device's",
                    options.filename
                )));
            }
            (asked, _) => asked,
        };
        if block_size < 512 || !block_size.is_power_of_two() {
            return Err(Error::Invalid(format!("blocks of {block_size} bytes: no power of two from 512 on")));
        }
        let direct = open(options, libc::O_DIRECT).ok().and_then(|file| {
            let (memory, offset) = direct_alignment(&file, logical);
            (block_size.is_multiple_of(offset)).then_some((file, memory, offset))
        });
        let (file, is_direct, buf_align, len_align) = match direct {
            Some((file, memory, offset)) => (file, true, memory, offset),
            None => (buffered, false, 1, 1),
        };
        let size = size_bytes(&file).map_err(|e| failed(options, "has no size", e))?;
        if size < u64::from(block_size) {
            return Err(Error::Invalid(format!("{} is smaller than one block", options.filename)));
        }
        let physical = logical.and_then(|_| ioctl_blkpbszget(&file).ok()).unwrap_or(block_size);
        let mut backing = Backing {
            file,
            is_direct,
            block_size,
            physical_block_size: physical.max(block_size),
            buf_align,
            len_align,
            num_blocks: size / u64::from(block_size),
            punches: false,
            zero_mode: None,
            data_ring: Kind::Plain,
        };
        if options.fallocate && !options.read_only {
            backing.probe_fallocate(size, kind.is_block_device());
        }
        backing.choose_ring(options);
        let (file, Backing { is_direct, buf_align, len_align, punches, data_ring, .. }) =
            (&options.filename, &backing);
        tracing::info!(file, is_direct, buf_align, len_align, punches, ?data_ring, "file opened");
        Ok(backing)
    }

    /// Tries fallocate where it changes nothing: behind the end of the file. A block device has nothing there; its
    /// driver zeroes in any case, and discards if it says so.
    fn probe_fallocate(&mut self, size: u64, is_block_device: bool) {
        let (punch, zero) = (
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        );
        let mode = |flags: FallocateFlags| i32::try_from(flags.bits()).unwrap_or(0);
        if is_block_device {
            self.punches = self.device_zeroes_by_itself();
            self.zero_mode = Some(mode(zero));
            return;
        }
        let end = size.next_multiple_of(1 << 20);
        let works = |flags| fallocate(&self.file, flags, end, u64::from(self.block_size)).is_ok();
        self.punches = works(punch);
        // ZERO_RANGE would keep blocks behind the end: punch them out again.
        let zeroes = works(zero);
        if zeroes && self.punches {
            // What stays is a block behind the end, which a truncate frees.
            let _ = fallocate(&self.file, punch, end, u64::from(self.block_size));
        }
        self.zero_mode = if zeroes { Some(mode(zero)) } else { self.punches.then(|| mode(punch)) };
    }

    /// Whether a hole punched into the device is done by the device.
    fn device_zeroes_by_itself(&self) -> bool {
        self.queue_attribute("write_zeroes_max_bytes").is_some_and(|bytes| bytes > 0)
    }

    /// An attribute of the request queue below: of the device, or of the one that the file's file system is on.
    fn queue_attribute(&self, name: &str) -> Option<u64> {
        let metadata = self.file.metadata().ok()?;
        let device = if metadata.file_type().is_block_device() { metadata.rdev() } else { metadata.dev() };
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        // A partition's queue is its disk's.
        ["queue", "../queue"].iter().find_map(|queue| {
            let text =
                std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/{name}")).ok()?;
            text.trim().parse().ok()
        })
    }

    /// Polling by the kernel where it is asked for and works; the plain ring otherwise.
    fn choose_ring(&mut self, options: &Options) {
        for (asked, kind) in [(options.iopoll, Kind::IoPoll), (options.sqpoll, Kind::SqPoll)] {
            if !asked {
                continue;
            }
            match self.try_ring(options, kind) {
                Ok(()) => {
                    self.data_ring = kind;
                    return;
                }
                Err(error) => tracing::warn!(%error, ?kind, "falling back to a plain ring"),
            }
        }
    }

    /// Does one request of a kind that reaches the device: a read of it, or a write of a file without a name beside
    /// this one, as a read of a hole would reach nothing.
    fn try_ring(&self, options: &Options, kind: Kind) -> Result<(), Error> {
        let cannot = |e| failed(options, "cannot be polled", e);
        if kind == Kind::IoPoll && !self.is_direct {
            return Err(cannot(Errno::INVAL.into()));
        }
        let len = (self.block_size as usize).max(SCRATCH_BYTES);
        let one = StaticBuffer::new(len)?.iovec(0, len).ok_or(Error::NoMemory { len_bytes: len as u64 })?;
        if self.file.metadata().is_ok_and(|m| m.file_type().is_block_device()) {
            return ring::probe(kind, &self.file, one, false).map_err(cannot);
        }
        let folder = Path::new(&options.filename).parent().filter(|p| !p.as_os_str().is_empty());
        let scratch = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE | if self.is_direct { libc::O_DIRECT } else { 0 })
            .open(folder.unwrap_or(Path::new(".")))
            .map_err(cannot)?;
        ring::probe(kind, &scratch, one, true).map_err(cannot)
    }

    /// Puts what is known into a description.
    pub(crate) fn describe(&self, info: &mut BdevInfo, read_only: bool) {
        info.physical_block_size = self.physical_block_size;
        info.write_cache = true;
        info.read_only = read_only;
        // Holes in files, and blocks that a device was told to zero.
        info.unmap_reads_zero = true;
        info.buf_align = self.buf_align;
        info.len_align = self.len_align;
        info.max_io_blocks = MAX_IO_BYTES / self.block_size;
    }

    /// Its size now, in blocks.
    pub(crate) fn measure(&self) -> Result<u64, Error> {
        let size = size_bytes(&self.file)
            .map_err(|source| Error::Io { what: "the file has no size any more".to_owned(), source })?;
        Ok(size / u64::from(self.block_size))
    }
}

/// The error of a ring that cannot be made.
pub(crate) fn ring_failed(source: io::Error) -> Error {
    let what = match Errno::from_io_error(&source) {
        Some(Errno::PERM | Errno::NOSYS) => {
            "io_uring is not allowed here (sysctl kernel.io_uring_disabled, seccomp)"
        }
        _ => "io_uring",
    };
    Error::Io { what: what.to_owned(), source }
}

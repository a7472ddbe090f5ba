//! What files do besides I/O: sizes that change, files that go, errors, sleep.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use bdev::arena::StaticBuffer;
use bdev::types::{AioParams, UringParams, aio, uring};
use bdev::{Access, Completion, Error, Event, IoChannel, Op, Registry, Rejected, Request, Status, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use tempfile::NamedTempFile;

const BLOCK: u32 = 4096;

fn sparse(blocks: u64) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(blocks * u64::from(BLOCK)).expect("a sparse file");
    file
}

fn params(filename: &str) -> UringParams {
    UringParams { name: "u".into(), filename: filename.into(), block_size: BLOCK, ..UringParams::default() }
}

fn path(file: &NamedTempFile) -> &str {
    file.path().to_str().expect("a plain path")
}

fn open(registry: &Arc<Registry>, name: &str, depth: u16) -> IoChannel {
    let descriptor = registry.open(name, Access::ReadWrite, |_| ()).expect("opens");
    descriptor.open_channel(depth).expect("a channel opens")
}

fn wait(channel: &mut IoChannel) -> Vec<Completion> {
    let mut all = Vec::new();
    let mut done = [Completion::EMPTY; 16];
    while channel.in_flight() > 0 {
        let n = channel.reap(&mut done);
        all.extend_from_slice(&done[..n]);
        std::thread::yield_now();
    }
    all
}

fn run(channel: &mut IoChannel, op: Op, lba: u64, blocks: u64) -> Result<Status, Rejected> {
    let len = blocks as usize * channel.info().block_size as usize;
    let buffer = StaticBuffer::new(len.max(1)).expect("memory");
    let whole = [buffer.iovec(0, len).expect("the whole")];
    let iov = if op.kind().has_data() { &whole[..] } else { &[] };
    channel.submit(&Request { op, lba, blocks, iov, token: Token(0) })?;
    channel.kick();
    Ok(wait(channel)[0].status)
}

#[test]
fn errors_of_creation_name_the_file_and_keep_the_errno() {
    let registry = Registry::new();
    let dir = tempfile::tempdir().unwrap();
    let empty = NamedTempFile::new().unwrap();
    let file = sparse(4);
    let errno = |params| uring::create(&registry, params).map(|_| ()).unwrap_err().errno();

    assert_eq!(errno(params("/nonexistent/file")), 2);
    assert_eq!(errno(params(dir.path().to_str().unwrap())), 21);
    assert_eq!(errno(params(path(&empty))), 22);
    assert_eq!(errno(UringParams { block_size: 0, ..params(path(&file)) }), 22);
    assert_eq!(errno(UringParams { block_size: 1000, ..params(path(&file)) }), 22);
    assert_eq!(errno(params("/dev/null")), 22);
    let text = uring::create(&registry, params("/nonexistent/file")).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("/nonexistent/file"), "{text}");
    assert!(registry.list().is_empty());
}

#[test]
fn a_file_that_grew_is_larger_after_a_rescan() {
    let registry = Registry::new();
    let file = sparse(8);
    uring::create(&registry, params(path(&file))).unwrap();
    let events = Arc::<Mutex<Vec<Event>>>::default();
    let log = events.clone();
    let descriptor = registry.open("u", Access::ReadWrite, move |e| log.lock().unwrap().push(e)).unwrap();
    let mut channel = descriptor.open_channel(1).unwrap();
    assert_eq!(run(&mut channel, Op::Read, 8, 1), Err(Rejected::Failed(Status::OutOfRange)));

    file.as_file().set_len(16 * u64::from(BLOCK)).unwrap();
    uring::rescan(&registry, "u").unwrap();

    assert_eq!(*events.lock().unwrap(), [Event::Resized { num_blocks: 16 }]);
    assert_eq!(run(&mut channel, Op::WRITE, 15, 1), Ok(Status::Ok));
    assert!(matches!(aio::rescan(&registry, "u"), Err(Error::NoSuchDevice { .. })));
    file.as_file().set_len(u64::from(BLOCK)).unwrap();
    assert!(matches!(uring::rescan(&registry, "u"), Err(Error::Busy { .. })));
}

#[test]
fn reads_behind_the_end_of_a_truncated_file_fail_and_the_rest_goes_on() {
    let registry = Registry::new();
    let file = sparse(8);
    uring::create(&registry, params(path(&file))).unwrap();
    let mut channel = open(&registry, "u", 4);

    file.as_file().set_len(4 * u64::from(BLOCK)).unwrap();

    assert_eq!(run(&mut channel, Op::Read, 6, 1), Ok(Status::IoError));
    assert_eq!(run(&mut channel, Op::Read, 2, 4), Ok(Status::IoError), "half of it is there");
    assert_eq!(run(&mut channel, Op::Read, 3, 1), Ok(Status::Ok));
}

#[test]
fn a_file_that_is_replaced_stays_the_one_that_was_opened() {
    let registry = Registry::new();
    let file = sparse(8);
    uring::create(&registry, params(path(&file))).unwrap();
    let mut channel = open(&registry, "u", 4);
    assert_eq!(run(&mut channel, Op::WRITE, 0, 1), Ok(Status::Ok));

    std::fs::remove_file(file.path()).unwrap();
    File::create(file.path()).unwrap();

    assert_eq!(run(&mut channel, Op::Read, 7, 1), Ok(Status::Ok));
    assert_eq!(run(&mut channel, Op::Flush, 0, 0), Ok(Status::Ok));
}

#[test]
fn a_read_only_file_refuses_changes() {
    let registry = Registry::new();
    let file = sparse(8);
    let params = AioParams {
        name: "a".into(),
        filename: path(&file).into(),
        block_size: BLOCK,
        readonly: true,
        fallocate: true,
        ..AioParams::default()
    };
    aio::create(&registry, params).unwrap();
    let mut channel = open(&registry, "a", 4);

    assert_eq!(run(&mut channel, Op::Read, 0, 1), Ok(Status::Ok));
    assert_eq!(run(&mut channel, Op::WRITE, 0, 1), Err(Rejected::Failed(Status::ReadOnly)));
    assert_eq!(run(&mut channel, Op::Unmap, 0, 1), Err(Rejected::Failed(Status::Unsupported)));
}

/// Nobody has its other end open: opening it would wait for ever.
#[test]
fn a_fifo_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
    let params = AioParams {
        name: "Aio0".to_owned(),
        filename: path.to_str().unwrap().to_owned(),
        block_size: 512,
        readonly: true,
        ..AioParams::default()
    };
    let refused = aio::create(&Registry::new(), params).map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("neither a file nor a block device"), "{refused}");
}

#[test]
fn a_file_that_cannot_be_written_is_refused_unless_it_is_opened_read_only() {
    let registry = Registry::new();
    // Nobody may write a program that runs, not even root.
    let program = std::env::current_exe().unwrap();
    let filename = program.to_str().expect("a plain path");
    let params = |readonly| AioParams {
        name: "a".into(),
        filename: filename.into(),
        block_size: 512,
        readonly,
        ..AioParams::default()
    };

    let refused = aio::create(&registry, params(false)).map(|_| ()).unwrap_err();
    aio::create(&registry, params(true)).unwrap();

    assert_eq!(refused.errno(), 26, "{refused}");
    assert!(refused.to_string().contains(filename), "{refused}");
    assert_eq!(run(&mut open(&registry, "a", 1), Op::Read, 0, 8), Ok(Status::Ok));
}

#[test]
fn writes_that_the_kernel_refuses_fail_and_reads_go_on() {
    let registry = Registry::new();
    let memory = memfd_create("disk", MemfdFlags::ALLOW_SEALING).expect("a file in memory");
    ftruncate(&memory, 8 * u64::from(BLOCK)).unwrap();
    uring::create(&registry, params(&format!("/proc/self/fd/{}", memory.as_raw_fd()))).unwrap();
    let mut channel = open(&registry, "u", 4);
    assert_eq!(run(&mut channel, Op::WRITE, 0, 2), Ok(Status::Ok));

    fcntl_add_seals(&memory, SealFlags::WRITE).unwrap();

    assert_eq!(run(&mut channel, Op::WRITE, 2, 2), Ok(Status::IoError));
    assert_eq!(run(&mut channel, Op::WRITE_ZEROES, 2, 2), Ok(Status::IoError));
    assert_eq!(run(&mut channel, Op::Read, 0, 8), Ok(Status::Ok));
    assert_eq!(run(&mut channel, Op::Flush, 0, 0), Ok(Status::Ok));
    let stats = registry.get("u").unwrap().stats();
    assert_eq!(stats.errors(Status::IoError), 2);
}

/// Waits for readiness; true if it came.
fn becomes_readable(channel: &IoChannel) -> bool {
    let fd = channel.event_fd().expect("files have one");
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let timeout = Timespec { tv_sec: 30, tv_nsec: 0 };
    poll(&mut fds, Some(&timeout)).expect("poll") == 1
}

#[test]
fn a_sleeper_is_woken_by_its_completion() {
    let registry = Registry::new();
    let file = sparse(64);
    uring::create(&registry, params(path(&file))).unwrap();
    let mut channel = open(&registry, "u", 4);
    let buffer = StaticBuffer::new(BLOCK as usize).unwrap();
    let iov = [buffer.iovec(0, BLOCK as usize).unwrap()];

    for lba in 0..64 {
        channel.submit(&Request { op: Op::WRITE, lba, blocks: 1, iov: &iov, token: Token(1) }).unwrap();
        channel.kick();
        let woken = !channel.arm() || becomes_readable(&channel);
        assert!(woken, "slept through the completion of block {lba}");
        assert_eq!(wait(&mut channel)[0].status, Status::Ok);
    }
}

#[test]
fn a_sleeper_is_woken_when_another_channel_of_its_thread_finds_its_completion() {
    let registry = Registry::new();
    let file = sparse(64);
    uring::create(&registry, params(path(&file))).unwrap();
    let (mut sleeper, mut other) = (open(&registry, "u", 1), open(&registry, "u", 1));
    let buffer = StaticBuffer::new(BLOCK as usize).unwrap();
    let iov = [buffer.iovec(0, BLOCK as usize).unwrap()];
    let request = |lba| Request { op: Op::WRITE, lba, blocks: 1, iov: &iov, token: Token(0) };

    for lba in 0..32 {
        sleeper.submit(&request(lba)).unwrap();
        sleeper.kick();
        let sleeps = sleeper.arm();
        other.submit(&request(lba + 32)).unwrap();
        other.kick();
        wait(&mut other);
        assert!(!sleeps || becomes_readable(&sleeper), "slept through the completion of block {lba}");
        assert_eq!(wait(&mut sleeper)[0].status, Status::Ok);
    }
}

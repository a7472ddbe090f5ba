//! The conformance suite on `malloc`, with blocks of 512 and 4096 bytes.

use std::sync::Arc;

use bdev::arena::StaticBuffer;
use bdev::conformance::Subject;
use bdev::types::{Malloc, MallocParams};
use bdev::{Access, Completion, Op, Registry, Request, Token};

fn make(registry: &Arc<Registry>, block_size: u32, num_blocks: u64) -> String {
    let malloc =
        Malloc::new("Malloc0".to_owned(), &MallocParams::new(block_size, num_blocks)).expect("memory");
    registry.register(Arc::new(malloc)).expect("a new registry").name().to_owned()
}

mod blocks_of_512 {
    use super::*;

    // 1 MiB: four times what is copied within one submit.
    const SUBJECT: Subject =
        Subject { make: |registry| make(registry, 512, 2048), keeps_data: true, grow: None };

    bdev::conformance_suite!(SUBJECT);
}

mod blocks_of_4096 {
    use super::*;

    // 4 MiB: four steps of a long transfer.
    const SUBJECT: Subject =
        Subject { make: |registry| make(registry, 4096, 1024), keeps_data: true, grow: None };

    bdev::conformance_suite!(SUBJECT);
}

/// A pass is about 0.1 ms of copies, however many are asked for: a reactor has others to serve.
#[test]
fn what_a_pass_copies_is_bounded() {
    let registry = Registry::new();
    let name = make(&registry, 4096, 1024);
    let descriptor = Arc::new(registry.open(&name, Access::ReadWrite, |_| ()).unwrap());
    let mut channel = descriptor.open_channel(64).unwrap();
    let buffer = StaticBuffer::new(128 << 10).unwrap();
    let iov = [buffer.iovec(0, 128 << 10).unwrap()];
    let read = |token| Request { op: Op::Read, lba: 0, blocks: 32, iov: &iov, token: Token(token) };
    let mut done = [Completion::EMPTY; 64];

    let first = (0..64).take_while(|&token| channel.submit(&read(token)).is_ok()).count();
    channel.kick();
    let ended = channel.reap(&mut done);
    let after = channel.submit(&read(0));

    assert_eq!((first, ended, after), (8, 8, Ok(())));
    channel.kick();
    assert_eq!(channel.reap(&mut done), 1);
}

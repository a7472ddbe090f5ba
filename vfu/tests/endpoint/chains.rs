//! Requests cut into buffers in every way that the specification allows (virtio 1.2, 2.7.4.1): a device may not count on
//! where one buffer ends and the next begins.

use std::time::Instant;

use vfu::{
    mock::{
        blk::{BlkOptions, NO_STATUS},
        memory::Memory,
        ring::{Buffer, DriverRing, Used},
    },
    virtio::spec::{
        blk::{Header, kind, status},
        feature,
    },
};
use zerocopy::IntoBytes;

use crate::rig::{Guest, PATIENCE, RAM, Rig, pattern};

/// Sends a chain on queue 0 as it is, and waits for it to come back.
pub(crate) fn send(guest: &mut Guest, chain: &[Buffer]) -> Used {
    guest.queues[0].ring().add(chain).unwrap();
    guest.publish(0).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(used) = guest.queues[0].ring().pop().unwrap() {
            return used;
        }
        assert!(Instant::now() < deadline, "the chain does not come back");
        std::thread::yield_now();
    }
}

/// Memory for one request, each part on pages of its own.
pub(crate) struct Parts {
    pub(crate) header: u64,
    pub(crate) data: u64,
    pub(crate) status: u64,
}

impl Parts {
    pub(crate) fn new(guest: &mut Guest, kind: u32, sector: u64) -> Self {
        let mut page = |len| guest.memory.allocate(len, 4096).unwrap();
        let parts = Self { header: page(4096), data: page(65536), status: page(4096) };
        guest.memory.write(parts.header, Header { kind, reserved: 0, sector }.as_bytes()).unwrap();
        guest.memory.write(parts.status, &[NO_STATUS]).unwrap();
        parts
    }
}

pub(crate) fn byte_at(memory: &Memory, at: u64) -> u8 {
    let mut byte = [0];
    memory.read(at, &mut byte).unwrap();
    byte[0]
}

fn bytes_at(memory: &Memory, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read(at, &mut bytes).unwrap();
    bytes
}

/// Buffers of these lengths, one behind the other from `at` on.
fn cut(at: u64, lengths: &[u32], buffer: fn(u64, u32) -> Buffer) -> Vec<Buffer> {
    let mut from = at;
    lengths
        .iter()
        .map(|&len| {
            from += u64::from(len);
            buffer(from - u64::from(len), len)
        })
        .collect()
}

fn guest(rig: &Rig) -> Guest {
    rig.guest("disk", BlkOptions::default())
}

#[test]
fn header_may_be_cut_anywhere() {
    let rig = Rig::with_disk();
    let mut guest = guest(&rig);
    guest.write(0, 8, &pattern(512, 1)).unwrap();
    for lengths in [&[16_u32][..], &[1, 15], &[8, 8], &[15, 1], &[4, 4, 8], &[1; 16]] {
        let parts = Parts::new(&mut guest, kind::IN, 8);
        let mut chain = cut(parts.header, lengths, Buffer::readable);
        chain.push(Buffer::writable(parts.data, 512));
        chain.push(Buffer::writable(parts.status, 1));

        let used = send(&mut guest, &chain);

        assert_eq!((used.len, byte_at(&guest.memory, parts.status)), (513, status::OK), "{lengths:?}");
        assert!(bytes_at(&guest.memory, parts.data, 512) == pattern(512, 1), "{lengths:?}");
    }
}

#[test]
fn data_of_a_write_may_begin_in_the_header_s_buffer() {
    let rig = Rig::with_disk();
    let mut guest = guest(&rig);
    for (nth, lengths) in
        [&[16 + 1024_u32][..], &[16 + 1, 1023], &[7, 9 + 500, 524], &[17, 1, 1022]].into_iter().enumerate()
    {
        let sector = nth as u64 * 2;
        let parts = Parts::new(&mut guest, kind::OUT, sector);
        guest.memory.write(parts.header + 16, &pattern(1024, sector)).unwrap();
        let mut chain = cut(parts.header, lengths, Buffer::readable);
        chain.push(Buffer::writable(parts.status, 1));

        let used = send(&mut guest, &chain);

        assert_eq!((used.len, byte_at(&guest.memory, parts.status)), (1, status::OK), "{lengths:?}");
        assert!(guest.read(0, sector, 1024).unwrap() == pattern(1024, sector), "{lengths:?}");
    }
}

#[test]
fn status_of_a_read_may_end_the_data_s_buffer() {
    let rig = Rig::with_disk();
    let mut guest = guest(&rig);
    guest.write(0, 0, &pattern(1024, 5)).unwrap();
    for lengths in [&[1025_u32][..], &[1, 1024], &[1023, 2], &[512, 512, 1], &[600, 424, 1]] {
        let parts = Parts::new(&mut guest, kind::IN, 0);
        let mut chain = vec![Buffer::readable(parts.header, 16)];
        chain.extend(cut(parts.data, lengths, Buffer::writable));

        let used = send(&mut guest, &chain);

        assert_eq!((used.len, byte_at(&guest.memory, parts.data + 1024)), (1025, status::OK), "{lengths:?}");
        assert!(bytes_at(&guest.memory, parts.data, 1024) == pattern(1024, 5), "{lengths:?}");
    }
}

#[test]
fn empty_buffers_among_the_others_are_passed_over() {
    let rig = Rig::with_disk();
    let mut guest = guest(&rig);
    guest.write(0, 0, &pattern(512, 6)).unwrap();
    let parts = Parts::new(&mut guest, kind::IN, 0);
    let chain = [
        Buffer::readable(parts.header, 0),
        Buffer::readable(parts.header, 16),
        Buffer::readable(parts.header, 0),
        Buffer::writable(parts.data, 0),
        Buffer::writable(parts.data, 512),
        Buffer::writable(parts.status, 1),
        Buffer::writable(parts.status + 1, 0),
    ];

    let used = send(&mut guest, &chain);

    assert_eq!((used.len, byte_at(&guest.memory, parts.status)), (513, status::OK));
    assert!(bytes_at(&guest.memory, parts.data, 512) == pattern(512, 6));
}

#[test]
fn request_over_several_windows_is_one_request() {
    let rig = Rig::with_disk();
    // Three windows side by side in the guest, and in reverse order in the file.
    let edge = 0x4_0000_0000;
    let memory =
        Memory::with_regions(&[(0x1_0000_0000, RAM), (edge, 0x1000), (edge + 0x1000, 0x1000)]).unwrap();
    let mut guest = Guest::new(rig.client("disk"), memory, BlkOptions::default()).unwrap();
    let data = edge + 0x1000 - 700;
    guest.memory.write(data, &pattern(1024, 7)).unwrap();
    let parts = Parts::new(&mut guest, kind::OUT, 4);
    let chain =
        [Buffer::readable(parts.header, 16), Buffer::readable(data, 1024), Buffer::writable(parts.status, 1)];
    send(&mut guest, &chain);
    assert_eq!(byte_at(&guest.memory, parts.status), status::OK);
    assert!(guest.read(0, 4, 1024).unwrap() == pattern(1024, 7));

    // And back, with header and status across the edge too.
    let header = edge + 0x1000 - 5;
    guest.memory.write(header, Header { kind: kind::IN, reserved: 0, sector: 4 }.as_bytes()).unwrap();
    let into = edge + 0x1000 - 1000;
    let chain = [Buffer::readable(header, 16), Buffer::writable(into, 1025)];
    // The header is read before the data is written, though they overlap.
    let used = send(&mut guest, &chain);
    assert_eq!((used.len, byte_at(&guest.memory, into + 1024)), (1025, status::OK));
    assert!(bytes_at(&guest.memory, into, 1024) == pattern(1024, 7));
}

#[test]
fn indirect_table_may_span_windows() {
    let rig = Rig::with_disk();
    let edge = 0x4_0000_0000;
    let memory =
        Memory::with_regions(&[(0x1_0000_0000, RAM), (edge, 0x1000), (edge + 0x1000, 0x1000)]).unwrap();
    let options = BlkOptions { features: feature::INDIRECT_DESC, ..BlkOptions::default() };
    let mut guest = Guest::new(rig.client("disk"), memory, options).unwrap();
    guest.write(0, 0, &pattern(512, 8)).unwrap();
    let parts = Parts::new(&mut guest, kind::IN, 0);
    let table = edge + 0x1000 - 24;
    let entries = [
        crate::hostile::desc(parts.header, 16, 1, 1),
        crate::hostile::desc(parts.data, 512, 1 | 2, 2),
        crate::hostile::desc(parts.status, 1, 2, 0),
    ];
    guest.memory.write(table, entries.as_bytes()).unwrap();

    crate::hostile::offer(&mut guest, &[crate::hostile::desc(table, 48, 4, 0)]);

    crate::rig::eventually("the request is answered", || byte_at(&guest.memory, parts.status) == status::OK);
    assert!(bytes_at(&guest.memory, parts.data, 512) == pattern(512, 8));
}

#[test]
fn lengths_that_are_no_whole_sectors_fail() {
    let rig = Rig::with_disk();
    let mut guest = guest(&rig);
    for len in [0, 1, 511, 513, 1000] {
        let parts = Parts::new(&mut guest, kind::IN, 0);
        let chain = [
            Buffer::readable(parts.header, 16),
            Buffer::writable(parts.data, len),
            Buffer::writable(parts.status, 1),
        ];
        send(&mut guest, &chain);
        assert_eq!(byte_at(&guest.memory, parts.status), status::IOERR, "{len}");
    }
}

#[test]
fn id_goes_into_buffers_of_any_length() {
    let rig = Rig::with_disk();
    let mut guest = guest(&rig);
    for lengths in [&[20_u32][..], &[3, 17], &[64], &[4]] {
        let parts = Parts::new(&mut guest, kind::GET_ID, 0);
        let mut chain = vec![Buffer::readable(parts.header, 16)];
        chain.extend(cut(parts.data, lengths, Buffer::writable));
        chain.push(Buffer::writable(parts.status, 1));
        let used = send(&mut guest, &chain);
        let room: u32 = lengths.iter().sum();
        assert_eq!(byte_at(&guest.memory, parts.status), status::OK, "{lengths:?}");
        assert_eq!(used.len, room.min(20) + 1, "{lengths:?}");
        let shown = bytes_at(&guest.memory, parts.data, 7.min(room as usize));
        assert_eq!(shown, b"Malloc0"[..shown.len()], "{lengths:?}");
    }
}

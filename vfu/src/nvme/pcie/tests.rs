//! PRPs and SGLs: what they yield, and what they refuse, against guest memory of the mock.

use bdev::IoVec;
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::memory::GuestData;
use crate::{
    dma::{Protection, View, Windows},
    nvme::{
        data::Data,
        spec::{Command, Status},
    },
};

const PAGE: u64 = 4096;
const PAGES: u64 = 1024;
const BASE: u64 = 0x1_0000_0000;

/// Guest memory with one window.
fn memory() -> View {
    let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::empty()).unwrap();
    rustix::fs::ftruncate(&file, PAGES * PAGE).unwrap();
    let windows = Windows::default();
    windows.map(BASE, PAGES * PAGE, Protection { read: true, write: true }, Some((file, 0))).unwrap();
    View::new(&windows)
}

fn map(view: &View, command: &Command, len: u64) -> Result<Vec<IoVec>, Status> {
    let mut out = Vec::with_capacity(1024);
    GuestData { view, admin: false }.map(command, len, true, &mut out).map(|()| out)
}

fn prp(first: u64, second: u64) -> Command {
    Command { dptr: [first, second], ..Command::default() }
}

fn sgl(addr: u64, len: u32, id: u8) -> Command {
    Command { flags: 1 << 6, dptr: [addr, u64::from(id) << 56 | u64::from(len)], ..Command::default() }
}

fn descriptor(addr: u64, len: u32, id: u8) -> [u64; 2] {
    sgl(addr, len, id).dptr
}

/// Where the vectors are in the guest.
fn addresses(view: &View, vectors: &[IoVec]) -> Vec<(u64, usize)> {
    let mut start = Vec::with_capacity(1);
    view.translate(BASE, 1, true, &mut start).unwrap();
    let base = start[0].as_ptr().addr();
    vectors.iter().map(|v| (BASE + (v.as_ptr().addr() - base) as u64, v.len())).collect()
}

#[test]
fn one_page_from_its_middle() {
    let view = memory();
    let vectors = map(&view, &prp(BASE + 0x204, 0), 512).unwrap();
    assert_eq!(addresses(&view, &vectors), [(BASE + 0x204, 512)]);
}

#[test]
fn second_entry_is_the_second_page() {
    let view = memory();
    let vectors = map(&view, &prp(BASE + 0xe00, BASE + 8 * PAGE), 1024).unwrap();
    assert_eq!(addresses(&view, &vectors), [(BASE + 0xe00, 512), (BASE + 8 * PAGE, 512)]);
}

#[test]
fn contiguous_pages_are_one_vector() {
    let view = memory();
    view.write(BASE, [BASE + 3 * PAGE, BASE + 4 * PAGE, BASE + 5 * PAGE].as_bytes()).unwrap();
    let vectors = map(&view, &prp(BASE + 2 * PAGE, BASE), 4 * PAGE).unwrap();
    assert_eq!(addresses(&view, &vectors), [(BASE + 2 * PAGE, 4 * PAGE as usize)]);
}

#[test]
fn list_goes_on_behind_the_last_entry_of_its_page() {
    let view = memory();
    // Two entries left in the first page of the list: one for data, one that points on.
    let list = BASE + PAGE - 16;
    view.write(list, [BASE + 10 * PAGE, BASE + 2 * PAGE].as_bytes()).unwrap();
    view.write(BASE + 2 * PAGE, [BASE + 20 * PAGE, BASE + 30 * PAGE].as_bytes()).unwrap();
    let vectors = map(&view, &prp(BASE + 40 * PAGE, list), 4 * PAGE).unwrap();
    let pages: Vec<u64> = addresses(&view, &vectors).iter().map(|(at, _)| (at - BASE) / PAGE).collect();
    assert_eq!(pages, [40, 10, 20, 30]);
}

#[test]
fn offsets_where_there_must_be_none_are_refused() {
    let view = memory();
    view.write(BASE, [BASE + 3 * PAGE, BASE + 4 * PAGE + 8].as_bytes()).unwrap();
    for command in [prp(BASE + 1, 0), prp(BASE, BASE + 512), prp(BASE, BASE + 4)] {
        assert_eq!(map(&view, &command, 2 * PAGE).unwrap_err(), Status::INVALID_PRP_OFFSET);
    }
    assert_eq!(map(&view, &prp(BASE + 2 * PAGE, BASE), 3 * PAGE).unwrap_err(), Status::INVALID_PRP_OFFSET);
}

#[test]
fn unreachable_data_and_lists_are_transfer_errors() {
    let view = memory();
    let behind = BASE + PAGES * PAGE;
    for (command, len) in [
        (prp(0, 0), 512),
        (prp(behind, 0), 512),
        (prp(BASE, behind), 2 * PAGE),
        (prp(BASE, behind), 3 * PAGE),
        (sgl(behind - 256, 512, 0), 512),
        (sgl(behind, 32, 0x30), 512),
    ] {
        assert_eq!(map(&view, &command, len).unwrap_err(), Status::DATA_TRANSFER_ERROR, "{command:?}");
    }
}

#[test]
fn list_that_points_to_itself_ends() {
    let view = memory();
    let last = BASE + PAGE - 8;
    view.write(last, (BASE + PAGE - 8).as_bytes()).unwrap();
    assert!(map(&view, &prp(BASE + 2 * PAGE, last), 64 * PAGE).is_err());
}

#[test]
fn segments_are_followed_to_the_last() {
    let view = memory();
    let first = [descriptor(BASE + 2 * PAGE, 512, 0), descriptor(BASE + PAGE, 32, 0x30)];
    view.write(BASE, first.as_bytes()).unwrap();
    let last = [descriptor(BASE + 3 * PAGE + 3, 500, 0), descriptor(BASE + 4 * PAGE, 12, 0)];
    view.write(BASE + PAGE, last.as_bytes()).unwrap();
    let vectors = map(&view, &sgl(BASE, 32, 0x20), 1024).unwrap();
    let expected = [(BASE + 2 * PAGE, 512), (BASE + 3 * PAGE + 3, 500), (BASE + 4 * PAGE, 12)];
    assert_eq!(addresses(&view, &vectors), expected);
}

#[test]
fn lists_that_break_the_rules_are_refused() {
    let view = memory();
    view.write(BASE, [descriptor(BASE, 32, 0x20), descriptor(BASE, 32, 0x20)].as_bytes()).unwrap();
    view.write(BASE + PAGE, [descriptor(BASE, 16, 0x20)].as_bytes()).unwrap();
    view.write(BASE + 2 * PAGE, [descriptor(BASE + 2 * PAGE, 16, 0x20)].as_bytes()).unwrap();
    for (command, status) in [
        (sgl(BASE, 256, 0), Status::DATA_SGL_LENGTH),
        (sgl(BASE, 1024, 0), Status::DATA_SGL_LENGTH),
        (sgl(BASE, 512, 0x10), Status::SGL_TYPE),
        (sgl(BASE, 512, 0x01), Status::SGL_TYPE),
        (sgl(BASE, 24, 0x30), Status::INVALID_SGL_SEGMENT),
        (sgl(BASE, 0, 0x20), Status::INVALID_SGL_SEGMENT),
        (sgl(BASE, 32, 0x20), Status::INVALID_SGL_SEGMENT),
        (sgl(BASE + PAGE, 16, 0x30), Status::INVALID_SGL_SEGMENT),
        (sgl(BASE + 2 * PAGE, 16, 0x20), Status::INVALID_SGL_COUNT),
        (sgl(BASE, 0xffff_fff0, 0x30), Status::INVALID_SGL_COUNT),
    ] {
        assert_eq!(map(&view, &command, 512).unwrap_err(), status, "{command:?}");
    }
}

#[test]
fn list_of_empty_blocks_has_an_end() {
    let view = memory();
    // Zeroes are data blocks of no bytes; the last one allowed has the data.
    let most = 16_384;
    view.write(BASE + (most - 1) * 16, descriptor(BASE + 512 * PAGE, 512, 0).as_bytes()).unwrap();
    let list = |count: u64| sgl(BASE, u32::try_from(count * 16).unwrap(), 0x30);
    assert_eq!(map(&view, &list(most), 512).unwrap().len(), 1);
    assert_eq!(map(&view, &list(most + 1), 512).unwrap_err(), Status::INVALID_SGL_COUNT);
}

#[test]
fn admin_commands_have_no_lists_of_segments() {
    let view = memory();
    let mut out = Vec::with_capacity(4);
    let data = GuestData { view: &view, admin: true };
    assert_eq!(data.map(&sgl(BASE, 512, 0), 512, true, &mut out), Err(Status::INVALID_FIELD));
}

proptest! {
    #[test]
    fn prp_lists_yield_their_pages_in_order(
        offset in (0_u64..1024).prop_map(|dwords| dwords * 4),
        pages in proptest::collection::vec(700_u64..PAGES, 1..300),
        list_offset in (0_u64..512).prop_map(|entries| entries * 8),
        cut in 0_u64..PAGE,
    ) {
        let view = memory();
        // The list lies in the first 600 pages, every other one, so that nothing in it is contiguous.
        let mut at = BASE + list_offset;
        let list = at;
        let mut next = BASE + 2 * PAGE;
        let rest = &pages[1..];
        for (index, page) in rest.iter().enumerate() {
            if at % PAGE == PAGE - 8 && index + 1 < rest.len() {
                view.write(at, next.as_bytes()).unwrap();
                (at, next) = (next, next + 2 * PAGE);
            }
            view.write(at, (BASE + page * PAGE).as_bytes()).unwrap();
            at += 8;
        }
        let second = if rest.len() == 1 { BASE + rest[0] * PAGE } else { list };
        let full = PAGE - offset + rest.len() as u64 * PAGE;
        let len = if rest.is_empty() { full } else { full - cut };
        let vectors = map(&view, &prp(BASE + pages[0] * PAGE + offset, second), len).unwrap();

        let mut expected = Vec::new();
        let mut left = len;
        for (index, page) in pages.iter().enumerate() {
            let skip = if index == 0 { offset } else { 0 };
            let n = left.min(PAGE - skip);
            expected.extend((0..n.div_ceil(4)).map(|word| BASE + page * PAGE + skip + word * 4));
            left -= n;
        }
        let words = |&(at, len): &(u64, usize)| (0..(len as u64).div_ceil(4)).map(move |word| at + word * 4);
        let actual: Vec<u64> = addresses(&view, &vectors).iter().flat_map(words).collect();
        prop_assert_eq!(actual, expected);
    }

    #[test]
    fn arbitrary_pointers_never_yield_more_than_was_asked_for(
        a in any::<u64>(), b in any::<u64>(), near in any::<bool>(), flags in any::<u8>(), len in 1_u64..0x20_0000,
        garbage in proptest::collection::vec(any::<u64>(), 64),
    ) {
        let view = memory();
        view.write(BASE, garbage.as_bytes()).unwrap();
        let dptr = if near { [BASE + (a & 0x3ff_ffff), BASE + (b & 0xffff)] } else { [a, b] };
        let command = Command { flags, dptr, ..Command::default() };
        if let Ok(vectors) = map(&view, &command, len) {
            prop_assert_eq!(vectors.iter().map(|v| v.len() as u64).sum::<u64>(), len);
        }
    }
}

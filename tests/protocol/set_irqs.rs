//! DEVICE_SET_IRQS in all shapes: eventfds, booleans, nothing; assign, take away, trigger, mask, unmask.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Result, ensure};

use super::{
    Case, Kit, any, ours,
    virtio::{self, Disk},
    wire::{Message, Wire, bytes, cmd, count, errno, eventfd, wait_for},
};

pub(super) const CASES: &[Case] = &[
    any("assign_and_trigger", "eventfd and trigger: assigned; none and trigger: fired", loopback),
    any("replaced", "a new eventfd replaces the old", replaced),
    any("data_and_action_bits", "exactly one of each", one_bit),
    any("ranges", "start and count inside the type", ranges),
    any("index_out_of_range", "there is no type 5", index),
    any("short_payload", "20 bytes", short),
    any("descriptors_and_counts", "as many as count, with eventfd data only", descriptors),
    ours("bool_triggers_what_is_marked", "a byte for each", bools),
    ours("bool_length", "as many bytes as count", bool_length),
    ours("chunks_of_vectors", "vectors arrive one by one, and again", chunks),
    ours("take_away", "no descriptors: taken away", take_away),
    ours("disable_all", "start and count zero, nothing, trigger: all off", disable_all),
    ours("masked_is_latched", "raised while masked, fired once on unmask", latched),
    ours("err_and_req", "one each, trigger only", err_req),
    ours("not_an_eventfd", "a descriptor that could block is refused", not_eventfd),
    ours("intx_by_request", "level-triggered: once until unmasked, again while unread", intx),
    ours("intx_before_eventfd", "raised before it is assigned: not lost", intx_late),
];

const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;
const INTX: u32 = 0;
const MSIX: u32 = 2;

#[expect(clippy::too_many_arguments, reason = "the fields of the message")]
fn set(
    wire: &mut Wire,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    data: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<Message> {
    let argsz = u32::try_from(20 + data.len())?;
    wire.ask_with(cmd::SET_IRQS, &[&bytes!(argsz, flags, index, start, count)[..], data].concat(), fds)
}

fn vectors(wire: &mut Wire) -> Result<u32> {
    wire.ask(cmd::GET_IRQ_INFO, &bytes!(16_u32, 0_u32, MSIX, 0_u32))?.u32(12)
}

/// MSI-X where there is some, else INTx.
fn some_type(wire: &mut Wire) -> Result<u32> {
    Ok(if vectors(wire)? > 0 { MSIX } else { INTX })
}

fn loopback(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let kind = some_type(&mut wire)?;
    let fd = eventfd()?;
    ensure!(
        set(&mut wire, EVENTFD | TRIGGER, kind, 0, 1, &[], &[fd.as_fd()])?.ok()?.is_empty(),
        "header only"
    );
    ensure!(count(&fd) == 0, "fired by assignment");
    set(&mut wire, NONE | TRIGGER, kind, 0, 1, &[], &[])?.ok()?;
    ensure!(wait_for(&fd)? == 1);
    Ok(())
}

fn replaced(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let kind = some_type(&mut wire)?;
    let (old, new) = (eventfd()?, eventfd()?);
    set(&mut wire, EVENTFD | TRIGGER, kind, 0, 1, &[], &[old.as_fd()])?.ok()?;
    set(&mut wire, EVENTFD | TRIGGER, kind, 0, 1, &[], &[new.as_fd()])?.ok()?;
    set(&mut wire, NONE | TRIGGER, kind, 0, 1, &[], &[])?.ok()?;
    wait_for(&new)?;
    ensure!(count(&old) == 0, "the old one fired");
    Ok(())
}

fn one_bit(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    for flags in [0, NONE, TRIGGER, NONE | BOOL | TRIGGER, NONE | MASK | TRIGGER, NONE | TRIGGER | 64] {
        set(&mut wire, flags, INTX, 0, 1, &[], &[])?.refused(errno::EINVAL)?;
    }
    wire.is_in_step()
}

fn ranges(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let all = vectors(&mut wire)?;
    for (start, count) in [(all, 1), (0, all + 1), (all, 0), (u32::MAX, 2), (1, u32::MAX)] {
        set(&mut wire, NONE | TRIGGER, MSIX, start, count, &[], &[])?.refused(errno::EINVAL)?;
    }
    wire.is_in_step()
}

fn index(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    set(&mut wire, NONE | TRIGGER, 5, 0, 1, &[], &[])?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn short(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let whole = bytes!(20_u32, NONE | TRIGGER, INTX, 0_u32, 1_u32);
    wire.ask(cmd::SET_IRQS, &whole[..16])?.refused(errno::EINVAL)?;
    wire.ask(cmd::SET_IRQS, &bytes!(19_u32, NONE | TRIGGER, INTX, 0_u32, 1_u32))?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn descriptors(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let kind = some_type(&mut wire)?;
    let fd = eventfd()?;
    set(&mut wire, EVENTFD | TRIGGER, kind, 0, 1, &[], &[fd.as_fd(), fd.as_fd()])?.refused(errno::EINVAL)?;
    set(&mut wire, NONE | TRIGGER, kind, 0, 1, &[], &[fd.as_fd()])?.refused(errno::EINVAL)?;
    set(&mut wire, EVENTFD | MASK, kind, 0, 1, &[], &[fd.as_fd()])?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn bools(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let (a, b) = (eventfd()?, eventfd()?);
    set(&mut wire, EVENTFD | TRIGGER, MSIX, 0, 2, &[], &[a.as_fd(), b.as_fd()])?.ok()?;
    set(&mut wire, BOOL | TRIGGER, MSIX, 0, 2, &[0, 1], &[])?.ok()?;
    ensure!((count(&a), count(&b)) == (0, 1));
    Ok(())
}

fn bool_length(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    set(&mut wire, BOOL | TRIGGER, MSIX, 0, 2, &[1], &[])?.refused(errno::EINVAL)?;
    set(&mut wire, BOOL | TRIGGER, MSIX, 0, 2, &[1, 1, 1], &[])?.refused(errno::EINVAL)
}

fn chunks(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let fds = [eventfd()?, eventfd()?, eventfd()?];
    for _ in 0..2 {
        for (vector, fd) in (0..).zip(&fds) {
            set(&mut wire, EVENTFD | TRIGGER, MSIX, vector, 1, &[], &[fd.as_fd()])?.ok()?;
        }
    }
    set(&mut wire, NONE | TRIGGER, MSIX, 0, 3, &[], &[])?.ok()?;
    ensure!(fds.iter().all(|fd| count(fd) == 1));
    Ok(())
}

fn take_away(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let fd = eventfd()?;
    set(&mut wire, EVENTFD | TRIGGER, MSIX, 0, 1, &[], &[fd.as_fd()])?.ok()?;
    set(&mut wire, EVENTFD | TRIGGER, MSIX, 0, 1, &[], &[])?.ok()?;
    set(&mut wire, NONE | TRIGGER, MSIX, 0, 1, &[], &[])?.ok()?;
    ensure!(count(&fd) == 0);
    Ok(())
}

fn disable_all(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let fd = eventfd()?;
    for index in [INTX, MSIX] {
        set(&mut wire, EVENTFD | TRIGGER, index, 0, 1, &[], &[fd.as_fd()])?.ok()?;
        set(&mut wire, NONE | TRIGGER, index, 0, 0, &[], &[])?.ok()?;
        set(&mut wire, NONE | TRIGGER, index, 0, 1, &[], &[])?.ok()?;
    }
    ensure!(count(&fd) == 0);
    Ok(())
}

fn latched(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let fd = eventfd()?;
    set(&mut wire, EVENTFD | TRIGGER, MSIX, 0, 1, &[], &[fd.as_fd()])?.ok()?;
    set(&mut wire, NONE | MASK, MSIX, 0, 1, &[], &[])?.ok()?;
    for _ in 0..3 {
        set(&mut wire, NONE | TRIGGER, MSIX, 0, 1, &[], &[])?.ok()?;
    }
    ensure!(count(&fd) == 0, "fired while masked");
    set(&mut wire, BOOL | UNMASK, MSIX, 0, 1, &[1], &[])?.ok()?;
    ensure!(count(&fd) == 1, "not fired on unmask");
    Ok(())
}

fn err_req(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let fd = eventfd()?;
    for index in [3, 4] {
        set(&mut wire, EVENTFD | TRIGGER, index, 0, 1, &[], &[fd.as_fd()])?.ok()?;
        set(&mut wire, NONE | TRIGGER, index, 0, 2, &[], &[])?.refused(errno::EINVAL)?;
        set(&mut wire, NONE | MASK, index, 0, 1, &[], &[])?.refused(errno::EINVAL)?;
        set(&mut wire, NONE | TRIGGER, index, 0, 1, &[], &[])?.ok()?;
    }
    ensure!(count(&fd) == 2);
    Ok(())
}

fn not_eventfd(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let (_reader, writer) = std::io::pipe()?;
    set(&mut wire, EVENTFD | TRIGGER, MSIX, 0, 1, &[], &[writer.as_fd()])?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn intx(kit: &Kit) -> Result<()> {
    let mut disk = Disk::start_with(kit, virtio::Irq::Pin)?;
    let fd = eventfd()?;
    set(&mut disk.wire, EVENTFD | TRIGGER, INTX, 0, 1, &[], &[fd.as_fd()])?.ok()?;
    disk.request(virtio::OUT, 0, &[1; 512])?;
    ensure!(wait_for(&fd)? == 1);
    ensure!(disk.wire.read(7, 6, 1)?[0] & 8 != 0, "Interrupt Status is not up");
    disk.request(virtio::OUT, 0, &[2; 512])?;
    ensure!(count(&fd) == 0, "fired again before it was unmasked");
    set(&mut disk.wire, NONE | UNMASK, INTX, 0, 1, &[], &[])?.ok()?;
    ensure!(wait_for(&fd)? == 1, "the status was not read: the level is still up");
    ensure!(disk.wire.read(4, 0x1000, 1)? == [1], "the status byte of a queue interrupt");
    ensure!(disk.wire.read(7, 6, 1)?[0] & 8 == 0, "Interrupt Status is still up");
    set(&mut disk.wire, NONE | UNMASK, INTX, 0, 1, &[], &[])?.ok()?;
    ensure!(count(&fd) == 0, "fired without a cause");
    Ok(())
}

fn intx_late(kit: &Kit) -> Result<()> {
    let mut disk = Disk::start_with(kit, virtio::Irq::Pin)?;
    disk.request(virtio::OUT, 0, &[1; 512])?;
    let fd = eventfd()?;
    set(&mut disk.wire, EVENTFD | TRIGGER, INTX, 0, 1, &[], &[fd.as_fd()])?.ok()?;
    ensure!(wait_for(&fd)? == 1);
    Ok(())
}

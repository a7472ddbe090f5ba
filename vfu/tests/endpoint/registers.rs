//! Registers and interrupts reached the odd ways that guests reach them: any width, INTx, the window in configuration
//! space, the MSI-X table.

use vfu::{
    irq::{eventfd, take_eventfd},
    mock::{
        blk::{BlkOptions, Io},
        client::Client,
        memory::{Memory, REGION_ALIGN},
        server::DiskOptions,
        transport::{Kicks, Transport},
    },
    virtio::{
        spec::{blk::kind, status},
        transport::TransportOptions,
    },
    wire::spec::{RegionWriteEntry, irq, irq_set_flags, region, region_flags},
};

use crate::rig::{PATIENCE, Rig, eventually};

const BAR: u32 = 4;

fn read(client: &mut Client, region: u32, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    client.region_read(region, offset, &mut data).unwrap();
    data
}

#[test]
fn device_is_what_a_modern_driver_looks_for() {
    let rig = Rig::with_disk();
    let transport = Transport::new(rig.client("disk"), Kicks::Auto).unwrap();
    let function = transport.function;
    assert_eq!(function.device_id, 2);
    assert_eq!(
        [function.common, function.isr, function.device, function.notify].map(|place| (
            place.bar,
            place.offset,
            place.len
        )),
        [(4, 0, 0x1000), (4, 0x1000, 0x1000), (4, 0x2000, 0x1000), (4, 0x3000, 0x1000)]
    );
    let msix = function.msix.unwrap();
    assert_eq!((msix.vectors, msix.table.bar, msix.pending.bar), (5, 1, 2));
}

#[test]
fn info_says_what_regions_and_interrupts_there_are() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let info = client.device_info().unwrap();
    assert_eq!((info.num_regions, info.num_irqs, info.flags), (9, 5, 3));
    let sizes: Vec<u64> = (0..9).map(|index| client.region_info(index).unwrap().info.size).collect();
    assert_eq!(sizes, [0, 0x1000, 0x1000, 0, 0x4000, 0, 0, 0x1000, 0]);
    let flags: Vec<u32> = [0, 4, 7].map(|index| client.region_info(index).unwrap().info.flags).to_vec();
    assert_eq!(
        flags,
        [0, region_flags::READ | region_flags::WRITE, region_flags::READ | region_flags::WRITE]
    );
    let counts: Vec<u32> = (0..5).map(|index| client.irq_info(index).unwrap().count).collect();
    assert_eq!(counts, [1, 0, 5, 1, 1]);
}

#[test]
fn device_without_msix_has_no_vectors_and_neither_of_their_bars() {
    let mut rig = Rig::new();
    rig.malloc("Malloc0", 512, 1);
    let transport = TransportOptions { disable_msix: true, ..TransportOptions::default() };
    rig.serve("disk", &DiskOptions { transport, ..DiskOptions::new("Malloc0") });
    let mut client = rig.client("disk");
    let sizes: Vec<u64> = (0..9).map(|index| client.region_info(index).unwrap().info.size).collect();
    assert_eq!(sizes, [0, 0, 0, 0, 0x4000, 0, 0, 0x1000, 0]);
    let counts: Vec<u32> = (0..5).map(|index| client.irq_info(index).unwrap().count).collect();
    assert_eq!(counts, [1, 0, 0, 1, 1]);
    assert_eq!(Transport::new(client, Kicks::Auto).unwrap().function.msix, None);
}

#[test]
fn common_configuration_is_reached_at_any_width() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    // num_queues and status in one read of four bytes at an odd place.
    assert_eq!(read(&mut client, BAR, 17, 5), [0xff, 4, 0, 0, 0]);
    // An address byte by byte.
    for (at, byte) in (32..).zip(0x1122_3344_5566_7000_u64.to_le_bytes()) {
        client.region_write(BAR, at, &[byte]).unwrap();
    }
    assert_eq!(read(&mut client, BAR, 32, 8), 0x1122_3344_5566_7000_u64.to_le_bytes());
    // Eight bytes over queue_size, vector, enable and notify_off.
    let mut words = read(&mut client, BAR, 24, 8);
    assert_eq!(words, [128, 0, 0xff, 0xff, 0, 0, 0, 0]);
    words[0] = 64;
    client.region_write(BAR, 24, &words).unwrap();
    assert_eq!(read(&mut client, BAR, 24, 2), [64, 0]);
}

#[test]
fn queues_that_do_not_exist_read_as_zero() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    for queue in [4_u16, 64, 0xffff] {
        client.region_write(BAR, 22, &queue.to_le_bytes()).unwrap();
        client.region_write(BAR, 24, &[0xff; 36]).unwrap();
        assert_eq!(read(&mut client, BAR, 24, 36), [0; 36]);
    }
}

#[test]
fn whole_bar_can_be_read_and_written_with_nonsense() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    for byte in [0xff, 0x00, 0x55] {
        read(&mut client, BAR, 0, 0x4000);
        client.region_write(BAR, 0, &[byte; 0x4000]).unwrap();
        client.region_write(region::CONFIG, 0, &[byte; 0x1000]).unwrap();
        read(&mut client, region::CONFIG, 0, 0x1000);
    }
    client.reset().unwrap();
    rig_works_after(client, &rig);
}

fn rig_works_after(client: Client, rig: &Rig) {
    drop(client);
    rig.guest("disk", BlkOptions::default()).get_id(0).unwrap();
}

#[test]
fn reads_and_writes_of_every_offset_and_width_are_answered() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    for region in [1, 2, BAR, region::CONFIG] {
        for offset in (0..64).chain(0xff0..0x1000) {
            for len in [1, 2, 4, 8].into_iter().filter(|len| offset + len <= 0x1000) {
                let data = read(&mut client, region, offset, len as usize);
                client.region_write(region, offset, &data).unwrap();
            }
        }
    }
}

#[test]
fn msix_table_reads_back_and_is_masked_after_reset() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    client.region_write(1, 16, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0]).unwrap();
    assert_eq!(read(&mut client, 1, 16, 4), [1, 2, 3, 4]);
    assert_eq!(read(&mut client, 1, 12, 4), [1, 0, 0, 0], "vector 0 is masked");
}

#[test]
fn vector_without_an_eventfd_is_pending_until_it_has_one() {
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", BlkOptions { interrupts: true, ..BlkOptions::default() });
    let all_off = irq_set_flags::DATA_NONE | irq_set_flags::ACTION_TRIGGER;
    guest.transport.client.irq_action(all_off, irq::MSIX, 0, 0).unwrap();
    use vfu::mock::ring::DriverRing;
    guest.queues[0].ring().enable_interrupts();
    guest.queues[0].submit(Io { kind: kind::IN, sector: 0, len: 512 }).unwrap();
    guest.publish(0).unwrap();
    let pending = |guest: &mut crate::rig::Guest| read(&mut guest.transport.client, 2, 0, 1)[0];
    eventually("vector 1 is pending", || pending(&mut guest) == 0b10);

    let late = eventfd().unwrap();
    guest.transport.client.set_eventfds(irq::MSIX, 1, &[std::os::fd::AsFd::as_fd(&late)]).unwrap();

    assert_eq!(take_eventfd(&late), 1);
    assert_eq!(pending(&mut guest), 0);
}

#[test]
fn device_without_msix_raises_its_pin_until_the_status_is_read() {
    let rig = Rig::with_disk();
    let mut guest = rig.guest("disk", BlkOptions::default());
    let pin = eventfd().unwrap();
    guest.transport.client.set_eventfds(irq::INTX, 0, &[std::os::fd::AsFd::as_fd(&pin)]).unwrap();
    use vfu::mock::ring::DriverRing;
    for _ in 0..5 {
        guest.queues[0].ring().enable_interrupts();
        guest.queues[0].submit(Io { kind: kind::IN, sector: 0, len: 512 }).unwrap();
        guest.publish(0).unwrap();
        eventually("the pin is raised", || take_eventfd(&pin) == 1);
        assert_eq!(guest.transport.take_isr().unwrap(), 1);
        assert_eq!(guest.transport.take_isr().unwrap(), 0, "reading clears it");
        let unmask = irq_set_flags::DATA_NONE | irq_set_flags::ACTION_UNMASK;
        guest.transport.client.irq_action(unmask, irq::INTX, 0, 1).unwrap();
        assert_eq!(take_eventfd(&pin), 0);
        guest.wait(0).unwrap();
    }
}

#[test]
fn client_can_fire_an_interrupt_to_try_it() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let fds = [eventfd().unwrap(), eventfd().unwrap()];
    client
        .set_eventfds(irq::MSIX, 0, &[std::os::fd::AsFd::as_fd(&fds[0]), std::os::fd::AsFd::as_fd(&fds[1])])
        .unwrap();
    client.irq_action(irq_set_flags::DATA_NONE | irq_set_flags::ACTION_TRIGGER, irq::MSIX, 1, 1).unwrap();
    assert_eq!(fds.map(take_eventfd), [0, 1]);
}

#[test]
fn registers_are_reached_through_the_window_in_configuration_space() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let space = read(&mut client, region::CONFIG, 0, 256);
    let mut at = usize::from(space[0x34]);
    while !(space[at] == 9 && space[at + 3] == 5) {
        at = usize::from(space[at + 1]);
    }
    let at = at as u64;
    // bar 4, offset 18 (num_queues), length 2; then data.
    client.region_write(region::CONFIG, at + 4, &[4]).unwrap();
    client.region_write(region::CONFIG, at + 8, &18_u32.to_le_bytes()).unwrap();
    client.region_write(region::CONFIG, at + 12, &2_u32.to_le_bytes()).unwrap();
    assert_eq!(read(&mut client, region::CONFIG, at + 16, 2), [4, 0]);
    // And a write: the device status.
    client.region_write(region::CONFIG, at + 8, &20_u32.to_le_bytes()).unwrap();
    client.region_write(region::CONFIG, at + 12, &1_u32.to_le_bytes()).unwrap();
    client.region_write(region::CONFIG, at + 16, &[status::ACKNOWLEDGE]).unwrap();
    assert_eq!(read(&mut client, BAR, 20, 1), [status::ACKNOWLEDGE]);
}

#[test]
fn several_writes_in_one_message_are_done_in_order() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let entry =
        |offset, count, data: u64| RegionWriteEntry { offset, region: BAR, count, data: data.to_le_bytes() };
    let done = client
        .region_write_multi(&[entry(20, 1, 1), entry(20, 1, 3), entry(22, 2, 1), entry(24, 2, 32)])
        .unwrap();
    assert_eq!(done, 4);
    assert_eq!(read(&mut client, BAR, 20, 6), [3, 0, 1, 0, 32, 0]);
}

#[test]
fn queue_notifications_that_are_posted_before_the_driver_is_ready_are_harmless() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    for queue in 0..4_u64 {
        client.region_post(BAR, 0x3000 + queue * 4, &0_u16.to_le_bytes()).unwrap();
    }
    client.map_memory(&Memory::new(REGION_ALIGN).unwrap()).unwrap();
    rig_works_after(client, &rig);
}

#[test]
fn posted_writes_are_done_before_the_next_answer() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    client.set_timeout(PATIENCE);
    for size in [2_u16, 4, 8, 16, 32, 64] {
        client.region_post(BAR, 24, &size.to_le_bytes()).unwrap();
        assert_eq!(read(&mut client, BAR, 24, 2), size.to_le_bytes());
    }
}

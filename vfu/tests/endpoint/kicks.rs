//! Notifications in both directions: when a driver has to kick, and when it is interrupted.

use vfu::{
    endpoint::WRITE_ANSWER_MAX,
    mock::{
        blk::{BlkOptions, Io},
        ring::DriverRing,
        server::DiskOptions,
        transport::Kicks,
    },
    virtio::{
        control::DoorbellMode,
        spec::{
            blk::{kind, status},
            feature,
        },
    },
    wire::spec::RegionWriteEntry,
};

use crate::{
    held::{Held, Hold},
    rig::{Guest, PATIENCE, Rig, SHORT, eventually, pattern},
};

const READ: Io = Io { kind: kind::IN, sector: 0, len: 512 };

fn rig_with(doorbell: DoorbellMode) -> Rig {
    let mut rig = Rig::new();
    rig.malloc("Malloc0", 512, 16);
    rig.serve("disk", &DiskOptions { doorbell, ..DiskOptions::new("Malloc0") });
    rig
}

/// A guest on a bdev that holds its requests: its queue is polled while there are some.
fn held_guest(options: BlkOptions) -> (Rig, Guest, std::sync::Arc<Hold>) {
    let mut rig = Rig::new();
    let (held, hold) = Held::make("Held0");
    rig.register(held);
    rig.serve("disk", &DiskOptions { doorbell: DoorbellMode::Trapped, ..DiskOptions::new("Held0") });
    let guest = rig.guest("disk", options);
    (rig, guest, hold)
}

/// Waits until the reactor sleeps. Nothing but a kick wakes the queues of a driver that kicks.
fn falls_asleep(rig: &Rig) {
    eventually("the reactor sleeps", || rig.server.reactors()[0].stats().asleep);
}

fn is_answered(guest: &mut Guest) {
    assert_eq!(guest.wait(0).unwrap().status, status::OK);
}

#[test]
fn queue_that_is_polled_asks_for_no_kicks_and_needs_none() {
    for features in [0, feature::EVENT_IDX] {
        let (_rig, mut guest, hold) = held_guest(BlkOptions { features, ..BlkOptions::default() });
        guest.queues[0].submit(READ).unwrap();
        guest.publish(0).unwrap();
        eventually("the first request arrives", || hold.held() == 1);
        eventually("kicks are suppressed", || guest.queues[0].ring().kicks_suppressed());

        for held in 2..10 {
            guest.queues[0].submit(READ).unwrap();
            assert!(!guest.queues[0].publish(), "request {held} is to be kicked");
            eventually("a request arrives without a kick", || hold.held() == held);
        }

        hold.release();
        (1..10).for_each(|_| is_answered(&mut guest));
    }
}

#[test]
fn queue_that_sleeps_asks_for_a_kick_and_gets_up_by_it() {
    for features in [0, feature::EVENT_IDX] {
        let rig = rig_with(DoorbellMode::Trapped);
        let mut guest = rig.guest("disk", BlkOptions { features, ..BlkOptions::default() });
        for _ in 0..20 {
            falls_asleep(&rig);
            guest.queues[0].submit(READ).unwrap();
            assert!(guest.queues[0].publish(), "a queue that sleeps wants a kick");
            std::thread::sleep(std::time::Duration::from_millis(3));
            assert_eq!(guest.queues[0].poll().unwrap(), None, "nobody was told");
            guest.transport.kick(0).unwrap();
            is_answered(&mut guest);
        }
    }
}

#[test]
fn driver_that_never_kicks_is_served_all_the_same() {
    for doorbell in [DoorbellMode::Auto, DoorbellMode::Mapped] {
        let rig = rig_with(doorbell);
        let mut guest =
            rig.guest("disk", BlkOptions { kicks: Kicks::Never, queues: 2, ..BlkOptions::default() });
        for sector in 0..20 {
            guest.write(1, sector, &pattern(512, sector)).unwrap();
            assert!(guest.read(0, sector, 512).unwrap() == pattern(512, sector));
            // Long enough for the queues to fall asleep in between.
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}

#[test]
fn first_kick_ends_the_looking_and_a_reset_begins_it_again() {
    let rig = rig_with(DoorbellMode::Auto);
    let mut guest = rig.guest("disk", BlkOptions { kicks: Kicks::Messages, ..BlkOptions::default() });
    guest.transport.kick(0).unwrap();
    // Any message that is answered comes after the kick.
    guest.transport.status().unwrap();
    falls_asleep(&rig);
    guest.queues[0].submit(READ).unwrap();
    guest.queues[0].publish();
    std::thread::sleep(SHORT);
    assert_eq!(guest.queues[0].poll().unwrap(), None, "a driver that kicks is waited for");
    guest.transport.kick(0).unwrap();
    is_answered(&mut guest);

    guest.start().unwrap();

    guest.queues[0].submit(READ).unwrap();
    guest.queues[0].publish_quietly();
    is_answered(&mut guest);
}

#[test]
fn mapped_page_takes_kicks_as_stores_and_as_messages() {
    let rig = rig_with(DoorbellMode::Mapped);
    for kicks in [Kicks::Auto, Kicks::Messages] {
        let mut guest = rig.guest("disk", BlkOptions { kicks, ..BlkOptions::default() });
        assert_eq!(guest.transport.has_page(), kicks == Kicks::Auto);
        for sector in 0..50 {
            guest.write(0, sector, &pattern(512, sector)).unwrap();
            assert!(guest.read(0, sector, 512).unwrap() == pattern(512, sector));
        }
    }
}

#[test]
fn no_page_is_offered_where_kicks_are_messages() {
    for doorbell in [DoorbellMode::Auto, DoorbellMode::Trapped] {
        let rig = rig_with(doorbell);
        let guest = rig.guest("disk", BlkOptions::default());
        assert!(!guest.transport.has_page());
    }
}

#[test]
fn kick_of_a_queue_that_does_not_exist_is_dropped() {
    let rig = rig_with(DoorbellMode::Auto);
    let mut guest = rig.guest("disk", BlkOptions::default());
    let notify = guest.transport.function.notify;
    for at in [4, 4 * 63, 0xffc, 1, 0xfff] {
        guest.transport.client.region_write(notify.bar, notify.offset + at, &[0]).unwrap();
    }
    guest.get_id(0).unwrap();
}

/// Somebody's processor stands still while its kick is not answered (QEMU 10.1).
#[test]
fn kick_waits_for_nothing_that_it_did_not_start() {
    let (_rig, mut guest, hold) = held_guest(BlkOptions { queues: 2, ..BlkOptions::default() });
    guest.queues[0].submit(READ).unwrap();
    guest.publish(0).unwrap();
    eventually("the request arrives", || hold.held() == 1);
    let (common, notify) = (guest.transport.function.common, guest.transport.function.notify);
    let register = |at| RegionWriteEntry { offset: common.offset + at, region: 4, count: 2, data: [0; 8] };
    let kick =
        RegionWriteEntry { offset: notify.offset + 4, region: 4, count: 2, data: [1, 0, 0, 0, 0, 0, 0, 0] };
    let client = &mut guest.transport.client;
    // Another vector: queue 0 takes it when nothing is in flight, which is never. The answer comes all the same.
    assert_eq!(client.region_write_multi(&[register(22), register(26)]).unwrap(), 2);
    assert_eq!(hold.held(), 1);

    client.set_timeout(WRITE_ANSWER_MAX / 4);
    client.region_write(notify.bar, notify.offset + 4, &1_u16.to_le_bytes()).unwrap();
    client.region_write(notify.bar, notify.offset + 4, &1_u32.to_le_bytes()).unwrap();
    assert_eq!(client.region_write_multi(&[kick, kick]).unwrap(), 2);
    guest.queues[1].submit(READ).unwrap();
    guest.publish(1).unwrap();
    eventually("the kick is heard", || hold.held() == 2);

    hold.release();
    client_is_served(&mut guest);
}

/// Both queues answer.
fn client_is_served(guest: &mut Guest) {
    guest.transport.client.set_timeout(PATIENCE);
    for queue in 0..2 {
        assert_eq!(guest.wait(queue).unwrap().status, status::OK);
    }
}

#[test]
fn requests_that_finish_together_raise_one_interrupt() {
    for features in [0, feature::EVENT_IDX] {
        let (_rig, mut guest, hold) =
            held_guest(BlkOptions { features, interrupts: true, ..BlkOptions::default() });
        (0..10).for_each(|nth| assert!(guest.queues[0].submit(READ).is_some(), "{nth}"));
        guest.queues[0].ring().enable_interrupts();
        guest.publish(0).unwrap();
        eventually("all arrive", || hold.held() == 10);
        hold.release();
        eventually("all are given back", || guest.queues[0].ring().used_index() == 10);
        assert!(guest.wait_interrupt(1, PATIENCE));
        (0..10).for_each(|_| is_answered(&mut guest));
        assert_eq!(guest.take_interrupts(1), 0, "one interrupt was enough");
    }
}

#[test]
fn driver_that_wants_no_interrupts_gets_none() {
    for features in [0, feature::EVENT_IDX] {
        let rig = rig_with(DoorbellMode::Auto);
        let mut guest = rig.guest("disk", BlkOptions { features, interrupts: true, ..BlkOptions::default() });
        guest.queues[0].ring().disable_interrupts();
        for _ in 0..50 {
            guest.queues[0].submit(READ).unwrap();
            guest.publish(0).unwrap();
            eventually("it is given back", || guest.queues[0].poll().unwrap().is_some());
        }
        assert_eq!(guest.take_interrupts(1), 0);
    }
}

#[test]
fn interrupt_comes_exactly_when_the_event_index_is_passed() {
    let rig = rig_with(DoorbellMode::Trapped);
    let mut guest = rig.guest("disk", BlkOptions { interrupts: true, ..BlkOptions::default() });
    // Asked for now: for the very next chain, and for no other.
    guest.queues[0].ring().enable_interrupts();
    for expected in [1, 0, 0, 0] {
        guest.queues[0].submit(READ).unwrap();
        guest.publish(0).unwrap();
        eventually("it is given back", || guest.queues[0].poll().unwrap().is_some());
        // Whatever it was to raise is raised before it goes to sleep.
        falls_asleep(&rig);
        assert_eq!(guest.take_interrupts(1), expected);
    }
}

#[test]
fn queues_raise_their_own_vectors() {
    let rig = rig_with(DoorbellMode::Auto);
    let mut guest = rig.guest("disk", BlkOptions { interrupts: true, queues: 3, ..BlkOptions::default() });
    for queue in 0..3 {
        guest.queues[queue].ring().enable_interrupts();
        guest.queues[queue].submit(READ).unwrap();
        guest.publish(queue).unwrap();
        assert!(guest.wait_interrupt(queue + 1, PATIENCE));
        let others = (0..4).filter(|&vector| vector != queue + 1);
        assert_eq!(others.map(|vector| guest.take_interrupts(vector)).sum::<u64>(), 0);
        guest.wait(queue).unwrap();
    }
}

//! Queues in every shape, through the registers and the owner: formats, features, sizes, numbers, resets, moderation.

use std::time::Duration;

use vfu::{
    mock::{
        blk::{BlkDriver, BlkOptions, Chains, Io},
        client::Client,
        memory::{DEFAULT_BASE, Memory, Region},
        packed::PackedDriver,
        ring::{DriverRing, RingSetup},
        split::SplitDriver,
        transport::{Areas, QueueSetup},
    },
    moderation::Moderation,
    virtio::{
        spec::{PackedDesc, blk::kind, desc, feature, status},
        transport::TransportOptions,
    },
};

use crate::rig::{PATIENCE, Rig, eventually, pattern};

const ALL: TransportOptions = TransportOptions {
    doorbell: vfu::virtio::control::DoorbellMode::Auto,
    packed_ring: true,
    in_order: true,
    moderation: None,
    disable_msix: false,
};

/// Writes and reads back on every queue, several requests at a time, more than once round the ring.
fn exercise<R: DriverRing>(guest: &mut BlkDriver<R>) {
    for queue in 0..guest.queues.len() {
        let rounds = u64::from(guest.queues[queue].size()).min(64) + 3;
        for round in 0..rounds {
            let data = pattern(8192, round + queue as u64);
            guest.write(queue, round * 16, &data).unwrap();
            assert_eq!(guest.read(queue, round * 16, 8192).unwrap(), data, "queue {queue}, round {round}");
        }
        let mut waiting = 0;
        while guest.queues[queue]
            .submit(Io { kind: kind::IN, sector: waiting % 1024 * 8, len: 4096 })
            .is_some()
        {
            waiting += 1;
        }
        guest.publish(queue).unwrap();
        for _ in 0..waiting {
            assert_eq!(guest.wait(queue).unwrap().status, 0);
        }
    }
}

/// Every set of the features that change a ring or its notifications.
fn feature_sets() -> impl Iterator<Item = u64> {
    const BITS: [u64; 5] = [
        feature::EVENT_IDX,
        feature::INDIRECT_DESC,
        feature::IN_ORDER,
        feature::NOTIFICATION_DATA,
        feature::ACCESS_PLATFORM,
    ];
    (0..1_u32 << BITS.len())
        .map(|set| BITS.iter().enumerate().filter(|(at, _)| set & 1 << at != 0).map(|(_, bit)| bit).sum())
}

fn with_every_feature<R: DriverRing>(is_private: bool) {
    let mut rig = Rig::with_malloc(1);
    rig.serve_rings(1, 64, ALL);
    for features in feature_sets() {
        let indirect = features & feature::INDIRECT_DESC != 0;
        let options = BlkOptions {
            features,
            chains: if indirect { Chains::Indirect } else { Chains::Direct },
            interrupts: true,
            max_buffer: 3072,
            max_io: 8192,
            ..BlkOptions::default()
        };
        let mut guest = if is_private { rig.private_driver::<R>(options) } else { rig.driver(options) };
        assert_eq!(guest.features() & features, features, "what was asked for was offered");
        exercise(&mut guest);
        assert_eq!(guest.transport.client.dma_messages() > 0, is_private);
    }
}

#[test]
fn split_ring_in_memory_that_is_not_shared_works_with_every_set_of_features() {
    with_every_feature::<SplitDriver>(true);
}

#[test]
fn packed_ring_in_memory_that_is_not_shared_works_with_every_set_of_features() {
    with_every_feature::<PackedDriver>(true);
}

/// QEMU answers no DMA message while its processor waits for an answer of ours.
fn unmap_elsewhere_waits_for_no_message<R: DriverRing>() {
    let mut rig = Rig::with_malloc(1);
    rig.serve_rings(1, 64, ALL);
    let mut guest = rig.private_driver::<R>(BlkOptions { interrupts: true, ..BlkOptions::default() });
    let elsewhere = Region { address: 0x40_0000_0000, len: 4096, offset: 0 };
    let unused = Memory::new(2 << 20).unwrap();
    let data = pattern(65536, 5);
    guest.write(0, 0, &data).unwrap();
    for round in 0..60_u64 {
        guest.transport.client.map_region(&unused, elsewhere).unwrap();
        let before = guest.transport.client.dma_messages();
        let slots =
            [0, 1, 2].map(|_| guest.queues[0].submit(Io { kind: kind::IN, sector: 0, len: 65536 }).unwrap());
        guest.publish(0).unwrap();
        // One message later each time: while a chain is fetched, or on its way back.
        while guest.transport.client.dma_messages() - before < round % 20 {
            std::thread::yield_now();
        }
        guest.transport.client.hold_dma(true);
        guest.transport.client.dma_unmap(elsewhere.address, elsewhere.len).unwrap();
        guest.transport.client.hold_dma(false);
        for _ in slots {
            assert_eq!(guest.wait(0).unwrap().status, 0);
        }
        let mut back = vec![0; data.len()];
        guest.queues[0].read_data(slots[2], &mut back);
        assert_eq!(back, data, "round {round}");
    }
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn unmap_elsewhere_waits_for_no_message_of_a_split_ring() {
    unmap_elsewhere_waits_for_no_message::<SplitDriver>();
}

#[test]
fn unmap_elsewhere_waits_for_no_message_of_a_packed_ring() {
    unmap_elsewhere_waits_for_no_message::<PackedDriver>();
}

#[test]
fn split_ring_works_with_every_set_of_features() {
    with_every_feature::<SplitDriver>(false);
}

#[test]
fn packed_ring_works_with_every_set_of_features() {
    with_every_feature::<PackedDriver>(false);
}

#[test]
fn rings_of_every_size_from_2_to_32768_work() {
    for size in [2, 4, 64, 128, 1024, 32768] {
        let mut rig = Rig::with_malloc(1);
        rig.serve_rings(1, size, ALL);
        let chains = Chains::Indirect;
        let options =
            BlkOptions { ring_size: size, chains, max_io: 8192, max_buffer: 4096, ..BlkOptions::default() };
        let memory = || Memory::new(512 << 20).unwrap();
        let connect = || Client::connect(&rig.path("disk")).unwrap();
        exercise(&mut BlkDriver::<SplitDriver>::new(connect(), memory(), options).unwrap());
        exercise(&mut BlkDriver::<PackedDriver>::new(connect(), memory(), options).unwrap());
    }
}

#[test]
fn packed_ring_need_not_be_a_power_of_two() {
    let mut rig = Rig::with_malloc(1);
    rig.serve_rings(1, 128, ALL);
    exercise(&mut rig.driver::<PackedDriver>(BlkOptions { ring_size: 100, ..BlkOptions::default() }));
}

#[test]
fn sixty_four_queues_on_two_reactors_all_work() {
    let mut rig = Rig::with_malloc(2);
    rig.serve_rings(64, 16, ALL);
    let options =
        BlkOptions { queues: 64, ring_size: 16, max_io: 8192, interrupts: true, ..BlkOptions::default() };
    exercise(&mut rig.driver::<SplitDriver>(options));
    exercise(&mut rig.driver::<PackedDriver>(options));
}

#[test]
fn packed_rings_are_offered_only_where_they_were_asked_for() {
    let mut rig = Rig::with_malloc(1);
    rig.serve_rings(1, 64, TransportOptions::default());
    let mut guest = rig.driver::<SplitDriver>(BlkOptions::default());
    let offered = guest.transport.device_features().unwrap();
    assert_eq!(offered & (feature::RING_PACKED | feature::IN_ORDER), 0);
}

#[test]
fn queue_that_was_reset_works_again_and_its_neighbour_never_stops() {
    let mut rig = Rig::with_malloc(1);
    rig.serve_rings(2, 64, ALL);
    let options =
        BlkOptions { queues: 2, features: feature::RING_RESET | feature::EVENT_IDX, ..BlkOptions::default() };
    let mut guest = rig.driver::<PackedDriver>(options);
    guest.write(0, 0, &pattern(4096, 1)).unwrap();

    guest.transport.reset_queue(0).unwrap();

    assert!(!guest.transport.queue_enabled(0).unwrap());
    assert_eq!(guest.read(1, 0, 4096).unwrap(), pattern(4096, 1));
    let setup = RingSetup { size: 32, features: guest.features(), indirect: None };
    *guest.queues[0].ring() = PackedDriver::new(&mut guest.memory, &setup).unwrap();
    let areas = guest.queues[0].ring().areas();
    let setup = QueueSetup { size: 32, vector: vfu::irq::NO_VECTOR, areas };
    guest.transport.set_queue(0, &setup).unwrap();
    assert!(guest.transport.queue_enabled(0).unwrap());
    assert_eq!(guest.read(0, 0, 4096).unwrap(), pattern(4096, 1), "with a new ring of another size");
}

/// Brings a disk up to the point where its queue is set up, and lets the caller say where.
fn with_queue(rig: &Rig, features: u64, size: u16, areas: Areas) -> BlkDriver<SplitDriver> {
    let mut guest = rig.driver::<SplitDriver>(BlkOptions { interrupts: true, ..BlkOptions::default() });
    let transport = &mut guest.transport;
    transport.reset().unwrap();
    transport.function.enable(&mut transport.client).unwrap();
    transport.add_status(status::ACKNOWLEDGE | status::DRIVER).unwrap();
    transport.set_driver_features(features | feature::VERSION_1).unwrap();
    transport.add_status(status::FEATURES_OK).unwrap();
    transport.set_config_vector(0).unwrap();
    transport.set_queue(0, &QueueSetup { size, vector: 1, areas }).unwrap();
    guest
}

#[test]
fn queue_that_cannot_be_asks_for_a_reset_and_tells_the_driver() {
    let mut rig = Rig::with_malloc(1);
    rig.serve_rings(1, 64, ALL);
    let areas = Areas { desc: DEFAULT_BASE, driver: DEFAULT_BASE + 0x1000, device: DEFAULT_BASE + 0x2000 };
    let cases = [
        (0, 48, areas),
        (0, 64, Areas { desc: areas.desc + 8, ..areas }),
        (feature::RING_PACKED, 64, Areas { driver: areas.driver + 2, ..areas }),
    ];
    for (features, size, areas) in cases {
        let mut guest = with_queue(&rig, features, size, areas);
        guest.transport.function.enable_msix(&mut guest.transport.client).unwrap();

        guest.transport.add_status(status::DRIVER_OK).unwrap();

        guest.transport.wait_status(status::NEEDS_RESET, "ask for a reset").unwrap();
        assert!(guest.wait_interrupt(0, PATIENCE), "the driver is told by the configuration's vector");
    }
}

#[test]
fn packed_ring_whose_chain_never_ends_asks_for_a_reset_and_the_next_driver_finds_it_well() {
    let mut rig = Rig::with_malloc(1);
    rig.serve_rings(1, 16, ALL);
    let mut guest = rig.driver::<PackedDriver>(BlkOptions { interrupts: true, ..BlkOptions::default() });
    let at = DEFAULT_BASE;
    for slot in (0..16).rev() {
        let entry = PackedDesc { addr: at, len: 16, id: 0, flags: desc::NEXT | desc::AVAIL };
        guest.queues[0].ring().poke(slot, entry);
    }
    guest.transport.kick(0).unwrap();

    guest.transport.wait_status(status::NEEDS_RESET, "ask for a reset").unwrap();

    assert!(guest.wait_interrupt(0, PATIENCE));
    guest.start().unwrap();
    exercise(&mut guest);
}

#[test]
fn moderated_interrupt_comes_once_for_many_requests_and_the_last_is_not_forgotten() {
    let mut rig = Rig::with_malloc(1);
    let moderation = Moderation { completions: 16, time: Duration::from_millis(5) };
    rig.serve_rings(1, 64, TransportOptions { moderation: Some(moderation), ..ALL });
    let mut guest = rig.driver::<SplitDriver>(BlkOptions {
        interrupts: true,
        features: 0,
        max_io: 4096,
        ..BlkOptions::default()
    });
    guest.queues[0].ring().enable_interrupts();
    let _ = guest.take_interrupts(1);
    for nth in 0..16 {
        guest.queues[0].submit(Io { kind: kind::IN, sector: nth * 8, len: 4096 }).unwrap();
        guest.publish(0).unwrap();
    }
    assert!(guest.wait_interrupt(1, PATIENCE), "sixteen are enough");
    let mut done = 0;
    eventually("all sixteen", || {
        while guest.queues[0].poll().unwrap().is_some() {
            done += 1;
        }
        done == 16
    });

    guest.queues[0].submit(Io { kind: kind::IN, sector: 0, len: 4096 }).unwrap();
    guest.publish(0).unwrap();
    assert!(guest.wait_interrupt(1, PATIENCE), "one is not, but its time runs out");
}

//! Registers and admin commands.

use vfu::{
    mock::{
        client::Client,
        memory::Memory,
        nvme::{Nvme, blocks_command, status_of},
    },
    nvme::{
        spec::{Command, Status, admin, cc, csts, identify::cns, log, nvm, reg},
        subsystem::SubsystemOptions,
    },
};

use crate::rig::{Doorbells, Rig, buffer, in_either_memory, read, write};

#[test]
fn registers_say_what_there_is() {
    let mut rig = Rig::new();
    let mut nvme = rig.connect("cntrl", Doorbells::Trapped);
    let mut cap = [0; 8];
    nvme.client().region_read(0, 0, &mut cap).unwrap();
    let cap = u64::from_le_bytes(cap);
    assert_eq!(cap & 0xffff, 255, "MQES");
    assert_eq!((cap >> 16 & 1, cap >> 32 & 0xf, cap >> 37 & 1, cap >> 48 & 0xf), (1, 0, 1, 0));
    assert_eq!(nvme.read32(reg::VS).unwrap(), 0x20000);
    assert_eq!(nvme.read32(reg::CSTS).unwrap(), 0);
    let mut class = [0; 4];
    nvme.client().region_read(7, 8, &mut class).unwrap();
    assert_eq!(class[1..], [0x02, 0x08, 0x01]);
}

/// What SPDK's initiator does at its start: doorbells mapped, bus mastering on and INTx off, the memory bit never set, no
/// interrupts.
#[test]
fn driver_that_never_sets_the_memory_bit_is_served() {
    let mut rig = Rig::new();
    let socket = rig.serve("spdk", Doorbells::Mapped);
    let memory = Memory::new(16 << 20).unwrap();
    let mut client = Client::connect(&socket).unwrap();
    client.map_memory(&memory).unwrap();
    let mut nvme = Nvme::commanding(client, memory, 0x0404).unwrap();
    nvme.map_doorbells().unwrap();
    nvme.enable().unwrap();
    nvme.create_queues(2, 64).unwrap();
    assert_eq!(nvme.namespace_size(1).unwrap(), (8192, 512));
    assert_eq!(write(&mut nvme, 1, 0, &[6; 8192]), Status::SUCCESS);
    assert_eq!(read(&mut nvme, 1, 0, 16), (Status::SUCCESS, vec![6; 8192]));
}

/// Compare (bit 0 of ONCS), fused Compare and Write (bit 0 of FUSES) and Doorbell Buffer Config (bit 8 of OACS; Base, figure 275): each
/// is offered and known, or neither.
#[test]
fn commands_that_the_transport_takes_away_are_neither_offered_nor_known() {
    for is_there in [true, false] {
        let mut rig = Rig::new();
        (rig.options.disable_compare, rig.options.shadow_doorbells) = (!is_there, is_there);
        let mut nvme = rig.driver(Doorbells::Trapped, 1);
        let id = nvme.identify(cns::CONTROLLER, 0).unwrap();
        assert_eq!([id[520] & 1, id[522] & 1, id[257] & 1], [u8::from(is_there); 3]);
        let expected = if is_there { Status::SUCCESS } else { Status::INVALID_OPCODE };
        let data = buffer(&mut nvme);
        let compare = nvme.io(0, blocks_command(nvm::COMPARE, 1, 0, 1, data)).unwrap();
        assert_eq!(status_of(&compare), expected);
        let config = Command { opcode: admin::DOORBELL_BUFFER, dptr: data, ..Command::default() };
        assert_eq!(status_of(&nvme.admin(config).unwrap()), expected);
    }
}

#[test]
fn settings_that_cannot_be_used_are_fatal_and_a_reset_mends_them() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.connect("cntrl", doorbells);
        // Pages of 8 KiB.
        nvme.write32(reg::CC, 1 << 7 | cc::EN).unwrap();
        assert_eq!(nvme.read32(reg::CSTS).unwrap(), csts::CFS);
        nvme.disable().unwrap();
        nvme.enable().unwrap();
        assert_eq!(nvme.read32(reg::CSTS).unwrap(), csts::RDY);
    });
}

#[test]
fn shutdown_is_told_complete_and_ends_with_the_next_reset() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    let now = nvme.read32(reg::CC).unwrap();
    nvme.write32(reg::CC, now | 1 << 14).unwrap();
    // As soon as the disks have flushed.
    while nvme.read32(reg::CSTS).unwrap() & csts::SHST == csts::SHST_PROCESSING {
        std::thread::yield_now();
    }
    assert_eq!(nvme.read32(reg::CSTS).unwrap(), csts::RDY | csts::SHST_COMPLETE);
    nvme.disable().unwrap();
    nvme.enable().unwrap();
    assert_eq!(nvme.read32(reg::CSTS).unwrap(), csts::RDY);
}

#[test]
fn subsystem_reset_takes_every_controller_down() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut one = rig.driver(doorbells, 1);
        let mut two = rig.connect("second", doorbells);
        two.enable().unwrap();
        one.write32(reg::NSSR, 0x4e56_4d65).unwrap();
        // The other one follows on its own reactor's time.
        let down = |nvme: &mut Nvme| {
            (0..100_000).map(|_| nvme.read32(reg::CSTS).unwrap()).find(|status| status & csts::RDY == 0)
        };
        assert_eq!(down(&mut one), Some(csts::NSSRO));
        assert_eq!(down(&mut two), Some(csts::NSSRO));
        one.write32(reg::CSTS, csts::NSSRO).unwrap();
        assert_eq!(one.read32(reg::CSTS).unwrap(), 0);
    });
}

#[test]
fn identify_gives_every_structure() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        rig.add("Malloc1");
        let mut nvme = rig.driver(doorbells, 1);
        let controller = nvme.identify(cns::CONTROLLER, 0).unwrap();
        assert_eq!(&controller[768..768 + 26], b"nqn.2016-06.io.spdk:cnode1");
        assert_eq!((controller[77], controller[111], controller[512], controller[513]), (5, 1, 0x66, 0x44));
        assert_eq!(nvme.namespace_size(1).unwrap(), (8192, 512));
        assert_eq!(nvme.identify(cns::NAMESPACE, 3).unwrap(), vec![0; 4096], "not active");
        let active = nvme.identify(cns::ACTIVE, 0).unwrap();
        assert_eq!(active[..12], [1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        let descriptors = nvme.identify(cns::DESCRIPTORS, 1).unwrap();
        // NGUID, UUID, command set.
        assert_eq!((descriptors[0], descriptors[1], descriptors[20], descriptors[40]), (2, 16, 3, 4));
        assert_eq!(nvme.identify(cns::COMMAND_SETS, 0).unwrap()[0], 1);
        assert_eq!(nvme.identify(cns::CSI_CONTROLLER, 0).unwrap()[1], 12, "WZSL");
        assert_eq!(nvme.identify(cns::INDEPENDENT, 1).unwrap()[14], 1, "ready");
        assert_eq!(nvme.identify(cns::CONTROLLERS, 0).unwrap()[..4], [1, 0, 1, 0]);
        for (cns, nsid) in [
            (0x7f, 0),
            (cns::NAMESPACE, 0),
            (cns::NAMESPACE, 33),
            (cns::DESCRIPTORS, 3),
            (cns::ACTIVE, u32::MAX),
        ] {
            assert!(nvme.identify(cns, nsid).is_err(), "{cns:#x} {nsid}");
        }
    });
}

#[test]
fn log_pages_are_there_and_an_error_is_logged() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let supported = nvme.log_page(log::id::SUPPORTED, 1024).unwrap();
        let pages: Vec<usize> =
            supported.chunks(4).enumerate().filter(|(_, page)| page[0] & 1 == 1).map(|(id, _)| id).collect();
        assert_eq!(pages, [0, 1, 2, 3, 4, 5, 0x12, 0x80]);
        let health = nvme.log_page(log::id::HEALTH, 512).unwrap();
        assert_eq!(u16::from_le_bytes([health[1], health[2]]), 300);
        let effects = nvme.log_page(log::id::EFFECTS, 4096).unwrap();
        assert_eq!((effects[1024 + 4], effects[1024 + 8]), (0b11, 1), "Write changes data, Read does not");
        let bad = Command { opcode: 0x7f, ..Command::default() };
        assert_eq!(status_of(&nvme.admin(bad).unwrap()), Status::INVALID_OPCODE);
        let errors = nvme.log_page(log::id::ERROR, 64).unwrap();
        assert_eq!((errors[0], errors[12]), (1, 2), "one error: invalid opcode");
        assert!(nvme.log_page(0x7f, 512).is_err());
    });
}

#[test]
fn features_are_set_got_and_reset() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 0);
        let get = |id: u32, select: u32| Command {
            opcode: admin::GET_FEATURES,
            cdw10: select << 8 | id,
            ..Command::default()
        };
        let set = |id: u32, value: u32| Command {
            opcode: admin::SET_FEATURES,
            cdw10: id,
            cdw11: value,
            ..Command::default()
        };
        assert_eq!(nvme.admin_ok(set(7, 0x000f_000f)).unwrap(), 126 << 16 | 126);
        for (id, value) in [(1, 3), (4, 350), (6, 0), (8, 0x0102), (0xb, 0x100), (0xf, 5000)] {
            nvme.admin_ok(set(id, value)).unwrap();
            assert_eq!(nvme.admin_ok(get(id, 0)).unwrap(), value, "feature {id:#x}");
            assert_eq!(nvme.admin_ok(get(id, 3)).unwrap() & 4, 4, "changeable");
        }
        assert_eq!(nvme.admin_ok(get(6, 1)).unwrap(), 1, "default of the write cache");
        let saved = Command { cdw10: 1 << 31 | 6, ..set(6, 1) };
        assert_eq!(status_of(&nvme.admin(saved).unwrap()), Status::FEATURE_NOT_SAVEABLE);
        assert_eq!(status_of(&nvme.admin(get(0x7f, 0)).unwrap()), Status::INVALID_FIELD);
        nvme.disable().unwrap();
        nvme.enable().unwrap();
        assert_eq!(nvme.admin_ok(get(6, 0)).unwrap(), 1, "after a reset");
    });
}

#[test]
fn queues_that_cannot_be_are_refused() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let base = nvme.memory.allocate(16 << 10, 4096).unwrap();
        let cq = |qid: u32, size: u32, base: u64| Command {
            opcode: admin::CREATE_CQ,
            dptr: [base, 0],
            cdw10: (size - 1) << 16 | qid,
            cdw11: qid << 16 | 3,
            ..Command::default()
        };
        let sq = |qid: u32, cqid: u32| Command {
            opcode: admin::CREATE_SQ,
            cdw11: cqid << 16 | 1,
            ..cq(qid, 64, base)
        };
        let vector = Command { cdw11: 500 << 16 | 3, ..cq(2, 64, base) };
        let scattered = Command { cdw11: 2 << 16 | 2, ..cq(2, 64, base) };
        for (command, status) in [
            (cq(0, 64, base), Status::INVALID_QID),
            (cq(1, 64, base), Status::INVALID_QID),
            (cq(128, 64, base), Status::INVALID_QID),
            (cq(2, 1, base), Status::INVALID_QUEUE_SIZE),
            (cq(2, 257, base), Status::INVALID_QUEUE_SIZE),
            (cq(2, 64, base + 8), Status::INVALID_PRP_OFFSET),
            (cq(2, 64, 0x1000), Status::DATA_TRANSFER_ERROR),
            (vector, Status::INVALID_VECTOR),
            (scattered, Status::INVALID_FIELD),
            (sq(2, 0), Status::INVALID_QID),
            (sq(2, 5), Status::INVALID_CQ),
            (Command { opcode: admin::DELETE_SQ, cdw10: 9, ..Command::default() }, Status::INVALID_QID),
            (Command { opcode: admin::DELETE_CQ, cdw10: 9, ..Command::default() }, Status::INVALID_QID),
            (
                Command { opcode: admin::DELETE_CQ, cdw10: 1, ..Command::default() },
                Status::INVALID_QUEUE_DELETION,
            ),
        ] {
            assert_eq!(status_of(&nvme.admin(command).unwrap()), status, "{command:?}");
        }
    });
}

#[test]
fn event_requests_wait_are_limited_and_can_be_aborted() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let request = Command { opcode: admin::ASYNC_EVENT, ..Command::default() };
        let cids: Vec<u16> = (0..4).map(|_| nvme.submit_admin(request).unwrap()).collect();
        assert_eq!(status_of(&nvme.admin(request).unwrap()), Status::ASYNC_EVENT_LIMIT);
        let abort = Command { opcode: admin::ABORT, cdw10: u32::from(cids[1]) << 16, ..Command::default() };
        let cid = nvme.submit_admin(abort).unwrap();
        let mut done = Vec::new();
        while done.len() < 2 {
            done.extend(nvme.reap_admin().unwrap());
        }
        let of = |cid: u16| done.iter().find(|done| done.cid == cid).map(|done| (status_of(done), done.dw0));
        assert_eq!(of(cid), Some((Status::SUCCESS, 0)), "aborted");
        assert_eq!(of(cids[1]), Some((Status::ABORT_REQUESTED, 0)));
        let unknown = Command { opcode: admin::ABORT, cdw10: 77 << 16 | 1, ..Command::default() };
        assert_eq!(nvme.admin_ok(unknown).unwrap(), 1, "not aborted");
    });
}

#[test]
fn namespaces_that_come_go_and_grow_are_told_and_listed() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        nvme.admin_ok(Command {
            opcode: admin::SET_FEATURES,
            cdw10: 0xb,
            cdw11: 0x100,
            ..Command::default()
        })
        .unwrap();
        let expect_notice = |nvme: &mut Nvme, change: &dyn Fn(), nsid: u8| {
            let cid =
                nvme.submit_admin(Command { opcode: admin::ASYNC_EVENT, ..Command::default() }).unwrap();
            change();
            let event = nvme.wait_admin(cid).unwrap();
            assert_eq!((status_of(&event), event.dw0), (Status::SUCCESS, 0x04_00_02));
            assert_eq!(
                nvme.log_page(log::id::CHANGED_NAMESPACES, 4096).unwrap()[..8],
                [nsid, 0, 0, 0, 0, 0, 0, 0]
            );
        };
        let adds = |name| {
            rig.add(name);
        };
        expect_notice(&mut nvme, &|| adds("Malloc1"), 2);
        assert_eq!(write(&mut nvme, 2, 0, &[5; 512]), Status::SUCCESS);
        expect_notice(&mut nvme, &|| rig.server.registry().notify_resized("Malloc1", 16384).unwrap(), 2);
        assert_eq!(nvme.namespace_size(2).unwrap(), (16384, 512));
        let removes = || assert!(rig.subsystem.remove_namespace(2));
        expect_notice(&mut nvme, &removes, 2);
        expect_notice(&mut nvme, &|| adds("Malloc2"), 2);
    });
}

#[test]
fn write_to_a_doorbell_that_is_not_there_is_an_event() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    let cid = nvme.submit_admin(Command { opcode: admin::ASYNC_EVENT, ..Command::default() }).unwrap();
    nvme.write32(0x1000 + 9 * 8, 1).unwrap();
    assert_eq!(nvme.wait_admin(cid).unwrap().dw0, 0x01_00_00);
    nvme.log_page(log::id::ERROR, 64).unwrap();
    let cid = nvme.submit_admin(Command { opcode: admin::ASYNC_EVENT, ..Command::default() }).unwrap();
    nvme.write32(0x1000 + 8, 64).unwrap();
    assert_eq!(nvme.wait_admin(cid).unwrap().dw0, 0x01_01_00, "a tail outside the queue");
}

#[test]
fn namespace_that_moves_to_another_group_is_told_and_counted() {
    let mut rig = Rig::with(SubsystemOptions {
        ana_reporting: true,
        ..SubsystemOptions::new("nqn.2016-06.io.spdk:ana")
    });
    rig.add("Second");
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    // Feature 0Bh: notices of ANA changes, and no others.
    let notices = Command { opcode: admin::SET_FEATURES, cdw10: 0xb, cdw11: 1 << 11, ..Command::default() };
    nvme.admin_ok(notices).unwrap();
    let count = |page: &[u8]| u64::from_le_bytes(page[..8].try_into().unwrap());
    let before = nvme.log_page(log::id::ANA, 128).unwrap();
    assert_eq!(before[8], 2, "a group each");
    let cid = nvme.submit_admin(Command { opcode: admin::ASYNC_EVENT, ..Command::default() }).unwrap();

    assert!(rig.subsystem.set_ana_group(2, 1));

    assert_eq!(nvme.wait_admin(cid).unwrap().dw0, 0x0c_03_02, "a notice: the ANA log has changed");
    let after = nvme.log_page(log::id::ANA, 128).unwrap();
    assert_eq!((after[8], after[16], after[20]), (1, 1, 2), "group 1 has two");
    assert!(count(&after) > count(&before));
}

#[test]
fn inaccessible_groups_refuse_commands_until_they_are_optimized_again() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::with(SubsystemOptions {
            ana_reporting: true,
            ..SubsystemOptions::new("nqn.2016-06.io.spdk:ana")
        });
        let mut nvme = rig.driver(doorbells, 1);
        let ana = std::sync::Arc::clone(&rig.subsystem.links()[0].ana);
        ana.set(1, vfu::nvme::link::AnaState::Inaccessible);
        rig.subsystem.ana_changed();
        let statuses: Vec<Status> = (0..10_000)
            .map(|_| read(&mut nvme, 1, 0, 1).0)
            .skip_while(|status| status.is_success())
            .take(1)
            .collect();
        assert_eq!(statuses, [Status::ANA_INACCESSIBLE]);
        let report = Command { opcode: nvm::RESERVATION_REPORT, nsid: 1, ..Command::default() };
        assert_eq!(status_of(&nvme.io(0, report).unwrap()), Status::ANA_INACCESSIBLE);
        let page = nvme.log_page(log::id::ANA, 64).unwrap();
        assert_eq!((page[8], page[16], page[32]), (1, 1, 3), "one group, number 1, inaccessible");
    });
}

//! Features and fields that the controller acts on, not only keeps.

use std::sync::Arc;

use vfu::{
    mock::nvme::{Nvme, status_of},
    nvme::spec::{Command, CopyRange, Status, admin, csts, identify::cns, log, nvm, reg},
};
use zerocopy::IntoBytes;

use crate::{
    elsewhere,
    rig::{Doorbells, Rig, buffer, in_either_memory, read},
};

fn set(feature: u32, value: u32) -> Command {
    Command { opcode: admin::SET_FEATURES, nsid: 1, cdw10: feature, cdw11: value, ..Command::default() }
}

fn get(feature: u32) -> Command {
    Command { opcode: admin::GET_FEATURES, nsid: 1, cdw10: feature, ..Command::default() }
}

#[test]
fn temperature_beyond_a_threshold_is_a_warning_and_an_event() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let warning = |nvme: &mut Nvme| nvme.log_page(log::id::HEALTH, 512).unwrap()[0];
        assert_eq!(warning(&mut nvme), 0);
        nvme.admin_ok(set(0xb, 1 << 1)).unwrap();
        nvme.admin_ok(set(4, 300)).unwrap();
        let cid = nvme.submit_admin(Command { opcode: admin::ASYNC_EVENT, ..Command::default() }).unwrap();
        assert_eq!(nvme.wait_admin(cid).unwrap().dw0, 0x02_01_01);
        assert_eq!(warning(&mut nvme), 1 << 1, "over");
        nvme.admin_ok(set(4, 343)).unwrap();
        assert_eq!(warning(&mut nvme), 0);
        nvme.admin_ok(set(4, 1 << 20 | 310)).unwrap();
        assert_eq!(warning(&mut nvme), 1 << 1, "under");
    });
}

#[test]
fn host_that_keeps_silent_for_longer_than_it_said_has_to_reset_the_controller() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        nvme.admin_ok(set(0xf, 1)).unwrap();
        while nvme.read32(reg::CSTS).unwrap() & csts::CFS == 0 {}
        nvme.disable().unwrap();
        nvme.enable().unwrap();
        nvme.create_queues(1, 64).unwrap();
        assert_eq!(nvme.read32(reg::CSTS).unwrap(), csts::RDY);
        assert_eq!(read(&mut nvme, 1, 0, 1).0, Status::SUCCESS);
        assert_eq!(rig.server.faults(), 0);
    });
}

#[test]
fn reservation_notices_are_numbered_and_those_that_are_masked_are_not_logged() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let link = Arc::clone(&rig.subsystem.links()[0]);
        let next = |nvme: &mut Nvme| {
            let page = nvme.log_page(log::id::RESERVATION, 64).unwrap();
            (page[0], page[8], page[12])
        };
        link.log_reservation(1, 1);
        link.log_reservation(2, 1);
        assert_eq!([next(&mut nvme), next(&mut nvme)], [(1, 1, 1), (2, 2, 1)]);
        nvme.admin_ok(set(0x82, 1 << 1)).unwrap();
        assert_eq!(nvme.admin_ok(get(0x82)).unwrap(), 1 << 1);
        link.log_reservation(1, 1);
        link.log_reservation(3, 1);
        assert_eq!([next(&mut nvme), next(&mut nvme)], [(3, 3, 1), (0, 0, 0)]);
        let nowhere = Command { nsid: 3, ..set(0x82, 0) };
        assert_eq!(status_of(&nvme.admin(nowhere).unwrap()), Status::INVALID_NAMESPACE);
    });
}

#[test]
fn one_combination_of_command_sets_can_be_chosen() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    assert_eq!(nvme.admin_ok(get(0x19)).unwrap(), 0);
    nvme.admin_ok(set(0x19, 0)).unwrap();
    assert_eq!(status_of(&nvme.admin(set(0x19, 1)).unwrap()), Status::COMMAND_SET_REJECTED);
}

#[test]
fn structures_of_a_namespace_that_is_not_active_are_zeroes() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    for cns in [cns::NAMESPACE, cns::CSI_NAMESPACE, cns::INDEPENDENT] {
        assert_eq!(nvme.identify(cns, 3).unwrap(), vec![0; 4096], "{cns:#x}");
        assert!(nvme.identify(cns, 33).is_err(), "{cns:#x}");
    }
}

#[test]
fn copy_of_a_range_longer_than_was_told_is_refused() {
    let mut rig = Rig::new();
    elsewhere::add(&rig, 1 << 20);
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    let dptr = buffer(&mut nvme);
    nvme.memory.write(dptr[0], CopyRange { blocks: 0xffff, ..CopyRange::default() }.as_bytes()).unwrap();
    let copy = Command { opcode: nvm::COPY, nsid: 2, dptr, cdw10: 1 << 19, ..Command::default() };
    assert_eq!(status_of(&nvme.io(0, copy).unwrap()), Status::COMMAND_SIZE_LIMIT);
    assert_eq!(nvme.identify(cns::NAMESPACE, 2).unwrap()[74..76], [0xff, 0xff], "MSSRL");
}

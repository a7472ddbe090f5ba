//! Shadow doorbells over the lives of their queues: what an earlier one left in them rings nothing.

use vfu::{
    mock::{
        client::Client,
        memory::Memory,
        nvme::{Nvme, blocks_command, status_of},
    },
    nvme::spec::{Command, Status, admin, nvm, reg},
};

use crate::rig::{Doorbells, Rig, buffer, remap, share_region};

const QUEUE_SIZE: u16 = 64;
/// Commands that earlier lives of a queue took.
const BEFORE: u16 = 5;
const RINGS: (u64, u64) = (0x1_0000_0000, 16 << 20);
const SHADOWS: (u64, u64) = (0x2_0000_0000, 2 << 20);

/// So many reads, each to its end: one that nobody asked for is a panic of the mock's.
fn read(nvme: &mut Nvme, count: u16) {
    let dptr = buffer(nvme);
    for _ in 0..count {
        let done = nvme.io(0, blocks_command(nvm::READ, 1, 0, 1, dptr)).unwrap();
        assert_eq!(status_of(&done), Status::SUCCESS);
    }
}

/// Time for the queue to follow a change and look at its doorbells, then more reads than it has entries.
fn nothing_else_was_executed(nvme: &mut Nvme) {
    for _ in 0..10 {
        nvme.identify(1, 0).unwrap();
    }
    assert_eq!(nvme.reap(0).unwrap().len(), 0);
    read(nvme, QUEUE_SIZE + 1);
}

/// A tail that the page of doorbells had before the driver used the shadow only, or was rung last when the queue slept.
fn ring_the_page(nvme: &mut Nvme, tail: u16) {
    nvme.client().region_write(0, reg::DOORBELLS + 8, &u32::from(tail).to_le_bytes()).unwrap();
}

#[test]
fn queue_that_is_made_again_starts_with_an_empty_shadow() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Shadow, 1);
    for _ in 0..3 {
        read(&mut nvme, BEFORE);
        for opcode in [admin::DELETE_SQ, admin::DELETE_CQ] {
            nvme.admin_ok(Command { opcode, cdw10: 1, ..Command::default() }).unwrap();
        }
        nvme.io.pop();
        nvme.create_queues(1, QUEUE_SIZE).unwrap();
        nothing_else_was_executed(&mut nvme);
    }
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn driver_that_keeps_its_shadows_over_a_reset_starts_anew() {
    // Before its queues are made, or behind that.
    for is_before in [true, false] {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(Doorbells::Trapped, 1);
        let pages = buffer(&mut nvme);
        nvme.use_shadow_doorbells_at(pages).unwrap();
        for _ in 0..3 {
            read(&mut nvme, BEFORE);
            nvme.disable().unwrap();
            nvme.enable().unwrap();
            if is_before {
                nvme.use_shadow_doorbells_at(pages).unwrap();
            }
            nvme.create_queues(1, QUEUE_SIZE).unwrap();
            nvme.use_shadow_doorbells_at(pages).unwrap();
            nothing_else_was_executed(&mut nvme);
        }
        assert_eq!(rig.server.faults(), 0);
    }
}

#[test]
fn live_queue_goes_on_in_the_shadow_where_it_stands_and_in_the_next() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    for _ in 0..3 {
        read(&mut nvme, BEFORE);
        let pages = buffer(&mut nvme);
        // What the driver had there before is of no interest.
        nvme.memory.write(pages[0], &[40, 0, 0, 0].repeat(1024)).unwrap();
        nvme.use_shadow_doorbells_at(pages).unwrap();
        nothing_else_was_executed(&mut nvme);
    }
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn shadow_of_zero_that_was_away_is_believed() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Shadow, 1);
    read(&mut nvme, QUEUE_SIZE);
    ring_the_page(&mut nvme, BEFORE);
    remap(&mut nvme);
    nothing_else_was_executed(&mut nvme);
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn queue_rests_while_its_shadow_is_away() {
    let mut rig = Rig::new();
    let socket = rig.serve("cntrl", Doorbells::Trapped);
    let memory = Memory::with_regions(&[RINGS, SHADOWS]).unwrap();
    let mut client = Client::connect(&socket).unwrap();
    client.map_memory(&memory).unwrap();
    let mut nvme = Nvme::over(client, memory).unwrap();
    nvme.enable().unwrap();
    nvme.create_queues(1, QUEUE_SIZE).unwrap();
    nvme.use_shadow_doorbells_at([SHADOWS.0, SHADOWS.0 + 4096]).unwrap();
    read(&mut nvme, 2 * BEFORE);
    ring_the_page(&mut nvme, BEFORE);
    nvme.client().dma_unmap(SHADOWS.0, SHADOWS.1).unwrap();
    let dptr = buffer(&mut nvme);
    nvme.submit(0, &[blocks_command(nvm::READ, 1, 0, 1, dptr)]).unwrap();
    nvme.identify(1, 0).unwrap();
    assert_eq!(nvme.reap(0).unwrap().len(), 0);
    share_region(&mut nvme, 1);
    assert_eq!(nvme.drain(0).unwrap().len(), 1);
    nothing_else_was_executed(&mut nvme);
    assert_eq!(rig.server.faults(), 0);
}

//! Completions that are due while the memory of their queue is away.

use vfu::{
    endpoint::EndpointHandle,
    mock::{
        client::Client,
        memory::Memory,
        nvme::{Nvme, blocks_command, status_of},
    },
    nvme::spec::{Command, Completion, Status, admin, nvm, reg},
    wire::spec::region,
};
use zerocopy::IntoBytes;

use crate::{
    elsewhere,
    rig::{Doorbells, Rig, read, share, share_region, until},
};

/// A quarter of a second of requests to its bdev, one after the other: a change does not wait for them.
fn long() -> Command {
    blocks_command(nvm::VERIFY, 2, 0, 16384, [0; 2])
}

/// Commands that the controller's queues have completed, and those that were at their bdevs when a queue slept last.
fn completed(rig: &Rig) -> u64 {
    rig.subsystem.links()[0].sum(|counters| &counters.commands)
}

fn in_flight(rig: &Rig) -> u64 {
    rig.subsystem.links()[0].sum(|counters| &counters.in_flight)
}

/// A command that ends between what takes the queue's memory away and what brings it back.
fn completion_waits(take: impl Fn(&mut Nvme), give: impl Fn(&mut Nvme)) {
    let mut rig = Rig::new();
    elsewhere::add(&rig, 65536);
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    for _ in 0..2 {
        until("the queue's rest", || in_flight(&rig) == 0);
        let before = completed(&rig);
        let cid = nvme.submit(0, &[long()]).unwrap()[0];
        until("the command's start", || in_flight(&rig) == 1);
        take(&mut nvme);
        until("the end of a command", || completed(&rig) > before);
        give(&mut nvme);
        let done = nvme.drain(0).unwrap();
        assert_eq!((done.len(), done[0].cid, status_of(&done[0])), (1, cid, Status::SUCCESS));
    }
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn completion_whose_queue_is_unmapped_comes_when_it_is_back() {
    completion_waits(|nvme| nvme.client().dma_unmap_all().unwrap(), share);
}

#[test]
fn completion_that_finds_bus_mastering_off_comes_when_it_is_on() {
    let command = |nvme: &mut Nvme, value: u16| {
        nvme.client().region_write(region::CONFIG, 4, &value.to_le_bytes()).unwrap();
    };
    completion_waits(|nvme| command(nvme, 0x0402), |nvme| command(nvme, 0x0406));
}

const RINGS: (u64, u64) = (0x1_0000_0000, 16 << 20);
/// Where the completion queue is alone.
const AWAY: (u64, u64) = (0x2_0000_0000, 2 << 20);

/// A driver with one queue whose completions go to memory that is taken away while a command of it, number 7, is done.
fn with_completion_at_rest(rig: &mut Rig) -> (Nvme, EndpointHandle) {
    elsewhere::add(rig, 65536);
    let socket = rig.socket("cntrl");
    let endpoint = rig.server.serve_nvme(&socket, &rig.subsystem, rig.options, false);
    let memory = Memory::with_regions(&[RINGS, AWAY]).unwrap();
    let mut client = Client::connect(&socket).unwrap();
    client.map_memory(&memory).unwrap();
    let mut nvme = Nvme::over(client, memory).unwrap();
    nvme.enable().unwrap();
    let sq = nvme.memory.allocate(4096, 4096).unwrap();
    for (opcode, base, cdw11) in [(admin::CREATE_CQ, AWAY.0, 1), (admin::CREATE_SQ, sq, 1 << 16 | 1)] {
        let cdw10 = 63 << 16 | 1;
        nvme.admin_ok(Command { opcode, dptr: [base, 0], cdw10, cdw11, ..Command::default() }).unwrap();
    }
    nvme.memory.write(sq, Command { cid: 7, ..long() }.as_bytes()).unwrap();
    let before = completed(rig);
    nvme.client().region_write(0, reg::DOORBELLS + 8, &1_u32.to_le_bytes()).unwrap();
    until("the command's start", || in_flight(rig) == 1);
    nvme.client().dma_unmap(AWAY.0, AWAY.1).unwrap();
    until("the end of a command", || completed(rig) > before);
    (nvme, endpoint)
}

/// The first entry of that completion queue.
fn entry(nvme: &Nvme) -> Completion {
    let mut entry = Completion::default();
    nvme.memory.read(AWAY.0, entry.as_mut_bytes()).unwrap();
    entry
}

#[test]
fn queue_whose_completions_cannot_be_written_is_deleted() {
    let mut rig = Rig::new();
    let (mut nvme, _endpoint) = with_completion_at_rest(&mut rig);
    for opcode in [admin::DELETE_SQ, admin::DELETE_CQ] {
        nvme.admin_ok(Command { opcode, cdw10: 1, ..Command::default() }).unwrap();
    }
    share_region(&mut nvme, 1);
    nvme.create_queues(1, 64).unwrap();
    assert_eq!(read(&mut nvme, 1, 0, 1).0, Status::SUCCESS);
    assert_eq!(entry(&nvme), Completion::default(), "nobody waits for it");
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn queue_moves_with_its_completions_that_cannot_be_written() {
    let mut rig = Rig::new();
    let (mut nvme, endpoint) = with_completion_at_rest(&mut rig);
    let there = rig.server.reactors()[1].clone();
    endpoint.move_queue(1, there.clone());
    until("the move", || rig.subsystem.links()[0].queues()[0].core == there.core());
    share_region(&mut nvme, 1);
    until("the completion", || entry(&nvme).status & 1 == 1);
    let done = entry(&nvme);
    assert_eq!((done.cid, done.sq_id, done.sq_head, status_of(&done)), (7, 1, 1, Status::SUCCESS));
    assert_eq!(rig.server.faults(), 0);
}

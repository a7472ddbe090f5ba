//! Completions that are due while the memory of their queue is away.

use std::time::{Duration, Instant};

use vfu::{
    mock::nvme::{Nvme, blocks_command, status_of},
    nvme::spec::{Command, Status, nvm},
    wire::spec::region,
};

use crate::{
    elsewhere,
    rig::{Doorbells, Rig, share},
};

/// A quarter of a second of requests to its bdev, one after the other: a change does not wait for them.
fn long() -> Command {
    blocks_command(nvm::VERIFY, 2, 0, 16384, [0; 2])
}

/// Waits for what must come, however slow the machine is.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
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

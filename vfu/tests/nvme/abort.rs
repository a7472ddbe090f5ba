//! Abort of I/O commands: what has steps still to make, what was not taken yet, and what is at its bdev.

use vfu::{
    mock::nvme::{Nvme, blocks_command, status_of},
    nvme::spec::{Command, Completion, Status, admin, nvm},
};

use crate::{
    elsewhere,
    rig::{Doorbells, Rig, buffer, in_either_memory},
};

/// Jobs that a queue does at a time, see `vfu::nvme::io`.
const JOBS: usize = 16;
const BLOCKS: u32 = 65536;

fn driver(doorbells: Doorbells) -> (Rig, Nvme) {
    let mut rig = Rig::new();
    elsewhere::add(&rig, BLOCKS.into());
    let nvme = rig.driver(doorbells, 1);
    (rig, nvme)
}

/// Aborts a command of the first queue; dword 0 of the answer.
fn abort(nvme: &mut Nvme, cid: u16) -> u32 {
    let cdw10 = u32::from(cid) << 16 | 1;
    nvme.admin_ok(Command { opcode: admin::ABORT, cdw10, ..Command::default() }).unwrap()
}

/// A second of requests to its bdev, one after the other.
fn long() -> Command {
    blocks_command(nvm::VERIFY, 2, 0, BLOCKS, [0; 2])
}

fn of(done: &[Completion], cid: u16) -> Status {
    status_of(done.iter().find(|done| done.cid == cid).unwrap())
}

#[test]
fn command_with_steps_still_to_make_is_aborted() {
    in_either_memory(|doorbells| {
        let (rig, mut nvme) = driver(doorbells);
        let cid = nvme.submit(0, &[long()]).unwrap()[0];
        assert_eq!(abort(&mut nvme, cid), 0, "aborted");
        assert_eq!(of(&nvme.drain(0).unwrap(), cid), Status::ABORT_REQUESTED);
        let read = blocks_command(nvm::READ, 2, 0, 1, buffer(&mut nvme));
        assert_eq!(status_of(&nvme.io(0, read).unwrap()), Status::SUCCESS, "the queue goes on");
        assert_eq!(rig.server.faults(), 0);
    });
}

#[test]
fn command_that_waits_in_its_queue_is_aborted() {
    in_either_memory(|doorbells| {
        let (rig, mut nvme) = driver(doorbells);
        let cids = nvme.submit(0, &[long(); JOBS + 1]).unwrap();
        assert_eq!(abort(&mut nvme, cids[JOBS]), 0, "it waits for a job");
        assert!(cids[..JOBS].iter().all(|&cid| abort(&mut nvme, cid) == 0));
        let done = nvme.drain(0).unwrap();
        assert!(cids.iter().all(|&cid| of(&done, cid) == Status::ABORT_REQUESTED), "{done:?}");
        assert_eq!(rig.server.faults(), 0);
    });
}

#[test]
fn command_at_its_bdev_is_not_aborted_and_the_answer_says_so() {
    let (rig, mut nvme) = driver(Doorbells::Trapped);
    let dptr = buffer(&mut nvme);
    let cids = nvme.submit(0, &[blocks_command(nvm::READ, 2, 0, 1, dptr); 40]).unwrap();
    // One pass takes them all: when the first is back, the others are at the bdev, or over.
    let mut done = Vec::new();
    while done.is_empty() {
        done = nvme.reap(0).unwrap();
    }
    assert_eq!(abort(&mut nvme, cids[39]), 1, "not aborted");
    done.extend(nvme.drain(0).unwrap());
    assert!(cids.iter().all(|&cid| of(&done, cid) == Status::SUCCESS));
    assert_eq!(abort(&mut nvme, cids[0]), 1, "it is over");
    let nowhere = Command { opcode: admin::ABORT, cdw10: 7, ..Command::default() };
    assert_eq!(nvme.admin_ok(nowhere).unwrap(), 1, "no such queue");
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn abort_whose_controller_is_reset_harms_nobody() {
    in_either_memory(|doorbells| {
        let (rig, mut nvme) = driver(doorbells);
        for _ in 0..20 {
            let cid = nvme.submit(0, &[long()]).unwrap()[0];
            let cdw10 = u32::from(cid) << 16 | 1;
            nvme.submit_admin(Command { opcode: admin::ABORT, cdw10, ..Command::default() }).unwrap();
            nvme.submit_admin(Command { opcode: admin::DELETE_SQ, cdw10: 1, ..Command::default() }).unwrap();
            nvme.disable().unwrap();
            nvme.enable().unwrap();
            nvme.create_queues(1, 64).unwrap();
        }
        assert_eq!(rig.server.faults(), 0);
    });
}

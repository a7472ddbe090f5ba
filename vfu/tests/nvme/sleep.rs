//! A queue that sleeps with commands at its bdev, and memory that its owner takes away meanwhile.

use std::os::fd::AsFd;

use vfu::{
    mock::nvme::{blocks_command, status_of},
    nvme::spec::{Command, Status, nvm},
};

use crate::{
    elsewhere,
    rig::{BLOCK, Doorbells, Rig, write},
};

#[test]
fn queue_that_sleeps_is_told_of_what_ends_at_its_bdev() {
    let mut rig = Rig::new();
    elsewhere::add(&rig, 4096);
    // Trapped: nothing looks at a queue that sleeps.
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    let dptr = crate::rig::buffer(&mut nvme);
    for _ in 0..100 {
        let done = nvme.io(0, blocks_command(nvm::READ, 2, 0, 1, dptr)).unwrap();
        assert_eq!(status_of(&done), Status::SUCCESS);
    }
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn command_whose_memory_was_taken_away_fails_and_the_controller_goes_on() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    assert_eq!(write(&mut nvme, 1, 0, &[7; BLOCK]), Status::SUCCESS);
    let ranges = Command { opcode: nvm::DATASET_MANAGEMENT, nsid: 1, cdw11: 4, ..Command::default() };
    for (nth, command) in [
        blocks_command(nvm::READ, 1, 0, 1, [0; 2]),
        blocks_command(nvm::WRITE, 1, 8, 1, [0; 2]),
        blocks_command(nvm::COMPARE, 1, 0, 1, [0; 2]),
        ranges,
    ]
    .into_iter()
    .enumerate()
    {
        let file = rustix::fs::memfd_create("taken", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 0x2000).unwrap();
        let address = (0x100 + nth as u64) << 32;
        let both = vfu::dma::Protection { read: true, write: true };
        nvme.client().dma_map(address, 0x2000, both, Some((file.as_fd(), 0))).unwrap();
        // Half of it is left: no byte of the second page is there.
        rustix::fs::ftruncate(&file, 0x1000).unwrap();
        let command = Command { dptr: [address + 0x1000, 0], ..command };
        let done = nvme.io(0, command).unwrap();
        assert_eq!(status_of(&done), Status::DATA_TRANSFER_ERROR, "{command:?}");
    }
    assert_eq!(crate::rig::read(&mut nvme, 1, 0, 1), (Status::SUCCESS, vec![7; BLOCK]));
    assert_eq!(rig.server.faults(), 0);
}

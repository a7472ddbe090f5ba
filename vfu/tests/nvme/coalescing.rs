//! Interrupts that a host wants held back.

use std::time::{Duration, Instant};

use vfu::{
    mock::nvme::{Nvme, blocks_command},
    nvme::spec::{Command, admin, nvm},
};

use crate::rig::{Doorbells, Rig, buffer, in_either_memory};

const COALESCING: u32 = 0x08;
const VECTOR: u32 = 0x09;
/// Four completions, or 25.5 ms, which is the longest there is.
const FOUR: u32 = 255 << 8 | 3;

fn set(nvme: &mut Nvme, feature: u32, value: u32) {
    let command = Command { opcode: admin::SET_FEATURES, cdw10: feature, cdw11: value, ..Command::default() };
    nvme.admin_ok(command).unwrap();
}

fn interrupts(rig: &Rig) -> u64 {
    rig.subsystem.links()[0].sum(|counters| &counters.interrupts)
}

/// Waits until interrupts have come to rest; how many there were.
fn at_rest(rig: &Rig) -> u64 {
    let mut seen = interrupts(rig);
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = interrupts(rig);
        if now == seen {
            return now;
        }
        seen = now;
    }
}

/// Interrupts for so many commands, one after the other.
fn interrupts_for(rig: &Rig, nvme: &mut Nvme, command: Command, count: u64) -> u64 {
    // By the first one the queue has followed what was set before it.
    nvme.io(0, command).unwrap();
    let before = at_rest(rig);
    for _ in 0..count {
        nvme.io(0, command).unwrap();
    }
    at_rest(rig) - before
}

#[test]
fn completions_are_told_together_if_the_host_wants_that_and_one_by_one_if_not() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let read = blocks_command(nvm::READ, 1, 0, 1, buffer(&mut nvme));
        set(&mut nvme, COALESCING, FOUR);
        // Fewer, however slow the machine is: unless every one of them took 25 ms.
        assert!(interrupts_for(&rig, &mut nvme, read, 400) < 400);
        for off in [3, 255 << 8, 0] {
            set(&mut nvme, COALESCING, off);
            assert_eq!(interrupts_for(&rig, &mut nvme, read, 20), 20, "{off:#x}");
        }
    });
}

#[test]
fn one_completion_alone_is_told_when_its_time_is_over() {
    for doorbells in [Doorbells::Trapped, Doorbells::Mapped] {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let read = blocks_command(nvm::READ, 1, 0, 1, buffer(&mut nvme));
        set(&mut nvme, COALESCING, 255 << 8 | 255);
        let before = interrupts(&rig);
        nvme.io(0, read).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while interrupts(&rig) == before {
            assert!(Instant::now() < deadline, "never");
            std::thread::yield_now();
        }
    }
}

#[test]
fn vector_that_is_exempt_and_commands_that_fail_are_told_at_once() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    let read = blocks_command(nvm::READ, 1, 0, 1, buffer(&mut nvme));
    set(&mut nvme, COALESCING, FOUR);
    let fails = blocks_command(nvm::READ, 1, u64::MAX, 1, [0; 2]);
    assert!(interrupts_for(&rig, &mut nvme, fails, 20) >= 20);
    set(&mut nvme, VECTOR, 1 << 16 | 1);
    assert_eq!(interrupts_for(&rig, &mut nvme, read, 20), 20);
    set(&mut nvme, VECTOR, 1);
    assert!(interrupts_for(&rig, &mut nvme, read, 400) < 400);
}

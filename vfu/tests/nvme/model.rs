//! Random commands on several queues, against a disk that is a vector of bytes.

use proptest::prelude::*;
use vfu::{
    mock::nvme::{Nvme, blocks_command, status_of},
    nvme::spec::{Command, Completion, Status, nvm},
};

use crate::rig::{ALL, BLOCK, Rig};

const AREA: u64 = 256;
const QUEUES: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    Write { lba: u64, blocks: u32, byte: u8 },
    Read { lba: u64, blocks: u32 },
    Zero { lba: u64, blocks: u32 },
    Compare { lba: u64, blocks: u32, byte: u8 },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..AREA, 1_u32..17).prop_map(|(lba, blocks)| (lba.min(AREA - u64::from(blocks)), blocks));
    prop_oneof![
        4 => (range.clone(), any::<u8>()).prop_map(|((lba, blocks), byte)| Step::Write { lba, blocks, byte }),
        4 => range.clone().prop_map(|(lba, blocks)| Step::Read { lba, blocks }),
        1 => range.clone().prop_map(|(lba, blocks)| Step::Zero { lba, blocks }),
        1 => (range, any::<u8>()).prop_map(|((lba, blocks), byte)| Step::Compare { lba, blocks, byte }),
        1 => Just(Step::Flush),
    ]
}

/// Runs a step on a queue; the status, and what it must be, after the model has followed.
fn run(nvme: &mut Nvme, queue: usize, dptr: [u64; 2], step: Step, disk: &mut [u8]) -> (Status, Status) {
    let part = |lba: u64, blocks: u32| {
        let from = usize::try_from(lba).unwrap() * BLOCK;
        from..from + blocks as usize * BLOCK
    };
    let go = |nvme: &mut Nvme, command: Command| status_of(&nvme.io(queue, command).unwrap());
    match step {
        Step::Write { lba, blocks, byte } => {
            nvme.memory.write(dptr[0], &vec![byte; blocks as usize * BLOCK]).unwrap();
            disk[part(lba, blocks)].fill(byte);
            (go(nvme, blocks_command(nvm::WRITE, 1, lba, blocks, dptr)), Status::SUCCESS)
        }
        Step::Read { lba, blocks } => {
            let status = go(nvme, blocks_command(nvm::READ, 1, lba, blocks, dptr));
            let mut bytes = vec![0; blocks as usize * BLOCK];
            nvme.memory.read(dptr[0], &mut bytes).unwrap();
            assert!(bytes == disk[part(lba, blocks)], "{step:?}");
            (status, Status::SUCCESS)
        }
        Step::Zero { lba, blocks } => {
            disk[part(lba, blocks)].fill(0);
            (go(nvme, blocks_command(nvm::WRITE_ZEROES, 1, lba, blocks, [0; 2])), Status::SUCCESS)
        }
        Step::Compare { lba, blocks, byte } => {
            let expected = vec![byte; blocks as usize * BLOCK];
            nvme.memory.write(dptr[0], &expected).unwrap();
            let equal = disk[part(lba, blocks)] == expected[..];
            let status = if equal { Status::SUCCESS } else { Status::COMPARE_FAILURE };
            (go(nvme, blocks_command(nvm::COMPARE, 1, lba, blocks, dptr)), status)
        }
        Step::Flush => {
            (go(nvme, Command { opcode: nvm::FLUSH, nsid: 1, ..Command::default() }), Status::SUCCESS)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn disk_is_what_the_commands_made_of_it(
        steps in proptest::collection::vec((0..QUEUES, step()), 1..200),
        which in 0_usize..4,
    ) {
        let mut rig = Rig::new();
        let doorbells = ALL[which];
        let mut nvme = rig.driver(doorbells, QUEUES as u16);
        let at = nvme.memory.allocate(8192, 4096).unwrap();
        let mut disk = vec![0; AREA as usize * BLOCK];
        for (queue, step) in steps {
            let (status, expected) = run(&mut nvme, queue, [at, at + 4096], step, &mut disk);
            prop_assert_eq!(status, expected, "{:?}", step);
        }
        prop_assert_eq!(rig.server.faults(), 0);
    }

    #[test]
    fn every_command_is_completed_once_whatever_the_batches(
        batches in proptest::collection::vec((0..QUEUES, 1_usize..70, any::<bool>()), 1..40),
        which in 0_usize..4,
    ) {
        let mut rig = Rig::new();
        let doorbells = ALL[which];
        let mut nvme = rig.driver(doorbells, QUEUES as u16);
        let at = nvme.memory.allocate(8192, 4096).unwrap();
        let (mut submitted, mut completed) = (0, 0);
        for (queue, count, reap) in batches {
            let commands = vec![blocks_command(nvm::READ, 1, 8, 8, [at, at + 4096]); count];
            submitted += nvme.submit(queue, &commands).unwrap().len();
            let done: Vec<Completion> = if reap { nvme.reap(queue).unwrap() } else { Vec::new() };
            completed += done.len();
        }
        for queue in 0..QUEUES {
            completed += nvme.drain(queue).unwrap().len();
        }
        prop_assert_eq!(submitted, completed);
    }
}

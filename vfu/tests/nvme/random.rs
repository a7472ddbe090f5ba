//! Random bytes where commands, registers and doorbells belong: the controller answers, or fails as the specification
//! has it, and serves again after a reset. (The fuzz targets go further.)

use proptest::prelude::*;
use vfu::nvme::spec::Command;
use zerocopy::FromBytes;

use crate::rig::{Doorbells, Rig, read};

fn command() -> impl Strategy<Value = Command> {
    (proptest::collection::vec(any::<u8>(), 64), 0_u8..0x20, 0_u32..4, 0_u64..64).prop_map(
        |(bytes, opcode, nsid, at)| {
            let mut command = Command::read_from_bytes(&bytes).unwrap();
            // Close enough to the truth to get past the first check.
            (command.opcode, command.nsid) = (opcode, nsid);
            if at < 48 {
                command.dptr = [0x1_0000_0000 + at * 4096, 0x1_0000_0000 + (at + 1) * 4096];
                (command.cdw10, command.cdw11, command.cdw12) =
                    (command.cdw10 & 0x3ff, command.cdw11 & 4, command.cdw12 & 0xff);
            }
            command
        },
    )
}

fn either() -> impl Strategy<Value = Doorbells> {
    prop_oneof![Just(Doorbells::Trapped), Just(Doorbells::Private)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_io_command_ends(
        commands in proptest::collection::vec(command(), 1..60), doorbells in either(),
    ) {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        // The rings lie at the start of the memory: data may go over them, so each command is waited for alone, and the
        // driver's memory is above what the commands reach.
        let spare = nvme.memory.allocate(1 << 20, 4096).unwrap();
        for mut command in commands {
            command.dptr = command.dptr.map(|at| if at >> 32 == 1 { at - 0x1_0000_0000 + spare } else { at });
            command.flags &= 0xc0;
            nvme.io(0, command).unwrap();
        }
        prop_assert_eq!(rig.server.faults(), 0);
    }

    #[test]
    fn every_admin_command_ends_or_waits(
        commands in proptest::collection::vec(command(), 1..60), doorbells in either(),
    ) {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let spare = nvme.memory.allocate(1 << 20, 4096).unwrap();
        for mut command in commands.into_iter().filter(|command| command.opcode != 0x0c) {
            command.dptr = command.dptr.map(|at| if at >> 32 == 1 { at - 0x1_0000_0000 + spare } else { at });
            nvme.admin(command).unwrap();
        }
        prop_assert_eq!(rig.server.faults(), 0);
    }

    #[test]
    fn register_and_doorbell_writes_break_nothing_that_a_reset_does_not_mend(
        writes in proptest::collection::vec((0_u64..0x2100, any::<u64>(), prop_oneof![Just(1_usize), Just(2), Just(4), Just(8)]), 1..100),
        doorbells in either(),
    ) {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 2);
        for (at, value, len) in writes {
            nvme.client().region_write(0, at, &value.to_le_bytes()[..len]).unwrap();
        }
        nvme.disable().unwrap();
        nvme.enable().unwrap();
        nvme.create_queues(1, 64).unwrap();
        prop_assert!(read(&mut nvme, 1, 0, 1).0.is_success());
        prop_assert_eq!(rig.server.faults(), 0);
    }
}

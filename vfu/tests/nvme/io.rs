//! I/O commands, each with the data checked.

use vfu::{
    mock::nvme::{Nvme, blocks_command, status_of},
    nvme::spec::{Command, CopyRange, DsmRange, Status, nvm},
};
use zerocopy::IntoBytes;

use crate::rig::{ALL, BLOCK, BLOCKS, Rig, buffer, in_either_memory, read, write};

fn run(nvme: &mut Nvme, command: Command) -> Status {
    status_of(&nvme.io(0, command).unwrap())
}

#[test]
fn what_was_written_is_read_back_whatever_the_doorbells() {
    for doorbells in ALL {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let bytes: Vec<u8> = (0..8192_u32).map(|n| (n * 7) as u8).collect();
        assert_eq!(write(&mut nvme, 1, 5, &bytes), Status::SUCCESS);
        assert_eq!(read(&mut nvme, 1, 5, 16), (Status::SUCCESS, bytes), "{doorbells:?}");
        assert_eq!(rig.server.faults(), 0);
    }
}

#[test]
fn transfer_of_the_largest_size_goes_through_a_list_and_a_larger_one_does_not() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let data = nvme.memory.allocate(128 << 10, 4096).unwrap();
        let list = nvme.memory.allocate(4096, 4096).unwrap();
        let pages: Vec<u64> = (1..33).map(|page| data + page * 4096).collect();
        nvme.memory.write(list, pages[..31].as_bytes()).unwrap();
        let bytes: Vec<u8> = (0..131_072_u32).map(|n| (n / 13) as u8).collect();
        nvme.memory.write(data, &bytes).unwrap();
        assert_eq!(run(&mut nvme, blocks_command(nvm::WRITE, 1, 0, 256, [data, list])), Status::SUCCESS);
        nvme.memory.write(data, &vec![0; 131_072]).unwrap();
        assert_eq!(run(&mut nvme, blocks_command(nvm::READ, 1, 0, 256, [data, list])), Status::SUCCESS);
        let mut back = vec![0; 131_072];
        nvme.memory.read(data, &mut back).unwrap();
        assert!(back == bytes);
        assert_eq!(run(&mut nvme, blocks_command(nvm::READ, 1, 0, 257, [data, list])), Status::INVALID_FIELD);
    });
}

#[test]
fn ranges_and_namespaces_that_are_not_there_are_told() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let dptr = buffer(&mut nvme);
        for lba in [BLOCKS, BLOCKS - 1, u64::MAX] {
            assert_eq!(run(&mut nvme, blocks_command(nvm::READ, 1, lba, 2, dptr)), Status::LBA_OUT_OF_RANGE);
        }
        for nsid in [0, 2, 33, u32::MAX] {
            assert_eq!(
                run(&mut nvme, blocks_command(nvm::READ, nsid, 0, 1, dptr)),
                Status::INVALID_NAMESPACE
            );
        }
        assert_eq!(run(&mut nvme, blocks_command(0x7f, 1, 0, 1, dptr)), Status::INVALID_OPCODE);
        assert_eq!(
            run(&mut nvme, blocks_command(nvm::WRITE_UNCORRECTABLE, 1, 0, 1, dptr)),
            Status::INVALID_OPCODE
        );
    });
}

#[test]
fn write_zeroes_and_deallocate_spare_their_neighbours() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        assert_eq!(write(&mut nvme, 1, 0, &[7; 8192]), Status::SUCCESS);
        assert_eq!(run(&mut nvme, blocks_command(nvm::WRITE_ZEROES, 1, 2, 3, [0; 2])), Status::SUCCESS);
        let dptr = buffer(&mut nvme);
        let ranges = [
            DsmRange { blocks: 1, slba: 8, ..DsmRange::default() },
            DsmRange { blocks: 2, slba: 12, ..DsmRange::default() },
        ];
        nvme.memory.write(dptr[0], ranges.as_bytes()).unwrap();
        let deallocate = Command {
            opcode: nvm::DATASET_MANAGEMENT,
            nsid: 1,
            dptr,
            cdw10: 1,
            cdw11: 4,
            ..Command::default()
        };
        assert_eq!(run(&mut nvme, deallocate), Status::SUCCESS);

        let (_, bytes) = read(&mut nvme, 1, 0, 16);

        let zeroed: Vec<usize> =
            bytes.chunks(BLOCK).enumerate().filter(|(_, b)| b == &[0; BLOCK]).map(|(n, _)| n).collect();
        assert_eq!(zeroed, [2, 3, 4, 8, 12, 13]);
    });
}

#[test]
fn deallocate_is_refused_where_a_range_is_too_long_or_outside() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let dptr = buffer(&mut nvme);
        let mut run_with = |range: DsmRange| {
            nvme.memory.write(dptr[0], range.as_bytes()).unwrap();
            let command =
                Command { opcode: nvm::DATASET_MANAGEMENT, nsid: 1, dptr, cdw11: 4, ..Command::default() };
            run(&mut nvme, command)
        };
        assert_eq!(
            run_with(DsmRange { blocks: 0x30_0000, ..DsmRange::default() }),
            Status::COMMAND_SIZE_LIMIT
        );
        assert_eq!(
            run_with(DsmRange { blocks: 1, slba: BLOCKS, ..DsmRange::default() }),
            Status::LBA_OUT_OF_RANGE
        );
    });
}

#[test]
fn compare_tells_the_first_byte_that_differs_from_none() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let mut bytes = vec![3; 4096];
        write(&mut nvme, 1, 100, &bytes);
        let dptr = buffer(&mut nvme);
        nvme.memory.write(dptr[0], &bytes).unwrap();
        let compare = blocks_command(nvm::COMPARE, 1, 100, 8, dptr);
        assert_eq!(run(&mut nvme, compare), Status::SUCCESS);
        bytes[4095] = 4;
        nvme.memory.write(dptr[0], &bytes).unwrap();
        assert_eq!(run(&mut nvme, compare), Status::COMPARE_FAILURE);
        assert_eq!(run(&mut nvme, blocks_command(nvm::VERIFY, 1, 100, 8, [0; 2])), Status::SUCCESS);
        assert_eq!(
            run(&mut nvme, blocks_command(nvm::VERIFY, 1, BLOCKS, 8, [0; 2])),
            Status::LBA_OUT_OF_RANGE
        );
    });
}

#[test]
fn fused_compare_and_write_writes_only_what_compared_equal() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        write(&mut nvme, 1, 9, &[1; BLOCK]);
        let (old, new) = (buffer(&mut nvme), buffer(&mut nvme));
        nvme.memory.write(old[0], &[1; BLOCK]).unwrap();
        nvme.memory.write(new[0], &[2; BLOCK]).unwrap();
        let compare = Command { flags: 1, ..blocks_command(nvm::COMPARE, 1, 9, 1, old) };
        let write = Command { flags: 2, ..blocks_command(nvm::WRITE, 1, 9, 1, new) };
        let both = |nvme: &mut Nvme| {
            nvme.submit(0, &[compare, write]).unwrap();
            nvme.drain(0).unwrap().iter().map(status_of).collect::<Vec<_>>()
        };
        assert_eq!(both(&mut nvme), [Status::SUCCESS, Status::SUCCESS]);
        assert_eq!(read(&mut nvme, 1, 9, 1).1, [2; BLOCK]);
        assert_eq!(both(&mut nvme), [Status::COMPARE_FAILURE, Status::FAILED_FUSED]);
        assert_eq!(run(&mut nvme, compare), Status::MISSING_FUSED);
        assert_eq!(run(&mut nvme, write), Status::MISSING_FUSED);
    });
}

#[test]
fn copy_puts_ranges_one_behind_the_other() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        write(&mut nvme, 1, 0, &[1; BLOCK]);
        write(&mut nvme, 1, 50, &[2; 2 * BLOCK]);
        let dptr = buffer(&mut nvme);
        let range = |slba, blocks| CopyRange { slba, blocks, ..CopyRange::default() };
        nvme.memory.write(dptr[0], [range(50, 1), range(0, 0)].as_bytes()).unwrap();
        let copy = Command { opcode: nvm::COPY, nsid: 1, dptr, cdw10: 1000, cdw12: 1, ..Command::default() };
        assert_eq!(run(&mut nvme, copy), Status::SUCCESS);
        let (_, bytes) = read(&mut nvme, 1, 1000, 3);
        assert_eq!(bytes.chunks(BLOCK).map(|block| block[0]).collect::<Vec<_>>(), [2, 2, 1]);
        let outside = Command { cdw10: 0, cdw11: 1, ..copy };
        assert_eq!(run(&mut nvme, outside), Status::LBA_OUT_OF_RANGE);
    });
}

#[test]
fn large_copy_goes_through_in_steps() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        for lba in 0..64 {
            write(&mut nvme, 1, lba * 16, &[lba as u8 + 1; 8192]);
        }
        let dptr = buffer(&mut nvme);
        nvme.memory.write(dptr[0], CopyRange { blocks: 1023, ..CopyRange::default() }.as_bytes()).unwrap();
        let copy = Command { opcode: nvm::COPY, nsid: 1, dptr, cdw10: 4000, ..Command::default() };
        assert_eq!(run(&mut nvme, copy), Status::SUCCESS);
        for lba in [0, 31, 63] {
            assert_eq!(read(&mut nvme, 1, 4000 + lba * 16, 16).1, [lba as u8 + 1; 8192]);
        }
    });
}

#[test]
fn flush_of_one_and_of_all_namespaces() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        rig.add("Malloc1");
        let mut nvme = rig.driver(doorbells, 1);
        for nsid in [1, 2, u32::MAX] {
            let flush = Command { opcode: nvm::FLUSH, nsid, ..Command::default() };
            assert_eq!(run(&mut nvme, flush), Status::SUCCESS, "{nsid}");
        }
    });
}

#[test]
fn scatter_gather_lists_move_the_same_bytes() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let data = nvme.memory.allocate(8192, 4096).unwrap();
        let list = nvme.memory.allocate(4096, 4096).unwrap();
        let block = |addr: u64, len: u64| [addr, len];
        nvme.memory
            .write(list, [block(data + 100, 512), block(data + 3000, 500), block(data + 7000, 12)].as_bytes())
            .unwrap();
        let bytes: Vec<u8> = (0..1024_u32).map(|n| (n / 3) as u8).collect();
        nvme.memory.write(data + 100, &bytes[..512]).unwrap();
        nvme.memory.write(data + 3000, &bytes[512..1012]).unwrap();
        nvme.memory.write(data + 7000, &bytes[1012..]).unwrap();
        // One last segment of three blocks.
        let command =
            Command { flags: 1 << 6, ..blocks_command(nvm::WRITE, 1, 77, 2, [list, 0x30 << 56 | 48]) };
        assert_eq!(run(&mut nvme, command), Status::SUCCESS);
        assert_eq!(read(&mut nvme, 1, 77, 2).1, bytes);
    });
}

#[test]
fn sixteen_queues_share_a_namespace_without_mixing() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 16);
        let data: Vec<[u64; 2]> = (0..16).map(|_| buffer(&mut nvme)).collect();
        for (queue, &dptr) in data.iter().enumerate() {
            nvme.memory.write(dptr[0], &[queue as u8 + 1; BLOCK]).unwrap();
            let commands: Vec<Command> =
                (0..32).map(|n| blocks_command(nvm::WRITE, 1, queue as u64 * 100 + n, 1, dptr)).collect();
            assert_eq!(nvme.submit(queue, &commands).unwrap().len(), 32);
        }
        for queue in 0..16 {
            let done = nvme.drain(queue).unwrap();
            assert!(done.iter().all(|done| status_of(done).is_success()));
        }
        for queue in 0..16_u64 {
            assert_eq!(read(&mut nvme, 1, queue * 100 + 31, 1).1, [queue as u8 + 1; BLOCK]);
        }
    });
}

#[test]
fn several_submission_queues_share_a_completion_queue() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let dptr = buffer(&mut nvme);
        // A second submission queue on the first completion queue; the mock has none such, so its ring is written by hand.
        let sq = nvme.memory.allocate(64 * 64, 4096).unwrap();
        let create = Command {
            opcode: 0x01,
            dptr: [sq, 0],
            cdw10: 63 << 16 | 2,
            cdw11: 1 << 16 | 1,
            ..Command::default()
        };
        nvme.admin_ok(create).unwrap();
        let command = Command { cid: 0x1234, ..blocks_command(nvm::READ, 1, 0, 1, dptr) };
        nvme.memory.write(sq, command.as_bytes()).unwrap();
        nvme.write32(0x1000 + 16, 1).unwrap();
        let delete_cq = Command { opcode: 0x04, cdw10: 1, ..Command::default() };
        assert_eq!(status_of(&nvme.admin(delete_cq).unwrap()), Status::INVALID_QUEUE_DELETION);
        let delete = Command { opcode: 0x00, cdw10: 2, ..Command::default() };
        assert_eq!(status_of(&nvme.admin(delete).unwrap()), Status::SUCCESS);
        // Its completion was posted before the deletion was.
        let mut entry = [0; 16];
        let cq = nvme.io[0].completion_address();
        nvme.memory.read(cq, &mut entry).unwrap();
        assert_eq!((entry[10], entry[12], entry[13], entry[14] & 1), (2, 0x34, 0x12, 1));
    });
}

//! Guests whose memory is not shared, or not all of it: what the other tests do not do in private memory anyhow.

use std::{os::fd::AsFd, time::Duration};

use proptest::prelude::*;
use reactor::Mode;
use vfu::{
    dma::Protection,
    mock::{
        client::Client,
        memory::{Memory, Region},
        nvme::{Nvme, blocks_command, status_of},
    },
    nvme::spec::{Command, Status, admin, cc, csts, nvm, reg},
};
use zerocopy::IntoBytes;

use crate::rig::{BLOCK, Doorbells, Rig, buffer, connect, in_either_memory, read, write};

/// Two halves of a guest's memory, next to each other.
const HALF: u64 = 32 << 20;
const LOW: u64 = 0x1_0000_0000;
const HIGH: u64 = LOW + HALF;

/// Which half is shared.
#[derive(Clone, Copy, Debug)]
struct Shared {
    low: bool,
    high: bool,
}

const MIXED: [Shared; 2] = [Shared { low: true, high: false }, Shared { low: false, high: true }];

fn map(client: &mut Client, memory: &Memory, region: Region, is_shared: bool) {
    let mapped =
        if is_shared { client.share_region(memory, region) } else { client.map_region(memory, region) };
    mapped.unwrap();
}

/// A driver whose rings are in the low half, and a client that answers for all of the memory.
fn driver(rig: &mut Rig, shared: Shared) -> Nvme {
    let socket = rig.serve("mixed", Doorbells::Trapped);
    let memory = Memory::with_regions(&[(LOW, HALF), (HIGH, HALF)]).unwrap();
    let mut client = Client::connect_private(&socket, &memory).unwrap();
    let regions = memory.regions().to_vec();
    map(&mut client, &memory, regions[0], shared.low);
    map(&mut client, &memory, regions[1], shared.high);
    let mut nvme = Nvme::over(client, memory).unwrap();
    nvme.enable().unwrap();
    nvme.create_queues(2, 64).unwrap();
    nvme
}

fn run(nvme: &mut Nvme, command: Command) -> Status {
    status_of(&nvme.io(0, command).unwrap())
}

#[test]
fn shared_memory_is_never_reached_by_messages() {
    let mut rig = Rig::new();
    let mut nvme = driver(&mut rig, Shared { low: true, high: true });
    assert_eq!(write(&mut nvme, 1, 0, &[5; 8192]), Status::SUCCESS);
    assert_eq!(read(&mut nvme, 1, 0, 16), (Status::SUCCESS, vec![5; 8192]));
    nvme.identify(1, 0).unwrap();
    assert_eq!(nvme.client().dma_messages(), 0);
}

#[test]
fn shared_rings_and_private_data_work_as_do_private_rings_and_shared_data() {
    for shared in MIXED {
        let mut rig = Rig::new();
        let mut nvme = driver(&mut rig, shared);
        for data in [LOW + HALF / 2, HIGH, HIGH - 4096] {
            // The last one lies in both.
            let text: Vec<u8> = (0..8192_u32).map(|n| (n * 3 + 1) as u8).collect();
            nvme.memory.write(data, &text).unwrap();
            assert_eq!(
                run(&mut nvme, blocks_command(nvm::WRITE, 1, 40, 16, [data, data + 4096])),
                Status::SUCCESS
            );
            nvme.memory.write(data, &[0; 8192]).unwrap();
            assert_eq!(
                run(&mut nvme, blocks_command(nvm::READ, 1, 40, 16, [data, data + 4096])),
                Status::SUCCESS
            );
            let mut back = vec![0; 8192];
            nvme.memory.read(data, &mut back).unwrap();
            assert!(back == text, "{shared:?}, {data:#x}");
            let identify =
                Command { opcode: admin::IDENTIFY, dptr: [data, 0], cdw10: 1, ..Command::default() };
            nvme.admin_ok(identify).unwrap();
            nvme.memory.read(data, &mut back[..4]).unwrap();
            assert_eq!(back[..2], 0x4e58_u16.to_le_bytes(), "its vendor");
        }
        assert!(nvme.client().dma_messages() > 0);
        assert_eq!(rig.server.faults(), 0);
    }
}

#[test]
fn lists_on_the_other_side_are_followed() {
    for shared in MIXED {
        let mut rig = Rig::new();
        let mut nvme = driver(&mut rig, shared);
        let text: Vec<u8> = (0..65536_u32).map(|n| (n / 5) as u8).collect();
        nvme.memory.write(HIGH - 32768, &text).unwrap();
        let pages: Vec<u64> = (1..16).map(|nth| HIGH - 32768 + nth * 4096).collect();
        // Five entries, and one that points to a page of the other half.
        let (first, second) = (HIGH + 0x10_0000 - 48, LOW + 0x180_0000);
        nvme.memory.write(first, pages[..5].as_bytes()).unwrap();
        nvme.memory.write(first + 40, &second.to_le_bytes()).unwrap();
        nvme.memory.write(second, pages[5..].as_bytes()).unwrap();
        let dptr = [HIGH - 32768, first];
        assert_eq!(run(&mut nvme, blocks_command(nvm::WRITE, 1, 0, 128, dptr)), Status::SUCCESS);
        // The same bytes by a list of segments, in two halves.
        let (segment, last) = (LOW + 0x190_0000, HIGH + 0x20_0000);
        let to = HIGH - 32768;
        nvme.memory.write(segment, [to, 20_000, last, 0x30 << 56 | 16].as_bytes()).unwrap();
        nvme.memory.write(last, [to + 20_000, 45_536].as_bytes()).unwrap();
        nvme.memory.write(to, &vec![0; 65536]).unwrap();
        let by_list = blocks_command(nvm::READ, 1, 0, 128, [segment, 0x20 << 56 | 32]);
        assert_eq!(run(&mut nvme, Command { flags: 1 << 6, ..by_list }), Status::SUCCESS);
        let mut back = vec![0; 65536];
        nvme.memory.read(to, &mut back).unwrap();
        assert!(back == text, "{shared:?}");
    }
}

#[test]
fn fused_commands_with_private_data_hold_together() {
    for shared in MIXED {
        let mut rig = Rig::new();
        let mut nvme = driver(&mut rig, shared);
        nvme.memory.write(HIGH, &[0; BLOCK]).unwrap();
        nvme.memory.write(HIGH + 4096, &[2; BLOCK]).unwrap();
        let compare = Command { flags: 1, ..blocks_command(nvm::COMPARE, 1, 9, 1, [HIGH, 0]) };
        let then = Command { flags: 2, ..blocks_command(nvm::WRITE, 1, 9, 1, [HIGH + 4096, 0]) };
        nvme.submit(0, &[compare, then]).unwrap();
        let done = nvme.drain(0).unwrap();
        assert!(done.iter().all(|done| status_of(done).is_success()), "{shared:?} {done:?}");
        assert_eq!(read(&mut nvme, 1, 9, 1).1, [2; BLOCK]);
        nvme.submit(0, &[compare, then]).unwrap();
        let statuses: Vec<Status> = nvme.drain(0).unwrap().iter().map(status_of).collect();
        assert_eq!(statuses, [Status::COMPARE_FAILURE, Status::FAILED_FUSED], "{shared:?}");
    }
}

#[test]
fn rate_limit_slows_private_commands_down_and_stops_none() {
    for shared in [Shared { low: false, high: false }, MIXED[0]] {
        let mut rig = Rig::new();
        let limits = bdev::QosParams { rw_ios_per_sec: Some(1000), ..bdev::QosParams::default() };
        rig.server.registry().get("Malloc0").unwrap().set_qos(limits).unwrap();
        let mut nvme = driver(&mut rig, shared);
        let command = blocks_command(nvm::READ, 1, 0, 1, [HIGH, 0]);
        for _ in 0..50 {
            assert_eq!(run(&mut nvme, command), Status::SUCCESS);
        }
        nvme.submit(0, &[command; 50]).unwrap();
        let done = nvme.drain(0).unwrap();
        assert!(done.len() == 50 && done.iter().all(|done| status_of(done).is_success()), "{shared:?}");
    }
}

#[test]
fn more_commands_at_once_than_are_brought_at_once_are_not_slept_over() {
    let mut rig = Rig::new();
    // Queues sleep after one poll that found nothing to do.
    rig.server.reactors().iter().for_each(|reactor| reactor.set_mode(Mode::Interrupt));
    let mut nvme = driver(&mut rig, MIXED[0]);
    // The first of all: no doorbell that the queue has not seen keeps it awake.
    nvme.submit(0, &[blocks_command(nvm::READ, 1, 0, 1, [HIGH, 0]); 60]).unwrap();
    let done = nvme.drain(0).unwrap();
    assert!(done.len() == 60 && done.iter().all(|done| status_of(done).is_success()));
}

#[test]
fn window_that_was_torn_fails_its_command_and_harms_no_private_command_after_it() {
    for shared in [Shared { low: false, high: false }, MIXED[0]] {
        let mut rig = Rig::new();
        let mut nvme = driver(&mut rig, shared);
        let both = Protection { read: true, write: true };
        for (opcode, address) in [(nvm::WRITE, 0x100 << 32), (nvm::READ, 0x200 << 32)] {
            let file = rustix::fs::memfd_create("torn", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            rustix::fs::ftruncate(&file, 0x1000).unwrap();
            nvme.client().dma_map(address, 0x1000, both, Some((file.as_fd(), 0))).unwrap();
            rustix::fs::ftruncate(&file, 0).unwrap();
            let torn = blocks_command(opcode, 1, 0, 1, [address, 0]);
            assert_eq!(run(&mut nvme, torn), Status::DATA_TRANSFER_ERROR, "{opcode:#x} {shared:?}");
        }
        for opcode in [nvm::WRITE, nvm::READ, nvm::COMPARE] {
            let command = blocks_command(opcode, 1, 0, 1, [HIGH, 0]);
            assert_eq!(run(&mut nvme, command), Status::SUCCESS, "{opcode:#x} {shared:?}");
        }
        assert_eq!(rig.server.faults(), 0);
    }
}

#[test]
fn more_data_than_there_are_buffers_for_goes_through_in_turns() {
    const LEN: usize = 2 << 20;
    let mut rig = Rig::new();
    rig.options.max_io_size = LEN as u32;
    let mut nvme = rig.driver(Doorbells::Private, 1);
    let data = nvme.memory.allocate(LEN, 4096).unwrap();
    let list = nvme.memory.allocate(4096, 4096).unwrap();
    let pages: Vec<u64> = (1..LEN as u64 / 4096).map(|page| data + page * 4096).collect();
    nvme.memory.write(list, pages.as_bytes()).unwrap();
    let text: Vec<u8> = (0..LEN).map(|n| (n / 11) as u8).collect();
    nvme.memory.write(data, &text).unwrap();
    let blocks = u32::try_from(LEN / BLOCK).unwrap();
    assert_eq!(run(&mut nvme, blocks_command(nvm::WRITE, 1, 0, blocks, [data, list])), Status::SUCCESS);
    nvme.memory.write(data, &vec![0; LEN]).unwrap();
    nvme.submit(0, &[blocks_command(nvm::READ, 1, 0, blocks, [data, list]); 30]).unwrap();
    let done = nvme.drain(0).unwrap();
    assert!(done.len() == 30 && done.iter().all(|done| status_of(done).is_success()));
    let mut back = vec![0; LEN];
    nvme.memory.read(data, &mut back).unwrap();
    assert!(back == text);
}

#[test]
fn data_in_more_pieces_than_a_vector_has_are_refused_in_either_memory() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let data = nvme.memory.allocate(8192, 4096).unwrap();
        let list = nvme.memory.allocate(32768, 4096).unwrap();
        // Every second byte, and the rest of three blocks at the end.
        for (pieces, status) in [(1024, Status::SUCCESS), (1025, Status::DATA_TRANSFER_ERROR)] {
            let single = pieces - 1;
            let blocks: Vec<u64> = (0..single)
                .flat_map(|nth| [data + 2 * nth, 1])
                .chain([data + 4096, 3 * BLOCK as u64 - single])
                .collect();
            nvme.memory.write(list, blocks.as_bytes()).unwrap();
            let before = nvme.client().dma_messages();
            let read = blocks_command(nvm::READ, 1, 0, 3, [list, 0x30 << 56 | (16 * pieces)]);
            assert_eq!(run(&mut nvme, Command { flags: 1 << 6, ..read }), status, "{pieces}");
            let messages = nvme.client().dma_messages() - before;
            assert!(status.is_success() || messages < 200, "{messages} messages");
        }
        assert_eq!(rig.server.faults(), 0);
    });
}

#[test]
fn data_that_the_client_refuses_or_nobody_has_fail_their_command_alone() {
    let mut rig = Rig::new();
    let mut nvme = connect(&rig.serve("refusing", Doorbells::Private), Doorbells::Private);
    // A window behind which the client has nothing.
    let nothing = Region { address: 0x40_0000_0000, len: 4 << 20, offset: 0 };
    let unused = Memory::new(2 << 20).unwrap();
    nvme.client().map_region(&unused, nothing).unwrap();
    nvme.enable().unwrap();
    nvme.create_queues(1, 64).unwrap();
    for at in [nothing.address, 0x80_0000_0000, nothing.address + nothing.len - 512] {
        for opcode in [nvm::READ, nvm::WRITE] {
            let command = blocks_command(opcode, 1, 0, 2, [at, nothing.address + 4096]);
            assert_eq!(run(&mut nvme, command), Status::DATA_TRANSFER_ERROR, "{at:#x}");
            let by_list = blocks_command(opcode, 1, 0, 64, [at & !4095, at & !7]);
            assert_eq!(run(&mut nvme, by_list), Status::DATA_TRANSFER_ERROR, "{at:#x}");
        }
        let identify = Command { opcode: admin::IDENTIFY, dptr: [at, 0], cdw10: 1, ..Command::default() };
        assert_eq!(status_of(&nvme.admin(identify).unwrap()), Status::DATA_TRANSFER_ERROR);
    }
    assert_eq!(write(&mut nvme, 1, 0, &[1; BLOCK]), Status::SUCCESS);
    assert_eq!(read(&mut nvme, 1, 0, 1), (Status::SUCCESS, vec![1; BLOCK]));
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn log_page_whose_data_cannot_be_reached_is_told_to_the_next_who_asks() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Private, 1);
    nvme.log_page(4, 4096).unwrap();
    rig.add("Second");
    let nowhere = Command {
        opcode: admin::GET_LOG_PAGE,
        nsid: u32::MAX,
        dptr: [0x80_0000_0000, 0],
        cdw10: 1023 << 16 | 4,
        ..Command::default()
    };
    assert_eq!(status_of(&nvme.admin(nowhere).unwrap()), Status::DATA_TRANSFER_ERROR);
    assert_eq!(
        nvme.log_page(4, 4096).unwrap()[..8],
        [2, 0, 0, 0, 0, 0, 0, 0],
        "once, though asked for twice"
    );
    assert_eq!(nvme.log_page(4, 4096).unwrap()[..4], [0; 4]);
}

/// QEMU answers no DMA message while its processor waits for an answer of ours.
#[test]
fn answers_wait_for_no_message() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Private, 2);
    let elsewhere = Region { address: 0x40_0000_0000, len: 4096, offset: 0 };
    let unused = Memory::new(2 << 20).unwrap();
    let dptr = buffer(&mut nvme);
    for round in 0..30_u64 {
        nvme.client().map_region(&unused, elsewhere).unwrap();
        let commands =
            [nvm::WRITE, nvm::READ, nvm::COMPARE].map(|opcode| blocks_command(opcode, 1, round, 16, dptr));
        nvme.client().hold_dma(round % 3 != 0);
        let many: Vec<Command> = commands.iter().copied().cycle().take(24).collect();
        let cids = nvme.submit(0, &many).unwrap();
        let cid = nvme
            .submit_admin(Command { opcode: admin::IDENTIFY, dptr, cdw10: 1, ..Command::default() })
            .unwrap();
        // They come while entries, data and completions are on their way.
        nvme.client().hold_dma(true);
        assert_eq!(nvme.read32(reg::CSTS).unwrap(), csts::RDY);
        nvme.client().dma_unmap(elsewhere.address, elsewhere.len).unwrap();
        for command in [2_u16, 6] {
            nvme.client().region_write(7, 4, &command.to_le_bytes()).unwrap();
        }
        nvme.write32(reg::INTMS, 1).unwrap();
        nvme.write32(reg::INTMC, 1).unwrap();
        nvme.client().hold_dma(false);
        assert_eq!(nvme.drain(0).unwrap().len(), cids.len());
        nvme.wait_admin(cid).unwrap();
    }
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn host_that_disables_the_controller_is_answered_before_its_messages_are() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Private, 2);
    let dptr = buffer(&mut nvme);
    for round in 0..20 {
        let commands: Vec<Command> = (0..48).map(|n| blocks_command(nvm::READ, 1, n * 8, 16, dptr)).collect();
        nvme.submit(0, &commands).unwrap();
        nvme.submit(1, &commands).unwrap();
        // Whatever has gone out by now.
        std::thread::sleep(Duration::from_micros(round * 300));
        nvme.client().hold_dma(true);
        let cc = nvme.read32(reg::CC).unwrap();
        nvme.write32(reg::CC, cc & !cc::EN).unwrap();
        nvme.read32(reg::CSTS).unwrap();
        nvme.client().hold_dma(false);
        nvme.disable().unwrap();
        nvme.enable().unwrap();
        nvme.create_queues(2, 64).unwrap();
        assert_eq!(write(&mut nvme, 1, 0, &[round as u8; BLOCK]), Status::SUCCESS);
        assert_eq!(read(&mut nvme, 1, 0, 1).1, [round as u8; BLOCK]);
    }
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn reset_of_a_client_that_answers_no_message_before_it_is_answered_ends() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Private, 1);
    let dptr = buffer(&mut nvme);
    let commands: Vec<Command> = (0..48).map(|n| blocks_command(nvm::READ, 1, n * 8, 16, dptr)).collect();
    let before = nvme.client().dma_messages();
    nvme.submit(0, &commands).unwrap();
    // Data are on their way back, which a reset waits for.
    while nvme.client().dma_messages() < before + 8 {
        std::thread::yield_now();
    }
    nvme.client().hold_dma(true);
    nvme.client().reset().unwrap();
    nvme.client().hold_dma(false);
    nvme.client().region_write(7, 4, &6_u16.to_le_bytes()).unwrap();
    assert_eq!(nvme.read32(reg::CSTS).unwrap(), 0);
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn client_that_vanishes_amid_messages_leaves_the_controller_for_the_next() {
    let mut rig = Rig::new();
    let socket = rig.serve("vanishing", Doorbells::Private);
    for round in 0..40_u64 {
        let mut nvme = connect(&socket, Doorbells::Private);
        nvme.enable().unwrap();
        nvme.create_queues(2, 64).unwrap();
        let dptr = buffer(&mut nvme);
        let before = nvme.client().dma_messages();
        let commands: Vec<Command> = (0..48).map(|n| blocks_command(nvm::READ, 1, n * 8, 16, dptr)).collect();
        nvme.submit(0, &commands).unwrap();
        nvme.submit(1, &commands).unwrap();
        nvme.submit_admin(Command { opcode: admin::IDENTIFY, dptr, cdw10: 1, ..Command::default() }).unwrap();
        // One message later each time, as far as they come.
        while nvme.client().dma_messages() - before < round {
            std::thread::yield_now();
        }
        nvme.client().hold_dma(round % 2 == 0);
    }
    let mut nvme = connect(&socket, Doorbells::Private);
    nvme.enable().unwrap();
    nvme.create_queues(1, 64).unwrap();
    assert_eq!(write(&mut nvme, 1, 0, &[7; BLOCK]), Status::SUCCESS);
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn rings_whose_window_goes_rest_until_it_is_back() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Private, 1);
    let region = nvme.memory.regions()[0];
    let dptr = buffer(&mut nvme);
    for round in 0..20_u64 {
        let commands = [blocks_command(nvm::READ, 1, round, 16, dptr); 20];
        nvme.submit(0, &commands).unwrap();
        nvme.client().dma_unmap(region.address, region.len).unwrap();
        std::thread::sleep(Duration::from_micros(round * 100));
        // Private, or shared from now on.
        let unshared = Memory::new(2 << 20).unwrap();
        if round % 2 == 0 {
            nvme.client().map_region(&unshared, region).unwrap();
        } else {
            let file = nvme.memory.file().try_clone_to_owned().unwrap();
            let both = Protection { read: true, write: true };
            let file = Some((file.as_fd(), region.offset));
            nvme.client().dma_map(region.address, region.len, both, file).unwrap();
        }
        // Those that were under way may have failed, none is lost.
        assert_eq!(nvme.drain(0).unwrap().len(), 20, "round {round}");
        assert_eq!(read(&mut nvme, 1, 0, 1).0, Status::SUCCESS);
    }
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn queue_is_deleted_and_made_again_while_another_works_in_private_memory() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Private, 2);
    let dptr = buffer(&mut nvme);
    for _ in 0..10 {
        let commands = [blocks_command(nvm::READ, 1, 0, 16, dptr); 40];
        nvme.submit(0, &commands).unwrap();
        nvme.submit(1, &commands).unwrap();
        for opcode in [admin::DELETE_SQ, admin::DELETE_CQ] {
            nvme.admin_ok(Command { opcode, cdw10: 2, ..Command::default() }).unwrap();
        }
        nvme.io.pop();
        nvme.create_queues(1, 64).unwrap();
        assert_eq!(nvme.drain(0).unwrap().len(), 40);
    }
    assert_eq!(rig.server.faults(), 0);
}

/// Bit 8 of OACS (Base, figure 275).
fn offers_shadow_doorbells(nvme: &mut Nvme) -> bool {
    nvme.identify(1, 0).unwrap()[257] & 1 != 0
}

/// SPDK's driver uses its buffers although they were refused, and rings no register: they must not be offered.
#[test]
fn shadow_doorbells_are_not_offered_in_private_memory_and_the_registers_go_on() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Private, 1);
    assert!(!offers_shadow_doorbells(&mut nvme));
    let dptr = buffer(&mut nvme);
    let config = Command { opcode: admin::DOORBELL_BUFFER, dptr, ..Command::default() };
    assert_eq!(status_of(&nvme.admin(config).unwrap()), Status::INVALID_OPCODE);
    assert_eq!(read(&mut nvme, 1, 0, 1).0, Status::SUCCESS);
}

#[test]
fn shadow_doorbells_are_offered_where_the_rings_are_shared_and_refused_where_their_pages_are_not() {
    let mut rig = Rig::new();
    let mut nvme = driver(&mut rig, Shared { low: true, high: false });
    assert!(offers_shadow_doorbells(&mut nvme));
    let config = Command { opcode: admin::DOORBELL_BUFFER, dptr: [HIGH, HIGH + 4096], ..Command::default() };
    assert_eq!(status_of(&nvme.admin(config).unwrap()), Status::INVALID_FIELD);
    assert_eq!(read(&mut nvme, 1, 0, 1).0, Status::SUCCESS);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn scattered_data_in_both_kinds_of_memory_come_back(
        pages in proptest::collection::vec((any::<bool>(), 0_u64..2048), 1..32),
        offset in (0_u64..1024).prop_map(|dwords| dwords * 4 / 512 * 512),
        low in any::<bool>(), high in any::<bool>(),
    ) {
        let mut rig = Rig::new();
        let mut nvme = driver(&mut rig, Shared { low, high });
        // No page twice: what is read to one would be overwritten.
        let mut seen = std::collections::BTreeSet::new();
        let pages: Vec<u64> = pages.into_iter().filter(|page| seen.insert(*page))
            .map(|(is_high, nth)| if is_high { HIGH + nth * 4096 } else { LOW + HALF / 2 + nth * 4096 })
            .collect();
        let list = LOW + HALF / 2 - 4096;
        nvme.memory.write(list, pages[1..].as_bytes()).unwrap();
        let second = if pages.len() == 2 { pages[1] } else { list };
        let len = pages.len() * 4096 - offset as usize;
        let spread = |nvme: &Nvme, text: &[u8]| {
            let mut rest = text;
            for (nth, page) in pages.iter().enumerate() {
                let skip = if nth == 0 { offset } else { 0 };
                let (part, more) = rest.split_at((4096 - skip as usize).min(rest.len()));
                nvme.memory.write(page + skip, part).unwrap();
                rest = more;
            }
        };
        let text: Vec<u8> = (0..len).map(|n| (n / 7) as u8).collect();
        spread(&nvme, &text);
        let blocks = u32::try_from(len / BLOCK).unwrap();
        let dptr = [pages[0] + offset, second];
        prop_assert_eq!(run(&mut nvme, blocks_command(nvm::WRITE, 1, 3, blocks, dptr)), Status::SUCCESS);
        spread(&nvme, &vec![0; len]);
        prop_assert_eq!(run(&mut nvme, blocks_command(nvm::READ, 1, 3, blocks, dptr)), Status::SUCCESS);
        let mut back = Vec::new();
        for (nth, page) in pages.iter().enumerate() {
            let skip = if nth == 0 { offset as usize } else { 0 };
            let mut part = vec![0; 4096 - skip];
            nvme.memory.read(page + skip as u64, &mut part).unwrap();
            back.extend(part);
        }
        prop_assert!(back[..] == text[..back.len()]);
        prop_assert_eq!(rig.server.faults(), 0);
    }
}

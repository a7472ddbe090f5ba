//! Resets, deletions, moves: under load, and at any moment.

use std::{os::fd::AsFd, sync::Arc};

use vfu::{
    mock::{
        client::Client,
        memory::Memory,
        nvme::{Nvme, blocks_command, status_of},
    },
    nvme::spec::{Command, CopyRange, Status, admin, csts, nvm, reg},
    wire::spec::{irq, irq_set_flags},
};

use zerocopy::IntoBytes;

use crate::{
    elsewhere,
    rig::{ALL, BLOCK, Doorbells, Rig, buffer, connect, in_either_memory, read, remap, until, write},
};

fn load(nvme: &mut Nvme, queue: usize, dptr: [u64; 2]) {
    let commands: Vec<Command> = (0..48).map(|n| blocks_command(nvm::READ, 1, n * 8, 16, dptr)).collect();
    nvme.submit(queue, &commands).unwrap();
}

#[test]
fn controller_is_reset_under_load_again_and_again() {
    for doorbells in ALL {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 2);
        write(&mut nvme, 1, 0, &[9; BLOCK]);
        let dptr = buffer(&mut nvme);
        for _ in 0..20 {
            load(&mut nvme, 0, dptr);
            load(&mut nvme, 1, dptr);
            nvme.disable().unwrap();
            nvme.enable().unwrap();
            nvme.create_queues(2, 64).unwrap();
            load(&mut nvme, 1, dptr);
            assert_eq!(nvme.drain(1).unwrap().len(), 48);
        }
        assert_eq!(read(&mut nvme, 1, 0, 1), (Status::SUCCESS, vec![9; BLOCK]), "{doorbells:?}");
        assert_eq!(rig.server.faults(), 0);
    }
}

#[test]
fn function_is_reset_under_load_and_serves_the_next_driver() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let dptr = buffer(&mut nvme);
        load(&mut nvme, 0, dptr);
        nvme.client().reset().unwrap();
        drop(nvme);
        let mut next = Nvme::connect(&rig.socket("cntrl"), 16 << 20).unwrap();
        next.enable().unwrap();
        next.create_queues(1, 32).unwrap();
        assert_eq!(read(&mut next, 1, 0, 1).0, Status::SUCCESS);
    });
}

#[test]
fn client_that_vanishes_under_load_leaves_the_controller_for_the_next() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 2);
        let dptr = buffer(&mut nvme);
        load(&mut nvme, 0, dptr);
        load(&mut nvme, 1, dptr);
        drop(nvme);
        for _ in 0..5 {
            let mut next = Nvme::connect(&rig.socket("cntrl"), 16 << 20).unwrap();
            next.enable().unwrap();
            next.create_queues(2, 32).unwrap();
            assert_eq!(write(&mut next, 1, 3, &[1; BLOCK]), Status::SUCCESS);
        }
        assert_eq!(rig.server.faults(), 0);
    });
}

#[test]
fn endpoint_is_removed_under_load() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 2);
        let dptr = buffer(&mut nvme);
        load(&mut nvme, 0, dptr);
        load(&mut nvme, 1, dptr);
        assert!(rig.server.delete_endpoints(std::time::Duration::from_secs(30)));
        assert!(rig.subsystem.links().is_empty());
        assert_eq!(rig.server.faults(), 0);
    });
}

#[test]
fn queue_is_deleted_and_made_again_while_another_works() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 2);
        let dptr = buffer(&mut nvme);
        for _ in 0..10 {
            load(&mut nvme, 0, dptr);
            for opcode in [admin::DELETE_SQ, admin::DELETE_CQ] {
                nvme.admin_ok(Command { opcode, cdw10: 2, ..Command::default() }).unwrap();
            }
            nvme.io.pop();
            nvme.create_queues(1, 64).unwrap();
            assert!(nvme.drain(0).unwrap().iter().all(|done| status_of(done).is_success()));
        }
    });
}

#[test]
fn queues_move_between_reactors_under_load_and_lose_nothing() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let socket = rig.socket("moving");
        let endpoint = rig.server.serve_nvme(&socket, &rig.subsystem, rig.options, false);
        let mut nvme = connect(&socket, doorbells);
        nvme.enable().unwrap();
        nvme.create_queues(1, 64).unwrap();
        let dptr = buffer(&mut nvme);
        for turn in 0..20 {
            load(&mut nvme, 0, dptr);
            endpoint.move_queue(1, rig.server.reactors()[turn % 2].clone());
            let done = nvme.drain(0).unwrap();
            assert_eq!(done.len(), 48);
            assert!(done.iter().all(|done| status_of(done).is_success()));
        }
    });
}

#[test]
fn queue_that_finds_the_mailbox_of_its_next_reactor_full_goes_on_where_it_stood() {
    let mut rig = Rig::new();
    let socket = rig.socket("moving");
    let endpoint = rig.server.serve_nvme(&socket, &rig.subsystem, rig.options, false);
    let mut nvme = connect(&socket, Doorbells::Trapped);
    nvme.enable().unwrap();
    nvme.create_queues(1, 64).unwrap();
    let dptr = buffer(&mut nvme);
    load(&mut nvme, 0, dptr);
    nvme.drain(0).unwrap();
    let [here, there] = [rig.server.reactors()[0].clone(), rig.server.reactors()[1].clone()];
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (starts, started) = std::sync::mpsc::channel();
    let holds = move |_: &mut reactor::Reactor| {
        starts.send(()).unwrap();
        held.recv().unwrap();
    };
    there.send(Box::new(holds)).unwrap();
    started.recv().unwrap();
    while there.send(Box::new(|_| ())).is_ok() {}
    endpoint.move_queue(1, there.clone());
    // Passes enough for the queue to stop, and for its endpoint to send it away.
    (0..100).for_each(|_| here.call(|_| ()).unwrap());
    release.send(()).unwrap();
    load(&mut nvme, 0, dptr);
    let done = nvme.drain(0).unwrap();
    assert!(done.len() == 48 && done.iter().all(|done| status_of(done).is_success()));
    assert_eq!(nvme.read32(reg::CSTS).unwrap(), csts::RDY);
    assert_eq!(rig.subsystem.links()[0].queues()[0].core, there.core());
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn queue_that_moves_keeps_its_pin_up_until_its_completions_are_seen() {
    let mut rig = Rig::new();
    let socket = rig.socket("moving");
    let endpoint = rig.server.serve_nvme(&socket, &rig.subsystem, rig.options, false);
    let memory = Memory::new(16 << 20).unwrap();
    let mut client = Client::connect(&socket).unwrap();
    client.map_memory(&memory).unwrap();
    // Memory and bus mastering; the pin is not disabled.
    let mut nvme = Nvme::commanding(client, memory, 0x0006).unwrap();
    let pin = vfu::irq::eventfd().unwrap();
    nvme.client().set_eventfds(irq::INTX, 0, &[pin.as_fd()]).unwrap();
    nvme.enable().unwrap();
    nvme.create_queues(1, 64).unwrap();
    let unmask = |nvme: &mut Nvme| {
        let flags = irq_set_flags::DATA_NONE | irq_set_flags::ACTION_UNMASK;
        nvme.client().irq_action(flags, irq::INTX, 0, 1).unwrap();
    };
    let is_raised = || vfu::irq::take_eventfd(&pin) > 0;
    let dptr = buffer(&mut nvme);
    for there in [1, 0, 1] {
        nvme.submit(0, &[blocks_command(nvm::READ, 1, 0, 1, dptr)]).unwrap();
        // It was raised, and is masked, for others before.
        until("the pin", || {
            unmask(&mut nvme);
            is_raised()
        });
        // The client looks for other interrupts first; meanwhile the queue moves.
        let there = rig.server.reactors()[there].clone();
        endpoint.move_queue(1, there.clone());
        until("the move", || rig.subsystem.links()[0].queues()[0].core == there.core());
        nvme.read32(reg::CSTS).unwrap();
        unmask(&mut nvme);
        until("the pin again", is_raised);
        assert_eq!(nvme.drain(0).unwrap().len(), 1);
    }
    assert_eq!(rig.server.faults(), 0);
}

#[test]
fn endpoint_moves_between_reactors_with_its_admin_queue_under_load_and_loses_nothing() {
    for is_mappable in [false, true] {
        let mut rig = Rig::new();
        let socket = rig.socket("moving");
        let endpoint = rig.server.serve_nvme(&socket, &rig.subsystem, rig.options, is_mappable);
        let mut nvme = Nvme::connect(&socket, 16 << 20).unwrap();
        nvme.enable().unwrap();
        nvme.create_queues(2, 64).unwrap();
        let dptr = buffer(&mut nvme);
        for turn in 0..20 {
            load(&mut nvme, 0, dptr);
            load(&mut nvme, 1, dptr);
            let mut reactors = rig.server.reactors().to_vec();
            reactors.rotate_left(turn % 2);
            endpoint.place(reactors);
            nvme.admin_ok(Command { opcode: admin::IDENTIFY, dptr, cdw10: 1, ..Command::default() }).unwrap();
            for queue in [0, 1] {
                let done = nvme.drain(queue).unwrap();
                assert_eq!(done.len(), 48);
                assert!(done.iter().all(|done| status_of(done).is_success()));
            }
        }
        assert_eq!(rig.server.faults(), 0);
    }
}

#[test]
fn namespaces_come_and_go_under_load() {
    in_either_memory(|doorbells| {
        let mut rig = Rig::new();
        let mut nvme = rig.driver(doorbells, 1);
        let dptr = buffer(&mut nvme);
        for turn in 0..10 {
            load(&mut nvme, 0, dptr);
            let nsid = rig.add(&format!("Extra{turn}"));
            load(&mut nvme, 0, dptr);
            assert!(nvme.drain(0).unwrap().iter().all(|done| status_of(done).is_success()));
            let status = (0..10_000)
                .map(|_| write(&mut nvme, nsid, 0, &[1; BLOCK]))
                .find(|status| status.is_success());
            assert!(status.is_some(), "the queue follows");
            assert!(rig.subsystem.remove_namespace(nsid));
            let status =
                (0..10_000).map(|_| read(&mut nvme, nsid, 0, 1).0).find(|status| !status.is_success());
            assert_eq!(status, Some(Status::INVALID_NAMESPACE));
        }
    });
}

#[test]
fn memory_that_is_unmapped_under_a_live_queue_suspends_it_until_it_is_back() {
    let mut rig = Rig::new();
    let mut nvme = rig.driver(Doorbells::Trapped, 1);
    write(&mut nvme, 1, 0, &[3; BLOCK]);
    remap(&mut nvme);
    assert_eq!(read(&mut nvme, 1, 0, 1), (Status::SUCCESS, vec![3; BLOCK]));
    assert!(nvme.identify(1, 0).is_ok());
}

#[test]
fn as_many_queues_as_there_are_work() {
    let mut rig = Rig::new();
    rig.options.max_io_queues = 512;
    let mut nvme = rig.connect("many", Doorbells::Trapped);
    nvme.enable().unwrap();
    nvme.create_queues(512, 4).unwrap();
    let dptr = buffer(&mut nvme);
    for queue in [0, 255, 511] {
        let done = nvme.io(queue, blocks_command(nvm::READ, 1, 0, 1, dptr)).unwrap();
        assert_eq!(status_of(&done), Status::SUCCESS, "queue {queue}");
    }
    nvme.disable().unwrap();
}

/// Two hosts, each through a controller, registered with a namespace by keys of ones and of twos.
fn two_hosts(rig: &mut Rig, nsid: u32) -> (Nvme, Nvme) {
    let mut one = rig.driver(Doorbells::Trapped, 1);
    let mut two = rig.connect("second", Doorbells::Trapped);
    two.enable().unwrap();
    two.create_queues(1, 64).unwrap();
    for (nvme, id) in [(&mut one, 1_u8), (&mut two, 2)] {
        let dptr = buffer(nvme);
        nvme.memory.write(dptr[0], &[id; 16]).unwrap();
        let host_id =
            Command { opcode: admin::SET_FEATURES, dptr, cdw10: 0x81, cdw11: 1, ..Command::default() };
        nvme.admin_ok(host_id).unwrap();
        nvme.memory.write(dptr[0], &[[0; 8], [id; 8]].concat()).unwrap();
        let register = Command { opcode: nvm::RESERVATION_REGISTER, nsid, dptr, ..Command::default() };
        assert_eq!(status_of(&nvme.io(0, register).unwrap()), Status::SUCCESS);
    }
    (one, two)
}

#[test]
fn copy_of_a_host_that_is_preempted_writes_no_more() {
    let mut rig = Rig::new();
    elsewhere::add(&rig, 65536);
    let (mut one, mut two) = two_hosts(&mut rig, 2);
    let acquire = |dptr, action: u32| Command {
        opcode: nvm::RESERVATION_ACQUIRE,
        nsid: 2,
        dptr,
        cdw10: 1 << 8 | action,
        ..Command::default()
    };
    let dptr = buffer(&mut one);
    one.memory.write(dptr[0], &[1; 8]).unwrap();
    assert_eq!(status_of(&one.io(0, acquire(dptr, 0)).unwrap()), Status::SUCCESS);
    // A second of requests to its bdev, one after the other.
    let range = CopyRange { blocks: u16::MAX - 1, ..CopyRange::default() };
    one.memory.write(dptr[0], range.as_bytes()).unwrap();
    let copy = Command { opcode: nvm::COPY, nsid: 2, dptr, ..Command::default() };
    let cid = one.submit(0, &[copy]).unwrap()[0];
    let dptr = buffer(&mut two);
    two.memory.write(dptr[0], &[[2; 8], [1; 8]].concat()).unwrap();
    assert_eq!(status_of(&two.io(0, acquire(dptr, 1)).unwrap()), Status::SUCCESS);

    let ended = one.drain(0).unwrap();
    let copied = ended.iter().find(|done| done.cid == cid).unwrap();
    assert_eq!(status_of(copied), Status::RESERVATION_CONFLICT);
}

/// A reservation command with a pair of keys as its data; its status.
fn reserve(nvme: &mut Nvme, opcode: u8, cdw10: u32, keys: [u8; 2]) -> Status {
    let dptr = buffer(nvme);
    nvme.memory.write(dptr[0], &[[keys[0]; 8], [keys[1]; 8]].concat()).unwrap();
    status_of(&nvme.io(0, Command { opcode, nsid: 1, dptr, cdw10, ..Command::default() }).unwrap())
}

#[test]
fn reservations_are_released_preempted_and_cleared() {
    use nvm::{
        RESERVATION_ACQUIRE as ACQUIRE, RESERVATION_REGISTER as REGISTER, RESERVATION_RELEASE as RELEASE,
    };
    // Type 1, Write Exclusive, with action 0 or 1.
    let (acquire, preempt, clear) = (1 << 8, 1 << 8 | 1, 1);
    let mut rig = Rig::new();
    let (mut one, mut two) = two_hosts(&mut rig, 1);
    let conflict = Status::RESERVATION_CONFLICT;
    assert_eq!(reserve(&mut one, ACQUIRE, acquire, [1, 0]), Status::SUCCESS);
    assert_eq!(reserve(&mut two, ACQUIRE, acquire, [2, 0]), conflict);
    assert_eq!(reserve(&mut one, RELEASE, 1 << 8, [1, 0]), Status::SUCCESS);
    assert_eq!(write(&mut two, 1, 0, &[1; BLOCK]), Status::SUCCESS, "it is released");

    assert_eq!(reserve(&mut one, ACQUIRE, acquire, [1, 0]), Status::SUCCESS);
    assert_eq!(reserve(&mut two, ACQUIRE, preempt, [2, 1]), Status::SUCCESS);
    assert_eq!(write(&mut one, 1, 0, &[1; BLOCK]), conflict, "it is preempted");
    assert_eq!(reserve(&mut one, RELEASE, clear, [1, 0]), conflict, "and registered no more");
    // Replace, whatever key there was (IEKEY): as a newcomer.
    assert_eq!(reserve(&mut one, REGISTER, 2 | 1 << 3, [0, 3]), Status::SUCCESS);
    assert_eq!(reserve(&mut one, RELEASE, clear, [3, 0]), Status::SUCCESS);
    assert_eq!(write(&mut one, 1, 0, &[1; BLOCK]), Status::SUCCESS, "all is cleared");
    // CPTPL 11b without a file to persist in.
    assert_eq!(reserve(&mut one, REGISTER, 0b11 << 30, [0, 3]), Status::INVALID_FIELD);
    assert_eq!(reserve(&mut one, ACQUIRE, acquire, [3, 0]), conflict, "nobody was registered by that");
}

#[test]
fn reservations_hold_between_two_controllers() {
    let mut rig = Rig::new();
    let (mut one, mut two) = two_hosts(&mut rig, 1);
    let dptr = buffer(&mut one);
    one.memory.write(dptr[0], &[1; 8]).unwrap();
    let acquire =
        Command { opcode: nvm::RESERVATION_ACQUIRE, nsid: 1, dptr, cdw10: 1 << 8, ..Command::default() };
    assert_eq!(status_of(&one.io(0, acquire).unwrap()), Status::SUCCESS);
    assert_eq!(write(&mut two, 1, 0, &[1; BLOCK]), Status::RESERVATION_CONFLICT);
    assert_eq!(read(&mut two, 1, 0, 1).0, Status::SUCCESS);
    let flush = Command { opcode: nvm::FLUSH, nsid: 1, ..Command::default() };
    assert_eq!(status_of(&two.io(0, flush).unwrap()), Status::RESERVATION_CONFLICT);
    assert_eq!(write(&mut one, 1, 0, &[1; BLOCK]), Status::SUCCESS);
    let report =
        Command { opcode: nvm::RESERVATION_REPORT, nsid: 1, dptr, cdw10: 63, cdw11: 1, ..Command::default() };
    assert_eq!(status_of(&one.io(0, report).unwrap()), Status::SUCCESS);
    let mut bytes = [0; 64];
    one.memory.read(dptr[0], &mut bytes).unwrap();
    assert_eq!((bytes[4], bytes[5]), (1, 2), "write exclusive, two registrants");
    assert_eq!(Arc::strong_count(&rig.subsystem).min(1), 1);
}

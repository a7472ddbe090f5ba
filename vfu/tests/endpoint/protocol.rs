//! Malformed messages: each is refused with an errno, the stream stays in step, other connections live.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use vfu::{
    dma::Protection,
    irq::eventfd,
    mock::{
        client::{Client, ClientError},
        memory::{Memory, REGION_ALIGN},
    },
    wire::{
        spec::{
            Command, DeviceInfo, DmaMap, DmaUnmap, Header, IrqInfo, IrqSet, RegionAccess, RegionInfo,
            RegionWriteEntry, flags, irq, irq_set_flags as set,
        },
        version,
    },
};
use zerocopy::IntoBytes;

use crate::rig::{PATIENCE, Rig};

const INVAL: Option<Errno> = Some(Errno::INVAL);

/// What a command with this payload is answered with; and the connection still works.
fn refusal(client: &mut Client, command: Command, payload: &[u8], fds: Vec<OwnedFd>) -> Option<Errno> {
    let errno = client.request(command, &[payload], fds).map(drop).err().and_then(|error| error.refusal());
    client.device_info().expect("the stream is in step");
    errno
}

fn raw(client: &mut Client, header: Header, payload: &[u8]) -> Result<u32, ClientError> {
    client.send_raw(&[header.as_bytes(), payload].concat())?;
    client.receive().map(|message| message.header.error)
}

#[test]
fn unknown_commands_are_refused_whatever_they_carry() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    for command in [0, 14, 19, 255, 0xffff] {
        for len in [0, 1, 100, 70_000] {
            assert_eq!(refusal(&mut client, Command(command), &vec![7; len], Vec::new()), INVAL, "{command}");
        }
    }
}

#[test]
fn commands_that_only_a_server_sends_and_those_not_supported_are_refused() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    for command in [Command::DMA_READ, Command::DMA_WRITE] {
        assert_eq!(refusal(&mut client, command, &[0; 16], Vec::new()), INVAL);
    }
    for command in [
        Command::DEVICE_GET_REGION_IO_FDS,
        Command::DEVICE_FEATURE,
        Command::MIG_DATA_READ,
        Command::MIG_DATA_WRITE,
    ] {
        assert!(refusal(&mut client, command, &[0; 16], Vec::new()).is_some(), "{command:?}");
    }
}

#[test]
fn short_payloads_are_refused() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let commands = [
        Command::DMA_MAP,
        Command::DMA_UNMAP,
        Command::DEVICE_GET_INFO,
        Command::DEVICE_GET_REGION_INFO,
        Command::DEVICE_GET_IRQ_INFO,
        Command::DEVICE_SET_IRQS,
        Command::REGION_READ,
        Command::REGION_WRITE,
        Command::REGION_WRITE_MULTI,
    ];
    for command in commands {
        for len in 0..8 {
            assert_eq!(refusal(&mut client, command, &vec![0; len], Vec::new()), INVAL, "{command:?} {len}");
        }
    }
}

#[test]
fn reply_that_nobody_asked_for_is_refused() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let header =
        Header { command: Command::DMA_READ, message_size: 32, flags: flags::REPLY, ..Header::default() };
    assert_eq!(raw(&mut client, header, &[0; 16]).unwrap(), 22);
    client.device_info().unwrap();
}

#[test]
fn message_longer_than_agreed_is_refused_and_skipped() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let payload = vec![0; (2 << 20) + 3];
    let message_size = u32::try_from(16 + payload.len()).unwrap();
    let header = Header { command: Command::REGION_WRITE, message_size, ..Header::default() };
    assert_eq!(raw(&mut client, header, &payload).unwrap(), 22);
    client.device_info().unwrap();
}

#[test]
fn size_below_the_header_is_refused_and_ends_the_connection_alone() {
    let rig = Rig::with_disk();
    for size in [0, 15] {
        let mut client = rig.client("disk");
        let header = Header { command: Command::DEVICE_GET_INFO, message_size: size, ..Header::default() };
        assert_eq!(raw(&mut client, header, &[]).unwrap(), 22);
        assert!(matches!(client.receive(), Err(ClientError::Closed)));
    }
    rig.client("disk").device_info().unwrap();
}

#[test]
fn message_in_pieces_is_waited_for() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let request = DeviceInfo { argsz: 16, ..DeviceInfo::default() };
    let header =
        Header { command: Command::DEVICE_GET_INFO, message_size: 32, message_id: 9, ..Header::default() };
    for byte in [header.as_bytes(), request.as_bytes()].concat() {
        client.send_raw(&[byte]).unwrap();
        std::thread::yield_now();
    }
    assert_eq!(client.receive().unwrap().header.message_id, 9);
}

#[test]
fn several_messages_at_once_are_answered_in_order() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let request = DeviceInfo { argsz: 16, ..DeviceInfo::default() };
    let bytes: Vec<u8> = (0..200)
        .flat_map(|message_id| {
            let command = Command::DEVICE_GET_INFO;
            let header = Header { command, message_size: 32, message_id, ..Header::default() };
            [header.as_bytes(), request.as_bytes()].concat()
        })
        .collect();
    client.send_raw(&bytes).unwrap();
    let ids: Vec<u16> = (0..200).map(|_| client.receive().unwrap().header.message_id).collect();
    assert_eq!(ids, (0..200).collect::<Vec<_>>());
}

#[test]
fn no_reply_is_sent_where_none_is_wanted() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    client.send(Command(99), flags::NO_REPLY, &[&[0; 4]], Vec::new()).unwrap();
    client.send(Command::DMA_UNMAP, flags::NO_REPLY, &[&[0; 4]], Vec::new()).unwrap();
    // The next reply belongs to the next command.
    client.device_info().unwrap();
}

/// The answer to a first message with this payload, and whether the connection lives.
fn first_message(rig: &Rig, command: Command, payload: &[u8]) -> (Option<Errno>, bool) {
    let mut client = Client::connect_raw(&rig.path("disk")).unwrap();
    client.set_timeout(PATIENCE);
    let errno =
        client.request(command, &[payload], Vec::new()).map(drop).err().and_then(|error| error.refusal());
    (errno, client.device_info().is_ok())
}

#[test]
fn version_comes_first_and_only_once() {
    let rig = Rig::with_disk();
    let mut offer = version::encode(1, None);
    assert_eq!(first_message(&rig, Command::DEVICE_GET_INFO, &[0; 16]), (INVAL, false));
    assert_eq!(first_message(&rig, Command::VERSION, &offer), (None, true));
    let mut client = rig.client("disk");
    assert_eq!(refusal(&mut client, Command::VERSION, &offer, Vec::new()), INVAL);
    drop(client);
    offer[0] = 1;
    assert_eq!(first_message(&rig, Command::VERSION, &offer), (INVAL, false), "major 1");
}

#[test]
fn versions_that_clients_send_are_understood_and_broken_ones_are_not() {
    let rig = Rig::with_disk();
    let with = |json: &str| [&[0, 0, 1, 0], json.as_bytes()].concat();
    for json in ["", "{}\0", "{\"capabilities\":{}}\0", "{\"capabilities\":{\"max_msg_fds\":8,\"new\":1}}\0"]
    {
        assert_eq!(first_message(&rig, Command::VERSION, &with(json)), (None, true), "{json:?}");
    }
    for json in ["{}", "\0", "{\0", "{\"capabilities\":{\"max_msg_fds\":-1}}\0", "{\"capabilities\":[]}\0x\0"]
    {
        assert_eq!(first_message(&rig, Command::VERSION, &with(json)), (INVAL, false), "{json:?}");
    }
    assert_eq!(first_message(&rig, Command::VERSION, &[0, 0]), (INVAL, false));
}

#[test]
fn windows_that_cannot_be_are_refused() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let memory = Memory::new(REGION_ALIGN).unwrap();
    let good = DmaMap { argsz: 32, flags: 3, offset: 0, address: 0x10_0000, size: 0x1000 };
    let file = || vec![memory.file().try_clone_to_owned().unwrap()];
    let bad = [
        DmaMap { argsz: 31, ..good },
        DmaMap { flags: 1 << 7, ..good },
        DmaMap { size: 0, ..good },
        DmaMap { address: u64::MAX - 0xfff, size: 0x2000, ..good },
        DmaMap { offset: 1, ..good },
        DmaMap { offset: REGION_ALIGN, ..good },
        DmaMap { offset: u64::MAX - 0xfff, ..good },
        DmaMap { size: REGION_ALIGN + 0x1000, ..good },
    ];
    for map in bad {
        assert_eq!(refusal(&mut client, Command::DMA_MAP, map.as_bytes(), file()), INVAL, "{map:?}");
    }
    assert_eq!(
        refusal(&mut client, Command::DMA_MAP, good.as_bytes(), file().into_iter().chain(file()).collect()),
        INVAL
    );
    assert_eq!(refusal(&mut client, Command::DMA_MAP, good.as_bytes(), file()), None);
    assert_eq!(refusal(&mut client, Command::DMA_MAP, good.as_bytes(), file()), None, "the same again");
    for map in
        [DmaMap { size: 0x2000, ..good }, DmaMap { offset: 0x1000, ..good }, DmaMap { flags: 1, ..good }]
    {
        assert_eq!(
            refusal(&mut client, Command::DMA_MAP, map.as_bytes(), file()),
            Some(Errno::EXIST),
            "{map:?}"
        );
    }
}

#[test]
fn file_that_cannot_be_mapped_is_refused() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let (reader, _writer) = std::io::pipe().unwrap();
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 0, size: 0x1000 };
    assert!(refusal(&mut client, Command::DMA_MAP, map.as_bytes(), vec![reader.into()]).is_some());
}

#[test]
fn windows_that_are_not_there_cannot_be_taken_back() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let both = Protection { read: true, write: true };
    client.dma_map(0x10_0000, 0x3000, both, None).unwrap();
    let good = DmaUnmap { argsz: 24, flags: 0, address: 0x10_0000, size: 0x3000 };
    let refused = [
        (DmaUnmap { argsz: 23, ..good }, Errno::INVAL),
        (DmaUnmap { flags: 4, ..good }, Errno::INVAL),
        (DmaUnmap { flags: 2, ..good }, Errno::INVAL),
        (DmaUnmap { size: 0, ..good }, Errno::INVAL),
        (DmaUnmap { size: 0x2000, ..good }, Errno::INVAL),
        (DmaUnmap { address: u64::MAX, ..good }, Errno::INVAL),
        (DmaUnmap { address: 0x20_0000, ..good }, Errno::NOENT),
    ];
    for (unmap, errno) in refused {
        assert_eq!(
            refusal(&mut client, Command::DMA_UNMAP, unmap.as_bytes(), Vec::new()),
            Some(errno),
            "{unmap:?}"
        );
    }
    client.dma_unmap(0x10_0000, 0x3000).unwrap();
}

#[test]
fn accesses_outside_a_region_are_refused() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let bad = [
        (4, 0x4000, 1),
        (4, 0x3fff, 2),
        (4, u64::MAX, 1),
        (4, u64::MAX - 3, 8),
        (0, 0, 1),
        (7, 0x1000, 1),
        (9, 0, 4),
        (u32::MAX, 0, 4),
        (4, 0, u32::MAX),
    ];
    for (region, offset, count) in bad {
        let access = RegionAccess { offset, region, count };
        assert_eq!(
            refusal(&mut client, Command::REGION_READ, access.as_bytes(), Vec::new()),
            INVAL,
            "{access:?}"
        );
        let data = vec![0; count.min(8) as usize];
        let write = [access.as_bytes(), &data].concat();
        assert_eq!(refusal(&mut client, Command::REGION_WRITE, &write, Vec::new()), INVAL, "{access:?}");
    }
    // Nothing at the very end is no error.
    client.region_read(4, 0x4000, &mut []).unwrap();
    client.region_write(4, 0x4000, &[]).unwrap();
}

#[test]
fn write_whose_length_is_not_its_count_is_refused() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let access = RegionAccess { offset: 0, region: 4, count: 4 };
    for len in [0, 3, 5] {
        let write = [access.as_bytes(), &vec![0; len]].concat();
        assert_eq!(refusal(&mut client, Command::REGION_WRITE, &write, Vec::new()), INVAL, "{len}");
    }
}

#[test]
fn multiple_write_that_does_not_add_up_is_refused() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let entry = RegionWriteEntry { offset: 0, region: 4, count: 4, data: [0; 8] };
    let message = |count: u64, entry: RegionWriteEntry| [count.as_bytes(), entry.as_bytes()].concat();
    let bad = [
        message(0, entry),
        message(2, entry),
        message(u64::MAX, entry),
        message(1 << 61, entry),
        message(1, RegionWriteEntry { count: 9, ..entry }),
        message(1, RegionWriteEntry { region: 9, ..entry }),
        message(1, RegionWriteEntry { offset: 0x4000, ..entry }),
    ];
    for message in bad {
        assert_eq!(
            refusal(&mut client, Command::REGION_WRITE_MULTI, &message, Vec::new()),
            INVAL,
            "{message:?}"
        );
    }
    assert_eq!(client.region_write_multi(&[]).unwrap(), 0);
}

#[test]
fn questions_about_what_is_not_there_are_refused() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let region = RegionInfo { argsz: 32, index: 9, ..RegionInfo::default() };
    let bad_regions =
        [region, RegionInfo { index: u32::MAX, ..region }, RegionInfo { index: 0, argsz: 31, ..region }];
    for region in bad_regions {
        assert_eq!(
            refusal(&mut client, Command::DEVICE_GET_REGION_INFO, region.as_bytes(), Vec::new()),
            INVAL
        );
    }
    let irq = IrqInfo { argsz: 16, index: 5, ..IrqInfo::default() };
    for irq in [irq, IrqInfo { index: 0, argsz: 15, ..irq }] {
        assert_eq!(refusal(&mut client, Command::DEVICE_GET_IRQ_INFO, irq.as_bytes(), Vec::new()), INVAL);
    }
    let info = DeviceInfo { argsz: 15, ..DeviceInfo::default() };
    assert_eq!(refusal(&mut client, Command::DEVICE_GET_INFO, info.as_bytes(), Vec::new()), INVAL);
    // Longer than needed is normal: SPDK's client pads its questions to 4064 bytes.
    let padded = [RegionInfo { argsz: 4064, ..RegionInfo::default() }.as_bytes(), &[0; 4032]].concat();
    assert_eq!(refusal(&mut client, Command::DEVICE_GET_REGION_INFO, &padded, Vec::new()), None);
}

#[test]
fn orders_for_interrupts_that_make_no_sense_are_refused() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let fire = set::DATA_NONE | set::ACTION_TRIGGER;
    let good = IrqSet { argsz: 20, flags: fire, index: irq::MSIX, start: 0, count: 1 };
    let bad = [
        IrqSet { argsz: 19, ..good },
        IrqSet { flags: 0, ..good },
        IrqSet { flags: set::DATA_NONE, ..good },
        IrqSet { flags: set::ACTION_TRIGGER, ..good },
        IrqSet { flags: fire | set::DATA_BOOL, ..good },
        IrqSet { flags: fire | set::ACTION_MASK, ..good },
        IrqSet { flags: fire | 1 << 9, ..good },
        IrqSet { index: 5, ..good },
        IrqSet { index: irq::MSI, ..good },
        IrqSet { start: 5, ..good },
        IrqSet { count: 6, ..good },
        IrqSet { start: 1, count: u32::MAX, ..good },
        IrqSet { index: irq::ERR, count: 2, ..good },
        IrqSet { index: irq::REQ, flags: set::DATA_NONE | set::ACTION_MASK, ..good },
        // No data for two.
        IrqSet { flags: set::DATA_BOOL | set::ACTION_TRIGGER, count: 2, ..good },
        IrqSet { flags: set::DATA_EVENTFD | set::ACTION_MASK, ..good },
    ];
    for request in bad {
        assert_eq!(
            refusal(&mut client, Command::DEVICE_SET_IRQS, request.as_bytes(), Vec::new()),
            INVAL,
            "{request:?}"
        );
    }
    let assign = IrqSet { flags: set::DATA_EVENTFD | set::ACTION_TRIGGER, count: 2, ..good };
    let one = vec![eventfd().unwrap()];
    assert_eq!(refusal(&mut client, Command::DEVICE_SET_IRQS, assign.as_bytes(), one), INVAL, "one for two");
    let (reader, writer) = std::io::pipe().unwrap();
    let pipes = vec![reader.into(), writer.into()];
    assert_eq!(
        refusal(&mut client, Command::DEVICE_SET_IRQS, assign.as_bytes(), pipes),
        INVAL,
        "not eventfds"
    );
    let one = vec![eventfd().unwrap()];
    assert_eq!(refusal(&mut client, Command::DEVICE_SET_IRQS, good.as_bytes(), one), INVAL, "not asked for");
}

#[test]
fn reset_with_something_behind_it_is_refused() {
    let rig = Rig::with_disk();
    assert_eq!(refusal(&mut rig.client("disk"), Command::DEVICE_RESET, &[0; 4], Vec::new()), INVAL);
}

#[test]
fn descriptors_that_belong_to_no_command_do_no_harm() {
    let rig = Rig::with_disk();
    let mut client = rig.client("disk");
    let info = DeviceInfo { argsz: 16, ..DeviceInfo::default() };
    for _ in 0..50 {
        let fds = (0..16).map(|_| eventfd().unwrap()).collect();
        client.request(Command::DEVICE_GET_INFO, &[info.as_bytes()], fds).unwrap();
    }
}

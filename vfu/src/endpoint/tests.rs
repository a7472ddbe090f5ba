//! An endpoint on a reactor that is driven by hand, with a device that does what a test wants.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{OnceLock, atomic::AtomicUsize},
};

use reactor::{Clock, CoreMask, FakeClock, Group, Mode, Pass, Reactor, ReactorConfig};
use zerocopy::IntoBytes;

use super::*;
use crate::{
    device::Mappable,
    dma::{Ask, Asker},
    pci::{Identity, Layout},
    wire::{
        frame::{Received, Receiver},
        spec::{Command, HEADER_LEN, Header, flags},
        version,
    },
};

/// What a test and its device share.
#[derive(Default)]
struct Told {
    /// How often the device was asked for its progress.
    asked: AtomicUsize,
    /// It is not done with what it was told.
    pending: AtomicBool,
    wires: OnceLock<(HomeWaker, Arc<Bus>)>,
}

struct Device {
    layout: Layout,
    told: Arc<Told>,
}

impl DeviceModel for Device {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&mut self, _bar: u8, _offset: u64, _data: &mut [u8]) {}

    fn write(&mut self, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn mappable(&self, _bar: u8) -> Option<Mappable<'_>> {
        None
    }

    fn place(&mut self, _reactors: &[Handle]) {}

    fn move_queue(&mut self, _queue: u16, _to: &Handle) -> bool {
        false
    }

    fn is_faulted(&self) -> bool {
        false
    }

    fn sync(&mut self) {}

    fn reset(&mut self) {}

    fn progress(&mut self) -> Progress {
        self.told.asked.fetch_add(1, Ordering::Relaxed);
        if self.told.pending.load(Ordering::Relaxed) { Progress::Pending } else { Progress::Done }
    }
}

fn layout() -> Layout {
    let identity = Identity {
        vendor: 0,
        device: 0,
        subsystem_vendor: 0,
        subsystem: 0,
        revision: 1,
        class: [1, 0x80, 0],
    };
    Layout {
        identity,
        bars: [None; 6],
        vectors: 1,
        msix_table_bar: 1,
        msix_pba_bar: 2,
        vendor_caps: Vec::new(),
        serial: 0,
    }
}

fn reactor(core: u32) -> Reactor {
    reactor_with_hand(core).0
}

fn reactor_with_hand(core: u32) -> (Reactor, FakeClock) {
    let (clock, hand) = Clock::fake();
    let reactor = Reactor::new(ReactorConfig { mode: Mode::Interrupt, ..ReactorConfig::new(core, clock) });
    (reactor.unwrap(), hand)
}

fn until_asleep(reactor: &mut Reactor) {
    let asleep = (0..100).any(|_| matches!(reactor.poll_once(), Pass::Sleepy(_)));
    assert!(asleep, "it never sleeps");
}

/// An endpoint on a reactor that sleeps, with its socket, and the folder of that.
fn served(reactor: &mut Reactor, told: &Arc<Told>) -> (tempfile::TempDir, PathBuf, EndpointHandle) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let theirs = Arc::clone(told);
    let endpoint = start(Spec {
        name: "test".to_owned(),
        listener: Listener::bind(&path, 0o600).unwrap(),
        reactors: vec![reactor.handle()],
        group: Group::new("test", CoreMask::of(0)),
        vectors: 1,
        model: Box::new(move |home, bus| {
            assert!(theirs.wires.set((home.waker.clone(), Arc::clone(bus))).is_ok(), "it is made once");
            Box::new(Device { layout: layout(), told: theirs })
        }),
    })
    .unwrap();
    until_asleep(reactor);
    (dir, path, endpoint)
}

#[test]
fn device_is_asked_once_more_before_the_endpoint_sleeps() {
    let mut reactor = reactor(0);
    let told = Arc::<Told>::default();

    let _served = served(&mut reactor, &told);

    // Once in its poll, which found nothing; what came after that is found by the second, when wakes count already.
    assert_eq!(told.asked.load(Ordering::Relaxed), 2);
}

#[test]
fn endpoint_that_is_deleted_in_its_sleep_goes() {
    let mut reactor = reactor(0);
    let (_dir, path, endpoint) = served(&mut reactor, &Arc::default());
    let gone = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&gone);

    endpoint.delete(move || theirs.store(true, Ordering::Relaxed));
    until_asleep(&mut reactor);

    assert!(gone.load(Ordering::Relaxed) && !path.exists());
    assert_eq!(endpoint.state(), State::Gone);
}

/// A command without data behind its fixed part.
fn command(command: Command, payload: &[u8]) -> Vec<u8> {
    let message_size = u32::try_from(HEADER_LEN + payload.len()).unwrap();
    [Header { command, message_size, ..Header::default() }.as_bytes(), payload].concat()
}

/// Everything that the server has sent and nobody has read.
fn take_all(client: &mut UnixStream) -> usize {
    let mut bytes = [0; 65536];
    client.read(&mut bytes).unwrap_or(0)
}

/// A client of an endpoint on a reactor, negotiated, whose reads do not block.
fn connect(reactor: &mut Reactor, path: &std::path::Path) -> UnixStream {
    let mut client = UnixStream::connect(path).unwrap();
    client.set_nonblocking(true).unwrap();
    client.write_all(&command(Command::VERSION, &version::encode(0, None))).unwrap();
    until_asleep(reactor);
    assert_ne!(take_all(&mut client), 0);
    client
}

#[test]
fn flood_of_messages_is_taken_a_part_at_a_time() {
    const REPLY_LEN: usize = HEADER_LEN + 16;
    let mut reactor = reactor(0);
    let (_dir, path, _endpoint) = served(&mut reactor, &Arc::default());
    let mut client = connect(&mut reactor, &path);

    let info = [16_u32.to_ne_bytes(), [0; 4], [0; 4], [0; 4]].concat();
    client.write_all(&command(Command::DEVICE_GET_INFO, &info).repeat(100)).unwrap();
    let passes: Vec<usize> = (0..6)
        .map(|_| {
            reactor.poll_once();
            take_all(&mut client) / REPLY_LEN
        })
        .collect();

    // The last answer of a full pass goes out with the next.
    assert_eq!(passes, [31, 32, 32, 5, 0, 0]);
}

#[test]
fn flood_on_the_twin_socket_is_taken_a_part_at_a_time() {
    let mut reactor = reactor(0);
    let (_dir, path, endpoint) = served(&mut reactor, &Arc::default());
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(&command(Command::VERSION, &version::encode(1, Some(0)))).unwrap();
    until_asleep(&mut reactor);
    let Ok(Received::Message { mut fds, .. }) = Receiver::default().receive(&client) else {
        panic!("no answer")
    };
    let mut twin = UnixStream::from(fds.pop().expect("the twin socket"));
    let header =
        Header { command: Command::DMA_READ, message_size: 16, flags: flags::REPLY, ..Header::default() };

    // Nobody asked for them. That the socket is closed is found behind the last.
    twin.write_all(&header.as_bytes().repeat(100)).unwrap();
    drop(twin);
    let is_served: Vec<bool> = (0..5)
        .map(|_| {
            reactor.poll_once();
            endpoint.state() == State::Connected
        })
        .collect();

    assert_eq!(is_served, [true, true, true, false, false]);
}

#[test]
fn commands_that_are_held_have_a_limit_whatever_is_asked_of_the_client_later() {
    const PAYLOAD: usize = 4096;
    let mut reactor = reactor(0);
    let told = Arc::<Told>::default();
    let (_dir, path, _endpoint) = served(&mut reactor, &told);
    let mut client = connect(&mut reactor, &path);
    told.pending.store(true, Ordering::Relaxed);
    client.write_all(&command(Command::DEVICE_RESET, &[])).unwrap();

    // It never answers, and a queue asks again as soon as its last ask has failed.
    let (home, bus) = told.wires.get().unwrap();
    let ask = || bus.remote.ask(Ask::Read { address: 0, len: 16 }, &Asker::Home(home.clone()));
    let mut ticket = ask();
    let mut failed = 0;
    let held = command(Command::DEVICE_GET_INFO, &[0; PAYLOAD]);
    let sent = (0..1000).take_while(|_| {
        if ticket.take().is_some() {
            failed += 1;
            ticket = ask();
        }
        reactor.poll_once();
        client.write(&held).is_ok_and(|len| len == held.len())
    });
    let sent = sent.count();

    // What is held, and what a socket holds.
    assert!((HELD_COMMANDS_MAX..HELD_COMMANDS_MAX + 100).contains(&sent), "{sent} commands were taken");
    assert!(failed > 1, "what is asked later fails too");
    // All of them are answered once the device is done.
    told.pending.store(false, Ordering::Relaxed);
    home.wake();
    let mut len = 0;
    for _ in 0..1000 {
        reactor.poll_once();
        len += take_all(&mut client);
    }
    assert!(len > HEADER_LEN * sent, "{len} bytes of answers to {sent} commands");
}

/// Messages that were given up wait for it still; others would wait behind them, and be more every few seconds.
#[test]
fn client_that_reads_nothing_has_a_bounded_number_of_messages_queued() {
    let (mut reactor, hand) = reactor_with_hand(0);
    let told = Arc::<Told>::default();
    let (_dir, path, _endpoint) = served(&mut reactor, &told);
    let mut client = connect(&mut reactor, &path);
    // A command waits for its device, and so for answers of its own client, which reads and answers nothing.
    told.pending.store(true, Ordering::Relaxed);
    client.write_all(&command(Command::DEVICE_RESET, &[])).unwrap();
    until_asleep(&mut reactor);
    let (home, bus) = told.wires.get().unwrap();
    hand.advance(DMA_ANSWER_MAX);
    for _ in 0..50 {
        let ask = || {
            let data = vec![0; messages::DMA_MESSAGE_MAX as usize];
            bus.remote.ask(Ask::Write { address: 0, data }, &Asker::Home(home.clone()))
        };
        let tickets = [ask(), ask(), ask(), ask()];
        (0..4).for_each(|_| {
            reactor.poll_once();
        });
        assert!(tickets.iter().all(|ticket| ticket.take().is_some()), "they are given up");
    }
    told.pending.store(false, Ordering::Relaxed);
    home.wake();
    let mut len = 0;
    for _ in 0..1000 {
        reactor.poll_once();
        len += take_all(&mut client);
    }
    assert!(len < 20 * messages::DMA_MESSAGE_MAX as usize, "{len} bytes were queued for it");
}

#[test]
fn endpoint_goes_to_another_reactor_with_its_client() {
    let (mut old, mut new) = (reactor(0), reactor(1));
    let (_dir, path, endpoint) = served(&mut old, &Arc::default());
    let mut client = connect(&mut old, &path);

    endpoint.place(vec![new.handle(), old.handle()]);
    until_asleep(&mut old);
    client.write_all(&command(Command::DEVICE_RESET, &[])).unwrap();
    until_asleep(&mut old);
    assert_eq!(take_all(&mut client), 0, "nobody serves it on the old reactor");
    until_asleep(&mut new);
    assert_eq!(take_all(&mut client), HEADER_LEN);
    drop(old);

    drop(client);
    until_asleep(&mut new);
    assert_eq!(endpoint.state(), State::Listening);
    endpoint.delete(|| ());
    until_asleep(&mut new);
    assert_eq!(endpoint.state(), State::Gone);
}

#[test]
fn endpoint_whose_new_reactor_has_stopped_stays() {
    let mut old = reactor(0);
    let gone = reactor(1).handle();
    let (_dir, path, endpoint) = served(&mut old, &Arc::default());
    endpoint.place(vec![gone]);
    until_asleep(&mut old);
    let _client = connect(&mut old, &path);
}

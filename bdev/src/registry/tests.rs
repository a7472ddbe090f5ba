//! Tests of the registry: names, order, events, removal, claims, counters across channels.

use std::sync::Mutex;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;
use crate::types::{Null, NullParams};
use crate::{Completion, IoChannel, Notifications, Op, OpKind, Rejected, Request, ResetMode, Status, Token};

/// A wait that only a hang exhausts.
const HANG: Duration = Duration::from_secs(60);

fn null(name: &str) -> Arc<dyn Bdev> {
    let params = NullParams { name: name.into(), block_size: 512, num_blocks: 1024, ..NullParams::default() };
    Arc::new(Null::new(params).unwrap())
}

fn with(names: &[&str]) -> Arc<Registry> {
    let registry = Registry::new();
    for name in names {
        registry.register(null(name)).unwrap();
    }
    registry
}

fn names(registry: &Registry) -> Vec<String> {
    registry.list().iter().map(|r| r.name().to_owned()).collect()
}

fn read_one(channel: &mut IoChannel) -> Result<(), Rejected> {
    let request = Request { op: Op::Read, lba: 0, blocks: 0, iov: &[], token: Token(0) };
    channel.submit(&request)?;
    channel.kick();
    let mut done = [Completion::EMPTY; 1];
    assert_eq!(channel.reap(&mut done), 1);
    Ok(())
}

#[test]
fn bdevs_are_listed_in_the_order_of_creation() {
    let registry = with(&["z", "a", "m"]);

    registry.delete("a", || ()).unwrap();
    registry.register(null("a")).unwrap();

    assert_eq!(names(&registry), ["z", "m", "a"]);
}

#[test]
fn a_taken_name_and_a_missing_one_are_told_apart() {
    let registry = with(&["a"]);

    assert_eq!(registry.register(null("a")).map(|_| ()).unwrap_err().errno(), 17);
    assert_eq!(registry.get("b").map(|_| ()).unwrap_err().errno(), 19);
    assert_eq!(registry.delete("b", || ()).unwrap_err().errno(), 19);
    assert_eq!(registry.open("b", Access::Read, |_| ()).unwrap_err().errno(), 19);
}

#[test]
fn a_bdev_is_found_by_uuid_and_alias_and_by_neither_once_it_is_gone() {
    let registry = with(&["a", "b"]);
    let uuid = registry.get("a").unwrap().info().uuid.to_string();
    registry.add_alias("a", "first").unwrap();
    registry.add_alias(&uuid, "erster").unwrap();

    assert_eq!(registry.get(&uuid).unwrap().name(), "a");
    assert_eq!(registry.get("erster").unwrap().aliases(), [uuid.as_str(), "first", "erster"]);
    assert_eq!(registry.add_alias("b", "first").unwrap_err().errno(), 17);
    assert_eq!(registry.remove_alias("b", "first").unwrap_err().errno(), 22);
    registry.remove_alias("a", "first").unwrap();
    assert!(registry.get("first").is_err());

    registry.delete("erster", || ()).unwrap();

    assert!(registry.get(&uuid).is_err());
    assert!(registry.get("erster").is_err());
    assert_eq!(names(&registry), ["b"]);
}

#[test]
fn automatic_names_count_on_after_a_deletion() {
    let registry = Registry::new();

    let drawn: Vec<_> = (0..3).map(|_| registry.auto_name("Malloc")).collect();

    assert_eq!(drawn, ["Malloc0", "Malloc1", "Malloc2"]);
    assert_eq!(registry.auto_name("Other"), "Other0");
}

#[test]
fn a_deletion_of_another_type_finds_nothing() {
    let registry = with(&["a"]);

    assert_eq!(registry.delete_of_type("malloc", "a", || ()).unwrap_err().errno(), 19);
    registry.delete_of_type("null", "a", || ()).unwrap();

    assert_eq!(names(&registry), [""; 0]);
}

#[test]
fn every_open_is_told_of_a_removal_and_the_last_one_out_ends_it() {
    let registry = with(&["a"]);
    let (told, events) = mpsc::channel();
    let (gone, when_gone) = mpsc::channel();
    let opens: Vec<_> = (0..3)
        .map(|n| {
            let told = told.clone();
            registry.open("a", Access::ReadWrite, move |event| told.send((n, event)).unwrap()).unwrap()
        })
        .collect();

    registry.delete("a", move || gone.send(thread::current().id()).unwrap()).unwrap();

    let told: Vec<_> = events.try_iter().collect();
    assert_eq!(told, [(0, Event::Removed), (1, Event::Removed), (2, Event::Removed)]);
    assert!(when_gone.try_recv().is_err());
    assert_eq!(names(&registry), ["a"], "listed while somebody has it open");
    assert!(opens[0].open_channel(1).is_err());
    drop(opens);
    let reaper = when_gone.recv_timeout(HANG).unwrap();
    assert_ne!(reaper, thread::current().id(), "the closing thread may be a reactor");
    assert_eq!(names(&registry), [""; 0]);
}

#[test]
fn a_callback_may_close_its_own_descriptor() {
    let registry = with(&["a"]);
    let (gone, when_gone) = mpsc::channel();
    let holder = Arc::new(Mutex::new(None));
    let own = holder.clone();
    let descriptor = registry.open("a", Access::Read, move |_| drop(own.lock().unwrap().take())).unwrap();
    *holder.lock().unwrap() = Some(descriptor);

    registry.delete("a", move || gone.send(()).unwrap()).unwrap();

    assert_eq!(when_gone.recv_timeout(HANG), Ok(()));
}

#[test]
fn opens_and_deletions_on_many_threads_leave_nothing_behind() {
    let registry = Registry::new();
    let (gone, when_gone) = mpsc::channel();
    let rounds = 200;

    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..rounds * 10 {
                    // Mostly there is nothing to open; what is found must work or be on its way out.
                    let opened = registry.open("a", Access::ReadWrite, |_| ());
                    let channel = opened.as_ref().ok().and_then(|d| d.open_channel(1).ok());
                    let answer = channel.map(|mut c| read_one(&mut c));
                    assert!(matches!(answer, None | Some(Ok(()) | Err(Rejected::Failed(Status::Removed)))));
                }
            });
        }
        for _ in 0..rounds {
            let gone = gone.clone();
            registry.register(null("a")).unwrap();
            registry.delete("a", move || gone.send(()).unwrap()).unwrap();
            when_gone.recv_timeout(HANG).unwrap();
        }
    });

    assert_eq!(names(&registry), [""; 0]);
}

#[test]
fn the_backend_is_released_before_the_deletion_is_reported() {
    let registry = Registry::new();
    let bdev = null("a");
    let alive = Arc::downgrade(&bdev);
    registry.register(bdev).unwrap();
    let descriptor = registry.open("a", Access::Read, |_| ()).unwrap();
    let channel = descriptor.open_channel(1).unwrap();
    let (gone, when_gone) = mpsc::channel();
    registry.delete("a", move || gone.send(alive.strong_count()).unwrap()).unwrap();

    drop(descriptor);
    drop(channel);

    assert_eq!(when_gone.recv_timeout(HANG), Ok(0));
}

#[test]
fn a_claim_keeps_later_writers_out_until_it_is_given_back() {
    let registry = with(&["a"]);
    let holder = registry.open("a", Access::Read, |_| ()).unwrap();
    assert!(!holder.is_writable());

    holder.claim(ClaimKind::ExclusiveWrite, "raid").unwrap();

    assert!(holder.is_writable());
    let described = registry.get("a").unwrap().describe();
    assert_eq!((described.claimed, described.claim_type), (true, Some("exclusive_write")));
    let refused = registry.open("a", Access::ReadWrite, |_| ()).unwrap_err();
    assert_eq!(refused.errno(), 1);
    assert_eq!(refused.to_string(), "bdev \"a\" is claimed by raid (exclusive_write)");
    let channel = holder.open_channel(1).unwrap();
    drop(holder);
    assert!(registry.open("a", Access::ReadWrite, |_| ()).is_err(), "its channel still writes");
    drop(channel);
    assert!(registry.open("a", Access::ReadWrite, |_| ()).is_ok());
    assert_eq!(registry.get("a").unwrap().claim_kind(), None);
}

#[test]
fn a_bdev_that_no_wrapper_could_serve_is_refused() {
    let registry = Registry::new();
    let odd = |block_size, num_blocks: u64, name: &str| {
        let mut info = crate::BdevInfo::new("null", "Null disk", name.into(), 512, 1);
        info.block_size = block_size;
        info.num_blocks = num_blocks.into();
        Arc::new(Odd { info: Arc::new(info) })
    };

    for bdev in [odd(0, 1, "a"), odd(513, 1, "a"), odd(512, 0, "a"), odd(512, 1 << 60, "a"), odd(512, 1, "")]
    {
        assert_eq!(registry.register(bdev).map(|_| ()).unwrap_err().errno(), 22);
    }
    assert_eq!(names(&registry), [""; 0]);
}

/// A bdev of any description.
struct Odd {
    info: Arc<crate::BdevInfo>,
}

impl Bdev for Odd {
    fn info(&self) -> &Arc<crate::BdevInfo> {
        &self.info
    }

    fn supports(&self, _kind: OpKind) -> bool {
        false
    }

    fn open_channel(&self, _depth: u16) -> Result<Box<dyn crate::Channel>, OpenError> {
        Err(Error::Unsupported("no channels".into()))
    }

    fn config(&self) -> Option<(&'static str, serde_json::Value)> {
        None
    }
}

#[test]
fn a_growth_is_told_once_and_to_everyone() {
    let registry = with(&["a"]);
    let notifications = Notifications::watching(&registry);
    let (told, events) = mpsc::channel();
    let _descriptor = registry.open("a", Access::Read, move |event| told.send(event).unwrap()).unwrap();

    registry.resize("a", 2048).unwrap();
    registry.resize("a", 2048).unwrap();

    assert_eq!(events.try_iter().collect::<Vec<_>>(), [Event::Resized { num_blocks: 2048 }]);
    let noted: Vec<_> = notifications.since(0, 9).into_iter().map(|n| (n.kind, n.ctx)).collect();
    assert_eq!(noted, [("bdev_resize", "a".to_owned())]);
    assert_eq!(registry.resize("a", 1).unwrap_err().errno(), 16);
    assert_eq!(registry.notify_resized("a", u64::MAX).unwrap_err().errno(), 22);
}

#[test]
fn counters_of_all_channels_add_up_and_resets_clear_what_they_say() {
    let registry = with(&["a"]);
    let descriptor = registry.open("a", Access::ReadWrite, |_| ()).unwrap();
    let bdev = registry.get("a").unwrap();
    let mut one = descriptor.open_channel(1).unwrap();
    let mut two = descriptor.open_channel(1).unwrap();
    one.set_thread_id(11);
    two.set_thread_id(22);
    let slow_read = |channel: &mut IoChannel, ticks: u64| {
        channel.set_now(100);
        let request = Request { op: Op::Read, lba: 0, blocks: 0, iov: &[], token: Token(0) };
        channel.submit(&request).unwrap();
        channel.set_now(100 + ticks);
        assert_eq!(channel.reap(&mut [Completion::EMPTY; 1]), 1);
    };
    slow_read(&mut one, 5);
    slow_read(&mut two, 9);
    slow_read(&mut two, 7);

    let read = *bdev.stats().kind(OpKind::Read);
    assert_eq!((read.ops, read.latency_ticks), (3, 21));
    assert_eq!((read.latency_ticks_max, read.latency_ticks_min), (9, Some(5)));
    let mut per_channel: Vec<_> =
        bdev.channel_stats().into_iter().map(|(id, s)| (id, s.kind(OpKind::Read).ops)).collect();
    per_channel.sort_unstable();
    assert_eq!(per_channel, [(11, 1), (22, 2)]);

    bdev.reset_stats(ResetMode::Maxmin);
    let read = *bdev.stats().kind(OpKind::Read);
    assert_eq!((read.ops, read.latency_ticks_max, read.latency_ticks_min), (3, 0, None));
    slow_read(&mut one, 2);
    let read = *bdev.stats().kind(OpKind::Read);
    assert_eq!((read.ops, read.latency_ticks_max, read.latency_ticks_min), (4, 2, Some(2)));

    drop(two);
    bdev.reset_stats(ResetMode::All);
    slow_read(&mut one, 1);
    let read = *bdev.stats().kind(OpKind::Read);
    assert_eq!((read.ops, read.latency_ticks, read.latency_ticks_max), (1, 1, 1));
}

#[test]
fn refusals_are_counted_by_status_and_cleared_on_their_own() {
    let registry = with(&["a"]);
    let descriptor = registry.open("a", Access::Read, |_| ()).unwrap();
    let bdev = registry.get("a").unwrap();
    let mut channel = descriptor.open_channel(1).unwrap();
    read_one(&mut channel).unwrap();
    let write = Request { op: Op::WRITE, lba: 0, blocks: 0, iov: &[], token: Token(0) };
    assert_eq!(channel.submit(&write), Err(Rejected::Failed(Status::ReadOnly)));

    let described = serde_json::to_value(bdev.stats().describe()).unwrap();
    assert_eq!(described["io_error"], serde_json::json!({"read_only": 1}));
    assert_eq!(described["num_read_ops"], 1);
    bdev.reset_stats(ResetMode::Error);

    assert_eq!(bdev.stats().errors(Status::ReadOnly), 0);
    assert_eq!(bdev.stats().kind(OpKind::Read).ops, 1);
}

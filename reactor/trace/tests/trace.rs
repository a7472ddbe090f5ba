//! A trace as a program writes it and as its readers see it.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use tempfile::TempDir;
use trace::{Buffer, BufferError, Group, Point, Snapshot, SnapshotError, Ticks, text};

const POINTS: &[Point] = &[
    Point { name: "IO_START", object: "io", args: &["op:read|write", "lba"] },
    Point { name: "OPEN", object: "channel", args: &["bdev:text"] },
];

/// A clock whose readings are 1, 2, 3 …
fn next_tick() -> u64 {
    static TICK: AtomicU64 = AtomicU64::new(1);
    TICK.fetch_add(1, Ordering::Relaxed)
}

struct Rig {
    _dir: TempDir,
    path: PathBuf,
    buffer: Buffer,
}

fn rig(entries: u32, group: &'static Group) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    let ticks = Ticks { now: next_tick, per_second: 1000 };
    let buffer = Buffer::create(&path, [0, 5], entries, ticks, &[group]).unwrap();
    Rig { _dir: dir, path, buffer }
}

/// The objects of the events that a reader sees, with their cores.
fn seen(rig: &Rig) -> Vec<(u32, u64)> {
    Snapshot::read(&rig.path).unwrap().events.iter().map(|event| (event.core, event.object)).collect()
}

#[test]
fn events_are_seen_as_they_were_written_while_their_point_is_on() {
    static GROUP: Group = Group::new("bdev", 3, POINTS);
    let rig = rig(8, &GROUP);
    rig.buffer.attach(5);

    GROUP.record(0, 1, [0; 4]);
    GROUP.enable(0b01);
    GROUP.record(0, 2, [1, 77, 0, 0]);
    GROUP.record(1, 3, text("Malloc0"));
    GROUP.enable(0b10);
    GROUP.record(1, 4, text("Malloc0"));
    GROUP.disable(u64::MAX);
    GROUP.record(1, 5, text("Malloc0"));

    let snapshot = Snapshot::read(&rig.path).unwrap();
    assert_eq!((snapshot.ticks_per_second, snapshot.pid), (1000, std::process::id()));
    let [start, open] = snapshot.events[..] else { panic!("{:?}", snapshot.events) };
    assert_eq!((start.core, start.object, start.args), (5, 2, [1, 77, 0, 0]));
    assert_eq!((open.object, open.args), (4, text("Malloc0")));
    assert!(start.tick < open.tick);
    let described = snapshot.point(start.point).unwrap();
    assert_eq!((described.group.as_str(), described.name.as_str()), ("bdev", "IO_START"));
    assert_eq!(described.args, ["op:read|write", "lba"]);
    assert_eq!(snapshot.point(open.point).unwrap().name, "OPEN");
}

#[test]
fn ring_keeps_the_last_events_of_each_thread() {
    static GROUP: Group = Group::new("bdev", 3, POINTS);
    GROUP.enable(1);
    let rig = rig(4, &GROUP);
    let writers = [(0, 10), (5, 3)].map(|(core, events)| {
        let buffer = &rig.buffer;
        move || {
            buffer.attach(core);
            (0..events).for_each(|object| GROUP.record(0, object, [0; 4]));
        }
    });
    thread::scope(|scope| writers.map(|writer| scope.spawn(writer)).map(|thread| thread.join().unwrap()));

    let mut seen = seen(&rig);
    seen.sort_unstable();
    assert_eq!(seen, [(0, 6), (0, 7), (0, 8), (0, 9), (5, 0), (5, 1), (5, 2)]);
}

#[test]
fn thread_without_a_ring_writes_nothing() {
    static GROUP: Group = Group::new("bdev", 3, POINTS);
    GROUP.enable(1);
    let rig = rig(4, &GROUP);
    GROUP.record(0, 1, [0; 4]);
    rig.buffer.attach(1);
    GROUP.record(0, 2, [0; 4]);
    assert_eq!(seen(&rig), []);
}

#[test]
fn cleared_events_are_not_seen_and_later_ones_are() {
    static GROUP: Group = Group::new("bdev", 3, POINTS);
    GROUP.enable(1);
    let rig = rig(4, &GROUP);
    rig.buffer.attach(0);
    (0..6).for_each(|object| GROUP.record(0, object, [0; 4]));
    rig.buffer.clear();
    assert_eq!(seen(&rig), []);
    GROUP.record(0, 6, [0; 4]);
    assert_eq!(seen(&rig), [(0, 6)]);
}

#[test]
fn reader_beside_a_writer_sees_whole_events_only() {
    static GROUP: Group = Group::new("bdev", 3, POINTS);
    GROUP.enable(1);
    let rig = rig(4, &GROUP);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            rig.buffer.attach(0);
            let mut object = 0;
            while !done.load(Ordering::Relaxed) {
                object += 1;
                GROUP.record(0, object, [object, !object, object ^ 0x55, object]);
            }
        });
        let mut looked = 0;
        let mut with_events = 0;
        while looked < 2000 || with_events == 0 {
            looked += 1;
            let events = Snapshot::read(&rig.path).unwrap().events;
            with_events += u32::from(!events.is_empty());
            for event in events {
                let object = event.object;
                assert_eq!(event.args, [object, !object, object ^ 0x55, object]);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn file_of_a_live_program_is_left_alone_and_that_of_a_dead_one_is_replaced() {
    static GROUP: Group = Group::new("bdev", 3, POINTS);
    let rig = rig(4, &GROUP);
    let ticks = Ticks { now: next_tick, per_second: 1 };
    let rival = Buffer::create(&rig.path, [0], 4, ticks, &[&GROUP]);
    assert!(matches!(rival, Err(BufferError::InUse(_))), "{rival:?}");
    let Rig { _dir, path, buffer } = rig;
    drop(buffer);

    let next = Buffer::create(&path, [0], 4, ticks, &[&GROUP]).unwrap();

    assert_eq!(Snapshot::read(&path).unwrap().ticks_per_second, 1);
    next.remove().unwrap();
    assert!(!path.exists());
}

#[test]
fn links_are_not_followed_and_other_files_are_no_traces() {
    static GROUP: Group = Group::new("bdev", 3, POINTS);
    let dir = tempfile::tempdir().unwrap();
    let precious = dir.path().join("precious");
    std::fs::write(&precious, "x".repeat(20_000)).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&precious, &link).unwrap();
    let ticks = Ticks { now: next_tick, per_second: 1 };
    assert!(matches!(Buffer::create(&link, [0], 4, ticks, &[&GROUP]), Err(BufferError::File { .. })));
    assert!(matches!(Snapshot::read(&precious), Err(SnapshotError::NotATrace)));
    std::fs::write(&precious, "short").unwrap();
    assert!(matches!(Snapshot::read(&precious), Err(SnapshotError::NotATrace)));
}

#[test]
fn trace_cut_off_anywhere_is_refused() {
    static GROUP: Group = Group::new("bdev", 3, POINTS);
    let rig = rig(4, &GROUP);
    let bytes = std::fs::read(&rig.path).unwrap();
    let cut = rig.path.with_extension("cut");
    for len in (0..bytes.len()).step_by(8) {
        std::fs::write(&cut, &bytes[..len]).unwrap();
        assert!(matches!(Snapshot::read(&cut), Err(SnapshotError::NotATrace)), "{len}");
    }
}

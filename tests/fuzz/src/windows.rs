//! Windows beside a plain list of them: what is mapped, refused, found.

use std::cell::RefCell;

use rustix::fd::OwnedFd;
use vfu::dma::{Protection, View, Windows};

use crate::choices::Choices;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Plain {
    start: u64,
    last: u64,
    write: bool,
    file: bool,
}

thread_local! {
    static FILE: RefCell<Option<OwnedFd>> = const { RefCell::new(None) };
}

/// Bytes of the file behind windows.
const FILE_LEN: u64 = 0x10000;

fn file() -> OwnedFd {
    FILE.with_borrow_mut(|file| {
        let file = file.get_or_insert_with(|| {
            let file =
                rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("a descriptor");
            rustix::fs::ftruncate(&file, FILE_LEN).expect("memory");
            file
        });
        file.try_clone().expect("a descriptor")
    })
}

fn map(windows: &Windows, plain: &mut Vec<Plain>, choices: &mut Choices<'_>) {
    let (start, size, kind) = (choices.address(), choices.address(), choices.u8());
    // Mapping costs thousands of times what bookkeeping does.
    let wants_file = kind & 15 == 0;
    let write = kind & 16 == 0;
    let protection = Protection { read: true, write };
    let outcome = windows.map(start, size, protection, wants_file.then(|| (file(), 0)));
    let Some(last) = size.checked_sub(1).and_then(|more| start.checked_add(more)) else {
        assert!(outcome.is_err());
        return;
    };
    let new = Plain { start, last, write, file: wants_file };
    let overlaps: Vec<_> =
        plain.iter().filter(|window| window.start <= last && start <= window.last).collect();
    if overlaps.is_empty() {
        assert_eq!(outcome.is_ok(), !wants_file || size <= FILE_LEN, "{new:?} {outcome:?}");
        if outcome.is_ok() {
            plain.push(new);
        }
    } else {
        assert_eq!(outcome.is_ok(), overlaps == [&new], "{new:?} {outcome:?}");
    }
}

fn unmap(windows: &Windows, plain: &mut Vec<Plain>, choices: &mut Choices<'_>) {
    let (start, size) = (choices.address(), choices.address());
    let outcome = windows.unmap(start, size);
    let Some(last) = size.checked_sub(1).and_then(|more| start.checked_add(more)) else {
        assert!(outcome.is_err());
        return;
    };
    let touched = |window: &Plain| window.start <= last && start <= window.last;
    let inside = |window: &Plain| start <= window.start && window.last <= last;
    let any = plain.iter().any(touched);
    let cut = plain.iter().any(|window| touched(window) && !inside(window));
    assert_eq!(outcome.is_ok(), any && !cut, "{start:#x} {size:#x}: {outcome:?}");
    if outcome.is_ok() {
        plain.retain(|window| !touched(window));
    }
}

fn look_up(view: &View, plain: &[Plain], choices: &mut Choices<'_>) {
    let (address, len, write) = (choices.address(), u32::from(choices.u16()), choices.u8() & 1 == 0);
    let mut out = Vec::with_capacity(8);
    let outcome = view.translate(address, len, write, &mut out);
    if outcome.is_ok() {
        assert_eq!(out.iter().map(|part| part.len()).sum::<usize>(), len as usize);
    }
    // One window that holds all of it decides alone.
    let end = address.saturating_add(u64::from(len.max(1)) - 1);
    if let Some(whole) = plain.iter().find(|window| window.start <= address && end <= window.last) {
        let allowed = len == 0 || (whole.file && (whole.write || !write));
        assert_eq!(outcome.is_ok(), allowed, "{address:#x} {len} {whole:?}");
    } else if len > 0 && !plain.iter().any(|window| window.start <= address && address <= window.last) {
        assert!(outcome.is_err());
    }
}

pub(super) fn run(input: &[u8]) {
    let windows = Windows::default();
    let mut plain = Vec::new();
    let mut view = View::new(&windows);
    let mut choices = Choices::new(input);
    while !choices.is_empty() {
        match choices.u8() & 15 {
            0..6 => map(&windows, &mut plain, &mut choices),
            6..9 => unmap(&windows, &mut plain, &mut choices),
            9 => {
                windows.clear();
                plain.clear();
            }
            10 => {
                let grew = view.grow(&windows);
                assert!(!grew || view.generation() == windows.generation());
            }
            _ => {
                view.refresh(&windows);
                look_up(&view, &plain, &mut choices);
            }
        }
        assert_eq!(windows.len(), plain.len());
    }
}

//! What real VMMs said to the target at their start, word for word, and what it answered: `scripts/capture` made the
//! files. Said again, it is answered the same.

use std::{
    ops::Range,
    os::fd::{AsFd, OwnedFd},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Case, Kit, ours,
    wire::{Wire, cmd, eventfd, memory, message},
};

pub(super) const CASES: &[Case] = &[
    ours("qemu_11_1_shared_ram", "from VERSION to DRIVER_OK, as recorded", |kit| {
        replay(kit, "qemu-11.1-shared.txt")
    }),
    ours("qemu_11_1_private_ram", "windows without a file", |kit| replay(kit, "qemu-11.1-private.txt")),
    ours("qemu_11_1_seabios", "SeaBIOS drives the disk before the kernel does", |kit| {
        replay(kit, "qemu-11.1-seabios.txt")
    }),
];

/// Bytes written in hexadecimal; a dash is none.
fn hex(text: &str) -> Result<Vec<u8>> {
    if text == "-" {
        return Ok(Vec::new());
    }
    (0..text.len()).step_by(2).map(|at| Ok(u8::from_str_radix(&text[at..at + 2], 16)?)).collect()
}

/// A descriptor like the one that was passed.
fn descriptor(text: &str) -> Result<OwnedFd> {
    match text.split_once(':') {
        None if text == "eventfd" => eventfd(),
        Some(("memfd", len)) => memory(len.parse()?),
        _ => bail!("a descriptor that nobody can make: {text}"),
    }
}

fn replay(kit: &Kit, name: &str) -> Result<()> {
    let path = ringside_tests::root().join("tests/protocol/captures").join(name);
    let capture = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut wire = kit.connect()?;
    let (mut asked, mut answered) = (0, 0);
    for (number, line) in (1..).zip(capture.lines()).filter(|(_, line)| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields[..] {
            [">", id, command, flags, payload, ref fds @ ..] => {
                let flags = u32::from_str_radix(flags, 16)?;
                let bytes = message(id.parse()?, command.parse()?, flags, &hex(payload)?);
                let fds: Vec<OwnedFd> = fds.iter().map(|fd| descriptor(fd)).collect::<Result<_>>()?;
                wire.raw(&bytes, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
                asked += 1;
            }
            ["<", id, command, flags, error, payload, ref fds @ ..] => {
                let expected =
                    (id.parse()?, command.parse()?, u32::from_str_radix(flags, 16)?, error.parse()?);
                is_answer(&mut wire, expected, &hex(payload)?, fds.len())
                    .with_context(|| format!("line {number}"))?;
                answered += 1;
            }
            _ => bail!("line {number}: {line}"),
        }
    }
    ensure!(asked > 20 && answered > 20, "a capture of {asked} commands and {answered} answers");
    wire.is_in_step()
}

/// Where in an answer the device's serial number is, which is another one for each disk: in what is read of the
/// configuration space, from 0x104 on.
fn serial_number(command: u16, payload: &[u8]) -> Range<usize> {
    let at = |from: usize| {
        payload.get(from..from + 4).map_or(0, |it| u32::from_ne_bytes([it[0], it[1], it[2], it[3]]))
    };
    if command != cmd::REGION_READ || at(8) != 7 {
        return 0..0;
    }
    let place = |byte: u32| 16 + byte.saturating_sub(at(0)) as usize;
    place(0x104)..place(0x10c)
}

fn is_answer(wire: &mut Wire, expected: (u16, u16, u32, u32), payload: &[u8], fds: usize) -> Result<()> {
    let answer = wire.receive()?.context("the server closed the connection")?;
    let got = (answer.id, answer.command, answer.flags, answer.error);
    ensure!(got == expected, "{got:x?} instead of {expected:x?}");
    ensure!(
        answer.payload.len() == payload.len(),
        "{} bytes instead of {}",
        answer.payload.len(),
        payload.len()
    );
    let serial = serial_number(answer.command, payload);
    let mut other = (0..).zip(answer.payload.iter().zip(payload)).filter(|(at, _)| !serial.contains(at));
    if let Some((at, (byte, was))) = other.find(|(_, (byte, was))| byte != was) {
        bail!("byte {at} of the answer to command {}: {byte:02x} instead of {was:02x}", answer.command);
    }
    ensure!(answer.fds.len() == fds, "{} descriptors instead of {fds}", answer.fds.len());
    Ok(())
}

//! A conformance kit for vfio-user servers: raw bytes on the socket, judged by the specification's own words.
//!
//! Without arguments it starts the target with a small disk. With `--socket PATH` it talks to whatever server listens
//! there, one connection at a time: cases that need our device, or our process, are then left out. A word that is no
//! option selects cases whose names contain it. `--table FILE` writes the results as a table. It exits with 1 when a
//! case failed.
//!
//!     cargo test -p ringside-tests --test protocol -- --socket /var/run/other-server.sock

mod captures;
mod clients;
mod config_space;
mod device_feature;
mod device_info;
mod device_reset;
mod dma_map;
mod dma_read_write;
mod dma_unmap;
mod framing;
mod irq_info;
mod limits;
mod posture;
mod region_info;
mod region_io_fds;
mod region_read;
mod region_write;
mod region_write_multi;
mod set_irqs;
mod truncated;
mod twin_socket;
mod vanish;
mod version;
mod virtio;
mod wire;

use std::{fmt::Write, panic::AssertUnwindSafe, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use ringside_tests::Target;
use serde_json::json;
use wire::Wire;

/// Whom a case can be tried on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// Any server.
    Server,
    /// A virtio disk that the kit's target serves.
    Disk,
}

/// One case.
struct Case {
    name: &'static str,
    /// What the specification, or a client that exists, asks for.
    word: &'static str,
    needs: Needs,
    run: fn(&Kit) -> Result<()>,
}

/// A case for any server.
const fn any(name: &'static str, word: &'static str, run: fn(&Kit) -> Result<()>) -> Case {
    Case { name, word, needs: Needs::Server, run }
}

/// A case for the kit's own target.
const fn ours(name: &'static str, word: &'static str, run: fn(&Kit) -> Result<()>) -> Case {
    Case { name, word, needs: Needs::Disk, run }
}

const CASES: &[(&str, &[Case])] = &[
    ("framing", framing::CASES),
    ("VERSION", version::CASES),
    ("DMA_MAP", dma_map::CASES),
    ("DMA_UNMAP", dma_unmap::CASES),
    ("DEVICE_GET_INFO", device_info::CASES),
    ("DEVICE_GET_REGION_INFO", region_info::CASES),
    ("DEVICE_GET_REGION_IO_FDS", region_io_fds::CASES),
    ("DEVICE_GET_IRQ_INFO", irq_info::CASES),
    ("DEVICE_SET_IRQS", set_irqs::CASES),
    ("REGION_READ", region_read::CASES),
    ("REGION_WRITE", region_write::CASES),
    ("REGION_WRITE_MULTI", region_write_multi::CASES),
    ("DMA_READ, DMA_WRITE", dma_read_write::CASES),
    ("twin socket", twin_socket::CASES),
    ("DEVICE_RESET", device_reset::CASES),
    ("DEVICE_FEATURE, MIG_DATA", device_feature::CASES),
    ("configuration space", config_space::CASES),
    ("clients that exist", clients::CASES),
    ("captures", captures::CASES),
    ("limits", limits::CASES),
    ("truncated memory", truncated::CASES),
    ("clients that vanish", vanish::CASES),
    ("security posture", posture::CASES),
];

/// The server under test.
struct Kit {
    socket: PathBuf,
    target: Option<Target>,
}

/// Blocks of the disk.
const BLOCKS: u64 = 2048;

impl Kit {
    fn own() -> Result<Self> {
        let target = Target::start()?;
        let disk = json!({"name": "Malloc0", "num_blocks": BLOCKS, "block_size": 512});
        target.call("bdev_malloc_create", disk).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let endpoint = json!({"name": "vfu.0", "bdev_name": "Malloc0", "num_queues": 2, "qsize": 8});
        target
            .call("vfu_virtio_create_blk_endpoint", endpoint)
            .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        Ok(Self { socket: target.endpoint("vfu.0"), target: Some(target) })
    }

    /// A connection that has said nothing.
    fn connect(&self) -> Result<Wire> {
        Wire::connect(&self.socket)
    }

    /// A connection after VERSION.
    fn open(&self) -> Result<Wire> {
        let mut wire = self.connect()?;
        wire.negotiate()?;
        Ok(wire)
    }

    /// The kit's own target; for cases with [`Needs::Disk`].
    fn target(&self) -> Result<&Target> {
        self.target.as_ref().context("the case needs the kit's own target")
    }
}

struct Options {
    socket: Option<PathBuf>,
    table: Option<PathBuf>,
    words: Vec<String>,
}

fn options() -> Options {
    let mut options = Options { socket: None, table: None, words: Vec::new() };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--socket" => options.socket = args.next().map(PathBuf::from),
            "--table" => options.table = args.next().map(PathBuf::from),
            // What cargo test hands to every target.
            option if option.starts_with('-') => {}
            word => options.words.push(word.to_owned()),
        }
    }
    options
}

fn main() -> ExitCode {
    let options = options();
    let is_wanted = |group: &str, case: &Case| {
        let full = format!("protocol: {group}: {}", case.name);
        options.words.is_empty() || options.words.iter().any(|word| full.contains(word))
    };
    if !CASES.iter().any(|(group, cases)| cases.iter().any(|case| is_wanted(group, case))) {
        return ExitCode::SUCCESS;
    }
    let kit = match options.socket {
        Some(ref socket) => Ok(Kit { socket: socket.clone(), target: None }),
        None => Kit::own(),
    };
    let kit = match kit {
        Ok(kit) => kit,
        Err(error) => {
            eprintln!("the target does not start: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut table = String::from("| message | case | asked for | result |\n|---|---|---|---|\n");
    let (mut passed, mut failed, mut left_out) = (0, 0, 0);
    for (group, cases) in CASES {
        for case in cases.iter().filter(|case| is_wanted(group, case)) {
            let result = if case.needs == Needs::Disk && kit.target.is_none() {
                left_out += 1;
                "left out".to_owned()
            } else {
                // Another server's answer may be one that a case did not think of.
                let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| (case.run)(&kit)));
                match outcome.unwrap_or_else(|_panic| Err(anyhow::anyhow!("an answer that cannot be read"))) {
                    Ok(()) => {
                        passed += 1;
                        "pass".to_owned()
                    }
                    Err(error) => {
                        failed += 1;
                        eprintln!("FAIL {group}: {}: {error:#}", case.name);
                        format!("FAIL: {error:#}").replace('\n', " ").replace('|', "/")
                    }
                }
            };
            writeln!(table, "| {group} | {} | {} | {result} |", case.name, case.word)
                .expect("a String takes all");
        }
    }
    if let Some(path) = &options.table
        && let Err(error) = std::fs::write(path, &table)
    {
        eprintln!("{}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    if let Some(target) = kit.target.as_ref().filter(|_| failed > 0) {
        let log = target.log();
        let tail: Vec<_> = log.lines().rev().take(30).collect();
        eprintln!("the end of the target's log:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    eprintln!("protocol kit: {passed} passed, {failed} failed, {left_out} left out");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

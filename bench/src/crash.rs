//! `crash`: kills a writer at random moments and looks what is on the disk.
//!
//! The writer, a process of its own, writes stamped blocks to a uring bdev, flushes, and says on its output which of
//! them are durable by then: a line per flush. It is killed by SIGKILL; then every block that was said to be durable must
//! hold its stamp or a later one, and each block one whole stamp. This finds requests that complete too early; what a
//! power failure does to a disk's own cache it cannot find.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use ::bdev::{
    Access, Completion, IoChannel, IoVec, Op, Registry, Request, Status, Token,
    arena::StaticBuffer,
    types::{UringParams, uring},
};
use anyhow::{Context, bail, ensure};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 1024;
const DEPTH: u16 = 16;
/// A writer that takes longer than this to start has stopped.
const FIRST_FLUSH_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file to write; made if it is not there
    file: PathBuf,
    /// How often to kill
    #[arg(long, default_value_t = 100)]
    kills: u32,
    /// Longest life of a writer after its first flush, in milliseconds
    #[arg(long, default_value_t = 40)]
    life_ms: u64,
    /// Be the writer, with stamps from here on
    #[arg(long, hide = true)]
    write_from: Option<u64>,
}

/// Runs the subcommand.
///
/// # Errors
/// What was wrong, for people; a block that is not as it must be among it.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    if let Some(first) = args.write_from {
        return write(&args.file, first);
    }
    let file =
        std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&args.file)?;
    file.set_len(BLOCKS * BLOCK as u64)?;
    let mut durable: HashMap<u64, u64> = HashMap::new();
    let (mut random, mut stamp, mut flushes) = (0x2545_f491_4f6c_dd1d_u64, 1, 0);
    for kill in 0..args.kills {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let life = Duration::from_micros(random % (args.life_ms * 1000));
        let said = live_and_die(&args.file, stamp, life)?;
        flushes += said.len();
        for line in &said {
            for pair in line.split_whitespace() {
                let (block, written) = pair.split_once(':').context("a line of the writer")?;
                durable.insert(block.parse()?, written.parse()?);
            }
        }
        stamp = check(&file, &durable).with_context(|| format!("after kill {kill}"))? + 1;
    }
    writeln!(
        std::io::stdout(),
        "{} kills, {flushes} flushes answered, {} blocks durable: all of them are on the disk",
        args.kills,
        durable.len()
    )?;
    Ok(())
}

/// Starts a writer, kills it, and returns the lines it said.
fn live_and_die(file: &Path, first: u64, life: Duration) -> anyhow::Result<Vec<String>> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("crash")
        .arg(file)
        .args(["--write-from", &first.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(child.stdout.take().context("a pipe")?);
    let (first_flush, is_flushed) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut lines = Vec::new();
        let mut line = String::new();
        // A line without its end was not said.
        while said.read_line(&mut line).is_ok_and(|n| n > 0) && line.ends_with('\n') {
            lines.push(std::mem::take(&mut line));
            // Nobody waits for the later ones.
            let _ = first_flush.send(());
        }
        lines
    });
    // From its first flush on; where that does not come, its end says why.
    let flushed = is_flushed.recv_timeout(FIRST_FLUSH_MAX);
    thread::sleep(life);
    child.kill()?;
    let status = child.wait()?;
    ensure!(status.code().is_none(), "the writer ended by itself: {status}");
    flushed.context("the writer does not flush")?;
    reader.join().map_err(|_panic| anyhow::anyhow!("the reader panicked"))
}

fn fill(bytes: &mut [u8], block: u64, stamp: u64) {
    for (word, at) in bytes.chunks_mut(8).zip(0u64..) {
        word.copy_from_slice(&(stamp << 20 | (block ^ at) & 0xf_ffff).to_le_bytes());
    }
}

/// Looks at every block; returns the highest stamp.
fn check(file: &std::fs::File, durable: &HashMap<u64, u64>) -> anyhow::Result<u64> {
    let (mut seen, mut expected) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut highest = 0;
    for block in 0..BLOCKS {
        file.read_exact_at(&mut seen, block * BLOCK as u64)?;
        let stamp = u64::from_le_bytes(seen[..8].try_into()?) >> 20;
        if stamp > 0 {
            fill(&mut expected, block, stamp);
            ensure!(seen == expected, "block {block} is torn");
        }
        let least = durable.get(&block).copied().unwrap_or(0);
        ensure!(stamp >= least, "block {block} was durable with stamp {least} and has {stamp}");
        highest = highest.max(stamp);
    }
    Ok(highest)
}

struct Writer {
    channel: IoChannel,
    slots: Vec<[IoVec; 1]>,
}

impl Writer {
    fn submit(&mut self, op: Op, lba: u64, blocks: u64, token: u16) -> anyhow::Result<()> {
        let iov: &[IoVec] = if op.kind().has_data() { &self.slots[usize::from(token)] } else { &[] };
        let request = Request { op, lba, blocks, iov, token: Token(token.into()) };
        self.channel.submit(&request).map_err(|rejected| anyhow::anyhow!("refused: {rejected:?}"))
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        self.channel.kick();
        let mut done = [Completion::EMPTY; DEPTH as usize];
        while self.channel.in_flight() > 0 {
            let n = self.channel.reap(&mut done);
            if let Some(failed) = done[..n].iter().find(|completion| completion.status != Status::Ok) {
                bail!("a request failed: {:?}", failed.status);
            }
        }
        Ok(())
    }
}

/// Writes, flushes and says so, until killed.
fn write(file: &Path, first: u64) -> anyhow::Result<()> {
    let registry = Registry::new();
    let filename = file.to_str().context("a path that is text")?.to_owned();
    uring::create(
        &registry,
        UringParams { name: "u".into(), filename, block_size: BLOCK as u32, ..UringParams::default() },
    )?;
    let descriptor = Arc::new(registry.open("u", Access::ReadWrite, |_| ())?);
    let memory = StaticBuffer::new(BLOCK * usize::from(DEPTH))?;
    let slots = (0..usize::from(DEPTH)).map(|at| memory.iovec(at * BLOCK, BLOCK).map(|one| [one]));
    let slots = slots.collect::<Option<Vec<_>>>().context("inside the memory")?;
    let mut writer = Writer { channel: descriptor.open_channel(DEPTH)?, slots };
    let (mut random, mut bytes) = (first | 1, vec![0; BLOCK]);
    let mut out = std::io::stdout().lock();
    for stamp in first.. {
        let mut line = String::new();
        for token in 0..DEPTH {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Each slot has blocks of its own: no two writes in flight overlap.
            let block = (random >> 33) % (BLOCKS / u64::from(DEPTH)) * u64::from(DEPTH) + u64::from(token);
            fill(&mut bytes, block, stamp);
            writer.slots[usize::from(token)][0].copy_from(0, &bytes);
            let fua = random >> 62 == 0;
            writer.submit(Op::Write { fua }, block, 1, token)?;
            line.push_str(&format!("{block}:{stamp} "));
        }
        writer.wait()?;
        writer.submit(Op::Flush, 0, 0, 0)?;
        writer.wait()?;
        writeln!(out, "{line}")?;
        out.flush()?;
    }
    Ok(())
}

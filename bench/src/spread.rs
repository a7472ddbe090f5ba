//! `spread`: what a second reactor adds. The queues of one disk on one reactor against the same queues on two, all in this
//! process and by the target's own time per request, so that two cores are enough: each reactor's thread is also the
//! driver of its queues, which hands in a batch, and only then are the reactor's passes timed.
//!
//! Two queues are driven in every run, with batches of the same size, and the two ways take turns.

use std::{
    io::Write,
    path::Path,
    sync::{Arc, Barrier, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context;
use bdev::types::{Null, NullParams};
use reactor::{Clock, Handle, Mode, Reactor, ReactorConfig};
use vfu::{
    mock::{
        blk::{BlkDriver, BlkOptions, BlkQueue, Io},
        client::Client,
        memory::Memory,
        server::{DiskOptions, Server},
        split::SplitDriver,
    },
    virtio::{control::DoorbellMode, spec::blk::kind},
};

use crate::affinity;

const BDEV: &str = "Null0";
const QUEUES: usize = 2;
const BLOCK: u32 = 4096;
const BLOCKS: u64 = 1 << 20;
const RAM: u64 = 64 << 20;
/// Requests of a queue before it is measured.
const WARM_UP: u32 = 20_000;

/// Compares one reactor with two.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Requests of a queue that are handed in together
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=256))]
    batch: u16,
    /// Requests of a queue in one sample
    #[arg(long, default_value_t = 500_000)]
    requests: u32,
    /// Samples
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
}

type Queue = BlkQueue<SplitDriver>;

/// Queues to drive, and where they and the time of their reactor go afterwards.
struct Job {
    queues: Vec<Queue>,
    batch: u16,
    requests: u32,
    start: Arc<Barrier>,
    done: mpsc::Sender<(Vec<Queue>, Duration)>,
}

/// Hands batches in and times the passes that carry them out.
fn drive(reactor: &mut Reactor, job: &mut Job) -> Duration {
    let mut sector = 0;
    let mut spent = Duration::ZERO;
    for _ in 0..job.requests / u32::from(job.batch) {
        for queue in &mut job.queues {
            for _ in 0..job.batch {
                queue
                    .submit(Io { kind: kind::IN, sector, len: BLOCK })
                    .expect("the ring has room for a batch");
                sector = (sector + 8) % (BLOCKS * 8);
            }
            queue.publish_quietly();
        }
        let mut left = job.queues.len() * usize::from(job.batch);
        while left > 0 {
            let start = Instant::now();
            reactor.poll_once();
            spent += start.elapsed();
            for queue in &mut job.queues {
                while queue.poll().expect("the ring is sound").is_some() {
                    left -= 1;
                }
            }
        }
    }
    spent
}

/// A reactor that is polled, and now and then given a job, until nobody can give it one.
fn start_reactor(core: u32) -> anyhow::Result<(Handle, mpsc::Sender<Job>, JoinHandle<()>)> {
    let (jobs, orders) = mpsc::channel::<Job>();
    let (started, handle) = mpsc::channel();
    let thread = std::thread::Builder::new().name(format!("reactor_{core}")).spawn(move || {
        let made = affinity::pin(core as usize).context("--cpu").and_then(|()| {
            let config = ReactorConfig { mode: Mode::PollOnly, ..ReactorConfig::new(core, Clock::system()) };
            Ok(Reactor::new(config)?)
        });
        let mut reactor = match made {
            Ok(reactor) => reactor,
            Err(error) => return drop(started.send(Err(error))),
        };
        // Its maker waits.
        let _ = started.send(Ok(reactor.handle()));
        loop {
            match orders.try_recv() {
                Ok(mut job) => {
                    job.start.wait();
                    let spent = drive(&mut reactor, &mut job);
                    let _ = job.done.send((job.queues, spent));
                }
                Err(mpsc::TryRecvError::Empty) => {
                    reactor.poll_once();
                    std::thread::yield_now();
                }
                Err(mpsc::TryRecvError::Disconnected) => return,
            }
        }
    })?;
    Ok((handle.recv().context("the reactor's thread ended")??, jobs, thread))
}

/// Nanoseconds of the reactors a request, the queues being dealt to `reactors`. The queues come back.
fn sample(
    jobs: &[mpsc::Sender<Job>],
    queues: Vec<Queue>,
    batch: u16,
    requests: u32,
) -> anyhow::Result<(Vec<Queue>, f64)> {
    let (done, results) = mpsc::channel();
    let start = Arc::new(Barrier::new(jobs.len()));
    let total = queues.len() as f64 * f64::from(requests / u32::from(batch) * u32::from(batch));
    let mut dealt: Vec<Vec<Queue>> = jobs.iter().map(|_| Vec::new()).collect();
    for (number, queue) in queues.into_iter().enumerate() {
        dealt[number % jobs.len()].push(queue);
    }
    for (jobs, queues) in jobs.iter().zip(dealt) {
        let job = Job { queues, batch, requests, start: Arc::clone(&start), done: done.clone() };
        jobs.send(job).ok().context("a reactor's thread ended")?;
    }
    drop(done);
    let (mut back, mut spent) = (Vec::new(), Duration::ZERO);
    for (queues, time) in results {
        back.extend(queues);
        spent += time;
    }
    anyhow::ensure!(back.len() == QUEUES, "a reactor's thread ended");
    Ok((back, spent.as_nanos() as f64 / total))
}

/// A disk on these reactors, and its driver.
fn disk(
    reactors: Vec<Handle>,
    socket: &Path,
    batch: u16,
) -> anyhow::Result<(Server, BlkDriver<SplitDriver>)> {
    let mut server = Server::on(reactors);
    let params =
        NullParams { name: BDEV.to_owned(), block_size: BLOCK, num_blocks: BLOCKS, ..NullParams::default() };
    server.registry().register(Arc::new(Null::new(params).map_err(|error| anyhow::anyhow!("{error:?}"))?))?;
    let options = DiskOptions {
        num_queues: QUEUES as u16,
        queue_size: 1024,
        doorbell: DoorbellMode::Trapped,
        ..DiskOptions::new(BDEV)
    };
    server.serve(socket, &options);
    let driver = BlkOptions {
        queues: QUEUES as u16,
        ring_size: batch.max(2).next_power_of_two().saturating_mul(4).min(1024),
        max_io: BLOCK,
        max_buffer: BLOCK,
        ..BlkOptions::default()
    };
    Ok((server, BlkDriver::new(Client::connect(socket)?, Memory::new(RAM)?, driver)?))
}

/// Runs it.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let cores = reactor::allowed_cores();
    let cores: Vec<u32> = cores.iter().take(2).collect();
    anyhow::ensure!(cores.len() == 2, "two cores are needed, this process may use {}", cores.len());
    let (mut handles, mut jobs, mut threads) = (Vec::new(), Vec::new(), Vec::new());
    for core in cores {
        let (handle, job, thread) = start_reactor(core)?;
        handles.push(handle);
        jobs.push(job);
        threads.push(thread);
    }
    let folder = tempfile::tempdir()?;
    let one = disk(handles[..1].to_vec(), &folder.path().join("one"), args.batch)?;
    let two = disk(handles.clone(), &folder.path().join("two"), args.batch)?;
    let (mut one_driver, mut two_driver) = (one.1, two.1);
    let mut one_queues = std::mem::take(&mut one_driver.queues);
    let mut two_queues = std::mem::take(&mut two_driver.queues);
    let mut ratios = Vec::new();
    let (mut ones, mut twos) = (Vec::new(), Vec::new());
    for round in 0..=args.samples {
        let requests = if round == 0 { WARM_UP } else { args.requests };
        let (one_ns, two_ns);
        (one_queues, one_ns) = sample(&jobs[..1], one_queues, args.batch, requests)?;
        (two_queues, two_ns) = sample(&jobs, two_queues, args.batch, requests)?;
        if round > 0 {
            ratios.push(2.0 * one_ns / two_ns);
            ones.push(one_ns);
            twos.push(two_ns);
        }
    }
    let mut out = std::io::stdout().lock();
    let samples = ratios.len();
    for (what, values) in [
        ("one reactor, ns a request", &mut ones),
        ("two reactors, ns of one a request", &mut twos),
        ("work of two reactors / of one", &mut ratios),
    ] {
        values.sort_by(f64::total_cmp);
        let (low, high) = (values[0], values[samples - 1]);
        writeln!(
            out,
            "{what:<36} median {:.2}  ({low:.2} to {high:.2}, {samples} samples)",
            values[samples / 2]
        )?;
    }
    drop(jobs);
    for thread in threads {
        // One that panicked has said so.
        let _ = thread.join();
    }
    Ok(())
}

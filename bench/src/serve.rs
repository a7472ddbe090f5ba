//! `serve`: one virtio-blk or NVMe disk behind a vfio-user socket, from this program alone.
//!
//! Something for [`load`](crate::load) to drive on a machine that has no target running. Runs until it is killed; the
//! next one takes its socket over. Not a product: the target is `ringside`.

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use bdev::{
    Access, Bdev, Registry,
    types::{Malloc, MallocParams, Null, NullParams},
};
use clap::ValueEnum;
use reactor::{Config, CoreMask, Group, Mode, Reactors};
use vfu::{
    endpoint::{self, BuildModel, Listener, Spec},
    nvme::{
        self,
        controller::ControllerOptions,
        namespace::NamespaceOptions,
        pcie::{MAX_IO_QUEUES, NvmePci, NvmeSpec},
        subsystem::{Subsystem, SubsystemOptions},
    },
    virtio::{
        blk::{Blk, BlkSpec, Events},
        control::DoorbellMode,
        transport::{MAX_QUEUES, TransportOptions, VirtioPci},
    },
};

const NAME: &str = "disk";
/// For its owner only.
const SOCKET_MODE: u32 = 0o600;
/// As long as the target's own default.
const SPIN: Duration = Duration::from_micros(50);

/// What is behind the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Takes everything and gives nothing
    Null,
    /// Memory
    Malloc,
}

/// How kicks reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Doorbell {
    /// Messages, and a look now and then until the first
    Auto,
    /// A mapped page
    Mapped,
    /// Messages
    Trapped,
}

/// Serves one disk, for a load generator to drive.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// What is behind the disk
    #[arg(long, value_enum, default_value = "null")]
    bdev: Kind,
    /// Socket to make
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Core to run on; again for each further core
    #[arg(long, default_value = "0")]
    cpu: Vec<u32>,
    /// An NVMe controller with one namespace; its doorbells are mapped, unless they are to be trapped
    #[arg(long, conflicts_with = "packed_ring")]
    nvme: bool,
    /// Size in MiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    size_mib: u64,
    /// Bytes of a block
    #[arg(long, default_value_t = 512)]
    block_size: u32,
    /// Queues
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_QUEUES)))]
    queues: u16,
    /// Entries of a queue, a power of two
    #[arg(long, default_value_t = 1024, value_parser = parse_ring)]
    ring_size: u16,
    /// How kicks reach the disk
    #[arg(long, value_enum, default_value = "auto")]
    doorbell: Doorbell,
    /// Offer packed rings
    #[arg(long)]
    packed_ring: bool,
    /// Never sleep
    #[arg(long)]
    poll_only: bool,
}

fn parse_ring(text: &str) -> Result<u16, String> {
    let size: u16 = text.parse().map_err(|_not_a_number| "not a number of entries".to_owned())?;
    if size.is_power_of_two() && (2..=1024).contains(&size) {
        Ok(size)
    } else {
        Err("not a power of two up to 1024".to_owned())
    }
}

fn make(args: &Args) -> anyhow::Result<Arc<dyn Bdev>> {
    let block_size = args.block_size;
    let num_blocks = (args.size_mib << 20) / u64::from(block_size.max(1));
    Ok(match args.bdev {
        Kind::Malloc => Arc::new(Malloc::new(NAME.to_owned(), &MallocParams::new(block_size, num_blocks))?),
        Kind::Null => {
            let params =
                NullParams { name: NAME.to_owned(), block_size, num_blocks, ..NullParams::default() };
            Arc::new(Null::new(params).map_err(|error| anyhow::anyhow!("{error:?}"))?)
        }
    })
}

fn blk(args: &Args, registry: &Registry) -> anyhow::Result<(u16, BuildModel)> {
    let events = Arc::new(Events::default());
    let descriptor = Arc::new(registry.open(NAME, Access::ReadWrite, events.callback())?);
    let blk = BlkSpec { descriptor, events, num_queues: args.queues, queue_size: args.ring_size };
    let doorbell = match args.doorbell {
        Doorbell::Auto => DoorbellMode::Auto,
        Doorbell::Mapped => DoorbellMode::Mapped,
        Doorbell::Trapped => DoorbellMode::Trapped,
    };
    let transport =
        TransportOptions { doorbell, packed_ring: args.packed_ring, ..TransportOptions::default() };
    let model: BuildModel = Box::new(move |home, bus| {
        Box::new(VirtioPci::new(Blk::new(blk), transport, home.clone(), Arc::clone(bus)))
    });
    Ok((transport.vectors(args.queues), model))
}

fn nvme(args: &Args, registry: &Registry) -> anyhow::Result<(u16, BuildModel)> {
    let subsystem = Subsystem::new(SubsystemOptions::new("nqn.2014-08.org.nvmexpress:ringside-bench"));
    subsystem.add_namespace(registry, NAME, NamespaceOptions::default())?;
    let options = ControllerOptions {
        max_io_queues: args.queues.min(MAX_IO_QUEUES),
        max_queue_depth: args.ring_size,
        ..ControllerOptions::default()
    };
    let is_mappable = args.doorbell != Doorbell::Trapped;
    let spec = NvmeSpec { subsystem, ana: Arc::default(), options, is_mappable };
    let model: BuildModel =
        Box::new(move |home, bus| Box::new(NvmePci::new(spec, home.clone(), Arc::clone(bus))));
    Ok((nvme::pcie::vectors(options.max_io_queues), model))
}

/// Runs the subcommand. Ends only in an error.
///
/// # Errors
/// What was wrong, for people.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(io::stderr)
        .init();
    // The registry has a thread, which inherits the pinning of the thread that starts it: it comes first.
    let registry = Registry::new();
    registry.register(make(&args)?)?;
    let mask: CoreMask = args.cpu.iter().copied().collect();
    let mut config = Config::new(mask);
    config.mode = if args.poll_only { Mode::PollOnly } else { Mode::Adaptive { spin: SPIN } };
    let reactors = Reactors::start(config).context("--cpu")?;

    let (vectors, model) = if args.nvme { nvme(&args, &registry)? } else { blk(&args, &registry)? };
    let started = endpoint::start(Spec {
        name: NAME.to_owned(),
        listener: Listener::bind(&args.socket, SOCKET_MODE)?,
        reactors: reactors.handles().to_vec(),
        group: Group::new(NAME, mask),
        vectors,
        model,
    });
    // The error holds the message, which is not for other threads.
    started.map_err(|error| anyhow::anyhow!("the reactor does not answer: {error}"))?;
    writeln!(io::stdout(), "serving {:?} on {}", args.bdev, args.socket.display())?;
    loop {
        std::thread::park();
    }
}

//! A whole server in this process: reactors on threads of their own, a registry, endpoints.
//!
//! For tests, fuzzers and benches that have no target running. Its reactors are not pinned, so that many of them share
//! a small machine. Everything here may panic where the process is out of threads or descriptors: its callers would.

use std::{
    path::Path,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use bdev::{Access, Registry};
use reactor::{Clock, CoreMask, Group, Handle, Mode, Reactor, ReactorConfig};

use crate::{
    endpoint::{self, EndpointHandle, Listener, Spec},
    nvme::{
        self,
        controller::ControllerOptions,
        pcie::{NvmePci, NvmeSpec},
        subsystem::Subsystem,
    },
    virtio::{
        blk::{Blk, BlkSpec, Events},
        control::DoorbellMode,
        transport::{TransportOptions, VirtioPci},
    },
};

/// Short: on a loaded machine a reactor that spins keeps others from running.
const SPIN: Duration = Duration::from_micros(20);
/// For its owner only.
const SOCKET_MODE: u32 = 0o600;

/// A disk to serve.
#[derive(Clone, Copy, Debug)]
pub struct DiskOptions<'a> {
    /// The bdev behind it.
    pub bdev: &'a str,
    /// Queues.
    pub num_queues: u16,
    /// Entries of a queue.
    pub queue_size: u16,
    /// How kicks reach it.
    pub doorbell: DoorbellMode,
    /// Rings and interrupts; the doorbell in it does not count.
    pub transport: TransportOptions,
}

impl<'a> DiskOptions<'a> {
    /// A disk over this bdev, with usual queues.
    #[must_use]
    pub fn new(bdev: &'a str) -> Self {
        Self {
            bdev,
            num_queues: 4,
            queue_size: 128,
            doorbell: DoorbellMode::Auto,
            transport: TransportOptions::default(),
        }
    }
}

/// A server.
pub struct Server {
    registry: Arc<Registry>,
    reactors: Vec<Handle>,
    threads: Vec<JoinHandle<()>>,
    endpoints: Vec<EndpointHandle>,
}

fn start_reactor(core: u32) -> (Handle, JoinHandle<()>) {
    let (started, handle) = mpsc::channel();
    let thread = std::thread::Builder::new().name(format!("reactor_{core}")).spawn(move || {
        // Every other one never spins: what only the next look would have found is slept over there.
        let mode = if core.is_multiple_of(2) { Mode::Adaptive { spin: SPIN } } else { Mode::Interrupt };
        let config = ReactorConfig { mode, ..ReactorConfig::new(core, Clock::system()) };
        let mut reactor = Reactor::new(config).expect("descriptors for a reactor");
        started.send(reactor.handle()).expect("its maker waits");
        reactor.run();
    });
    let thread = thread.expect("one more thread");
    (handle.recv().expect("the reactor starts"), thread)
}

impl Server {
    /// A server with so many reactors and no bdevs.
    #[must_use]
    pub fn start(reactors: u32) -> Self {
        let (reactors, threads) = (0..reactors).map(start_reactor).unzip();
        let mut server = Self::on(reactors);
        server.threads = threads;
        server
    }

    /// A server without bdevs on reactors that its maker runs, and stops when it is dropped.
    #[must_use]
    pub fn on(reactors: Vec<Handle>) -> Self {
        Self { registry: Registry::new(), reactors, threads: Vec::new(), endpoints: Vec::new() }
    }

    /// The bdevs.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The reactors.
    #[must_use]
    pub fn reactors(&self) -> &[Handle] {
        &self.reactors
    }

    /// Serves a disk on `socket`.
    pub fn serve(&mut self, socket: &Path, options: &DiskOptions<'_>) -> EndpointHandle {
        let &DiskOptions { bdev, num_queues, queue_size, doorbell, transport } = options;
        let transport = TransportOptions { doorbell, ..transport };
        let events = Arc::new(Events::default());
        let read_only = self.registry.get(bdev).expect("the bdev was registered").info().read_only;
        let access = if read_only { Access::Read } else { Access::ReadWrite };
        let descriptor =
            Arc::new(self.registry.open(bdev, access, events.callback()).expect("nobody claims it"));
        let blk = BlkSpec { descriptor, events, num_queues, queue_size };
        let mask: CoreMask = self.reactors.iter().map(Handle::core).collect();
        let name = socket.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let endpoint = endpoint::start(Spec {
            group: Group::new(name.clone(), mask),
            name,
            listener: Listener::bind(socket, SOCKET_MODE).expect("a socket of our own"),
            reactors: self.reactors.clone(),
            vectors: transport.vectors(num_queues),
            model: Box::new(move |home, bus| {
                Box::new(VirtioPci::new(Blk::new(blk), transport, home.clone(), Arc::clone(bus)))
            }),
        });
        let endpoint = endpoint.expect("a running reactor");
        self.endpoints.push(endpoint.clone());
        endpoint
    }

    /// Takes an endpoint over that was started on these reactors: it is deleted with the others.
    pub fn adopt(&mut self, endpoint: EndpointHandle) {
        self.endpoints.push(endpoint);
    }

    /// Serves a controller of an NVMe subsystem on `socket`; the guest may map the doorbells if `is_mappable`.
    pub fn serve_nvme(
        &mut self,
        socket: &Path,
        subsystem: &Arc<Subsystem>,
        options: ControllerOptions,
        is_mappable: bool,
    ) -> EndpointHandle {
        let (subsystem, ana) = (Arc::clone(subsystem), Arc::default());
        let spec = NvmeSpec { subsystem, ana, options, is_mappable };
        let mask: CoreMask = self.reactors.iter().map(Handle::core).collect();
        let name = socket.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let endpoint = endpoint::start(Spec {
            group: Group::new(name.clone(), mask),
            name,
            listener: Listener::bind(socket, SOCKET_MODE).expect("a socket of our own"),
            reactors: self.reactors.clone(),
            vectors: nvme::pcie::vectors(options.max_io_queues),
            model: Box::new(move |home, bus| Box::new(NvmePci::new(spec, home.clone(), Arc::clone(bus)))),
        });
        let endpoint = endpoint.expect("a running reactor");
        self.endpoints.push(endpoint.clone());
        endpoint
    }

    /// Pollers that panicked, on all reactors.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.reactors.iter().map(|reactor| reactor.stats().faults).sum()
    }

    /// Deletes every endpoint and waits until they are gone; false when one of them is not after `timeout`.
    #[must_use]
    pub fn delete_endpoints(&mut self, timeout: Duration) -> bool {
        let (gone, wait) = mpsc::channel();
        let endpoints = std::mem::take(&mut self.endpoints);
        for endpoint in &endpoints {
            let gone = gone.clone();
            endpoint.delete(move || {
                // Nobody waits any more after the timeout.
                let _ = gone.send(());
            });
        }
        endpoints.iter().all(|_| wait.recv_timeout(timeout).is_ok())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.reactors.iter().for_each(Handle::stop);
        for thread in self.threads.drain(..) {
            // A reactor that panicked has said so.
            let _ = thread.join();
        }
    }
}

//! The RPC thread and the servers on it. The target starts one thread, then a server on its public socket; while it
//! loads a configuration file it may have another one on a temporary socket.
//!
//! The thread inherits the CPU affinity of the one that starts it: start it before that one pins itself to a core.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::conn::{self, Terms};
use crate::limits::{CONNECTIONS_MAX, STOP_TIME_MAX, UNREAD_TIME_MAX};
use crate::lock::SocketLock;
use crate::table::Dispatcher;

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another process serves the socket.
    #[error("RPC Unix domain socket path {} in use. Specify another.", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// No path was given.
    #[error("RPC Unix domain socket path is empty")]
    EmptyPath,
    /// The path does not fit into a socket address.
    #[error("RPC Unix domain socket path {} is too long (107 bytes at most)", path.display())]
    PathTooLong {
        /// The socket.
        path: PathBuf,
    },
    /// There is a file of another type.
    #[error("RPC Unix domain socket path {} exists and is not a socket", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The lock file cannot be made or locked.
    #[error("Cannot open lock file {}: {reason}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The C library's text.
        reason: String,
    },
    /// The socket cannot be made.
    #[error("Cannot listen on RPC Unix domain socket {}: {reason}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The C library's text.
        reason: String,
    },
}

/// The RPC thread has ended, or what it was to run has panicked.
#[derive(Debug, thiserror::Error)]
#[error("the RPC thread did not finish the call")]
pub struct Unfinished;

/// The thread that runs all servers and handlers. Dropping it ends the thread; stop its servers first.
#[derive(Debug)]
pub struct RpcThread {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl RpcThread {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread, or no descriptors for its event loop, left.
    pub fn start() -> io::Result<RpcThread> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name("rpc".into()).spawn(move || {
            // An error means that the RpcThread was dropped: an end like any other.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(RpcThread { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Runs a future on the RPC thread and waits for it. To be called from another thread.
    ///
    /// # Errors
    /// The future panicked.
    pub fn run<F>(&self, future: F) -> Result<F::Output, Unfinished>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        self.handle.spawn(async move {
            // The receiver waits below for as long as the future runs.
            let _ = send.send(future.await);
        });
        receive.recv().map_err(|_ended| Unfinished)
    }

    /// Runs a future on the RPC thread without waiting for it.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(future);
    }

    /// Starts a server. When this returns clients can connect.
    ///
    /// # Errors
    /// See [`ServerError`].
    pub fn serve(&self, listen: Listen, dispatcher: Dispatcher) -> Result<Server, ServerError> {
        let Listen { path, mode, connections_max, unread_time_max } = listen;
        let lock = SocketLock::acquire(&path)?;
        let listener = lock.listen(mode)?;
        let (stop, stopped) = watch::channel(false);
        let (ended, end) = std::sync::mpsc::sync_channel(1);
        let listener = {
            let _thread = self.handle.enter();
            UnixListener::from_std(listener)
        };
        let listener = listener
            .map_err(|error| ServerError::Listen { path: path.clone(), reason: error.to_string() })?;
        self.handle.spawn(async move {
            let terms = Terms { stop: stopped, unread_time_max };
            accept(listener, dispatcher, terms, connections_max).await;
            // Fails if the server was not waited for.
            let _ = ended.send(());
        });
        tracing::info!(path = %path.display(), "RPC server listens");
        Ok(Server { path, stop, end, _lock: lock })
    }
}

impl Drop for RpcThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the RPC thread panicked");
        }
    }
}

/// Where and how a server listens.
#[derive(Clone, Debug)]
pub struct Listen {
    path: PathBuf,
    mode: u32,
    connections_max: usize,
    unread_time_max: Duration,
}

impl Listen {
    /// On this socket, with mode 0600.
    pub fn on(path: impl Into<PathBuf>) -> Listen {
        Listen {
            path: path.into(),
            mode: 0o600,
            connections_max: CONNECTIONS_MAX,
            unread_time_max: UNREAD_TIME_MAX,
        }
    }

    /// With another mode. SPDK leaves it to the umask.
    pub fn mode(mut self, mode: u32) -> Listen {
        self.mode = mode;
        self
    }

    /// With another number of connections served at once than [`CONNECTIONS_MAX`].
    pub fn connections_max(mut self, connections_max: usize) -> Listen {
        self.connections_max = connections_max;
        self
    }

    /// With another patience for clients that do not read than [`UNREAD_TIME_MAX`].
    pub fn unread_time_max(mut self, unread_time_max: Duration) -> Listen {
        self.unread_time_max = unread_time_max;
        self
    }
}

/// A server that runs. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    stop: watch::Sender<bool>,
    end: std::sync::mpsc::Receiver<()>,
    _lock: SocketLock,
}

impl Server {
    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Stops: no client is accepted any more, those connected get the replies that are ready, the socket and its
    /// lock are removed. Calls under way go on without a client. Not to be called from a handler.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        // An error means that the RPC thread has ended, and the connections with it.
        let _ = self.end.recv();
        tracing::info!(path = %self.path.display(), "RPC server stopped");
    }
}

/// Accepts clients while there are slots; the kernel keeps the others waiting.
async fn accept(listener: UnixListener, dispatcher: Dispatcher, mut terms: Terms, connections_max: usize) {
    let slots = Arc::new(Semaphore::new(connections_max));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let slot = tokio::select! {
            slot = Arc::clone(&slots).acquire_owned() => slot.expect("nobody closes the semaphore"),
            _ = terms.stop.wait_for(|stop| *stop) => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = terms.stop.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (dispatcher, terms) = (dispatcher.clone(), terms.clone());
                connections.spawn(async move {
                    if let Err(reason) = conn::serve(stream, dispatcher, terms).await {
                        tracing::debug!(%reason, "RPC connection ended early");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely. The client stays in the backlog.
                tracing::warn!(%error, "cannot accept an RPC client");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(STOP_TIME_MAX, all).await.is_err() {
        tracing::warn!("closing RPC connections that do not end");
    }
}

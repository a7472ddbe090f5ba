//! One connection: reads requests, starts them, writes replies in the order in which they are ready.
//!
//! The connection is one task of the RPC thread. It never waits for its client while others wait for it: reading
//! stops at a request that may not run yet, writing stops at a full socket, and what waits in memory is bounded
//! ([`crate::limits`]). A client that has closed its sending side gets every reply it is owed before the connection
//! closes; SPDK drops those that are not ready at that moment.

use std::future::Future;
use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::exec::{Progress, Reply};
use crate::frame::Framer;
use crate::limits::{
    GONE_CHECK_INTERVAL, IN_FLIGHT_MAX, LINGER_BYTES_MAX, LINGER_TIME_MAX, READ_BYTES, REQUESTS_PER_TURN,
    UNSENT_BYTES_MAX,
};
use crate::offline;
use crate::scan::Fault;
use crate::table::Dispatcher;

/// What the connection still does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Reads and answers.
    Serving,
    /// The client sends no more; the requests that were read still run.
    EndOfInput,
    /// The client sent what cannot be read. The replies that it is owed are still sent.
    Refused,
    /// The server stops. The same.
    Stopping,
}

/// Why a connection ended before its client was done with it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("socket error: {0}")]
    Socket(#[from] io::Error),
    #[error("client does not read its replies")]
    Unread,
    #[error("client has gone")]
    Gone,
}

/// Why no further request was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Started {
    /// None is complete, or none may be started any more.
    All,
    /// The other connections have their turn first.
    Turn,
    /// The servers are paused.
    Paused,
    /// [`IN_FLIGHT_MAX`].
    Full,
}

/// What a server says about all of its connections.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// Turns true when the server stops.
    pub(crate) stop: watch::Receiver<bool>,
    /// How long the socket may stay full.
    pub(crate) unread_time_max: Duration,
}

struct Connection {
    stream: UnixStream,
    dispatcher: Dispatcher,
    framer: Framer,
    unsent: Unsent,
    in_flight: usize,
    finished: mpsc::UnboundedReceiver<Reply>,
    finish: mpsc::UnboundedSender<Reply>,
    phase: Phase,
    /// Since when the socket has been full.
    full_since: Option<Instant>,
}

/// Serves one client until it is done, or the server stops.
pub(crate) async fn serve(
    stream: UnixStream,
    dispatcher: Dispatcher,
    mut terms: Terms,
) -> Result<(), Broken> {
    let (finish, finished) = mpsc::unbounded_channel();
    let mut connection = Connection {
        stream,
        dispatcher,
        framer: Framer::new(),
        unsent: Unsent::default(),
        in_flight: 0,
        finished,
        finish,
        phase: Phase::Serving,
        full_since: None,
    };
    while !connection.is_done() {
        connection.turn(&mut terms).await?;
    }
    if connection.phase == Phase::Refused {
        connection.linger().await;
    }
    Ok(())
}

impl Connection {
    fn is_done(&self) -> bool {
        let owes = self.in_flight > 0 || !self.unsent.is_empty();
        match self.phase {
            Phase::Serving => false,
            Phase::EndOfInput => !owes && !self.framer.is_ready(),
            Phase::Refused | Phase::Stopping => !owes,
        }
    }

    /// Does what can be done now, then waits for the next thing to happen.
    async fn turn(&mut self, terms: &mut Terms) -> Result<(), Broken> {
        let started = self.start_requests()?;
        self.write()?;
        if self.is_done() {
            return Ok(());
        }
        let stage = self.dispatcher.stage().clone();
        // What was read goes before what was not, or a client could fill the memory.
        let reads = self.phase == Phase::Serving && started == Started::All;
        let unread_at = self.full_since.map_or_else(Instant::now, |since| since + terms.unread_time_max);
        tokio::select! {
            biased;
            Some(reply) = self.finished.recv() => self.finish_request(reply)?,
            ready = self.stream.writable(), if !self.unsent.is_empty() => ready?,
            () = sleep_until(unread_at), if self.full_since.is_some() => return Err(Broken::Unread),
            () = tokio::task::yield_now(), if started == Started::Turn => {}
            ready = self.stream.readable(), if reads => {
                ready?;
                self.read()?;
            }
            () = stage.open(), if started == Started::Paused => {}
            // An error means that the server has gone altogether, which is a stop too.
            _ = terms.stop.wait_for(|stop| *stop), if self.phase != Phase::Stopping => {
                self.phase = Phase::Stopping;
            }
            () = sleep(GONE_CHECK_INTERVAL), if self.phase != Phase::Serving => {
                if self.is_client_gone()? {
                    return Err(Broken::Gone);
                }
            }
        }
        Ok(())
    }

    /// Starts the requests that are complete, up to a turn's worth.
    fn start_requests(&mut self) -> Result<Started, Broken> {
        for _ in 0..REQUESTS_PER_TURN {
            if matches!(self.phase, Phase::Refused | Phase::Stopping) {
                return Ok(Started::All);
            }
            match self.framer.scan() {
                Ok(true) if self.in_flight >= IN_FLIGHT_MAX => return Ok(Started::Full),
                Ok(true) if self.dispatcher.stage().is_paused() => return Ok(Started::Paused),
                Ok(true) => {}
                Ok(false) => return Ok(Started::All),
                Err(fault) => {
                    self.refuse(fault)?;
                    return Ok(Started::All);
                }
            }
            let progress = match self.framer.take() {
                Ok(value) => self.dispatcher.start(value),
                Err(fault) => {
                    self.refuse(fault)?;
                    return Ok(Started::All);
                }
            };
            match progress {
                Progress::Done(reply) => self.unsent.push(reply)?,
                Progress::Later(later) => self.run(later),
            }
        }
        Ok(Started::Turn)
    }

    /// A handler runs to its end whether or not the client stays, hence in a task of its own.
    fn run(&mut self, later: impl Future<Output = Reply> + Send + 'static) {
        self.in_flight += 1;
        let finish = self.finish.clone();
        tokio::spawn(async move {
            // Fails if the connection has ended; nobody waits for the reply then.
            let _ = finish.send(later.await);
        });
    }

    fn finish_request(&mut self, reply: Reply) -> Result<(), Broken> {
        self.in_flight -= 1;
        self.unsent.push(reply)?;
        while let Ok(reply) = self.finished.try_recv() {
            self.in_flight -= 1;
            self.unsent.push(reply)?;
        }
        Ok(())
    }

    /// There is no place to go on in what the client sends. SPDK closes without a word; here bad syntax is answered
    /// first, as JSON-RPC 2.0 asks. A request beyond a limit is dropped as SPDK drops it.
    fn refuse(&mut self, fault: Fault) -> Result<(), Broken> {
        tracing::warn!(?fault, "closing an RPC connection whose input cannot be read");
        if fault == Fault::Syntax {
            self.unsent.push(Some(offline::not_json()))?;
        }
        self.phase = Phase::Refused;
        Ok(())
    }

    fn read(&mut self) -> Result<(), Broken> {
        let buffer = self.framer.buffer();
        buffer.reserve(READ_BYTES);
        match self.stream.try_read_buf(buffer) {
            Ok(0) => {
                self.phase = Phase::EndOfInput;
                if let Err(fault) = self.framer.end_of_stream() {
                    self.refuse(fault)?;
                }
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes what the socket takes.
    fn write(&mut self) -> Result<(), Broken> {
        while !self.unsent.is_empty() {
            match self.stream.try_write(self.unsent.bytes()) {
                Ok(length) => {
                    self.unsent.sent(length);
                    self.full_since = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.full_since.get_or_insert_with(Instant::now);
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Whether both directions are closed. After the end of input a read tells no more, and a client that gives up
    /// waiting (for `framework_wait_init`, say) would hold its slot until its reply is there.
    fn is_client_gone(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now))?;
        Ok(fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR))
    }

    /// Closes in order: the client reads the end of the stream after its replies. A close with bytes of the client
    /// unread would show it a reset instead.
    async fn linger(mut self) {
        if self.stream.shutdown().await.is_err() {
            return;
        }
        let discard = async {
            let mut bytes = 0;
            let mut buffer = Vec::with_capacity(READ_BYTES);
            while bytes < LINGER_BYTES_MAX && self.stream.readable().await.is_ok() {
                buffer.clear();
                match self.stream.try_read_buf(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => bytes += length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => break,
                }
            }
        };
        // Bounded in time and in bytes; what then is still unread is the client's loss.
        let _ = timeout(LINGER_TIME_MAX, discard).await;
    }
}

/// Replies that the socket has not taken.
#[derive(Debug, Default)]
struct Unsent {
    bytes: Vec<u8>,
    start: usize,
}

impl Unsent {
    fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn push(&mut self, reply: Reply) -> Result<(), Broken> {
        let Some(reply) = reply else { return Ok(()) };
        if self.bytes().len() > UNSENT_BYTES_MAX {
            return Err(Broken::Unread);
        }
        if self.is_empty() {
            self.bytes = reply;
            self.start = 0;
        } else {
            self.bytes.extend_from_slice(&reply);
        }
        Ok(())
    }

    fn sent(&mut self, length: usize) {
        self.start += length;
        if self.is_empty() {
            self.bytes = Vec::new();
            self.start = 0;
        } else if self.start > UNSENT_BYTES_MAX {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }
}

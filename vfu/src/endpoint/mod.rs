//! An endpoint: one socket, one device, one vfio-user client at a time.
//!
//! A poller on its home reactor, asleep until its socket has something. It accepts a client, serves it ([`session`]),
//! and when the client is gone puts the device back to power-on and waits for the next. Further clients wait in the
//! socket's backlog: a VMM that restarts may come back before the end of its old connection was seen.

mod access;
mod features;
mod info;
mod iofds;
mod irqs;
mod listener;
mod memory;
mod messages;
mod session;
mod throttle;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reactor::{Handle, Interest, Park, Poller, PollerCx, PollerSpec, Spin, Tick, Waker, Watch, Work};
use rustix::net::{SocketFlags, accept_with};

pub use listener::{BACKLOG, BindError, Listener, SocketOwner};
use session::{End, Session};
pub use session::{HELD_COMMANDS_MAX, WRITE_ANSWER_MAX};
pub use throttle::LOG_LINES_PER_SECOND;
use throttle::Throttle;

use crate::{
    device::{Bus, DeviceDescription, DeviceModel, Home, Progress},
    function::Function,
    last_words::LastWords,
    points::{CLIENT_CONNECT, CLIENT_DISCONNECT, ENDPOINT},
};

/// How often a queue is sent again to a reactor whose mailbox was full.
const RETRY_PERIOD: Duration = Duration::from_millis(1);

/// Makes a device model on the endpoint's reactor.
pub type BuildModel = Box<dyn FnOnce(&Home, &Arc<Bus>) -> Box<dyn DeviceModel> + Send>;

/// What an endpoint is made of.
pub struct Spec {
    /// Its name, also the last part of its socket's path.
    pub name: String,
    /// Its socket, bound already.
    pub listener: Listener,
    /// The reactors of its cpumask; the first is its home.
    pub reactors: Vec<Handle>,
    /// The endpoint, as SPDK's clients see a thread.
    pub group: reactor::Group,
    /// MSI-X vectors of the device.
    pub vectors: u16,
    /// Makes the device.
    pub model: BuildModel,
}

/// What has become of an endpoint, for its owner on another thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It waits for a client.
    Listening,
    /// A client is connected.
    Connected,
    /// It is gone, as asked for or after a fault.
    Gone,
}

/// What an endpoint is and does, for those who ask over RPC.
#[derive(Clone, Debug)]
pub struct Description {
    /// Whether it has a client.
    pub state: State,
    /// The client's process, as the kernel knows it.
    pub client_pid: Option<i32>,
    /// The device.
    pub device: DeviceDescription,
}

type GoneHook = Box<dyn FnOnce() + Send>;
type Question = Box<dyn FnOnce(Description) + Send>;

/// What an endpoint is told to do with its queues.
enum Order {
    /// Deal them to these reactors.
    Place(Vec<Handle>),
    /// Move one.
    Move(u16, Handle),
}

struct Shared {
    state: Mutex<(State, Vec<GoneHook>)>,
    questions: Mutex<Vec<Question>>,
    /// There are questions: the one thing that is looked at on each poll.
    is_asked: AtomicBool,
    delete: AtomicBool,
    orders: Mutex<Vec<Order>>,
    waker: Mutex<Option<Waker>>,
}

impl Shared {
    fn set(&self, state: State) {
        let hooks = {
            let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            guard.0 = state;
            if state == State::Gone { std::mem::take(&mut guard.1) } else { Vec::new() }
        };
        if state == State::Gone {
            // Nobody answers any more; who asked notices that the question is gone.
            self.take_questions();
        }
        for hook in hooks {
            hook();
        }
    }

    fn take_questions(&self) -> Vec<Question> {
        std::mem::take(&mut *self.questions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker.wake();
        }
    }

    fn order(&self, order: Order) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        self.wake();
    }
}

/// The owner's hold on an endpoint. Dropping it does not delete the endpoint.
#[derive(Clone)]
pub struct EndpointHandle {
    shared: Arc<Shared>,
    path: PathBuf,
}

impl EndpointHandle {
    /// What has become of it.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// The path of its socket.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Tells it to go. `gone` is called on its reactor when every queue has stopped, the socket is removed and the device
    /// is dropped; at once when it is gone already.
    pub fn delete(&self, gone: impl FnOnce() + Send + 'static) {
        let mut guard = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.0 == State::Gone {
            drop(guard);
            gone();
            return;
        }
        guard.1.push(Box::new(gone));
        drop(guard);
        self.shared.delete.store(true, Ordering::Release);
        self.shared.wake();
    }

    /// Deals the queues to these reactors, under load if need be; nothing is lost. The endpoint itself, which serves the
    /// client's messages, stays where it is.
    pub fn place(&self, reactors: Vec<Handle>) {
        self.shared.order(Order::Place(reactors));
    }

    /// Moves one queue to a reactor. Ignored if there is no such queue.
    pub fn move_queue(&self, queue: u16, to: Handle) {
        self.shared.order(Order::Move(queue, to));
    }

    /// Asks what it is and does. `answer` is called on its reactor, or dropped when the endpoint is gone.
    pub fn describe(&self, answer: impl FnOnce(Description) + Send + 'static) {
        // Under the lock of the state: an endpoint that goes now takes the question along.
        let guard = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.0 != State::Gone {
            self.shared.questions.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(answer));
        }
        drop(guard);
        self.shared.is_asked.store(true, Ordering::Release);
        self.shared.wake();
    }
}

/// Starts an endpoint on its home reactor.
///
/// # Errors
/// The reactor's, when it is overloaded with messages or stopping; the socket is then removed again.
pub fn start(spec: Spec) -> Result<EndpointHandle, reactor::SendError> {
    crate::dma::start_releaser();
    let shared = Arc::new(Shared {
        state: Mutex::new((State::Listening, Vec::new())),
        questions: Mutex::default(),
        is_asked: AtomicBool::new(false),
        delete: AtomicBool::new(false),
        orders: Mutex::default(),
        waker: Mutex::new(None),
    });
    let handle = EndpointHandle { shared: Arc::clone(&shared), path: spec.listener.path().to_owned() };
    let home = spec.reactors[0].clone();
    home.send(Box::new(move |reactor| {
        let faulted = Arc::clone(&shared);
        let poller = PollerSpec::new(format!("vfu_{}", spec.name), &spec.group)
            .spin(Spin::None)
            .on_fault(move |_| faulted.set(State::Gone));
        reactor.add(poller, |cx| Box::new(Endpoint::new(spec, shared, cx)));
    }))?;
    Ok(handle)
}

enum Phase {
    /// Waiting for a client.
    Listening,
    /// Serving one.
    Serving(Box<Session>),
    /// The client is gone or the endpoint is told to go; the device is being stopped.
    Stopping,
}

struct Endpoint {
    name: String,
    listener: Listener,
    listener_watch: Watch,
    function: Function,
    phase: Phase,
    log: Throttle,
    /// The process of the client that is served.
    client_pid: Option<i32>,
    cx: PollerCx,
    shared: Arc<Shared>,
    /// That it is gone; must stay the last field.
    last_words: LastWords,
}

impl Endpoint {
    fn new(spec: Spec, shared: Arc<Shared>, cx: &PollerCx) -> Self {
        let waker = cx.waker();
        *shared.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
        let bus = Arc::new(Bus::new(spec.vectors));
        let home = Home { waker, reactors: spec.reactors, group: spec.group };
        let model = (spec.model)(&home, &bus);
        let listener_watch =
            cx.watch(spec.listener.fd(), Interest::Read).expect("the reactor can watch one more descriptor");
        Self {
            name: spec.name,
            listener: spec.listener,
            listener_watch,
            function: Function::new(bus, model),
            phase: Phase::Listening,
            log: Throttle::new(),
            client_pid: None,
            cx: cx.clone(),
            shared,
            last_words: LastWords::default(),
        }
    }

    fn listen(&mut self, interest: Interest) {
        if let Err(error) = self.listener_watch.set_interest(interest) {
            tracing::error!(endpoint = self.name, %error, "the endpoint's socket can no longer be watched");
        }
    }

    /// Does what its owner has told it to do with its queues.
    fn obey(&mut self) {
        let orders = std::mem::take(&mut *self.shared.orders.lock().unwrap_or_else(PoisonError::into_inner));
        for order in orders {
            match order {
                Order::Place(reactors) => self.function.model().place(&reactors),
                Order::Move(queue, to) => {
                    if !self.function.model().move_queue(queue, &to) {
                        tracing::warn!(endpoint = self.name, queue, "no such queue to move");
                    }
                }
            }
        }
    }

    fn accept(&mut self) -> Work {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match accept_with(self.listener.fd(), flags) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => return Work::Idle,
            Err(error) => {
                // Out of descriptors, most likely. The client waits in the backlog; the next wake-up tries again.
                self.log.log(
                    &self.name,
                    || tracing::error!(endpoint = self.name, %error, "accepting a client failed"),
                );
                return Work::Idle;
            }
        };
        let peer = rustix::net::sockopt::socket_peercred(&socket);
        self.client_pid = peer.ok().map(|peer| peer.pid.as_raw_pid());
        self.trace(CLIENT_CONNECT);
        match Session::new(&self.name, socket, &self.cx) {
            Ok(session) => {
                self.listen(Interest::None);
                self.phase = Phase::Serving(Box::new(session));
                self.shared.set(State::Connected);
                self.log.log(&self.name, || tracing::info!(endpoint = self.name, "client connected"));
            }
            Err(error) => {
                tracing::error!(endpoint = self.name, %error, "the client's socket cannot be watched");
            }
        }
        Work::Busy
    }

    fn trace(&self, point: u8) {
        if let Some(pid) = self.client_pid {
            ENDPOINT.record_text(point, pid.unsigned_abs().into(), &self.name);
        }
    }

    fn stop_device(&mut self) {
        self.trace(CLIENT_DISCONNECT);
        self.phase = Phase::Stopping;
        self.function.bus().remote.close();
        self.client_pid = None;
        self.function.reset();
        self.function.forget_client();
        // Queues keep the windows they work with until they have stopped; nobody gets new ones.
        self.function.bus().windows.clear();
        self.function.bus().irqs.release();
    }

    /// Answers those who ask. Nobody does on most polls.
    fn answer(&self) {
        // The flag falls before the questions are taken: one that comes in between raises it again.
        if !self.shared.is_asked.load(Ordering::Relaxed)
            || !self.shared.is_asked.swap(false, Ordering::AcqRel)
        {
            return;
        }
        for answer in self.shared.take_questions() {
            let state = match self.phase {
                Phase::Serving(_) => State::Connected,
                Phase::Listening | Phase::Stopping => State::Listening,
            };
            let device = self.function.model_ref().describe();
            answer(Description { state, client_pid: self.client_pid, device });
        }
    }

    fn stopping(&mut self) -> Work {
        if self.function.progress() == Progress::Pending {
            return Work::Idle;
        }
        if self.shared.delete.load(Ordering::Acquire) {
            tracing::info!(endpoint = self.name, "endpoint deleted");
            self.listener.remove();
            let shared = Arc::clone(&self.shared);
            self.last_words.set(move || shared.set(State::Gone));
            return Work::Done;
        }
        self.phase = Phase::Listening;
        self.listen(Interest::Read);
        self.shared.set(State::Listening);
        Work::Busy
    }
}

impl Poller for Endpoint {
    fn poll(&mut self, now: Tick) -> Work {
        self.obey();
        // A queue may have failed, or the disk may have changed: that has no other caller than us.
        let _ = self.function.progress();
        self.answer();
        if self.function.model_ref().is_faulted() && !self.shared.delete.swap(true, Ordering::AcqRel) {
            tracing::error!(
                endpoint = self.name,
                "a part of the device has panicked; the endpoint is closed"
            );
        }
        let delete = self.shared.delete.load(Ordering::Acquire);
        match &mut self.phase {
            Phase::Stopping => self.stopping(),
            _ if delete => {
                self.stop_device();
                self.stopping()
            }
            Phase::Listening => self.accept(),
            Phase::Serving(session) => match session.serve(&mut self.function, &mut self.log, now) {
                Ok(work) => work,
                Err(end) => {
                    self.log.log(&self.name, || match end {
                        End::Closed => tracing::info!(endpoint = self.name, "client disconnected"),
                        end => tracing::warn!(endpoint = self.name, reason = %end, "client dropped"),
                    });
                    self.stop_device();
                    self.stopping()
                }
            },
        }
    }

    fn park(&mut self, now: Tick) -> Park {
        // Sockets are watched level-triggered. What comes by the waker counts from now on and not from the last poll
        // on, so it is looked at once more: what happened behind the device, and the wish to delete.
        let settled = self.function.progress() == Progress::Done;
        let goes_on = match &self.phase {
            Phase::Stopping => settled,
            Phase::Serving(session) => {
                (settled && session.is_waiting())
                    || (session.has_room() && self.function.bus().remote.has_orders())
            }
            Phase::Listening => false,
        };
        let delete = self.shared.delete.load(Ordering::Acquire) && !matches!(self.phase, Phase::Stopping);
        let told = self.shared.is_asked.load(Ordering::Acquire)
            || !self.shared.orders.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if goes_on || delete || told {
            Park::Ready
        } else if settled {
            Park::Wait
        } else {
            // Queues wake us when they have followed; but one whose reactor had no room for it has to be sent again.
            let retry = now.after(self.cx.clock().ticks(RETRY_PERIOD));
            match &self.phase {
                Phase::Serving(session) => Park::Until(session.deadline().map_or(retry, |at| at.min(retry))),
                _ => Park::Until(retry),
            }
        }
    }
}

#[cfg(test)]
mod tests;

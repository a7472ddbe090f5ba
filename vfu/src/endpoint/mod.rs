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
mod ties;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reactor::{
    Group, Handle, Interest, Park, Poller, PollerCx, PollerSpec, Reactor, Spin, Tick, Waker, Watch, Work,
};
use rustix::net::{SocketFlags, accept_with};

pub use listener::{BACKLOG, BindError, Listener, SocketOwner};
pub use session::{DMA_ANSWER_MAX, HELD_COMMANDS_MAX, WRITE_ANSWER_MAX};
use session::{End, Session};
pub use throttle::LOG_LINES_PER_SECOND;
use throttle::Throttle;
use ties::Ties;

use crate::{
    device::{Bus, DeviceDescription, DeviceModel, Home, HomeWaker, Progress},
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
    pub group: Group,
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
    /// client's messages, goes to the first of them.
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
        let poller = poller_spec(&spec.name, &spec.group, &shared);
        reactor.add(poller, |cx| Box::new(Endpoint::new(spec, shared, cx)));
    }))?;
    Ok(handle)
}

fn poller_spec(name: &str, group: &Group, shared: &Arc<Shared>) -> PollerSpec {
    let faulted = Arc::clone(shared);
    PollerSpec::new(format!("vfu_{name}"), group).spin(Spin::None).on_fault(move |_| faulted.set(State::Gone))
}

enum Phase {
    /// Waiting for a client.
    Listening,
    /// Serving one.
    Serving(Box<Session>, Ties),
    /// The client is gone or the endpoint is told to go; the device is being stopped.
    Stopping,
}

/// What an endpoint takes along when it moves to another reactor.
struct Baggage {
    name: String,
    group: Group,
    listener: Listener,
    function: Function,
    log: Throttle,
    /// The process of the client that is served.
    client_pid: Option<i32>,
    home: HomeWaker,
    shared: Arc<Shared>,
    /// That it is gone; must stay the last field.
    last_words: LastWords,
}

impl Baggage {
    /// Goes on at another reactor, with the session that is served.
    fn arrive(self, session: Option<Box<Session>>, reactor: &mut Reactor) {
        let spec = poller_spec(&self.name, &self.group, &self.shared);
        reactor.add(spec, |cx| {
            let mut endpoint = Endpoint::on(self, cx);
            endpoint.its.function.model().follow_home(&cx.handle());
            match session.map(|session| (session.tie(cx), session)) {
                None => {}
                Some((Ok(ties), session)) => {
                    endpoint.listen(Interest::None);
                    endpoint.phase = Phase::Serving(session, ties);
                }
                Some((Err(error), _)) => {
                    tracing::error!(endpoint = endpoint.its.name, %error, "the client cannot be watched here");
                    endpoint.stop_device();
                }
            }
            Box::new(endpoint)
        });
    }
}

struct Endpoint {
    listener_watch: Watch,
    phase: Phase,
    cx: PollerCx,
    /// Where it goes, as soon as it is not stopping.
    moving_to: Option<Handle>,
    /// Must stay the last field, for its last words.
    its: Baggage,
}

impl Endpoint {
    fn new(spec: Spec, shared: Arc<Shared>, cx: &PollerCx) -> Self {
        let bus = Arc::new(Bus::new(spec.vectors));
        let waker = HomeWaker::new(cx.waker());
        let home = Home { waker: waker.clone(), reactors: spec.reactors, group: spec.group.clone() };
        let model = (spec.model)(&home, &bus);
        let its = Baggage {
            name: spec.name,
            group: spec.group,
            listener: spec.listener,
            function: Function::new(bus, model),
            log: Throttle::new(),
            client_pid: None,
            home: waker,
            shared,
            last_words: LastWords::default(),
        };
        Self::on(its, cx)
    }

    /// The endpoint without a client on the reactor of this poller.
    fn on(its: Baggage, cx: &PollerCx) -> Self {
        let waker = cx.waker();
        *its.shared.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker.clone());
        its.home.moved(waker);
        let listener_watch =
            cx.watch(its.listener.fd(), Interest::Read).expect("the reactor can watch one more descriptor");
        Self { listener_watch, phase: Phase::Listening, cx: cx.clone(), moving_to: None, its }
    }

    fn listen(&mut self, interest: Interest) {
        if let Err(error) = self.listener_watch.set_interest(interest) {
            tracing::error!(endpoint = self.its.name, %error, "the endpoint's socket can no longer be watched");
        }
    }

    /// Does what its owner has told it to do with its queues.
    fn obey(&mut self) {
        let orders =
            std::mem::take(&mut *self.its.shared.orders.lock().unwrap_or_else(PoisonError::into_inner));
        for order in orders {
            match order {
                Order::Place(reactors) => {
                    self.its.function.model().place(&reactors);
                    let first = &reactors[0];
                    self.moving_to = (first.core() != self.cx.handle().core()).then(|| first.clone());
                }
                Order::Move(queue, to) => {
                    if !self.its.function.model().move_queue(queue, &to) {
                        tracing::warn!(endpoint = self.its.name, queue, "no such queue to move");
                    }
                }
            }
        }
    }

    fn accept(&mut self) -> Work {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match accept_with(self.its.listener.fd(), flags) {
            Ok(socket) => socket,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => return Work::Idle,
            Err(error) => {
                // Out of descriptors, most likely. The client waits in the backlog; the next wake-up tries again.
                self.its.log.log(
                    &self.its.name,
                    || tracing::error!(endpoint = self.its.name, %error, "accepting a client failed"),
                );
                return Work::Idle;
            }
        };
        let peer = rustix::net::sockopt::socket_peercred(&socket);
        self.its.client_pid = peer.ok().map(|peer| peer.pid.as_raw_pid());
        self.trace(CLIENT_CONNECT);
        let session = Session::new(&self.its.name, socket, self.cx.clock(), &self.its.home);
        match session.tie(&self.cx) {
            Ok(ties) => {
                self.listen(Interest::None);
                self.phase = Phase::Serving(Box::new(session), ties);
                self.its.shared.set(State::Connected);
                self.its
                    .log
                    .log(&self.its.name, || tracing::info!(endpoint = self.its.name, "client connected"));
            }
            Err(error) => {
                tracing::error!(endpoint = self.its.name, %error, "the client's socket cannot be watched");
            }
        }
        Work::Busy
    }

    fn trace(&self, point: u8) {
        if let Some(pid) = self.its.client_pid {
            ENDPOINT.record_text(point, pid.unsigned_abs().into(), &self.its.name);
        }
    }

    fn stop_device(&mut self) {
        self.trace(CLIENT_DISCONNECT);
        self.phase = Phase::Stopping;
        self.its.function.bus().remote.close();
        self.its.client_pid = None;
        self.its.function.reset();
        self.its.function.forget_client();
        // Queues keep the windows they work with until they have stopped; nobody gets new ones.
        self.its.function.bus().windows.clear();
        self.its.function.bus().irqs.release();
    }

    /// Answers those who ask. Nobody does on most polls.
    fn answer(&self) {
        // The flag falls before the questions are taken: one that comes in between raises it again.
        if !self.its.shared.is_asked.load(Ordering::Relaxed)
            || !self.its.shared.is_asked.swap(false, Ordering::AcqRel)
        {
            return;
        }
        for answer in self.its.shared.take_questions() {
            let state = match self.phase {
                Phase::Serving(..) => State::Connected,
                Phase::Listening | Phase::Stopping => State::Listening,
            };
            let device = self.its.function.model_ref().describe();
            answer(Description { state, client_pid: self.its.client_pid, device });
        }
    }

    fn stopping(&mut self) -> Work {
        if self.its.function.progress() == Progress::Pending {
            return Work::Idle;
        }
        if self.its.shared.delete.load(Ordering::Acquire) {
            tracing::info!(endpoint = self.its.name, "endpoint deleted");
            self.its.listener.remove();
            self.moving_to = None;
            let shared = Arc::clone(&self.its.shared);
            self.its.last_words.set(move || shared.set(State::Gone));
            return Work::Done;
        }
        self.phase = Phase::Listening;
        self.listen(Interest::Read);
        self.its.shared.set(State::Listening);
        Work::Busy
    }
}

impl Poller for Endpoint {
    fn poll(&mut self, now: Tick) -> Work {
        self.obey();
        // A queue may have failed, or the disk may have changed: that has no other caller than us.
        let _ = self.its.function.progress();
        self.answer();
        if self.its.function.model_ref().is_faulted() && !self.its.shared.delete.swap(true, Ordering::AcqRel)
        {
            tracing::error!(
                endpoint = self.its.name,
                "a part of the device has panicked; the endpoint is closed"
            );
        }
        let delete = self.its.shared.delete.load(Ordering::Acquire);
        match &mut self.phase {
            Phase::Stopping => self.stopping(),
            _ if delete => {
                self.stop_device();
                self.stopping()
            }
            // The rest is done by `leave`.
            _ if self.moving_to.is_some() => Work::Done,
            Phase::Listening => self.accept(),
            Phase::Serving(session, ties) => {
                match session.serve(ties, &mut self.its.function, &mut self.its.log, now) {
                    Ok(work) => work,
                    Err(end) => {
                        self.its.log.log(&self.its.name, || match end {
                            End::Closed => tracing::info!(endpoint = self.its.name, "client disconnected"),
                            end => tracing::warn!(endpoint = self.its.name, reason = %end, "client dropped"),
                        });
                        self.stop_device();
                        self.stopping()
                    }
                }
            }
        }
    }

    fn park(&mut self, now: Tick) -> Park {
        // Sockets are watched level-triggered. What comes by the waker counts from now on and not from the last poll
        // on, so it is looked at once more: what happened behind the device, and the wish to delete.
        let settled = self.its.function.progress() == Progress::Done;
        let goes_on = match &self.phase {
            Phase::Stopping => settled,
            Phase::Serving(session, _) => {
                (settled && session.is_waiting())
                    || (session.has_room() && self.its.function.bus().remote.has_orders())
            }
            Phase::Listening => false,
        };
        let delete = self.its.shared.delete.load(Ordering::Acquire) && !matches!(self.phase, Phase::Stopping);
        let told = self.its.shared.is_asked.load(Ordering::Acquire)
            || !self.its.shared.orders.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        if goes_on || delete || told {
            Park::Ready
        } else if settled {
            Park::Wait
        } else {
            // Queues wake us when they have followed; but one whose reactor had no room for it has to be sent again.
            let retry = now.after(self.cx.clock().ticks(RETRY_PERIOD));
            match &self.phase {
                Phase::Serving(session, _) => {
                    Park::Until(session.deadline().map_or(retry, |at| at.min(retry)))
                }
                _ => Park::Until(retry),
            }
        }
    }

    fn leave(self: Box<Self>, reactor: &mut Reactor) {
        let Self { phase, moving_to: Some(to), its, .. } = *self else { return };
        let session = match phase {
            Phase::Serving(session, _) => Some(session),
            Phase::Listening | Phase::Stopping => None,
        };
        let name = its.name.clone();
        if let Err(error) = to.send(Box::new(move |reactor| its.arrive(session, reactor))) {
            tracing::warn!(endpoint = name, core = to.core(), %error, "the endpoint stays where it is");
            error.into_message()(reactor);
        }
    }
}

#[cfg(test)]
mod tests;

//! Runs one JSON value from a client: a request, or a batch of them. Called by `conn` and by
//! [`Dispatcher::dispatch`].

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use jsonrpsee::MethodResponse;
use serde_json::value::RawValue;

use crate::envelope::{Envelope, NotARequest};
use crate::error::RpcError;
use crate::limits::{REPLY_BYTES_MAX, REQUESTS_PER_TURN};
use crate::reply;
use crate::table::{Answer, Dispatcher, Running};

/// The bytes to send, newline included; none if the client awaits nothing.
pub(crate) type Reply = Option<Vec<u8>>;

/// A value being answered.
pub(crate) enum Progress {
    Done(Reply),
    Later(Pin<Box<dyn Future<Output = Reply> + Send>>),
}

impl Dispatcher {
    /// Answers one JSON text as a client on a socket is answered, a pause aside. What is returned is the reply with
    /// its newline, or nothing for notifications.
    pub async fn dispatch(&self, text: &str) -> String {
        let reply = match self.start(text) {
            Progress::Done(reply) => reply,
            Progress::Later(later) => later.await,
        };
        String::from_utf8(reply.unwrap_or_default()).expect("replies are written in ASCII")
    }

    /// Begins with one value. What can be answered without waiting has been when this returns.
    pub(crate) fn start(&self, value: &str) -> Progress {
        if value.starts_with('[') {
            return self.start_batch(value);
        }
        match self.start_request(value) {
            Step::Done { id, response } => Progress::Done(single(id, &response)),
            Step::Later(Waiting { id, running }) => Progress::Later(Box::pin(async move {
                let response = running.await;
                single(id.as_deref(), &response)
            })),
        }
    }

    fn start_request<'a>(&self, value: &'a str) -> Step<'a> {
        let request = match Envelope::decode(value) {
            Ok(request) => request,
            Err(NotARequest { id }) => {
                return Step::Done { id, response: reply::error(RpcError::invalid_request()) };
            }
        };
        match self.start_call(&request.method, request.params) {
            Answer::Ready(response) => Step::Done { id: request.id, response },
            Answer::Later(running) => Step::Later(Waiting { id: request.id.map(Into::into), running }),
        }
    }

    fn start_batch(&self, value: &str) -> Progress {
        let elements = match serde_json::from_str::<VecDeque<Box<RawValue>>>(value) {
            Ok(elements) => elements,
            Err(reason) => {
                // Not JSON: only a caller of `dispatch` can get here, `conn` looks first.
                tracing::debug!(%reason, "batch cannot be read");
                return Progress::Done(single(None, &reply::error(RpcError::parse())));
            }
        };
        if elements.is_empty() {
            return Progress::Done(single(None, &reply::error(RpcError::invalid_request())));
        }
        let dispatcher = self.clone();
        let mut batch = Box::pin(Batch { dispatcher, elements, waiting: Vec::new(), replies: Vec::new() });
        match batch.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(reply) => Progress::Done(reply),
            Poll::Pending => Progress::Later(batch),
        }
    }
}

enum Step<'a> {
    Done { id: Option<&'a str>, response: MethodResponse },
    Later(Waiting),
}

/// A request whose handler has not finished.
struct Waiting {
    id: Option<Box<str>>,
    running: Running,
}

/// A batch: its elements start in their order, their replies stand in the order in which they are ready.
struct Batch {
    dispatcher: Dispatcher,
    elements: VecDeque<Box<RawValue>>,
    waiting: Vec<Waiting>,
    /// `[` and the replies so far, each but the first after a comma.
    replies: Vec<u8>,
}

impl Batch {
    fn push(&mut self, id: Option<&str>, response: &MethodResponse) {
        if is_answered(id, response) {
            self.replies.push(if self.replies.is_empty() { b'[' } else { b',' });
            reply::append(&mut self.replies, id, response, REPLY_BYTES_MAX - 1);
        }
    }
}

impl Future for Batch {
    type Output = Reply;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Reply> {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(element) = self.elements.pop_front() else { break };
            match self.dispatcher.start_request(element.get()) {
                Step::Done { id, response } => self.push(id, &response),
                Step::Later(waiting) => self.waiting.push(waiting),
            }
        }
        for mut waiting in std::mem::take(&mut self.waiting) {
            match Pin::new(&mut waiting.running).poll(context) {
                Poll::Pending => self.waiting.push(waiting),
                Poll::Ready(response) => self.push(waiting.id.as_deref(), &response),
            }
        }
        if !self.elements.is_empty() {
            // The other connections come first.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !self.waiting.is_empty() {
            return Poll::Pending;
        }
        let mut replies = std::mem::take(&mut self.replies);
        if replies.is_empty() {
            return Poll::Ready(None);
        }
        replies.extend_from_slice(b"]\n");
        Poll::Ready(Some(replies))
    }
}

/// A request without an id is answered only when it fails (JSON-RPC wants silence then too; SPDK answers with a null
/// id, from which clients learn of typos in notifications).
fn is_answered(id: Option<&str>, response: &MethodResponse) -> bool {
    id.is_some() || response.is_error()
}

/// The reply to a request that stands alone.
fn single(id: Option<&str>, response: &MethodResponse) -> Reply {
    is_answered(id, response).then(|| {
        let mut out = Vec::with_capacity(response.as_ref().len() + 64);
        reply::append(&mut out, id, response, REPLY_BYTES_MAX);
        out.push(b'\n');
        out
    })
}

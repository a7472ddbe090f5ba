//! A connection without a socket: what a client would be answered that sends these bytes. For the fuzzers, which have no
//! time for sockets; one request after the other, none waits for another.

use crate::error::RpcError;
use crate::exec::Progress;
use crate::frame::Framer;
use crate::limits::REPLY_BYTES_MAX;
use crate::reply;
use crate::scan::Fault;
use crate::table::Dispatcher;

/// The answer to what is not JSON.
pub(crate) fn not_json() -> Vec<u8> {
    let mut out = Vec::new();
    reply::append(&mut out, None, &reply::error(RpcError::parse()), REPLY_BYTES_MAX);
    out.push(b'\n');
    out
}

impl Dispatcher {
    /// The replies to a stream of bytes that is read in these pieces, and then ends.
    pub async fn answer<'a>(&self, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut framer = Framer::new();
        let mut out = Vec::new();
        let mut fault = None;
        for piece in pieces {
            framer.buffer().extend_from_slice(piece);
            fault = self.answer_values(&mut framer, &mut out).await.err();
            if fault.is_some() {
                break;
            }
        }
        if fault.is_none() {
            fault = framer.end_of_stream().err();
        }
        if fault.is_none() {
            fault = self.answer_values(&mut framer, &mut out).await.err();
        }
        if fault == Some(Fault::Syntax) {
            out.extend_from_slice(&not_json());
        }
        out
    }

    async fn answer_values(&self, framer: &mut Framer, out: &mut Vec<u8>) -> Result<(), Fault> {
        while framer.scan()? {
            let reply = match self.start(framer.take()?) {
                Progress::Done(reply) => reply,
                Progress::Later(later) => later.await,
            };
            out.extend_from_slice(&reply.unwrap_or_default());
        }
        Ok(())
    }
}

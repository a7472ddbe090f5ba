//! A byte stream in pieces: every message comes out whole, once, in order, and the rest is left.

use std::{cell::RefCell, io::Write, os::unix::net::UnixStream};

use vfu::wire::{
    frame::{FrameError, MAX_PAYLOAD, Received, Receiver},
    spec::HEADER_LEN,
};

use crate::choices::Choices;

/// What is to come out, by a second reading of the same bytes.
fn expected(mut stream: &[u8]) -> (Vec<(u16, Vec<u8>)>, bool) {
    let mut messages = Vec::new();
    while let Some(head) = stream.first_chunk::<HEADER_LEN>() {
        let size = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]) as usize;
        if size < HEADER_LEN {
            return (messages, true);
        }
        if size - HEADER_LEN > MAX_PAYLOAD {
            // The rest belongs to it: no input is that long.
            return (messages, false);
        }
        let Some(body) = stream.get(HEADER_LEN..size) else { break };
        messages.push((u16::from_ne_bytes([head[0], head[1]]), body.to_vec()));
        stream = &stream[size..];
    }
    (messages, false)
}

thread_local! {
    /// Made once: two system calls less for each input. Emptied by every run.
    static PAIR: RefCell<Option<(UnixStream, UnixStream)>> = const { RefCell::new(None) };
}

pub(super) fn run(input: &[u8]) {
    let mut choices = Choices::new(input);
    let piece = usize::from(choices.u8()).max(1);
    let mut stream = Vec::new();
    while !choices.is_empty() && stream.len() < 4096 {
        let (kind, id, len) = (choices.u8(), choices.u16(), usize::from(choices.below(300)));
        let body = choices.bytes(len);
        let size = match kind {
            0..200 => u32::try_from(HEADER_LEN + body.len()).unwrap_or(0),
            200..220 => choices.u32(),
            _ => u32::from(choices.u8()),
        };
        stream.extend_from_slice(&id.to_ne_bytes());
        stream.extend_from_slice(&choices.u16().to_ne_bytes());
        stream.extend_from_slice(&size.to_ne_bytes());
        stream.extend_from_slice(&[0; 8]);
        stream.extend_from_slice(body);
    }
    let (messages, breaks) = expected(&stream);
    let (mut client, server) =
        PAIR.take().unwrap_or_else(|| UnixStream::pair().expect("descriptors for a pair of sockets"));
    let mut receiver = Receiver::default();
    let mut got = Vec::new();
    let mut broken = false;
    'stream: for piece in stream.chunks(piece) {
        client.write_all(piece).expect("the socket has room for an input");
        loop {
            match receiver.receive(&server) {
                Ok(Received::Message { header, fds }) => {
                    assert!(fds.is_empty());
                    got.push((header.message_id, receiver.payload().to_vec()));
                }
                Ok(Received::TooLong(_) | Received::Skipped) => {}
                Ok(Received::Pending) => break,
                Ok(Received::Closed) => panic!("nobody closed"),
                Err(FrameError::Short { .. }) => {
                    broken = true;
                    break 'stream;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert_eq!(got, messages);
    assert_eq!(broken, breaks);
    if !broken {
        PAIR.set(Some((client, server)));
    }
}

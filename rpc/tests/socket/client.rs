//! A client that sends what it is told and sees the bytes that come back.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// So long that only a server that never answers meets it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Client {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Client {
        let stream = UnixStream::connect(path).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream, received: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the server reads");
    }

    /// Sends to a server that may have closed already.
    pub(crate) fn send_to_closing(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = self.stream.write_all(bytes.as_ref());
        let closed = |error: &std::io::Error| error.kind() == ErrorKind::BrokenPipe;
        assert!(sent.as_ref().err().is_none_or(closed), "{sent:?}");
    }

    /// The next reply, without its newline.
    pub(crate) fn reply(&mut self) -> String {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return String::from_utf8(line[..end].to_vec()).expect("replies are ASCII");
            }
            let mut piece = [0; 65536];
            let length = self.stream.read(&mut piece).expect("the server answers");
            assert_ne!(length, 0, "the server closed after {:?}", String::from_utf8_lossy(&self.received));
            self.received.extend_from_slice(&piece[..length]);
        }
    }

    pub(crate) fn call(&mut self, request: &str) -> String {
        self.send(request);
        self.reply()
    }

    /// What comes until the server closes the connection in order.
    pub(crate) fn rest(&mut self) -> String {
        self.stream.read_to_end(&mut self.received).expect("the server closes");
        String::from_utf8(std::mem::take(&mut self.received)).expect("replies are ASCII")
    }

    /// What comes until the connection ends in one way or another.
    pub(crate) fn bytes_until_end(&mut self) -> usize {
        let mut piece = vec![0; 1 << 20];
        let mut bytes = self.received.len();
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return bytes,
                Ok(length) => bytes += length,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return bytes,
                Err(error) => panic!("the server does not close: {error}"),
            }
        }
    }

    /// Whether nothing arrives for a moment. Only ever asserted of what cannot arrive later either.
    pub(crate) fn is_silent(&mut self) -> bool {
        self.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let read = self.stream.read(&mut [0; 1]);
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        self.received.is_empty() && read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    pub(crate) fn half_close(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }
}

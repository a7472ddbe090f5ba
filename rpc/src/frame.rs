//! Cuts the byte stream of one connection into JSON values. There is no delimiter: values may be split over reads,
//! follow each other without a gap, or have white space between them. Called by `conn`.

use crate::scan::{Fault, Scan, Scanner};

/// The bytes of one connection that were read and not yet handled.
#[derive(Debug)]
pub(crate) struct Framer {
    bytes: Vec<u8>,
    /// First byte of the value being read; all before it has been handed out.
    start: usize,
    /// First byte that the scanner has not seen.
    seen: usize,
    /// End of a value that is complete and was not handed out.
    ready: Option<usize>,
    scanner: Scanner,
}

/// Room that an idle connection may keep.
const KEEP_BYTES: usize = 64 * 1024;

impl Framer {
    pub(crate) fn new() -> Framer {
        Framer { bytes: Vec::new(), start: 0, seen: 0, ready: None, scanner: Scanner::new() }
    }

    /// Where a read appends its bytes.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        if self.start > 0 {
            // At most one read's worth is moved: values are handed out before the next read.
            self.bytes.drain(..self.start);
            self.seen -= self.start;
            self.ready = self.ready.map(|end| end - self.start);
            self.start = 0;
        }
        if self.bytes.is_empty() && self.bytes.capacity() > KEEP_BYTES {
            self.bytes = Vec::new();
        }
        &mut self.bytes
    }

    /// Looks for the end of the next value; true if there is one to take.
    pub(crate) fn scan(&mut self) -> Result<bool, Fault> {
        if self.ready.is_some() {
            return Ok(true);
        }
        if self.scanner.is_fresh() {
            let space = |byte: &&u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
            self.start += self.bytes[self.start..].iter().take_while(space).count();
            self.seen = self.start;
        }
        match self.scanner.feed(&self.bytes[self.seen..])? {
            Scan::More => self.seen = self.bytes.len(),
            Scan::End(length) => self.ready = Some(self.seen + length),
        }
        Ok(self.ready.is_some())
    }

    /// Whether a complete value waits to be taken.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready.is_some()
    }

    /// Hands out the value that [`Framer::scan`] found; an empty text if it found none.
    pub(crate) fn take(&mut self) -> Result<&str, Fault> {
        let end = self.ready.take().unwrap_or(self.start);
        let value = self.start..end;
        self.start = end;
        self.seen = end;
        self.scanner = Scanner::new();
        // The scanner leaves this to us: bytes from 0x80 on occur in strings only.
        std::str::from_utf8(&self.bytes[value]).map_err(|_not_utf8| Fault::Syntax)
    }

    /// The client sends no more: a number outside of any container is complete now, anything else is cut off.
    pub(crate) fn end_of_stream(&mut self) -> Result<(), Fault> {
        if self.ready.is_some() || self.scanner.is_fresh() {
            return Ok(());
        }
        if !self.scanner.ends_with_stream() {
            return Err(Fault::Syntax);
        }
        self.ready = Some(self.bytes.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests;

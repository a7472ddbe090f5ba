//! A ring of finished requests, for types that are done as soon as they are asked.
//!
//! A channel must not complete within submit; it notes the completion here and the next reap hands it out.
//! Fixed capacity, no allocation after construction.

use crate::{Completion, Rejected};

pub(crate) struct ReadyRing {
    ring: Box<[Completion]>,
    head: usize,
    len: usize,
}

impl ReadyRing {
    pub(crate) fn new(depth: u16) -> ReadyRing {
        // A power of two, so that wrapping is a mask.
        let capacity = usize::from(depth).next_power_of_two();
        ReadyRing { ring: vec![Completion::EMPTY; capacity].into_boxed_slice(), head: 0, len: 0 }
    }

    #[inline]
    pub(crate) fn push(&mut self, completion: Completion) -> Result<(), Rejected> {
        if self.len == self.ring.len() {
            return Err(Rejected::Full);
        }
        let at = (self.head + self.len) & (self.ring.len() - 1);
        self.ring[at] = completion;
        self.len += 1;
        Ok(())
    }

    #[inline]
    pub(crate) fn pop_into(&mut self, done: &mut [Completion]) -> usize {
        let n = self.len.min(done.len());
        let mask = self.ring.len() - 1;
        for (i, slot) in done[..n].iter_mut().enumerate() {
            *slot = self.ring[(self.head + i) & mask];
        }
        self.head = (self.head + n) & mask;
        self.len -= n;
        n
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len == self.ring.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Status, Token};

    fn completion(n: u32) -> Completion {
        Completion { token: Token(n), status: Status::Ok }
    }

    #[test]
    fn completions_come_out_in_order_across_the_wrap() {
        let mut ring = ReadyRing::new(4);
        let mut done = [Completion::EMPTY; 3];
        for n in 0..3 {
            ring.push(completion(n)).unwrap();
        }
        assert_eq!(ring.pop_into(&mut done), 3);
        for n in 3..7 {
            ring.push(completion(n)).unwrap();
        }

        assert_eq!(ring.push(completion(9)), Err(Rejected::Full));
        assert_eq!(ring.pop_into(&mut done), 3);
        assert_eq!(done.map(|c| c.token.0), [3, 4, 5]);
        assert_eq!(ring.pop_into(&mut done), 1);
        assert_eq!(done[0], completion(6));
        assert_eq!(ring.len(), 0);
    }
}

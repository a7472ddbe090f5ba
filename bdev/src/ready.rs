//! A queue of finished requests, for types that are done as soon as they are asked.
//!
//! A channel must not complete within submit; it notes the completion here and the next reap hands it out.
//! Fixed capacity, no allocation after construction.

use crate::{Completion, Rejected};

/// Those that wait lie in one piece, from `start` to `end`: what is taken and what is put are one copy. Nearly always all
/// are taken, and the piece begins at the front again.
pub(crate) struct ReadyQueue {
    slots: Box<[Completion]>,
    start: usize,
    end: usize,
}

impl ReadyQueue {
    pub(crate) fn new(depth: u16) -> ReadyQueue {
        let slots = vec![Completion::EMPTY; usize::from(depth)].into_boxed_slice();
        ReadyQueue { slots, start: 0, end: 0 }
    }

    #[inline]
    pub(crate) fn push(&mut self, completion: Completion) -> Result<(), Rejected> {
        let Some(slot) = self.slots.get_mut(self.end) else { return self.push_in_front(completion) };
        *slot = completion;
        self.end += 1;
        Ok(())
    }

    /// Makes room at the end first, if there is any in front.
    #[cold]
    #[inline(never)]
    fn push_in_front(&mut self, completion: Completion) -> Result<(), Rejected> {
        if self.is_full() {
            return Err(Rejected::Full);
        }
        self.slots.copy_within(self.start..self.end, 0);
        self.end -= std::mem::take(&mut self.start);
        self.push(completion)
    }

    #[inline]
    pub(crate) fn pop_into(&mut self, done: &mut [Completion]) -> usize {
        let n = self.len().min(done.len());
        let ready = &self.slots[self.start..self.start + n];
        match (ready, &mut done[..n]) {
            // The round trip of a lone request has no call in it.
            ([only], [to]) => *to = *only,
            (many, to) => to.copy_from_slice(many),
        }
        self.start += n;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        n
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() == self.slots.len()
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
    fn completions_come_out_in_order_when_not_all_are_taken() {
        let mut queue = ReadyQueue::new(4);
        let mut done = [Completion::EMPTY; 3];
        for n in 0..3 {
            queue.push(completion(n)).unwrap();
        }
        assert_eq!(queue.pop_into(&mut done), 3);
        for n in 3..7 {
            queue.push(completion(n)).unwrap();
        }

        assert_eq!(queue.push(completion(9)), Err(Rejected::Full));
        assert_eq!(queue.pop_into(&mut done), 3);
        assert_eq!(done.map(|c| c.token.0), [3, 4, 5]);
        for n in 7..10 {
            queue.push(completion(n)).unwrap();
        }
        assert_eq!(queue.push(completion(10)), Err(Rejected::Full));
        assert_eq!(queue.pop_into(&mut done), 3);
        assert_eq!(done.map(|c| c.token.0), [6, 7, 8]);
        assert_eq!(queue.pop_into(&mut done), 1);
        assert_eq!(done[0], completion(9));
        assert_eq!(queue.len(), 0);
    }
}

//! With IN_ORDER, chains are given back in the order in which they were taken (virtio 1.2, 2.7.9 and 2.8.9): what
//! finishes early waits here for those before it. Both rings use it; neither does where the feature is not agreed.

/// What a chain's id stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Free,
    Taken,
    /// Finished, with so many bytes written.
    Finished(u32),
}

/// The chains that were taken and not given back, oldest first.
#[derive(Debug)]
pub(super) struct InOrder {
    queue: std::collections::VecDeque<u16>,
    slots: Box<[Slot]>,
}

impl InOrder {
    /// For ids below `size`.
    pub(super) fn new(size: u16) -> Self {
        let size = usize::from(size);
        Self {
            queue: std::collections::VecDeque::with_capacity(size),
            slots: vec![Slot::Free; size].into_boxed_slice(),
        }
    }

    /// Whether the id is in use, though its chain may have finished.
    #[inline]
    pub(super) fn holds(&self, id: u16) -> bool {
        self.slots.get(usize::from(id)).is_none_or(|slot| *slot != Slot::Free)
    }

    /// A chain was taken. Its id is not held, so there are never more than there is room for.
    #[inline]
    pub(super) fn take(&mut self, id: u16) {
        self.slots[usize::from(id)] = Slot::Taken;
        self.queue.push_back(id);
    }

    /// A chain has finished.
    #[inline]
    pub(super) fn finish(&mut self, id: u16, len: u32) {
        self.slots[usize::from(id)] = Slot::Finished(len);
    }

    /// The oldest chain, if it has finished.
    #[inline]
    pub(super) fn next(&mut self) -> Option<(u16, u32)> {
        let &id = self.queue.front()?;
        let Slot::Finished(len) = self.slots[usize::from(id)] else { return None };
        self.slots[usize::from(id)] = Slot::Free;
        self.queue.pop_front();
        Some((id, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_come_back_in_the_order_they_were_taken() {
        let mut order = InOrder::new(4);
        [3, 0, 2].into_iter().for_each(|id| order.take(id));

        order.finish(2, 20);
        order.finish(0, 10);
        assert_eq!(order.next(), None);
        order.finish(3, 30);

        assert_eq!(std::iter::from_fn(|| order.next()).collect::<Vec<_>>(), [(3, 30), (0, 10), (2, 20)]);
    }

    #[test]
    fn id_is_held_until_its_chain_is_given_back() {
        let mut order = InOrder::new(4);
        order.take(1);
        order.take(2);
        order.finish(2, 0);
        assert!(order.holds(2));

        order.finish(1, 0);
        order.next();
        assert!(order.holds(2) && !order.holds(1));
        assert!(order.holds(4), "no such id");
    }
}

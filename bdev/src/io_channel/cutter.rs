//! Requests that a type cannot take as they are: longer than it takes, across its boundaries, or with memory that is not
//! aligned. They are cut into children, which go through buffers of the pools where they have to.
//!
//! Part of [`IoChannel`](crate::IoChannel), which sends everything else straight on. A request that waits for a child's
//! place, a buffer or room below stays here and goes on at the next reap. Nothing here allocates after construction.

use std::sync::Arc;

use super::request_limits::Limits;
use crate::iobuf::{self, Buffer};
use crate::ready::ReadyQueue;
use crate::{
    BdevInfo, Channel, Completion, IoVec, MAX_SEGMENTS, Op, OpKind, Rejected, Request, Status, Token,
};

/// Cut requests at a time; more of them have to wait.
const PARENTS_MAX: u16 = 32;
/// Children in flight; also by how much the type's channel is deeper than the wrapper's.
pub(super) const CHILDREN: u16 = 64;

/// How far a request has got.
struct Parent {
    op: Op,
    token: Token,
    lba: u64,
    left: u64,
    /// Its vectors, and the place in them of what comes next.
    iov: Vec<IoVec>,
    at: Place,
    bounces: bool,
    open: u16,
    status: Status,
    is_used: bool,
}

/// A place in a list of vectors.
#[derive(Clone, Copy, Default)]
struct Place {
    segment: usize,
    offset: usize,
}

struct Child {
    parent: u16,
    from: Place,
    len: usize,
    buffer: Option<Buffer>,
    is_used: bool,
}

pub(super) struct Cutter {
    info: Arc<BdevInfo>,
    limits: Limits,
    /// First token of the children.
    first_child: u32,
    parents: Box<[Parent]>,
    children: Box<[Child]>,
    /// Vectors of the child that is being made.
    pieces: Vec<IoVec>,
    ended: ReadyQueue,
    active: usize,
    /// Children sent down and not kicked yet.
    is_dirty: bool,
}

impl Place {
    /// The next stretch, of at most `wanted` bytes, that lies in one vector; `None` at the end.
    fn next(&mut self, iov: &[IoVec], wanted: usize) -> Option<IoVec> {
        loop {
            let vector = iov.get(self.segment)?;
            let len = wanted.min(vector.len() - self.offset);
            if len == 0 {
                *self = Place { segment: self.segment + 1, offset: 0 };
                continue;
            }
            let piece = vector.slice(self.offset, len);
            self.offset += len;
            return piece;
        }
    }

    /// Copies `len` bytes between the vectors and `buffer`.
    fn copy(mut self, iov: &[IoVec], buffer: IoVec, len: usize, into_buffer: bool) {
        let mut done = 0;
        while done < len {
            let (Some(piece), Some(place)) = (self.next(iov, len - done), buffer.slice(done, len - done))
            else {
                return;
            };
            if into_buffer {
                place.copy_from_vector(piece);
            } else {
                piece.copy_from_vector(place);
            }
            done += piece.len();
        }
    }
}

impl Cutter {
    pub(super) fn new(info: Arc<BdevInfo>, limits: Limits, depth: u16) -> Cutter {
        let parent = || Parent {
            op: Op::Flush,
            token: Token(0),
            lba: 0,
            left: 0,
            iov: Vec::with_capacity(MAX_SEGMENTS as usize),
            at: Place::default(),
            bounces: false,
            open: 0,
            status: Status::Ok,
            is_used: false,
        };
        let child = || Child { parent: 0, from: Place::default(), len: 0, buffer: None, is_used: false };
        if limits.wants_alignment()
            && let Err(error) = iobuf::init()
        {
            tracing::warn!(bdev = info.name, %error, "requests with unaligned memory will fail");
        }
        Cutter {
            info,
            limits,
            first_child: depth.into(),
            parents: (0..depth.min(PARENTS_MAX)).map(|_| parent()).collect(),
            children: (0..CHILDREN).map(|_| child()).collect(),
            pieces: Vec::with_capacity(MAX_SEGMENTS as usize),
            ended: ReadyQueue::new(depth.min(PARENTS_MAX)),
            active: 0,
            is_dirty: false,
        }
    }

    /// Takes a request that is within the bdev and adds up.
    pub(super) fn submit(&mut self, inner: &mut dyn Channel, req: &Request<'_>) -> Result<(), Rejected> {
        let parent = self.parents.iter_mut().find(|parent| !parent.is_used).ok_or(Rejected::Full)?;
        if req.iov.len() > parent.iov.capacity() {
            return Err(Rejected::Failed(Status::Invalid));
        }
        parent.iov.clear();
        parent.iov.extend_from_slice(req.iov);
        *parent = Parent {
            op: req.op,
            token: req.token,
            lba: req.lba,
            left: req.blocks,
            iov: std::mem::take(&mut parent.iov),
            at: Place::default(),
            bounces: self.limits.is_unaligned(req.iov),
            open: 0,
            status: Status::Ok,
            is_used: true,
        };
        self.active += 1;
        self.advance(inner);
        Ok(())
    }

    /// Sends down what there is room for.
    pub(super) fn advance(&mut self, inner: &mut dyn Channel) {
        for at in 0..self.parents.len() {
            while self.parents[at].is_used && self.parents[at].left > 0 {
                if !self.send_next(inner, at) {
                    break;
                }
            }
            self.end_if_done(at);
        }
    }

    /// Sends the next child of a request. False if it has to wait.
    fn send_next(&mut self, inner: &mut dyn Channel, at: usize) -> bool {
        let Some(slot) = self.children.iter().position(|child| !child.is_used) else { return false };
        let block = self.info.block_size as usize;
        let parent = &mut self.parents[at];
        let mut blocks = self.limits.longest_from(&self.info, parent.lba, parent.left);
        let mut buffer = None;
        if parent.bounces {
            blocks = blocks.min((iobuf::longest() / block).max(1) as u64);
            if blocks as usize * block > iobuf::longest() {
                // There are no pools, or no buffer of them takes one block: to wait would be to wait for ever.
                parent.status = Status::NoMemory;
                parent.left = 0;
                return true;
            }
            let Some(found) = Buffer::get(blocks as usize * block) else { return false };
            buffer = Some(found);
        }
        let len = blocks as usize * block;
        let (from, mut next) = (parent.at, parent.at);
        self.pieces.clear();
        let mut listed = 0;
        while listed < len && self.pieces.len() < self.pieces.capacity() {
            let Some(piece) = next.next(&parent.iov, len - listed) else { break };
            listed += piece.len();
            self.pieces.push(piece);
        }
        if buffer.is_none() && self.limits.is_unaligned(&self.pieces) {
            // Aligned as a whole, and cut where a base is not.
            parent.bounces = true;
            return self.send_next(inner, at);
        }
        if let Some(buffer) = &buffer {
            let whole = buffer.iovec(len);
            if parent.op.kind() == OpKind::Write {
                from.copy(&parent.iov, whole, len, true);
            }
            self.pieces.clear();
            self.pieces.push(whole);
        }
        let token = Token(self.first_child + slot as u32);
        match inner.submit(&Request { op: parent.op, lba: parent.lba, blocks, iov: &self.pieces, token }) {
            Ok(()) => {
                self.children[slot] = Child { parent: at as u16, from, len, buffer, is_used: true };
                parent.at = next;
                parent.lba += blocks;
                parent.left -= blocks;
                parent.open += 1;
                self.is_dirty = true;
                true
            }
            Err(Rejected::Full) => false,
            Err(Rejected::Failed(status)) => {
                parent.status = status;
                parent.left = 0;
                true
            }
        }
    }

    fn end_if_done(&mut self, at: usize) {
        let parent = &mut self.parents[at];
        if parent.is_used && parent.left == 0 && parent.open == 0 {
            parent.is_used = false;
            self.active -= 1;
            // There is a place for every parent.
            let _ = self.ended.push(Completion { token: parent.token, status: parent.status });
        }
    }

    /// Takes the children out of what the type handed out, and goes on. Returns how many others are left, in front.
    pub(super) fn sort_out(&mut self, inner: &mut dyn Channel, done: &mut [Completion], n: usize) -> usize {
        let mut kept = 0;
        for at in 0..n {
            match done[at].token.0.checked_sub(self.first_child) {
                None => {
                    done[kept] = done[at];
                    kept += 1;
                }
                Some(slot) => self.end_child(slot as usize, done[at].status),
            }
        }
        if self.active > 0 {
            self.advance(inner);
            self.kick(inner);
        }
        kept + self.ended.pop_into(&mut done[kept..])
    }

    fn end_child(&mut self, slot: usize, status: Status) {
        let Some(child) = self.children.get_mut(slot).filter(|child| child.is_used) else { return };
        child.is_used = false;
        let at = usize::from(child.parent);
        let parent = &mut self.parents[at];
        if let Some(buffer) = child.buffer.take()
            && parent.op == Op::Read
            && status == Status::Ok
        {
            child.from.copy(&parent.iov, buffer.iovec(child.len), child.len, false);
        }
        parent.open -= 1;
        if status != Status::Ok {
            parent.status = status;
            parent.left = 0;
        }
        self.end_if_done(at);
    }

    /// Whether something here waits that no completion of the type will bring on.
    pub(super) fn is_waiting(&self) -> bool {
        self.ended.len() > 0 || self.parents.iter().any(|parent| parent.is_used && parent.left > 0)
    }

    pub(super) fn is_active(&self) -> bool {
        self.active > 0 || self.ended.len() > 0
    }

    pub(super) fn kick(&mut self, inner: &mut dyn Channel) {
        if std::mem::take(&mut self.is_dirty) {
            inner.kick();
        }
    }

    /// The children's places, all in use, for a type that is asked how deep it must be.
    pub(super) fn depth_below(depth: u16) -> u16 {
        depth.saturating_add(CHILDREN)
    }
}

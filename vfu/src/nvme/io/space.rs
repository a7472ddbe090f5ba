//! A namespace as one queue sees it: its channel, and what may be done with it now.

use std::sync::Arc;

use bdev::{IoChannel, OpKind};

use crate::nvme::{
    link::{AnaState, Link},
    namespace::Namespace,
    spec::Status,
};

/// What a command does with a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    /// Writes, and what counts as such beside reservations: Flush, and Dataset Management with all of its hints (Base, figure
    /// 404).
    Write,
}

/// A namespace of one queue.
pub(super) struct Space {
    pub(super) namespace: Arc<Namespace>,
    /// None if it could not be opened.
    pub(super) channel: Option<IoChannel>,
    /// Bytes of a block, as a power of two.
    pub(super) block_shift: u32,
    /// Its way in does not reach it (ANA).
    pub(super) inaccessible: bool,
}

impl Space {
    pub(super) fn open(namespace: Arc<Namespace>, link: &Link, depth: u16) -> Self {
        let channel = namespace.descriptor().open_channel(depth);
        let channel = channel.inspect_err(|error| {
            tracing::error!(nsid = namespace.nsid, %error, "a queue has no channel to a namespace");
        });
        let info = namespace.info();
        Self { channel: channel.ok(), block_shift: info.block_size.ilog2(), inaccessible: false, namespace }
            .refreshed(link)
    }

    pub(super) fn refreshed(mut self, link: &Link) -> Self {
        self.inaccessible = link.ana.get(self.namespace.anagrpid()) == AnaState::Inaccessible;
        self
    }

    pub(super) fn is_of(&self, namespace: &Arc<Namespace>) -> bool {
        Arc::ptr_eq(&self.namespace, namespace)
    }

    pub(super) fn num_blocks(&self) -> u64 {
        self.namespace.info().num_blocks()
    }

    pub(super) fn supports(&self, kind: OpKind) -> bool {
        self.namespace.descriptor().bdev().supports(kind)
    }

    #[inline(always)]
    pub(super) fn admit(&self, access: Access, link: &Link) -> Result<(), Status> {
        if self.inaccessible {
            return Err(Status::ANA_INACCESSIBLE);
        }
        if self.namespace.reservations.is_free() {
            return Ok(());
        }
        self.admit_reserved(access, link)
    }

    #[cold]
    fn admit_reserved(&self, access: Access, link: &Link) -> Result<(), Status> {
        if self.namespace.reservations.allows(&link.host_id(), access == Access::Write) {
            Ok(())
        } else {
            Err(Status::RESERVATION_CONFLICT)
        }
    }
}

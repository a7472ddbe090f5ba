//! The subsystems of the target, by SPDK's names and in its order of initialisation, and the configuration of each.
//!
//! One line per subsystem in [`TABLE`]. Its function gives the calls that make what is, in an order in which they can
//! be made; what it gives after these calls is the same, to the byte.

use crate::{
    config::{Document, Entry, Section},
    methods,
    target::Target,
};

/// One subsystem.
pub(crate) struct Subsystem {
    /// Its name.
    pub(crate) name: &'static str,
    /// Those it needs, of the ones that exist here.
    pub(crate) depends_on: &'static [&'static str],
    /// The calls that make what is.
    pub(crate) config: fn(&Target) -> Vec<Entry>,
}

/// All of them.
pub(crate) const TABLE: &[Subsystem] = &[
    Subsystem { name: "scheduler", depends_on: &[], config: methods::scheduler_config },
    Subsystem { name: "iobuf", depends_on: &[], config: methods::iobuf_config },
    Subsystem { name: "bdev", depends_on: &["iobuf"], config: methods::bdev_config },
    Subsystem { name: "nvmf", depends_on: &["bdev"], config: methods::nvmf_config },
    Subsystem { name: "vfio_user_target", depends_on: &["bdev"], config: methods::endpoint_config },
];

/// The place of a subsystem in the order; none if there is none of this name.
pub(crate) fn position(name: &str) -> Option<usize> {
    TABLE.iter().position(|subsystem| subsystem.name == name)
}

/// The configuration of all.
pub(crate) fn save(target: &Target) -> Document {
    let section = |subsystem: &Subsystem| Section {
        subsystem: subsystem.name.to_owned(),
        entries: (subsystem.config)(target),
    };
    Document(TABLE.iter().map(section).collect())
}

//! DEVICE_FEATURE and MIG_DATA_*: answered for a device that cannot be migrated.
//!
//! The messages are parsed in full, so that a malformed one is told from one about a feature that is not there; no
//! feature is. What an index means is in [`crate::wire::spec::feature`].

use rustix::io::Errno;
use zerocopy::FromBytes;

use super::session::Reply;
use crate::wire::spec::{DeviceFeature, MigData, feature_flags};

/// DEVICE_FEATURE. `EINVAL` for a message that the specification does not allow, `ENOTTY` for every feature, as the
/// kernel's vfio answers for one that a device lacks.
pub(super) fn feature(payload: &[u8]) -> Result<Reply, Errno> {
    let (request, _data) = DeviceFeature::read_from_prefix(payload).map_err(|_short| Errno::INVAL)?;
    let operation = request.flags & (feature_flags::GET | feature_flags::SET);
    let is_probe = request.flags & feature_flags::PROBE != 0;
    let is_both = operation == feature_flags::GET | feature_flags::SET;
    let known = feature_flags::INDEX_MASK | feature_flags::GET | feature_flags::SET | feature_flags::PROBE;
    if (request.argsz as usize) < size_of::<DeviceFeature>()
        || request.flags & !known != 0
        || operation == 0
        || (is_both && !is_probe)
    {
        return Err(Errno::INVAL);
    }
    Err(Errno::NOTTY)
}

/// MIG_DATA_READ and MIG_DATA_WRITE: only in a migration state that this device never enters.
pub(super) fn migration_data(payload: &[u8]) -> Result<Reply, Errno> {
    let (request, _data) = MigData::read_from_prefix(payload).map_err(|_short| Errno::INVAL)?;
    tracing::debug!(bytes = request.size, "migration data for a device that cannot be migrated");
    Err(Errno::INVAL)
}

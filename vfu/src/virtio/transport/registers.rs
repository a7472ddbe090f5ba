//! The common configuration as bytes (virtio 1.2, 4.1.4.3): which field lies where, and which fields a write touches.

use crate::irq::NO_VECTOR;

/// Bytes of the common configuration.
pub(super) const COMMON_LEN: usize = 64;

/// A field of the common configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    NumQueues,
    Status,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOff,
    QueueDesc,
    QueueDriver,
    QueueDevice,
    QueueNotifyData,
    QueueReset,
}

impl Field {
    /// Offset and length.
    const fn place(self) -> (usize, usize) {
        match self {
            Self::DeviceFeatureSelect => (0, 4),
            Self::DeviceFeature => (4, 4),
            Self::DriverFeatureSelect => (8, 4),
            Self::DriverFeature => (12, 4),
            Self::ConfigVector => (16, 2),
            Self::NumQueues => (18, 2),
            Self::Status => (20, 1),
            Self::ConfigGeneration => (21, 1),
            Self::QueueSelect => (22, 2),
            Self::QueueSize => (24, 2),
            Self::QueueVector => (26, 2),
            Self::QueueEnable => (28, 2),
            Self::QueueNotifyOff => (30, 2),
            Self::QueueDesc => (32, 8),
            Self::QueueDriver => (40, 8),
            Self::QueueDevice => (48, 8),
            Self::QueueNotifyData => (56, 2),
            Self::QueueReset => (58, 2),
        }
    }

    /// Those that a driver may write, in the order in which one write takes effect. Selectors come first; the status
    /// comes last, since it acts on all others.
    const WRITABLE: [Self; 13] = [
        Self::DeviceFeatureSelect,
        Self::DriverFeatureSelect,
        Self::DriverFeature,
        Self::ConfigVector,
        Self::QueueSelect,
        Self::QueueSize,
        Self::QueueVector,
        Self::QueueDesc,
        Self::QueueDriver,
        Self::QueueDevice,
        Self::QueueEnable,
        Self::QueueReset,
        Self::Status,
    ];
}

/// What the driver wrote that belongs to no queue.
#[derive(Debug)]
pub(super) struct Registers {
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_feature: u64,
    pub(super) config_vector: u16,
    pub(super) config_generation: u8,
    pub(super) queue_select: u16,
}

impl Default for Registers {
    fn default() -> Self {
        Self {
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_feature: 0,
            config_vector: NO_VECTOR,
            config_generation: 0,
            queue_select: 0,
        }
    }
}

/// The bytes in which fields have these values.
pub(super) fn image(fields: &[(Field, u64)]) -> [u8; COMMON_LEN] {
    let mut bytes = [0; COMMON_LEN];
    for (field, value) in fields {
        let (at, len) = field.place();
        bytes[at..at + len].copy_from_slice(&value.to_le_bytes()[..len]);
    }
    bytes
}

/// Reads from the image; what lies behind it reads as zero.
pub(super) fn copy(image: &[u8; COMMON_LEN], offset: u64, data: &mut [u8]) {
    for (at, byte) in (offset..).zip(data) {
        *byte = usize::try_from(at).ok().and_then(|at| image.get(at)).copied().unwrap_or(0);
    }
}

/// The fields that a write touches, with their new values.
pub(super) fn patch(
    mut image: [u8; COMMON_LEN],
    offset: u64,
    data: &[u8],
) -> impl Iterator<Item = (Field, u64)> {
    let from = usize::try_from(offset).unwrap_or(COMMON_LEN).min(COMMON_LEN);
    let to = (from + data.len()).min(COMMON_LEN);
    image[from..to].copy_from_slice(&data[..to - from]);
    Field::WRITABLE.into_iter().filter_map(move |field| {
        let (at, len) = field.place();
        let touched = at < to && from < at + len;
        let mut value = [0; 8];
        value[..len].copy_from_slice(&image[at..at + len]);
        touched.then(|| (field, u64::from_le_bytes(value)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_an_address_keeps_the_other_half() {
        let image = image(&[(Field::QueueDesc, 0x1111_2222_3333_4444)]);
        let touched: Vec<_> = patch(image, 36, &0xaaaa_bbbb_u32.to_le_bytes()).collect();
        assert_eq!(touched, vec![(Field::QueueDesc, 0xaaaa_bbbb_3333_4444)]);
    }

    #[test]
    fn write_over_read_only_fields_touches_none() {
        assert_eq!(patch([0; COMMON_LEN], 18, &[1, 2]).count(), 0);
        assert_eq!(patch([0; COMMON_LEN], 21, &[1]).count(), 0);
    }

    #[test]
    fn write_over_several_fields_touches_each_and_status_last() {
        let touched: Vec<_> = patch([0; COMMON_LEN], 20, &[4, 0, 1, 0]).collect();
        assert_eq!(touched, vec![(Field::QueueSelect, 1), (Field::Status, 4)]);
    }

    #[test]
    fn reads_behind_the_end_are_zero() {
        let mut data = [7; 4];
        copy(&[1; COMMON_LEN], 62, &mut data);
        assert_eq!(data, [1, 1, 0, 0]);
    }
}

//! Trace points in their groups, and what turns them on: SPDK's names and masks.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::buffer;

/// Arguments of an event.
pub const ARGS: usize = 4;

/// One point: what an event at it means.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Its name, in capitals as SPDK's are.
    pub name: &'static str,
    /// What the object's number stands for.
    pub object: &'static str,
    /// What the arguments stand for: `name`, `name:a|b|c` for the words of a number from 0, or `name:text` for the bytes
    /// of all that are left ([`text`]).
    pub args: &'static [&'static str],
}

/// The points of one part of the program.
#[derive(Debug)]
pub struct Group {
    name: &'static str,
    id: u8,
    points: &'static [Point],
    /// Bit n: point n is on.
    mask: AtomicU64,
}

impl Group {
    /// A group whose points are off. The `id` is below 64, a group of SPDK's has its id; a point is its place in `points`.
    pub const fn new(name: &'static str, id: u8, points: &'static [Point]) -> Group {
        assert!(id < 64 && points.len() <= 64, "both are bits of a mask");
        Group { name, id, points, mask: AtomicU64::new(0) }
    }

    /// An event. A load and a branch while the point is off.
    #[inline(always)]
    pub fn record(&self, point: u8, object: u64, args: [u64; ARGS]) {
        if self.is_on(point) {
            buffer::write(self.id, point, object, args);
        }
    }

    /// Whether the point is on: for those who would go through a list to record it.
    #[inline(always)]
    pub fn is_on(&self, point: u8) -> bool {
        self.mask.load(Ordering::Relaxed) & (1 << point) != 0
    }

    /// As [`Group::record`], with a name's first bytes as the arguments.
    #[inline(always)]
    pub fn record_text(&self, point: u8, object: u64, name: &str) {
        if self.is_on(point) {
            buffer::write(self.id, point, object, text(name));
        }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its number among the groups.
    pub fn id(&self) -> u8 {
        self.id
    }

    /// Its points.
    pub fn points(&self) -> &'static [Point] {
        self.points
    }

    /// The points that are on.
    pub fn mask(&self) -> u64 {
        self.mask.load(Ordering::Relaxed)
    }

    /// The points that there are.
    pub fn all(&self) -> u64 {
        u64::MAX.checked_shr(64 - u32::try_from(self.points.len()).unwrap_or(64)).unwrap_or(0)
    }

    /// Turns points on; bits without a point are left off.
    pub fn enable(&self, mask: u64) {
        self.mask.fetch_or(mask & self.all(), Ordering::Relaxed);
    }

    /// Turns points off.
    pub fn disable(&self, mask: u64) {
        self.mask.fetch_and(!mask, Ordering::Relaxed);
    }
}

/// The first bytes of a name as arguments, for a point that says so.
pub fn text(name: &str) -> [u64; ARGS] {
    let mut bytes = name.bytes();
    std::array::from_fn(|_| u64::from_le_bytes(std::array::from_fn(|_| bytes.next().unwrap_or(0))))
}

/// Why a choice of points is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// No group has this name.
    #[error("there is no trace group {0}")]
    Group(String),
    /// Neither a mask nor names of points of the group.
    #[error("group {group} has no trace points {points}")]
    Points {
        /// The group.
        group: &'static str,
        /// What was asked for.
        points: String,
    },
}

/// The groups, and the points of each, that a flag in SPDK's form means: `all`, `group`, `group:MASK` or
/// `group:NAME+NAME`, the mask in hexadecimal.
///
/// # Errors
/// See [`SelectError`].
pub fn select(groups: &[&'static Group], flag: &str) -> Result<Vec<(&'static Group, u64)>, SelectError> {
    if flag == "all" {
        return Ok(groups.iter().map(|&group| (group, group.all())).collect());
    }
    let (name, points) = flag.split_once(':').map_or((flag, None), |(name, points)| (name, Some(points)));
    let group = groups.iter().find(|group| group.name == name);
    let &group = group.ok_or_else(|| SelectError::Group(name.to_owned()))?;
    let Some(points) = points else { return Ok(vec![(group, group.all())]) };
    let digits = points.strip_prefix("0x").unwrap_or(points);
    let mask = u64::from_str_radix(digits, 16).ok().filter(|mask| mask & group.all() == *mask);
    let named = |name| group.points.iter().position(|point| point.name == name).map(|at| 1 << at);
    let of_names = || points.split('+').map(named).try_fold(0, |mask, point| Some(mask | point?));
    match mask.or_else(of_names) {
        Some(mask) => Ok(vec![(group, mask)]),
        None => Err(SelectError::Points { group: group.name, points: points.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTS: &[Point] = &[
        Point { name: "IO_START", object: "io", args: &[] },
        Point { name: "IO_DONE", object: "io", args: &[] },
    ];
    static FIRST: Group = Group::new("first", 3, POINTS);
    static SECOND: Group = Group::new("second", 9, POINTS);
    static NONE: Group = Group::new("none", 10, &[]);

    fn chosen(flag: &str) -> Result<Vec<(&'static str, u64)>, SelectError> {
        let chosen = select(&[&FIRST, &SECOND], flag)?;
        Ok(chosen.into_iter().map(|(group, mask)| (group.name(), mask)).collect())
    }

    #[test]
    fn points_are_chosen_by_group_mask_or_name() {
        assert_eq!(chosen("all"), Ok(vec![("first", 3), ("second", 3)]));
        assert_eq!(chosen("second"), Ok(vec![("second", 3)]));
        assert_eq!(chosen("first:0x2"), Ok(vec![("first", 2)]));
        assert_eq!(chosen("first:1"), Ok(vec![("first", 1)]));
        assert_eq!(chosen("first:IO_DONE"), Ok(vec![("first", 2)]));
        assert_eq!(chosen("first:IO_DONE+IO_START"), Ok(vec![("first", 3)]));
    }

    #[test]
    fn groups_and_points_that_are_not_there_are_refused() {
        assert_eq!(chosen("third"), Err(SelectError::Group("third".to_owned())));
        assert_eq!(chosen(""), Err(SelectError::Group(String::new())));
        for points in ["0x4", "IO_NEVER", "IO_DONE+", ""] {
            let expected = SelectError::Points { group: "first", points: points.to_owned() };
            assert_eq!(chosen(&format!("first:{points}")), Err(expected));
        }
    }

    #[test]
    fn only_points_that_exist_turn_on_and_off() {
        SECOND.enable(u64::MAX);
        assert_eq!(SECOND.mask(), 3);
        SECOND.disable(1);
        assert_eq!(SECOND.mask(), 2);
        NONE.enable(u64::MAX);
        assert_eq!((NONE.all(), NONE.mask()), (0, 0));
    }
}

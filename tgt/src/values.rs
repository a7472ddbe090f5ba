//! Values of flags that no other crate reads: sizes, modes, owners, DPDK's core maps.

use std::str::FromStr;

use reactor::CoreMask;

/// Bytes; a number without a unit is in MiB, as with spdk_tgt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemSize(pub(crate) u64);

impl FromStr for MemSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unit = text.trim_start_matches(|digit: char| digit.is_ascii_digit());
        let shift = match unit.to_ascii_uppercase().as_str() {
            "" | "M" | "MB" => 20,
            "K" | "KB" => 10,
            "G" | "GB" => 30,
            _ => return Err(format!("\"{unit}\" is no unit; K, M and G are")),
        };
        let number: u64 = text[..text.len() - unit.len()].parse().map_err(|error| format!("{error}"))?;
        number.checked_mul(1 << shift).map(MemSize).ok_or_else(|| "too large".to_owned())
    }
}

/// Mode bits of a file, in octal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileMode(pub(crate) u32);

impl FromStr for FileMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mode = u32::from_str_radix(text, 8).map_err(|error| format!("{error}"))?;
        if mode > 0o777 { Err("more than 0777".to_owned()) } else { Ok(FileMode(mode)) }
    }
}

/// Who a file belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    /// User id, if it is to change.
    pub(crate) uid: Option<u32>,
    /// Group id, if it is to change.
    pub(crate) gid: Option<u32>,
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        let uid = id("/etc/passwd", "user", user)?;
        let gid = id("/etc/group", "group", group)?;
        Ok(Owner { uid, gid })
    }
}

/// The number of a user or a group in one of the two files of that form (passwd(5), group(5)).
fn id(file: &str, kind: &str, name: &str) -> Result<Option<u32>, String> {
    if name.is_empty() {
        return Ok(None);
    }
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let entry = lines.find(|fields| fields[0] == name);
    let number = entry.and_then(|fields| fields.get(2)?.parse().ok());
    number.map(Some).ok_or_else(|| format!("there is no {kind} {name}"))
}

/// DPDK's `--lcores`: `cores[@cpus]` groups separated by commas, each a number, a range, or a set in parentheses.
/// A reactor is named after the CPU it runs on, so a map to another CPU cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LcoreMap(CoreMask);

impl LcoreMap {
    /// The cores.
    pub(crate) fn cores(&self) -> CoreMask {
        self.0
    }
}

impl FromStr for LcoreMap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut cores = CoreMask::new();
        for group in groups(text) {
            let (names, cpus) = group.split_once('@').unwrap_or((group, group));
            let names = set(names)?;
            if set(cpus)? != names {
                return Err(format!("\"{group}\": a core runs on the CPU of its own number here"));
            }
            names.iter().for_each(|core| cores.insert(core));
        }
        if cores.is_empty() { Err("no cores".to_owned()) } else { Ok(LcoreMap(cores)) }
    }
}

/// The parts between the commas that are not in parentheses.
fn groups(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |letter| {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        letter == ',' && depth == 0
    })
}

fn set(text: &str) -> Result<CoreMask, String> {
    let list = text.trim().trim_start_matches('(').trim_end_matches(')');
    format!("[{list}]").parse().map_err(|error| format!("\"{text}\": {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_mib_unless_told_otherwise() {
        assert_eq!("512".parse(), Ok(MemSize(512 << 20)));
        assert_eq!("512K".parse(), Ok(MemSize(512 << 10)));
        assert_eq!("2g".parse(), Ok(MemSize(2 << 30)));
        assert!("".parse::<MemSize>().is_err());
        assert!("99999999999999G".parse::<MemSize>().is_err());
    }

    #[test]
    fn owners_are_names_or_numbers() {
        assert_eq!("root:root".parse(), Ok(Owner { uid: Some(0), gid: Some(0) }));
        assert_eq!("7".parse(), Ok(Owner { uid: Some(7), gid: None }));
        assert_eq!(":7".parse(), Ok(Owner { uid: None, gid: Some(7) }));
        assert!("no-such-user-here".parse::<Owner>().is_err());
    }

    #[test]
    fn core_maps_name_cores_that_are_their_own_cpus() {
        let cores = |text: &str| text.parse::<LcoreMap>().map(|map| map.cores().iter().collect::<Vec<_>>());
        assert_eq!(cores("0-1,3"), Ok(vec![0, 1, 3]));
        assert_eq!(cores("(0,2)@(0,2),4@4"), Ok(vec![0, 2, 4]));
        assert!(cores("0@1").is_err());
        assert!(cores("(0,1)@0").is_err());
        assert!(cores("").is_err());
    }
}

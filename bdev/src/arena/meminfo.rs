//! What /proc/meminfo says of free memory. Asked before memory is allocated, on control threads.

use std::fs;

/// The lines of /proc/meminfo that decide what memory is taken; see proc(5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Meminfo {
    /// Memory that can be had without swapping; `None` on a kernel that does not tell.
    pub(super) available_bytes: Option<u64>,
    /// Size of a hugepage of the default size; `None` on a kernel without hugetlb.
    pub(super) hugepage_bytes: Option<u64>,
    /// Hugepages that are free and not promised to anyone.
    pub(super) hugepages_unreserved: u64,
}

impl Meminfo {
    pub(super) fn read() -> Meminfo {
        // No /proc: nothing is known, so no hugepages.
        fs::read_to_string("/proc/meminfo").map(|text| Meminfo::parse(&text)).unwrap_or_default()
    }

    fn parse(text: &str) -> Meminfo {
        let field = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
            let mut words = line.split_whitespace();
            let number: u64 = words.next()?.parse().ok()?;
            match words.next() {
                Some("kB") => number.checked_mul(1024),
                _ => Some(number),
            }
        };
        let free = field("HugePages_Free").unwrap_or(0);
        let reserved = field("HugePages_Rsvd").unwrap_or(0);
        Meminfo {
            available_bytes: field("MemAvailable"),
            hugepage_bytes: field("Hugepagesize").filter(|b| b.is_power_of_two()),
            hugepages_unreserved: free.saturating_sub(reserved),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_hugepages_do_not_count_as_free() {
        let text = "MemAvailable:   2048 kB\nHugePages_Free:       10\nHugePages_Rsvd:        3\n\
                    Hugepagesize:       2048 kB\n";

        let expected = Meminfo {
            available_bytes: Some(2 << 20),
            hugepage_bytes: Some(2 << 20),
            hugepages_unreserved: 7,
        };
        assert_eq!(Meminfo::parse(text), expected);
    }

    #[test]
    fn a_kernel_without_hugetlb_has_no_hugepage_size() {
        assert_eq!(Meminfo::parse("MemTotal: 1 kB\n"), Meminfo::default());
        assert_eq!(Meminfo::parse("Hugepagesize: many kB\n").hugepage_bytes, None);
    }
}

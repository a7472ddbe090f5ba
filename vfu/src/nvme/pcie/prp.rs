//! Physical Region Page entries and lists (Base, 4.1.1).

use zerocopy::IntoBytes;

use super::memory::Lists;
use crate::nvme::spec::{PAGE, Status};

/// Entries of a list that are read at a time.
const CHUNK: usize = 64;

/// Calls `each` with address and length of every piece of `len` bytes of data, in order.
///
/// # Errors
/// The status of the command; `each` may have been called before.
#[inline]
pub(super) fn walk(
    lists: &impl Lists,
    [first, second]: [u64; 2],
    len: u64,
    mut each: impl FnMut(u64, u32) -> Result<(), Status>,
) -> Result<(), Status> {
    if first & 3 != 0 {
        return Err(Status::INVALID_PRP_OFFSET);
    }
    let head = (PAGE - first % PAGE).min(len);
    each(first, narrow(head))?;
    let left = len - head;
    if left == 0 {
        return Ok(());
    }
    if left <= PAGE {
        // Only the first entry may point into a page.
        if second % PAGE != 0 {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        return each(second, narrow(left));
    }
    list(lists, second, left, each)
}

#[expect(clippy::cast_possible_truncation, reason = "at most a page")]
fn narrow(len: u64) -> u32 {
    len as u32
}

fn list(
    lists: &impl Lists,
    mut at: u64,
    mut left: u64,
    mut each: impl FnMut(u64, u32) -> Result<(), Status>,
) -> Result<(), Status> {
    if at & 7 != 0 {
        return Err(Status::INVALID_PRP_OFFSET);
    }
    // Each round consumes a page of data or follows a pointer behind which there is one: bounded by `left`.
    while left > 0 {
        let in_page = (PAGE - at % PAGE) / 8;
        let wanted = left.div_ceil(PAGE);
        if in_page == 1 && wanted > 1 {
            // The last entry of a page points to the next page of the list, which a pointer alone cannot fill.
            let next = entries(lists, at, 1)?[0];
            if next % PAGE != 0 {
                return Err(Status::INVALID_PRP_OFFSET);
            }
            at = next;
            continue;
        }
        let usable = if wanted > in_page { in_page - 1 } else { wanted };
        let n = usable.min(CHUNK as u64);
        for &page in &entries(lists, at, n)?[..usize::try_from(n).unwrap_or(0)] {
            if page % PAGE != 0 {
                return Err(Status::INVALID_PRP_OFFSET);
            }
            let len = left.min(PAGE);
            each(page, narrow(len))?;
            left -= len;
        }
        at += n * 8;
    }
    Ok(())
}

fn entries(lists: &impl Lists, at: u64, n: u64) -> Result<[u64; CHUNK], Status> {
    let mut entries = [0; CHUNK];
    let n = usize::try_from(n).unwrap_or(CHUNK).min(CHUNK);
    lists.read(at, entries[..n].as_mut_bytes())?;
    Ok(entries)
}

//! Command descriptor blocks, parsed: pure, and nothing in one is trusted further than it was checked here. Ranges
//! against the size of the unit are checked by the bdev's channel.

use bdev::Op;

use super::{opcodes::Wanted, sense::Sense, spec::op};

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// TEST UNIT READY, START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL: nothing to do.
    Nothing,
    /// INQUIRY: the page, if a vital product data page is wanted.
    Inquiry { page: Option<u8>, room: u32 },
    /// REPORT LUNS.
    ReportLuns { room: u32 },
    /// REPORT SUPPORTED OPERATION CODES.
    ReportCodes { wanted: Wanted, timeouts: bool, room: u32 },
    /// REQUEST SENSE.
    RequestSense { room: u32 },
    /// MODE SENSE: long for the ten-byte one.
    ModeSense { page: u8, subpage: u8, long: bool, no_descriptor: bool, changeable: bool, room: u32 },
    /// READ CAPACITY (10).
    ReadCapacity,
    /// READ CAPACITY (16).
    ReadCapacityLong { room: u32 },
    /// READ and WRITE.
    Transfer { op: Op, lba: u64, blocks: u64 },
    /// VERIFY without comparing: the range must exist.
    Verify { lba: u64, blocks: u64 },
    /// VERIFY against data: a block for each, or one for all.
    Compare { lba: u64, blocks: u64, is_one: bool },
    /// SYNCHRONIZE CACHE.
    Flush,
    /// UNMAP: its descriptors come as data.
    Unmap { length: u32 },
    /// WRITE SAME: with a block of data unless `no_data`; zero blocks mean all that are left.
    WriteSame { lba: u64, blocks: u64, unmap: bool, no_data: bool },
    /// PERSISTENT RESERVE IN.
    ReserveIn { action: u8, room: u32 },
    /// PERSISTENT RESERVE OUT.
    ReserveOut { action: u8, scope_type: u8, length: u32 },
}

fn be16(cdb: &[u8], at: usize) -> u32 {
    u32::from(u16::from_be_bytes([cdb[at], cdb[at + 1]]))
}

fn be32(cdb: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]])
}

fn be64(cdb: &[u8], at: usize) -> u64 {
    u64::from(be32(cdb, at)) << 32 | u64::from(be32(cdb, at + 4))
}

/// READ, WRITE and VERIFY share their layout in each length: first block, blocks, and the byte with the flags.
fn range(cdb: &[u8]) -> (u64, u64) {
    match cdb[0] >> 5 {
        // Six bytes: 21 bits of address, and no blocks mean 256 (SBC-3, 5.8).
        0 => {
            let lba = be32(cdb, 0) & 0x1f_ffff;
            let blocks = if cdb[4] == 0 { 256 } else { u64::from(cdb[4]) };
            (u64::from(lba), blocks)
        }
        1 | 2 => (u64::from(be32(cdb, 2)), u64::from(be16(cdb, 7))),
        5 => (u64::from(be32(cdb, 2)), u64::from(be32(cdb, 6))),
        _ => (be64(cdb, 2), u64::from(be32(cdb, 10))),
    }
}

/// Parses a command.
pub(super) fn parse(cdb: &[u8; super::spec::CDB_LEN]) -> Result<Command, Sense> {
    // Protection information is not served (SBC-3, 4.22).
    let protect = |cdb: &[u8]| if cdb[1] >> 5 == 0 { Ok(()) } else { Err(Sense::INVALID_FIELD) };
    Ok(match cdb[0] {
        op::TEST_UNIT_READY | op::START_STOP_UNIT | op::PREVENT_ALLOW => Command::Nothing,
        op::INQUIRY => {
            let vital = cdb[1] & 1 != 0;
            if !vital && cdb[2] != 0 {
                return Err(Sense::INVALID_FIELD);
            }
            Command::Inquiry { page: vital.then_some(cdb[2]), room: be16(cdb, 3) }
        }
        op::REPORT_LUNS => Command::ReportLuns { room: be32(cdb, 6) },
        // Sense data are in the fixed format only (SPC-4, 6.39).
        op::REQUEST_SENSE if cdb[1] & 1 != 0 => return Err(Sense::INVALID_FIELD),
        op::REQUEST_SENSE => Command::RequestSense { room: u32::from(cdb[4]) },
        op::MODE_SENSE_6 | op::MODE_SENSE_10 => {
            let long = cdb[0] == op::MODE_SENSE_10;
            let control = cdb[2] >> 6;
            // Saved values do not exist (SPC-4, 6.11.5).
            if control == 3 {
                return Err(Sense { key: 0x5, code: 0x39, qualifier: 0 });
            }
            Command::ModeSense {
                page: cdb[2] & 0x3f,
                subpage: cdb[3],
                long,
                no_descriptor: cdb[1] & 8 != 0,
                changeable: control == 1,
                room: if long { be16(cdb, 7) } else { u32::from(cdb[4]) },
            }
        }
        op::READ_CAPACITY_10 => Command::ReadCapacity,
        op::SERVICE_ACTION_IN_16 if cdb[1] & 0x1f == 0x10 => {
            Command::ReadCapacityLong { room: be32(cdb, 10) }
        }
        op::READ_6 | op::READ_10 | op::READ_12 | op::READ_16 => {
            if cdb[0] != op::READ_6 {
                protect(cdb)?;
            }
            let (lba, blocks) = range(cdb);
            Command::Transfer { op: Op::Read, lba, blocks }
        }
        op::WRITE_6 | op::WRITE_10 | op::WRITE_12 | op::WRITE_16 => {
            let long = cdb[0] != op::WRITE_6;
            if long {
                protect(cdb)?;
            }
            let (lba, blocks) = range(cdb);
            let fua = long && cdb[1] & 8 != 0;
            Command::Transfer { op: Op::Write { fua }, lba, blocks }
        }
        op::VERIFY_10 | op::VERIFY_12 | op::VERIFY_16 => {
            protect(cdb)?;
            let (lba, blocks) = range(cdb);
            // BYTCHK (SBC-3, 5.31).
            match cdb[1] >> 1 & 3 {
                0 => Command::Verify { lba, blocks },
                1 => Command::Compare { lba, blocks, is_one: false },
                3 => Command::Compare { lba, blocks, is_one: true },
                _ => return Err(Sense::INVALID_FIELD),
            }
        }
        op::WRITE_VERIFY_10 | op::WRITE_VERIFY_12 | op::WRITE_VERIFY_16 => {
            protect(cdb)?;
            // What is on the medium by then is not compared with what was sent.
            if cdb[1] & 6 != 0 {
                return Err(Sense::INVALID_FIELD);
            }
            let (lba, blocks) = range(cdb);
            Command::Transfer { op: Op::Write { fua: true }, lba, blocks }
        }
        op::MAINTENANCE_IN if cdb[1] & 0x1f == 0x0c => {
            let (code, action) = (cdb[3], be16(cdb, 4) as u16);
            let one = |action, lenient| Wanted::One { code, action, lenient };
            let wanted = match cdb[2] & 7 {
                0 => Wanted::All,
                1 => one(None, false),
                2 => one(Some(action), false),
                3 => one(Some(action), true),
                _ => return Err(Sense::INVALID_FIELD),
            };
            Command::ReportCodes { wanted, timeouts: cdb[2] & 0x80 != 0, room: be32(cdb, 6) }
        }
        op::SYNCHRONIZE_CACHE_10 | op::SYNCHRONIZE_CACHE_16 => Command::Flush,
        op::UNMAP => {
            // ANCHOR is not there (SBC-3, 5.28).
            if cdb[1] & 1 != 0 {
                return Err(Sense::INVALID_FIELD);
            }
            Command::Unmap { length: be16(cdb, 7) }
        }
        op::WRITE_SAME_10 | op::WRITE_SAME_16 => {
            protect(cdb)?;
            let (lba, blocks) = range(cdb);
            // ANCHOR, PBDATA and LBDATA are not there (SBC-3, 5.40).
            if cdb[1] & 0x16 != 0 {
                return Err(Sense::INVALID_FIELD);
            }
            let no_data = cdb[0] == op::WRITE_SAME_16 && cdb[1] & 1 != 0;
            Command::WriteSame { lba, blocks, unmap: cdb[1] & 8 != 0, no_data }
        }
        op::PERSISTENT_RESERVE_IN => Command::ReserveIn { action: cdb[1] & 0x1f, room: be16(cdb, 7) },
        op::PERSISTENT_RESERVE_OUT => {
            Command::ReserveOut { action: cdb[1] & 0x1f, scope_type: cdb[2], length: be32(cdb, 5) }
        }
        _ => return Err(Sense::INVALID_OPCODE),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cdb(bytes: &[u8]) -> Result<Command, Sense> {
        let mut cdb = [0; super::super::spec::CDB_LEN];
        cdb[..bytes.len()].copy_from_slice(bytes);
        parse(&cdb)
    }

    fn read(lba: u64, blocks: u64) -> Result<Command, Sense> {
        Ok(Command::Transfer { op: Op::Read, lba, blocks })
    }

    #[test]
    fn reads_of_every_length_give_their_range() {
        assert_eq!(cdb(&[op::READ_6, 0x1f, 2, 3, 4]), read(0x1f_0203, 4));
        assert_eq!(cdb(&[op::READ_6, 0, 0, 0, 0]), read(0, 256));
        assert_eq!(cdb(&[op::READ_10, 0, 1, 2, 3, 4, 0, 5, 6]), read(0x0102_0304, 0x0506));
        assert_eq!(cdb(&[op::READ_12, 0, 1, 2, 3, 4, 5, 6, 7, 8]), read(0x0102_0304, 0x0506_0708));
        let long = [op::READ_16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        assert_eq!(cdb(&long), read(0x0102_0304_0506_0708, 0x090a_0b0c));
    }

    #[test]
    fn forced_unit_access_is_taken_from_the_long_writes_only() {
        let write = |fua, blocks| Ok(Command::Transfer { op: Op::Write { fua }, lba: 0, blocks });
        assert_eq!(cdb(&[op::WRITE_10, 8, 0, 0, 0, 0, 0, 0, 1]), write(true, 1));
        assert_eq!(cdb(&[op::WRITE_6, 0, 0, 0, 1]), write(false, 1));
    }

    #[test]
    fn what_is_not_served_is_told_by_its_sense() {
        assert_eq!(cdb(&[0xff]), Err(Sense::INVALID_OPCODE));
        assert_eq!(cdb(&[op::SERVICE_ACTION_IN_16, 0x11]), Err(Sense::INVALID_OPCODE));
        assert_eq!(cdb(&[op::INQUIRY, 0, 0x83]), Err(Sense::INVALID_FIELD));
        assert_eq!(cdb(&[op::READ_10, 0x20]), Err(Sense::INVALID_FIELD));
        assert_eq!(cdb(&[op::VERIFY_10, 4]), Err(Sense::INVALID_FIELD));
        assert_eq!(cdb(&[op::WRITE_VERIFY_10, 2]), Err(Sense::INVALID_FIELD));
        assert_eq!(cdb(&[op::REQUEST_SENSE, 1]), Err(Sense::INVALID_FIELD));
    }
}

//! REPORT SUPPORTED OPERATION CODES (SPC-4, 6.35): which commands there are, and which of their bits count. Pure.

use super::spec::op;

/// A command as it is told: its service action, if its code has several, and its bits in use (SPC-4, 6.35.3).
struct Known {
    code: u8,
    action: Option<u16>,
    /// The length is the code's; bytes beyond these are zero.
    usage: &'static [u8],
}

const fn known(code: u8, usage: &'static [u8]) -> Known {
    Known { code, action: None, usage }
}

const fn action(code: u8, action: u16, usage: &'static [u8]) -> Known {
    Known { code, action: Some(action), usage }
}

const FF: u8 = 0xff;
const SIX: &[u8] = &[0, 0, 0, 0, 0, 0];
const RANGE_10: &[u8] = &[0, 0x18, FF, FF, FF, FF, 0, FF, FF, 0];
const RANGE_12: &[u8] = &[0, 0x18, FF, FF, FF, FF, FF, FF, FF, FF, 0, 0];
const RANGE_16: &[u8] = &[0, 0x18, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, 0, 0];
const WRITE_VERIFY_10: &[u8] = &[0, 0x10, FF, FF, FF, FF, 0, FF, FF, 0];
const WRITE_VERIFY_12: &[u8] = &[0, 0x10, FF, FF, FF, FF, FF, FF, FF, FF, 0, 0];
const WRITE_VERIFY_16: &[u8] = &[0, 0x10, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, 0, 0];
const VERIFY_10: &[u8] = &[0, 0x16, FF, FF, FF, FF, 0, FF, FF, 0];
const VERIFY_12: &[u8] = &[0, 0x16, FF, FF, FF, FF, FF, FF, FF, FF, 0, 0];
const VERIFY_16: &[u8] = &[0, 0x16, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, 0, 0];
const RESERVE_IN: &[u8] = &[0, 0x1f, 0, 0, 0, 0, 0, FF, FF, 0];
const RESERVE_OUT: &[u8] = &[0, 0x1f, FF, 0, 0, FF, FF, FF, FF, 0];

/// All of them, as [`super::cdb`] parses them.
const ALL: [Known; 41] = [
    known(op::TEST_UNIT_READY, SIX),
    known(op::REQUEST_SENSE, &[0, 0, 0, 0, FF, 0]),
    known(op::READ_6, &[0, 0x1f, FF, FF, FF, 0]),
    known(op::WRITE_6, &[0, 0x1f, FF, FF, FF, 0]),
    known(op::INQUIRY, &[0, 1, FF, FF, FF, 0]),
    known(op::MODE_SENSE_6, &[0, 8, FF, FF, FF, 0]),
    known(op::START_STOP_UNIT, SIX),
    known(op::PREVENT_ALLOW, SIX),
    known(op::READ_CAPACITY_10, &[0; 10]),
    known(op::READ_10, RANGE_10),
    known(op::WRITE_10, RANGE_10),
    known(op::WRITE_VERIFY_10, WRITE_VERIFY_10),
    known(op::VERIFY_10, VERIFY_10),
    known(op::SYNCHRONIZE_CACHE_10, &[0; 10]),
    known(op::WRITE_SAME_10, &[0, 8, FF, FF, FF, FF, 0, FF, FF, 0]),
    known(op::UNMAP, &[0, 0, 0, 0, 0, 0, 0, FF, FF, 0]),
    known(op::MODE_SENSE_10, &[0, 8, FF, FF, 0, 0, 0, FF, FF, 0]),
    action(op::PERSISTENT_RESERVE_IN, 0, RESERVE_IN),
    action(op::PERSISTENT_RESERVE_IN, 1, RESERVE_IN),
    action(op::PERSISTENT_RESERVE_IN, 2, RESERVE_IN),
    action(op::PERSISTENT_RESERVE_IN, 3, RESERVE_IN),
    action(op::PERSISTENT_RESERVE_OUT, 0, RESERVE_OUT),
    action(op::PERSISTENT_RESERVE_OUT, 1, RESERVE_OUT),
    action(op::PERSISTENT_RESERVE_OUT, 2, RESERVE_OUT),
    action(op::PERSISTENT_RESERVE_OUT, 3, RESERVE_OUT),
    action(op::PERSISTENT_RESERVE_OUT, 4, RESERVE_OUT),
    action(op::PERSISTENT_RESERVE_OUT, 5, RESERVE_OUT),
    action(op::PERSISTENT_RESERVE_OUT, 6, RESERVE_OUT),
    known(op::READ_16, RANGE_16),
    known(op::WRITE_16, RANGE_16),
    known(op::WRITE_VERIFY_16, WRITE_VERIFY_16),
    known(op::VERIFY_16, VERIFY_16),
    known(op::SYNCHRONIZE_CACHE_16, &[0; 16]),
    known(op::WRITE_SAME_16, &[0, 9, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, FF, 0, 0]),
    action(op::SERVICE_ACTION_IN_16, 0x10, &[0, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, FF, FF, FF, FF, 0, 0]),
    known(op::REPORT_LUNS, &[0, 0, 0, 0, 0, 0, FF, FF, FF, FF, 0, 0]),
    action(op::MAINTENANCE_IN, 0x0c, &[0, 0x1f, 0x87, FF, FF, FF, FF, FF, FF, FF, 0, 0]),
    known(op::READ_12, RANGE_12),
    known(op::WRITE_12, RANGE_12),
    known(op::WRITE_VERIFY_12, WRITE_VERIFY_12),
    known(op::VERIFY_12, VERIFY_12),
];

/// What the initiator wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Every command.
    All,
    /// One by its code; by service action too, where `action` is there. `lenient`: an action is looked at only if
    /// the code has some (reporting option 3).
    One { code: u8, action: Option<u16>, lenient: bool },
}

/// A descriptor of timeouts that says nothing (SPC-4, 6.35.4).
const NO_TIMEOUTS: [u8; 12] = [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The data. None where the question is a wrong one.
pub(super) fn report(wanted: Wanted, timeouts: bool) -> Option<Vec<u8>> {
    match wanted {
        Wanted::All => {
            let mut data = vec![0; 4];
            for command in &ALL {
                let [high, low] = command.action.unwrap_or(0).to_be_bytes();
                let flags = u8::from(command.action.is_some()) | if timeouts { 2 } else { 0 };
                data.extend([command.code, 0, high, low, 0, flags, 0, command.usage.len() as u8]);
                data.extend(NO_TIMEOUTS.iter().take(if timeouts { NO_TIMEOUTS.len() } else { 0 }));
            }
            let len = (data.len() - 4) as u32;
            data[..4].copy_from_slice(&len.to_be_bytes());
            Some(data)
        }
        Wanted::One { code, action, lenient } => {
            let mut of_code = ALL.iter().filter(|command| command.code == code).peekable();
            let has_actions = of_code.peek().is_some_and(|command| command.action.is_some());
            // With the wrong option for this code (SPC-4, table 210).
            if of_code.peek().is_some() && !lenient && has_actions != action.is_some() {
                return None;
            }
            let found = of_code.find(|command| command.action.is_none() || command.action == action);
            // Supported as the standard says, or not at all.
            let support = if found.is_some() { 3 } else { 1 };
            let mut data = vec![0, support | if timeouts && found.is_some() { 0x80 } else { 0 }, 0, 0];
            if let Some(command) = found {
                data[3] = command.usage.len() as u8;
                let at = data.len();
                data.extend(command.usage);
                data[at] = code;
                if let Some(action) = command.action {
                    data[at + 1] = data[at + 1] & !0x1f | action as u8;
                }
                data.extend(NO_TIMEOUTS.iter().take(if timeouts { NO_TIMEOUTS.len() } else { 0 }));
            }
            Some(data)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::cdb, *};

    #[test]
    fn every_command_that_is_told_is_parsed_and_its_length_is_its_codes() {
        for command in &ALL {
            let mut block = [0; super::super::spec::CDB_LEN];
            (block[0], block[1]) = (command.code, command.action.unwrap_or(0) as u8);
            assert!(cdb::parse(&block).is_ok(), "{:#04x}", command.code);
            let lengths = [6, 10, 10, 0, 16, 12];
            assert_eq!(command.usage.len(), lengths[usize::from(command.code >> 5)], "{:#04x}", command.code);
        }
    }

    #[test]
    fn every_command_that_is_parsed_is_told() {
        let mut block = [0; super::super::spec::CDB_LEN];
        let mut parsed = (0..=255_u8).flat_map(|code| (0..32_u8).map(move |action| (code, action)));
        let told = |code, action| {
            let of_code: Vec<_> = ALL.iter().filter(|command| command.code == code).collect();
            of_code.iter().any(|it| it.action.is_none_or(|told| told == u16::from(action)))
        };
        assert!(parsed.all(|(code, action)| {
            (block[0], block[1]) = (code, action);
            let opcode = super::super::sense::Sense::INVALID_OPCODE;
            cdb::parse(&block).err() == Some(opcode) || told(code, action) || has_more_actions(code)
        }));
    }

    /// Actions of reservations are judged where they are carried out.
    fn has_more_actions(code: u8) -> bool {
        matches!(code, op::PERSISTENT_RESERVE_IN | op::PERSISTENT_RESERVE_OUT)
    }

    #[test]
    fn one_command_is_asked_for_by_the_option_that_fits_it() {
        let one = |code, action, lenient| report(Wanted::One { code, action, lenient }, false);
        assert_eq!(one(op::READ_10, None, false).unwrap()[..5], [0, 3, 0, 10, op::READ_10]);
        assert_eq!(one(0xff, None, false), Some(vec![0, 1, 0, 0]));
        assert_eq!(one(op::READ_10, Some(1), false), None);
        assert_eq!(one(op::MAINTENANCE_IN, None, false), None);
        assert_eq!(one(op::MAINTENANCE_IN, Some(0x0c), true).unwrap()[..6], [0, 3, 0, 12, 0xa3, 0x0c]);
        assert_eq!(one(op::MAINTENANCE_IN, Some(0x0d), false), Some(vec![0, 1, 0, 0]));
    }
}

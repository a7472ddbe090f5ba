//! What can go wrong on the control path, and the errno each case is told as.
//!
//! The RPC layer answers `-errno` with the text of [`Error::errno_text`], as SPDK's clients expect. The data
//! path knows [`Status`](crate::Status) instead.

use std::io;

use crate::ClaimKind;

/// A control-path operation that was refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No bdev has this name, alias or UUID, or it is being removed.
    #[error("no bdev named \"{name}\"")]
    NoSuchDevice {
        /// What was looked for.
        name: String,
    },
    /// The name, alias or UUID is taken.
    #[error("a bdev named \"{name}\" exists already")]
    Exists {
        /// The name both want.
        name: String,
    },
    /// A parameter that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// A combination that is legal but that this bdev does not do.
    #[error("{0}")]
    Unsupported(String),
    /// The claim of another holder forbids it.
    #[error("bdev \"{name}\" is claimed by {holder} ({kind})")]
    Claimed {
        /// The bdev.
        name: String,
        /// Who holds it.
        holder: String,
        /// How.
        kind: ClaimKind,
    },
    /// A claim that forbids writers was asked for while others have the bdev open for writing.
    #[error("bdev \"{name}\" is open for writing elsewhere")]
    OpenForWriting {
        /// The bdev.
        name: String,
    },
    /// Not now: the bdev is in use in a way that forbids it.
    #[error("bdev \"{name}\" is in use")]
    Busy {
        /// The bdev.
        name: String,
    },
    /// The memory asked for is not to be had.
    #[error("{len_bytes} bytes of memory are not available")]
    NoMemory {
        /// How much was asked for.
        len_bytes: u64,
    },
    /// The system refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// The error of opening a bdev or a channel; one enum serves the whole control path.
pub type OpenError = Error;

impl Error {
    /// The positive errno this is reported as.
    pub fn errno(&self) -> i32 {
        use rustix::io::Errno;
        let errno = match self {
            Error::NoSuchDevice { .. } => Errno::NODEV,
            Error::Exists { .. } => Errno::EXIST,
            Error::Invalid(_) => Errno::INVAL,
            Error::Unsupported(_) => Errno::OPNOTSUPP,
            Error::Claimed { .. } | Error::OpenForWriting { .. } => Errno::PERM,
            Error::Busy { .. } => Errno::BUSY,
            Error::NoMemory { .. } => Errno::NOMEM,
            Error::Io { source, .. } => return source.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
        };
        errno.raw_os_error()
    }

    /// What `strerror` says of [`errno`](Self::errno).
    pub fn errno_text(&self) -> String {
        strerror(self.errno())
    }
}

/// The C library's text for an errno, without the number that the standard library appends.
pub fn strerror(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.rfind(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_carry_the_errno_and_text_that_clients_match_on() {
        let missing = Error::NoSuchDevice { name: "x".into() };
        let taken = Error::Exists { name: "x".into() };
        let full = Error::Io { what: "write".into(), source: io::Error::from_raw_os_error(28) };

        assert_eq!((missing.errno(), missing.errno_text().as_str()), (19, "No such device"));
        assert_eq!((taken.errno(), taken.errno_text().as_str()), (17, "File exists"));
        assert_eq!((full.errno(), full.errno_text().as_str()), (28, "No space left on device"));
        assert_eq!(strerror(22), "Invalid argument");
        assert_eq!(strerror(95), "Operation not supported");
    }

    #[test]
    fn a_claim_is_told_with_its_holder() {
        let claimed =
            Error::Claimed { name: "Malloc0".into(), holder: "raid".into(), kind: ClaimKind::ExclusiveWrite };

        assert_eq!(claimed.to_string(), "bdev \"Malloc0\" is claimed by raid (exclusive_write)");
        assert_eq!(claimed.errno(), 1);
    }
}

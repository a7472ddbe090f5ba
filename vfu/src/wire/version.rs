//! The VERSION handshake: what each side can do, as JSON behind the two numbers.
//!
//! QEMU 11.1 reads our answer into a buffer of the size of its own request and refuses a longer one, so the answer is
//! compact and holds only the keys below.

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use super::spec::Version;

/// The one major number that exists.
pub const MAJOR: u16 = 0;
/// The newest minor number we speak.
pub const MINOR: u16 = 1;
/// File descriptors we take in one message. QEMU refuses a server that says more than 16.
pub const MAX_MSG_FDS: usize = 16;
/// Largest `count` of one access, both ways. Also what a peer gets that does not say its own.
pub const MAX_DATA_XFER_SIZE: u32 = 1 << 20;
/// Least a peer may take. Our messages are as many as the data are times longer than this: a peer may not have a request of
/// a guest become a message for each byte.
pub const MIN_DATA_XFER_SIZE: u32 = 512;
/// Windows of one client at a time; the most that QEMU accepts as an answer. Those with a file may be fewer: `dma/budget.rs`.
pub const MAX_DMA_MAPS: u32 = 65535;
/// Largest VERSION payload we read.
pub const MAX_VERSION_LEN: usize = 4096;
/// Granules a window may have.
const PAGE_SIZES: u64 = 4096;

/// What a peer said it can do. A missing key has its default (vfio-user: "Version and capabilities").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// File descriptors the sender takes in one message.
    #[serde(default = "default_fds")]
    pub max_msg_fds: u32,
    /// Largest `count` of one access.
    #[serde(default = "default_xfer")]
    pub max_data_xfer_size: u32,
    /// Simultaneous windows.
    #[serde(default = "default_maps")]
    pub max_dma_maps: u32,
    /// Bit mask of window granules.
    #[serde(default = "default_pgsizes")]
    pub pgsizes: u64,
    /// REGION_WRITE_MULTI is understood.
    #[serde(default)]
    pub write_multiple: bool,
    /// A second socket for server-to-client messages.
    #[serde(default)]
    pub twin_socket: TwinSocket,
}

/// The `twin_socket` capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwinSocket {
    /// The peer can use one.
    #[serde(default)]
    pub supported: bool,
    /// Which of the reply's file descriptors it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd_index: Option<u32>,
}

fn default_fds() -> u32 {
    1
}
fn default_xfer() -> u32 {
    MAX_DATA_XFER_SIZE
}
fn default_maps() -> u32 {
    MAX_DMA_MAPS
}
fn default_pgsizes() -> u64 {
    PAGE_SIZES
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            max_msg_fds: default_fds(),
            max_data_xfer_size: default_xfer(),
            max_dma_maps: default_maps(),
            pgsizes: default_pgsizes(),
            write_multiple: false,
            twin_socket: TwinSocket::default(),
        }
    }
}

/// Why a VERSION request is refused. Each is EINVAL on the wire, and the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// The payload has no room for the two numbers, or is longer than [`MAX_VERSION_LEN`].
    #[error("VERSION payload of {0} bytes")]
    Length(usize),
    /// A major number that does not exist.
    #[error("major version {0} does not exist")]
    Major(u16),
    /// The JSON does not end in NUL, or has one inside.
    #[error("the capabilities are not one NUL-terminated text")]
    NotTerminated,
    /// The JSON is not what the specification describes.
    #[error("the capabilities are not the JSON object that the specification describes")]
    Json,
    /// A capability has a value that no peer can mean.
    #[error("capability {0} is out of range")]
    Range(&'static str),
}

/// A decoded VERSION request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The peer's minor number.
    pub minor: u16,
    /// What the peer can do.
    pub capabilities: Capabilities,
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(default)]
    capabilities: Option<Capabilities>,
}

/// Decodes the payload of a VERSION request, or of its reply.
///
/// # Errors
/// See [`VersionError`]. No JSON at all is right: SPDK's initiators send none.
pub fn decode(payload: &[u8]) -> Result<Offer, VersionError> {
    if payload.len() > MAX_VERSION_LEN {
        return Err(VersionError::Length(payload.len()));
    }
    let Ok((version, json)) = Version::read_from_prefix(payload) else {
        return Err(VersionError::Length(payload.len()));
    };
    if version.major != MAJOR {
        return Err(VersionError::Major(version.major));
    }
    let capabilities = if json.is_empty() { Capabilities::default() } else { decode_json(json)? };
    Ok(Offer { minor: version.minor, capabilities })
}

fn decode_json(json: &[u8]) -> Result<Capabilities, VersionError> {
    let [text @ .., 0] = json else { return Err(VersionError::NotTerminated) };
    if text.contains(&0) {
        return Err(VersionError::NotTerminated);
    }
    let Ok(Envelope { capabilities }) = serde_json::from_slice(text) else { return Err(VersionError::Json) };
    let capabilities = capabilities.unwrap_or_default();
    // The kernel passes at most 253 descriptors in one message (SCM_MAX_FD).
    if capabilities.max_msg_fds > 253 {
        return Err(VersionError::Range("max_msg_fds"));
    }
    if capabilities.max_data_xfer_size < MIN_DATA_XFER_SIZE {
        return Err(VersionError::Range("max_data_xfer_size"));
    }
    Ok(capabilities)
}

/// Encodes our side: the payload of the reply to a peer that speaks `minor`, or of a request.
#[must_use]
pub fn encode(minor: u16, twin_socket_fd: Option<u32>) -> Vec<u8> {
    let mut json = format!(
        r#"{{"capabilities":{{"max_msg_fds":{MAX_MSG_FDS},"max_data_xfer_size":{MAX_DATA_XFER_SIZE},"max_dma_maps":{MAX_DMA_MAPS},"pgsizes":{PAGE_SIZES},"write_multiple":true"#
    );
    if let Some(index) = twin_socket_fd {
        json.push_str(&format!(r#","twin_socket":{{"supported":true,"fd_index":{index}}}"#));
    }
    json.push_str("}}\0");
    let mut payload = Version { major: MAJOR, minor: minor.min(MINOR) }.as_bytes().to_vec();
    payload.extend_from_slice(json.as_bytes());
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The request of QEMU 11.1 as captured on its socket: 214 bytes with the header.
    const QEMU: &[u8] = b"\0\0\0\0{\"capabilities\":{\"pgsizes\":4096,\"max_msg_fds\":16,\"max_dma_maps\":65535,\
        \"max_data_xfer_size\":1048576,\"migration\":{\"max_bitmap_size\":268435456,\"pgsize\":4096},\"write_multiple\":true}}\0";

    fn with_json(json: &str) -> Vec<u8> {
        [&[0, 0, 1, 0], json.as_bytes(), &[0]].concat()
    }

    #[test]
    fn qemu_offer_is_understood() {
        let offer = decode(QEMU).unwrap();
        assert_eq!(offer.minor, 0);
        assert_eq!(offer.capabilities.max_msg_fds, 16);
        assert!(offer.capabilities.write_multiple);
    }

    #[test]
    fn reply_fits_in_the_buffer_qemu_reserves() {
        assert!(encode(0, None).len() <= QEMU.len());
    }

    #[test]
    fn reply_decodes_to_what_we_can_do() {
        let offer = decode(&encode(7, Some(0))).unwrap();
        assert_eq!(offer.minor, MINOR);
        assert_eq!(offer.capabilities.max_msg_fds as usize, MAX_MSG_FDS);
        assert_eq!(offer.capabilities.twin_socket, TwinSocket { supported: true, fd_index: Some(0) });
    }

    #[test]
    fn no_json_means_the_defaults() {
        assert_eq!(decode(&[0, 0, 9, 0]).unwrap(), Offer { minor: 9, capabilities: Capabilities::default() });
        assert_eq!(decode(&with_json("{}")).unwrap().capabilities, Capabilities::default());
    }

    #[test]
    fn bad_payloads_are_refused_by_name() {
        assert_eq!(decode(&[0, 0, 0]), Err(VersionError::Length(3)));
        assert_eq!(decode(&[1, 0, 0, 0]), Err(VersionError::Major(1)));
        assert_eq!(decode(b"\0\0\0\0{}"), Err(VersionError::NotTerminated));
        assert_eq!(decode(b"\0\0\0\0{}\0{}\0"), Err(VersionError::NotTerminated));
        assert_eq!(decode(&with_json("{")), Err(VersionError::Json));
        assert_eq!(decode(&with_json("[]x")), Err(VersionError::Json));
        assert_eq!(decode(&with_json(r#"{"capabilities":7}"#)), Err(VersionError::Json));
        assert_eq!(decode(&with_json(r#"{"capabilities":{"max_msg_fds":-1}}"#)), Err(VersionError::Json));
        assert_eq!(decode(&with_json(r#"{"capabilities":{"max_msg_fds":"1"}}"#)), Err(VersionError::Json));
        assert_eq!(
            decode(&with_json(r#"{"capabilities":{"max_msg_fds":4096}}"#)),
            Err(VersionError::Range("max_msg_fds"))
        );
        assert_eq!(
            decode(&with_json(r#"{"capabilities":{"max_data_xfer_size":511}}"#)),
            Err(VersionError::Range("max_data_xfer_size"))
        );
        assert_eq!(decode(&vec![0; MAX_VERSION_LEN + 1]), Err(VersionError::Length(MAX_VERSION_LEN + 1)));
    }
}

//! VERSION payloads.

use vfu::wire::version::{MAX_VERSION_LEN, MIN_DATA_XFER_SIZE, MINOR, decode, encode};

pub(super) fn run(input: &[u8]) {
    let Ok(offer) = decode(input) else { return };
    assert!(input.len() <= MAX_VERSION_LEN);
    assert!(offer.capabilities.max_data_xfer_size >= MIN_DATA_XFER_SIZE);
    let answer = encode(offer.minor, None);
    let agreed = decode(&answer).expect("our own answer is well-formed");
    assert!(agreed.minor <= offer.minor && agreed.minor <= MINOR);
}

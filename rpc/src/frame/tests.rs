//! Tests of the framer: values split over reads, several in one read, white space, and the end of the stream.

use proptest::prelude::*;

use super::*;
use crate::limits::REQUEST_BYTES_MAX;

/// All values in `pieces`, each as text, and the fault that ended them if one did.
fn values<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, Option<Fault>) {
    let mut framer = Framer::new();
    let mut found = Vec::new();
    let mut drain = |framer: &mut Framer| -> Result<(), Fault> {
        while framer.scan()? {
            found.push(framer.take()?.to_owned());
        }
        Ok(())
    };
    let mut fault = None;
    for piece in pieces {
        framer.buffer().extend_from_slice(piece);
        fault = fault.or(drain(&mut framer).err());
        if fault.is_some() {
            break;
        }
    }
    let ended = fault.map_or_else(|| framer.end_of_stream().and_then(|()| drain(&mut framer)), Err);
    (found, ended.err())
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

#[test]
fn values_without_a_gap_and_with_white_space_are_told_apart() {
    let stream = b" \r\n{\"a\":1}{}\t[2]  \n\"x\"true 17 ";
    let expected = texts(&[r#"{"a":1}"#, "{}", "[2]", r#""x""#, "true", "17"]);
    assert_eq!(values([&stream[..]]), (expected, None));
}

#[test]
fn value_split_at_every_byte_is_whole() {
    let stream = r#"{"é":"\uD83D\uDE00ü"}[1.5e3]"#.as_bytes();
    let expected = texts(&[r#"{"é":"\uD83D\uDE00ü"}"#, "[1.5e3]"]);
    assert_eq!(values(stream.chunks(1)), (expected, None));
}

#[test]
fn number_at_the_end_of_the_stream_is_complete() {
    assert_eq!(values([&b"1"[..], b"2"]), (texts(&["12"]), None));
}

#[test]
fn value_cut_off_by_the_end_of_the_stream_is_a_fault() {
    assert_eq!(values([&b"{}{\"a\":"[..]]), (texts(&["{}"]), Some(Fault::Syntax)));
}

#[test]
fn bytes_that_are_not_utf8_are_a_fault() {
    assert_eq!(values([&b"[\"\xff\"]"[..]]), (texts(&[]), Some(Fault::Syntax)));
    assert_eq!(values([&b"\xef\xbb\xbf{}"[..]]), (texts(&[]), Some(Fault::Syntax)));
}

#[test]
fn white_space_between_values_is_not_kept() {
    let mut framer = Framer::new();
    for _ in 0..100 {
        framer.buffer().extend_from_slice(&[b' '; REQUEST_BYTES_MAX / 10]);
        assert_eq!(framer.scan(), Ok(false));
    }
    assert!(framer.buffer().capacity() < REQUEST_BYTES_MAX);
}

/// Text that is nearly JSON, so that the interesting states are reached.
fn nearly_json() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "\\", "\"a\"", "\"a\":", "1", "-", ".", "e", "0", "true", "null",
            "fals", " ", "\n", "\\u", "D83D", "\\uDE00", "{}", "[1]", "{\"a\":1}", "é",
        ]).prop_map(|text| text.as_bytes().to_vec()),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn split_points_do_not_matter(bytes in nearly_json(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
        prop_assert_eq!(values(pieces), values([&bytes[..]]));
    }

    #[test]
    fn one_value_is_whole_exactly_when_serde_json_reads_it(inner in nearly_json()) {
        let bytes = [b"[", &inner[..], b"]"].concat();
        let oracle = serde_json::from_slice::<serde_json::Value>(&bytes);
        // An f64 has no 1e400; the framer has no opinion on how large a number is.
        prop_assume!(!oracle.as_ref().is_err_and(|error| error.to_string().contains("out of range")));
        let (found, fault) = values([&bytes[..]]);
        let whole = fault.is_none() && found.len() == 1 && found[0].as_bytes() == &bytes[..];
        prop_assert_eq!(whole, oracle.is_ok());
    }

    #[test]
    fn every_json_value_is_cut_out_whole(value in json(), cut in any::<prop::sample::Index>()) {
        let text = serde_json::to_string_pretty(&value).unwrap();
        let stream = format!("{text}\n{text} ");
        let (before, after) = stream.as_bytes().split_at(cut.index(stream.len()));
        prop_assert_eq!(values([before, after]), (vec![text.clone(), text], None));
    }
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".*".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::vec((".*", inner), 0..6)
                .prop_map(|members| members.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

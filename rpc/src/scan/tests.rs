//! Tests of the scanner: what ends a value, what is refused and when, and each limit from both sides.

use super::*;

fn scan(text: &str) -> Result<Scan, Fault> {
    Scanner::new().feed(text.as_bytes())
}

/// Fed byte by byte: the offset of the byte at which the fault shows.
fn fault_at(text: &str) -> Option<(usize, Fault)> {
    let mut scanner = Scanner::new();
    let fault = |(at, byte): (usize, u8)| scanner.feed(&[byte]).err().map(|fault| (at, fault));
    text.bytes().enumerate().find_map(fault)
}

#[test]
fn object_ends_at_its_closing_bracket() {
    assert_eq!(scan(r#"{"a":[1,{"b":null}]}{"#), Ok(Scan::End(20)));
    assert_eq!(scan("[]]"), Ok(Scan::End(2)));
}

#[test]
fn brackets_in_strings_do_not_count() {
    assert_eq!(scan(r#"{"}":"]\"}"}x"#), Ok(Scan::End(12)));
}

#[test]
fn strings_and_literals_end_with_themselves() {
    assert_eq!(scan(r#""a"1"#), Ok(Scan::End(3)));
    assert_eq!(scan("true1"), Ok(Scan::End(4)));
}

#[test]
fn number_ends_before_the_byte_that_is_not_its() {
    assert_eq!(scan("12 "), Ok(Scan::End(2)));
    assert_eq!(scan("-1.5e+3{"), Ok(Scan::End(7)));
    assert_eq!(scan("12"), Ok(Scan::More));
}

#[test]
fn only_a_complete_number_ends_with_the_stream() {
    let ends = |text: &str| {
        let mut scanner = Scanner::new();
        scanner.feed(text.as_bytes()).map(|_| scanner.ends_with_stream())
    };
    assert_eq!(ends("12"), Ok(true));
    assert_eq!(ends("12e"), Ok(false));
    assert_eq!(ends("[12"), Ok(false));
    assert_eq!(ends("\"a"), Ok(false));
}

#[test]
fn every_form_of_value_passes() {
    let text = r#"[0,-0,10,0.5,1e3,1E-3,2.50e+10,true,false,null,"","\"\\\/\b\f\n\r\t\u00e9\uD83D\uDE00",{},[],
        { "a" : 1 , "b" : [ ] }]"#;
    assert_eq!(scan(text), Ok(Scan::End(text.len())));
}

#[test]
fn what_is_not_json_is_refused_at_the_first_wrong_byte() {
    for (text, at) in [
        ("hello", 0),
        ("nulx", 3),
        ("}", 0),
        ("{]", 1),
        ("[}", 1),
        ("{1", 1),
        (r#"{"a" 1"#, 5),
        (r#"{"a":}"#, 5),
        (r#"{"a":1,}"#, 7),
        (r#"{"a":1 "b""#, 7),
        ("[1,]", 3),
        ("[,", 1),
        ("[1 2", 3),
        ("[01", 2),
        ("[+1", 1),
        ("[1.]", 3),
        ("[1.e", 3),
        ("[.5", 1),
        ("[1e]", 3),
        ("[-]", 2),
        ("[NaN", 1),
        ("[\"\n", 2),
        (r#"["\x"#, 3),
        (r#"["\u12g"#, 6),
        (r#"["\uDC00"#, 7),
        (r#"["\uD800x"#, 8),
        (r#"["\uD800\n"#, 9),
        (r#"["\uD800\u0041"#, 13),
        ("[1,/*c*/2]", 3),
        ("// c", 0),
    ] {
        assert_eq!(fault_at(text), Some((at, Fault::Syntax)), "{text}");
    }
}

#[test]
fn depth_at_the_limit_passes_and_one_more_does_not() {
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(scan(&deep(REQUEST_DEPTH_MAX)), Ok(Scan::End(2 * REQUEST_DEPTH_MAX)));
    assert_eq!(scan(&deep(REQUEST_DEPTH_MAX + 1)), Err(Fault::TooDeep));
}

#[test]
fn closed_containers_give_their_depth_back() {
    let text = format!("[{}[]]", "[[]],".repeat(100));
    assert_eq!(scan(&text), Ok(Scan::End(text.len())));
}

#[test]
fn tokens_at_the_limit_pass_and_one_more_does_not() {
    // Two brackets, and each element is one.
    let array = |tokens: usize| format!("[{}0]", "0,".repeat(tokens - 3));
    assert!(scan(&array(REQUEST_TOKENS_MAX)).is_ok());
    assert_eq!(scan(&array(REQUEST_TOKENS_MAX + 1)), Err(Fault::TooManyTokens));
    // A member is two tokens, a closing bracket one.
    let object = |members: usize| format!("{{{}\"a\":0}}", "\"a\":0,".repeat(members - 1));
    assert!(scan(&object(REQUEST_TOKENS_MAX / 2 - 1)).is_ok());
    assert_eq!(scan(&object(REQUEST_TOKENS_MAX / 2)), Err(Fault::TooManyTokens));
}

#[test]
fn length_at_the_limit_passes_and_one_more_does_not() {
    let string = |length: usize| format!("\"{}\"", "a".repeat(length - 2));
    assert_eq!(scan(&string(REQUEST_BYTES_MAX)), Ok(Scan::End(REQUEST_BYTES_MAX)));
    assert_eq!(scan(&string(REQUEST_BYTES_MAX + 1)), Err(Fault::TooLong));
    let padded = |length: usize| format!("[{}]", " ".repeat(length - 2));
    assert_eq!(scan(&padded(REQUEST_BYTES_MAX)), Ok(Scan::End(REQUEST_BYTES_MAX)));
    assert_eq!(scan(&padded(REQUEST_BYTES_MAX + 1)), Err(Fault::TooLong));
    let number = "1".repeat(REQUEST_BYTES_MAX);
    assert_eq!(scan(&format!("{number} ")), Ok(Scan::End(REQUEST_BYTES_MAX)));
    assert_eq!(scan(&format!("{number}1")), Err(Fault::TooLong));
}

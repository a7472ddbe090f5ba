//! Comments in configuration files: `//` to the end of the line and `/* */`, outside of strings. JSON has none, and on
//! the socket there are none.

/// Where in the text.
enum At {
    Json,
    Text,
    Escape,
    Line,
    Block,
}

/// Overwrites comments with blanks, so that positions in messages stay true. An open block comment stays: what is left
/// is no JSON, and is told as such.
pub(super) fn blank(text: &mut [u8]) {
    let mut at = At::Json;
    let mut from = 0;
    let mut index = 0;
    while index < text.len() {
        let pair = (text[index], text.get(index + 1).copied());
        at = match (at, pair) {
            (At::Json, (b'"', _)) | (At::Escape, _) => At::Text,
            (At::Text, (b'"', _)) => At::Json,
            (At::Text, (b'\\', _)) => At::Escape,
            (At::Json, (b'/', Some(next @ (b'/' | b'*')))) => {
                from = index;
                index += 1;
                if next == b'/' { At::Line } else { At::Block }
            }
            (At::Line, (b'\n', _)) => {
                text[from..index].fill(b' ');
                At::Json
            }
            (At::Block, (b'*', Some(b'/'))) => {
                index += 1;
                text[from..=index].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
                At::Json
            }
            (at, _) => at,
        };
        index += 1;
    }
    if matches!(at, At::Line) {
        text[from..].fill(b' ');
    }
}

#[cfg(test)]
mod tests {
    fn blank(text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        super::blank(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn comments_become_blanks_and_strings_stay() {
        assert_eq!(blank("1 // x\n2"), "1     \n2");
        assert_eq!(blank("1 /* x\ny */ 2"), "1     \n     2");
        assert_eq!(blank(r#""//" "\"/*" 1"#), r#""//" "\"/*" 1"#);
        assert_eq!(blank("1 // end"), "1       ");
        assert_eq!(blank("/**/1"), "    1");
        assert_eq!(blank("/*/1*/"), "      ");
    }

    #[test]
    fn what_is_no_comment_is_left_for_the_parser_to_refuse() {
        assert_eq!(blank("1 / 2"), "1 / 2");
        assert_eq!(blank("/* open"), "/* open");
        assert_eq!(blank("\"open // "), "\"open // ");
    }
}

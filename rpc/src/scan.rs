//! Finds the end of one JSON value (RFC 8259) in bytes that arrive in pieces, looking at each byte once, and refuses
//! what is not JSON at the first byte that shows it. Called by `frame`; decodes nothing.
//!
//! What passes is well-formed but for one thing: whether string bytes are UTF-8 is the caller's check on the whole
//! value.

use crate::limits::{REQUEST_BYTES_MAX, REQUEST_DEPTH_MAX, REQUEST_TOKENS_MAX};

/// Why a stream of requests cannot go on: there is no sure place to start again in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not JSON.
    Syntax,
    /// More than [`REQUEST_BYTES_MAX`].
    TooLong,
    /// More than [`REQUEST_TOKENS_MAX`].
    TooManyTokens,
    /// More than [`REQUEST_DEPTH_MAX`].
    TooDeep,
}

/// What the bytes of one call to [`Scanner::feed`] led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// All of them belong to the value, and it goes on.
    More,
    /// The value ended after this many of them.
    End(usize),
}

/// What may come next, outside of strings, numbers and literals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Value,
    ValueOrClose,
    Name,
    NameOrClose,
    Colon,
    CommaOrClose,
}

/// The token that the next byte continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    None,
    Text,
    /// After a backslash.
    Escape,
    /// In `\uXXXX`: digits still to come and the value so far.
    Unicode {
        left: u8,
        value: u16,
    },
    /// After the first half of a surrogate pair: the backslash of the second must follow.
    PairBackslash,
    /// And then its `u`.
    PairU,
    /// In the second half.
    PairUnicode {
        left: u8,
        value: u16,
    },
    /// What is left of `true`, `false` or `null`.
    Literal(&'static [u8]),
    Number(Number),
}

/// Where in a number (RFC 8259, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

/// The state between two pieces of one value.
#[derive(Clone, Debug)]
pub(crate) struct Scanner {
    expect: Expect,
    token: Token,
    /// One bit per open container, the innermost lowest; set for objects.
    containers: u64,
    depth: usize,
    tokens: usize,
    bytes: usize,
}

impl Scanner {
    pub(crate) fn new() -> Scanner {
        Scanner { expect: Expect::Value, token: Token::None, containers: 0, depth: 0, tokens: 0, bytes: 0 }
    }

    /// Whether not one byte of the value was seen. Until then the caller skips white space.
    pub(crate) fn is_fresh(&self) -> bool {
        self.bytes == 0
    }

    /// Whether the end of the stream would complete the value: true for a number outside of any container, whose
    /// last digit only the byte after it reveals.
    pub(crate) fn ends_with_stream(&self) -> bool {
        let Token::Number(number) = self.token else { return false };
        self.depth == 0 && number.is_complete()
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Scan, Fault> {
        let mut at = 0;
        while at < bytes.len() {
            if self.token == Token::Text {
                at += self.skip_plain_text(&bytes[at..]);
                if at == bytes.len() {
                    break;
                }
            }
            let byte = bytes[at];
            if let Token::Number(number) = self.token {
                match number.next(byte) {
                    Some(next) => self.token = Token::Number(next),
                    None if number.is_complete() => {
                        // The byte is not the number's: it is looked at again as what follows it.
                        if self.close_token() {
                            return Ok(Scan::End(at));
                        }
                        continue;
                    }
                    None => return Err(Fault::Syntax),
                }
                self.count_byte()?;
                at += 1;
                continue;
            }
            self.count_byte()?;
            at += 1;
            if self.step(byte)? {
                return Ok(Scan::End(at));
            }
        }
        Ok(Scan::More)
    }

    fn count_byte(&mut self) -> Result<(), Fault> {
        self.bytes += 1;
        if self.bytes > REQUEST_BYTES_MAX { Err(Fault::TooLong) } else { Ok(()) }
    }

    /// Passes over the bytes of a string that mean only themselves; never past the length limit.
    fn skip_plain_text(&mut self, bytes: &[u8]) -> usize {
        let room = REQUEST_BYTES_MAX - self.bytes;
        let plain = |byte: &u8| *byte >= 0x20 && *byte != b'"' && *byte != b'\\';
        let length = bytes.iter().take(room).take_while(|byte| plain(byte)).count();
        self.bytes += length;
        length
    }

    /// Takes one byte that is not part of a number. True if it ended the value.
    fn step(&mut self, byte: u8) -> Result<bool, Fault> {
        match self.token {
            Token::None => return self.structure(byte),
            Token::Number(_) => return Err(Fault::Syntax),
            Token::Text => match byte {
                b'"' => return Ok(self.close_token()),
                b'\\' => self.token = Token::Escape,
                0x20.. => {}
                _ => return Err(Fault::Syntax),
            },
            Token::Escape => match byte {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.token = Token::Text,
                b'u' => self.token = Token::Unicode { left: 4, value: 0 },
                _ => return Err(Fault::Syntax),
            },
            Token::Unicode { left, value } => {
                let value = value << 4 | hex_digit(byte)?;
                self.token = match (left - 1, value) {
                    (0, 0xD800..=0xDBFF) => Token::PairBackslash,
                    (0, 0xDC00..=0xDFFF) => return Err(Fault::Syntax),
                    (0, _) => Token::Text,
                    (left, value) => Token::Unicode { left, value },
                };
            }
            Token::PairBackslash if byte == b'\\' => self.token = Token::PairU,
            Token::PairU if byte == b'u' => self.token = Token::PairUnicode { left: 4, value: 0 },
            Token::PairBackslash | Token::PairU => return Err(Fault::Syntax),
            Token::PairUnicode { left, value } => {
                let value = value << 4 | hex_digit(byte)?;
                self.token = match (left - 1, value) {
                    (0, 0xDC00..=0xDFFF) => Token::Text,
                    (0, _) => return Err(Fault::Syntax),
                    (left, value) => Token::PairUnicode { left, value },
                };
            }
            Token::Literal(rest) => match rest.split_first() {
                Some((next, [])) if *next == byte => return Ok(self.close_token()),
                Some((next, rest)) if *next == byte => self.token = Token::Literal(rest),
                _ => return Err(Fault::Syntax),
            },
        }
        Ok(false)
    }

    /// Takes one byte between tokens.
    fn structure(&mut self, byte: u8) -> Result<bool, Fault> {
        let value = matches!(self.expect, Expect::Value | Expect::ValueOrClose);
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => return Ok(false),
            b'{' | b'[' if value => return self.open(byte == b'{').map(|()| false),
            b'}' | b']' => return self.close(byte == b'}'),
            b'"' if value || matches!(self.expect, Expect::Name | Expect::NameOrClose) => {
                self.begin(Token::Text)?;
            }
            b't' if value => self.begin(Token::Literal(b"rue"))?,
            b'f' if value => self.begin(Token::Literal(b"alse"))?,
            b'n' if value => self.begin(Token::Literal(b"ull"))?,
            b'-' if value => self.begin(Token::Number(Number::Minus))?,
            b'0' if value => self.begin(Token::Number(Number::Zero))?,
            b'1'..=b'9' if value => self.begin(Token::Number(Number::Integer))?,
            b':' if self.expect == Expect::Colon => self.expect = Expect::Value,
            b',' if self.expect == Expect::CommaOrClose => {
                self.expect = if self.in_object() { Expect::Name } else { Expect::Value };
            }
            _ => return Err(Fault::Syntax),
        }
        Ok(false)
    }

    fn count_token(&mut self) -> Result<(), Fault> {
        self.tokens += 1;
        if self.tokens > REQUEST_TOKENS_MAX { Err(Fault::TooManyTokens) } else { Ok(()) }
    }

    fn begin(&mut self, token: Token) -> Result<(), Fault> {
        self.count_token()?;
        self.token = token;
        Ok(())
    }

    /// A string, number or literal is complete. True if the value is.
    fn close_token(&mut self) -> bool {
        self.token = Token::None;
        let name = matches!(self.expect, Expect::Name | Expect::NameOrClose);
        self.expect = if name { Expect::Colon } else { Expect::CommaOrClose };
        self.depth == 0
    }

    fn in_object(&self) -> bool {
        self.containers & 1 == 1
    }

    fn open(&mut self, object: bool) -> Result<(), Fault> {
        if self.depth == REQUEST_DEPTH_MAX {
            return Err(Fault::TooDeep);
        }
        self.count_token()?;
        self.depth += 1;
        self.containers = self.containers << 1 | u64::from(object);
        self.expect = if object { Expect::NameOrClose } else { Expect::ValueOrClose };
        Ok(())
    }

    fn close(&mut self, object: bool) -> Result<bool, Fault> {
        let empty = if object { Expect::NameOrClose } else { Expect::ValueOrClose };
        let allowed = self.expect == Expect::CommaOrClose || self.expect == empty;
        if self.depth == 0 || self.in_object() != object || !allowed {
            return Err(Fault::Syntax);
        }
        self.count_token()?;
        self.depth -= 1;
        self.containers >>= 1;
        self.expect = Expect::CommaOrClose;
        Ok(self.depth == 0)
    }
}

impl Number {
    /// The state after `byte`, or none if the byte cannot belong to the number.
    fn next(self, byte: u8) -> Option<Number> {
        use Number::{Exponent, ExponentDigits, ExponentSign, Fraction, Integer, Minus, Point, Zero};
        Some(match (self, byte) {
            (Minus, b'0') => Zero,
            (Minus, b'1'..=b'9') | (Integer, b'0'..=b'9') => Integer,
            (Zero | Integer, b'.') => Point,
            (Point | Fraction, b'0'..=b'9') => Fraction,
            (Zero | Integer | Fraction, b'e' | b'E') => Exponent,
            (Exponent, b'+' | b'-') => ExponentSign,
            (Exponent | ExponentSign | ExponentDigits, b'0'..=b'9') => ExponentDigits,
            _ => return None,
        })
    }

    fn is_complete(self) -> bool {
        matches!(self, Number::Zero | Number::Integer | Number::Fraction | Number::ExponentDigits)
    }
}

fn hex_digit(byte: u8) -> Result<u16, Fault> {
    match byte {
        b'0'..=b'9' => Ok(u16::from(byte - b'0')),
        b'a'..=b'f' => Ok(u16::from(byte - b'a' + 10)),
        b'A'..=b'F' => Ok(u16::from(byte - b'A' + 10)),
        _ => Err(Fault::Syntax),
    }
}

#[cfg(test)]
mod tests;

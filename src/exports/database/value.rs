//! What a database's types are to us, and its values as the text that a csv of the same rows would hold.

use std::borrow::Cow;
use std::fmt::Write;

use crate::domain::Texts;
use crate::exports::layout::cleaned_id;

/// How a value is written out by its database, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueKind {
    Text,
    /// A whole number, by DuckDB's type.
    Integer(&'static str),
    Float(&'static str),
    Decimal,
    /// MySQL's `TINYINT(1)`: 0 or 1.
    Tiny,
    /// PostgreSQL's `t` or `f`.
    Letter,
    Date,
    /// What a clock on a wall shows.
    WallClock,
    /// The same in UTC without saying so: MySQL's `TIMESTAMP`, for a session that is in UTC.
    SilentUtc,
    /// A moment with its zone.
    Moment,
    Bytes,
    /// PostgreSQL's `\x` and digits.
    HexBytes,
    /// MySQL's `BIT`: a number as bytes.
    Bits,
}

impl ValueKind {
    /// DuckDB's type; of decimals without digits.
    pub(super) fn natural_type(self) -> &'static str {
        match self {
            Self::Text => "VARCHAR",
            Self::Integer(ty) | Self::Float(ty) => ty,
            Self::Decimal => "DECIMAL",
            Self::Tiny | Self::Letter => "BOOLEAN",
            Self::Date => "DATE",
            Self::WallClock | Self::SilentUtc | Self::Moment => "TIMESTAMP",
            Self::Bytes | Self::HexBytes => "BLOB",
            Self::Bits => "UBIGINT",
        }
    }

    /// Whether its values have an order that can be written down and asked for again to the letter.
    pub(super) fn can_be_key(self) -> bool {
        matches!(self, Self::Text | Self::Integer(_) | Self::Bytes | Self::HexBytes)
    }

    /// A key's value as it can be asked for again: text and numbers as they are, bytes in hexadecimal digits.
    pub(super) fn key_text(self, bytes: &[u8]) -> Cow<'_, str> {
        match self {
            Self::Bytes => Cow::Owned(hex(bytes)),
            Self::HexBytes => Cow::Owned(String::from_utf8_lossy(bytes.strip_prefix(b"\\x").unwrap_or(bytes)).into()),
            _ => String::from_utf8_lossy(bytes),
        }
    }

    /// Puts a value into its column; `false` when it is text that cannot be decoded.
    pub(super) fn put(self, into: &mut Texts, bytes: &[u8], is_id: bool) -> bool {
        let unhexed;
        let bytes = match self {
            Self::HexBytes => {
                unhexed = unhex(bytes);
                unhexed.as_slice()
            }
            _ => bytes,
        };
        match self {
            Self::Bytes | Self::HexBytes if !is_id => {
                into.push(Some(&escaped(bytes)));
                return true;
            }
            Self::Bits => {
                let number = bytes.iter().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
                into.push(Some(&number.to_string()));
                return true;
            }
            _ => {}
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            into.push(Some(&String::from_utf8_lossy(bytes)));
            return false;
        };
        if is_id {
            into.push(cleaned_id(text));
            return true;
        }
        match self {
            Self::Letter => into.push(Some(if text == "t" { "true" } else { "false" })),
            // How MySQL keeps that there was no date.
            Self::Date | Self::WallClock | Self::SilentUtc if text.starts_with("0000-00-00") => into.push(None),
            Self::SilentUtc => into.push(Some(&format!("{text}+00"))),
            _ => into.push(Some(text)),
        }
        true
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of `\x6f41`.
fn unhex(text: &[u8]) -> Vec<u8> {
    let digits = text.strip_prefix(b"\\x").unwrap_or(text);
    let byte = |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    digits.chunks(2).filter_map(byte).collect()
}

/// Bytes as DuckDB reads them out of text.
fn escaped(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 4), |mut text, byte| {
        let _ = write!(text, "\\x{byte:02X}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(kind: ValueKind, bytes: &[u8], is_id: bool) -> (Option<String>, bool) {
        let mut texts = Texts::default();
        let is_whole = kind.put(&mut texts, bytes, is_id);
        (texts.get(0).map(str::to_owned), is_whole)
    }

    #[test]
    fn values_become_the_text_that_a_csv_would_hold() {
        for (kind, bytes, text) in [
            (ValueKind::Integer("UBIGINT"), &b"18446744073709551615"[..], Some("18446744073709551615")),
            (ValueKind::Decimal, b"19.90", Some("19.90")),
            (ValueKind::Letter, b"t", Some("true")),
            (ValueKind::Tiny, b"1", Some("1")),
            (ValueKind::WallClock, b"0000-00-00 00:00:00", None),
            (ValueKind::SilentUtc, b"2026-11-24 02:30:00.5", Some("2026-11-24 02:30:00.5+00")),
            (ValueKind::Moment, b"2026-11-24 02:30:00+00", Some("2026-11-24 02:30:00+00")),
            (ValueKind::Bytes, b"\x00o\\", Some("\\x00\\x6F\\x5C")),
            (ValueKind::HexBytes, b"\\x006f5c", Some("\\x00\\x6F\\x5C")),
            (ValueKind::Bits, b"\x01\x00", Some("256")),
            (ValueKind::Text, "上海".as_bytes(), Some("上海")),
        ] {
            assert_eq!(put(kind, bytes, false), (text.map(str::to_owned), true), "{kind:?}");
        }
        assert_eq!(put(ValueKind::Text, b"\xff", false), (Some("\u{fffd}".to_owned()), false));
    }

    #[test]
    fn ids_are_text_also_where_they_are_kept_as_bytes() {
        for (kind, bytes) in
            [(ValueKind::Text, &b" oA "[..]), (ValueKind::Bytes, b"oA"), (ValueKind::HexBytes, b"\\x6f41")]
        {
            assert_eq!(put(kind, bytes, true), (Some("oA".to_owned()), true), "{kind:?}");
        }
        assert_eq!(put(ValueKind::Text, b" ", true), (None, true));
    }
}

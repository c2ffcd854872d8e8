//! From bytes to text: UTF-8 or GB18030 (which includes GBK and GB2312), a row at a time.
//!
//! Line breaks, commas, semicolons, tabs and quotes are single bytes in both and part of no other character (a pipe may be), so rows are cut as
//! bytes and decoded after: what cannot be decoded spoils its own row only. Left to itself, the encoding is settled by
//! the first MiB that begins with the first row that is not plain ASCII; until then the two are the same.

use std::borrow::Cow;

use encoding_rs::GB18030;

use super::ExportError;
use super::source::Source;

const SAMPLE_BYTES: usize = 1 << 20;
const RAW_CHARS: usize = 2000;
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// The encoding of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Found out by looking.
    Auto,
    Utf8,
    /// GBK and its superset GB18030.
    Gb18030,
}

/// Decodes the rows of one file.
pub(super) struct Decoder {
    settled: Option<Encoding>,
}

impl Decoder {
    /// Takes a byte order mark off the file; it outweighs what was asked for.
    pub(super) fn start(source: &mut Source, asked: Encoding) -> Result<Self, ExportError> {
        if source.reach(BOM.len())?.starts_with(BOM) {
            source.pass(BOM.len(), 0);
            return Ok(Self { settled: Some(Encoding::Utf8) });
        }
        Ok(Self { settled: (asked != Encoding::Auto).then_some(asked) })
    }

    /// Settles the encoding if the window's first `bytes` need it. To be called before these bytes are decoded.
    pub(super) fn settle(&mut self, source: &mut Source, bytes: usize) -> Result<(), ExportError> {
        if self.settled.is_none() && !source.window()[..bytes].is_ascii() {
            self.settled = Some(guess(source.reach(SAMPLE_BYTES)?));
        }
        Ok(())
    }

    /// The encoding, if it has been settled.
    pub(super) fn settled(&self) -> Option<Encoding> {
        self.settled
    }

    /// The encoding as far as it mattered: of a file in plain ASCII, UTF-8.
    pub(super) fn encoding(&self) -> Encoding {
        self.settled.unwrap_or(Encoding::Utf8)
    }

    /// The text of a row, borrowed where the bytes are the text; `None` when they cannot be decoded.
    pub(super) fn text<'a>(&self, bytes: &'a [u8]) -> Option<Cow<'a, str>> {
        match self.encoding() {
            Encoding::Gb18030 => GB18030.decode_without_bom_handling_and_without_replacement(bytes),
            Encoding::Utf8 | Encoding::Auto => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        }
    }

    /// Why [`Self::text`] gave nothing.
    pub(super) fn undecodable(&self, bytes: &[u8]) -> String {
        match self.encoding() {
            Encoding::Gb18030 => "text that is not valid GB18030".to_owned(),
            Encoding::Utf8 | Encoding::Auto => match std::str::from_utf8(bytes) {
                Err(fault) => format!("text that is not valid UTF-8 (byte {} of the row)", fault.valid_up_to() + 1),
                Ok(_) => "text that cannot be decoded".to_owned(),
            },
        }
    }

    /// A row for people to look at: decoded as far as possible, without its line break, cut to 2000 characters.
    pub(super) fn raw(&self, bytes: &[u8]) -> String {
        // No character takes more than four bytes; what is behind would be cut off anyway.
        let bytes = &bytes[..bytes.len().min(RAW_CHARS * 4)];
        let text = match self.encoding() {
            Encoding::Gb18030 => GB18030.decode_without_bom_handling(bytes).0,
            Encoding::Utf8 | Encoding::Auto => String::from_utf8_lossy(bytes),
        };
        text.trim_end_matches(['\r', '\n']).chars().take(RAW_CHARS).collect()
    }
}

/// Weighs a sample piece by piece, so that a single damaged row does not turn a whole file into the other encoding.
///
/// Chinese in UTF-8 takes three bytes a character, and GB18030 hardly ever looks like that; but some of its words are
/// valid two-byte UTF-8 by accident (女, 联通), so those say nothing.
fn guess(sample: &[u8]) -> Encoding {
    let (mut for_utf8, mut against) = (0_u64, 0_u64);
    for piece in sample.split(|byte| matches!(byte, b'\n' | b',' | b';' | b'\t')).filter(|piece| !piece.is_ascii()) {
        match std::str::from_utf8(piece) {
            Ok(_) => for_utf8 += u64::from(piece.iter().any(|byte| *byte >= 0xE0)),
            // The sample ends within a character: no evidence.
            Err(fault) if fault.error_len().is_none() && piece.as_ptr_range().end == sample.as_ptr_range().end => {}
            Err(_) => against += 1,
        }
    }
    if against > for_utf8 { Encoding::Gb18030 } else { Encoding::Utf8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gb(text: &str) -> Vec<u8> {
        GB18030.encode(text).0.into_owned()
    }

    #[test]
    fn words_that_are_valid_in_both_encodings_do_not_decide() {
        assert!(std::str::from_utf8(&gb("女")).is_ok(), "the trap is a real one");
        assert_eq!(guess(&gb("a,女\nb,女\nc,女\nd,男\n")), Encoding::Gb18030);
        assert_eq!(guess("a,女\nb,男\n".as_bytes()), Encoding::Utf8);
        assert_eq!(guess("a,café\n".as_bytes()), Encoding::Utf8);
    }

    #[test]
    fn one_damaged_row_does_not_change_the_encoding_of_the_file() {
        let mut sample = "o1,北京\no2,上海\no3,".as_bytes().to_vec();
        sample.extend_from_slice(b"\xC4\xD0\xFF\no4\n");
        assert_eq!(guess(&sample), Encoding::Utf8);
    }

    #[test]
    fn a_sample_may_end_within_a_character() {
        let text = "o1,北".as_bytes();
        assert_eq!(guess(&text[..text.len() - 1]), Encoding::Utf8);
    }
}

//! UTF-16 as UTF-8, while it is read. What cannot be decoded becomes a byte that UTF-8 does not have, so that it spoils its
//! own row and no other.

use std::io::{self, Read};

use encoding_rs::{Decoder, DecoderResult, Encoding, UTF_16BE, UTF_16LE};

const CHUNK_BYTES: usize = 64 << 10;
/// Never part of UTF-8.
const UNDECODABLE: u8 = 0xFF;

/// A reader of UTF-16 that gives UTF-8 with a byte order mark.
pub(super) struct Utf16<R> {
    reader: R,
    decoder: Decoder,
    /// Read and not decoded: `input[at..filled]`.
    input: Vec<u8>,
    at: usize,
    filled: usize,
    ended: bool,
    /// Decoded and not given out: `output[given..]`.
    output: Vec<u8>,
    given: usize,
}

impl Utf16<io::Empty> {
    /// The encoding that a file's byte order mark names; without one, that in which every other byte of a header that is mostly
    /// ASCII is zero, which no other text has.
    pub(super) fn encoding_of(beginning: &[u8]) -> Option<&'static Encoding> {
        match beginning {
            [0xFF, 0xFE, ..] => Some(UTF_16LE),
            [0xFE, 0xFF, ..] => Some(UTF_16BE),
            _ => by_zeros(beginning),
        }
    }
}

fn by_zeros(beginning: &[u8]) -> Option<&'static Encoding> {
    let zeros = |offset: usize| beginning.iter().skip(offset).step_by(2).filter(|byte| **byte == 0).count();
    let many = (beginning.len() / 8).max(2);
    match (zeros(0), zeros(1)) {
        (0, odd) if odd >= many => Some(UTF_16LE),
        (even, 0) if even >= many => Some(UTF_16BE),
        _ => None,
    }
}

impl<R: Read> Utf16<R> {
    pub(super) fn new(reader: R, encoding: &'static Encoding) -> Self {
        Self {
            reader,
            decoder: encoding.new_decoder_with_bom_removal(),
            input: vec![0; CHUNK_BYTES],
            at: 0,
            filled: 0,
            ended: false,
            output: b"\xEF\xBB\xBF".to_vec(),
            given: 0,
        }
    }

    fn decode_more(&mut self) -> io::Result<()> {
        if self.at == self.filled {
            self.filled = self.reader.read(&mut self.input)?;
            self.at = 0;
            self.ended = self.filled == 0;
        }
        self.given = 0;
        self.output.resize(CHUNK_BYTES * 2, 0);
        let input = &self.input[self.at..self.filled];
        let (result, read, written) =
            self.decoder.decode_to_utf8_without_replacement(input, &mut self.output, self.ended);
        self.at += read;
        self.output.truncate(written);
        if let DecoderResult::Malformed(..) = result {
            self.output.push(UNDECODABLE);
        }
        Ok(())
    }
}

impl<R: Read> Read for Utf16<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.given == self.output.len() {
            if self.ended {
                return Ok(0);
            }
            self.decode_more()?;
        }
        let count = into.len().min(self.output.len() - self.given);
        into[..count].copy_from_slice(&self.output[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        let encoding = Utf16::encoding_of(bytes).unwrap();
        Utf16::new(bytes, encoding).read_to_end(&mut text).unwrap();
        text
    }

    #[test]
    fn both_orders_and_characters_beyond_16_bits_are_read() {
        let text = "openid\t城市\n😀\n".repeat(20_000);
        let units: Vec<u16> = text.encode_utf16().collect();
        let little: Vec<u8> =
            [0xFF, 0xFE].into_iter().chain(units.iter().flat_map(|unit| unit.to_le_bytes())).collect();
        let big: Vec<u8> = [0xFE, 0xFF].into_iter().chain(units.iter().flat_map(|unit| unit.to_be_bytes())).collect();
        for bytes in [little, big] {
            assert_eq!(String::from_utf8(decoded(&bytes)).unwrap(), format!("\u{FEFF}{text}"));
        }
    }

    #[test]
    fn without_a_mark_the_zeros_tell() {
        let text = "openid,城市\no1,上海\n";
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for bytes in [little, big] {
            assert_eq!(String::from_utf8(decoded(&bytes)).unwrap(), format!("\u{FEFF}{text}"));
        }
        for other in [text.as_bytes(), b"openid\n\0\0\0\0", b""] {
            assert_eq!(Utf16::encoding_of(other), None);
        }
    }

    #[test]
    fn half_a_pair_is_no_text() {
        let bytes = [0xFF, 0xFE, 0x00, 0xD8, b'a', 0, b'\n', 0, 0x00];
        let text = decoded(&bytes);
        assert_eq!(text[3..6], [UNDECODABLE, b'a', b'\n']);
        assert_eq!(text.last(), Some(&UNDECODABLE), "the file ends within a character");
    }
}

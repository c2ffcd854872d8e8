//! Cutting a JSON file into pieces: lines, or the elements of an array.
//!
//! Only as much of JSON is understood here as is needed to find where an element ends: brackets, strings, escapes, and
//! that the second byte of a GB18030 character may look like any of these. Whether a piece is an object is seen later.

use crate::exports::encoding::{Decoder, Encoding};
use crate::exports::source::{Line, MAX_ROW, MAX_ROW_BYTES, Source};
use crate::exports::{ExportError, Format, Job};

/// What comes next; `bytes` from the beginning of the source's window.
pub(super) enum Piece {
    End,
    Blank,
    Row { bytes: usize },
    Refused { bytes: usize, reason: String },
}

/// The pieces of one file. After each, [`Pieces::pass`] goes on to the next.
pub(super) struct Pieces {
    pub(super) source: Source,
    pub(super) decoder: Decoder,
    shape: Shape,
    passing: Passing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// An object a line.
    Lines,
    /// An array, the present place being between its elements.
    Array,
    /// Behind an array.
    Closed,
}

enum Passing {
    Bytes {
        bytes: usize,
        lines: u64,
    },
    /// To the end of a line that is too long to be looked at.
    Line,
}

/// Where a search for the end of an element is.
#[derive(Default)]
struct Scan {
    at: usize,
    depth: usize,
    in_string: bool,
}

impl Pieces {
    /// Opens a file and sees whether it is an array.
    pub(super) fn open(job: &Job<'_>, format: Format) -> Result<Self, ExportError> {
        let mut source = Source::open(job.input)?;
        let decoder = Decoder::start(&mut source, job.options.encoding)?;
        let passing = Passing::Bytes { bytes: 0, lines: 0 };
        let mut pieces = Self { source, decoder, shape: Shape::Lines, passing };
        if format == Format::Json {
            let blank = pieces.blank_bytes(false)?;
            if pieces.source.window().get(blank) == Some(&b'[') {
                pieces.pass_counted(blank + 1);
                pieces.shape = Shape::Array;
            }
        }
        Ok(pieces)
    }

    /// Whether the file is an array, be it an empty one.
    pub(super) fn is_array(&self) -> bool {
        self.shape != Shape::Lines
    }

    /// Finds the next piece.
    pub(super) fn next(&mut self) -> Result<Piece, ExportError> {
        match self.shape {
            Shape::Lines => self.next_line(),
            Shape::Array => self.next_element(),
            Shape::Closed => self.nothing_more(),
        }
    }

    /// Lets go of the piece that `next` found.
    pub(super) fn pass(&mut self) -> Result<(), ExportError> {
        match self.passing {
            Passing::Bytes { bytes, lines } => self.source.pass(bytes, lines),
            Passing::Line => self.source.pass_line()?,
        }
        Ok(())
    }

    fn next_line(&mut self) -> Result<Piece, ExportError> {
        let bytes = match self.source.line_from(0)? {
            Line::None => return Ok(Piece::End),
            Line::TooLong => {
                self.passing = Passing::Line;
                let reason = format!("a line longer than {MAX_ROW}");
                return Ok(Piece::Refused { bytes: MAX_ROW_BYTES, reason });
            }
            Line::EndsAt(bytes) => bytes,
        };
        self.passing = Passing::Bytes { bytes, lines: 1 };
        if self.source.window()[..bytes].iter().all(u8::is_ascii_whitespace) {
            return Ok(Piece::Blank);
        }
        self.decoder.settle(&mut self.source, bytes)?;
        Ok(Piece::Row { bytes })
    }

    fn next_element(&mut self) -> Result<Piece, ExportError> {
        let between = self.blank_bytes(true)?;
        self.pass_counted(between);
        match self.source.window().first() {
            None => return Err(self.broken("the file ends before the array is closed")),
            Some(b']') => {
                self.source.pass(1, 0);
                self.shape = Shape::Closed;
                return self.nothing_more();
            }
            Some(_) => {}
        }
        let bytes = self.element_bytes()?;
        let lines = count_lines(&self.source.window()[..bytes]);
        self.passing = Passing::Bytes { bytes, lines };
        self.decoder.settle(&mut self.source, bytes)?;
        Ok(Piece::Row { bytes })
    }

    /// Behind an array there may be only white space, or another array (files put together with `cat`).
    fn nothing_more(&mut self) -> Result<Piece, ExportError> {
        let blank = self.blank_bytes(false)?;
        self.pass_counted(blank);
        match self.source.window().first() {
            None => Ok(Piece::End),
            Some(b'[') => {
                self.source.pass(1, 0);
                self.shape = Shape::Array;
                self.next_element()
            }
            Some(_) => Err(self.broken("text follows the end of the array")),
        }
    }

    /// How many bytes of white space (and commas) stand at the window's beginning.
    fn blank_bytes(&mut self, with_commas: bool) -> Result<usize, ExportError> {
        let mut at = 0;
        loop {
            let is_blank = |byte: &u8| byte.is_ascii_whitespace() || (with_commas && *byte == b',');
            at += self.source.window()[at..].iter().take_while(|byte| is_blank(byte)).count();
            if at < self.source.window().len() || at > MAX_ROW_BYTES || !self.source.widen()? {
                return Ok(at);
            }
        }
    }

    fn element_bytes(&mut self) -> Result<usize, ExportError> {
        let mut scan = Scan::default();
        loop {
            let encoding = self.decoder.settled();
            match scan.go_on(self.source.window(), encoding) {
                Found::End => return Ok(scan.at),
                Found::NeedsEncoding => self.decoder.settle(&mut self.source, scan.at + 1)?,
                Found::NeedsMore if scan.at > MAX_ROW_BYTES => {
                    return Err(self.broken("what begins there is not closed within a MiB"));
                }
                Found::NeedsMore => {
                    if !self.source.widen()? {
                        return Err(self.broken("the file ends before what begins there is closed"));
                    }
                }
            }
        }
    }

    fn pass_counted(&mut self, bytes: usize) {
        let lines = count_lines(&self.source.window()[..bytes]);
        self.source.pass(bytes, lines);
    }

    fn broken(&self, reason: &'static str) -> ExportError {
        ExportError::BrokenJson { file: self.source.file().to_owned(), line: self.source.line(), reason }
    }
}

/// Why a scan stopped.
enum Found {
    /// The element ends right before `at`.
    End,
    NeedsMore,
    /// Brackets are told from second bytes of characters by the encoding, and here is the first such character.
    NeedsEncoding,
}

impl Scan {
    /// Goes on to the end of the element, or to the end of the window.
    fn go_on(&mut self, window: &[u8], encoding: Option<Encoding>) -> Found {
        while let Some(byte) = window.get(self.at) {
            let following = window.get(self.at + 1);
            let is_pair = match byte {
                b'\\' => self.in_string,
                0x80.. if encoding.is_none() => return Found::NeedsEncoding,
                // A second byte that cannot be one is left alone: only its own row shall be the worse for it.
                0x81..=0xFE if encoding == Some(Encoding::Gb18030) => {
                    following.is_none_or(|second| matches!(second, 0x30..=0x39 | 0x40..=0x7E | 0x80..=0xFE))
                }
                _ => false,
            };
            if is_pair {
                if following.is_none() {
                    return Found::NeedsMore;
                }
                self.at += 2;
                continue;
            }
            match byte {
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth == 1 => {
                    self.at += 1;
                    return Found::End;
                }
                b'}' | b']' if self.depth > 1 => self.depth -= 1,
                b',' | b']' if self.depth == 0 => return Found::End,
                _ => {}
            }
            self.at += 1;
        }
        Found::NeedsMore
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

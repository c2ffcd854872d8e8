//! The bytes of a file, unpacked, as one window that slides forward.
//!
//! Readers look at the window's beginning, ask for more until a row is whole, and then let go of it. What is asked for
//! twice (a row whose quote is never closed) is still in the window, so that nothing need be read again. The window is
//! as large as the longest row looked at, and rows are bounded by [`MAX_ROW_BYTES`]. Knows nothing of fields or text.

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use super::utf16::Utf16;
use super::{ExportError, Input};

/// A row longer than this is no row of an export.
pub(super) const MAX_ROW_BYTES: usize = 16 << 20;
/// As it is told.
pub(super) const MAX_ROW: &str = "16 MiB";

const FIRST_WINDOW_BYTES: usize = 256 << 10;
/// Enough of a header to tell UTF-16 that does not say so.
const UTF16_SAMPLE_BYTES: usize = 256;

/// A window on the bytes of one file.
pub(super) struct Source {
    file: PathBuf,
    reader: Box<dyn Read>,
    buffer: Vec<u8>,
    /// The window is `buffer[at..filled]`.
    at: usize,
    filled: usize,
    ended: bool,
    line: u64,
}

/// What stands at some place of the window up to the end of its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// The line ends before this offset of the window, its line break included.
    EndsAt(usize),
    /// No line break within [`MAX_ROW_BYTES`] of the window's beginning.
    TooLong,
    /// The file ends right here.
    None,
}

impl Source {
    /// Opens a file and looks at its first bytes, to refuse a file that its name belies.
    pub(super) fn open(input: &Input) -> Result<Self, ExportError> {
        let mut source = Self {
            file: input.shown().to_owned(),
            reader: input.reader()?,
            buffer: vec![0; FIRST_WINDOW_BYTES],
            at: 0,
            filled: 0,
            ended: false,
            line: 1,
        };
        source.reach(UTF16_SAMPLE_BYTES)?;
        source.read_utf16()?;
        source.refuse_foreign()?;
        Ok(source)
    }

    /// Text in UTF-16, as Excel saves "Unicode text", is turned into UTF-8 on its way in.
    fn read_utf16(&mut self) -> Result<(), ExportError> {
        let Some(encoding) = Utf16::encoding_of(self.window()) else { return Ok(()) };
        let begun = io::Cursor::new(self.window().to_vec());
        let reader = std::mem::replace(&mut self.reader, Box::new(io::empty()));
        self.reader = Box::new(Utf16::new(begun.chain(reader), encoding));
        (self.at, self.filled, self.ended) = (0, 0, false);
        self.reach(UTF16_SAMPLE_BYTES).map(drop)
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// The line the window begins on; the first is 1.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    pub(super) fn window(&self) -> &[u8] {
        &self.buffer[self.at..self.filled]
    }

    /// Widens the window to at least `bytes`, or to the end of the file, and returns it.
    pub(super) fn reach(&mut self, bytes: usize) -> Result<&[u8], ExportError> {
        while self.filled - self.at < bytes && self.widen()? {}
        Ok(self.window())
    }

    /// Widens the window by what one read gives; false at the end of the file.
    pub(super) fn widen(&mut self) -> Result<bool, ExportError> {
        if self.ended {
            return Ok(false);
        }
        if self.filled == self.buffer.len() {
            if self.at > 0 {
                self.buffer.copy_within(self.at..self.filled, 0);
                self.filled -= self.at;
                self.at = 0;
            }
            if self.filled * 2 > self.buffer.len() {
                self.buffer.resize(self.buffer.len() * 2, 0);
            }
        }
        let count = loop {
            match self.reader.read(&mut self.buffer[self.filled..]) {
                Ok(count) => break count,
                Err(again) if again.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ExportError::Read { file: self.file.clone(), line: self.line, source }),
            }
        };
        self.filled += count;
        self.ended = count == 0;
        Ok(!self.ended)
    }

    /// Finds the end of the line that holds the window's byte `from`.
    pub(super) fn line_from(&mut self, from: usize) -> Result<Line, ExportError> {
        let mut searched = from;
        loop {
            if let Some(end) = line_break(&self.window()[searched..]) {
                let end = searched + end;
                return Ok(if end > MAX_ROW_BYTES { Line::TooLong } else { Line::EndsAt(end) });
            }
            searched = self.window().len();
            if searched > MAX_ROW_BYTES {
                return Ok(Line::TooLong);
            }
            if !self.widen()? {
                return Ok(if searched > from { Line::EndsAt(searched) } else { Line::None });
            }
        }
    }

    /// Lets go of the window's first `bytes`, in which `lines` lines end.
    pub(super) fn pass(&mut self, bytes: usize, lines: u64) {
        self.at += bytes;
        self.line += lines;
        debug_assert!(self.at <= self.filled, "only what is in the window is passed");
    }

    /// Lets go of everything to the end of the present line, however far that is.
    pub(super) fn pass_line(&mut self) -> Result<(), ExportError> {
        loop {
            if let Some(end) = line_break(self.window()) {
                self.pass(end, 1);
                return Ok(());
            }
            self.pass(self.window().len(), 0);
            if !self.widen()? {
                return Ok(());
            }
        }
    }

    fn refuse_foreign(&self) -> Result<(), ExportError> {
        let (holds, instead) = match self.window() {
            [b'P', b'K', 3, 4, ..] => ("an Excel workbook or another zip archive", "let its name end in .xlsx"),
            [0xD0, 0xCF, 0x11, 0xE0, ..] => ("an old Excel workbook", "let its name end in .xls"),
            [0x1F, 0x8B, ..] => ("gzip data", "let its name end in .gz"),
            [0x28, 0xB5, 0x2F, 0xFD, ..] => ("zstd data", "let its name end in .zst"),
            [b'P', b'A', b'R', b'1', ..] => ("Parquet", "let its name end in .parquet"),
            _ => return Ok(()),
        };
        Err(ExportError::Mislabelled { file: self.file.clone(), holds, instead })
    }
}

/// The offset right behind the first line break.
fn line_break(bytes: &[u8]) -> Option<usize> {
    // The standard library's fast byte search is reached through `BufRead` only; a slice cannot fail to be read.
    let mut rest = bytes;
    let end = rest.skip_until(b'\n').unwrap_or(0);
    (end > 0 && bytes[end - 1] == b'\n').then_some(end)
}

//! Files of fields between delimiters (comma, tab, semicolon, pipe): a header, then a row a line, or more lines where a quoted field holds line breaks.
//!
//! Rows are cut as bytes, decoded whole, and taken field by field. A quote opens a field only at its beginning.
//! A quote that is never closed would swallow the rest of the file, or pair with the next quote in it and swallow what
//! is between: either is noticed, the line it stands on is refused, and reading goes on at the next line. A row may be as long
//! as [`MAX_ROW_BYTES`], in however many lines: were it given up sooner, its lines would be taken for rows.
//! Within one line stray quotes are kept as the text they are (`"小明"同学`).

use super::batch::Collector;
use super::encoding::Decoder;
use super::layout::{Layout, cleaned_names, has_all};
use super::source::{Line, MAX_ROW, MAX_ROW_BYTES, Source};
use super::{BadRow, ColumnKind, Encoding, ExportError, FileReport, Job, ReadOptions, Sink};

/// What stands between fields, the likeliest first.
const DELIMITERS: [u8; 4] = [b',', b'\t', b';', b'|'];

/// The columns of a file, as [`read`] will give them.
pub(super) fn layout(job: &Job<'_>, delimiter: Option<u8>) -> Result<Layout, ExportError> {
    let reader = Reader::open(job, delimiter)?;
    Layout::of_header(job.input.shown(), &reader.header, job.options)
}

/// Reads a whole file.
pub(super) fn read(job: &Job<'_>, delimiter: Option<u8>, sink: &mut Sink<'_>) -> Result<FileReport, ExportError> {
    let mut reader = Reader::open(job, delimiter)?;
    let layout = Layout::of_header(job.input.shown(), &reader.header, job.options)?;
    let mut rows = Collector::new(&layout, job.options.batch_rows, sink);
    loop {
        match reader.next()? {
            Next::End => break,
            Next::Blank => rows.blank(),
            Next::Row { bytes } => reader.take(bytes, &layout, &mut rows),
            Next::Refused { bytes, reason } => rows.refuse(reader.bad(bytes, reason)),
        }
        rows.flush_if_full()?;
        reader.pass()?;
    }
    rows.end(reader.decoder.encoding(), job.input.bytes()?)
}

/// What comes next in the file; `bytes` from the window's beginning.
enum Next {
    End,
    Blank,
    Row { bytes: usize },
    Refused { bytes: usize, reason: String },
}

/// What has been looked at and must be let go of before the next row.
enum Passing {
    Bytes {
        bytes: usize,
        lines: u64,
    },
    /// To the end of a line that is too long to be looked at.
    Line,
}

struct Reader {
    source: Source,
    decoder: Decoder,
    fields: Splitter,
    /// Fields of a row whose text is not its bytes.
    decoded_fields: Splitter,
    header: Vec<String>,
    passing: Passing,
}

impl Reader {
    /// Opens a file and reads its header.
    fn open(job: &Job<'_>, delimiter: Option<u8>) -> Result<Self, ExportError> {
        let mut source = Source::open(job.input)?;
        let decoder = Decoder::start(&mut source, job.options.encoding)?;
        let named = named_delimiter(&mut source)?;
        let known = job.options.delimiter.or(named).or(delimiter);
        let mut reader = Self {
            source,
            decoder,
            fields: Splitter::new(known.unwrap_or(DELIMITERS[0])),
            decoded_fields: Splitter::new(known.unwrap_or(DELIMITERS[0])),
            header: Vec::new(),
            passing: Passing::Bytes { bytes: 0, lines: 0 },
        };
        if known.is_none() {
            reader.find_delimiter(job.options)?;
        }
        let file = || job.input.shown().to_owned();
        loop {
            match reader.next()? {
                Next::End => return Err(ExportError::NoHeader { file: file() }),
                Next::Blank => reader.pass()?,
                Next::Refused { reason, .. } => {
                    return Err(ExportError::BadHeader { file: file(), reason });
                }
                Next::Row { bytes } => {
                    reader.header = reader.names(bytes)?;
                    reader.pass()?;
                    return Ok(reader);
                }
            }
        }
    }

    /// Settles on the delimiter by which the header has the columns asked for; where none does, or several, on the one that
    /// cuts it into the most fields.
    fn find_delimiter(&mut self, options: &ReadOptions<'_>) -> Result<(), ExportError> {
        while let Next::Blank = self.next()? {
            self.pass()?;
        }
        let mut best = (false, 0);
        let mut found = DELIMITERS[0];
        for delimiter in DELIMITERS {
            self.set_delimiter(delimiter);
            let Next::Row { bytes } = self.next()? else { continue };
            let names = self.names(bytes)?;
            let worth = (has_all(&names, options), names.len());
            if worth > best {
                (best, found) = (worth, delimiter);
            }
        }
        self.set_delimiter(found);
        Ok(())
    }

    fn set_delimiter(&mut self, delimiter: u8) {
        self.fields = Splitter::new(delimiter);
        self.decoded_fields = Splitter::new(delimiter);
    }

    /// Lets the splitter of bytes know of an encoding in which the delimiter may be half of a character.
    fn look_at_encoding(&mut self, bytes: usize) -> Result<(), ExportError> {
        if self.fields.delimiter.is_ascii_punctuation() && self.fields.delimiter >= 0x40 {
            self.decoder.settle(&mut self.source, bytes)?;
            self.fields.is_double_byte = self.decoder.settled() == Some(Encoding::Gb18030);
        }
        Ok(())
    }

    fn names(&mut self, bytes: usize) -> Result<Vec<String>, ExportError> {
        let row = &self.source.window()[..bytes];
        let Some(text) = self.decoder.text(row) else {
            let reason = self.decoder.undecodable(row);
            return Err(ExportError::BadHeader { file: self.source.file().to_owned(), reason });
        };
        self.decoded_fields.split(text.as_bytes());
        let cells: Vec<_> = self.decoded_fields.fields.iter().map(|field| field.value(&text)).collect();
        Ok(cleaned_names(cells.iter().map(|cell| cell.as_ref())))
    }

    /// Finds the next row and leaves its fields in `self.fields`. To be followed by [`Self::pass`].
    fn next(&mut self) -> Result<Next, ExportError> {
        let end = match self.source.line_from(0)? {
            Line::None => return Ok(Next::End),
            Line::TooLong => return Ok(self.too_long()),
            Line::EndsAt(end) => end,
        };
        self.passing = Passing::Bytes { bytes: end, lines: 1 };
        let delimiter = self.fields.delimiter;
        if self.source.window()[..end].iter().all(|byte| byte.is_ascii_whitespace() && *byte != delimiter) {
            return Ok(Next::Blank);
        }
        let mut bytes = end;
        let mut lines = 1;
        self.look_at_encoding(bytes)?;
        let mut split = self.fields.split(&self.source.window()[..bytes]);
        let mut is_too_long = false;
        while split == Split::Open {
            match self.source.line_from(bytes)? {
                Line::EndsAt(longer) => bytes = longer,
                Line::None => break,
                Line::TooLong => {
                    is_too_long = true;
                    break;
                }
            }
            lines += 1;
            self.look_at_encoding(bytes)?;
            split = self.fields.go_on(&self.source.window()[..bytes]);
        }
        self.decoder.settle(&mut self.source, bytes)?;
        match split {
            Split::Whole => {
                self.passing = Passing::Bytes { bytes, lines };
                Ok(Next::Row { bytes })
            }
            Split::Open | Split::TextAfterQuote => {
                let never =
                    if is_too_long { format!("not closed within {MAX_ROW}") } else { "never closed".to_owned() };
                let reason = format!("the quote opened on line {} is {never}", self.source.line());
                Ok(Next::Refused { bytes: end, reason })
            }
        }
    }

    fn too_long(&mut self) -> Next {
        self.passing = Passing::Line;
        Next::Refused { bytes: MAX_ROW_BYTES, reason: format!("a line longer than {MAX_ROW}") }
    }

    /// Puts the row that `next` found into the batch, or refuses it.
    fn take(&mut self, bytes: usize, layout: &Layout, rows: &mut Collector<'_>) {
        if let Err(reason) = self.put(bytes, layout, rows) {
            rows.refuse(self.bad(bytes, reason));
        }
    }

    fn put(&mut self, bytes: usize, layout: &Layout, rows: &mut Collector<'_>) -> Result<(), String> {
        let (found, expected) = (self.fields.fields.len(), self.header.len());
        if found != expected {
            return Err(format!("{found} fields where the header has {expected}"));
        }
        let row = &self.source.window()[..bytes];
        let text = self.decoder.text(row).ok_or_else(|| self.decoder.undecodable(row))?;
        let fields = match text {
            std::borrow::Cow::Borrowed(_) => &self.fields.fields,
            std::borrow::Cow::Owned(_) => {
                self.decoded_fields.split(text.as_bytes());
                &self.decoded_fields.fields
            }
        };
        for (place, column) in layout.columns.iter().enumerate() {
            let value = fields[column.field].value(&text);
            rows.put(place, (!value.is_empty()).then_some(value.as_ref()), ColumnKind::Text);
        }
        rows.finish(self.source.line()).map_err(super::batch::Refusal::reason)
    }

    fn bad(&self, bytes: usize, reason: String) -> BadRow {
        let raw = self.decoder.raw(&self.source.window()[..bytes]);
        BadRow { line: self.source.line(), reason, raw }
    }

    fn pass(&mut self) -> Result<(), ExportError> {
        match self.passing {
            Passing::Bytes { bytes, lines } => self.source.pass(bytes, lines),
            Passing::Line => self.source.pass_line()?,
        }
        Ok(())
    }
}

/// The delimiter that a first line `sep=;` names, as Excel writes it; the line is no row.
fn named_delimiter(source: &mut Source) -> Result<Option<u8>, ExportError> {
    let Line::EndsAt(bytes) = source.line_from(0)? else { return Ok(None) };
    let mut line = &source.window()[..bytes];
    while let [rest @ .., b'\r' | b'\n'] = line {
        line = rest;
    }
    let Some([delimiter]) = line.strip_prefix(b"sep=") else { return Ok(None) };
    let delimiter = *delimiter;
    source.pass(bytes, 1);
    Ok(Some(delimiter))
}

/// Where a field stands in its row.
#[derive(Debug, Clone, Copy)]
struct Field {
    start: usize,
    end: usize,
    /// Two quotes in it stand for one.
    doubled_quotes: bool,
}

impl Field {
    fn value<'a>(&self, row: &'a str) -> std::borrow::Cow<'a, str> {
        // Delimiters and quotes are ASCII, so a field begins and ends between characters.
        let value = &row[self.start..self.end];
        if self.doubled_quotes { value.replace("\"\"", "\"").into() } else { value.into() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Split {
    Whole,
    /// The last field is quoted and not closed yet: more lines are needed.
    Open,
    /// A field of several lines is followed by text instead of a delimiter: its quote was none.
    TextAfterQuote,
}

/// Cuts a row into fields.
struct Splitter {
    delimiter: u8,
    /// Whether a byte from 0x80 on may be followed by one that looks like the delimiter and belongs to it.
    is_double_byte: bool,
    fields: Vec<Field>,
    /// How far the row has been looked at.
    at: usize,
    /// The field that is open there, from behind its quote.
    open: Option<Field>,
}

impl Splitter {
    fn new(delimiter: u8) -> Self {
        Self { delimiter, is_double_byte: false, fields: Vec::new(), at: 0, open: None }
    }

    /// Where the next delimiter stands in bytes that begin with a character.
    fn delimiter_in(&self, bytes: &[u8]) -> Option<usize> {
        if !self.is_double_byte {
            return bytes.iter().position(|byte| *byte == self.delimiter);
        }
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if *byte == self.delimiter {
                return Some(at);
            }
            at += if *byte < 0x80 { 1 } else { 2 };
        }
        None
    }

    /// Starts with a row of one line.
    fn split(&mut self, row: &[u8]) -> Split {
        self.fields.clear();
        self.at = 0;
        self.open = None;
        self.go_on(row)
    }

    /// Goes on with a row that has got longer by a line.
    fn go_on(&mut self, row: &[u8]) -> Split {
        let end = row.strip_suffix(b"\n").map_or(row.len(), |line| line.strip_suffix(b"\r").unwrap_or(line).len());
        loop {
            if let Some(field) = self.open.take() {
                match self.close(field, &row[..end]) {
                    Split::Whole => {}
                    unfinished => return unfinished,
                }
            } else if row[..end].get(self.at) == Some(&b'"') {
                self.at += 1;
                self.open = Some(Field { start: self.at, end: self.at, doubled_quotes: false });
                continue;
            } else {
                let length = self.delimiter_in(&row[self.at..end]);
                let field_end = length.map_or(end, |length| self.at + length);
                self.fields.push(Field { start: self.at, end: field_end, doubled_quotes: false });
                self.at = field_end;
            }
            if self.at >= end {
                return Split::Whole;
            }
            // A delimiter stands here. Behind it is another field, be it an empty one at the end of the row.
            self.at += 1;
        }
    }

    /// Looks for the end of a quoted field; leaves `at` on the delimiter behind it or at the end of the row.
    fn close(&mut self, mut field: Field, row: &[u8]) -> Split {
        while let Some(quote) = row[self.at.min(row.len())..].iter().position(|byte| *byte == b'"') {
            let quote = self.at + quote;
            if row.get(quote + 1) == Some(&b'"') {
                field.doubled_quotes = true;
                self.at = quote + 2;
                continue;
            }
            field.end = quote;
            let behind = &row[quote + 1..];
            let length = self.delimiter_in(behind).unwrap_or(behind.len());
            self.at = quote + 1 + length;
            if behind[..length].iter().any(|byte| !matches!(byte, b' ' | b'\t')) {
                if row[field.start..quote].contains(&b'\n') {
                    return Split::TextAfterQuote;
                }
                // All on one line: somebody's quotes, not the format's.
                field = Field { start: field.start - 1, end: self.at, doubled_quotes: false };
            }
            self.fields.push(field);
            return Split::Whole;
        }
        self.at = self.at.max(row.len());
        self.open = Some(field);
        Split::Open
    }
}

#[cfg(test)]
mod tests;

//! Exports: reading what a mini program hands over, files or a database, row by row, whatever wrote it.
//!
//! The way of the data: a name tells format and compression (`format`), of a zip its members (`input`) → bytes are unpacked into one sliding buffer
//! (`source`) → the encoding is settled at the first byte that is not ASCII (`encoding`) → rows are cut out of the bytes
//! (`csv`, `json`; workbooks by `sheet`; a database gives pages of its own, `database`; objects of S3 are made files first, `bucket`) → the header is matched to our column names (`layout`) → good rows and refused ones collect into
//! batches for the caller's sink (`batch`). Memory stays flat: one buffer of a few MiB and one batch.
//!
//! Not here: who is a user, what happens to one that comes twice, where rows are kept, types of columns beyond what
//! JSON itself says, and Parquet files, which the engine reads.

mod batch;
mod bucket;
mod csv;
mod database;
mod encoding;
mod error;
mod format;
mod input;
mod json;
mod layout;
mod sheet;
mod source;
mod utf16;

use crate::domain::Texts;

pub use bucket::{Bucket, BucketError, Object};
pub use database::{Database, DatabaseColumn, DatabaseError, PageEnd, Selection, TextBatch};
pub use encoding::Encoding;
pub use error::ExportError;
pub use format::{Compression, Format};
pub use input::Input;
pub use layout::cleaned_id;
pub use sheet::Sheet;

/// Where a batch goes. What fails in it comes back through [`ExportError::from_sink`].
pub type Sink<'a> = dyn FnMut(Batch) -> Result<(), ExportError> + 'a;

/// The name that no column of an export may have: where rows are kept, the line they begin on stands under it.
pub const LINE_COLUMN: &str = "line of the row";

/// How a file is to be read.
#[derive(Debug, Clone, Copy)]
pub struct ReadOptions<'a> {
    /// Our name → the export's name. Each of them must be in the file. Columns not named keep their own names.
    pub columns: &'a [(String, String)],
    /// Our names of the columns to keep beside `openid`, `unionid` and `updated_at`; `None`: all.
    pub keep: Option<&'a [String]>,
    pub encoding: Encoding,
    /// Between the fields of csv and tsv files; `None`: found out, of tsv a tab.
    pub delimiter: Option<u8>,
    /// Of a workbook; `None`: the first that is not hidden.
    pub sheet: Option<Sheet<'a>>,
    /// The row of a sheet that names the columns, the first being 1; `None`: the first that is not blank.
    pub header_row: Option<u32>,
    /// A batch goes to the sink when it holds this many rows, good and bad together, or 8 MiB of them.
    pub batch_rows: usize,
}

impl<'a> ReadOptions<'a> {
    /// Everything is found out, and everything kept.
    pub fn of_columns(columns: &'a [(String, String)]) -> Self {
        Self {
            columns,
            keep: None,
            encoding: Encoding::Auto,
            delimiter: None,
            sheet: None,
            header_row: None,
            batch_rows: 1000,
        }
    }
}

/// Some rows of a file, good and bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// `openid`, `unionid`, `updated_at` (those the file has), then the others: all text, and a value a good row.
    /// `openid` is always there and never null. A JSON file may bring a key it did not have before: later batches then
    /// have more columns than earlier ones, never fewer, and the earlier ones keep their order.
    pub columns: Vec<(String, Texts)>,
    /// Of each good row the line it begins on.
    pub lines: Vec<i64>,
    pub bad: Vec<BadRow>,
}

/// A row that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// The physical line on which the row begins, of a sheet its row; the first is 1.
    pub line: u64,
    pub reason: String,
    /// The row as it stands in the file, what cannot be decoded replaced, cut to 2000 characters.
    pub raw: String,
}

/// What a file turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReport {
    /// Good rows.
    pub rows: u64,
    pub bad: u64,
    /// Lines that hold nothing; they are no rows.
    pub blank: u64,
    /// Never `Auto`.
    pub encoding: Encoding,
    /// Without `_line`, in the order of the last batch.
    pub columns: Vec<ColumnReport>,
    /// The file's size on disk, in bytes.
    pub bytes: u64,
}

/// One column of a file as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnReport {
    pub name: String,
    pub kind: ColumnKind,
}

/// What all values of a column have in common. Ids are always text; csv and tsv know nothing but text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// No value at all.
    Empty,
    /// Every value fits 64 bits.
    Integer,
    /// The same, and one has more digits than a floating number keeps.
    LongInteger,
    Number,
    Boolean,
    /// Also: nested JSON, integers too long for 64 bits, and values of several kinds.
    Text,
}

/// Our names of the columns [`read_file`] will give, in its order, without `_line`. Reads the first line, or of JSON
/// the first 1000 rows.
///
/// # Errors
/// As [`read_file`], but for the sink's.
pub fn header(input: &Input, options: &ReadOptions<'_>) -> Result<Vec<String>, ExportError> {
    let job = Job { input, options };
    let layout = match input.format()?.0 {
        Format::Csv { delimiter } => csv::layout(&job, delimiter)?,
        format @ (Format::Ndjson | Format::Json) => json::layout(&job, format)?,
        Format::Sheet => sheet::layout(&job)?,
        Format::Parquet => return Err(ExportError::ForTheEngine { file: input.shown().to_owned() }),
    };
    Ok(layout.columns.into_iter().map(|column| column.name).collect())
}

/// Reads a whole file and hands its rows to `sink`, batch by batch, in the order of the file. Blocking.
///
/// # Errors
/// A file of another kind than its name says, a header without a column that was asked for (nothing has reached the
/// sink then), a file that ends in the middle, and what the sink returned. A row that is wrong by itself is no error:
/// it comes as a [`BadRow`].
pub fn read_file(input: &Input, options: &ReadOptions<'_>, sink: &mut Sink<'_>) -> Result<FileReport, ExportError> {
    let job = Job { input, options };
    match input.format()?.0 {
        Format::Csv { delimiter } => csv::read(&job, delimiter, sink),
        format @ (Format::Ndjson | Format::Json) => json::read(&job, format, sink),
        Format::Sheet => sheet::read(&job, sink),
        Format::Parquet => Err(ExportError::ForTheEngine { file: input.shown().to_owned() }),
    }
}

/// One file to be read.
struct Job<'a> {
    input: &'a Input,
    options: &'a ReadOptions<'a>,
}

#[cfg(test)]
mod tests;

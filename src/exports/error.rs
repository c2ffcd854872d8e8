//! What can be wrong with a file as a whole. What is wrong with one row is a [`super::BadRow`], never an error.

use std::io;
use std::path::PathBuf;

/// Why a file could not be read to its end. Trying again helps with none of them before the file has changed, except
/// what the sink returned, and what a database or an S3 service may do by itself.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("cannot open the export {}", file.display())]
    Open { file: PathBuf, source: io::Error },

    #[error("cannot read the export {} past line {line}: it is damaged, cut off or still being written", file.display())]
    Read { file: PathBuf, line: u64, source: io::Error },

    #[error(
        "the export {} is of no known kind (found {found}; accepted are .csv, .tsv, .ndjson, .jsonl, .json, \
         .xlsx, .xlsm, .xls and .parquet, all but the last also with .gz or .zst, and .zip of these): rename it or narrow source.files",
        file.display()
    )]
    UnknownFormat { file: PathBuf, found: String },

    #[error("the workbook {} cannot be opened: it is damaged, cut off or still being written", file.display())]
    BrokenBook { file: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },

    #[error("the export {} is protected by a password: hand over one without", file.display())]
    Locked { file: PathBuf },

    #[error(
        "the workbook {} has no {}; its sheets are {}: correct source.sheet, or name the sheet as it was",
        file.display(), asked.trim_start_matches("a "), listed(sheets)
    )]
    NoSheet { file: PathBuf, asked: String, sheets: Vec<String> },

    #[error(
        "sheet {sheet:?} of the workbook {} has no header {}: it must name the columns; source.header_row says in which row",
        file.display(), row.map_or("row".to_owned(), |row| format!("in row {row}"))
    )]
    NoSheetHeader { file: PathBuf, sheet: String, row: Option<u32> },

    #[error("sheet {sheet:?} of the workbook {} cannot be read past row {row}: it is damaged", file.display())]
    BrokenSheet { file: PathBuf, sheet: String, row: u32, source: Box<dyn std::error::Error + Send + Sync> },

    #[error("the zip {} cannot be opened: it is damaged, cut off or still being written", file.display())]
    BrokenZip { file: PathBuf, source: zip::result::ZipError },

    #[error("the zip {} holds no file: put the export into it", file.display())]
    EmptyZip { file: PathBuf },

    #[error("the zip {} holds more than {most} files, more than are read of one: split it", file.display())]
    TooManyMembers { file: PathBuf, most: usize },

    #[error("{} is packed by {method}, which is not read: pack the zip anew the usual way (deflate)", file.display())]
    UnknownPacking { file: PathBuf, method: String },

    #[error("{} is Parquet inside of a zip, where it cannot be read: Parquet is packed already, hand it over as it is", file.display())]
    PackedParquet { file: PathBuf },

    #[error(
        "the export {} unpacks to more than {most} bytes, more than is read of one file: split it",
        file.display()
    )]
    TooLarge { file: PathBuf, most: u64 },

    #[error("the export {} holds {holds}, which its name does not say: {instead}", file.display())]
    Mislabelled { file: PathBuf, holds: &'static str, instead: &'static str },

    #[error("the export {} is Parquet: the engine reads it, not the row reader", file.display())]
    ForTheEngine { file: PathBuf },

    #[error("the export {} has no header line: the first line must name the columns", file.display())]
    NoHeader { file: PathBuf },

    #[error("the header of the export {} cannot be read: {reason}", file.display())]
    BadHeader { file: PathBuf, reason: String },

    #[error(
        "the export {} has no column {column:?} for {ours}{}; its columns are {}: correct columns.{ours}",
        file.display(), did_you_mean(nearest.as_deref()), listed(header)
    )]
    MissingColumn {
        file: PathBuf,
        /// The export's name of the column.
        column: String,
        /// Our name of it.
        ours: String,
        /// The columns the file has.
        header: Vec<String>,
        nearest: Option<String>,
    },

    #[error(
        "two columns of the export {} would both be called {name}: {first:?} and {second:?} (names differ in more than \
         case): give one of them another name under columns, or have it renamed in the export",
        file.display()
    )]
    DuplicateColumn { file: PathBuf, name: String, first: String, second: String },

    #[error("the export {} is not whole JSON from line {line} on: {reason}", file.display())]
    BrokenJson { file: PathBuf, line: u64, reason: &'static str },

    #[error(transparent)]
    Database(#[from] super::DatabaseError),

    #[error(transparent)]
    Bucket(#[from] super::BucketError),

    #[error("what was read of an export could not be passed on")]
    Sink { source: Box<dyn std::error::Error + Send + Sync> },
}

impl ExportError {
    /// Whether the same may succeed later without anyone changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database(error) => error.is_transient(),
            Self::Bucket(error) => error.is_transient(),
            _ => false,
        }
    }

    /// Wraps what went wrong in a sink, so that it comes out of `read_file` as its cause.
    pub fn from_sink(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Sink { source: source.into() }
    }
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(" (did you mean {name:?}?)"))
}

/// The header for a message: enough names to recognise the file, not a screenful.
fn listed(header: &[String]) -> String {
    const SHOWN: usize = 30;
    if header.is_empty() {
        return "none".to_owned();
    }
    let mut text = header.iter().take(SHOWN).map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
    if header.len() > SHOWN {
        text.push_str(&format!(" and {} more", header.len() - SHOWN));
    }
    text
}

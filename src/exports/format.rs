//! What a file's name says about it: how rows are written and how the whole is packed. The content is looked at in
//! `source`, and only to refuse what is plainly something else.

use std::path::Path;

use super::ExportError;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A header and one row a line, fields in double quotes where they need it; without a delimiter it is
    /// found out.
    Csv { delimiter: Option<u8> },
    /// One JSON object a line.
    Ndjson,
    /// One array of objects, or one object a line.
    Json,
    /// A workbook, xlsx or xls.
    Sheet,
    /// Left to the engine.
    Parquet,
}

/// How the whole file is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Format {
    /// Format and compression by the endings of the name, whatever their case: `users.CSV.gz`.
    ///
    /// # Errors
    /// [`ExportError::UnknownFormat`] for everything not listed.
    pub fn of_path(path: &Path) -> Result<(Self, Compression), ExportError> {
        let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
        let (stem, compression) = if let Some(stem) = name.strip_suffix(".gz") {
            (stem, Compression::Gzip)
        } else if let Some(stem) = name.strip_suffix(".zst") {
            (stem, Compression::Zstd)
        } else {
            (name.as_str(), Compression::None)
        };
        let ending = stem.rsplit_once('.').map_or("", |(_, ending)| ending);
        let format = match ending {
            "csv" => Self::Csv { delimiter: None },
            "tsv" => Self::Csv { delimiter: Some(b'\t') },
            "ndjson" | "jsonl" => Self::Ndjson,
            "json" => Self::Json,
            "parquet" if compression == Compression::None => Self::Parquet,
            "xlsx" | "xlsm" | "xls" => Self::Sheet,
            "" => return Err(unknown(path, "a name without an ending".to_owned())),
            _ => return Err(unknown(path, format!(".{ending}{}", compression.ending()))),
        };
        Ok((format, compression))
    }
}

impl Compression {
    fn ending(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => ".gz",
            Self::Zstd => ".zst",
        }
    }
}

fn unknown(path: &Path, found: String) -> ExportError {
    ExportError::UnknownFormat { file: path.to_owned(), found }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Result<(Format, Compression), ExportError> {
        Format::of_path(Path::new(name))
    }

    #[test]
    fn endings_tell_format_and_compression() {
        assert_eq!(of("d/a.csv").unwrap(), (Format::Csv { delimiter: None }, Compression::None));
        assert_eq!(of("d/a.b.TSV.GZ").unwrap(), (Format::Csv { delimiter: Some(b'\t') }, Compression::Gzip));
        assert_eq!(of("用户.jsonl.zst").unwrap(), (Format::Ndjson, Compression::Zstd));
        assert_eq!(of("a.json").unwrap(), (Format::Json, Compression::None));
        assert_eq!(of("data/用户.XLSX").unwrap(), (Format::Sheet, Compression::None));
        assert_eq!(of("a.xls.gz").unwrap(), (Format::Sheet, Compression::Gzip));
        assert_eq!(of("a.parquet").unwrap(), (Format::Parquet, Compression::None));
    }

    #[test]
    fn an_unknown_ending_is_named() {
        assert!(of("a.txt.gz").unwrap_err().to_string().contains("found .txt.gz"));
        assert!(of("README").unwrap_err().to_string().contains("a name without an ending"));
        assert!(of("a.parquet.gz").unwrap_err().to_string().contains("found .parquet.gz"));
    }
}

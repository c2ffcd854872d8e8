//! JSON: one object a line, or one array of objects.
//!
//! The way of the data: `pieces` cuts the file into pieces that should each be an object → each is decoded and taken
//! apart here, without building a tree: numbers keep their digits, nested values their JSON text → `batch`. The columns
//! are the keys of the first 1000 rows; a key that turns up later adds a column from there on.

mod pieces;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use self::pieces::{Piece, Pieces};
use super::batch::Collector;
use super::layout::{self, Layout};
use super::{BadRow, ColumnKind, ExportError, FileReport, Format, Job, ReadOptions, Sink};

/// The rows whose keys are the columns.
const HEADER_ROWS: usize = 1000;

/// The columns of a file, as far as its first rows tell.
pub(super) fn layout(job: &Job<'_>, format: Format) -> Result<Layout, ExportError> {
    Ok(Keys::of_first_rows(job, format)?.layout)
}

/// Reads a whole file.
pub(super) fn read(job: &Job<'_>, format: Format, sink: &mut Sink<'_>) -> Result<FileReport, ExportError> {
    let mut keys = Keys::of_first_rows(job, format)?;
    let mut pieces = Pieces::open(job, format)?;
    let mut rows = Collector::new(&keys.layout, job.options.batch_rows, sink);
    loop {
        match pieces.next()? {
            Piece::End => break,
            Piece::Blank => rows.blank(),
            Piece::Row { bytes } => {
                if let Err(reason) = put(&pieces, bytes, &mut keys, &mut rows)? {
                    rows.refuse(bad(&pieces, bytes, reason));
                }
            }
            Piece::Refused { bytes, reason } => rows.refuse(bad(&pieces, bytes, reason)),
        }
        rows.flush_if_full()?;
        pieces.pass()?;
    }
    rows.end(pieces.decoder.encoding(), job.input.bytes()?)
}

fn bad(pieces: &Pieces, bytes: usize, reason: String) -> BadRow {
    let raw = pieces.decoder.raw(&pieces.source.window()[..bytes]);
    BadRow { line: pieces.source.line(), reason, raw }
}

/// Puts a row into the batch; the inner error is why it is refused.
fn put(
    pieces: &Pieces,
    bytes: usize,
    keys: &mut Keys<'_>,
    rows: &mut Collector<'_>,
) -> Result<Result<(), String>, ExportError> {
    let row = &pieces.source.window()[..bytes];
    let Some(text) = pieces.decoder.text(row) else {
        return Ok(Err(pieces.decoder.undecodable(row)));
    };
    let members = match members(&text) {
        Ok(members) => members,
        Err(reason) => return Ok(Err(reason)),
    };
    for (key, raw) in &members.0 {
        let value = match Value::of(raw) {
            Ok(value) => value,
            Err(fault) => return Ok(Err(format!("the text of {key:?} is not valid JSON: {fault}"))),
        };
        keys.add_if_new(key, rows)?;
        for column in &keys.places[key.as_ref()] {
            if rows.has(*column) {
                return Ok(Err(format!("the key {key:?} stands twice in the row")));
            }
            if rows.is_id(*column) && !value.may_be_id {
                return Ok(Err(format!("{key:?} is neither text nor a number")));
            }
            rows.put(*column, value.text.as_deref(), value.kind);
        }
    }
    Ok(rows.finish(pieces.source.line()).map_err(super::batch::Refusal::reason))
}

/// The keys of a file and the columns they go to.
struct Keys<'a> {
    file: &'a Path,
    options: &'a ReadOptions<'a>,
    layout: Layout,
    /// To none where the column is not kept; to several where it is mapped several times.
    places: HashMap<String, Vec<usize>>,
}

impl<'a> Keys<'a> {
    fn of_first_rows(job: &Job<'a>, format: Format) -> Result<Self, ExportError> {
        let mut header: Vec<String> = Vec::new();
        let mut places: HashMap<String, Vec<usize>> = HashMap::new();
        let mut pieces = Pieces::open(job, format)?;
        let mut seen = 0;
        while seen < HEADER_ROWS {
            match pieces.next()? {
                Piece::End => break,
                Piece::Row { bytes } => {
                    seen += 1;
                    let text = pieces.decoder.text(&pieces.source.window()[..bytes]);
                    for (key, _) in text.as_deref().and_then(|text| members(text).ok()).unwrap_or_default().0 {
                        if !places.contains_key(key.as_ref()) {
                            header.push(key.as_ref().to_owned());
                            places.insert(key.into_owned(), Vec::new());
                        }
                    }
                }
                Piece::Refused { .. } => seen += 1,
                Piece::Blank => {}
            }
            pieces.pass()?;
        }
        if seen == 0 && format == Format::Json && !pieces.is_array() {
            let reason = "it is empty; an export without anybody is []";
            return Err(ExportError::BrokenJson { file: job.input.shown().to_owned(), line: 1, reason });
        }
        if seen > 0 && header.is_empty() {
            let reason = "none of its first rows is an object";
            return Err(ExportError::BrokenJson { file: job.input.shown().to_owned(), line: 1, reason });
        }
        if seen == 0 {
            header = asked_for(job.options);
        }
        let layout = Layout::of_header(job.input.shown(), &header, job.options)?;
        for (place, column) in layout.columns.iter().enumerate() {
            places.entry(header[column.field].clone()).or_default().push(place);
        }
        Ok(Self { file: job.input.shown(), options: job.options, layout, places })
    }

    /// Gives a key that none of the first rows had a column of its own.
    fn add_if_new(&mut self, key: &str, rows: &mut Collector<'_>) -> Result<(), ExportError> {
        if self.places.contains_key(key) {
            return Ok(());
        }
        let mut places = Vec::new();
        if layout::is_kept(key, self.options) {
            let known = if key.eq_ignore_ascii_case(super::LINE_COLUMN) {
                Some(super::LINE_COLUMN)
            } else {
                rows.column_like(key)
            };
            if let Some(known) = known {
                return Err(ExportError::DuplicateColumn {
                    file: self.file.to_owned(),
                    name: key.to_owned(),
                    first: known.to_owned(),
                    second: key.to_owned(),
                });
            }
            places.push(rows.add_column(key, key == layout::UNIONID));
        }
        self.places.insert(key.to_owned(), places);
        Ok(())
    }
}

/// The header of a file without a single row: nobody has come yet, which is no fault of the file.
fn asked_for(options: &ReadOptions<'_>) -> Vec<String> {
    let mut header: Vec<String> = options.columns.iter().map(|(_, theirs)| theirs.clone()).collect();
    if !options.columns.iter().any(|(ours, _)| ours == layout::OPENID) {
        header.push(layout::OPENID.to_owned());
    }
    let mut seen = std::collections::HashSet::new();
    header.retain(|name| seen.insert(name.clone()));
    header
}

/// The members of one object, in its order.
#[derive(Default)]
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

fn members(text: &str) -> Result<Members<'_>, String> {
    let text = text.trim_start_matches('\u{FEFF}');
    serde_json::from_str(text).map_err(|fault| match fault.classify() {
        Category::Data => "not a JSON object".to_owned(),
        Category::Eof => "a JSON object that ends before it is complete".to_owned(),
        Category::Syntax | Category::Io => {
            format!("not valid JSON (line {} of the row, column {})", fault.line(), fault.column())
        }
    })
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfObject;

        impl<'de> Visitor<'de> for OfObject {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(16);
                while let Some((Text(key), value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    members.push((key, value));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(OfObject)
    }
}

/// A JSON string, borrowed unless something in it is escaped (serde's own `Cow` is always owned).
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfString;

        impl<'de> Visitor<'de> for OfString {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(OfString)
    }
}

/// One value as it goes into its column.
struct Value<'a> {
    text: Option<Cow<'a, str>>,
    kind: ColumnKind,
    may_be_id: bool,
}

impl<'a> Value<'a> {
    fn of(raw: &'a RawValue) -> Result<Self, serde_json::Error> {
        let json = raw.get();
        let as_it_stands = |kind, may_be_id| Self { text: Some(Cow::Borrowed(json)), kind, may_be_id };
        Ok(match json.as_bytes().first() {
            Some(b'n') => Self { text: None, kind: ColumnKind::Empty, may_be_id: true },
            Some(b't' | b'f') => as_it_stands(ColumnKind::Boolean, false),
            Some(b'{' | b'[') => as_it_stands(ColumnKind::Text, false),
            Some(b'"') => {
                Self { text: Some(serde_json::from_str::<Text<'a>>(json)?.0), kind: ColumnKind::Text, may_be_id: true }
            }
            _ => as_it_stands(number_kind(json), true),
        })
    }
}

fn number_kind(digits: &str) -> ColumnKind {
    /// Every whole number up to it has a floating one of its own.
    const EXACT: u64 = 1 << 53;
    if let Ok(number) = digits.parse::<i64>() {
        if number.unsigned_abs() <= EXACT { ColumnKind::Integer } else { ColumnKind::LongInteger }
    } else if digits.contains(['.', 'e', 'E']) && digits.parse::<f64>().is_ok_and(f64::is_finite) {
        ColumnKind::Number
    } else {
        // Too long for 64 bits: as a number it would lose digits.
        ColumnKind::Text
    }
}

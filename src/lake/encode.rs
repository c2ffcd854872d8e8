//! Columns of a part as Parquet pages, and when a column is worth a dictionary.
//!
//! Polars' own writer estimates how many different values a column has, hashes each value of one that seems worth it, and
//! copies texts into a form that the pages do not have: half of what a part costs. Here the values themselves tell while
//! the dictionary is made: ids show within some rows that they are no words. The pages are written by the same crate.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::io::{self, BufWriter, Write};
use std::sync::{Arc, Mutex, PoisonError};

use polars::error::{PolarsError, PolarsResult};
use polars::prelude::PlSmallStr;
use polars_arrow::array::{Array, BooleanArray, DictionaryArray, PrimitiveArray, Utf8Array};
use polars_arrow::bitmap::Bitmap;
use polars_arrow::datatypes::{ArrowDataType, ArrowSchema, Field, IntegerType, TimeUnit};
use polars_arrow::offset::OffsetsBuffer;
use polars_parquet::parquet::error::ParquetError;
use polars_parquet::write::{
    Compressor, DynIter, DynStreamingIterator, Encoding, FallibleStreamingIterator, FileWriter, ParquetType,
    SchemaDescriptor, WriteOptions, array_to_columns, to_parquet_schema,
};

use super::part::PartColumn;
use crate::domain::{ColumnType, Texts, Values};

/// Row groups of one schema into one file.
pub(super) struct Encoder {
    writer: FileWriter<BufWriter<Watched>>,
    failure: Failure,
    parquet: SchemaDescriptor,
    types: Vec<ColumnType>,
    options: WriteOptions,
}

impl Encoder {
    pub fn new(file: File, schema: &[(String, ColumnType)], options: WriteOptions) -> PolarsResult<Self> {
        let field = |(name, column_type): &(String, ColumnType)| {
            let name = PlSmallStr::from_str(name);
            (name.clone(), Field::new(name, arrow_type(*column_type), true))
        };
        let arrow: ArrowSchema = schema.iter().map(field).collect();
        let failure = Failure::default();
        let file = Watched { file, failure: failure.clone() };
        Ok(Self {
            parquet: to_parquet_schema(&arrow)?,
            writer: FileWriter::try_new(BufWriter::new(file), arrow, options)?,
            failure,
            types: schema.iter().map(|(_, column_type)| *column_type).collect(),
            options,
        })
    }

    /// One row group of `count` rows; `columns` are in the order of the schema, and one that is `None` is NULL throughout.
    pub fn write(&mut self, count: usize, columns: Vec<Option<PartColumn<'_>>>) -> PolarsResult<()> {
        let types = self.types.iter().zip(self.parquet.fields());
        let pages: Vec<_> = columns
            .into_iter()
            .zip(types)
            .map(|(column, (column_type, parquet))| pages(column, *column_type, count, (parquet, self.options)))
            .collect::<PolarsResult<_>>()?;
        let rows = u64::try_from(count).unwrap_or(u64::MAX);
        self.writer.write(rows, DynIter::new(pages.into_iter().flatten()))
    }

    /// Where it is told what the system said of a write that failed.
    pub fn failure(&self) -> Failure {
        self.failure.clone()
    }

    /// Writes the footer; the file is whole once this is dropped.
    pub fn finish(mut self) -> PolarsResult<()> {
        self.writer.end(None).map(|_| ())
    }
}

/// What the system said of a write that failed. The writer of pages makes a fault of the file's form of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Failure(Arc<Mutex<Option<io::Error>>>);

impl Failure {
    /// The error, once.
    pub fn take(&self) -> Option<io::Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn note(&self, error: &io::Error) {
        let same = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(same);
    }
}

/// A file that keeps what the system said of it.
struct Watched {
    file: File,
    failure: Failure,
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).inspect_err(|error| self.failure.note(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush().inspect_err(|error| self.failure.note(error))
    }
}

type Pages = PolarsResult<DynStreamingIterator<'static, polars_parquet::write::CompressedPage, PolarsError>>;

fn pages(
    column: Option<PartColumn<'_>>,
    column_type: ColumnType,
    count: usize,
    (parquet, options): (&ParquetType, WriteOptions),
) -> PolarsResult<Vec<Pages>> {
    let Encoded { array, encoding } = encoded(column, column_type, count)?;
    let compressed = |pages: DynIter<'static, PolarsResult<_>>| {
        let pages = pages.map(|page| page.map_err(|error| ParquetError::FeatureNotSupported(error.to_string())));
        let compressor = Compressor::new_from_vec(pages, options.compression, Vec::new());
        Ok(DynStreamingIterator::new(compressor.map_err(PolarsError::from)))
    };
    Ok(array_to_columns(array, parquet.clone(), options, &[encoding])?.into_iter().map(compressed).collect())
}

struct Encoded {
    array: Box<dyn Array>,
    encoding: Encoding,
}

fn plain(array: impl Array + 'static) -> Encoded {
    Encoded { array: Box::new(array), encoding: Encoding::Plain }
}

fn encoded(column: Option<PartColumn<'_>>, column_type: ColumnType, count: usize) -> PolarsResult<Encoded> {
    let arrow = arrow_type(column_type);
    Ok(match column {
        None => nulls(column_type, count),
        Some(PartColumn::Same(text)) => throughout(texts(std::iter::once(text), None)?, count)?,
        Some(PartColumn::SameTime(micros)) => throughout(PrimitiveArray::from_vec(vec![micros]).to(arrow), count)?,
        Some(PartColumn::SameBoolean(value)) => plain(BooleanArray::from(Bitmap::new_with_value(value, count))),
        Some(PartColumn::Texts(values)) if !values.has_any() => nulls(column_type, count),
        Some(PartColumn::Texts(values)) => match Words::of(values.iter()) {
            Some(words) => words.encoded(|words| Ok(Box::new(texts(words.into_iter(), None)?)))?,
            None => plain(whole_texts(values)?),
        },
        Some(PartColumn::Values(values)) => match values {
            Values::Text(values) => {
                let values = || values.iter().map(Option::as_deref);
                match Words::of(values()) {
                    Some(words) => words.encoded(|words| Ok(Box::new(texts(words.into_iter(), None)?)))?,
                    None => plain(texts(values().map(Option::unwrap_or_default), validity(values()))?),
                }
            }
            Values::Integer(values) | Values::Timestamp(values) => match Words::of(values.iter().copied()) {
                Some(words) => words.encoded(|words| Ok(Box::new(PrimitiveArray::from_vec(words).to(arrow))))?,
                None => plain(PrimitiveArray::from(values).to(arrow)),
            },
            Values::Float(values) => plain(PrimitiveArray::from(values)),
            Values::Boolean(values) => plain(BooleanArray::from(values)),
            Values::Date(values) => plain(PrimitiveArray::from(values).to(arrow)),
        },
    })
}

/// How each row says which of the different values it has: what Parquet calls a dictionary.
struct Words<T> {
    words: Vec<T>,
    keys: Vec<u32>,
    validity: Option<Bitmap>,
}

impl<T: Hash + Eq + Copy> Words<T> {
    /// So many are found by looking at one after the other, which is faster than hashing.
    const LOOKED_AT: usize = 8;
    /// Different values among the first rows that tell nothing yet.
    const BEGINNING: usize = 64;
    /// More are not worth their dictionary.
    const MOST: usize = 1 << 14;

    /// `None` where the values differ too much, or where there is none at all.
    fn of(values: impl ExactSizeIterator<Item = Option<T>> + Clone) -> Option<Self> {
        let mut words: Vec<T> = Vec::new();
        let mut others: HashMap<T, u32> = HashMap::new();
        let mut keys = Vec::with_capacity(values.len());
        let mut last = 0;
        for value in values.clone() {
            let Some(value) = value else {
                keys.push(0);
                continue;
            };
            let is_last = words.get(last).is_some_and(|word| *word == value);
            if !is_last {
                let at_hand = words.iter().take(Self::LOOKED_AT).position(|word| *word == value);
                let known = at_hand.or_else(|| others.get(&value).map(|key| *key as usize));
                last = known.unwrap_or(words.len());
                if known.is_none() {
                    words.push(value);
                    if words.len() > Self::LOOKED_AT {
                        others.insert(value, u32::try_from(last).ok()?);
                    }
                    let is_text = words.len() * 2 > keys.len() + Self::BEGINNING || words.len() > Self::MOST;
                    if is_text {
                        return None;
                    }
                }
            }
            keys.push(u32::try_from(last).ok()?);
        }
        let validity = validity(values);
        (!words.is_empty()).then_some(Self { words, keys, validity })
    }

    fn encoded(self, array_of: impl FnOnce(Vec<T>) -> PolarsResult<Box<dyn Array>>) -> PolarsResult<Encoded> {
        dictionary(array_of(self.words)?, PrimitiveArray::from_vec(self.keys).with_validity(self.validity))
    }
}

/// The one value of `array` in each of `count` rows.
fn throughout(array: impl Array + 'static, count: usize) -> PolarsResult<Encoded> {
    dictionary(Box::new(array), PrimitiveArray::from_vec(vec![0; count]))
}

fn dictionary(words: Box<dyn Array>, keys: PrimitiveArray<u32>) -> PolarsResult<Encoded> {
    let dtype = ArrowDataType::Dictionary(IntegerType::UInt32, Box::new(words.dtype().clone()), false);
    let array = Box::new(DictionaryArray::try_new(dtype, keys, words)?);
    Ok(Encoded { array, encoding: Encoding::RleDictionary })
}

fn nulls(column_type: ColumnType, count: usize) -> Encoded {
    Encoded { array: polars_arrow::array::new_null_array(arrow_type(column_type), count), encoding: Encoding::Plain }
}

fn texts<'a>(values: impl Iterator<Item = &'a str>, validity: Option<Bitmap>) -> PolarsResult<Utf8Array<i64>> {
    let (mut bytes, mut ends) = (Vec::new(), vec![0]);
    for value in values {
        bytes.extend_from_slice(value.as_bytes());
        ends.push(as_offset(bytes.len()));
    }
    Utf8Array::try_new(ArrowDataType::LargeUtf8, OffsetsBuffer::try_from(ends)?, bytes.into(), validity)
}

/// A column of texts as it lies in memory.
fn whole_texts(values: &Texts) -> PolarsResult<Utf8Array<i64>> {
    let (text, ends) = values.parts();
    let offsets: Vec<i64> = std::iter::once(0).chain(ends.iter().copied().map(as_offset)).collect();
    let bytes = text.as_bytes().to_vec();
    Utf8Array::try_new(
        ArrowDataType::LargeUtf8,
        OffsetsBuffer::try_from(offsets)?,
        bytes.into(),
        validity(values.iter()),
    )
}

fn as_offset(length: usize) -> i64 {
    i64::try_from(length).expect("no column is 8 EB long")
}

fn validity<T>(values: impl ExactSizeIterator<Item = Option<T>> + Clone) -> Option<Bitmap> {
    let has_null = values.clone().any(|value| value.is_none());
    has_null.then(|| values.map(|value| value.is_some()).collect())
}

fn arrow_type(column_type: ColumnType) -> ArrowDataType {
    match column_type {
        ColumnType::Text => ArrowDataType::LargeUtf8,
        ColumnType::Integer => ArrowDataType::Int64,
        ColumnType::Float => ArrowDataType::Float64,
        ColumnType::Boolean => ArrowDataType::Boolean,
        ColumnType::Timestamp => ArrowDataType::Timestamp(TimeUnit::Microsecond, None),
        ColumnType::Date => ArrowDataType::Date32,
    }
}

#[cfg(test)]
mod tests {
    use polars::prelude::{AnyValue, DataFrame, ParquetReader, SerReader};

    use super::*;
    use crate::lake::Lake;

    const ROWS: i64 = 40_000;

    fn number(row: i64) -> Option<i64> {
        (row % 7 != 3).then_some(row)
    }

    fn column(name: &str) -> Values {
        let rows = 0..ROWS;
        let text = |row: i64| format!("o{}", row.wrapping_mul(7_919));
        match name {
            "ids" => Values::Text(rows.map(|row| Some(text(row))).collect()),
            "ids_and_nulls" => Values::Text(rows.map(|row| number(row).map(text)).collect()),
            "words" => Values::Text(rows.map(|row| number(row).map(|row| format!("词{}", row % 30))).collect()),
            "one_word_late" => Values::Text(rows.map(|row| (row == ROWS - 1).then(String::new)).collect()),
            "words_then_ids" => Values::Text(rows.map(|row| Some(text(if row < 9_000 { 1 } else { row }))).collect()),
            "nothing" => Values::Text(rows.map(|_| None).collect()),
            "numbers" => Values::Integer(rows.map(number).collect()),
            "codes" => Values::Integer(rows.map(|row| number(row % 20)).collect()),
            "times" => Values::Timestamp(rows.map(|row| number(row / 100)).collect()),
            "days" => Values::Date(rows.map(|row| number(row).and_then(|row| i32::try_from(row).ok())).collect()),
            "halves" => Values::Float(rows.map(|row| number(row).map(|row| f64::from(row as i32) / 2.0)).collect()),
            _ => Values::Boolean(rows.map(|row| number(row).map(|row| row % 2 == 0)).collect()),
        }
    }

    const COLUMNS: &[(&str, ColumnType)] = &[
        ("ids", ColumnType::Text),
        ("ids_and_nulls", ColumnType::Text),
        ("words", ColumnType::Text),
        ("one_word_late", ColumnType::Text),
        ("words_then_ids", ColumnType::Text),
        ("nothing", ColumnType::Text),
        ("numbers", ColumnType::Integer),
        ("codes", ColumnType::Integer),
        ("times", ColumnType::Timestamp),
        ("days", ColumnType::Date),
        ("halves", ColumnType::Float),
        ("yes", ColumnType::Boolean),
        ("left_out", ColumnType::Integer),
        ("same", ColumnType::Text),
        ("same_time", ColumnType::Timestamp),
        ("same_yes", ColumnType::Boolean),
        ("as_texts", ColumnType::Text),
    ];

    fn shown(values: &Values, row: usize) -> String {
        let text = |value: Option<String>| value.unwrap_or_else(|| "null".to_owned());
        match values {
            Values::Text(values) => text(values[row].clone()),
            Values::Integer(values) | Values::Timestamp(values) => text(values[row].map(|value| value.to_string())),
            Values::Float(values) => text(values[row].map(|value| value.to_string())),
            Values::Boolean(values) => text(values[row].map(|value| value.to_string())),
            Values::Date(values) => text(values[row].map(|value| value.to_string())),
        }
    }

    fn read(frame: &DataFrame, name: &str, row: usize) -> String {
        match frame.column(name).unwrap().get(row).unwrap() {
            AnyValue::String(text) => text.to_owned(),
            AnyValue::StringOwned(text) => text.to_string(),
            AnyValue::Int64(value) | AnyValue::Datetime(value, ..) => value.to_string(),
            AnyValue::Date(value) => value.to_string(),
            AnyValue::Float64(value) => value.to_string(),
            AnyValue::Boolean(value) => value.to_string(),
            AnyValue::Null => "null".to_owned(),
            other => panic!("{name} holds {other:?}"),
        }
    }

    #[test]
    fn what_is_written_is_read_again_from_each_row_group_whatever_it_is_like() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(folder.path());
        let ids = column("ids_and_nulls");
        let Values::Text(own) = &ids else { unreachable!() };
        let as_texts: Texts = own.iter().map(Option::as_deref).collect();
        for of_ids in [false, true] {
            let path = format!("work/{of_ids}.parquet");
            let begun = if of_ids { lake.writer_of_ids(&path, COLUMNS) } else { lake.writer(&path, COLUMNS) };
            let mut writer = begun.unwrap();
            for _ in 0..2 {
                let mut columns: Vec<_> =
                    COLUMNS[..12].iter().map(|(name, _)| (*name, PartColumn::Values(column(name)))).collect();
                columns.push(("same", PartColumn::Same("main")));
                columns.push(("same_time", PartColumn::SameTime(5)));
                columns.push(("same_yes", PartColumn::SameBoolean(true)));
                columns.push(("as_texts", PartColumn::Texts(&as_texts)));
                writer.write_columns(usize::try_from(ROWS).unwrap(), columns).unwrap();
            }
            writer.finish().unwrap();
            let frame = ParquetReader::new(std::fs::File::open(lake.absolute(&path)).unwrap()).finish().unwrap();
            assert_eq!(frame.height(), 2 * usize::try_from(ROWS).unwrap());
            let columns: Vec<Values> = COLUMNS[..12].iter().map(|(name, _)| column(name)).collect();
            for row in (0..frame.height()).step_by(977).chain([frame.height() - 1]) {
                let own = row % usize::try_from(ROWS).unwrap();
                for ((name, _), values) in COLUMNS.iter().zip(&columns) {
                    assert_eq!(read(&frame, name, row), shown(values, own), "{name}, row {row}");
                }
                let rest = ["left_out", "same", "same_time", "same_yes"].map(|name| read(&frame, name, row));
                assert_eq!(rest, ["null", "main", "5", "true"]);
                assert_eq!(read(&frame, "as_texts", row), shown(&ids, own));
            }
        }
    }

    #[test]
    fn words_get_a_dictionary_and_ids_do_not() {
        let encoding = |name: &str| {
            let column_type = COLUMNS.iter().find(|(own, _)| *own == name).unwrap().1;
            encoded(Some(PartColumn::Values(column(name))), column_type, 0).unwrap().encoding
        };
        for name in ["words", "one_word_late", "codes", "times"] {
            assert_eq!(encoding(name), Encoding::RleDictionary, "{name}");
        }
        for name in ["ids", "ids_and_nulls", "words_then_ids", "numbers"] {
            assert_eq!(encoding(name), Encoding::Plain, "{name}");
        }
    }
}

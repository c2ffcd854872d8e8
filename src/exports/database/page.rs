//! Rows of a page on their way to whoever keeps them, column by column, cut into batches of bounded size.

use super::value::ValueKind;
use super::{Found, Key, KeyOrder, PageEnd};
use crate::domain::Texts;
use crate::exports::layout::Layout;

/// A batch is handed over when it holds so much.
const BATCH_ROWS: usize = 10_000;
const BATCH_BYTES: usize = 8 << 20;

/// Some rows, as text.
#[derive(Debug, Default)]
pub struct TextBatch {
    pub rows: usize,
    /// In the order of [`super::Database::columns`].
    pub columns: Vec<Texts>,
    /// The key of each row, if there is one.
    pub keys: Texts,
    /// Why a row cannot be taken; mostly nothing.
    pub faults: Texts,
}

/// Why a key cannot be paged along.
pub(super) enum KeyFault {
    Null,
    /// The value.
    Twice(String),
}

/// A page while it is read.
pub(super) struct Page<'a> {
    /// Place, kind, whether it is an id, and our name of each column.
    columns: Vec<(usize, ValueKind, bool, &'a str)>,
    key: Option<&'a Key>,
    most: u64,
    batch: TextBatch,
    bytes: usize,
    rows: u64,
    has_more: bool,
    last_key: Option<String>,
}

impl<'a> Page<'a> {
    pub(super) fn new(layout: &'a Layout, found: &[Found], key: Option<&'a Key>, most: u64) -> Self {
        let columns = layout.columns.iter();
        let columns: Vec<_> = columns
            .map(|column| (column.field, found[column.field].kind, column.is_id, column.name.as_str()))
            .collect();
        let batch = Self::empty(columns.len());
        Self { columns, key, most, batch, bytes: 0, rows: 0, has_more: false, last_key: None }
    }

    fn empty(columns: usize) -> TextBatch {
        TextBatch { columns: vec![Texts::default(); columns], ..TextBatch::default() }
    }

    /// Takes a row, whose bytes `field` gives. The row behind the last one is only looked at.
    pub(super) fn take<'r>(&mut self, field: impl Fn(usize) -> Option<&'r [u8]>) -> Result<(), KeyFault> {
        if let Some(key) = self.key {
            let value = key.kind.key_text(field(key.field).ok_or(KeyFault::Null)?).into_owned();
            if self.last_key.as_ref().is_some_and(|last| key.takes_for_one(last, &value)) {
                return Err(KeyFault::Twice(value));
            }
            if self.rows == self.most {
                self.has_more = true;
                return Ok(());
            }
            self.batch.keys.push(Some(&value));
            self.last_key = Some(value);
        } else {
            self.batch.keys.push(None);
        }
        let mut fault = None;
        for ((place, kind, is_id, name), into) in self.columns.iter().zip(&mut self.batch.columns) {
            match field(*place) {
                None => into.push(None),
                Some(bytes) => {
                    self.bytes += bytes.len();
                    if !kind.put(into, bytes, *is_id) && fault.is_none() {
                        fault = Some(format!("{name} holds bytes that are not UTF-8"));
                    }
                }
            }
        }
        self.batch.faults.push(fault.as_deref());
        self.batch.rows += 1;
        self.rows += 1;
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        self.batch.rows >= BATCH_ROWS || self.bytes >= BATCH_BYTES
    }

    /// What has gathered.
    pub(super) fn batch(&mut self) -> TextBatch {
        self.bytes = 0;
        std::mem::replace(&mut self.batch, Self::empty(self.columns.len()))
    }

    pub(super) fn end(&self) -> PageEnd {
        PageEnd { rows: self.rows, has_more: self.has_more }
    }
}

impl Key {
    /// Whether a page that begins after `last` would leave out `next`.
    fn takes_for_one(&self, last: &str, next: &str) -> bool {
        match self.order {
            // Such collations do not see blanks at the end.
            KeyOrder::Collation(_) => last.trim_end_matches(' ') == next.trim_end_matches(' '),
            KeyOrder::Own | KeyOrder::Bytes => last == next,
        }
    }
}

//! The file layer: a TOML file as it stands, with the place of every key and value, read key by key.
//!
//! A [`Section`] is one table of a file. Its reader takes the keys it knows; [`Section::finish`] then reports every key that
//! nobody asked for, with the nearest of those that were. A [`Field`] turns one value into a type, or reports why it cannot
//! and gives nothing. No default stands here, and no key of the contract: both are where the settings are made.

use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use secrecy::SecretString;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::environment::{Environment, Unfilled};
use super::problems::{Problems, accepted, suggestion};
use super::settings::Place;
use super::units::{self, Unread};

/// What all files are read with: the variables, and the list that problems go to.
pub(super) struct Desk<'a> {
    pub environment: &'a Environment,
    pub problems: RefCell<Problems>,
}

/// One file on the desk.
#[derive(Clone, Copy)]
pub(super) struct Page<'a> {
    pub desk: &'a Desk<'a>,
    /// Relative to the workspace.
    pub file: &'a Path,
    pub text: &'a str,
}

impl Page<'_> {
    pub fn place(&self, span: Range<usize>) -> Place {
        Place { file: self.file.to_owned(), span }
    }

    pub fn problem(&self, span: Range<usize>, message: impl Into<String>, hint: impl Into<String>) {
        self.desk.problems.borrow_mut().at(&self.place(span), message).hint(hint);
    }
}

/// One table, while its keys are taken out.
pub(super) struct Section<'a> {
    pub page: Page<'a>,
    /// As problems call it: "a `push_template` stage".
    pub title: String,
    /// Of the header, or of the braces.
    pub span: Range<usize>,
    /// `None`: the file leaves the table out.
    table: Option<&'a DeTable<'a>>,
    asked: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub fn new(page: Page<'a>, title: impl Into<String>, table: &'a Spanned<DeTable<'a>>) -> Self {
        Self { page, title: title.into(), span: table.span(), table: Some(table.get_ref()), asked: Vec::new() }
    }

    /// A table that the file leaves out, at the place of the one it would stand in.
    fn absent(page: Page<'a>, title: impl Into<String>, span: Range<usize>) -> Self {
        Self { page, title: title.into(), span, table: None, asked: Vec::new() }
    }

    pub fn is_present(&self) -> bool {
        self.table.is_some()
    }

    pub fn place(&self) -> Place {
        self.page.place(self.span.clone())
    }

    /// The field of a key, if it stands here; the key is known from now on.
    pub fn take(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.asked.push(key);
        let (name, value) = self.table?.get_key_value(key)?;
        Some(Field { page: self.page, name: name.get_ref(), key_span: name.span(), value })
    }

    /// The field of a key that must be there.
    pub fn require(&mut self, key: &'static str, hint: &str) -> Option<Field<'a>> {
        let field = self.take(key);
        if field.is_none() {
            self.page.problem(self.span.clone(), format!("`{key}` is missing"), hint);
        }
        field
    }

    /// A table within this one; an empty one where it is left out.
    pub fn section(&mut self, key: &'static str, title: &str) -> Section<'a> {
        let span = self.span.clone();
        self.take(key).and_then(|field| field.section(title)).unwrap_or_else(|| Section::absent(self.page, title, span))
    }

    /// All fields, in the order of the file: for tables whose keys are names.
    pub fn fields(&self) -> Vec<Field<'a>> {
        let mut fields: Vec<Field<'a>> = self
            .table
            .into_iter()
            .flat_map(|table| table.iter())
            .map(|(name, value)| Field { page: self.page, name: name.get_ref(), key_span: name.span(), value })
            .collect();
        fields.sort_by_key(|field| field.key_span.start);
        fields
    }

    /// Whether a key has been asked for.
    pub fn knows(&self, key: &str) -> bool {
        self.asked.contains(&key)
    }

    /// Reports every key that was not taken.
    pub fn finish(self) {
        for field in self.fields() {
            if !self.asked.contains(&field.name) {
                let hint = suggestion(field.name, self.asked.iter().copied(), "nothing is set here");
                self.page.problem(field.key_span, format!("unknown key `{}` of {}", field.name, self.title), hint);
            }
        }
    }
}

/// A text of a list, with where it stands.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub text: String,
    pub span: Range<usize>,
}

/// One key and its value.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub page: Page<'a>,
    pub name: &'a str,
    pub key_span: Range<usize>,
    pub value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Field<'a> {
    pub fn place(&self) -> Place {
        self.page.place(self.value.span())
    }

    /// Reports a problem at the value.
    pub fn refuse(&self, message: impl Into<String>, hint: impl Into<String>) {
        self.page.problem(self.value.span(), message, hint);
    }

    /// Reports a problem at the key.
    pub fn refuse_key(&self, message: impl Into<String>, hint: impl Into<String>) {
        self.page.problem(self.key_span.clone(), message, hint);
    }

    fn refuse_type(&self, expected: &str) {
        let found = kind_of(self.value.get_ref());
        self.refuse(format!("{found} stands where {expected} is expected"), format!("give `{}` {expected}", self.name));
    }

    /// A text with its references to the environment filled in.
    pub fn text(&self) -> Option<String> {
        match self.value.get_ref() {
            DeValue::String(raw) => filled(self.page, raw, self.value.span()),
            _ => {
                self.refuse_type("a text in quotes");
                None
            }
        }
    }

    /// A text that says something.
    pub fn full_text(&self) -> Option<String> {
        let text = self.text()?;
        if text.trim().is_empty() {
            self.refuse(
                format!("`{}` is empty", self.name),
                "give it a value; a variable it names may be set to nothing",
            );
            return None;
        }
        Some(text)
    }

    /// A text that may be empty, which is as good as left out.
    pub fn optional_text(&self) -> Option<String> {
        self.text().filter(|text| !text.is_empty())
    }

    pub fn optional_secret(&self) -> Option<SecretString> {
        self.optional_text().map(SecretString::from)
    }

    /// A text read by one of [`units`].
    pub fn unit<T>(&self, read: impl FnOnce(&str) -> Result<T, Unread>) -> Option<T> {
        let text = self.text()?;
        read(&text).map_err(|unread| self.refuse(unread.message, unread.hint)).ok()
    }

    pub fn duration(&self) -> Option<Duration> {
        if let DeValue::Integer(number) = self.value.get_ref() {
            self.refuse(
                "a duration has a unit",
                format!("write \"{}s\", \"{}m\" or \"{}h\"", number.as_str(), number.as_str(), number.as_str()),
            );
            return None;
        }
        self.unit(units::duration)
    }

    /// A duration longer than nothing.
    pub fn positive_duration(&self) -> Option<Duration> {
        let duration = self.duration()?;
        if duration.is_zero() {
            self.refuse("no time at all", format!("use a longer duration, or leave `{}` out", self.name));
            return None;
        }
        Some(duration)
    }

    pub fn rate(&self) -> Option<f64> {
        if let DeValue::Integer(number) = self.value.get_ref() {
            self.refuse("a rate has a unit", format!("write \"{}/s\"", number.as_str()));
            return None;
        }
        self.unit(units::rate)
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let hint = accepted(&text, words.iter().map(|(word, _)| *word));
        self.refuse(format!("\"{text}\" is not a value of `{}`", self.name), hint);
        None
    }

    pub fn boolean(&self) -> Option<bool> {
        match self.value.get_ref() {
            DeValue::Boolean(value) => Some(*value),
            _ => {
                self.refuse_type("true or false");
                None
            }
        }
    }

    pub fn integer(&self) -> Option<i64> {
        let DeValue::Integer(number) = self.value.get_ref() else {
            self.refuse_type("a whole number");
            return None;
        };
        let parsed = i64::from_str_radix(number.as_str(), number.radix()).ok();
        if parsed.is_none() {
            self.refuse(format!("{} is too large", number.as_str()), "use a smaller number");
        }
        parsed
    }

    /// A whole number of `things` within bounds (both allowed).
    pub fn count(&self, things: &str, bounds: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let number = self.integer()?;
        if let Some(count) = u64::try_from(number).ok().filter(|count| bounds.contains(count)) {
            return Some(count);
        }
        let hint = match (*bounds.start(), *bounds.end()) {
            (least, u64::MAX) => format!("use {least} or more, or leave `{}` out", self.name),
            (least, most) => format!("use {least} to {most}, or leave `{}` out", self.name),
        };
        self.refuse(format!("{number} is not a number of {things}"), hint);
        None
    }

    pub fn number(&self) -> Option<f64> {
        match self.value.get_ref() {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok(),
            DeValue::Float(number) => number.as_str().parse().ok(),
            _ => {
                self.refuse_type("a number");
                None
            }
        }
    }

    /// A share from 0 to 1.
    pub fn share(&self) -> Option<f64> {
        let number = self.number()?;
        if (0.0..=1.0).contains(&number) {
            return Some(number);
        }
        let hint = if number > 1.0 && number <= 100.0 {
            format!("for {number} % write {}", number / 100.0)
        } else {
            "use a number from 0 to 1".to_owned()
        };
        self.refuse(format!("{number} is not a share"), hint);
        None
    }

    /// A list of texts, or one text alone.
    pub fn texts(&self) -> Option<Vec<Item>> {
        let one = |value: &Spanned<DeValue<'a>>| match value.get_ref() {
            DeValue::String(raw) => filled(self.page, raw, value.span()).map(|text| Item { text, span: value.span() }),
            other => {
                let message = format!("{} stands in a list of texts", kind_of(other));
                self.page.problem(value.span(), message, "put it in quotes");
                None
            }
        };
        match self.value.get_ref() {
            DeValue::String(_) => Some(vec![one(self.value)?]),
            // All of them are looked at, so that all problems are told.
            DeValue::Array(items) => items.iter().map(one).collect::<Vec<_>>().into_iter().collect(),
            _ => {
                self.refuse_type("a list of texts");
                None
            }
        }
    }

    /// A list of texts without their places.
    pub fn words(&self) -> Option<Vec<String>> {
        Some(self.texts()?.into_iter().map(|item| item.text).collect())
    }

    pub fn is_text(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::String(_))
    }

    pub fn is_table(&self) -> bool {
        matches!(self.value.get_ref(), DeValue::Table(_))
    }

    /// A table, or a list of tables.
    pub fn sections(&self, title: &str) -> Option<Vec<Section<'a>>> {
        let DeValue::Array(items) = self.value.get_ref() else { return Some(vec![self.section(title)?]) };
        let one = |value: &'a Spanned<DeValue<'a>>| Field { value, ..self.clone() }.section(title);
        items.iter().map(one).collect()
    }

    pub fn section(&self, title: impl Into<String>) -> Option<Section<'a>> {
        let DeValue::Table(table) = self.value.get_ref() else {
            self.refuse_type("a table");
            return None;
        };
        Some(Section {
            page: self.page,
            title: title.into(),
            span: self.value.span(),
            table: Some(table),
            asked: Vec::new(),
        })
    }
}

fn filled(page: Page<'_>, raw: &str, span: Range<usize>) -> Option<String> {
    let (reference, message, hint) = match page.desk.environment.fill(raw) {
        Ok(text) => return Some(text),
        Err(Unfilled::Unset { name }) => (
            format!("${{{name}"),
            format!("the variable {name} is not set"),
            format!("export {name}=…, or put {name}=… into the workspace's .env"),
        ),
        Err(Unfilled::Malformed { reference }) => (
            reference,
            "this is not a reference to a variable".to_owned(),
            "write ${NAME} or ${NAME:-default}; for the characters themselves write $${".to_owned(),
        ),
    };
    let offset = page.text.get(span.clone()).and_then(|source| source.find(&reference)).unwrap_or_default();
    page.problem(span.start + offset..span.end, message, hint);
    None
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

//! Which columns a file has, what we call them and in which order they come out.
//!
//! `openid`, `unionid` and `updated_at` first, then the others in the order of the file. Names are compared without
//! regard to case where two of them might meet, because SQL does so; a column asked for is matched to the letter.

use std::path::Path;

use super::{ExportError, LINE_COLUMN, ReadOptions};

pub(super) const OPENID: &str = "openid";
pub(super) const UNIONID: &str = "unionid";
const STANDARD: [&str; 3] = [OPENID, UNIONID, "updated_at"];

/// The columns of a file as they come out.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    /// The first is `openid`.
    pub(super) columns: Vec<Column>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    /// Our name.
    pub(super) name: String,
    /// The place of the column in the file's header.
    pub(super) field: usize,
    /// Whether the values are cleaned as ids.
    pub(super) is_id: bool,
}

impl Layout {
    /// Matches a header (cleaned by [`cleaned_names`]) with what was asked for.
    ///
    /// # Errors
    /// A column that was asked for is missing, or two would get the same name.
    pub(super) fn of_header(file: &Path, header: &[String], options: &ReadOptions<'_>) -> Result<Self, ExportError> {
        require(file, header, options)?;
        let mut columns = Vec::with_capacity(header.len());
        for (field, theirs) in header.iter().enumerate() {
            let mut mapped = options.columns.iter().filter(|(_, from)| from == theirs).peekable();
            if mapped.peek().is_none() {
                columns.push(column(theirs, field));
            }
            columns.extend(mapped.map(|(ours, _)| column(ours, field)));
        }
        columns.retain(|column| is_kept(&column.name, options));
        refuse_duplicates(file, header, &columns)?;
        columns.sort_by_key(|column| STANDARD.iter().position(|name| *name == column.name).unwrap_or(STANDARD.len()));
        Ok(Self { columns })
    }
}

/// Whether a column of our name comes out.
pub(super) fn is_kept(name: &str, options: &ReadOptions<'_>) -> bool {
    STANDARD.contains(&name) || options.keep.is_none_or(|keep| keep.iter().any(|kept| kept == name))
}

fn column(name: &str, field: usize) -> Column {
    Column { name: name.to_owned(), field, is_id: name == OPENID || name == UNIONID }
}

/// Header cells without what spreadsheets leave around them; a cell without a name is called after its place.
pub(super) fn cleaned_names<'a>(cells: impl Iterator<Item = &'a str>) -> Vec<String> {
    let named = |(place, cell): (usize, &str)| match trimmed(cell) {
        "" => format!("column_{}", place + 1),
        name => name.to_owned(),
    };
    cells.enumerate().map(named).collect()
}

/// Text without white space of any width (U+3000 too), control characters, byte order marks and invisible joiners at its
/// ends.
pub(super) fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| {
        c.is_whitespace()
            || c.is_control()
            || matches!(c, '\u{FEFF}' | '\u{200B}' | '\u{200C}' | '\u{200D}' | '\u{2060}')
    })
}

/// An id without what is around it; `None` when nothing is left, or what databases write for nothing.
pub fn cleaned_id(text: &str) -> Option<&str> {
    let id = trimmed(text);
    let is_nothing = id.is_empty() || id == "\\N" || id.eq_ignore_ascii_case("null");
    (!is_nothing).then_some(id)
}

/// Whether a header has every column that was asked for.
pub(super) fn has_all(header: &[String], options: &ReadOptions<'_>) -> bool {
    require(Path::new(""), header, options).is_ok()
}

fn require(file: &Path, header: &[String], options: &ReadOptions<'_>) -> Result<(), ExportError> {
    let openid = (!options.columns.iter().any(|(ours, _)| ours == OPENID)).then_some((OPENID, OPENID));
    let asked = options.columns.iter().map(|(ours, theirs)| (ours.as_str(), theirs.as_str()));
    for (ours, theirs) in openid.into_iter().chain(asked) {
        if !header.iter().any(|name| name == theirs) {
            return Err(ExportError::MissingColumn {
                file: file.to_owned(),
                column: theirs.to_owned(),
                ours: ours.to_owned(),
                header: header.to_vec(),
                nearest: nearest(theirs, header),
            });
        }
    }
    Ok(())
}

fn nearest(wanted: &str, header: &[String]) -> Option<String> {
    let likeness = |name: &String| strsim::jaro_winkler(&wanted.to_lowercase(), &name.to_lowercase());
    let best = header.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) >= 0.75).then(|| best.clone())
}

fn refuse_duplicates(file: &Path, header: &[String], columns: &[Column]) -> Result<(), ExportError> {
    let mut seen: Vec<(String, &str)> = vec![(LINE_COLUMN.to_owned(), LINE_COLUMN)];
    for column in columns {
        let folded = column.name.to_lowercase();
        let theirs = header[column.field].as_str();
        if let Some((_, first)) = seen.iter().find(|(name, _)| *name == folded) {
            return Err(ExportError::DuplicateColumn {
                file: file.to_owned(),
                name: column.name.clone(),
                first: (*first).to_owned(),
                second: theirs.to_owned(),
            });
        }
        seen.push((folded, theirs));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(header: &[&str], columns: &[(&str, &str)], keep: Option<&[&str]>) -> Result<Vec<String>, ExportError> {
        let header: Vec<String> = header.iter().map(|name| (*name).to_owned()).collect();
        let columns: Vec<_> = columns.iter().map(|(ours, theirs)| ((*ours).to_owned(), (*theirs).to_owned())).collect();
        let keep: Option<Vec<String>> = keep.map(|keep| keep.iter().map(|name| (*name).to_owned()).collect());
        let options = ReadOptions { keep: keep.as_deref(), ..ReadOptions::of_columns(&columns) };
        let layout = Layout::of_header(Path::new("users.csv"), &header, &options)?;
        Ok(layout.columns.into_iter().map(|column| column.name).collect())
    }

    #[test]
    fn standard_columns_come_first_and_the_others_keep_their_order() {
        let found = names(
            &["城市", "last_login", "unionid", "vip", "openid"],
            &[("updated_at", "last_login"), ("city", "城市")],
            None,
        );
        assert_eq!(found.unwrap(), ["openid", "unionid", "updated_at", "city", "vip"]);
    }

    #[test]
    fn only_kept_columns_come_out_beside_the_standard_ones() {
        assert_eq!(names(&["openid", "a", "b", "unionid"], &[], Some(&["b"])).unwrap(), ["openid", "unionid", "b"]);
    }

    #[test]
    fn a_missing_column_is_named_with_the_nearest_one_found() {
        let refused = names(&["open_id", "unionid"], &[("openid", "openId")], None).unwrap_err().to_string();
        assert_eq!(
            refused,
            "the export users.csv has no column \"openId\" for openid (did you mean \"open_id\"?); its columns are \
             \"open_id\", \"unionid\": correct columns.openid"
        );
    }

    #[test]
    fn two_columns_of_one_name_are_refused_with_both() {
        let refused = names(&["openid", "city", "城市"], &[("city", "城市")], None).unwrap_err().to_string();
        assert!(refused.contains("\"city\" and \"城市\""), "{refused}");
        assert!(names(&["openid", "City", "city"], &[], None).is_err(), "SQL does not tell them apart");
    }

    #[test]
    fn ids_lose_every_kind_of_space_and_words_for_nothing() {
        assert_eq!(cleaned_id("\u{FEFF}\u{3000} oA1\u{200B}\t\0"), Some("oA1"));
        for nothing in ["", " \u{3000}", "NULL", "null", "\\N"] {
            assert_eq!(cleaned_id(nothing), None);
        }
    }
}

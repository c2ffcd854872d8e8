//! The keys of a `load_users` stage: where a mini program's users come from, and how its columns are called.

use std::collections::BTreeMap;

use super::stage::StageReader;
use super::{bucket, database};
use crate::config::file::{Field, Section};
use crate::config::problems::nearest;
use crate::config::resolve::defaults;
use crate::config::settings::{DatabaseSource, Encoding, LoadUsers, OnNewColumn, Place, SheetChoice, StageKind};
use crate::config::units;
use crate::domain::BucketAddress;

/// Kinds of files that can be read, each also with one of [`COMPRESSIONS`] behind it.
const FORMATS: [&str; 10] = ["csv", "tsv", "ndjson", "jsonl", "json", "xlsx", "xlsm", "xls", "parquet", "zip"];
/// Those that have sheets, or may hold such.
const SHEETS: [&str; 4] = ["xlsx", "xlsm", "xls", "zip"];
/// Those that have delimiters, or may hold such.
const DELIMITED: [&str; 3] = ["csv", "tsv", "zip"];
/// What may stand between fields.
const DELIMITERS: [(&str, u8); 5] = [(",", b','), (";", b';'), ("|", b'|'), ("tab", b'\t'), ("\t", b'\t')];
const COMPRESSIONS: [&str; 2] = ["gz", "zst"];
const ON_NEW_COLUMN: [(&str, OnNewColumn); 3] =
    [("keep", OnNewColumn::Keep), ("ignore", OnNewColumn::Ignore), ("fail", OnNewColumn::Fail)];
/// As many as a sheet can have.
const MAX_SHEET_ROWS: u64 = 1 << 20;
/// Columns that every table of users has by itself.
const OWN_COLUMNS: [&str; 1] = ["miniprogram"];
/// Columns that mean something to us; any other is carried along.
const ROLES: [&str; 3] = ["openid", "unionid", "updated_at"];

pub(super) fn read(stage: &mut StageReader<'_>) -> Option<StageKind> {
    let miniprogram = stage.one_miniprogram();
    let section = stage.section.section("source", "`source`");
    let is_database = section.fields().iter().any(|field| field.name == "database");
    let source = source(section);
    let columns_field = stage.section.take("columns");
    let columns = columns(columns_field.as_ref());
    let types = stage.section.section("types", "`types`");
    let types = types.fields().into_iter().filter_map(|field| Some((field.name.to_owned(), column_type(&field)?)));
    let types: BTreeMap<String, String> = types.collect();
    let keep_field = stage.section.take("keep");
    let keep = keep_field.as_ref().and_then(Field::words);
    let on_new_column = stage.section.take("on_new_column").and_then(|field| {
        let found = field.choice(&ON_NEW_COLUMN)?;
        if found != OnNewColumn::Keep && keep_field.is_some() {
            let hint = "leave out one of both; name the columns that are expected in `columns` or `types`";
            field.refuse_key("`keep` says already which columns there are", hint);
        }
        Some(found)
    });
    let on_new_column = on_new_column.unwrap_or(OnNewColumn::Keep);
    // Ignoring what nothing names is keeping what is named.
    let named = || columns.iter().map(|(ours, _)| ours).chain(types.keys()).cloned().collect();
    let keep = if on_new_column == OnNewColumn::Ignore { Some(named()) } else { keep };
    let max_age_field = stage.section.take("max_age");
    let wait_field = stage.section.take("wait_until");
    if is_database {
        database::refuse_lateness([max_age_field.as_ref(), wait_field.as_ref()]);
    }
    let max_age = max_age_field.and_then(|field| field.positive_duration());
    let wait_until = wait_field.and_then(|field| field.unit(units::time_of_day));
    let max_bad = stage.section.take("max_bad").and_then(|field| field.share());
    let Source { files, files_place, bucket, database, encoding, delimiter, sheet, header_row } = source?;
    Some(StageKind::LoadUsers(Box::new(LoadUsers {
        miniprogram: miniprogram?,
        files,
        files_place,
        bucket,
        database,
        encoding,
        delimiter,
        sheet,
        header_row,
        columns,
        columns_place: columns_field.map(|field| field.place()),
        types,
        keep,
        on_new_column,
        max_age,
        wait_until,
        max_bad: max_bad.unwrap_or(defaults::MAX_BAD),
    })))
}

fn column_type(field: &Field<'_>) -> Option<String> {
    let ty = field.unit(units::column_type)?;
    if field.name == "updated_at" && ty != "timestamp" {
        field.refuse("`updated_at` is a timestamp in every table of users", "leave it out here; it is read as a time");
        return None;
    }
    Some(ty)
}

/// The keys of `source`.
struct Source {
    files: String,
    files_place: Place,
    bucket: Option<BucketAddress>,
    database: Option<DatabaseSource>,
    encoding: Encoding,
    delimiter: Option<u8>,
    sheet: Option<SheetChoice>,
    header_row: Option<u32>,
}

fn source(mut section: Section<'_>) -> Option<Source> {
    let from_database = database::take(&mut section);
    let files = section.take("files");
    let encoding_field = section.take("encoding");
    let encoding = encoding_field.as_ref().and_then(|field| {
        field.choice(&[
            ("auto", Encoding::Auto),
            ("utf-8", Encoding::Utf8),
            ("utf8", Encoding::Utf8),
            ("gbk", Encoding::Gb18030),
            ("gb18030", Encoding::Gb18030),
        ])
    });
    let delimiter = section.take("delimiter");
    let sheet = section.take("sheet");
    let header_row = section.take("header_row");
    let of_bucket = bucket::Keys::take(&mut section);
    let page = section.page;
    let span = section.span.clone();
    section.finish();
    if let Some((place, found)) = from_database {
        of_bucket.refuse();
        for key in [&files, &encoding_field, &delimiter, &sheet, &header_row].into_iter().flatten() {
            let hint = "leave one of both out; a table comes out of files, or out of a database";
            key.refuse_key(format!("`{}` means nothing beside `source.database`", key.name), hint);
        }
        return Some(Source {
            files: String::new(),
            files_place: place,
            bucket: None,
            database: Some(found?),
            encoding: Encoding::Auto,
            delimiter: None,
            sheet: None,
            header_row: None,
        });
    }
    let Some(field) = files else {
        page.problem(
            span,
            "`source.files` is missing",
            "name the export's files: source.files = \"data/exports/mall/*.csv\"; or source.database and source.query",
        );
        return None;
    };
    let files = field.full_text()?;
    let is_bucket = bucket::is_bucket(&files);
    if !is_bucket {
        of_bucket.refuse();
    }
    let bucket = is_bucket.then(|| of_bucket.address(&field, &files));
    check_glob(&field, &files);
    for key in [&sheet, &header_row].into_iter().flatten() {
        refuse_beside(key, &files, &SHEETS);
    }
    if let Some(key) = &delimiter {
        refuse_beside(key, &files, &DELIMITED);
    }
    Some(Source {
        files,
        files_place: field.place(),
        bucket: bucket.map_or(Some(None), |address| address.map(Some))?,
        database: None,
        encoding: encoding.unwrap_or(Encoding::Auto),
        delimiter: delimiter.and_then(|field| field.choice(&DELIMITERS)),
        sheet: sheet.as_ref().and_then(sheet_choice),
        header_row: header_row
            .and_then(|field| field.count("rows", 1..=MAX_SHEET_ROWS))
            .and_then(|row| u32::try_from(row).ok()),
    })
}

fn sheet_choice(field: &Field<'_>) -> Option<SheetChoice> {
    if field.is_text() {
        return field.full_text().map(SheetChoice::Name);
    }
    let number = field.count("sheets", 1..=u64::from(u16::MAX))?;
    u32::try_from(number).ok().map(SheetChoice::Number)
}

/// A key that says nothing of the files that are named beside it.
fn refuse_beside(key: &Field<'_>, files: &str, formats: &[&str]) {
    let Some(format) = format_of(files) else { return };
    if !formats.contains(&format) {
        let hint = format!("leave it out; it is for files that end in .{}", formats.join(", ."));
        key.refuse_key(format!("`{}` means nothing for .{format} files", key.name), hint);
    }
}

/// The kind that all files of a pattern are, where it says so.
fn format_of(files: &str) -> Option<&str> {
    let mut extensions = files.rsplit('/').next().unwrap_or_default().rsplit('.');
    let mut extension = extensions.next().unwrap_or_default();
    if COMPRESSIONS.contains(&extension) {
        extension = extensions.next().unwrap_or_default();
    }
    (!extension.contains(['*', '?', '['])).then_some(extension)
}

fn check_glob(field: &Field<'_>, files: &str) {
    if files.contains("://") && !bucket::is_bucket(files) {
        let hint = "accepted are files of the workspace and s3://bucket/key; fetch others into data/exports/ first";
        field.refuse("files at such an address are not supported", hint);
        return;
    }
    if let Err(error) = glob::Pattern::new(files) {
        field.refuse(
            format!("this is not a pattern of file names: {}", error.msg),
            "use * and ?: \"data/exports/mall/*.csv\"",
        );
        return;
    }
    if files.contains(['{', '}']) {
        field.refuse("braces mean nothing in a pattern of file names", "use *, or a stage for each kind of file");
        return;
    }
    let Some(extension) = format_of(files).filter(|extension| !FORMATS.contains(extension)) else { return };
    let near = nearest(extension, FORMATS.into_iter());
    let near = near.map_or_else(String::new, |format| format!("did you mean `.{format}`? "));
    let hint = format!("{near}accepted: {}, each also .gz or .zst", FORMATS.join(", "));
    field.refuse("this pattern does not end like a kind of export", hint);
}

/// Our name → the export's; `openid` stands for itself where nothing else is said.
fn columns(field: Option<&Field<'_>>) -> Vec<(String, String)> {
    let mut columns = Vec::new();
    let section = field.and_then(|field| field.section("`columns`"));
    let fields: Vec<Field<'_>> = section.iter().flat_map(Section::fields).collect();
    for field in &fields {
        if OWN_COLUMNS.contains(&field.name) {
            field.refuse_key(format!("the column `{}` is there by itself", field.name), "name the column otherwise");
        } else if field.name.is_empty() || field.name.starts_with('_') || field.name.contains(['"', '\'']) {
            let hint = "use letters, digits and `_`, not beginning with `_`";
            field.refuse_key(format!("`{}` cannot name a column", field.name), hint);
        } else if let Some(role) = meant_role(field.name, &fields) {
            let hint = format!("did you mean `{role}`? Where both are columns, name `{role}` here as well");
            field.refuse_key(
                format!("`{}` is nearly `{role}`, and is no column that means anything here", field.name),
                hint,
            );
        }
        if let Some(theirs) = field.full_text() {
            columns.push((field.name.to_owned(), theirs));
        }
    }
    if !columns.iter().any(|(ours, _)| ours == "openid") {
        columns.insert(0, ("openid".to_owned(), "openid".to_owned()));
    }
    columns
}

/// The role that a name was surely meant for: a slip of the pen away, and not named itself beside it. Names of other columns
/// (`created_at`, `mp_openid`) are further off.
fn meant_role(name: &str, fields: &[Field<'_>]) -> Option<&'static str> {
    let own = name.to_lowercase();
    let sorted = |text: &str| {
        let mut letters: Vec<char> = text.chars().collect();
        letters.sort_unstable();
        letters
    };
    let is_slip = |role: &&str| strsim::damerau_levenshtein(&own, role) <= 1 || sorted(&own) == sorted(role);
    let is_named = |role: &str| fields.iter().any(|field| field.name == role);
    ROLES.into_iter().find(is_slip).filter(|role| !is_named(role))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_told_from_a_column_of_its_own() {
        for (slip, role) in [("opneid", "openid"), ("open_id", "openid"), ("opnied", "openid"), ("OpenID", "openid")] {
            assert_eq!(meant_role(slip, &[]), Some(role), "{slip}");
        }
        for (slip, role) in [("union_id", "unionid"), ("update_at", "updated_at"), ("updatedat", "updated_at")] {
            assert_eq!(meant_role(slip, &[]), Some(role), "{slip}");
        }
        for other in ["created_at", "updated_by", "mp_openid", "city", "union", "id", "openid_old"] {
            assert_eq!(meant_role(other, &[]), None, "{other}");
        }
    }
}

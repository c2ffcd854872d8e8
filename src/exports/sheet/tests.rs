//! Workbooks as spreadsheet programs and other people's scripts write them.

use std::path::PathBuf;

use rust_xlsxwriter::{ExcelDateTime, Format, Formula, Workbook, Worksheet};

use crate::exports::{Batch, ExportError, FileReport, Input, ReadOptions, Sheet, header, read_file};

/// What came out: rows as `openid|…`, refused rows as `row: reason`.
struct Found {
    rows: Vec<String>,
    bad: Vec<String>,
    report: FileReport,
}

/// Fills a sheet.
type Fill<'a> = &'a dyn Fn(&mut Worksheet);

fn book(sheets: &[(&str, Fill<'_>)]) -> (tempfile::TempDir, PathBuf) {
    let mut workbook = Workbook::new();
    for (name, write) in sheets {
        let sheet = workbook.add_worksheet();
        sheet.set_name(*name).unwrap();
        write(sheet);
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("users.xlsx");
    workbook.save(&path).unwrap();
    (folder, path)
}

fn read(path: &std::path::Path, options: &ReadOptions<'_>) -> Result<Found, ExportError> {
    let (mut rows, mut bad) = (Vec::new(), Vec::new());
    let report = read_file(&Input::of_file(path), options, &mut |batch: Batch| {
        for (at, line) in batch.lines.iter().enumerate() {
            let cells = batch.columns.iter().map(|(_, values)| values.get(at).unwrap_or("-").to_owned());
            rows.push(cells.chain([line.to_string()]).collect::<Vec<_>>().join("|"));
        }
        bad.extend(batch.bad.into_iter().map(|bad| format!("{}: {}", bad.line, bad.reason)));
        Ok(())
    })?;
    Ok(Found { rows, bad, report })
}

fn texts(sheet: &mut Worksheet, row: u32, cells: &[&str]) {
    for (column, cell) in cells.iter().enumerate().filter(|(_, cell)| !cell.is_empty()) {
        sheet.write_string(row, u16::try_from(column).unwrap(), *cell).unwrap();
    }
}

#[test]
fn the_first_sheet_that_can_be_seen_is_read_below_its_first_row_that_says_something() {
    let hidden: Fill<'_> = &|sheet| {
        sheet.set_hidden(true);
        texts(sheet, 0, &["openid"]);
    };
    let (_folder, path) = book(&[
        ("codes", hidden),
        ("用户", &|sheet| {
            sheet.set_active(true);
            texts(sheet, 1, &["", "", " openid ", "unionid", "note", "vip", "n"]);
            texts(sheet, 2, &["", "", "\u{3000}oA ", "uA", "a\nb"]);
            sheet.write_boolean(2, 5, true).unwrap();
            sheet.write_number(2, 6, 13_800_138_000.0).unwrap();
            texts(sheet, 4, &["", "", "  "]);
            texts(sheet, 5, &["", "", "oB", "NULL", ""]);
            sheet.write_number(5, 6, 19.9).unwrap();
        }),
    ]);
    let found = read(&path, &ReadOptions::of_columns(&[])).unwrap();
    assert_eq!(found.rows, ["oA|uA|a\nb|true|13800138000|3", "oB|-|-|-|19.9|6"]);
    assert_eq!((found.report.rows, found.report.bad, found.report.blank), (2, 0, 2));
    assert_eq!(
        header(&Input::of_file(&path), &ReadOptions::of_columns(&[])).unwrap(),
        ["openid", "unionid", "note", "vip", "n"]
    );
    let by_number = ReadOptions { sheet: Some(Sheet::Number(2)), ..ReadOptions::of_columns(&[]) };
    assert_eq!(read(&path, &by_number).unwrap().rows.len(), 2);
    let by_name = ReadOptions { sheet: Some(Sheet::Name("codes")), ..ReadOptions::of_columns(&[]) };
    assert_eq!(read(&path, &by_name).unwrap().rows, Vec::<String>::new());
}

#[test]
fn dates_are_times_of_the_wall_clock_and_failed_formulas_stay_text() {
    let (_folder, path) = book(&[("s", &|sheet| {
        texts(sheet, 0, &["openid", "updated_at", "born", "city"]);
        let time = Format::new().set_num_format("yyyy-mm-dd hh:mm:ss");
        let day = Format::new().set_num_format("yyyy/m/d");
        texts(sheet, 1, &["oA"]);
        let at = ExcelDateTime::from_ymd(2026, 11, 24).unwrap().and_hms(10, 30, 5).unwrap();
        sheet.write_datetime_with_format(1, 1, &at, &time).unwrap();
        sheet.write_datetime_with_format(1, 2, ExcelDateTime::from_ymd(1990, 2, 28).unwrap(), &day).unwrap();
        sheet.write_formula(1, 3, Formula::new("=NA()").set_result("#N/A")).unwrap();
    })]);
    let found = read(&path, &ReadOptions::of_columns(&[])).unwrap();
    assert_eq!(found.rows, ["oA|2026-11-24 10:30:05|1990-02-28|#N/A|2"]);
}

#[test]
fn a_number_that_lost_digits_is_a_bad_row_that_names_its_cell() {
    let (_folder, path) = book(&[("用户", &|sheet| {
        texts(sheet, 0, &["openid", "member"]);
        for (row, member) in [(1, 9_007_199_254_740_992.0), (2, 123_456_789_012_345_678.0)] {
            texts(sheet, row, &["o"]);
            sheet.write_number(row, 1, member).unwrap();
        }
        sheet.write_number(3, 0, 6_222_021_234_567_890_123.0).unwrap();
        texts(sheet, 4, &["", "no one"]);
        texts(sheet, 5, &["oE", "m", "aside"]);
    })]);
    let found = read(&path, &ReadOptions::of_columns(&[])).unwrap();
    assert_eq!(found.rows, ["o|9007199254740992|2"]);
    let lost = "a spreadsheet keeps 15 digits of a number, the others are lost; have the column written as text";
    let expected = [
        format!("3: member in B3 of sheet \"用户\" is the number 1.2345678901234568e17: {lost}"),
        format!("4: openid in A4 of sheet \"用户\" is the number 6.22202123456789e18: {lost}"),
        "5: no openid".to_owned(),
        "6: C6 of sheet \"用户\" has a value where the header names no column".to_owned(),
    ];
    assert_eq!(found.bad, expected);
    let only_ids = ReadOptions { keep: Some(&[]), ..ReadOptions::of_columns(&[]) };
    assert_eq!(read(&path, &only_ids).unwrap().rows.len(), 2, "what is not kept spoils nothing");
}

#[test]
fn a_sheet_or_header_that_is_not_there_is_told_with_those_that_are() {
    let (folder, path) = book(&[("用户", &|sheet| {
        texts(sheet, 0, &["Users of November"]);
        texts(sheet, 2, &["openid", "city"]);
        texts(sheet, 3, &["oA", "上海"]);
    })]);
    let told = |options: &ReadOptions<'_>| read(&path, options).err().unwrap().to_string();
    let all = ReadOptions::of_columns(&[]);
    assert!(told(&all).contains("has no column \"openid\""), "a title is taken for the header");
    let third = ReadOptions { header_row: Some(3), ..all };
    assert_eq!(read(&path, &third).unwrap().rows, ["oA|上海|4"]);
    let blank = told(&ReadOptions { header_row: Some(2), ..all });
    assert!(blank.contains("sheet \"用户\"") && blank.contains("has no header in row 2"), "{blank}");
    let other = told(&ReadOptions { sheet: Some(Sheet::Name("用户 ")), ..all });
    assert!(other.contains("has no sheet \"用户 \"; its sheets are \"用户\""), "{other}");
    let fifth = told(&ReadOptions { sheet: Some(Sheet::Number(5)), ..all });
    assert!(fifth.contains("has no sheet number 5"), "{fifth}");
    let cut = folder.path().join("cut.xlsx");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    assert!(matches!(read(&cut, &all), Err(ExportError::BrokenBook { .. })));
    let page = folder.path().join("page.xls");
    std::fs::write(&page, "<html><table><tr><td>openid</td></tr></table></html>").unwrap();
    assert!(matches!(read(&page, &all), Err(ExportError::Mislabelled { .. })));
    let packed = folder.path().join("users.xlsx.zst");
    std::fs::write(&packed, zstd::encode_all(&bytes[..], 1).unwrap()).unwrap();
    assert_eq!(read(&packed, &third).unwrap().rows, ["oA|上海|4"]);
}

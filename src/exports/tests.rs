//! Whole files, as they come from mini programs' databases, spreadsheets and scripts.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::*;

struct Read {
    batches: Vec<Batch>,
    report: FileReport,
}

impl Read {
    fn column(&self, name: &str) -> Vec<Option<String>> {
        let mut all = Vec::new();
        for batch in &self.batches {
            match batch.columns.iter().find(|(found, _)| found == name) {
                Some((_, values)) => all.extend(values.iter().map(|value| value.map(str::to_owned))),
                None => all.extend(vec![None; batch.lines.len()]),
            }
        }
        all
    }

    fn texts(&self, name: &str) -> Vec<String> {
        self.column(name).into_iter().map(|value| value.unwrap_or_else(|| "-".to_owned())).collect()
    }

    fn lines(&self) -> Vec<i64> {
        self.batches.iter().flat_map(|batch| batch.lines.clone()).collect()
    }

    fn bad(&self) -> Vec<(u64, &str)> {
        self.batches.iter().flat_map(|batch| &batch.bad).map(|bad| (bad.line, bad.reason.as_str())).collect()
    }
}

fn options<'a>(columns: &'a [(String, String)]) -> ReadOptions<'a> {
    ReadOptions::of_columns(columns)
}

fn read_with(path: &Path, options: &ReadOptions<'_>) -> Result<Read, ExportError> {
    let mut batches = Vec::new();
    let report = read_file(&Input::of_file(path), options, &mut |batch: Batch| {
        assert!(batch.columns.iter().all(|(_, values)| values.len() == batch.lines.len()), "columns of one length");
        batches.push(batch);
        Ok(())
    })?;
    Ok(Read { batches, report })
}

/// Writes a file of a name into a folder of its own and reads it with nothing mapped.
fn read(name: &str, content: impl AsRef<[u8]>) -> Result<Read, ExportError> {
    let (_folder, path) = file(name, content);
    read_with(&path, &options(&[]))
}

fn file(name: &str, content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    (folder, path)
}

fn gb(text: &str) -> Vec<u8> {
    encoding_rs::GB18030.encode(text).0.into_owned()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

#[test]
fn a_csv_as_excel_saves_it_is_read_with_its_marks_and_spaces_gone_from_ids() {
    let found =
        read("u.csv", "\u{FEFF} openid ,unionid,城市\r\n\u{3000}o1 ,u1,北京\r\no2,  ,\r\no3,NULL,\"上,海\"\r\n")
            .unwrap();
    assert_eq!(found.texts("openid"), ["o1", "o2", "o3"]);
    assert_eq!(found.texts("unionid"), ["u1", "-", "-"]);
    assert_eq!(found.texts("城市"), ["北京", "-", "上,海"]);
    assert_eq!(found.lines(), [2, 3, 4]);
    assert_eq!((found.report.rows, found.report.bad, found.report.encoding), (3, 0, Encoding::Utf8));
}

#[test]
fn columns_are_renamed_kept_and_put_in_order() {
    let (_folder, path) = file("u.tsv", "vip\t城市\tuid\tunionid\tlast\n1\t北京\to1\tu1\t2026-01-01\n");
    let columns = [("openid", "uid"), ("updated_at", "last"), ("city", "城市")];
    let columns: Vec<_> = columns.iter().map(|(ours, theirs)| ((*ours).to_owned(), (*theirs).to_owned())).collect();
    let keep = ["city".to_owned()];
    let options = ReadOptions { keep: Some(&keep), ..options(&columns) };
    assert_eq!(header(&Input::of_file(&path), &options).unwrap(), ["openid", "unionid", "updated_at", "city"]);
    let found = read_with(&path, &options).unwrap();
    let names: Vec<_> = found.batches[0].columns.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["openid", "unionid", "updated_at", "city"]);
    assert_eq!(found.texts("updated_at"), ["2026-01-01"]);
}

#[test]
fn physical_lines_are_counted_through_quoted_line_breaks() {
    let found = read("u.csv", "openid,note\r\no1,\"a\r\nb \"\"c\"\"\r\n\"\r\n\r\no2,x\r\n,y\r\no3,z").unwrap();
    assert_eq!(found.texts("note"), ["a\r\nb \"c\"\r\n", "x", "z"]);
    assert_eq!(found.lines(), [2, 6, 8]);
    assert_eq!(found.bad(), [(7, "no openid")]);
    assert_eq!(found.report.blank, 1);
}

#[test]
fn a_quote_that_is_never_closed_costs_its_own_line_only() {
    let mut content = "openid,note\no1,\"broken\n".to_owned();
    for row in 0..3000 {
        content.push_str(&format!("p{row},fine\n"));
    }
    let found = read("u.csv", &content).unwrap();
    assert_eq!(found.bad(), [(2, "the quote opened on line 2 is never closed")]);
    assert_eq!(found.report.rows, 3000);
    let pairs_with_a_later_one = read("u.csv", "openid,note\no1,\"broken\no2,a\no3,\"b\"\no4,c\n").unwrap();
    assert_eq!(pairs_with_a_later_one.bad(), [(2, "the quote opened on line 2 is never closed")]);
    assert_eq!(pairs_with_a_later_one.texts("openid"), ["o2", "o3", "o4"]);
    let at_the_end = read("u.csv", "openid,note\no1,a\no2,\"b").unwrap();
    assert_eq!(at_the_end.bad(), [(3, "the quote opened on line 3 is never closed")]);
}

#[test]
fn stray_quotes_within_a_line_stay_as_they_are() {
    let found = read("u.csv", "openid,note,n\no1,\"小明\"同学,1\no2,5\" pipe,2\no3,\"x\" ,3\n").unwrap();
    assert_eq!(found.texts("note"), ["\"小明\"同学", "5\" pipe", "x"]);
    assert_eq!(found.report.bad, 0);
}

#[test]
fn a_column_that_is_not_there_stops_the_file_before_anything_comes_out() {
    let (_folder, path) = file("u.csv", "openid,union_id\no1,u1\n");
    let columns = [("unionid".to_owned(), "unionid".to_owned())];
    let mut called = false;
    let refused = read_file(&Input::of_file(&path), &options(&columns), &mut |_| {
        called = true;
        Ok(())
    });
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("\"unionid\" for unionid (did you mean \"union_id\"?)"), "{text}");
    assert!(!called);
    assert!(matches!(read("u.csv", "id,name\n1,a\n"), Err(ExportError::MissingColumn { .. })));
    assert!(matches!(read("u.csv", "\n\n"), Err(ExportError::NoHeader { .. })));
    assert!(matches!(read("u.csv", "openid,a,a\n"), Err(ExportError::DuplicateColumn { .. })));
}

#[test]
fn gb18030_is_found_out_and_a_row_that_cannot_be_decoded_is_bad_alone() {
    let mut content = b"openid,nick\no0,plain\n".to_vec();
    content.extend(gb("o1,\"张三,𠮷\"\n"));
    content.extend_from_slice(b"o2,\xC4\xFF\n");
    content.extend(gb("o3,晓\u{FF5C}\\\n"));
    let found = read("u.csv", &content).unwrap();
    assert_eq!(found.report.encoding, Encoding::Gb18030);
    assert_eq!(found.texts("nick"), ["plain", "张三,𠮷", "晓｜\\"]);
    assert_eq!(found.bad(), [(4, "text that is not valid GB18030")]);
    assert!(found.batches[0].bad[0].raw.starts_with("o2,"));
}

#[test]
fn an_encoding_that_first_shows_after_megabytes_is_found_out_there() {
    let mut content = b"openid,city\n".to_vec();
    for row in 0..200_000 {
        content.extend_from_slice(format!("o{row},plain\n").as_bytes());
    }
    assert!(content.len() > 2 << 20);
    content.extend(gb("o_last,北京\n"));
    let found = read("u.csv", &content).unwrap();
    assert_eq!(found.report.encoding, Encoding::Gb18030);
    assert_eq!(found.texts("city").last().unwrap(), "北京");
}

#[test]
fn an_encoding_asked_for_is_not_guessed() {
    let (_folder, path) = file("u.csv", gb("openid,nick\no1,女\n"));
    let read_as = |encoding| read_with(&path, &ReadOptions { encoding, ..options(&[]) }).unwrap().texts("nick");
    assert_eq!(read_as(Encoding::Gb18030), ["女"]);
    assert_ne!(read_as(Encoding::Utf8), ["女"], "valid UTF-8 by accident");
}

#[test]
fn packed_files_read_as_plain_ones_and_cut_off_ones_fail() {
    let plain: String =
        std::iter::once("openid,n\n".to_owned()).chain((0..50_000).map(|n| format!("o{n},{n}\n"))).collect();
    let gz = gzip(plain.as_bytes());
    let mut two_members = gz.clone();
    two_members.extend(gzip(b"o_more,1\n"));
    let zst = zstd::encode_all(plain.as_bytes(), 1).unwrap();
    assert_eq!(read("u.csv.gz", &gz).unwrap().report.rows, 50_000);
    assert_eq!(read("u.csv.gz", &two_members).unwrap().report.rows, 50_001);
    let from_zst = read("u.csv.zst", &zst).unwrap();
    assert_eq!(from_zst.report.rows, 50_000);
    assert_eq!(from_zst.report.bytes, u64::try_from(zst.len()).unwrap());
    for (name, whole) in [("u.csv.gz", &gz), ("u.csv.zst", &zst)] {
        let cut_off = read(name, &whole[..whole.len() - 5]);
        assert!(matches!(cut_off, Err(ExportError::Read { .. })), "{name}");
    }
}

#[test]
fn a_file_that_is_not_what_its_name_says_is_refused() {
    for content in [&b"PK\x03\x04rest"[..], &gzip(b"openid\n"), b"PAR1"] {
        assert!(matches!(read("u.csv", content), Err(ExportError::Mislabelled { .. })));
    }
    assert!(matches!(read("u.parquet", "PAR1"), Err(ExportError::ForTheEngine { .. })));
}

#[test]
fn json_lines_keep_digits_and_nested_values_and_report_what_they_hold() {
    let content = concat!(
        "{\"openid\":\"o1\",\"n\":1,\"price\":12.50,\"vip\":true,\"tags\":[\"a\", {\"b\":1}],\"big\":123456789012345678901}\n",
        "\n",
        "{\"n\":2.5,\"openid\":10000000000000001,\"unionid\":\" u2 \",\"vip\":null,\"mixed\":1,\"name\":\"\\u5f20\\n\"}\n",
        "{\"openid\":\"o3\",\"mixed\":\"x\",\"name\":\"\"}\n",
    );
    let found = read("u.ndjson", content).unwrap();
    assert_eq!(found.texts("openid"), ["o1", "10000000000000001", "o3"]);
    assert_eq!(found.texts("unionid"), ["-", "u2", "-"]);
    assert_eq!(found.texts("price"), ["12.50", "-", "-"]);
    assert_eq!(found.texts("tags"), ["[\"a\", {\"b\":1}]", "-", "-"]);
    assert_eq!(found.texts("name"), ["-", "张\n", ""]);
    assert_eq!(found.lines(), [1, 3, 4]);
    let kinds: Vec<_> = found.report.columns.iter().map(|column| (column.name.as_str(), column.kind)).collect();
    let expected = [
        ("openid", ColumnKind::Text),
        ("unionid", ColumnKind::Text),
        ("n", ColumnKind::Number),
        ("price", ColumnKind::Number),
        ("vip", ColumnKind::Boolean),
        ("tags", ColumnKind::Text),
        ("big", ColumnKind::Text),
        ("mixed", ColumnKind::Text),
        ("name", ColumnKind::Text),
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn json_lines_that_are_no_objects_are_bad_rows() {
    let content = concat!(
        "{\"openid\":\"o1\"}\n",
        "[1]\n",
        "{\"openid\":\"o2\"\n",
        "{\"openid\" \"o3\"}\n",
        "{\"unionid\":\"u4\"}\n",
        "{\"openid\":\"o5\",\"openid\":\"o6\"}\n",
        "{\"openid\":{\"id\":7}}\n",
        "{\"openid\":\"o8\"}"
    );
    let found = read("u.jsonl", content).unwrap();
    assert_eq!(found.lines(), [1, 8]);
    let bad = [
        (2, "not a JSON object"),
        (3, "a JSON object that ends before it is complete"),
        (4, "not valid JSON (line 1 of the row, column 11)"),
        (5, "no openid"),
        (6, "the key \"openid\" stands twice in the row"),
        (7, "\"openid\" is neither text nor a number"),
    ];
    assert_eq!(found.bad(), bad);
}

#[test]
fn a_json_array_is_read_element_by_element_with_lines() {
    let content = "\u{FEFF} [\n  {\"openid\": \"o1\",\n   \"note\": \"}] \\\" \"},\n 7,\n  {\"openid\": \"o2\", \"a\": [[1],{}]}\n]\n";
    let found = read("u.json", content).unwrap();
    assert_eq!(found.texts("openid"), ["o1", "o2"]);
    assert_eq!(found.texts("note"), ["}] \" ", "-"]);
    assert_eq!(found.lines(), [2, 5]);
    assert_eq!(found.bad(), [(4, "not a JSON object")]);
    let as_lines = read("u.json", "{\"openid\":\"o1\"}\n{\"openid\":\"o2\"}\n").unwrap();
    assert_eq!(as_lines.report.rows, 2);
    let cut_off = read("u.json", "[{\"openid\":\"o1\"},\n{\"openid\":");
    assert!(matches!(cut_off, Err(ExportError::BrokenJson { line: 2, .. })));
    assert_eq!(read("u.json", "[]").unwrap().report.rows, 0);
}

#[test]
fn second_bytes_of_gb18030_are_not_taken_for_brackets() {
    let text =
        "[{\"openid\":\"o1\",\"nick\":\"晑\"},{\"openid\":\"o2\",\"nick\":\"俓\"},{\"openid\":\"o3\",\"nick\":\"儅\"}]";
    let content = gb(text);
    let trails = content.windows(2).filter(|pair| pair[0] >= 0x81 && matches!(pair[1], b'[' | b'\\' | b'{' | b'}'));
    assert!(trails.count() > 0, "the trap is a real one");
    let found = read("u.json", &content).unwrap();
    assert_eq!(found.texts("nick"), ["晑", "俓", "儅"]);
}

#[test]
fn a_key_that_turns_up_late_adds_a_column_from_there_on() {
    let mut content = String::new();
    for row in 0..2500 {
        content.push_str(&format!("{{\"openid\":\"o{row}\"}}\n"));
    }
    content.push_str("{\"openid\":\"late\",\"city\":\"北京\"}\n");
    let found = read("u.ndjson", &content).unwrap();
    assert_eq!(found.batches.first().unwrap().columns.len(), 1);
    assert_eq!(found.batches.last().unwrap().columns.len(), 2);
    assert_eq!(found.texts("city").last().unwrap(), "北京");
    assert_eq!(found.report.columns.len(), 2);
}

#[test]
fn a_line_without_end_is_one_bad_row() {
    let mut content = b"openid,a\no1,".to_vec();
    content.resize(20 << 20, b'x');
    content.extend_from_slice(b"\no2,y\n");
    let found = read("u.csv", &content).unwrap();
    assert_eq!(found.bad(), [(2, "a line longer than 16 MiB")]);
    assert_eq!(found.batches[0].bad[0].raw.chars().count(), 2000);
    assert_eq!(found.lines(), [3]);
}

#[test]
fn a_quoted_field_of_megabytes_and_thousands_of_lines_is_one_field() {
    let note = "o9,not a row\n".repeat(200_000);
    let found = read("u.csv", format!("openid,note\no1,\"{note}\"\no2,y\n").as_bytes()).unwrap();
    assert_eq!((found.bad(), found.texts("openid")), (vec![], vec!["o1".to_owned(), "o2".to_owned()]));
    assert_eq!((found.texts("note")[0] == note, found.lines()), (true, vec![2, 200_003]));
    let longer = "x\n".repeat(9 << 20);
    let found = read("u.csv", format!("openid,note\no1,\"{longer}\"\n").as_bytes()).unwrap();
    assert_eq!(found.bad()[0], (2, "the quote opened on line 2 is not closed within 16 MiB"));
}

#[test]
fn what_a_sink_returns_ends_the_reading() {
    let (_folder, path) = file("u.csv", "openid\no1\n");
    let refused =
        read_file(&Input::of_file(&path), &options(&[]), &mut |_| Err(ExportError::from_sink("the disk is full")))
            .unwrap_err();
    assert_eq!(std::error::Error::source(&refused).unwrap().to_string(), "the disk is full");
}

#[test]
fn seven_kinds_of_bad_rows_are_found_among_a_hundred_thousand_on_their_lines() {
    let mut content = "openid,unionid,city,note\n".as_bytes().to_vec();
    let (mut line, mut good, mut expected) = (2_u64, 0_u64, Vec::new());
    for row in 0..100_000_u64 {
        let (bytes, lines, reason): (Vec<u8>, u64, Option<String>) = match row % 10_000 {
            11 => (format!("o{row},u,北京\n").into(), 1, Some("3 fields where the header has 4".into())),
            22 => (format!("o{row},u,北京,x,y\n").into(), 1, Some("5 fields where the header has 4".into())),
            33 => (b"o,u,\xFF\xFE,x\n".to_vec(), 1, Some("text that is not valid UTF-8 (byte 5 of the row)".into())),
            44 => ("\u{3000} ,u,北京,x\n".into(), 1, Some("no openid".into())),
            55 => (",,,\n".into(), 1, Some("no openid".into())),
            66 => (
                format!("o{row},u,\"北京\n").into(),
                1,
                Some(format!("the quote opened on line {line} is never closed")),
            ),
            77 => (format!("o{row},u,\"a\nb\"\r\n").into(), 2, Some("3 fields where the header has 4".into())),
            88 => ("\r\n".into(), 1, None),
            99 => (format!("o{row},u,\"a\r\n\nb\",x\r\n").into(), 3, None),
            _ => (format!("o{row},u{row},北京,第{row}行\n").into(), 1, None),
        };
        good += u64::from(reason.is_none() && row % 10_000 != 88);
        expected.extend(reason.map(|reason| (line, reason)));
        content.extend(bytes);
        line += lines;
    }
    let found = read("users.csv.zst", zstd::encode_all(&content[..], 1).unwrap()).unwrap();
    let expected: Vec<(u64, &str)> = expected.iter().map(|(line, reason)| (*line, reason.as_str())).collect();
    assert_eq!(found.bad(), expected);
    assert_eq!((found.report.rows, found.report.bad, found.report.blank), (good, 70, 10));
    assert_eq!(found.lines().len(), usize::try_from(good).unwrap());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_a_csv_writer_writes_comes_back(
        notes in proptest::collection::vec("[a\"',;\t\r\n 北\u{3000}\\\\]{0,8}", 1..30),
        in_gb18030: bool,
    ) {
        let mut writer = ::csv::Writer::from_writer(Vec::new());
        writer.write_record(["openid", "note", "last"]).unwrap();
        for (row, note) in notes.iter().enumerate() {
            writer.write_record([&format!("o{row}"), note, note]).unwrap();
        }
        let written = String::from_utf8(writer.into_inner().unwrap()).unwrap();
        let (content, encoding) =
            if in_gb18030 { (gb(&written), Encoding::Gb18030) } else { (written.into_bytes(), Encoding::Utf8) };
        let (_folder, path) = file("u.csv", content);
        let found = read_with(&path, &ReadOptions { encoding, batch_rows: 7, ..options(&[]) }).unwrap();
        let expected: Vec<_> = notes.iter().map(|note| (!note.is_empty()).then(|| note.clone())).collect();
        proptest::prop_assert_eq!(found.bad(), []);
        proptest::prop_assert_eq!(&found.column("note"), &expected);
        proptest::prop_assert_eq!(&found.column("last"), &expected);
    }
}

#[test]
fn a_batch_of_long_rows_ends_before_it_is_large() {
    let long = "x".repeat(100_000);
    let rows: Vec<String> = (0..300).map(|row| format!("o{row},{long}\n")).collect();
    let (_folder, path) = file("u.csv", format!("openid,note\n{}", rows.concat()));
    let found = read_with(&path, &ReadOptions { batch_rows: 20_000, ..options(&[]) }).unwrap();
    assert_eq!(found.report.rows, 300);
    let most = found.batches.iter().map(|batch| batch.lines.len()).max().unwrap();
    assert_eq!(most, 84, "8 MiB of rows of 100 kB");
}

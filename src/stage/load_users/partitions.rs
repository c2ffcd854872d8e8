//! Folders that say something of the files in them, as Hive and Spark lay Parquet out: `day=2026-11-24/city=%E4%B8%8A/….parquet`.

use std::path::Path;

/// What Hive calls a folder of rows without a value.
const NO_VALUE: &str = "__HIVE_DEFAULT_PARTITION__";

/// The columns that a file's folders give it, from the outermost in; names and values as they were before they became
/// names of folders.
pub fn of_path(shown: &Path) -> Vec<(String, Option<String>)> {
    let folders = shown.parent().into_iter().flat_map(Path::components);
    let mut columns: Vec<(String, Option<String>)> = Vec::new();
    for folder in folders {
        let folder = folder.as_os_str().to_string_lossy();
        let Some((name, value)) = folder.split_once('=') else { continue };
        if name.is_empty() {
            continue;
        }
        let (name, value) = (decoded(name), decoded(value));
        columns.retain(|(known, _)| *known != name);
        columns.push((name, (value != NO_VALUE).then_some(value)));
    }
    columns
}

/// `%3A` is a colon. What is no such sign, or would not be text, stays as it stands.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let sign = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match sign.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                plain.push(byte);
                at += 3;
            }
            _ => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(plain).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_a_file_are_its_columns() {
        let path = Path::new("data/exports/day=2026-11-24/city=%E4%B8%8A%E6%B5%B7/at=10%3A00/vip=/part=0.parquet");
        let found = of_path(path);
        let found: Vec<_> =
            found.iter().map(|(name, value)| (name.as_str(), value.as_deref().unwrap_or("-"))).collect();
        assert_eq!(found, [("day", "2026-11-24"), ("city", "上海"), ("at", "10:00"), ("vip", "")]);
    }

    #[test]
    fn no_value_is_none_and_odd_names_stay() {
        let found = of_path(Path::new("a=1/=x/a=__HIVE_DEFAULT_PARTITION__/b=100%/c=%FF/u.parquet"));
        let expected = [("a", None), ("b", Some("100%")), ("c", Some("%FF"))];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.map(str::to_owned))));
    }
}

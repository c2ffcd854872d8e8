//! From a place in a text to a place in the file that holds the text.

use std::ops::Range;
use std::path::Path;

use crate::config::settings::Place;

/// The place of `range` of `text` (bytes), which stands somewhere inside `place`: as a whole SQL file, or as a string in
/// TOML. A string that is written with escapes or variables does not stand there as it reads; then all of `place` is meant.
pub fn within(root: &Path, text: &str, place: &Place, range: Range<usize>) -> Place {
    let start = range.start.min(text.len());
    let end = range.end.clamp(start, text.len());
    let at = |base: usize| Place { file: place.file.clone(), span: base + start..base + end };
    if place.file.extension().is_none_or(|extension| extension != "toml") {
        return at(place.span.start);
    }
    let Ok(file) = std::fs::read_to_string(root.join(&place.file)) else { return place.clone() };
    let found = file.get(place.span.clone()).and_then(|source| source.find(text));
    found.map_or_else(|| place.clone(), |offset| at(place.span.start + offset))
}

/// The word `name` in `text` nearest to `offset`, else `offset` itself: the engine counts a wide character as two, so
/// that the place it names may be beside the word.
pub fn word_near(text: &str, name: &str, offset: usize) -> Range<usize> {
    let word = words(text, name).min_by_key(|start| start.abs_diff(offset));
    word.map_or(offset..offset + 1, |start| start..start + name.len())
}

/// Where `name` stands in `text` as a word of its own, letter case aside.
fn words<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.char_indices().map(|(start, _)| start).filter(move |start| {
        let is_here = text.get(*start..*start + name.len()).is_some_and(|here| here.eq_ignore_ascii_case(name));
        is_here
            && !name.is_empty()
            && !text[..*start].ends_with(is_part)
            && !text[*start + name.len()..].starts_with(is_part)
    })
}

/// The parameters of a SELECT (`$name`, `$1`, `?`) with the bytes they stand at; not those in quotes and comments.
pub fn parameters(sql: &str) -> Vec<(&str, Range<usize>)> {
    let bytes = sql.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &sql.as_bytes()[at..];
        match rest[0] {
            quote @ (b'\'' | b'"') => at += 1 + rest[1..].iter().take_while(|byte| **byte != quote).count(),
            b'-' if rest.starts_with(b"--") => at += rest.iter().take_while(|byte| **byte != b'\n').count(),
            b'/' if rest.starts_with(b"/*") => {
                at += rest.windows(2).position(|two| two == b"*/").map_or(rest.len(), |end| end + 1);
            }
            b'?' => found.push(("?", at..at + 1)),
            b'$' => {
                let is_part = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'_' || !byte.is_ascii();
                let length = rest[1..].iter().take_while(is_part).count();
                if length > 0 {
                    found.push((&sql[at + 1..=at + length], at..at + 1 + length));
                }
                at += length;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_outside_quotes_and_comments() {
        let sql = "select '$no', \"$no\" -- $no ?\n, $city /* ? $no */ , ? from t where a = $1 and b = $城";
        let names: Vec<&str> = parameters(sql).iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["city", "?", "1", "城"]);
        for (name, range) in parameters(sql) {
            assert_eq!(sql[range].trim_start_matches('$'), name);
        }
    }

    #[test]
    fn unfinished_quotes_and_comments_end_with_the_text() {
        for sql in ["'$a", "/* $a", "-- $a", "$", "\"", "/*"] {
            assert_eq!(parameters(sql), [], "{sql}");
        }
    }

    #[test]
    fn a_word_is_found_beside_the_place_the_engine_names() {
        let text = "select '上海' as a, cty, city from t";
        let cty = text.find("cty").unwrap();
        assert_eq!(word_near(text, "cty", cty - 2), cty..cty + 3);
        assert_eq!(word_near(text, "ity", 7), 7..8, "a part of a word is not the word");
    }
}

//! Conditions of SQL that hold values to what they say they are: ids that are none, and values that the engine would round
//! to their declared type.

use crate::engine::text;

/// A text as an id, by the rule that the readers of text have as well: without what is around it, and nothing where it is a
/// word for nothing.
pub fn id_of(value: &str) -> String {
    let around = text(
        " \t\n\r\u{b}\u{c}\u{85}\u{a0}\u{1680}\u{2028}\u{2029}\u{202f}\u{3000}\u{feff}\u{200b}\u{200c}\u{200d}\u{2060}",
    );
    let nothings = ["''", "'NULL'", "'null'", "'Null'", r"'\N'"];
    nothings.iter().fold(format!("trim({value}, {around})"), |id, nothing| format!("nullif({id}, {nothing})"))
}

/// What the engine casts to a type though it is none of it: a fraction to a whole number, more digits to fewer, a time to its
/// date. As a condition on the text `column`, whose value of the type is `typed`.
pub fn is_rounded(ty: &str, column: &str, typed: &str) -> Option<String> {
    let ty = ty.trim().to_lowercase();
    let shape = if ty.ends_with("int") || ty.ends_with("integer") {
        r"[+-]?\d+(\.0*)?".to_owned()
    } else if let Some(rest) = ty.strip_prefix("decimal").or_else(|| ty.strip_prefix("numeric")) {
        // Left out, there are three digits behind the point; with one number alone, none.
        let numbers = rest.trim().trim_matches(['(', ')']);
        let scale = match numbers.split_once(',') {
            Some((_, scale)) => scale.trim().parse::<u32>().ok()?,
            None if numbers.is_empty() => 3,
            None => 0,
        };
        let fraction = if scale == 0 { "0+".to_owned() } else { format!(r"\d{{1,{scale}}}0*") };
        format!(r"[+-]?(\d+\.?|\d*\.{fraction})")
    } else if ty == "date" {
        return Some(format!("coalesce(try_cast({column} as timestamp) <> cast({typed} as timestamp), false)"));
    } else {
        return None;
    };
    // An exponent says the same number in another way.
    Some(format!(
        "not (regexp_full_match(trim({column}), '{shape}')
              or (contains(lower({column}), 'e') and coalesce(try_cast({column} as double) = cast({typed} as double), false)))"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Engine, Params};

    /// Those of `values` that the engine would round to `ty`.
    fn rounded(ty: &str, values: &[&str]) -> Vec<String> {
        let session = Engine::new("100MB", 1, "spill", chrono_tz::UTC).session().unwrap();
        let is_rounded = |value: &&&str| {
            let column = text(value);
            let condition = super::is_rounded(ty, &column, &format!("try_cast({column} as {ty})")).unwrap();
            session.count(&format!("select count(*) where {condition}"), &Params::new()).unwrap() == 1
        };
        values.iter().filter(is_rounded).map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn what_a_type_holds_with_all_its_digits_is_of_it_however_it_is_written() {
        let nothing: [&str; 0] = [];
        assert_eq!(rounded("integer", &["31", "-31", "+31", " 31 ", "31.", "31.00", "1e3", "3.1e1"]), nothing);
        assert_eq!(rounded("BIGINT", &["1.7", "0x10", "1_000", "1.5e0"]), ["1.7", "0x10", "1_000", "1.5e0"]);
        assert_eq!(rounded("decimal(12,2)", &["19.9", "19.90", "19.9000", ".5", "5.", "-0.25", "1e2"]), nothing);
        assert_eq!(rounded("decimal(12, 2)", &["12.345", "1e-3"]), ["12.345", "1e-3"]);
        assert_eq!(rounded("numeric", &["1.125", "1.1255"]), ["1.1255"], "three digits behind the point");
        assert_eq!(rounded("decimal(5)", &["12.0", "12.5"]), ["12.5"]);
        assert_eq!(
            rounded("date", &["2026-11-24", "2026-11-24 00:00:00", "2026-11-24 12:00:00"]),
            ["2026-11-24 12:00:00"]
        );
        assert_eq!(super::is_rounded("varchar", "x", "x"), None);
    }

    #[test]
    fn an_id_is_what_the_readers_of_text_make_of_it() {
        let session = Engine::new("100MB", 1, "spill", chrono_tz::UTC).session().unwrap();
        for value in
            ["oA", " oA\u{3000}", "\u{feff}oA\u{200b}", "", " \t", "NULL", "null", "Null", "\\N", "NULLs", "o A"]
        {
            let sql = format!("select coalesce({}, '(none)') as id", id_of(&text(value)));
            let found = session.query(&sql, &Params::new()).unwrap();
            let [(_, crate::domain::Values::Text(found))] = found.columns.as_slice() else { panic!("{found:?}") };
            assert_eq!(found[0].as_deref(), Some(crate::exports::cleaned_id(value).unwrap_or("(none)")), "{value:?}");
        }
    }
}

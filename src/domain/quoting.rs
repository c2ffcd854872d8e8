//! Names and texts as SQL quotes them: SQL is put together on more floors than run it.

/// A name as SQL quotes it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL quotes it.
pub fn text(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_inside_is_doubled() {
        assert_eq!((quoted("a\"b").as_str(), text("it's").as_str()), ("\"a\"\"b\"", "'it''s'"));
    }
}

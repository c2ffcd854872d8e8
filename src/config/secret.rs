//! Source lines on their way to a screen: values of secret keys become stars, what is only a reference stays.
//!
//! A line is looked at alone, and not as TOML, because it may be the very line that is not TOML.

/// Keys whose value is a secret; a key that only resembles one may be a misspelling of it.
const SECRET_KEYS: [&str; 6] = ["app_secret", "token", "encoding_aes_key", "webhook", "heartbeat", "database"];
/// Parts of a key that betray a secret under any name.
const SECRET_PARTS: [&str; 6] = ["secret", "token", "password", "passwd", "aes", "access_key"];
/// Values of `token` that name a way and are no secret, so that a misspelt one can be seen.
const OPEN_VALUES: [&str; 2] = ["stable", "legacy"];
const STARS: &str = "***";

/// `line` with every literal value of a secret key, and every password inside an address, replaced by stars.
pub(super) fn starred(line: &str) -> String {
    let mut clean = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find('=') {
        let (before, after) = (&rest[..at], &rest[at + 1..]);
        clean.push_str(before);
        clean.push('=');
        let value_start = after.len() - after.trim_start().len();
        clean.push_str(&after[..value_start]);
        let value = &after[value_start..];
        if !is_secret(key_before(before)) || value.starts_with('{') || value.starts_with('[') {
            rest = value;
            continue;
        }
        let end = value_end(value);
        clean.push_str(&starred_value(&value[..end]));
        rest = &value[end..];
    }
    clean.push_str(rest);
    without_password(&clean)
}

/// The last part of the key that ends right before an equals sign.
fn key_before(text: &str) -> &str {
    let key = text.trim_end().trim_end_matches(['"', '\'']);
    let start = key.rfind(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-'));
    start.map_or(key, |at| key[at..].trim_start_matches(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')))
}

fn is_secret(key: &str) -> bool {
    let key = key.to_lowercase();
    SECRET_PARTS.iter().any(|part| key.contains(part))
        || SECRET_KEYS.iter().any(|known| strsim::damerau_levenshtein(&key, known) <= known.len() / 4)
}

/// Where the value at the start of `text` ends: after its closing quote, else at the end of the line.
fn value_end(text: &str) -> usize {
    let Some(quote) = text.chars().next().filter(|c| matches!(c, '"' | '\'')) else { return text.len() };
    if text.starts_with("\"\"\"") || text.starts_with("'''") {
        return text.len();
    }
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' && quote == '"' {
            escaped = true;
        } else if c == quote {
            return at + 1;
        }
    }
    text.len()
}

fn starred_value(value: &str) -> String {
    let inner = value.trim_matches(['"', '\'']);
    let near_open = OPEN_VALUES.iter().any(|open| strsim::damerau_levenshtein(inner, open) <= 2);
    if inner.is_empty() || near_open || value.trim() == "true" || value.trim() == "false" {
        return value.to_owned();
    }
    // A reference shows its variable and never its default.
    if let Some(reference) = inner.strip_prefix("${").and_then(|text| text.strip_suffix('}'))
        && !reference.contains(['{', '}'])
    {
        return match reference.split_once(":-") {
            None | Some((_, "")) => value.to_owned(),
            Some((name, _)) => format!("\"${{{name}:-{STARS}}}\""),
        };
    }
    format!("\"{STARS}\"")
}

/// `scheme://user:password@host` with stars for the password.
fn without_password(text: &str) -> String {
    let Some(scheme) = text.find("://") else { return text.to_owned() };
    let (head, tail) = text.split_at(scheme + 3);
    let authority_end = tail.find(['/', '"', '\'', ' ', '?']).unwrap_or(tail.len());
    let Some(at) = tail[..authority_end].rfind('@') else { return format!("{head}{}", without_password(tail)) };
    let Some(colon) = tail[..at].find(':') else { return format!("{head}{}", without_password(tail)) };
    format!("{head}{}:{STARS}{}", &tail[..colon], without_password(&tail[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_literal_secret_is_never_shown() {
        for (line, shown) in [
            ("app_secret = \"hunter2\"", "app_secret = \"***\""),
            ("app_secrett = 'hunter2' # mine", "app_secrett = \"***\" # mine"),
            ("callback.token=\"hunter2\"", "callback.token=\"***\""),
            (
                "main = { app_id = \"wx1\", app_secret = \"hunter2\", x = 1 }",
                "main = { app_id = \"wx1\", app_secret = \"***\", x = 1 }",
            ),
            ("app_secret = \"hunter2", "app_secret = \"***\""),
            ("app_secret = hunter2", "app_secret = \"***\""),
            ("app_secret = \"a\\\"hunter2\"", "app_secret = \"***\""),
            ("webhook = \"https://x/hunter2\"", "webhook = \"***\""),
            ("app_secret = \"${SECRET:-hunter2}\"", "app_secret = \"${SECRET:-***}\""),
            ("url = \"postgres://me:hunter2@db/x\"", "url = \"postgres://me:***@db/x\""),
        ] {
            assert_eq!(starred(line), shown);
        }
    }

    #[test]
    fn what_is_no_secret_stays_as_it_is() {
        for line in [
            "app_secret = \"${LIANBO_MAIN_SECRET}\"",
            "token = \"stabel\"",
            "token = { url = \"http://centre/token\" }",
            "page_key = \"pagepath\"",
            "rate = \"50/s\"",
            "select * from followers where openid = 'o1'",
            "listen = \"0.0.0.0:80\"",
        ] {
            assert_eq!(starred(line), line);
        }
    }
}

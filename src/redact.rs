//! How ids and secrets look outside: enough to recognise, never enough to use.

/// An openid, unionid or template id as logs show it: its first five and last two characters.
pub fn shortened(id: &str) -> String {
    let count = id.chars().count();
    if count <= 10 {
        return "…".to_owned();
    }
    let head: String = id.chars().take(5).collect();
    let tail: String = id.chars().skip(count - 2).collect();
    format!("{head}…{tail}")
}

/// A text of the other side with every token, secret and query string taken out, cut to `limit` characters.
pub fn without_secrets(text: &str, limit: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(limit));
    let mut rest = text;
    while let Some(at) = ["access_token=", "secret=", "access_token\":\"", "secret\":\""]
        .iter()
        .filter_map(|key| rest.find(key).map(|at| at + key.len()))
        .min()
    {
        clean.push_str(&rest[..at]);
        clean.push_str("***");
        let value_end = rest[at..].find(['&', '"', ' ', ')', '\n']).map_or(rest.len(), |end| at + end);
        rest = &rest[value_end..];
    }
    clean.push_str(rest);
    clean.chars().filter(|c| !c.is_control() || *c == '\n').take(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_in_an_address_is_taken_out() {
        let shown = without_secrets("error for https://x/cgi-bin/user/get?access_token=abc123&next_openid=o1", 200);
        assert_eq!(shown, "error for https://x/cgi-bin/user/get?access_token=***&next_openid=o1");
        assert!(!shown.contains("abc123"));
    }

    #[test]
    fn an_openid_keeps_its_ends_only() {
        assert_eq!(shortened("oABCDEFGHIJKLMNOPQRSTUVWXYZ1"), "oABCD…Z1");
        assert_eq!(shortened("short"), "…");
    }
}

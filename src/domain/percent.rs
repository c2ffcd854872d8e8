//! Percent signs of addresses (RFC 3986).

/// `%2F` is a slash. What is no such sign stays, and all of it where what comes out would not be text.
pub fn percent_decoded(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        match (first, after) {
            (b'%', [high, low, behind @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                plain.push(digit(*high) << 4 | digit(*low));
                rest = behind;
            }
            _ => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(plain).unwrap_or_else(|_| text.to_owned())
}

/// The value of a hexadecimal digit.
fn digit(letter: u8) -> u8 {
    match letter {
        b'0'..=b'9' => letter - b'0',
        _ => (letter | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_read_and_what_is_none_stays() {
        for (text, plain) in [
            ("a%2Fb%e5%9f%8e", "a/b城"),
            ("100%", "100%"),
            ("%+1%g0%2", "%+1%g0%2"),
            ("%%41", "%A"),
            ("%ff", "%ff"),
            ("a+b", "a+b"),
        ] {
            assert_eq!(percent_decoded(text), plain, "{text}");
        }
    }
}

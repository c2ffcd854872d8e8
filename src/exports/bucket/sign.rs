//! Signatures of requests, version 4 (AWS4-HMAC-SHA256): whoever knows the secret says so without telling it.
//!
//! The signature goes in headers, so that an address is nobody's key and may stand in a proxy's log. Requests here have no body.

use ring::{digest, hmac};
use secrecy::ExposeSecret;

use crate::clock::Timestamp;
use crate::domain::BucketCredentials;

/// The SHA-256 of no body.
const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// A GET as it will leave.
pub(super) struct Unsigned<'a> {
    /// With the port where it is not the scheme's own.
    pub host: &'a str,
    /// Encoded.
    pub path: &'a str,
    /// Encoded, by name.
    pub query: &'a str,
    pub region: &'a str,
    pub at: Timestamp,
}

impl Unsigned<'_> {
    /// The headers that sign it.
    pub fn signed_by(&self, credentials: &BucketCredentials) -> Vec<(&'static str, String)> {
        let at = self.at.format("%Y%m%dT%H%M%SZ").to_string();
        let token = credentials.session_token.as_ref().map(|token| token.expose_secret().to_owned());
        let mut headers = vec![("x-amz-content-sha256", EMPTY_SHA256.to_owned()), ("x-amz-date", at.clone())];
        headers.extend(token.map(|token| ("x-amz-security-token", token)));
        let scope = format!("{}/{}/s3/aws4_request", &at[..8], self.region);
        let names: Vec<&str> = std::iter::once("host").chain(headers.iter().map(|(name, _)| *name)).collect();
        let names = names.join(";");
        let mut asked = format!("GET\n{}\n{}\nhost:{}\n", self.path, self.query, self.host);
        for (name, value) in &headers {
            asked.push_str(&format!("{name}:{value}\n"));
        }
        asked.push_str(&format!("\n{names}\n{EMPTY_SHA256}"));
        let text = format!(
            "AWS4-HMAC-SHA256\n{at}\n{scope}\n{}",
            hex(digest::digest(&digest::SHA256, asked.as_bytes()).as_ref())
        );
        let first = format!("AWS4{}", credentials.secret.expose_secret());
        let mut key = first.into_bytes();
        for step in [&at[..8], self.region, "s3", "aws4_request"] {
            key = keyed(&key, step);
        }
        let signature = hex(&keyed(&key, &text));
        let id = credentials.key_id.expose_secret();
        headers.push((
            "authorization",
            format!("AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}"),
        ));
        headers
    }
}

fn keyed(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A text as it stands in a signed address: everything but letters, digits and `-_.~` as `%XX`.
pub(super) fn encoded(text: &str, keeps_slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b'/' if keeps_slashes => out.push('/'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;

    /// The example that AWS's documentation works through (listing with `max-keys` and `prefix`).
    #[test]
    fn the_signature_is_that_of_the_documented_example() {
        let credentials = BucketCredentials {
            key_id: "AKIAIOSFODNN7EXAMPLE".to_owned().into(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned().into(),
            session_token: None,
        };
        let request = Unsigned {
            host: "examplebucket.s3.amazonaws.com",
            path: "/",
            query: "max-keys=2&prefix=J",
            region: "us-east-1",
            at: chrono::Utc.with_ymd_and_hms(2013, 5, 24, 0, 0, 0).unwrap(),
        };
        let headers = request.signed_by(&credentials);
        let (_, signed) = headers.iter().find(|(name, _)| *name == "authorization").unwrap();
        assert!(
            signed.ends_with("Signature=34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
            "{signed}"
        );
    }

    #[test]
    fn keys_are_encoded_as_they_are_signed() {
        assert_eq!(encoded("dt=2026-11-24/城 市+.csv", true), "dt%3D2026-11-24/%E5%9F%8E%20%E5%B8%82%2B.csv");
        assert_eq!(encoded("a/b~", false), "a%2Fb~");
    }
}

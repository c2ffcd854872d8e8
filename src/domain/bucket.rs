//! Where objects of an S3 service lie, and which of them are meant: `s3://bucket/exports/dt=*/users-*.csv.gz`.
//!
//! Credentials stand beside the place and never in it: what [`BucketAddress`] shows may be read by anybody.

use std::fmt;

use secrecy::SecretString;

/// What an address of objects begins with.
pub const SCHEME: &str = "s3://";
const FORM: &str = "write s3://BUCKET/KEY, where KEY may hold * and ?: \"s3://mall-exports/users/dt=*/*.csv.gz\"";
/// Longer than any service lets a bucket be called.
const MOST_BUCKET_CHARACTERS: usize = 255;
/// What makes a pattern of a key.
const SIGNS: [char; 3] = ['*', '?', '['];

/// Objects of a bucket, and how its service is spoken to.
#[derive(Clone)]
pub struct BucketAddress {
    pub bucket: String,
    /// A glob over keys, as over paths of files.
    pub pattern: String,
    /// Scheme, host and port of the service, perhaps a path; without a slash at its end.
    pub endpoint: String,
    pub region: String,
    /// Whether the bucket stands in the path (`http://host/bucket/key`) and not before the host.
    pub is_path_style: bool,
    /// `None`: requests go out unsigned, as for a public bucket.
    pub credentials: Option<BucketCredentials>,
}

/// Who asks.
#[derive(Clone)]
pub struct BucketCredentials {
    pub key_id: SecretString,
    pub secret: SecretString,
    /// Of credentials that end by themselves.
    pub session_token: Option<SecretString>,
}

impl BucketAddress {
    /// Bucket and pattern of `s3://bucket/pattern`.
    ///
    /// # Errors
    ///
    /// What is wrong with it, and what to write.
    pub fn parse_place(text: &str) -> Result<(String, String), (String, &'static str)> {
        let wrong = |message: &str| (message.to_owned(), FORM);
        let place = text.strip_prefix(SCHEME).ok_or_else(|| wrong("this is no address of objects"))?;
        let (bucket, pattern) = place.split_once('/').unwrap_or((place, ""));
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if bucket.is_empty() || bucket.len() > MOST_BUCKET_CHARACTERS || !bucket.chars().all(is_name) {
            return Err(wrong(&format!("`{bucket}` cannot name a bucket")));
        }
        if pattern.is_empty() || pattern.ends_with('/') {
            return Err(wrong("the address names no object"));
        }
        Ok((bucket.to_owned(), pattern.to_owned()))
    }

    /// An object as people know it.
    pub fn object(&self, key: &str) -> String {
        format!("{SCHEME}{}/{key}", self.bucket)
    }

    /// What every key that the pattern means begins with.
    pub fn prefix(&self) -> &str {
        self.pattern.split(SIGNS).next().unwrap_or_default()
    }

    /// Where the bucket is asked for, without what is nobody's business.
    pub fn shown_service(&self) -> &str {
        self.endpoint.split_once("://").map_or(self.endpoint.as_str(), |(_, host)| host)
    }
}

impl fmt::Debug for BucketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BucketAddress({} at {})", self.object(&self.pattern), self.shown_service())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_bucket_and_a_pattern_of_keys() {
        let place = BucketAddress::parse_place("s3://mall-exports/users/dt=*/*.csv.gz").unwrap();
        assert_eq!(place, ("mall-exports".to_owned(), "users/dt=*/*.csv.gz".to_owned()));
        for (text, said) in [
            ("s3://mall", "no object"),
            ("s3://mall/", "no object"),
            ("s3://mall/users/", "no object"),
            ("s3:///users.csv", "cannot name a bucket"),
            ("s3://a*/users.csv", "cannot name a bucket"),
            ("s3://key:secret@mall/users.csv", "cannot name a bucket"),
        ] {
            let (message, _) = BucketAddress::parse_place(text).unwrap_err();
            assert!(message.contains(said), "{text}: {message}");
        }
    }

    #[test]
    fn what_is_listed_begins_as_the_pattern_does_and_credentials_are_never_shown() {
        let address = |pattern: &str| BucketAddress {
            bucket: "mall".into(),
            pattern: pattern.into(),
            endpoint: "https://s3.example.com".into(),
            region: "cn-north-1".into(),
            is_path_style: true,
            credentials: Some(BucketCredentials {
                key_id: "AKIDEXAMPLE".to_owned().into(),
                secret: "hunter2".to_owned().into(),
                session_token: None,
            }),
        };
        for (pattern, prefix) in
            [("users/dt=*/a.csv", "users/dt="), ("a.csv", "a.csv"), ("**/a.csv", ""), ("u[12]", "u")]
        {
            assert_eq!(address(pattern).prefix(), prefix);
        }
        assert_eq!(format!("{:?}", address("a.csv")), "BucketAddress(s3://mall/a.csv at s3.example.com)");
    }
}

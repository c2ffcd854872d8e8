//! What can be wrong with a bucket, its objects, or the line to its service. Nothing here holds a credential.

use std::io;
use std::path::PathBuf;

use secrecy::ExposeSecret;

use super::answer::Refusal;
use crate::domain::BucketAddress;
use crate::redact;

/// Characters of what a service says.
const SAID_CHARACTERS: usize = 200;

/// Why objects could not be listed or read.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    #[error(
        "no connection to {service} can be prepared for {place}: look at source.endpoint and this system's certificates"
    )]
    Client { place: String, service: String, source: Box<dyn std::error::Error + Send + Sync> },

    #[error("cannot {doing} {place}: {reason} ({service}); look at source.endpoint and the line to it")]
    Line { doing: &'static str, place: String, service: String, reason: &'static str, source: reqwest::Error },

    #[error("cannot {doing} {place}: {service} answered {said}; {advice}")]
    Refused { doing: &'static str, place: String, service: String, said: String, advice: String, is_transient: bool },

    #[error(
        "cannot list {place}: what {service} answered is no list of objects; is source.endpoint that of an S3 service?"
    )]
    NoList { place: String, service: String },

    #[error("{place} means more than is read at once ({most} objects): let the part before the first * say more")]
    TooMany { place: String, most: usize },

    #[error("{object} was changed while it was read; run again once whoever writes it is done")]
    Changed { object: String },

    #[error("the answer for {object} ended before the object did")]
    Cut { object: String },

    #[error("cannot write {}, where {object} is kept while it is read; look at the disk", path.display())]
    Disk { object: String, path: PathBuf, source: io::Error },
}

impl BucketError {
    /// Whether the same may succeed later without anyone changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Line { .. } | Self::Changed { .. } | Self::Cut { .. } | Self::Disk { .. } => true,
            Self::Refused { is_transient, .. } => *is_transient,
            Self::Client { .. } | Self::NoList { .. } | Self::TooMany { .. } => false,
        }
    }

    /// Whether asking once more in a moment may help.
    pub(super) fn may_pass(&self) -> bool {
        self.is_transient() && !matches!(self, Self::Disk { .. } | Self::Changed { .. })
    }

    pub(super) fn line(address: &BucketAddress, (doing, key): (&'static str, &str), source: reqwest::Error) -> Self {
        let reason = if source.is_connect() {
            "could not connect"
        } else if source.is_timeout() {
            "no answer in time"
        } else {
            "the line broke"
        };
        Self::Line {
            doing,
            place: address.object(key),
            service: address.shown_service().to_owned(),
            reason,
            // The address says no more than the message does.
            source: source.without_url(),
        }
    }

    pub(super) fn refused(
        address: &BucketAddress,
        (doing, key): (&'static str, &str),
        status: u16,
        refusal: &Refusal,
    ) -> Self {
        let place = address.object(key);
        if status == 412 {
            return Self::Changed { object: place };
        }
        let said = [&refusal.code, &refusal.message].map(String::as_str);
        let said = said.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ");
        let said = without_credentials(address, &format!("{status} {said}"));
        Self::Refused {
            doing,
            place,
            service: address.shown_service().to_owned(),
            said: redact::without_secrets(said.trim_end(), SAID_CHARACTERS),
            advice: advice(address, status, refusal),
            is_transient: is_passing(status, &refusal.code),
        }
    }
}

/// Services repeat what was signed, and with what key.
fn without_credentials(address: &BucketAddress, said: &str) -> String {
    let Some(credentials) = &address.credentials else { return said.to_owned() };
    let secrets = [Some(&credentials.secret), Some(&credentials.key_id), credentials.session_token.as_ref()];
    let secrets = secrets.into_iter().flatten().map(|secret| secret.expose_secret());
    let secrets = secrets.filter(|secret| !secret.is_empty());
    secrets.fold(said.to_owned(), |said, secret| said.replace(secret, "***"))
}

fn is_passing(status: u16, code: &str) -> bool {
    matches!(status, 429 | 500 | 502..=504) || matches!(code, "SlowDown" | "RequestTimeout" | "NoSuchKey")
}

fn advice(address: &BucketAddress, status: u16, refusal: &Refusal) -> String {
    let advice = match refusal.code.as_str() {
        "NoSuchBucket" => "correct the bucket in source.files, or source.endpoint and source.region",
        "NoSuchKey" => "the object was there when it was listed: run again once whoever writes it is done",
        "RequestTimeTooSkewed" => "set this machine's clock",
        "InvalidObjectState" => "the object is archived: have it restored, or narrow source.files",
        "SecondLevelDomainForbidden" => "this service wants the bucket in the host's name: source.path_style = false",
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "InvalidToken" | "ExpiredToken" | "TokenRefreshRequired" => {
            "look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where the credentials have one, AWS_SESSION_TOKEN"
        }
        _ if is_passing(status, &refusal.code) => "the service is in trouble or asks for patience: run again later",
        "PermanentRedirect"
        | "TemporaryRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => {
            return elsewhere(refusal);
        }
        _ if matches!(status, 301 | 307 | 308) => return elsewhere(refusal),
        _ if matches!(status, 401 | 403) && address.credentials.is_none() => {
            "no credentials were given: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment or .env"
        }
        _ if matches!(status, 401 | 403) => {
            "these credentials need the right to list the bucket (s3:ListBucket) and to read its objects (s3:GetObject)"
        }
        _ if status == 404 => "correct source.files, or source.endpoint",
        _ => "look at source.files, source.endpoint and source.region",
    };
    advice.to_owned()
}

fn elsewhere(refusal: &Refusal) -> String {
    match &refusal.region {
        Some(region) => format!("the bucket is in region {region}: set source.region, or AWS_REGION"),
        None => "the bucket is in another region: set source.region (or AWS_REGION), or source.endpoint".to_owned(),
    }
}

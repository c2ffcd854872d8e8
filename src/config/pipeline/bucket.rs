//! The keys of `source` that say how the objects of `s3://…` are had: which service, and who asks.
//!
//! What a stage leaves out comes from the variables that every client of S3 reads (`AWS_…`), of the process or of `.env`.

use secrecy::SecretString;

use crate::config::environment::Environment;
use crate::config::file::{Field, Section};
use crate::config::resolve::is_address;
use crate::domain::{BUCKET_SCHEME, BucketAddress, BucketCredentials};

/// Where nothing says otherwise; services of one region take any.
const REGION: &str = "us-east-1";
/// Services that want the bucket before the host's name, by the ends of their names.
const BY_HOST: [&str; 2] = [".aliyuncs.com", ".myqcloud.com"];

/// The keys, taken and not looked at.
pub(super) struct Keys<'a> {
    endpoint: Option<Field<'a>>,
    region: Option<Field<'a>>,
    path_style: Option<Field<'a>>,
    key_id: Option<Field<'a>>,
    secret: Option<Field<'a>>,
    session_token: Option<Field<'a>>,
}

impl<'a> Keys<'a> {
    pub(super) fn take(section: &mut Section<'a>) -> Self {
        Self {
            endpoint: section.take("endpoint"),
            region: section.take("region"),
            path_style: section.take("path_style"),
            key_id: section.take("access_key_id"),
            secret: section.take("secret_access_key"),
            session_token: section.take("session_token"),
        }
    }

    /// Refuses all of them beside what is no `s3://…`.
    pub(super) fn refuse(&self) {
        let all = [&self.endpoint, &self.region, &self.path_style, &self.key_id, &self.secret, &self.session_token];
        for field in all.into_iter().flatten() {
            let hint = "leave it out, or name objects: source.files = \"s3://bucket/exports/*.csv\"";
            field.refuse_key(format!("`{}` means nothing without files at s3://", field.name), hint);
        }
    }

    /// The address of what `files` names at `s3://…`.
    pub(super) fn address(&self, field: &Field<'_>, files: &str) -> Option<BucketAddress> {
        let environment = field.page.desk.environment;
        let place = BucketAddress::parse_place(files).map_err(|(message, hint)| field.refuse(message, hint)).ok();
        let region = match &self.region {
            Some(field) => field.full_text(),
            None => Some(variable(environment, &["AWS_REGION", "AWS_DEFAULT_REGION"]).unwrap_or(REGION).to_owned()),
        };
        let region = region.filter(|region| is_region(region, self.region.as_ref().unwrap_or(field)));
        let own = self.endpoint(field);
        let credentials = self.credentials(field, environment);
        let path_style = self.path_style.as_ref().map(Field::boolean);
        let (bucket, pattern) = place?;
        let (region, own) = (region?, own?);
        let is_path_style = match path_style {
            Some(said) => said?,
            // A certificate for `*.host` is none for a name with a dot more.
            None => own.as_ref().map_or(bucket.contains('.'), |endpoint| !is_by_host(endpoint)),
        };
        let endpoint = own.unwrap_or_else(|| service_of(&region));
        Some(BucketAddress { bucket, pattern, endpoint, region, is_path_style, credentials: credentials? })
    }

    /// The endpoint that was ordered, if any.
    fn endpoint(&self, files: &Field<'_>) -> Option<Option<String>> {
        let hint = "write http://… or https://… with the service's host: \"https://cos.ap-shanghai.myqcloud.com\"";
        let is_good = |text: &str| is_address(text) && !text.contains(['?', '#', '@']);
        if let Some(field) = &self.endpoint {
            let text = field.full_text()?;
            if !is_good(&text) {
                field.refuse("this is not the address of a service", hint);
                return None;
            }
            return Some(Some(text.trim_end_matches('/').to_owned()));
        }
        let Some(text) = variable(files.page.desk.environment, &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]) else {
            return Some(None);
        };
        if !is_good(text) {
            files.refuse("AWS_ENDPOINT_URL is not the address of a service", hint);
            return None;
        }
        Some(Some(text.trim_end_matches('/').to_owned()))
    }

    /// Both halves from the stage, or both from the environment.
    fn credentials(&self, files: &Field<'_>, environment: &Environment) -> Option<Option<BucketCredentials>> {
        if let (None, None) = (&self.key_id, &self.secret) {
            if let Some(field) = &self.session_token {
                let hint = "give source.access_key_id and source.secret_access_key as well";
                field.refuse_key("a session's token is good for its own credentials alone", hint);
                return None;
            }
            let secret = |name| variable(environment, &[name]).map(|text| SecretString::from(text.to_owned()));
            return match (secret("AWS_ACCESS_KEY_ID"), secret("AWS_SECRET_ACCESS_KEY")) {
                (None, None) => Some(None),
                (Some(key_id), Some(secret_key)) => {
                    let session_token = secret("AWS_SESSION_TOKEN");
                    Some(Some(BucketCredentials { key_id, secret: secret_key, session_token }))
                }
                _ => {
                    let hint = "set both in the environment or .env, or neither for a public bucket";
                    files.refuse("of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY one is not set", hint);
                    None
                }
            };
        }
        let (Some(key_id), Some(secret)) = (&self.key_id, &self.secret) else {
            let field = self.key_id.as_ref().or(self.secret.as_ref())?;
            field.refuse_key("of source.access_key_id and source.secret_access_key one is missing", "give both");
            return None;
        };
        // A variable that is set to nothing stands for nobody.
        let (key_id, secret) = (key_id.optional_secret(), secret.optional_secret());
        let session_token = self.session_token.as_ref().and_then(Field::optional_secret);
        Some(key_id.zip(secret).map(|(key_id, secret)| BucketCredentials { key_id, secret, session_token }))
    }
}

/// The first of these variables that says something.
fn variable<'a>(environment: &'a Environment, names: &[&str]) -> Option<&'a str> {
    names.iter().filter_map(|name| environment.get(name)).map(str::trim).find(|text| !text.is_empty())
}

fn is_region(region: &str, field: &Field<'_>) -> bool {
    let is_name = !region.is_empty() && region.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if !is_name {
        field.refuse("the region (source.region, AWS_REGION) is no name of one", "write one like \"cn-north-1\"");
    }
    is_name
}

/// Amazon's own service in a region.
fn service_of(region: &str) -> String {
    let end = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("https://s3.{region}.amazonaws.com{end}")
}

fn is_by_host(endpoint: &str) -> bool {
    let host = endpoint.split_once("://").map_or(endpoint, |(_, host)| host);
    let host = host.split(['/', ':']).next().unwrap_or_default();
    BY_HOST.iter().any(|end| host.ends_with(end))
}

/// Whether a source's files are objects.
pub(super) fn is_bucket(files: &str) -> bool {
    files.starts_with(BUCKET_SCHEME)
}

//! Objects of an S3 service as files: listed by the part of a pattern before its first sign, matched, and read to the disk.
//!
//! Requests are GETs alone, signed by us (`sign`); what is said in XML is read by `answer`, which keys are meant is known to
//! `choice`. What may pass is asked again a few times; a download goes on at the byte where its line broke. Memory is one
//! page of a list, or one piece of an object. Not here: where objects are kept, and which are there already.

mod answer;
mod choice;
mod error;
mod sign;

use std::io::SeekFrom;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use glob::Pattern;
use reqwest::{Response, Url};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use self::sign::{Unsigned, encoded};
use crate::clock::{Clock, Timestamp};
use crate::domain::BucketAddress;

pub use error::BucketError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a byte for so long a line is broken.
const SILENCE: Duration = Duration::from_secs(30);
/// Of a request, or of a download that does not get on.
const TRIES: u32 = 5;
/// Before the second try; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// A list of a thousand keys of the greatest length is below this.
const PAGE_BYTES: usize = 16 << 20;
const REFUSAL_BYTES: usize = 64 << 10;
const MOST_LISTED: usize = 1_000_000;
const MOST_MEANT: usize = 100_000;

const LIST: &str = "list";
const READ: &str = "read";

/// An object as it was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub key: String,
    /// When it was last modified.
    pub changed: Timestamp,
    pub bytes: u64,
    /// What tells its content from what was there before, without quotes.
    pub etag: String,
}

/// The way to a bucket.
pub struct Bucket {
    address: BucketAddress,
    base: Url,
    /// As the `Host` header has it.
    host: String,
    http: reqwest::Client,
    clock: Clock,
}

impl Bucket {
    /// Prepares the way; nothing leaves yet.
    ///
    /// # Errors
    /// [`BucketError::Client`].
    pub fn open(address: &BucketAddress, clock: Clock) -> Result<Self, BucketError> {
        let unprepared = |source: Box<dyn std::error::Error + Send + Sync>| BucketError::Client {
            place: address.object(&address.pattern),
            service: address.shown_service().to_owned(),
            source,
        };
        let base = base_of(address).map_err(|source| unprepared(source.into()))?;
        let http = client(&base).map_err(|source| unprepared(source.into()))?;
        let name = base.host_str().unwrap_or_default();
        let host = base.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
        Ok(Self { address: address.clone(), base, host, http, clock })
    }

    /// The objects that the pattern means, in the order of their keys.
    ///
    /// # Errors
    /// [`BucketError`].
    pub async fn list(&self) -> Result<Vec<Object>, BucketError> {
        let pattern = Pattern::new(&self.address.pattern).expect("patterns were checked with the configuration");
        let too_many = |most| BucketError::TooMany { place: self.address.object(&self.address.pattern), most };
        let (mut meant, mut listed, mut next) = (Vec::new(), 0, None);
        loop {
            let page = self.page(next.as_deref()).await?;
            listed += page.objects.len();
            meant.extend(page.objects.into_iter().filter(|object| choice::is_meant(&pattern, &object.key)));
            if listed > MOST_LISTED {
                return Err(too_many(MOST_LISTED));
            }
            if meant.len() > MOST_MEANT {
                return Err(too_many(MOST_MEANT));
            }
            match page.next {
                Some(more) => next = Some(more),
                None => return Ok(meant),
            }
        }
    }

    /// Reads an object, as it was listed, into a file.
    ///
    /// # Errors
    /// [`BucketError`]; what is in the file is then good for nothing.
    pub async fn fetch(&self, object: &Object, target: &Path) -> Result<(), BucketError> {
        let disk =
            |source| BucketError::Disk { object: self.address.object(&object.key), path: target.to_owned(), source };
        let mut taken = Taken { file: File::create(target).await.map_err(disk)?, bytes: 0 };
        let mut tries = 1;
        loop {
            let before = taken.bytes;
            let Err(error) = self.take(object, (&mut taken, target)).await else { break };
            tries = if taken.bytes > before { 1 } else { tries };
            if !error.may_pass() || tries == TRIES {
                return Err(error);
            }
            self.wait(tries, &error).await;
            tries += 1;
        }
        taken.file.flush().await.map_err(disk)?;
        taken.file.sync_all().await.map_err(disk)
    }

    async fn page(&self, after: Option<&str>) -> Result<answer::Page, BucketError> {
        let prefix = self.address.prefix();
        // By name, as they are signed.
        let after = after.map(|token| format!("continuation-token={}&", encoded(token, false))).unwrap_or_default();
        let query = format!("{after}encoding-type=url&list-type=2&prefix={}", encoded(prefix, false));
        let mut tries = 1;
        loop {
            match self.try_page(&query).await {
                Err(error) if error.may_pass() && tries < TRIES => self.wait(tries, &error).await,
                done => return done,
            }
            tries += 1;
        }
    }

    async fn try_page(&self, query: &str) -> Result<answer::Page, BucketError> {
        let doing = (LIST, self.address.pattern.as_str());
        let no_list = || BucketError::NoList {
            place: self.address.object(&self.address.pattern),
            service: self.address.shown_service().to_owned(),
        };
        let mut response = self.ask(doing, (self.base.path().to_owned(), query), None).await?;
        let body = bounded(&mut response, PAGE_BYTES).await;
        let body = body.map_err(|source| BucketError::line(&self.address, doing, source))?.ok_or_else(no_list)?;
        answer::page(&body).ok_or_else(no_list)
    }

    /// What of an object has not been taken yet.
    async fn take(&self, object: &Object, (taken, target): (&mut Taken, &Path)) -> Result<(), BucketError> {
        if taken.bytes == object.bytes && taken.bytes > 0 {
            return Ok(());
        }
        let shown = || self.address.object(&object.key);
        let disk = |source| BucketError::Disk { object: shown(), path: target.to_owned(), source };
        let doing = (READ, object.key.as_str());
        let path = format!("{}/{}", self.base.path().trim_end_matches('/'), encoded(&object.key, true));
        let mut response = self.ask(doing, (path, ""), Some((object, taken.bytes))).await?;
        if taken.bytes > 0 && response.status().as_u16() != 206 {
            taken.file.set_len(0).await.map_err(disk)?;
            taken.file.seek(SeekFrom::Start(0)).await.map_err(disk)?;
            taken.bytes = 0;
        }
        while let Some(piece) =
            response.chunk().await.map_err(|source| BucketError::line(&self.address, doing, source))?
        {
            taken.bytes += piece.len() as u64;
            if taken.bytes > object.bytes {
                return Err(BucketError::Changed { object: shown() });
            }
            taken.file.write_all(&piece).await.map_err(disk)?;
        }
        if taken.bytes < object.bytes { Err(BucketError::Cut { object: shown() }) } else { Ok(()) }
    }

    /// One request; an answer that is good, or why there is none.
    async fn ask(
        &self,
        doing: (&'static str, &str),
        (path, query): (String, &str),
        part: Option<(&Object, u64)>,
    ) -> Result<Response, BucketError> {
        let mut url = self.base.clone();
        url.set_path(&path);
        url.set_query((!query.is_empty()).then_some(query));
        let mut request = self.http.get(url.clone());
        if let Some(credentials) = &self.address.credentials {
            let unsigned = Unsigned {
                host: &self.host,
                path: url.path(),
                query,
                region: &self.address.region,
                // The other side compares with its own clock, which nobody moves.
                at: self.clock.now() - self.clock.offset(),
            };
            for (name, value) in unsigned.signed_by(credentials) {
                request = request.header(name, value);
            }
        }
        if let Some((object, from)) = part {
            request = request.header("if-match", format!("\"{}\"", object.etag));
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
        }
        let lost = |source| BucketError::line(&self.address, doing, source);
        let mut response = request.send().await.map_err(lost)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let region = response.headers().get("x-amz-bucket-region").and_then(|region| region.to_str().ok());
        let region = region.map(str::to_owned);
        let body = bounded(&mut response, REFUSAL_BYTES).await.map_err(lost)?.unwrap_or_default();
        let mut refusal = answer::refusal(&body);
        refusal.region = region.or(refusal.region);
        Err(BucketError::refused(&self.address, doing, status.as_u16(), &refusal))
    }

    async fn wait(&self, tries: u32, error: &BucketError) {
        let pause = FIRST_PAUSE * 2_u32.pow(tries - 1);
        tracing::warn!(error = error as &dyn std::error::Error, "an S3 service is asked again in a moment");
        self.clock.sleep(pause + self.clock.jitter(pause)).await;
    }
}

/// A file and how much of an object is in it.
struct Taken {
    file: File,
    bytes: u64,
}

/// A body, unless it is longer than anything that is looked at.
async fn bounded(response: &mut Response, most: usize) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        if body.len() + piece.len() > most {
            return Ok(None);
        }
        body.extend_from_slice(&piece);
    }
    Ok(Some(body))
}

/// Where the keys of the bucket begin.
fn base_of(address: &BucketAddress) -> Result<Url, String> {
    let mut base = Url::parse(&address.endpoint).map_err(|error| error.to_string())?;
    let host = base.host_str().ok_or("the endpoint names no host")?.to_owned();
    if address.is_path_style {
        let path = format!("{}/{}", base.path().trim_end_matches('/'), address.bucket);
        base.set_path(&path);
    } else {
        let host = format!("{}.{host}", address.bucket);
        base.set_host(Some(&host)).map_err(|error| error.to_string())?;
    }
    Ok(base)
}

fn client(base: &Url) -> Result<reqwest::Client, reqwest::Error> {
    // An error says that one was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .user_agent(concat!("lianbo/", env!("CARGO_PKG_VERSION")));
    if is_loopback(base) {
        // The environment's proxies are for the way out of this machine.
        builder = builder.no_proxy();
    }
    if base.scheme() == "http" {
        // Loading the system's certificates takes time and fails where there are none.
        builder = builder.tls_certs_only([]);
    }
    builder.build()
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

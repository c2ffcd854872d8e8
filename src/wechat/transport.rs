//! Bytes to WeChat and back over warm HTTP/1.1 connections, and the question whether a request may have left.
//!
//! Bodies go with their length, never chunked. Addresses carry the token, so no error here keeps one. Straight to the
//! host over connections of our own (`direct`); through a proxy, where the environment names one, over reqwest. Not
//! here: what the bytes mean (`wire`) and whether to try again (`retry`).

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;
use reqwest::header::{CONTENT_TYPE, HeaderValue};

use super::direct::Direct;
use crate::clock::Clock;

/// The longest answer that is read.
pub(super) const BODY_LIMIT_BYTES: usize = 32 << 20;
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// WeChat's side drops idle connections; one that we drop first cannot break under a send.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(25);
pub(super) const IDLE_CONNECTIONS: usize = 1024;

/// No answer came over the wire.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct TransportError {
    reason: &'static str,
    /// `false`: WeChat certainly did not get the request.
    pub(super) may_have_left: bool,
    #[source]
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl TransportError {
    pub(super) fn connecting(error: Box<dyn Error + Send + Sync>) -> Self {
        Self { reason: "could not connect", may_have_left: false, source: Some(error.into()) }
    }

    /// The other side dropped a connection before anything was written to it.
    pub(super) fn unsent(error: hyper::Error) -> Self {
        Self { reason: "the connection broke", may_have_left: false, source: Some(Arc::new(error)) }
    }

    pub(super) fn broken(error: hyper::Error) -> Self {
        Self { reason: "the connection broke", may_have_left: true, source: Some(Arc::new(error)) }
    }

    pub(super) fn broken_off(error: hyper::Error) -> Self {
        Self { reason: "the answer broke off", may_have_left: true, source: Some(Arc::new(error)) }
    }

    pub(super) fn late(may_have_left: bool) -> Self {
        Self { reason: "no answer in time", may_have_left, source: None }
    }

    pub(super) fn too_long() -> Self {
        Self { reason: "the answer is longer than 32 MiB", may_have_left: true, source: None }
    }

    fn sending(error: reqwest::Error) -> Self {
        let reason = if error.is_connect() {
            "could not connect"
        } else if error.is_timeout() {
            "no answer in time"
        } else {
            "the connection broke"
        };
        // A reset on a reused connection looks the same whether or not the other side had read the request.
        Self { reason, may_have_left: !error.is_connect(), source: Some(Arc::new(error.without_url())) }
    }

    fn reading(error: reqwest::Error) -> Self {
        let reason = if error.is_timeout() { "the answer did not end in time" } else { "the answer broke off" };
        Self { reason, may_have_left: true, source: Some(Arc::new(error.without_url())) }
    }
}

/// An answer, whatever it is.
pub(super) struct Reply {
    pub status: u16,
    pub body: Vec<u8>,
}

pub(super) struct Transport {
    way: Way,
    timeout: Duration,
}

enum Way {
    Direct(Direct),
    Proxied(reqwest::Client),
}

impl Transport {
    /// `hosts`: every address this client will call, which decides whether certificates and proxies are looked at.
    /// `timeout`: of an exchange.
    ///
    /// # Errors
    ///
    /// The system's certificates cannot be loaded.
    pub fn new(hosts: &[&Url], timeout: Duration, clock: Clock) -> Result<Self, Box<dyn Error + Send + Sync>> {
        // An error means that a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let way = if hosts.iter().any(|url| is_proxied(url)) {
            Way::Proxied(proxied(hosts)?)
        } else {
            Way::Direct(Direct::new(hosts, clock)?)
        };
        Ok(Self { way, timeout })
    }

    /// GET without a body, POST of JSON with one. Dropping the future closes the connection; the request may have left.
    /// `limit`: of the whole exchange, in place of the client's own.
    pub async fn exchange(
        &self,
        url: &Url,
        body: Option<Vec<u8>>,
        limit: Option<Duration>,
    ) -> Result<Reply, TransportError> {
        let limit = limit.unwrap_or(self.timeout);
        match &self.way {
            Way::Direct(direct) => direct.exchange(url, body, limit).await,
            Way::Proxied(http) => through_proxy(http, url, body, limit).await,
        }
    }
}

fn proxied(hosts: &[&Url]) -> Result<reqwest::Client, reqwest::Error> {
    let mut builder = reqwest::Client::builder()
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false);
    if hosts.iter().all(|url| url.scheme() == "http") {
        // Loading the system's certificates takes time and fails where there are none.
        builder = builder.tls_certs_only([]);
    }
    builder.build()
}

async fn through_proxy(
    http: &reqwest::Client,
    url: &Url,
    body: Option<Vec<u8>>,
    limit: Duration,
) -> Result<Reply, TransportError> {
    let request = match body {
        None => http.get(url.clone()),
        Some(body) => {
            http.post(url.clone()).header(CONTENT_TYPE, HeaderValue::from_static("application/json")).body(body)
        }
    };
    let mut response = request.timeout(limit).send().await.map_err(TransportError::sending)?;
    let announced = response.content_length().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
    if announced > BODY_LIMIT_BYTES {
        return Err(TransportError::too_long());
    }
    let mut body = Vec::with_capacity(announced);
    while let Some(chunk) = response.chunk().await.map_err(TransportError::reading)? {
        if body.len() + chunk.len() > BODY_LIMIT_BYTES {
            return Err(TransportError::too_long());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Reply { status: response.status().as_u16(), body })
}

/// Host and port of an address, which may be shown.
pub(super) fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The environment's proxies are for the way out of this machine, never for what runs on it.
fn is_proxied(url: &Url) -> bool {
    let Ok(uri) = url.as_str().parse() else { return false };
    !is_loopback(url) && Matcher::from_system().intercept(&uri).is_some()
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

//! HTTP/1.1 to the few hosts of an account over warm connections, each driven by whoever uses it.
//!
//! A general client hands each request to a connection's own task and back, and reads every address again for redirects
//! that are not followed here: a third of what a send costs. Here an exchange takes an idle connection, or makes one,
//! works on it in its own task, and puts it back. What a request met before a byte of it was written is known, so that a
//! connection that the other side had dropped is only replaced. Not here: proxies (`transport`).

use std::error::Error;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use reqwest::Url;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::net::TcpStream;
use tower_service::Service;

use super::transport::{
    BODY_LIMIT_BYTES, CONNECT_TIMEOUT, IDLE_CONNECTIONS, IDLE_TIMEOUT, Reply, TransportError, host_of,
};
use crate::clock::Clock;

type Io = MaybeHttpsStream<TokioIo<TcpStream>>;
type Message = Request<Full<Bytes>>;

/// Connections to every host of an account.
pub(super) struct Direct {
    connector: HttpsConnector<HttpConnector>,
    hosts: Vec<Host>,
    clock: Clock,
}

struct Host {
    /// Scheme, host and port.
    address: Uri,
    name: HeaderValue,
    /// The one used last goes first, so that those that are not needed grow old.
    idle: Mutex<Vec<Warm>>,
}

struct Warm {
    sender: SendRequest<Full<Bytes>>,
    connection: Connection<Io, Full<Bytes>>,
    ended: bool,
    idle_since: Instant,
}

/// How an exchange on one connection ended without an answer.
enum Broken {
    /// Nothing of the message was written: it may go over another connection.
    Unsent(Box<Message>, hyper::Error),
    Lost(TransportError),
}

impl Direct {
    /// `hosts`: every address that will be called.
    pub fn new(hosts: &[&Url], clock: Clock) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(IDLE_TIMEOUT));
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let config = tls(hosts.iter().any(|url| url.scheme() == "https"))?;
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().wrap_connector(tcp);
        let hosts = hosts.iter().map(|url| Host::new(url)).collect::<Result<_, _>>()?;
        Ok(Self { connector, hosts, clock })
    }

    /// As [`super::transport::Transport::exchange`].
    pub async fn exchange(&self, url: &Url, body: Option<Vec<u8>>, limit: Duration) -> Result<Reply, TransportError> {
        let may_have_left = AtomicBool::new(false);
        let exchange = self.over_some_connection(url, body, &may_have_left);
        tokio::time::timeout(limit, exchange)
            .await
            .unwrap_or_else(|_| Err(TransportError::late(may_have_left.load(Ordering::Relaxed))))
    }

    async fn over_some_connection(
        &self,
        url: &Url,
        body: Option<Vec<u8>>,
        may_have_left: &AtomicBool,
    ) -> Result<Reply, TransportError> {
        let uri: Uri =
            url.as_str().parse().expect("what comes after an account's address is encoded, and not too long");
        let host = self.hosts.iter().find(|host| host.serves(&uri)).expect("every host was named at the start");
        let mut message = host.message(uri, body);
        loop {
            let (mut warm, fresh) = match host.take_idle(self.clock.monotonic()).await {
                Some(warm) => (warm, false),
                None => (self.connect(host).await?, true),
            };
            may_have_left.store(true, Ordering::Relaxed);
            match warm.exchange(message).await {
                Ok(reply) => {
                    host.give_back(warm, self.clock.monotonic());
                    return Ok(reply);
                }
                Err(Broken::Unsent(_, error)) if fresh => return Err(TransportError::unsent(error)),
                Err(Broken::Unsent(again, _)) => message = *again,
                Err(Broken::Lost(error)) => return Err(error),
            }
            may_have_left.store(false, Ordering::Relaxed);
        }
    }

    async fn connect(&self, host: &Host) -> Result<Warm, TransportError> {
        let mut connector = self.connector.clone();
        // The limit is of the handshake as well; the connector's own is of TCP alone.
        let io = match tokio::time::timeout(CONNECT_TIMEOUT, connector.call(host.address.clone())).await {
            Ok(Ok(io)) => io,
            Ok(Err(error)) => return Err(TransportError::connecting(error)),
            Err(late) => return Err(TransportError::connecting(late.into())),
        };
        let (sender, connection) = http1::handshake(io).await.map_err(TransportError::unsent)?;
        Ok(Warm { sender, connection, ended: false, idle_since: self.clock.monotonic() })
    }
}

impl Host {
    fn new(url: &Url) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let (address, name) = (url.as_str().parse()?, HeaderValue::from_str(&host_of(url))?);
        Ok(Self { address, name, idle: Mutex::default() })
    }

    fn serves(&self, uri: &Uri) -> bool {
        self.address.authority() == uri.authority() && self.address.scheme() == uri.scheme()
    }

    /// GET without a body, POST of JSON with one, with its length.
    fn message(&self, uri: Uri, body: Option<Vec<u8>>) -> Message {
        let posted = body.is_some();
        let mut message = Request::new(Full::from(body.unwrap_or_default()));
        *message.uri_mut() = uri.into_parts().path_and_query.map(Uri::from).unwrap_or_default();
        let headers = message.headers_mut();
        headers.insert(HOST, self.name.clone());
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        if posted {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *message.method_mut() = Method::POST;
        }
        message
    }

    /// A connection that is still open, as far as can be seen from here.
    async fn take_idle(&self, now: Instant) -> Option<Warm> {
        loop {
            let mut warm = {
                let mut idle = self.idle.lock().expect("no task ends while it holds the lock");
                let warm = idle.pop()?;
                // All below it are older.
                if now.duration_since(warm.idle_since) > IDLE_TIMEOUT {
                    idle.clear();
                    return None;
                }
                warm
            };
            if warm.is_open().await {
                return Some(warm);
            }
        }
    }

    fn give_back(&self, mut warm: Warm, now: Instant) {
        if warm.ended || warm.sender.is_closed() {
            return;
        }
        warm.idle_since = now;
        let mut idle = self.idle.lock().expect("no task ends while it holds the lock");
        if idle.len() < IDLE_CONNECTIONS {
            idle.push(warm);
        }
    }
}

impl Warm {
    async fn is_open(&mut self) -> bool {
        let Self { sender, connection, ended, .. } = self;
        drive(connection, ended, pin!(sender.ready())).await.is_ok()
    }

    async fn exchange(&mut self, message: Message) -> Result<Reply, Broken> {
        let Self { sender, connection, ended, .. } = self;
        let answer = drive(connection, ended, pin!(sender.try_send_request(message))).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(mut error) => {
                return Err(match error.take_message() {
                    Some(message) => Broken::Unsent(Box::new(message), error.into_error()),
                    None => Broken::Lost(TransportError::broken(error.into_error())),
                });
            }
        };
        read(connection, ended, answer).await.map_err(Broken::Lost)
    }
}

async fn read(
    connection: &mut Connection<Io, Full<Bytes>>,
    ended: &mut bool,
    answer: Response<Incoming>,
) -> Result<Reply, TransportError> {
    let status = answer.status().as_u16();
    let mut incoming = answer.into_body();
    let announced = incoming.size_hint().exact().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
    if announced > BODY_LIMIT_BYTES {
        return Err(TransportError::too_long());
    }
    let mut body = Vec::with_capacity(announced);
    while let Some(frame) = drive(connection, ended, pin!(incoming.frame())).await {
        let frame = frame.map_err(TransportError::broken_off)?;
        let Some(chunk) = frame.data_ref() else { continue };
        if body.len() + chunk.len() > BODY_LIMIT_BYTES {
            return Err(TransportError::too_long());
        }
        body.extend_from_slice(chunk);
    }
    Ok(Reply { status, body })
}

/// Waits for `work` while the connection that it waits for goes on.
async fn drive<T>(
    connection: &mut Connection<Io, Full<Bytes>>,
    ended: &mut bool,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> T {
    poll_fn(|context| {
        // What ended it is told to whoever waits on it.
        if !*ended && Pin::new(&mut *connection).poll(context).is_ready() {
            *ended = true;
        }
        work.as_mut().poll(context)
    })
    .await
}

/// `wanted`: whether certificates will be looked at. Loading the system's takes time, and fails where there are none.
fn tls(wanted: bool) -> Result<ClientConfig, rustls::Error> {
    let config = ClientConfig::builder();
    Ok(if wanted {
        config.with_platform_verifier()?.with_no_client_auth()
    } else {
        config.with_root_certificates(RootCertStore::empty()).with_no_client_auth()
    })
}

#[cfg(test)]
mod tests;

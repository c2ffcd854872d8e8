//! The client against a server of a few lines on the loopback: every request is answered by a function of the test.

mod calls;
mod profiles;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::TimeDelta;
use futures::FutureExt;
use futures::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::clock::{Clock, Timestamp};
use crate::domain::OpenId;

/// What the test's server saw.
struct Asked {
    /// Path and query.
    target: String,
    body: String,
}

impl Asked {
    fn has_token(&self, token: &str) -> bool {
        self.target.contains(&format!("access_token={token}"))
    }
}

enum Say {
    Json(String),
    /// Content type and body.
    Raw(&'static str, Vec<u8>),
    Status(u16),
    HangUp,
}

fn json(text: &str) -> Say {
    Say::Json(text.to_owned())
}

type Log = Arc<Mutex<Vec<String>>>;

/// Starts a server; returns its address and the targets it was asked for.
async fn server(answer: impl Fn(&Asked) -> Say + Send + Sync + 'static) -> (String, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let log = Log::default();
    let (seen, answer) = (Arc::clone(&log), Arc::new(answer));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
            tokio::spawn(async move { while_open(stream, &seen, &*answer).await });
        }
    });
    (base, log)
}

async fn while_open(mut stream: TcpStream, seen: &Log, say: &(dyn Fn(&Asked) -> Say + Send + Sync)) -> Option<()> {
    loop {
        let asked = request(&mut stream).await?;
        seen.lock().unwrap().push(asked.target.clone());
        let (status, kind, body) = match say(&asked) {
            Say::Json(text) => (200, "application/json; encoding=utf-8", text.into_bytes()),
            Say::Raw(kind, body) => (200, kind, body),
            Say::Status(status) => (status, "text/html", b"<html>".to_vec()),
            Say::HangUp => return None,
        };
        let mut answer =
            format!("HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len())
                .into_bytes();
        answer.extend_from_slice(&body);
        stream.write_all(&answer).await.ok()?;
    }
}

async fn request(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let length = head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        assert!(length.is_some() || head.starts_with("GET "), "a body without its length: {head}");
        let mut body = bytes[end + 4..].to_vec();
        while body.len() < length.unwrap_or(0) {
            stream.read_buf(&mut body).await.ok()?;
        }
        let target = head.split(' ').nth(1).unwrap().to_owned();
        return Some(Asked { target, body: String::from_utf8(body).unwrap() });
    }
}

/// A ledger of one token.
#[derive(Default)]
struct Store {
    token: Mutex<Option<StoredToken>>,
    lock: Arc<tokio::sync::Mutex<()>>,
    forced_left: AtomicUsize,
}

struct Guard(Option<tokio::sync::OwnedMutexGuard<()>>);

impl RefreshGuard for Guard {
    fn release(mut self: Box<Self>) -> BoxFuture<'static, Result<(), StoreError>> {
        async move {
            self.0.take();
            Ok(())
        }
        .boxed()
    }
}

impl TokenStore for Store {
    fn load(&self) -> BoxFuture<'_, Result<Option<StoredToken>, StoreError>> {
        async { Ok(self.token.lock().unwrap().clone()) }.boxed()
    }

    fn lock(&self) -> BoxFuture<'_, Result<Box<dyn RefreshGuard>, StoreError>> {
        async { Ok(Box::new(Guard(Some(Arc::clone(&self.lock).lock_owned().await))) as Box<dyn RefreshGuard>) }.boxed()
    }

    fn save(&self, token: StoredToken) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            *self.token.lock().unwrap() = Some(token);
            Ok(())
        }
        .boxed()
    }

    fn take_forced(&self) -> BoxFuture<'_, Result<bool, StoreError>> {
        let take = |left: usize| left.checked_sub(1);
        async move { Ok(self.forced_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()) }.boxed()
    }
}

/// Counts; refuses one endpoint when told to.
#[derive(Default)]
struct Meter {
    spent: Option<Endpoint>,
    ends: Mutex<Vec<(Endpoint, CallEnd)>>,
}

impl CallMeter for Meter {
    fn before(&self, endpoint: Endpoint) -> BoxFuture<'_, Result<(), Refused>> {
        let spent = self.spent == Some(endpoint);
        async move { if spent { Err(Refused::QuotaSpent { until: Timestamp::default() }) } else { Ok(()) } }.boxed()
    }

    fn during(&self, _: Endpoint) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn told(&self, _: Endpoint, _: Option<QuotaFigure>) -> BoxFuture<'_, Result<u64, StoreError>> {
        async { Ok(1) }.boxed()
    }

    fn goes_by_default(&self, _: Endpoint) -> BoxFuture<'_, Result<bool, StoreError>> {
        async { Ok(false) }.boxed()
    }

    fn after(&self, endpoint: Endpoint, end: CallEnd) {
        self.ends.lock().unwrap().push((endpoint, end));
    }
}

fn token(text: &str) -> StoredToken {
    let now = Clock::default().now();
    let expires_at = now + TimeDelta::seconds(7200);
    StoredToken { access_token: SecretString::from(text.to_owned()), expires_at, fetched_at: now }
}

/// A store that holds token `T1`.
fn store() -> Arc<Store> {
    let store = Store::default();
    *store.token.lock().unwrap() = Some(token("T1"));
    store.forced_left.store(1, Ordering::SeqCst);
    Arc::new(store)
}

fn settings(base: &str) -> WeChatSettings {
    WeChatSettings {
        account: AccountName::new("main"),
        app_id: "wx1".to_owned(),
        app_secret: SecretString::from("s3cret"),
        api_base: base.to_owned(),
        token: TokenKind::Stable,
        timeout: Duration::from_secs(5),
        concurrency: 4,
        retry_base: Duration::from_micros(50),
    }
}

fn client(base: &str, store: &Arc<Store>) -> WeChat {
    WeChat::new(settings(base), Arc::clone(store) as _, Arc::new(Meter::default()), Clock::default()).unwrap()
}

fn asked_for(log: &Log, part: &str) -> usize {
    log.lock().unwrap().iter().filter(|target| target.contains(part)).count()
}

fn ids(count: usize) -> Vec<OpenId> {
    (0..count).map(|n| OpenId::new(format!("openid{n:03}"))).collect()
}

const NOT_LATEST: &str = r#"{"errcode":40001,"errmsg":"invalid credential rid: 1-2-3"}"#;
const LAST_PAGE: &str = r#"{"total":1,"count":1,"data":{"openid":["oA"]},"next_openid":""}"#;
const SENT: &str = r#"{"errcode":0,"errmsg":"ok","msgid":3264439863978712345}"#;

/// `stable_token` giving out `normal`, and `forced` when forced.
fn stable(asked: &Asked, normal: &str, forced: &str) -> Option<Say> {
    let text = if asked.body.contains("\"force_refresh\":true") { forced } else { normal };
    asked
        .target
        .contains("stable_token")
        .then(|| Say::Json(format!(r#"{{"access_token":"{text}","expires_in":7200}}"#)))
}

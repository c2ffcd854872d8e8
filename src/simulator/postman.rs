//! Posts events to the callback address, and ends reviews: whatever the platform does later.
//!
//! Way of an event: `put` with the moment it is due → a bag in the order of those moments → one of several postmen,
//! each with one warm connection. An address that does not answer 200 with `success` or nothing within five seconds is
//! tried three times in all, as the platform does. Events come in plain text; the encrypted modes are not spoken.

use std::cmp::Ordering as Order;
use std::collections::BinaryHeap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::options::Callback;
use super::people::mix;
use super::world::{Blocked, World};

const PATIENCE: Duration = Duration::from_secs(5);
const TRIES: u32 = 3;
/// Events that may wait; what comes past it is lost, as it is when the platform gives up.
const BAG_LIMIT: usize = 4_000_000;
const ANSWER_LIMIT_BYTES: usize = 64 * 1024;

/// Something that is to happen later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Letter {
    Subscribe {
        index: u64,
    },
    Unsubscribe {
        index: u64,
    },
    Finish {
        index: u64,
        msgid: u64,
        status: FinishStatus,
        copies: u8,
    },
    /// The review of a held message ends; one that passed is delivered.
    Review {
        index: u64,
        template: usize,
        msgid: u64,
        passes: bool,
    },
}

/// What a finish event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishStatus {
    Success,
    UserBlock,
    SystemFailed,
    FreqLimit,
}

impl FinishStatus {
    fn spelled(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::UserBlock => "failed:user block",
            // The blank is the platform's.
            Self::SystemFailed => "failed: system failed",
            Self::FreqLimit => "failed:freq limit",
        }
    }
}

/// How the posting went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallbackReport {
    /// Events that wait for their moment.
    pub waiting: u64,
    /// Events that were answered well.
    pub taken: u64,
    /// Tries that were answered badly, late or not at all.
    pub failed_tries: u64,
    /// Events given up after three tries, or lost because too many waited.
    pub given_up: u64,
}

/// Letters in the order of the moments they are due.
#[derive(Default)]
pub struct Mailbag {
    letters: Mutex<BinaryHeap<Due>>,
    arrived: Notify,
    sequence: AtomicU64,
    taken: AtomicU64,
    failed_tries: AtomicU64,
    given_up: AtomicU64,
}

#[derive(Debug, PartialEq, Eq)]
struct Due {
    at_micros: i64,
    sequence: u64,
    letter: Letter,
}

impl Ord for Due {
    /// Reversed: a heap gives its greatest, and the earliest is wanted.
    fn cmp(&self, other: &Self) -> Order {
        (other.at_micros, other.sequence).cmp(&(self.at_micros, self.sequence))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Mailbag {
    pub fn put(&self, at_micros: i64, letter: Letter) {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let mut letters = self.letters.lock().expect("no holder of the bag panics");
        if letters.len() >= BAG_LIMIT {
            self.given_up.fetch_add(1, Ordering::Relaxed);
            return;
        }
        letters.push(Due { at_micros, sequence, letter });
        drop(letters);
        self.arrived.notify_one();
    }

    /// Looks again at what is due, after the clock was moved.
    pub fn look_again(&self) {
        self.arrived.notify_waiters();
    }

    pub fn report(&self) -> CallbackReport {
        let waiting = self.letters.lock().expect("no holder of the bag panics").len();
        CallbackReport {
            waiting: u64::try_from(waiting).expect("a length fits in 64 bits"),
            taken: self.taken.load(Ordering::Relaxed),
            failed_tries: self.failed_tries.load(Ordering::Relaxed),
            given_up: self.given_up.load(Ordering::Relaxed),
        }
    }

    /// The next letter, when it is due. Dropping the future takes none out.
    async fn next(&self, world: &World) -> Letter {
        loop {
            let arrived = self.arrived.notified();
            let wait = match self.take_due(world.clock.now_micros()) {
                Ok(letter) => return letter,
                Err(wait) => wait,
            };
            match wait {
                None => arrived.await,
                Some(wait) => tokio::select! {
                    () = arrived => {}
                    () = world.clock.wait(wait) => {}
                },
            }
        }
    }

    /// A letter that is due, or how long the earliest has to wait.
    fn take_due(&self, now_micros: i64) -> Result<Letter, Option<Duration>> {
        let mut letters = self.letters.lock().expect("no holder of the bag panics");
        match letters.peek() {
            None => Err(None),
            Some(first) if first.at_micros > now_micros => {
                Err(Some(Duration::from_micros(first.at_micros.abs_diff(now_micros))))
            }
            Some(_) => Ok(letters.pop().expect("a heap that was looked into is not empty").letter),
        }
    }
}

/// Carries letters until the future is dropped.
pub async fn carry(world: Arc<World>) {
    let mut line = world.options.callback.as_ref().map(|callback| Line { callback, stream: None });
    loop {
        let event = match world.mailbag.next(&world).await {
            Letter::Subscribe { index } => Some((index, named_event("subscribe"), 1)),
            Letter::Unsubscribe { index } => Some((index, named_event("unsubscribe"), 1)),
            Letter::Finish { index, msgid, status, copies } => Some((index, finish_event(msgid, status), copies)),
            Letter::Review { index, template, msgid, passes } => end_review(&world, (index, template), msgid, passes),
        };
        if let (Some(line), Some((index, event, copies))) = (&mut line, event) {
            line.announce(&world, index, &event, copies).await;
        }
    }
}

fn end_review(world: &World, message: (u64, usize), msgid: u64, passes: bool) -> Option<(u64, String, u8)> {
    let (index, template) = message;
    if passes {
        world.inbox.deliver(index);
        return Some((index, finish_event(msgid, FinishStatus::Success), 1));
    }
    world.inbox.miss();
    let template = &world.templates[template].template;
    world.block(Blocked {
        id: world.next_call(),
        template_id: template.template_id.clone(),
        title: template.title.clone(),
        index,
        sent_at_seconds: world.clock.now_seconds(),
    });
    None
}

fn named_event(name: &str) -> String {
    format!("<Event><![CDATA[{name}]]></Event><EventKey><![CDATA[]]></EventKey>")
}

fn finish_event(msgid: u64, status: FinishStatus) -> String {
    let status = status.spelled();
    format!(
        "<Event><![CDATA[TEMPLATESENDJOBFINISH]]></Event><MsgID>{msgid}</MsgID><Status><![CDATA[{status}]]></Status>"
    )
}

/// One connection to the callback address.
struct Line<'a> {
    callback: &'a Callback,
    stream: Option<TcpStream>,
}

impl Line<'_> {
    /// Posts one body as often as asked, each with the platform's patience.
    async fn announce(&mut self, world: &World, index: u64, event: &str, copies: u8) {
        let openid = world.people.openid(index);
        let (account, now) = (&self.callback.account, world.clock.now_seconds());
        let body = format!(
            "<xml><ToUserName><![CDATA[{account}]]></ToUserName><FromUserName><![CDATA[{openid}]]></FromUserName>\
             <CreateTime>{now}</CreateTime><MsgType><![CDATA[event]]></MsgType>{event}</xml>"
        );
        for _ in 0..copies {
            let mut taken = false;
            for _ in 0..TRIES {
                taken = matches!(tokio::time::timeout(PATIENCE, self.post(world, &openid, &body)).await, Ok(Ok(true)));
                if taken {
                    break;
                }
                self.stream = None;
                world.mailbag.failed_tries.fetch_add(1, Ordering::Relaxed);
            }
            let sum = if taken { &world.mailbag.taken } else { &world.mailbag.given_up };
            sum.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the address took the event.
    async fn post(&mut self, world: &World, openid: &str, body: &str) -> io::Result<bool> {
        let address = Address::of(&self.callback.url)?;
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => TcpStream::connect(address.host_and_port.as_str()).await?,
        };
        stream.set_nodelay(true)?;
        let timestamp = world.clock.now_seconds().to_string();
        let nonce = (mix(world.next_call()) % 10_000_000_000).to_string();
        let signature = signature(&self.callback.token, &timestamp, &nonce);
        let joint = if address.path.contains('?') { '&' } else { '?' };
        let request = format!(
            "POST {}{joint}signature={signature}&timestamp={timestamp}&nonce={nonce}&openid={openid} HTTP/1.1\r\n\
             Host: {}\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n{body}",
            address.path,
            address.host,
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let answer = Answer::read(&mut stream).await?;
        if answer.keep_open {
            self.stream = Some(stream);
        }
        Ok(answer.status == 200 && matches!(answer.body.trim_ascii(), b"" | b"success"))
    }
}

/// Lower-case hex of the SHA-1 over the three, sorted and joined.
pub fn signature(token: &str, timestamp: &str, nonce: &str) -> String {
    let mut parts = [token, timestamp, nonce];
    parts.sort_unstable();
    Sha1::digest(parts.concat()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where to connect and what to ask for.
#[derive(Debug, PartialEq, Eq)]
pub struct Address<'a> {
    host: &'a str,
    host_and_port: String,
    path: &'a str,
}

impl<'a> Address<'a> {
    /// # Errors
    /// When `url` is not `http://host[:port][/path]`.
    pub fn of(url: &'a str) -> io::Result<Self> {
        let refused = || io::Error::new(io::ErrorKind::InvalidInput, "a callback address begins with http://");
        let rest = url.strip_prefix("http://").filter(|rest| !rest.is_empty()).ok_or_else(refused)?;
        let slash = rest.find('/').unwrap_or(rest.len());
        let (host, path) = rest.split_at(slash);
        let host_and_port = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        Ok(Self { host, host_and_port, path: if path.is_empty() { "/" } else { path } })
    }
}

/// An answer of the callback address.
struct Answer {
    status: u16,
    body: Vec<u8>,
    keep_open: bool,
}

impl Answer {
    async fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut bytes = Vec::with_capacity(512);
        let head_end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            read_more(stream, &mut bytes).await?;
        };
        let head = String::from_utf8_lossy(&bytes[..head_end]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
        let length: usize = header("content-length:").and_then(|text| text.parse().ok()).unwrap_or(0);
        let keep_open = header("content-length:").is_some() && header("connection:") != Some("close");
        while bytes.len() < head_end + length {
            read_more(stream, &mut bytes).await?;
        }
        Ok(Self { status, body: bytes[head_end..head_end + length].to_vec(), keep_open })
    }
}

async fn read_more(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    if bytes.len() > ANSWER_LIMIT_BYTES || stream.read_buf(bytes).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_documented_one() {
        assert_eq!(signature("AAAAA", "1714036504", "1514711492"), "f464b24fc39322e44b38aa78f5edd27bd1441696");
    }

    #[test]
    fn an_address_is_taken_apart() {
        let address = Address::of("http://127.0.0.1:8787/callback/main").unwrap();
        assert_eq!((address.host_and_port.as_str(), address.path), ("127.0.0.1:8787", "/callback/main"));
        assert_eq!(Address::of("http://example.com").unwrap().host_and_port, "example.com:80");
        assert!(Address::of("https://example.com/").is_err());
    }

    #[test]
    fn the_bag_gives_the_earliest_first_and_nothing_too_early() {
        let bag = Mailbag::default();
        bag.put(200, Letter::Subscribe { index: 2 });
        bag.put(100, Letter::Subscribe { index: 1 });
        assert_eq!(bag.take_due(50), Err(Some(Duration::from_micros(50))));
        assert_eq!(bag.take_due(300), Ok(Letter::Subscribe { index: 1 }));
        assert_eq!(bag.take_due(300), Ok(Letter::Subscribe { index: 2 }));
        assert_eq!(bag.take_due(300), Err(None));
    }
}

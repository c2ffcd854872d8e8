//! Posts events to the callback address, and ends reviews.
//!
//! Way of an event: `mailbag` → one of several postmen, each with one warm connection → `envelope` → the address. One that
//! does not answer 200 with `success` or nothing within five seconds is tried three times in all, with the same body, as
//! the platform does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::envelope::{Envelope, Stamp, signature};
use super::mailbag::{Event, FinishStatus, Letter};
use super::options::Callback;
use super::people::mix;
use super::world::{Blocked, World};

const PATIENCE: Duration = Duration::from_secs(5);
const TRIES: u32 = 3;
const ANSWER_LIMIT_BYTES: usize = 64 * 1024;

/// Where events go and how: what was entered in the account's console.
pub struct Destination {
    address: Address,
    envelope: Envelope,
    token: String,
    /// The account's own id, as events name it.
    account: String,
}

impl Destination {
    /// # Errors
    /// When the address is not `http://…`, or the mode wants a key that there is not.
    pub fn of(callback: &Callback, app_id: &str) -> io::Result<Self> {
        Ok(Self {
            address: Address::of(&callback.url)?,
            envelope: Envelope::of(callback, app_id)?,
            token: callback.token.clone(),
            account: callback.account.clone(),
        })
    }
}

/// Carries letters until the future is dropped.
pub async fn carry(world: Arc<World>) {
    let mut line: Option<Line> = None;
    loop {
        let letter = world.mailbag.next(&world).await;
        let destination = world.destination();
        let is_other = |line: &Line| destination.as_ref().is_none_or(|to| !Arc::ptr_eq(to, &line.to));
        if line.as_ref().is_none_or(is_other) {
            line = destination.map(|to| Line { to, stream: None });
        }
        let Some(line) = &mut line else {
            event_of(&world, letter);
            continue;
        };
        if letter == Letter::Check {
            line.check(&world).await;
        } else if let Some(event) = event_of(&world, letter) {
            line.announce(&world, &event).await;
        }
    }
}

/// The event that a letter tells, if any; ends reviews on the way.
fn event_of(world: &World, letter: Letter) -> Option<Event> {
    Some(match letter {
        Letter::Follow { index, comes, at_seconds, copies } => {
            let inner = named_event(if comes { "subscribe" } else { "unsubscribe" });
            Event { index, created_at_seconds: Some(at_seconds), inner, copies }
        }
        Letter::Finish { index, msgid, status, copies } => {
            Event { index, created_at_seconds: None, inner: finish_event(msgid, status), copies }
        }
        Letter::Review { index, template, msgid, passes } => {
            return end_review(world, (index, template), msgid, passes);
        }
        Letter::Other(event) => *event,
        Letter::Check => return None,
    })
}

fn end_review(world: &World, message: (u64, usize), msgid: u64, passes: bool) -> Option<Event> {
    let (index, template) = message;
    if passes {
        world.inbox.deliver(index);
        let inner = finish_event(msgid, FinishStatus::Success);
        return Some(Event { index, created_at_seconds: None, inner, copies: 1 });
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
struct Line {
    to: Arc<Destination>,
    stream: Option<TcpStream>,
}

impl Line {
    /// Posts one event as often as asked, each with the platform's patience.
    async fn announce(&mut self, world: &World, event: &Event) {
        let openid = world.people.openid(event.index);
        let created_at = event.created_at_seconds.unwrap_or_else(|| world.clock.now_seconds());
        let inner = format!(
            "<ToUserName><![CDATA[{}]]></ToUserName><FromUserName><![CDATA[{openid}]]></FromUserName>\
             <CreateTime>{created_at}</CreateTime><MsgType><![CDATA[event]]></MsgType>{}",
            self.to.account, event.inner
        );
        for _ in 0..event.copies {
            let mut taken = false;
            for _ in 0..TRIES {
                let posted = self.post(world, &openid, &inner);
                taken = matches!(tokio::time::timeout(PATIENCE, posted).await, Ok(Ok(true)));
                if taken {
                    break;
                }
                self.stream = None;
                world.mailbag.sums.failed_tries.fetch_add(1, Ordering::Relaxed);
            }
            let sums = &world.mailbag.sums;
            let sum = if taken { &sums.taken } else { &sums.given_up };
            sum.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the address took the event.
    async fn post(&mut self, world: &World, openid: &str, inner: &str) -> io::Result<bool> {
        let sealed = self.to.envelope.seal(&self.to.account, inner, stamp(world));
        let request = format!(
            "POST {}{}&openid={openid} HTTP/1.1\r\nHost: {}\r\nContent-Type: text/xml\r\n\
             Content-Length: {}\r\n\r\n{}",
            self.to.address.query_begins(),
            sealed.query,
            self.to.address.host,
            sealed.body.len(),
            sealed.body
        );
        let answer = self.ask(&request).await?;
        Ok(answer.status == 200 && matches!(answer.body.trim_ascii(), b"" | b"success"))
    }

    /// Asks the address whether it is the account's: it must answer the echostr, and nothing else.
    async fn check(&mut self, world: &World) {
        let stamp = stamp(world);
        let echostr = (mix(stamp.number ^ 0x6563_686f) >> 1).to_string();
        let (timestamp, nonce) = (stamp.at_seconds.to_string(), (mix(stamp.number) % 10_000_000_000).to_string());
        let request = format!(
            "GET {}signature={}&timestamp={timestamp}&nonce={nonce}&echostr={echostr} HTTP/1.1\r\nHost: {}\r\n\r\n",
            self.to.address.query_begins(),
            signature(&[&self.to.token, &timestamp, &nonce]),
            self.to.address.host,
        );
        let answer = tokio::time::timeout(PATIENCE, self.ask(&request)).await;
        let passed = matches!(answer, Ok(Ok(answer)) if answer.status == 200 && answer.body == echostr.as_bytes());
        let sums = &world.mailbag.sums;
        let sum = if passed { &sums.checks_passed } else { &sums.checks_failed };
        sum.fetch_add(1, Ordering::Relaxed);
    }

    async fn ask(&mut self, request: &str) -> io::Result<Answer> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => TcpStream::connect(self.to.address.host_and_port.as_str()).await?,
        };
        stream.set_nodelay(true)?;
        stream.write_all(request.as_bytes()).await?;
        let answer = Answer::read(&mut stream).await?;
        if answer.keep_open {
            self.stream = Some(stream);
        }
        Ok(answer)
    }
}

fn stamp(world: &World) -> Stamp {
    Stamp { at_seconds: world.clock.now_seconds(), number: world.next_call() }
}

/// Where to connect and what to ask for.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    host: String,
    host_and_port: String,
    path: String,
}

impl Address {
    /// # Errors
    /// When `url` is not `http://host[:port][/path]`.
    fn of(url: &str) -> io::Result<Self> {
        let refused = || io::Error::new(io::ErrorKind::InvalidInput, "a callback address begins with http://");
        let rest = url.strip_prefix("http://").filter(|rest| !rest.is_empty()).ok_or_else(refused)?;
        let slash = rest.find('/').unwrap_or(rest.len());
        let (host, path) = rest.split_at(slash);
        let host_and_port = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self { host: host.to_owned(), host_and_port, path: path.to_owned() })
    }

    /// The path with the sign behind which parameters follow.
    fn query_begins(&self) -> String {
        format!("{}{}", self.path, if self.path.contains('?') { '&' } else { '?' })
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
    fn an_address_is_taken_apart() {
        let address = Address::of("http://127.0.0.1:8787/callback/main").unwrap();
        assert_eq!((address.host_and_port.as_str(), address.path.as_str()), ("127.0.0.1:8787", "/callback/main"));
        assert_eq!(address.query_begins(), "/callback/main?");
        assert_eq!(Address::of("http://example.com").unwrap().host_and_port, "example.com:80");
        assert!(Address::of("https://example.com/").is_err());
    }
}

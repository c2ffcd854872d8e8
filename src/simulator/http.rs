//! HTTP/1.1 as far as the platform's callers need it, written by hand over TCP.
//!
//! A library would not let the connection end after a message was accepted and before its answer, would not refuse
//! chunked bodies with 412, and costs more per send than the send itself. Way of a call: bytes → [`Request`] → `api`
//! fills a [`Reply`] → bytes. Both buffers live as long as the connection.

use std::borrow::Cow;
use std::io::{self, Write as _};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api;
use super::faults::IdleEnd;
use super::world::World;

const HEAD_LIMIT_BYTES: usize = 16 * 1024;
const BODY_LIMIT_BYTES: usize = 8 * 1024 * 1024;

/// A call as it was read.
#[derive(Debug)]
pub struct Request<'a> {
    pub is_post: bool,
    pub path: &'a str,
    pub query: &'a str,
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    /// A parameter of the query, decoded.
    pub fn parameter(&self, name: &str) -> Option<Cow<'a, str>> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| percent_decoded(value))
    }
}

fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = std::str::from_utf8(after.get(..2).unwrap_or_default()).ok();
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

/// An answer in the making.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub content_type: &'static str,
    pub body: Vec<u8>,
    /// Waited before anything is written.
    pub delay: Duration,
    /// End the connection instead of answering.
    pub hang_up: bool,
    /// The person whose send is being answered, to be told when it was.
    pub answers: Option<u64>,
}

const JSON: &str = "application/json; encoding=utf-8";

impl Default for Reply {
    fn default() -> Self {
        Self { status: 200, content_type: JSON, body: Vec::new(), delay: Duration::ZERO, hang_up: false, answers: None }
    }
}

impl Reply {
    fn reset(&mut self) {
        self.body.clear();
        (self.status, self.content_type, self.delay, self.hang_up) = (200, JSON, Duration::ZERO, false);
    }

    fn write_head(&self, head: &mut Vec<u8>, keep_open: bool) {
        let reason = match self.status {
            200 => "OK",
            404 => "Not Found",
            412 => "Precondition Failed",
            502 => "Bad Gateway",
            _ => "Bad Request",
        };
        let close = if keep_open { "" } else { "Connection: close\r\n" };
        write!(
            head,
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\n{close}Content-Length: {}\r\n\r\n",
            self.status,
            self.content_type,
            self.body.len()
        )
        .expect("writing to memory cannot fail");
    }
}

/// Takes connections until `stop`; each is its own task of `tasks`.
pub async fn listen(listener: TcpListener, world: Arc<World>, stop: CancellationToken, tasks: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let (world, stop) = (world.clone(), stop.clone());
                tasks.spawn(async move {
                    // An end of the caller's making is no fault of ours, and is what many tests are about.
                    let _end = stop.run_until_cancelled(converse(stream, &world)).await;
                });
            }
            // Out of file descriptors, most likely: some will come back.
            Err(_) => world.clock.wait(Duration::from_millis(10)).await,
        }
    }
}

async fn converse(mut stream: TcpStream, world: &World) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut input, mut output) = (Vec::with_capacity(8 * 1024), Vec::with_capacity(8 * 1024));
    let mut reply = Reply::default();
    loop {
        let Some(head) = next_request(&mut stream, &mut input, world).await? else {
            return Ok(());
        };
        let began_micros = world.clock.machine_micros();
        reply.reset();
        let end = head.length_bytes + head.body_bytes;
        if head.lacks_length {
            reply.status = 412;
        } else {
            api::answer(world, &head.request(&input[..end]), &mut reply);
        }
        // What answering took is part of how long the call takes.
        let taken = Duration::from_micros((world.clock.machine_micros() - began_micros).unsigned_abs());
        let delay = reply.delay + world.options.latency.saturating_sub(taken);
        if !delay.is_zero() {
            world.clock.wait(delay).await;
        }
        if let Some(index) = reply.answers.take() {
            world.end_answer(index);
        }
        if reply.hang_up {
            return Ok(());
        }
        output.clear();
        let keep_open = head.keep_open && !head.lacks_length;
        reply.write_head(&mut output, keep_open);
        output.extend_from_slice(&reply.body);
        stream.write_all(&output).await?;
        if !keep_open {
            return stream.shutdown().await;
        }
        input.drain(..end);
    }
}

/// The next request, unless the connection was idle for longer than a habit allows.
async fn next_request(stream: &mut TcpStream, input: &mut Vec<u8>, world: &World) -> io::Result<Option<Head>> {
    let (after, end) = {
        let faults = world.faults();
        (Duration::from_millis(faults.idle_ends_after_milliseconds), faults.idle_end)
    };
    if after.is_zero() {
        return read_request(stream, input).await;
    }
    let began_micros = world.clock.machine_micros();
    if end == IdleEnd::NextCall {
        let head = read_request(stream, input).await?;
        let idle_micros = world.clock.machine_micros() - began_micros;
        if u128::from(idle_micros.unsigned_abs()) < after.as_micros() {
            return Ok(head);
        }
        return stream.set_zero_linger().map(|()| None);
    }
    tokio::select! {
        head = read_request(stream, input) => head,
        () = world.clock.wait(after) => {
            if end == IdleEnd::Reset {
                stream.set_zero_linger()?;
            }
            Ok(None)
        }
    }
}

/// Where things stand in the bytes of a request.
#[derive(Debug)]
struct Head {
    length_bytes: usize,
    body_bytes: usize,
    is_post: bool,
    target: std::ops::Range<usize>,
    keep_open: bool,
    /// Chunked, or a POST that does not say how long it is.
    lacks_length: bool,
}

impl Head {
    fn request<'a>(&self, bytes: &'a [u8]) -> Request<'a> {
        let target = std::str::from_utf8(&bytes[self.target.clone()]).unwrap_or_default();
        let target = in_origin_form(target);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Request { is_post: self.is_post, path, query, body: &bytes[self.length_bytes..] }
    }
}

/// Whoever takes a server for a proxy names the host in the target too: every server understands that.
fn in_origin_form(target: &str) -> &str {
    match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    }
}

/// Reads until one whole request is in `input`; `None` at the caller's end.
async fn read_request(stream: &mut TcpStream, input: &mut Vec<u8>) -> io::Result<Option<Head>> {
    loop {
        if let Some(head) = parse_head(input)?
            && (head.lacks_length || input.len() >= head.length_bytes + head.body_bytes)
        {
            let body_bytes = if head.lacks_length { 0 } else { head.body_bytes };
            return Ok(Some(Head { body_bytes, ..head }));
        }
        if stream.read_buf(input).await? == 0 {
            return Ok(None);
        }
    }
}

fn parse_head(bytes: &[u8]) -> io::Result<Option<Head>> {
    let Some(length) = bytes.windows(4).take(HEAD_LIMIT_BYTES).position(|four| four == b"\r\n\r\n") else {
        return if bytes.len() > HEAD_LIMIT_BYTES { Err(malformed("the head is too long")) } else { Ok(None) };
    };
    let text = std::str::from_utf8(&bytes[..length]).map_err(|_| malformed("the head is no text"))?;
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if target.is_empty() {
        return Err(malformed("the first line names no target"));
    }
    let (mut said_length, mut chunked, mut keep_open) = (None, false, true);
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            said_length = Some(value.trim().parse().map_err(|_| malformed("the length is no number"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = true;
        } else if name.eq_ignore_ascii_case("connection") {
            keep_open = !value.trim().eq_ignore_ascii_case("close");
        }
    }
    let is_post = method == "POST";
    let start = method.len() + 1;
    let body_bytes = said_length.unwrap_or(0);
    if body_bytes > BODY_LIMIT_BYTES {
        return Err(malformed("the body is too long"));
    }
    Ok(Some(Head {
        length_bytes: length + 4,
        body_bytes,
        is_post,
        target: start..start + target.len(),
        keep_open,
        lacks_length: chunked || (is_post && said_length.is_none()),
    }))
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_taken_apart() {
        let bytes = b"POST /cgi-bin/x?access_token=a%2Bb&n=1 HTTP/1.1\r\nHost: h\r\ncontent-length: 2\r\n\r\n{}";
        let head = parse_head(bytes).unwrap().unwrap();
        let request = head.request(bytes);
        assert!(request.is_post && head.keep_open && !head.lacks_length);
        assert_eq!((request.path, request.body), ("/cgi-bin/x", b"{}".as_slice()));
        assert_eq!(request.parameter("access_token").as_deref(), Some("a+b"));
        assert_eq!(request.parameter("other"), None);
    }

    #[test]
    fn half_a_head_is_waited_for_and_chunks_are_refused() {
        assert!(parse_head(b"GET / HTTP/1.1\r\nHost").unwrap().is_none());
        let chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(parse_head(chunked).unwrap().unwrap().lacks_length);
        assert!(!parse_head(b"GET / HTTP/1.1\r\n\r\n").unwrap().unwrap().lacks_length);
    }
}

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
const LIMIT: Duration = Duration::from_secs(20);

/// A host that deals with its connections one after another, and an address there.
async fn host() -> (TcpListener, Url) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/cgi-bin/user/get?access_token=t", listener.local_addr().unwrap());
    (listener, url.parse().unwrap())
}

/// Reads up to the end of a message without a body; `None`: the connection ended before.
async fn message(stream: &mut TcpStream) -> Option<String> {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => read.push(byte),
            Err(_) => return None,
        }
    }
    Some(String::from_utf8(read).unwrap())
}

fn direct(url: &Url) -> Direct {
    Direct::new(&[url], Clock::default()).unwrap()
}

#[tokio::test]
async fn one_connection_carries_call_after_call() {
    let (listener, url) = host().await;
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for _ in 0..3 {
            let message = message(&mut stream).await.unwrap();
            assert!(message.starts_with("GET /cgi-bin/user/get?access_token=t HTTP/1.1\r\n"), "{message}");
            assert!(message.contains("host: 127.0.0.1:"), "{message}");
            stream.write_all(ANSWER).await.unwrap();
        }
    });
    let direct = direct(&url);
    for _ in 0..3 {
        let reply = direct.exchange(&url, None, LIMIT).await.unwrap();
        assert_eq!((reply.status, reply.body.as_slice()), (200, &b"{}"[..]));
    }
    served.await.unwrap();
}

#[tokio::test]
async fn a_connection_that_was_dropped_while_idle_is_replaced_and_nothing_is_said_twice() {
    let (listener, url) = host().await;
    let (dropped, seen) = tokio::sync::oneshot::channel();
    let served = tokio::spawn(async move {
        let (mut first, _) = listener.accept().await.unwrap();
        message(&mut first).await.unwrap();
        first.write_all(ANSWER).await.unwrap();
        first.shutdown().await.unwrap();
        dropped.send(()).unwrap();
        let (mut second, _) = listener.accept().await.unwrap();
        message(&mut second).await.unwrap();
        second.write_all(ANSWER).await.unwrap();
        assert_eq!(message(&mut first).await, None, "nothing came over the dropped connection");
    });
    let direct = direct(&url);
    direct.exchange(&url, None, LIMIT).await.unwrap();
    seen.await.unwrap();
    direct.exchange(&url, None, LIMIT).await.unwrap();
    served.await.unwrap();
}

#[tokio::test]
async fn an_answer_that_is_lost_may_have_left_and_a_refused_connection_has_not() {
    let (listener, url) = host().await;
    let direct = direct(&url);
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        message(&mut stream).await.unwrap();
    });
    let error = direct.exchange(&url, None, LIMIT).await.err().unwrap();
    assert!(error.may_have_left, "{error}");
    served.await.unwrap();
    // The listener is gone by now.
    let error = direct.exchange(&url, None, LIMIT).await.err().unwrap();
    assert!(!error.may_have_left, "{error}");
    assert_eq!(error.to_string(), "could not connect");
}

#[tokio::test]
async fn no_answer_in_time_may_have_left() {
    let (listener, url) = host().await;
    let error = direct(&url).exchange(&url, None, Duration::from_millis(200)).await.err().unwrap();
    assert!(error.may_have_left);
    assert_eq!(error.to_string(), "no answer in time");
    drop(listener);
}

#[tokio::test]
async fn an_answer_in_chunks_and_one_that_ends_with_its_connection_are_read_whole() {
    let (listener, url) = host().await;
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        message(&mut stream).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n")
            .await
            .unwrap();
        message(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>").await.unwrap();
    });
    let direct = direct(&url);
    assert_eq!(direct.exchange(&url, None, LIMIT).await.unwrap().body, b"{}");
    let reply = direct.exchange(&url, None, LIMIT).await.unwrap();
    assert_eq!((reply.status, reply.body.as_slice()), (502, &b"<html>"[..]));
    served.await.unwrap();
}

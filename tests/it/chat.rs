//! A chat that alerts are posted to, and a watcher that waits for heartbeats: one small listener on the loopback.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Takes what comes, answers as chats do, and keeps it.
pub struct Chat {
    address: String,
    heard: Arc<Mutex<Heard>>,
    listening: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Heard {
    alerts: Vec<Value>,
    heartbeats: usize,
    is_down: bool,
    /// What comes is not answered.
    is_mute: bool,
    unanswered: usize,
}

impl Chat {
    pub async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let hearing = Arc::clone(&heard);
        let listening = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(hear(stream, Arc::clone(&hearing)));
            }
        });
        Self { address, heard, listening }
    }

    /// The `[alerts]` of a workspace that tells this chat.
    pub fn settings(&self, style: &str) -> String {
        let Self { address, .. } = self;
        format!(
            "[alerts]\nwebhook = \"http://{address}/robot/send?key=sesame\"\nstyle = \"{style}\"\n\
             heartbeat = \"http://{address}/ping/sesame\"\n"
        )
    }

    /// Alerts so far, in order.
    pub fn alerts(&self) -> Vec<Value> {
        self.heard.lock().unwrap().alerts.clone()
    }

    /// The `status` of each alert of the plain style.
    pub fn statuses(&self) -> Vec<String> {
        self.alerts().iter().map(|alert| alert["status"].as_str().unwrap_or("?").to_owned()).collect()
    }

    /// While it is down it answers 503 to whatever comes.
    pub fn set_down(&self, is_down: bool) {
        self.heard.lock().unwrap().is_down = is_down;
    }

    /// While it is mute it takes what comes, and says nothing.
    pub fn set_mute(&self, is_mute: bool) {
        self.heard.lock().unwrap().is_mute = is_mute;
    }

    /// Posts that it took and did not answer.
    pub fn unanswered(&self) -> usize {
        self.heard.lock().unwrap().unanswered
    }

    pub fn heartbeats(&self) -> usize {
        self.heard.lock().unwrap().heartbeats
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn hear(mut stream: TcpStream, heard: Arc<Mutex<Heard>>) -> Option<()> {
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut bytes).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        while bytes.len() < end + length {
            stream.read_buf(&mut bytes).await.ok()?;
        }
        let (is_down, is_mute) = {
            let mut heard = heard.lock().unwrap();
            heard.unanswered += usize::from(heard.is_mute);
            (heard.is_down, heard.is_mute)
        };
        if is_mute {
            return std::future::pending().await;
        }
        match head.split(' ').take(2).collect::<Vec<_>>()[..] {
            _ if is_down => {}
            ["post", "/robot/send?key=sesame"] => {
                let body = serde_json::from_slice(&bytes[end..end + length]).unwrap();
                heard.lock().unwrap().alerts.push(body);
            }
            ["get", "/ping/sesame"] => heard.lock().unwrap().heartbeats += 1,
            _ => panic!("neither an alert nor a heartbeat: {head}"),
        }
        bytes.drain(..end + length);
        let answer = "{\"errcode\":0,\"errmsg\":\"ok\"}";
        let status = if is_down { "503 Service Unavailable" } else { "200 OK" };
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", answer.len());
        stream.write_all(format!("{head}{answer}").as_bytes()).await.ok()?;
    }
}

//! Finish events at the rate of a campaign, sealed, against one process that serves on one processor: how long each waits for
//! its `success`, from the moment it was due. None may be lost, and every delivery must know its fate in the end.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use aes::Aes256;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockEncryptMut as _, KeyIvInit as _};
use sha1::{Digest as _, Sha1};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Figure;
use crate::space::{Space, simulator};

const RATE_PER_SECOND: u32 = 1_500;
const CONNECTIONS: usize = 64;
const TOKEN: &str = "callback-token-0123";
const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFA";
const WANTED: Duration = Duration::from_millis(250);

pub async fn measure(events: u64) -> Vec<Figure> {
    let world = simulator(events).await;
    let space = Space::new(&world, "1GB");
    space.append(
        "config/lianbo.toml",
        &format!("[accounts.main.callback]\ntoken = \"{TOKEN}\"\nencoding_aes_key = \"{KEY}\"\n"),
    );
    tokio::task::block_in_place(|| {
        space.run("sync");
        space.run("campaign")
    });
    let deliveries = space.query("select openid, msgid from deliveries where state = 'sent' order by seq");
    let bodies: Vec<Vec<u8>> = deliveries.iter().map(|row| request(row, &world.options().app_id)).collect();
    assert_eq!(u64::try_from(bodies.len()).ok(), Some(events), "not everybody was sent to");

    let mut serving = Serving::begin(&space);
    let mut waits = post_all(&serving.address, Arc::new(bodies)).await;
    waits.sort_unstable();
    let at = |share: usize| waits[(waits.len() * share / 1000).min(waits.len() - 1)].as_secs_f64() * 1e3;
    let (median, p99, worst) = (at(500), at(990), at(1000));
    eprintln!("  waits: median {median:.1} ms, p99 {p99:.1} ms, worst {worst:.1} ms");
    let told = settled(&space, events);
    serving.end();
    assert!(told, "some deliveries were not told");
    let limit = WANTED.as_secs_f64() * 1e3;
    vec![Figure {
        name: format!("{events} sealed events at {RATE_PER_SECOND}/s on one processor: p99 of the wait for `success`"),
        ours: p99,
        bare: limit,
        unit: "ms",
        ratio: p99 / limit,
        wanted: "< 250 ms, none lost",
        is_met: p99 < limit,
    }]
}

/// A process that serves, on the first processor alone.
struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    fn begin(space: &Space) -> Self {
        let mut child = Command::new("taskset")
            .args(["-c", "0", env!("CARGO_BIN_EXE_lianbo"), "--workspace"])
            .arg(space.folder.path())
            .args(["serve", "--port", "0", "--json", "-q"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("taskset and the binary start");
        let mut line = String::new();
        let out = child.stdout.take().expect("stdout is piped");
        BufReader::new(out).read_line(&mut line).expect("it says where it listens");
        let begun: serde_json::Value = serde_json::from_str(&line).expect("it says so in JSON");
        let address = begun["url"].as_str().expect("an address").trim_start_matches("http://").to_owned();
        Self { child, address }
    }

    fn end(&mut self) {
        let id = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status().expect("it is told to stop");
        self.child.wait().expect("it stops");
    }
}

/// Posts every body when it is due, whether or not those before it were answered, and gives how long each took since then.
async fn post_all(address: &str, bodies: Arc<Vec<Vec<u8>>>) -> Vec<Duration> {
    let (next, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (address, bodies, next) = (address.to_owned(), bodies.clone(), next.clone());
        tasks.spawn(async move {
            let mut stream = TcpStream::connect(&address).await.expect("it takes connections");
            stream.set_nodelay(true).expect("a socket");
            let mut waits = Vec::new();
            let mut answer = Vec::new();
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let Some(body) = bodies.get(place) else { return waits };
                let due = began + Duration::from_secs(1) * u32::try_from(place).expect("not so many") / RATE_PER_SECOND;
                tokio::time::sleep_until(due.into()).await;
                stream.write_all(body).await.expect("it reads");
                answer.clear();
                while !answer.ends_with(b"\r\n\r\nsuccess") {
                    let read = stream.read_buf(&mut answer).await.expect("it answers");
                    assert!(read > 0 && answer.len() < 4096, "{}", String::from_utf8_lossy(&answer));
                }
                waits.push(due.elapsed());
            }
        });
    }
    tasks.join_all().await.concat()
}

/// Whether every event is there and every delivery knows its fate, soon.
fn settled(space: &Space, events: u64) -> bool {
    let sql = "select (select count(*) from callbacks) as kept, (select count(*) from deliveries where delivered = 'success') as told";
    (0..30).any(|_| {
        let row = space.query(sql).remove(0);
        let is_all = row["kept"] == events && row["told"] == events;
        if !is_all {
            std::thread::sleep(Duration::from_secs(1));
        }
        is_all
    })
}

fn request(delivery: &serde_json::Value, app_id: &str) -> Vec<u8> {
    let text = |name: &str| match &delivery[name] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let message = format!(
        "<xml><ToUserName><![CDATA[gh_a]]></ToUserName><FromUserName><![CDATA[{}]]></FromUserName><CreateTime>{now}</CreateTime>\
         <MsgType><![CDATA[event]]></MsgType><Event><![CDATA[TEMPLATESENDJOBFINISH]]></Event><MsgID>{}</MsgID>\
         <Status><![CDATA[success]]></Status></xml>",
        text("openid"),
        text("msgid")
    );
    let sealed = seal(&message, app_id);
    let (timestamp, nonce) = (now.to_string(), "1514711492");
    let body = format!("<xml><ToUserName><![CDATA[gh_a]]></ToUserName><Encrypt><![CDATA[{sealed}]]></Encrypt></xml>");
    format!(
        "POST /callback/main?signature={}&timestamp={timestamp}&nonce={nonce}&encrypt_type=aes&msg_signature={} HTTP/1.1\r\n\
         Host: x\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n{body}",
        signature(&[TOKEN, &timestamp, nonce]),
        signature(&[TOKEN, &timestamp, nonce, &sealed]),
        body.len()
    )
    .into_bytes()
}

fn seal(message: &str, app_id: &str) -> String {
    let key: [u8; 32] = STANDARD.decode(format!("{KEY}=")).expect("a key").try_into().expect("32 bytes");
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    let mut bytes = [&[7; 16], length.as_slice(), message.as_bytes(), app_id.as_bytes()].concat();
    let padding = 32 - bytes.len() % 32;
    bytes.resize(bytes.len() + padding, u8::try_from(padding).expect("at most 32"));
    let encryptor = cbc::Encryptor::<Aes256>::new((&key).into(), key[..16].into());
    STANDARD.encode(encryptor.encrypt_padded_vec_mut::<NoPadding>(&bytes))
}

fn signature(parts: &[&str]) -> String {
    let mut parts = parts.to_vec();
    parts.sort_unstable();
    Sha1::digest(parts.concat()).iter().map(|byte| format!("{byte:02x}")).collect()
}

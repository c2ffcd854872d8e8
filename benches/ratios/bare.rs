//! Bare clients: reqwest in a loop that keeps nothing, each in a process of its own, as ours is.

use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use lianbo::simulator::{SALE_TEMPLATE_ID, Simulator};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::space::run;

#[derive(Deserialize)]
struct Token {
    access_token: String,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    data: Data,
    #[serde(default)]
    next_openid: String,
}

#[derive(Deserialize, Default)]
struct Data {
    #[serde(default)]
    openid: Vec<String>,
}

#[derive(Deserialize)]
struct Details {
    user_info_list: Vec<Detail>,
}

#[derive(Deserialize)]
struct Detail {
    openid: String,
    unionid: Option<String>,
}

#[derive(Deserialize)]
struct SendAnswer {
    errcode: i64,
}

pub struct Bare {
    client: reqwest::Client,
    base: String,
    token: String,
}

/// The first argument of a process of this benchmark that is to be a bare sender.
pub const SENDER: &str = "bare-sender";
/// And of one that is to page and fetch details.
pub const READER: &str = "bare-reader";

/// What a bare sender in a process of its own took: seconds of the sends alone, processor seconds of the whole process.
pub struct Sent {
    pub seconds: f64,
    pub cpu_seconds: f64,
}

/// Sends to everybody from a process of its own, as the program under test is one.
pub fn send_all_apart(simulator: &Simulator, width: usize) -> Sent {
    let (output, (_, cpu_seconds)) = run(apart(SENDER, simulator, width));
    let seconds = String::from_utf8_lossy(&output).trim().parse().expect("a bare sender says its seconds");
    Sent { seconds, cpu_seconds }
}

/// Pages and details from a process of its own; the seconds are those of the whole process.
pub fn sync_apart(simulator: &Simulator, width: usize) -> Sent {
    let began = Instant::now();
    let (_, (_, cpu_seconds)) = run(apart(READER, simulator, width));
    Sent { seconds: began.elapsed().as_secs_f64(), cpu_seconds }
}

fn apart(role: &str, simulator: &Simulator, width: usize) -> Command {
    let options = simulator.options();
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.arg(role).arg(simulator.base_url()).arg(&options.app_id).arg(&options.app_secret).arg(width.to_string());
    command
}

/// The whole life of a bare reader.
pub async fn reader(arguments: &[String]) {
    let [base, app_id, app_secret, width] = arguments else { panic!("{READER} BASE APPID SECRET WIDTH") };
    let bare = Arc::new(Bare::at(base.clone(), app_id, app_secret).await);
    let (with_unionid, _) = bare.sync(width.parse().expect("a width")).await;
    println!("{with_unionid}");
}

/// The whole life of a bare sender.
pub async fn sender(arguments: &[String]) {
    let [base, app_id, app_secret, width] = arguments else { panic!("{SENDER} BASE APPID SECRET WIDTH") };
    let bare = Arc::new(Bare::at(base.clone(), app_id, app_secret).await);
    let openids = bare.openids().await;
    println!("{}", bare.send_all(&openids, width.parse().expect("a width")).await);
}

impl Bare {
    pub async fn new(simulator: &Simulator) -> Self {
        let options = simulator.options();
        Self::at(simulator.base_url(), &options.app_id, &options.app_secret).await
    }

    async fn at(base: String, app_id: &str, app_secret: &str) -> Self {
        // Another provider may have been installed by an earlier client of this process.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .http1_only()
            .no_proxy()
            .pool_max_idle_per_host(256)
            .build()
            .expect("a client is built");
        let body = serde_json::json!({ "grant_type": "client_credential", "appid": app_id, "secret": app_secret });
        let answer = client.post(format!("{base}/cgi-bin/stable_token")).body(body.to_string()).send().await;
        let bytes = answer.expect("an answer").bytes().await.expect("a body");
        let token: Token = serde_json::from_slice(&bytes).expect("a token");
        Self { client, base, token: token.access_token }
    }

    async fn page(&self, after: &str) -> Page {
        let mut url = format!("{}/cgi-bin/user/get?access_token={}", self.base, self.token);
        if !after.is_empty() {
            url.push_str("&next_openid=");
            url.push_str(after);
        }
        let bytes = self.client.get(url).send().await.expect("an answer").bytes().await.expect("a body");
        serde_json::from_slice(&bytes).expect("a page")
    }

    /// Every openid, page after page.
    pub async fn openids(&self) -> Vec<String> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let page = self.page(&after).await;
            if page.data.openid.is_empty() {
                return all;
            }
            all.extend(page.data.openid);
            if page.next_openid.is_empty() {
                return all;
            }
            after = page.next_openid;
        }
    }

    /// Pages, and the details of each page `width` calls wide while the next page is fetched; keeps nothing.
    pub async fn sync(self: Arc<Self>, width: usize) -> (u64, f64) {
        let began = Instant::now();
        let slots = Arc::new(Semaphore::new(width));
        let mut calls = JoinSet::new();
        let mut after = String::new();
        let mut with_unionid = 0;
        loop {
            let page = self.page(&after).await;
            for batch in page.data.openid.chunks(100) {
                let list: Vec<_> =
                    batch.iter().map(|openid| serde_json::json!({ "openid": openid, "lang": "zh_CN" })).collect();
                let body = serde_json::json!({ "user_list": list }).to_string();
                let slot = slots.clone().acquire_owned().await.expect("it is never closed");
                let bare = self.clone();
                calls.spawn(async move {
                    let url = format!("{}/cgi-bin/user/info/batchget?access_token={}", bare.base, bare.token);
                    let bytes = bare.client.post(url).body(body).send().await.expect("an answer").bytes().await;
                    drop(slot);
                    let details: Details = serde_json::from_slice(&bytes.expect("a body")).expect("details");
                    let bound =
                        details.user_info_list.iter().filter(|one| one.unionid.is_some() && !one.openid.is_empty());
                    u64::try_from(bound.count()).unwrap_or(0)
                });
            }
            while let Some(done) = calls.try_join_next() {
                with_unionid += done.expect("a call ends");
            }
            if page.data.openid.is_empty() || page.next_openid.is_empty() {
                break;
            }
            after = page.next_openid;
        }
        while let Some(done) = calls.join_next().await {
            with_unionid += done.expect("a call ends");
        }
        (with_unionid, began.elapsed().as_secs_f64())
    }

    /// Sends one message to each openid, `width` at a time; keeps nothing.
    pub async fn send_all(self: Arc<Self>, openids: &[String], width: usize) -> f64 {
        let began = Instant::now();
        let slots = Arc::new(Semaphore::new(width));
        let url: Arc<str> = format!("{}/cgi-bin/message/template/send?access_token={}", self.base, self.token).into();
        let mut sends = JoinSet::new();
        // Another sender's message: the same again within a minute would be refused, the same id answered from memory.
        let process = std::process::id();
        for (number, openid) in openids.iter().enumerate() {
            let body = format!(
                r#"{{"touser":"{openid}","template_id":"{SALE_TEMPLATE_ID}","miniprogram":{{"appid":"wx1111111111111111","pagepath":"pages/sale/index"}},"client_msg_id":"bare-{process}-{number}","data":{{"thing1":{{"value":"巧克力{process}"}},"time2":{{"value":"2026-11-23 09:30"}},"amount3":{{"value":"39.80元"}}}}}}"#
            );
            let slot = slots.clone().acquire_owned().await.expect("it is never closed");
            let (bare, url) = (self.clone(), url.clone());
            sends.spawn(async move {
                let answer = bare.client.post(&*url).body(body).send().await.expect("an answer");
                let sent: SendAnswer =
                    serde_json::from_slice(&answer.bytes().await.expect("a body")).expect("an answer");
                drop(slot);
                assert_eq!(sent.errcode, 0);
            });
            while let Some(done) = sends.try_join_next() {
                done.expect("a send ends");
            }
        }
        while let Some(done) = sends.join_next().await {
            done.expect("a send ends");
        }
        began.elapsed().as_secs_f64()
    }
}

//! `serve`: what is due fires once, whatever happened to the process, and the endpoints answer.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Child;

use crate::house::{House, comes_true, ended, eventually, signal, small};
use lianbo::simulator::Options;

pub const SOON: Duration = Duration::from_secs(30);

/// A process that serves, and where.
pub struct Serving {
    pub child: Child,
    pub address: String,
}

impl Serving {
    pub async fn begin(house: &House, more: &[&str]) -> Self {
        let arguments = [&["serve", "--port", "0", "--json"], more].concat();
        let mut child = house.command(&arguments).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        tokio::time::timeout(SOON, out.read_line(&mut line)).await.expect("it says where it listens").unwrap();
        let begun: serde_json::Value = serde_json::from_str(&line).unwrap();
        Self { child, address: begun["url"].as_str().unwrap().trim_start_matches("http://").to_owned() }
    }

    /// The answer's status and body.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.address);
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }

    /// Told to stop, it stops cleanly and soon.
    pub async fn stop(self) {
        signal(&self.child, "-TERM");
        let ended =
            tokio::time::timeout(Duration::from_secs(12), ended(self.child)).await.expect("it stops within 10 s");
        assert_eq!(ended.code, 0, "{ended:?}");
    }
}

/// Sets both clocks some seconds before the start of a minute and schedules the campaign there, once.
pub fn schedule_soon(house: &House, seconds: i64) {
    let now = house.now();
    let at = now + chrono::TimeDelta::seconds(60 - now.timestamp() % 60 + 3_600);
    house.pass((at - now).num_seconds() - seconds);
    let local = at + chrono::TimeDelta::hours(8);
    let campaign = house.read("pipelines/campaign.toml");
    let schedule = format!("schedule = \"{}\"\n", local.format("%Y-%m-%d %H:%M"));
    house.write("pipelines/campaign.toml", &(schedule + &campaign));
}

async fn wait_for_status(house: &House, status: &str) {
    let sql = format!("select count(*) from runs where pipeline = 'campaign' and status = '{status}'");
    comes_true(SOON, async || house.numbers(&sql).await == [1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_campaign_fires_once_under_two_that_serve_and_the_endpoints_answer() {
    let house = House::build(small()).await;
    house.night().await;
    schedule_soon(&house, 4);
    let serving = Serving::begin(&house, &[]).await;
    let refused = house.lianbo(&["serve", "--port", "0"]).await;
    assert_ne!(refused.code, 0, "{refused:?}");
    let standby = Serving::begin(&house, &["--standby"]).await;
    assert_eq!(serving.get("/healthz").await.0, 200);
    assert_eq!(serving.get("/readyz").await.0, 200);
    assert_eq!(standby.get("/readyz").await.0, 503);
    wait_for_status(&house, "succeeded").await;
    house.everybody_has_one();
    assert_eq!(house.numbers("select count(*) from runs where pipeline = 'campaign'").await, [1]);
    let (status, metrics) = serving.get("/metrics").await;
    assert_eq!(status, 200);
    let sent = format!("state=\"sent\"}} {}", house.matchable());
    assert!(metrics.contains(&sent), "{metrics}");
    assert_eq!(serving.get("/nothing").await.0, 404);

    serving.stop().await;
    comes_true(SOON, async || standby.get("/readyz").await.0 == 200).await;
    standby.stop().await;
    assert_eq!(house.numbers("select count(*) from runs where pipeline = 'campaign'").await, [1]);
    house.everybody_has_one();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_was_killed_under_serve_goes_on_under_the_next_one() {
    let house = House::build(Options { latency: Duration::from_millis(5), ..small() }).await;
    house.campaign("rate = \"120/s\"");
    house.night().await;
    schedule_soon(&house, 3);
    let mut serving = Serving::begin(&house, &[]).await;
    eventually(SOON, || house.simulator.inbox().messages >= 60).await;
    serving.child.kill().await.unwrap();
    let serving = Serving::begin(&house, &[]).await;
    eventually(SOON, || house.simulator.inbox().messages >= 200).await;
    // Told to stop in the midst of it, it settles; a third goes on.
    serving.stop().await;
    let counts = house.numbers("select recipients, sent, pending, sent + pending from pushes").await;
    assert_eq!((counts[0], counts[1]), (counts[3], house.simulator.inbox().once));
    let serving = Serving::begin(&house, &[]).await;
    wait_for_status(&house, "succeeded").await;
    serving.stop().await;
    house.everybody_has_one();
    assert_eq!(house.numbers("select count(*) from runs where pipeline = 'campaign'").await, [1]);
}

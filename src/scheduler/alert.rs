//! Tells people: one POST to the webhook for each change that wants somebody, and a heartbeat while all is well.
//!
//! Every alert says what happened, why, and the command that goes on from there. An alert is owed, in the ledger, until it
//! is delivered ([`owed`]): one that cannot be delivered is logged and told later. The run it speaks of matters more. Which changes are worth an alert, and telling each of them
//! once, is decided by the conductor. The address holds the key of a chat group and never appears in a log.

mod owed;

pub use self::owed::Due;

use std::time::Duration;

use chrono::{SecondsFormat, TimeDelta};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::error;

use crate::clock::{Clock, Timestamp};
use crate::config::settings::{AlertSettings, AlertStyle};
use crate::domain::{PipelineName, RunId};
use crate::ledger::Ledger;
use crate::redact;

const TRIES: u32 = 3;
const TIMEOUT: Duration = Duration::from_secs(5);
const WAIT: Duration = Duration::from_secs(1);
/// What is told so long after it happened says when that was.
const LATE: TimeDelta = TimeDelta::seconds(60);
/// An answer is a few words; what comes after them is not read.
const ANSWER_BYTES: usize = 4_096;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertKind {
    Failed,
    Partial,
    Halted,
    WaitsForApproval,
    /// Over an hour.
    WaitsLong,
    /// A set that will expire before all of it can be sent.
    WillExpire,
    FireSkipped,
    /// A pipeline that had failed, was partial or halted succeeded again.
    Recovered,
    /// Files that changed under `serve` and have problems.
    ReloadRefused,
}

impl AlertKind {
    /// For machines: the `status` of the plain style.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Partial => "partial",
            Self::Halted => "halted",
            Self::WaitsForApproval => "waits_for_approval",
            Self::WaitsLong => "waits_long",
            Self::WillExpire => "will_expire",
            Self::FireSkipped => "fire_skipped",
            Self::Recovered => "recovered",
            Self::ReloadRefused => "reload_refused",
        }
    }

    /// For people, behind the name of the pipeline.
    fn said(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Partial => "ended only in part",
            Self::Halted => "was halted by a guard",
            Self::WaitsForApproval => "waits for approval",
            Self::WaitsLong => "has waited for over an hour",
            Self::WillExpire => "will expire before everybody is sent to",
            Self::FireSkipped => "skipped a scheduled fire",
            Self::Recovered => "succeeds again",
            Self::ReloadRefused => "goes on with its former settings: the changed files have problems",
        }
    }
}

/// One change that wants somebody.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Alert {
    pub kind: AlertKind,
    /// `None`: the scheduler itself.
    pub pipeline: Option<PipelineName>,
    /// A fire that was skipped has no run.
    pub run_id: Option<RunId>,
    /// In a sentence, without openids or secrets.
    pub why: String,
    /// What to type next; empty when there is nothing to do.
    pub command: String,
}

impl Alert {
    fn subject(&self) -> String {
        self.pipeline.as_ref().map_or_else(|| "`lianbo serve`".to_owned(), |name| format!("pipeline `{name}`"))
    }
}

/// Sends alerts and heartbeats to where the settings say; to nowhere when they say nothing. Cheap to clone.
#[derive(Clone)]
pub struct Alerts {
    settings: AlertSettings,
    clock: Clock,
    /// After the first try; each further one waits that much longer.
    wait: Duration,
    /// `None` when there is nowhere to send to, or no client could be made.
    client: Option<reqwest::Client>,
    /// Where what cannot be delivered is kept.
    ledger: Option<Ledger>,
}

impl Alerts {
    pub fn new(settings: &AlertSettings, clock: Clock) -> Self {
        let wanted = settings.webhook.is_some() || settings.heartbeat.is_some();
        Self { settings: settings.clone(), clock, wait: WAIT, client: wanted.then(client).flatten(), ledger: None }
    }

    /// Tells of something that is no change of a subject, as [`Alerts::deliver`] does; owed meanwhile, where that can be.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its end, the alert may have been delivered; it is delivered later in any case.
    pub async fn send(&self, alert: &Alert) -> bool {
        let at = self.clock.now();
        let id = if self.settings.webhook.is_some() { self.owe(alert, at).await } else { None };
        self.deliver(Due { alert: alert.clone(), at, id }).await
    }

    /// Tells of a ledger that cannot be written: nothing is asked of it, and nothing kept in it.
    pub async fn send_past_the_ledger(&self, alert: &Alert) -> bool {
        self.deliver_alone(&Due { alert: alert.clone(), at: self.clock.now(), id: None }).await
    }

    async fn post(&self, alert: &Alert, to: (&str, &reqwest::Client, Timestamp)) -> Result<(), String> {
        self.persist(|| self.request(alert, to)).await
    }

    /// The post of what happened `at` a time.
    fn request(
        &self,
        alert: &Alert,
        (url, client, at): (&str, &reqwest::Client, Timestamp),
    ) -> reqwest::RequestBuilder {
        let body = payload(self.settings.style, alert, (at, self.clock.now())).to_string();
        client.post(url).header("content-type", "application/json; charset=utf-8").body(body)
    }

    /// Gets the heartbeat address, up to three times, so that silence is noticed elsewhere.
    pub async fn heartbeat(&self) {
        let (Some(url), Some(client)) = (&self.settings.heartbeat, &self.client) else { return };
        if let Err(reason) = self.persist(|| client.get(url)).await {
            error!(reason, "heartbeat could not be sent");
        }
    }

    async fn persist(&self, request: impl Fn() -> reqwest::RequestBuilder) -> Result<(), String> {
        let mut tried = 1;
        loop {
            let reason = match attempt(request()).await {
                Ok(()) => return Ok(()),
                Err(reason) => reason,
            };
            if tried == TRIES {
                return Err(reason);
            }
            self.clock.sleep(self.wait * tried + self.clock.jitter(self.wait)).await;
            tried += 1;
        }
    }
}

impl std::fmt::Debug for Alerts {
    /// Without the addresses.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Alerts").field("style", &self.settings.style).finish_non_exhaustive()
    }
}

/// Straight to the address: a proxy for the platform is not one for a chat.
fn client() -> Option<reqwest::Client> {
    // An error says that one was installed before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let built = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).connect_timeout(TIMEOUT).build();
    built
        .inspect_err(|source| error!(error = source as &dyn std::error::Error, "no alerts: cannot make an HTTP client"))
        .ok()
}

/// One try. The error is a fragment without the address.
async fn attempt(request: reqwest::RequestBuilder) -> Result<(), String> {
    let told = |source: reqwest::Error| told(&source.without_url());
    let mut response = request.send().await.map_err(told)?;
    let status = response.status();
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(told)? {
        let room = ANSWER_BYTES - answer.len();
        answer.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if answer.len() == ANSWER_BYTES {
            break;
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    if !status.is_success() {
        return Err(format!("status {}: {}", status.as_u16(), redact::without_secrets(&answer, 200)));
    }
    refused(&answer)
        .map_or(Ok(()), |code| Err(format!("refused with {code}: {}", redact::without_secrets(&answer, 200))))
}

/// The error and its causes, since reqwest says only "error sending request" by itself.
fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    redact::without_secrets(&causes.map(ToString::to_string).collect::<Vec<_>>().join(": "), 300)
}

/// The chats answer 200 to what they refuse, with a code inside.
fn refused(answer: &str) -> Option<i64> {
    let answer: Value = serde_json::from_str(answer).ok()?;
    ["errcode", "code", "StatusCode"].iter().find_map(|key| answer.get(key)?.as_i64()).filter(|code| *code != 0)
}

/// The body, in the shape the receiver knows, of what happened `at` a time and is told `now`.
fn payload(style: AlertStyle, alert: &Alert, (at, now): (Timestamp, Timestamp)) -> Value {
    let late =
        if now - at < LATE { String::new() } else { format!(" (at {} UTC; told late)", at.format("%Y-%m-%d %H:%M")) };
    let what = format!("{} {}{late}", alert.subject(), alert.kind.said());
    match style {
        AlertStyle::Plain => json!({
            "what": what,
            "why": alert.why,
            "command": alert.command,
            "pipeline": alert.pipeline.as_ref().map(ToString::to_string),
            "run_id": alert.run_id.as_ref().map(ToString::to_string),
            "status": alert.kind.as_str(),
            "at": at.to_rfc3339_opts(SecondsFormat::Secs, true),
        }),
        AlertStyle::Wecom | AlertStyle::Dingtalk => json!({"msgtype": "text", "text": {"content": text(&what, alert)}}),
        AlertStyle::Feishu => json!({"msg_type": "text", "content": {"text": text(&what, alert)}}),
    }
}

/// The same in words, led by the name that chats filter by.
fn text(what: &str, alert: &Alert) -> String {
    /// A chat takes 2048 bytes; Chinese has three a character.
    const WHY_CHARACTERS: usize = 400;
    let mut lines = vec![format!("[Lianbo] {what}")];
    if !alert.why.is_empty() {
        lines.push(alert.why.chars().take(WHY_CHARACTERS).collect());
    }
    if let Some(run_id) = &alert.run_id {
        lines.push(format!("run {run_id}"));
    }
    if !alert.command.is_empty() {
        lines.push(format!("$ {}", alert.command));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::from_micros;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn alert() -> Alert {
        Alert {
            kind: AlertKind::Halted,
            pipeline: Some(PipelineName::new("campaign")),
            run_id: Some(RunId::new("20261123-ab12")),
            why: "40037: the template \"abc\" is gone".into(),
            command: "lianbo push show 20261123-ab12".into(),
        }
    }

    /// Listens on a free port, gives each connection the next answer (an empty one hangs up), and returns the requests.
    async fn receiver(answers: Vec<(u16, &'static str)>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}/robot/send?key=sesame", listener.local_addr().expect("it is bound"));
        let task = tokio::spawn(async move {
            let mut requests = Vec::new();
            for (status, answer) in answers {
                let (mut line, _) = listener.accept().await.expect("a connection");
                requests.push(request(&mut line).await);
                if status > 0 {
                    let length = answer.len();
                    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                    line.write_all(format!("{head}{answer}").as_bytes()).await.expect("it reads");
                }
            }
            requests
        });
        (address, task)
    }

    async fn request(line: &mut tokio::net::TcpStream) -> String {
        let mut read = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&read).to_ascii_lowercase();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if body.len() >= length.map_or(0, |length| length.parse().expect("a length")) {
                    return String::from_utf8(read).expect("it is text");
                }
            }
            if line.read_buf(&mut read).await.expect("it writes") == 0 {
                return String::from_utf8(read).expect("it is text");
            }
        }
    }

    fn alerts(webhook: Option<String>, heartbeat: Option<String>) -> Alerts {
        let settings = AlertSettings { webhook, heartbeat, style: AlertStyle::Wecom };
        Alerts { wait: Duration::ZERO, ..Alerts::new(&settings, Clock::default()) }
    }

    #[tokio::test]
    async fn an_alert_is_posted_as_json() {
        let (url, receiver) = receiver(vec![(200, "{\"errcode\":0,\"errmsg\":\"ok\"}")]).await;
        assert!(alerts(Some(url), None).send(&alert()).await);
        let requests = receiver.await.expect("it ends");
        let (head, body) = requests[0].split_once("\r\n\r\n").expect("a body");
        assert!(head.starts_with("POST /robot/send?key=sesame HTTP/1.1"), "{head}");
        let body: Value = serde_json::from_str(body).expect("JSON");
        let said = "[Lianbo] pipeline `campaign` was halted by a guard\n40037: the template \"abc\" is gone\n\
                    run 20261123-ab12\n$ lianbo push show 20261123-ab12";
        assert_eq!(body, json!({"msgtype": "text", "text": {"content": said}}));
    }

    #[tokio::test]
    async fn refusals_inside_a_good_answer_and_lost_lines_are_tried_again() {
        let answers = vec![(200, "{\"errcode\":45009,\"errmsg\":\"slow down\"}"), (0, ""), (200, "{\"code\":0}")];
        let (url, receiver) = receiver(answers).await;
        assert!(alerts(Some(url), None).send(&alert()).await);
        assert_eq!(receiver.await.expect("it ends").len(), 3);
    }

    #[tokio::test]
    async fn after_three_tries_it_gives_up() {
        let (url, receiver) = receiver(vec![(500, "no"), (503, "no"), (200, "{\"code\":19001}")]).await;
        assert!(!alerts(Some(url), None).send(&alert()).await);
        assert_eq!(receiver.await.expect("it ends").len(), 3);
    }

    #[tokio::test]
    async fn a_heartbeat_is_a_get_and_nowhere_is_fine() {
        let (url, receiver) = receiver(vec![(204, "")]).await;
        let alerts_to = alerts(None, Some(url));
        alerts_to.heartbeat().await;
        assert!(receiver.await.expect("it ends")[0].starts_with("GET /robot/send?key=sesame"));
        assert!(alerts_to.send(&alert()).await);
        alerts(None, None).heartbeat().await;
    }

    #[tokio::test]
    async fn what_is_said_about_a_failure_leaves_the_address_out() {
        let client = client().expect("a client");
        let error = attempt(client.get("http://127.0.0.1:1/robot/send?key=sesame")).await.expect_err("nobody listens");
        assert!(!error.contains("sesame") && !error.contains("robot"), "{error}");
        let shown = format!("{:?}", alerts(Some("http://127.0.0.1:1/?key=sesame".into()), None));
        assert!(!shown.contains("sesame"), "{shown}");
    }

    #[test]
    fn every_style_has_its_shape() {
        let clock = (from_micros(0), from_micros(0));
        let skipped = Alert { kind: AlertKind::FireSkipped, run_id: None, command: String::new(), ..alert() };
        let plain = payload(AlertStyle::Plain, &skipped, clock);
        assert_eq!(plain["what"], "pipeline `campaign` skipped a scheduled fire");
        assert_eq!((&plain["status"], &plain["run_id"]), (&json!("fire_skipped"), &Value::Null));
        assert!(plain["at"].as_str().is_some_and(|at| at.ends_with('Z')));
        assert!(
            payload(AlertStyle::Feishu, &skipped, clock)["content"]["text"]
                .as_str()
                .is_some_and(|text| !text.contains('$'))
        );
        assert_eq!(payload(AlertStyle::Feishu, &skipped, clock)["msg_type"], "text");
        assert_eq!(payload(AlertStyle::Dingtalk, &skipped, clock)["msgtype"], "text");
        let long = Alert { why: "很".repeat(5_000), ..alert() };
        let said = payload(AlertStyle::Wecom, &long, clock)["text"]["content"].as_str().map(str::len);
        assert!(said.is_some_and(|bytes| bytes <= 2_048), "{said:?}");
        let late = payload(AlertStyle::Plain, &skipped, (from_micros(0), from_micros(90_000_000)));
        assert_eq!(late["what"], "pipeline `campaign` skipped a scheduled fire (at 1970-01-01 00:00 UTC; told late)");
        assert_eq!(late["at"], plain["at"]);
    }
}

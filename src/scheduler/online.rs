//! What only WeChat can say of a workspace: whether each account's token can be had from here (secret, IP whitelist), what
//! is left of the day's calls, and whether the templates of the pushes are there with the fields that are filled.
//!
//! Reads alone; nothing is sent. A token that has to be fetched is kept in the ledger like any other. A finding never
//! carries a token or a secret.

use std::time::Duration;

use serde::Serialize;

use crate::config::settings::{PushTemplate, StageKind};
use crate::domain::{AccountName, StageName};
use crate::redact::shortened;
use crate::stage::Hands;
use crate::wechat::{Endpoint, Template, WeChat, WeChatError};

/// A call that keeps trying for longer is given up: a person waits.
const PATIENCE: Duration = Duration::from_secs(20);
/// The calls a workspace lives on.
const ASKED: [Endpoint; 3] = [Endpoint::UserGet, Endpoint::UserInfoBatchget, Endpoint::TemplateSend];

/// How a thing that was looked at stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Good,
    /// Worth knowing; nothing fails for it.
    Doubtful,
    Wrong,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    pub account: AccountName,
    /// `token`, `quota ENDPOINT` or `template PIPELINE/STAGE`.
    pub subject: String,
    pub verdict: Verdict,
    pub detail: String,
    pub errcode: Option<i64>,
}

/// Looks at every account. May be dropped at any time.
pub async fn look(hands: &Hands) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in hands.settings.accounts.keys() {
        let mut looker = Looker { hands, account: name, wechat: hands.wechat(name), findings: Vec::new() };
        looker.account().await;
        findings.append(&mut looker.findings);
    }
    if let Err(error) = hands.settle.settle().await {
        tracing::warn!("the calls made here could not be counted: {error}");
    }
    findings
}

struct Looker<'a> {
    hands: &'a Hands,
    account: &'a AccountName,
    wechat: &'a WeChat,
    findings: Vec<Finding>,
}

impl Looker<'_> {
    async fn account(&mut self) {
        // Without a token every other answer would be the same refusal.
        if !self.token().await {
            return;
        }
        for endpoint in ASKED {
            self.quota(endpoint).await;
        }
        self.templates().await;
    }

    async fn token(&mut self) -> bool {
        let stored = self.wechat.stored_token().await.ok().flatten();
        let now = self.hands.clock.now();
        let is_fresh = stored.as_ref().is_some_and(|token| token.expires_at - now > chrono::TimeDelta::minutes(1));
        let fetched =
            if is_fresh { Ok(stored) } else { self.patiently(self.wechat.refresh_token(false)).await.map(Some) };
        let token = match fetched {
            Ok(Some(token)) => token,
            Ok(None) => return false,
            Err(trouble) => {
                self.trouble("token", trouble);
                return false;
            }
        };
        // The stored one may have been ended by somebody else: the first call with it tells, and renews it.
        match self.patiently(self.wechat.quota(Endpoint::UserGet)).await {
            Ok(_) => {
                let local = token.expires_at.with_timezone(&self.hands.settings.timezone);
                self.find("token", Verdict::Good, format!("accepted, good until {}", local.format("%H:%M")));
                true
            }
            Err(trouble) => {
                self.trouble("token", trouble);
                false
            }
        }
    }

    async fn quota(&mut self, endpoint: Endpoint) {
        let subject = format!("quota {endpoint}");
        match self.patiently(self.wechat.quota(endpoint)).await {
            Ok(figure) => {
                let verdict = if figure.remain == 0 { Verdict::Doubtful } else { Verdict::Good };
                self.find(&subject, verdict, format!("{} of {} calls left today", figure.remain, figure.daily_limit));
            }
            Err(trouble) => self.trouble(&subject, trouble),
        }
    }

    async fn templates(&mut self) {
        let settings = self.hands.settings.clone();
        let mut pushes: Vec<(String, &PushTemplate)> = Vec::new();
        for pipeline in settings.pipelines.values() {
            for stage in &pipeline.stages {
                if let StageKind::PushTemplate(push) = &stage.kind
                    && push.account == *self.account
                {
                    pushes.push((subject(pipeline.name.as_str(), &stage.name), push.as_ref()));
                }
            }
        }
        if pushes.is_empty() {
            return;
        }
        match self.patiently(self.wechat.templates()).await {
            Ok(templates) => {
                for (subject, push) in pushes {
                    let (verdict, detail) = judge(push, &templates);
                    self.find(&subject, verdict, detail);
                }
            }
            Err(trouble) => self.trouble("templates", trouble),
        }
    }

    async fn patiently<T>(&self, call: impl Future<Output = Result<T, WeChatError>>) -> Result<T, Trouble> {
        tokio::select! {
            answer = call => answer.map_err(Trouble::Answer),
            () = self.hands.clock.sleep(PATIENCE) => Err(Trouble::Silence),
        }
    }

    fn find(&mut self, subject: &str, verdict: Verdict, detail: String) {
        let (account, subject) = (self.account.clone(), subject.to_owned());
        self.findings.push(Finding { account, subject, verdict, detail, errcode: None });
    }

    fn trouble(&mut self, subject: &str, trouble: Trouble) {
        let base = &self.hands.account(self.account).api_base;
        let detail = match &trouble {
            Trouble::Silence => {
                format!("no usable answer from {base} within {} s; is that the right api_base?", PATIENCE.as_secs())
            }
            Trouble::Answer(error @ WeChatError::Transport { .. }) => {
                format!("{}; can this machine reach {base}?", chain(error))
            }
            Trouble::Answer(error) => chain(error),
        };
        let errcode = match &trouble {
            Trouble::Answer(error) => error.errcode(),
            Trouble::Silence => None,
        };
        self.find(subject, Verdict::Wrong, detail);
        if let Some(finding) = self.findings.last_mut() {
            finding.errcode = errcode;
        }
    }
}

enum Trouble {
    Answer(WeChatError),
    Silence,
}

fn subject(pipeline: &str, stage: &StageName) -> String {
    format!("template {pipeline}/{stage}")
}

/// Whether the message fills exactly the fields of its template.
fn judge(push: &PushTemplate, templates: &[Template]) -> (Verdict, String) {
    let short = shortened(push.template_id.as_str());
    let Some(template) = templates.iter().find(|template| template.template_id == push.template_id) else {
        let detail = format!(
            "{short} is not in the account's list; check template_id (a template of the account's category may work \
             all the same)"
        );
        return (Verdict::Doubtful, detail);
    };
    let ours: Vec<&str> = push.data.iter().map(|field| field.name.as_str()).collect();
    let theirs: Vec<&str> = template.fields.iter().map(String::as_str).collect();
    let missing = without(&theirs, &ours);
    let extra = without(&ours, &theirs);
    if missing.is_empty() && extra.is_empty() {
        return (Verdict::Good, format!("\"{}\" with {}", template.title, theirs.join(", ")));
    }
    let mut detail = format!("`data` does not fit \"{}\" ({short}):", template.title);
    if !missing.is_empty() {
        detail.push_str(&format!(" fill {}", missing.join(", ")));
    }
    if !extra.is_empty() {
        let and = if missing.is_empty() { "" } else { ";" };
        detail.push_str(&format!("{and} take out {}", extra.join(", ")));
    }
    (Verdict::Wrong, detail)
}

fn without<'a>(all: &[&'a str], those: &[&str]) -> Vec<&'a str> {
    all.iter().copied().filter(|one| !those.contains(one)).collect()
}

/// The error with its causes, each once.
fn chain(error: &WeChatError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

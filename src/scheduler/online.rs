//! What only WeChat can say of a workspace: whether each account's token can be had from here (secret, IP whitelist), what
//! is left of the day's calls, and whether the templates of the pushes are there with the fields that are filled.
//!
//! Reads alone; nothing is sent. A token that has to be fetched is kept in the ledger like any other. A finding never
//! carries a token or a secret.

use std::time::Duration;

use futures::future::join_all;
use serde::Serialize;

use crate::config::settings::{PushTemplate, StageKind};
use crate::domain::{AccountName, StageName};
use crate::redact::shortened;
use crate::stage::Hands;
use crate::wechat::{Endpoint, Template, WeChat, WeChatError};

/// A person waits: a call is made once, and given up after this.
const LIMIT: Duration = Duration::from_secs(4);
/// Of a call with what it needs first; another process may be fetching the token.
const PATIENCE: Duration = Duration::from_secs(9);
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

/// Looks at every account, at all of them at the same time. May be dropped at any time.
pub async fn look(hands: &Hands) -> Vec<Finding> {
    let accounts = hands.settings.accounts.keys().map(|account| async move {
        let wechat = hands.wechat(account).at_once(LIMIT);
        Looker { hands, account, wechat }.account().await
    });
    let findings = join_all(accounts).await.concat();
    if let Err(error) = hands.settle.settle().await {
        tracing::warn!("the calls made here could not be counted: {error}");
    }
    findings
}

struct Looker<'a> {
    hands: &'a Hands,
    account: &'a AccountName,
    wechat: WeChat,
}

impl Looker<'_> {
    async fn account(&self) -> Vec<Finding> {
        // Without a token every other answer would be the same refusal.
        let token = self.token().await;
        let mut findings = vec![token];
        if findings[0].verdict != Verdict::Wrong {
            let (quotas, templates) = tokio::join!(join_all(ASKED.map(|call| self.quota(call))), self.templates());
            findings.extend(quotas);
            findings.extend(templates);
        }
        findings
    }

    async fn token(&self) -> Finding {
        // A stored one may have been ended by somebody else: the first call with it tells, and renews it.
        let looked = async {
            self.wechat.have_token().await?;
            self.wechat.quota(Endpoint::UserGet).await?;
            self.wechat.stored_token().await
        };
        match self.patiently(looked).await {
            Ok(token) => {
                let until = token.map_or_else(String::new, |token| {
                    let local = token.expires_at.with_timezone(&self.hands.settings.timezone);
                    format!(", good until {}", local.format("%H:%M"))
                });
                self.found("token", Verdict::Good, format!("accepted{until}"))
            }
            Err(trouble) => self.trouble("token", &trouble),
        }
    }

    async fn quota(&self, endpoint: Endpoint) -> Finding {
        let subject = format!("quota {endpoint}");
        match self.patiently(self.wechat.quota(endpoint)).await {
            Ok(figure) => {
                let verdict = if figure.remain == 0 { Verdict::Doubtful } else { Verdict::Good };
                self.found(&subject, verdict, format!("{} of {} calls left today", figure.remain, figure.daily_limit))
            }
            Err(trouble) => self.trouble(&subject, &trouble),
        }
    }

    async fn templates(&self) -> Vec<Finding> {
        let mut pushes: Vec<(String, &PushTemplate)> = Vec::new();
        for pipeline in self.hands.settings.pipelines.values() {
            for stage in &pipeline.stages {
                if let StageKind::PushTemplate(push) = &stage.kind
                    && push.account == *self.account
                {
                    pushes.push((subject(pipeline.name.as_str(), &stage.name), push.as_ref()));
                }
            }
        }
        if pushes.is_empty() {
            return Vec::new();
        }
        match self.patiently(self.wechat.templates()).await {
            Ok(templates) => pushes
                .into_iter()
                .map(|(subject, push)| {
                    let (verdict, detail) = judge(push, &templates);
                    self.found(&subject, verdict, detail)
                })
                .collect(),
            Err(trouble) => vec![self.trouble("templates", &trouble)],
        }
    }

    async fn patiently<T>(&self, call: impl Future<Output = Result<T, WeChatError>>) -> Result<T, Trouble> {
        tokio::select! {
            answer = call => answer.map_err(Trouble::Answer),
            () = self.hands.clock.sleep(PATIENCE) => Err(Trouble::Silence),
        }
    }

    fn found(&self, subject: &str, verdict: Verdict, detail: String) -> Finding {
        Finding { account: self.account.clone(), subject: subject.to_owned(), verdict, detail, errcode: None }
    }

    fn trouble(&self, subject: &str, trouble: &Trouble) -> Finding {
        let base = &self.hands.account(self.account).api_base;
        let detail = match trouble {
            Trouble::Silence => {
                format!("no usable answer from {base} within {} s; is that the right api_base?", PATIENCE.as_secs())
            }
            Trouble::Answer(error) => chain(error),
        };
        let errcode = match trouble {
            Trouble::Answer(error) => error.errcode(),
            Trouble::Silence => None,
        };
        Finding { errcode, ..self.found(subject, Verdict::Wrong, detail) }
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

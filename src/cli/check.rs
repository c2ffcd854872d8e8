//! `lianbo check`: everything wrong in configuration, pipelines and SQL at once; with `--online` also what only WeChat can say.
//!
//! Without `--online` nothing is touched and nobody called. With it a ledger is made where there is none: a token that
//! was fetched has its one holder there.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::context::{Context, print_line};
use super::exit::{Exit, Failure};
use crate::config::settings::Settings;
use crate::domain::AccountName;
use crate::scheduler::online::{self, Finding, Verdict};

const INFALLIBLE: &str = "writing to a String cannot fail";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also ask WeChat: token, IP whitelist, quotas, templates and their fields
    #[arg(long)]
    online: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Checked {
    ok: bool,
    /// In the files; always empty here, since problems there end the check.
    problems: Value,
    pipelines: usize,
    stages: usize,
    /// Accounts that nothing is done for until a person has decided: why, and what to do.
    refused: BTreeMap<AccountName, String>,
    /// Absent without `--online`.
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<Vec<Finding>>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let (settings, refused) = match context.checked().await {
        Ok(checked) => checked,
        Err(Failure::Problems(problems)) if context.is_json => {
            print_line(&serde_json::json!({ "ok": false, "problems": problems.to_json() }).to_string());
            return Ok(Exit::Usage);
        }
        Err(failure) => return Err(failure),
    };
    let mut checked = Checked { refused, ..Checked::of(&settings) };
    if args.online {
        let app = context.app(settings).await?;
        let findings = online::look(app.hands()).await;
        app.hands().ledger.close().await;
        checked.ok = findings.iter().all(|finding| finding.verdict != Verdict::Wrong);
        checked.online = Some(findings);
    }
    context.print(&checked, describe);
    Ok(if checked.ok { Exit::Done } else { Exit::Failed })
}

impl Checked {
    fn of(settings: &Settings) -> Self {
        Self {
            ok: true,
            problems: Value::Array(Vec::new()),
            pipelines: settings.pipelines.len(),
            stages: settings.pipelines.values().map(|pipeline| pipeline.stages.len()).sum(),
            refused: BTreeMap::new(),
            online: None,
        }
    }
}

fn describe(checked: &Checked) -> String {
    let mut text = format!(
        "{}, {}: configuration, pipelines and SQL are good\n",
        counted(checked.pipelines, "pipeline"),
        counted(checked.stages, "stage")
    );
    for why in checked.refused.values() {
        write!(text, "\n{why}\n").expect(INFALLIBLE);
    }
    let Some(findings) = &checked.online else { return text };
    text.push('\n');
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Good => "good",
            Verdict::Doubtful => "look",
            Verdict::Wrong => "WRONG",
        };
        writeln!(text, "{verdict:5}  {}  {}: {}", finding.account, finding.subject, finding.detail).expect(INFALLIBLE);
    }
    let wrong = findings.iter().filter(|finding| finding.verdict == Verdict::Wrong).count();
    let verdict = if wrong == 0 { "WeChat agrees".to_owned() } else { format!("{} to mend", counted(wrong, "thing")) };
    text.push_str(&verdict);
    text
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_answer_is_counted_and_shown_with_its_reason() {
        let finding = |subject: &str, verdict, detail: &str| Finding {
            account: AccountName::new("main"),
            subject: subject.to_owned(),
            verdict,
            detail: detail.to_owned(),
            errcode: None,
        };
        let findings = vec![
            finding("token", Verdict::Good, "accepted"),
            finding("template campaign/push", Verdict::Wrong, "fill thing9"),
        ];
        let checked = Checked {
            ok: false,
            problems: Value::Array(Vec::new()),
            pipelines: 1,
            stages: 2,
            refused: BTreeMap::new(),
            online: Some(findings),
        };
        let text = describe(&checked);
        assert!(text.starts_with("1 pipeline, 2 stages:"), "{text}");
        assert!(text.contains("WRONG") && text.contains("fill thing9") && text.ends_with("1 thing to mend"), "{text}");
    }
}

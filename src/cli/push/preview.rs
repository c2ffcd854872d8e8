//! `lianbo push preview`: the first messages of the frozen set, as they will leave.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use crate::cli::context::Context;
use crate::cli::exit::{Exit, Failure};
use crate::cli::run_name::find_push;
use crate::cli::table::grouped;
use crate::domain::Counts;
use crate::ledger::Push;
use crate::scheduler::push_view::plan;
use crate::stage::push_template::{approval_hash, preview};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: super::Which,
    /// How many
    #[arg(short, value_name = "N", default_value_t = 3)]
    n: u32,
}

#[derive(Debug, Serialize)]
struct Preview {
    run_id: String,
    stage: String,
    account: String,
    message_hash: Option<String>,
    /// What `push approve` approves.
    approval_hash: Option<String>,
    #[serde(flatten)]
    counts: Counts,
    messages: Vec<Shown>,
}

#[derive(Debug, Serialize)]
struct Shown {
    seq: u64,
    openid: String,
    unionid: Option<String>,
    /// Which rule it breaks: it is not sent.
    invalid: Option<String>,
    /// The request's body.
    body: Value,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let app = context.app_to_read().await?;
    let (run, push) = find_push(app.hands(), &args.which.run).await?;
    let Some(messages) = preview(app.hands(), &push, args.n).await? else {
        return Err(Failure::Usage(absent(&push)));
    };
    let messages = messages.into_iter().map(|message| Shown {
        seq: message.seq,
        openid: message.openid.as_str().to_owned(),
        unionid: message.unionid.map(|unionid| unionid.as_str().to_owned()),
        invalid: message.invalid,
        body: serde_json::from_slice(&message.body).unwrap_or(Value::Null),
    });
    let shown = Preview {
        run_id: run.run_id.to_string(),
        stage: push.stage.to_string(),
        account: push.account.to_string(),
        message_hash: push.message_hash.clone(),
        approval_hash: plan(app.hands(), &push).and_then(|plan| approval_hash(plan, &push)),
        counts: push.counts,
        messages: messages.collect(),
    };
    app.hands().ledger.close().await;
    context.print(&shown, describe);
    Ok(Exit::Done)
}

fn absent(push: &Push) -> String {
    let name = format!("{}/{}", push.run_id, push.stage);
    if push.ended_at.is_some() {
        return format!("{name} is over and its messages are gone; `lianbo push show {name}` says what became of them");
    }
    format!(
        "the messages of {name} are not frozen yet: `lianbo run {} --continue` freezes them before the first send",
        push.pipeline
    )
}

fn describe(preview: &Preview) -> String {
    let mut text = format!(
        "{} of {} messages of {}/{}, account `{}`",
        preview.messages.len(),
        grouped(preview.counts.recipients),
        preview.run_id,
        preview.stage,
        preview.account
    );
    if let Some(hash) = &preview.approval_hash {
        let _ = write!(text, ", hash {hash}");
    }
    for message in &preview.messages {
        let _ = write!(text, "\n\n#{} to {}", message.seq, message.openid);
        if let Some(invalid) = &message.invalid {
            let _ = write!(text, "\n  not sent: {invalid}");
            continue;
        }
        for (field, value) in message.body.get("data").and_then(Value::as_object).into_iter().flatten() {
            let _ = write!(text, "\n  {field}: {}", value.get("value").and_then(Value::as_str).unwrap_or_default());
        }
        for (key, page) in message.body.get("miniprogram").and_then(Value::as_object).into_iter().flatten() {
            if key != "appid" {
                let _ = write!(text, "\n  opens {}", page.as_str().unwrap_or_default());
            }
        }
        if let Some(url) = message.body.get("url").and_then(Value::as_str) {
            let _ = write!(text, "\n  link {url}");
        }
    }
    text
}

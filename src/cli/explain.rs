//! `lianbo explain OPENID|UNIONID`: one person's whole way, for whoever asks why somebody did or did not get a message.

use std::fmt::Write;

use chrono_tz::Tz;
use serde_json::{Map, Value};

use super::context::Context;
use super::exit::{Exit, Failure};
use super::words::local;
use crate::clock::Timestamp;
use crate::scheduler::explain::{Explanation, SendView, SetView, explain};
use crate::stage::query::QueryError;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// An openid of the person, of an account or of a mini program, or the unionid
    #[arg(value_name = "OPENID|UNIONID")]
    person: String,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let app = context.app_to_read().await?;
    let zone = app.hands().settings.timezone;
    let explanation = explain(app.hands(), args.person.trim()).await.map_err(|error| match error {
        QueryError::Sql { message, .. } => Failure::Other(anyhow::anyhow!(message)),
        other => Failure::Other(other.into()),
    })?;
    context.print(&explanation, |explanation| describe(explanation, zone));
    app.hands().ledger.close().await;
    Ok(if explanation.is_unknown { Exit::Failed } else { Exit::Done })
}

fn describe(person: &Explanation, zone: Tz) -> String {
    if person.is_unknown {
        return format!("nobody of id {} is known in any table, export line or set", person.asked);
    }
    let mut text = format!("unionid {}", listed(&person.unionids));
    let _ = write!(text, "\nopenids {}", listed(&person.openids));
    section(&mut text, "follower", &person.followers, "is on no follower list that was walked", zone);
    section(&mut text, "changes", &person.follower_changes, "", zone);
    section(&mut text, "profile", &person.profiles, "WeChat was not asked for a profile", zone);
    section(&mut text, "user", &person.users, "is in no users table", zone);
    if !person.export_lines.is_empty() {
        text.push_str("\n\nexports as they are now");
        for line in &person.export_lines {
            let _ = write!(text, "\n  {}:{} ({})", line.file, line.line, line.stage);
        }
    }
    section(&mut text, "refused on load", &person.quarantine, "", zone);
    section(&mut text, "identity", &person.identities, "no follower and no user are tied by a unionid", zone);
    section(&mut text, "conflicts", &person.conflicts, "", zone);
    section(&mut text, "suppressions", &person.suppressions, "", zone);
    if person.is_forgotten {
        text.push_str("\n\nwas forgotten: is never taken into a set");
    }
    text.push_str("\n\nsets");
    if person.sets.is_empty() {
        text.push_str("\n  was given by no SELECT of a set");
    }
    for set in &person.sets {
        text.push_str(&described_set(set, zone));
    }
    text
}

fn listed(ids: &[String]) -> String {
    if ids.is_empty() { "none known".to_owned() } else { ids.join(", ") }
}

/// Rows as `key value` lists; what is NULL is not said. Nothing to show and nothing to say: no section.
fn section(text: &mut String, title: &str, rows: &[Map<String, Value>], empty: &str, zone: Tz) {
    if rows.is_empty() && empty.is_empty() {
        return;
    }
    let _ = write!(text, "\n\n{title}");
    if rows.is_empty() {
        let _ = write!(text, "\n  {empty}");
    }
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| format!("{key} {}", cell(value, zone)))
            .collect();
        let _ = write!(text, "\n  {}", cells.join(", "));
    }
}

fn cell(value: &Value, zone: Tz) -> String {
    let Value::String(text) = value else { return value.to_string() };
    match text.parse::<Timestamp>() {
        Ok(at) if text.ends_with('Z') => local(at, zone),
        _ => text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
    }
}

fn described_set(set: &SetView, zone: Tz) -> String {
    let name = format!("{}/{} of `{}`, account `{}`", set.run_id, set.stage, set.pipeline, set.account);
    let mut text = match (&set.left_out, set.arm.as_deref()) {
        (Some(reason), _) => format!("\n  {name}: left out: {reason}"),
        (None, Some("holdout")) => format!("\n  {name}: held out"),
        _ => format!("\n  {name}: in the set"),
    };
    for send in &set.sends {
        text.push_str(&described_send(send, zone));
    }
    text
}

fn described_send(send: &SendView, zone: Tz) -> String {
    let mut text = format!("\n    {} #{}: {}", send.stage, send.seq.unwrap_or_default(), send.state);
    if let Some(at) = send.sent_at {
        let _ = write!(text, " {}", local(at, zone));
    }
    if let Some(code) = send.errcode {
        let _ = write!(text, ", {code} {}", send.meaning.unwrap_or_default());
    }
    if let Some(reason) = &send.reason {
        let _ = write!(text, ", {reason}");
    }
    if let Some(attempts) = send.attempts.filter(|attempts| *attempts > 1) {
        let _ = write!(text, ", {attempts} attempts");
    }
    if let Some(msgid) = &send.msgid {
        let _ = write!(text, ", msgid {msgid}");
    }
    match (&send.delivered, send.delivered_at) {
        (Some(fate), Some(at)) => {
            let _ = write!(text, "; delivery: {fate} {}", local(at, zone));
        }
        (None, _) if send.state == "sent" => text.push_str("; delivery: not told yet"),
        _ => {}
    }
    text
}

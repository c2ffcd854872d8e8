//! `lianbo push failures`: one line for each recipient who was not reached, streamed: a push may have a million.

use std::io::{BufWriter, Write};

use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::exit::{Exit, Failure};
use crate::cli::run_name::find_own_push;
use crate::clock::Timestamp;
use crate::ledger::{DeliveryRow, Ledger, LedgerError, Push};
use crate::wechat::lookup_code;

/// Rows in memory at a time.
const CHUNK: u32 = 2_000;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    which: super::Which,
    /// Only those with this code of WeChat
    #[arg(long, value_name = "N")]
    errcode: Option<i64>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

/// A recipient who was not reached. Openids are whole: the person asked for them.
#[derive(Debug, Serialize)]
struct Line<'a> {
    seq: u64,
    openid: &'a str,
    unionid: Option<&'a str>,
    state: &'static str,
    reason: Option<&'a str>,
    errcode: Option<i64>,
    meaning: Option<&'static str>,
    attempts: u32,
    at: Timestamp,
}

impl<'a> Line<'a> {
    fn of(row: &'a DeliveryRow) -> Self {
        Self {
            seq: row.seq,
            openid: row.openid.as_str(),
            unionid: row.unionid.as_ref().map(|unionid| unionid.as_str()),
            state: row.state.as_str(),
            reason: row.reason.as_deref(),
            errcode: row.errcode,
            meaning: row.errcode.and_then(lookup_code).map(|code| code.meaning),
            attempts: row.attempt,
            at: row.updated_at,
        }
    }
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let app = context.app_to_read().await?;
    let ledger = &app.hands().ledger;
    let (_, push) = find_own_push(app.hands(), &args.which.run).await?;
    let printed =
        if context.is_json { as_json(ledger, &push, &args).await? } else { as_lines(ledger, &push, &args).await? };
    let rest = push.rest_reason.as_deref().map(|reason| (push.recipients - push.claimed, reason));
    if let (Some((people, reason)), false) = (rest.filter(|(people, _)| *people > 0), context.is_json) {
        eprintln!("and {people} recipients that were never begun with: skipped, {reason}");
    } else if printed == 0 && !context.is_json {
        eprintln!("nobody failed, was skipped, is held or unconfirmed in {}/{}", push.run_id, push.stage);
    }
    ledger.close().await;
    Ok(Exit::Done)
}

async fn as_lines(ledger: &Ledger, push: &Push, args: &Args) -> Result<u64, LedgerError> {
    let mut is_first = true;
    each_chunk(ledger, push, args, |rows, out| {
        if is_first {
            is_first = false;
            writeln!(out, "{:>8}  {:<28}  {:<11}  {:>6}  reason", "seq", "openid", "state", "code")?;
        }
        for row in rows {
            let line = Line::of(row);
            let code = line.errcode.map(|code| code.to_string()).unwrap_or_default();
            let why = line.reason.or(line.meaning).unwrap_or_default().replace('\n', " ");
            let meaning = line.meaning.filter(|meaning| *meaning != why).map(|text| format!(" ({text})"));
            let meaning = meaning.unwrap_or_default();
            writeln!(out, "{:>8}  {:<28}  {:<11}  {code:>6}  {why}{meaning}", line.seq, line.openid, line.state)?;
        }
        Ok(())
    })
    .await
}

async fn as_json(ledger: &Ledger, push: &Push, args: &Args) -> Result<u64, LedgerError> {
    let head = serde_json::json!({ "run_id": push.run_id, "stage": push.stage }).to_string();
    let head = head.trim_end_matches('}').to_owned();
    print(&format!("{head},\"failures\":["));
    let mut is_first = true;
    let printed = each_chunk(ledger, push, args, |rows, out| {
        for row in rows {
            if !std::mem::take(&mut is_first) {
                out.write_all(b",")?;
            }
            serde_json::to_writer(&mut *out, &Line::of(row))?;
        }
        Ok(())
    })
    .await?;
    let never_begun = if push.rest_reason.is_some() { push.recipients - push.claimed } else { 0 };
    let rest = serde_json::json!({ "people": never_begun, "reason": push.rest_reason });
    print(&format!("],\"never_begun\":{rest}}}\n"));
    Ok(printed)
}

fn print(text: &str) {
    // A closed pipe is not a failure.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

type Out = BufWriter<std::io::Stdout>;

/// Hands the wanted rows on chunk by chunk, until their end or until nobody reads any more; how many there were.
async fn each_chunk(
    ledger: &Ledger,
    push: &Push,
    args: &Args,
    mut print: impl FnMut(&[DeliveryRow], &mut Out) -> std::io::Result<()>,
) -> Result<u64, LedgerError> {
    let mut out = BufWriter::new(std::io::stdout());
    let (mut after, mut left) = (0, args.limit.unwrap_or(u64::MAX));
    let mut printed = 0;
    while left > 0 {
        let mut rows = ledger.failures(push.key, after, CHUNK).await?;
        let Some(last) = rows.last() else { break };
        after = last.seq;
        rows.retain(|row| args.errcode.is_none() || row.errcode == args.errcode);
        rows.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let count = u64::try_from(rows.len()).unwrap_or(u64::MAX);
        if !rows.is_empty() && print(&rows, &mut out).and_then(|()| out.flush()).is_err() {
            break;
        }
        printed += count;
        left -= count;
    }
    Ok(printed)
}

//! `lianbo quota [ACCOUNT]`: calls used and left today, ours and WeChat's own figure.

use super::context::Context;
use super::exit::{Exit, Failure};
use super::measures::local;
use super::table::{grouped, plain};
use super::token::find_account;
use crate::ledger::LedgerError;
use crate::scheduler::quotas::{AccountQuotas, EndpointQuota, quotas};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The account, as the configuration names it; left out: every one
    account: Option<String>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let only = match &args.account {
        Some(name) => Some(find_account(&settings, name)?.name.clone()),
        None => None,
    };
    // Asking WeChat counts as a call, which has to be written down; where it cannot be, our own count is told alone.
    let app = match context.existing_app().await {
        Err(Failure::Other(error)) if is_read_only(&error) => context.app_to_read().await?,
        app => app?,
    };
    let hands = app.hands();
    let views = quotas(hands, only.as_ref()).await?;
    let zone = hands.settings.timezone;
    context.print(&serde_json::json!({ "accounts": &views }), |_| {
        let texts: Vec<String> = views.iter().map(|view| describe(view, zone)).collect();
        texts.join("\n\n")
    });
    hands.ledger.close().await;
    Ok(Exit::Done)
}

fn is_read_only(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<LedgerError>()).any(LedgerError::is_read_only)
}

fn describe(view: &AccountQuotas, zone: chrono_tz::Tz) -> String {
    let resets = local(view.resets_at, zone);
    let header = ["call", "used", "errors", "limit", "reserve", "left", "WeChat: used", "of", "left"];
    let table = plain(&header, view.endpoints.iter().map(row));
    let mut text = format!("{}, quota day {} (begins anew {resets})\n{table}", view.account, view.day);
    let asked: Vec<&EndpointQuota> =
        view.endpoints.iter().filter(|own| own.wechat.is_some() || own.not_told.is_some()).collect();
    match asked.first().and_then(|first| first.not_told.as_ref()) {
        // Nothing but silence: said once.
        Some(reason) if asked.iter().all(|own| own.not_told.as_ref() == Some(reason)) => {
            text.push_str(&format!("\nWeChat did not answer, the figures are our own count: {reason}"));
        }
        _ => {
            for (own, reason) in asked.iter().filter_map(|own| Some((own, own.not_told.as_ref()?))) {
                text.push_str(&format!("\n{}: not told by WeChat: {reason}", own.endpoint));
            }
        }
    }
    for endpoint in &view.endpoints {
        if let Some(at) = endpoint.exhausted_at {
            let at = local(at, zone);
            text.push_str(&format!("\n{}: WeChat refused further calls of the day at {at}", endpoint.endpoint));
        }
    }
    text
}

fn row(quota: &EndpointQuota) -> Vec<String> {
    let known = |number: Option<u64>| number.map(grouped).unwrap_or_default();
    vec![
        quota.endpoint.clone(),
        grouped(quota.used),
        grouped(quota.errors),
        known(quota.limit),
        if quota.reserve > 0 { grouped(quota.reserve) } else { String::new() },
        known(quota.left),
        known(quota.wechat.map(|says| says.used)),
        known(quota.wechat.map(|says| says.limit)),
        known(quota.wechat.map(|says| says.left)),
    ]
}

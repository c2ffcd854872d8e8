//! `lianbo freeze` and `lianbo thaw`: the stop switch of an account, or of all. While it is on nothing is sent, by whomever,
//! also after a restart; a running push of another process stops within two seconds and waits.

use serde::Serialize;

use super::context::{Context, who};
use super::exit::{Exit, Failure};
use super::token::find_account;
use crate::ledger::{EVERY_ACCOUNT, Freeze, Order};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The account, as the configuration names it; left out: every one
    account: Option<String>,
}

/// What became of the switch.
#[derive(Debug, Serialize)]
struct Done {
    changed: bool,
    /// Every switch that is on now.
    frozen: Vec<Freeze>,
    #[serde(skip)]
    what: String,
}

pub async fn freeze(context: &Context, args: Args) -> Result<Exit, Failure> {
    order(context, args, true).await
}

pub async fn thaw(context: &Context, args: Args) -> Result<Exit, Failure> {
    order(context, args, false).await
}

async fn order(context: &Context, args: Args, is_on: bool) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let account = match &args.account {
        Some(name) => Some(find_account(&settings, name)?.name.clone()),
        None => None,
    };
    let app = context.app(settings).await?;
    let ledger = &app.hands().ledger;
    let who = who();
    let order = Order { who: &who, at: context.clock.now() };
    let named = account.as_ref().map_or("every account".to_owned(), |account| format!("account `{account}`"));
    let (changed, what) = if is_on {
        let changed = ledger.freeze(account.as_ref(), order).await?;
        let lift = account.as_ref().map_or("lianbo thaw".to_owned(), |account| format!("lianbo thaw {account}"));
        let what = if changed {
            format!("{named} is frozen: nothing is sent, a running push stops within two seconds; `{lift}` lifts it")
        } else {
            format!("{named} was frozen already; `{lift}` lifts it")
        };
        (changed, what)
    } else {
        let thawed = ledger.thaw(account.as_ref(), order).await?;
        let what = if thawed.is_empty() {
            format!("{named} was not frozen")
        } else {
            format!("thawed: {}; what waited goes on with `lianbo run PIPELINE --continue`, or serve", listed(&thawed))
        };
        (!thawed.is_empty(), what)
    };
    let done = Done { changed, frozen: ledger.freezes().await?, what };
    context.print(&done, |done| {
        let is_held = !is_on && account.is_some() && done.frozen.iter().any(|freeze| freeze.account == EVERY_ACCOUNT);
        let held = if is_held { "\nevery account together is still frozen; `lianbo thaw` lifts that" } else { "" };
        format!("{}{held}", done.what)
    });
    ledger.close().await;
    Ok(Exit::Done)
}

fn listed(accounts: &[String]) -> String {
    let named =
        |account: &String| if account == EVERY_ACCOUNT { "every account".to_owned() } else { format!("`{account}`") };
    accounts.iter().map(named).collect::<Vec<_>>().join(", ")
}

//! `lianbo token show|refresh ACCOUNT`: when the access token expires; a new one. The token itself stays unseen.

use clap::Subcommand;
use secrecy::ExposeSecret;
use serde::Serialize;

use super::context::{Context, who};
use super::exit::{Exit, Failure};
use super::measures::local;
use crate::app::App;
use crate::clock::Timestamp;
use crate::config::nearest;
use crate::config::settings::{Account, Settings, TokenSource};
use crate::domain::AccountName;
use crate::ledger::AuditEntry;
use crate::wechat::StoredToken;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// When the stored token expires; calls nobody
    Show(Which),
    /// Fetch one now and keep it for every process of the workspace
    Refresh {
        #[command(flatten)]
        which: Which,
        /// Make WeChat end the token before (at most 5 a day, and other systems of the account lose theirs)
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Which {
    /// The account, as the configuration names it
    account: String,
    /// Print the token itself: whoever has it acts for the account until it expires
    #[arg(long)]
    reveal: bool,
}

/// The stored token of an account.
#[derive(Debug, Serialize)]
struct TokenView {
    account: String,
    /// `stable`, `legacy` or `centre`.
    kind: &'static str,
    fetched_at: Option<Timestamp>,
    /// `None`: there is no token yet.
    expires_at: Option<Timestamp>,
    /// Below zero when it has expired.
    seconds_left: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_token: Option<String>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    match args.command {
        Command::Show(which) => show(context, which).await,
        Command::Refresh { which, force } => refresh(context, which, force).await,
    }
}

async fn show(context: &Context, which: Which) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let account = find_account(&settings, &which.account)?.clone();
    let zone = settings.timezone;
    let stored = match App::open_to_read(settings, context.clock).await? {
        None => None,
        Some(app) => {
            let stored = app.hands().wechat(&account.name).stored_token().await?;
            app.hands().ledger.close().await;
            stored
        }
    };
    let view = view(context, &account, stored.as_ref(), which.reveal);
    context.print(&view, |view| describe(view, zone));
    Ok(Exit::Done)
}

async fn refresh(context: &Context, which: Which, force: bool) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let account = find_account(&settings, &which.account)?.clone();
    if force && !matches!(account.token, TokenSource::Stable) {
        let text =
            format!("--force is for stable tokens; account `{}` has token = \"{}\"", account.name, kind(&account));
        return Err(Failure::Usage(text));
    }
    let app = context.app(settings).await?;
    let hands = app.hands();
    let fetched = hands.wechat(&account.name).refresh_token(force).await;
    hands.settle.settle().await?;
    let fetched = fetched?;
    let entry = AuditEntry {
        at: context.clock.now(),
        who: who(),
        command: "token refresh".to_owned(),
        run_id: None,
        detail: format!("account {}{}", account.name, if force { ", forced" } else { "" }),
    };
    hands.ledger.record_audit(&entry).await?;
    let view = view(context, &account, Some(&fetched), which.reveal);
    context.print(&view, |view| describe(view, hands.settings.timezone));
    hands.ledger.close().await;
    Ok(Exit::Done)
}

/// The account of that name.
///
/// # Errors
///
/// [`Failure::Usage`] with the nearest name.
pub fn find_account<'a>(settings: &'a Settings, name: &str) -> Result<&'a Account, Failure> {
    settings.accounts.get(name).ok_or_else(|| {
        let known = settings.accounts.keys().map(AccountName::as_str);
        let hint = match nearest(name, known.clone()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are: {}", known.collect::<Vec<_>>().join(", ")),
        };
        Failure::Usage(format!("there is no account `{name}`; {hint}"))
    })
}

fn kind(account: &Account) -> &'static str {
    match account.token {
        TokenSource::Stable => "stable",
        TokenSource::Legacy => "legacy",
        TokenSource::Centre { .. } => "centre",
    }
}

fn view(context: &Context, account: &Account, stored: Option<&StoredToken>, reveal: bool) -> TokenView {
    if reveal && stored.is_some() {
        eprintln!("Careful: whoever has this token acts for the account until it expires.");
    }
    TokenView {
        account: account.name.to_string(),
        kind: kind(account),
        fetched_at: stored.map(|token| token.fetched_at),
        expires_at: stored.map(|token| token.expires_at),
        seconds_left: stored.map(|token| (token.expires_at - context.clock.now()).num_seconds()),
        access_token: stored.filter(|_| reveal).map(|token| token.access_token.expose_secret().to_owned()),
    }
}

fn describe(view: &TokenView, zone: chrono_tz::Tz) -> String {
    let (account, kind) = (&view.account, view.kind);
    let (Some(expires_at), Some(fetched_at), Some(left)) = (view.expires_at, view.fetched_at, view.seconds_left) else {
        return format!(
            "{account}: no token yet ({kind}); the first call fetches one, or `lianbo token refresh {account}`"
        );
    };
    let (expires, fetched) = (local(expires_at, zone), local(fetched_at, zone));
    let mut text = if left > 0 {
        format!("{account}: the {kind} token is good until {expires}, {} min more (fetched {fetched})", left / 60)
    } else {
        format!("{account}: the {kind} token expired {expires} (fetched {fetched}); the next call fetches one")
    };
    if let Some(token) = &view.access_token {
        text.push('\n');
        text.push_str(token);
    }
    text
}

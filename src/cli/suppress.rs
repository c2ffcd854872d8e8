//! `lianbo suppress`: people never to send to. A person is named by unionid or by openid; an account and a template narrow
//! it, a date ends it.

mod import;

use chrono_tz::Tz;
use clap::Subcommand;
use serde::Serialize;

use super::context::{Context, who};
use super::exit::{Exit, Failure};
use super::table::plain;
use super::token::find_account;
use super::words::local;
use crate::clock::Timestamp;
use crate::config::settings::Settings;
use crate::domain::{AccountName, OpenId, TemplateId, UnionId};
use crate::ledger::{Ledger, NewSuppression, Order};
use crate::redact::shortened;
use crate::scheduler::strangers::{Asked, Looked, strangers};
use crate::stage::Hands;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Never send to a person from now on
    Add(Add),
    /// Send to a person again
    Remove(Remove),
    /// Who is suppressed, and why
    List(List),
    /// Add everybody of a csv file: all of them, or none where a line is wrong
    Import(import::Args),
}

/// A person, by one id.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Person {
    /// The person on every account, by unionid
    #[arg(long, value_name = "U", value_parser = id)]
    unionid: Option<String>,
    /// The person on one account, by its openid
    #[arg(long, value_name = "O", value_parser = id)]
    openid: Option<String>,
}

/// An id as it was typed: blanks around it are none of it, and nothing at all names nobody.
fn id(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("it names nobody; give the id as `lianbo explain` or the tables show it".to_owned()),
        id if id.contains(char::is_whitespace) => Err("an id has no blanks in it".to_owned()),
        id => Ok(id.to_owned()),
    }
}

#[derive(Debug, clap::Args)]
struct Add {
    #[command(flatten)]
    person: Person,
    /// Only for this account
    #[arg(long)]
    account: Option<String>,
    /// Only for this template
    #[arg(long, value_name = "TEMPLATE_ID")]
    template: Option<String>,
    /// Why
    #[arg(long)]
    reason: String,
    /// Until when: a date (its beginning) or a time, in the workspace's time zone; left out: for good
    #[arg(long, value_name = "YYYY-MM-DD[ HH:MM]")]
    until: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Remove {
    #[command(flatten)]
    person: Person,
    /// Only what is for this account
    #[arg(long)]
    account: Option<String>,
    /// Only what is for this template
    #[arg(long, value_name = "TEMPLATE_ID")]
    template: Option<String>,
}

#[derive(Debug, clap::Args)]
struct List {
    /// At most so many, oldest first
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u32,
}

/// Unknown ids that are told one by one.
const SHOWN: usize = 5;

/// What an order came to.
#[derive(Debug, Serialize)]
struct Done {
    changed: u64,
    what: String,
    /// Of the ids that were given, those that stand in no table yet. `None`: nobody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
struct Line {
    unionid: Option<String>,
    openid: Option<String>,
    account: Option<String>,
    template_id: Option<String>,
    reason: String,
    since: Timestamp,
    until: Option<Timestamp>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    match args.what {
        What::Add(args) => add(context, args).await,
        What::Remove(args) => remove(context, args).await,
        What::List(args) => list(context, args).await,
        What::Import(args) => import::run(context, args).await,
    }
}

async fn add(context: &Context, args: Add) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let now = context.clock.now();
    let until = match &args.until {
        Some(text) => Some(moment(text, settings.timezone).map_err(Failure::Usage)?),
        None => None,
    };
    if until.is_some_and(|until| until <= now) {
        return Err(Failure::Usage("--until is over already: it would suppress nobody".to_owned()));
    }
    let new = NewSuppression {
        unionid: args.person.unionid.map(UnionId::new),
        openid: args.person.openid.map(OpenId::new),
        account: account(&settings, args.account.as_deref())?,
        template_id: args.template.map(TemplateId::new),
        reason: args.reason,
        since: now,
        until,
    };
    let detail = described(&new);
    let app = context.app(settings).await?;
    let new = [new];
    let unknown = unknown(app.hands(), &new).await?;
    let added = order(&app.hands().ledger, context, &new, detail).await?;
    let what = if added == 0 {
        "was suppressed like this already"
    } else {
        "suppressed; a running push leaves the person out"
    };
    context.print(&Done { changed: added, what: what.to_owned(), unknown }, |done| done.what.clone());
    app.hands().ledger.close().await;
    Ok(Exit::Done)
}

async fn order(ledger: &Ledger, context: &Context, new: &[NewSuppression], detail: String) -> Result<u64, Failure> {
    let who = who();
    Ok(ledger.order_suppressions(new, Order { who: &who, at: context.clock.now() }, detail).await?)
}

/// Who of them stands in no table yet, which is also warned of: somebody may be suppressed ahead of time, and an id that was
/// mistyped keeps nobody safe.
///
/// # Errors
///
/// An openid of a mini program: nothing is ever sent to it, so that it would keep nobody safe.
async fn unknown<'a>(hands: &Hands, new: &'a [NewSuppression]) -> Result<Option<Vec<String>>, Failure> {
    let ids = |one: &'a NewSuppression| {
        let unionid = one.unionid.as_ref().map(|id| Asked::UnionId(id.as_str()));
        unionid.into_iter().chain(one.openid.as_ref().map(|id| Asked::OpenId(id.as_str())))
    };
    let asked: Vec<Asked<'a>> = new.iter().flat_map(ids).collect();
    match strangers(hands, &asked).await {
        Ok(Looked { strangers: unknown, of_miniprograms }) => {
            if let Some((id, table)) = of_miniprograms.first() {
                let others = match of_miniprograms.len() - 1 {
                    0 => String::new(),
                    more => format!(" (and {more} more)"),
                };
                return Err(Failure::Usage(format!(
                    "the openid {}{others} is one of a mini program (table {table}): messages go to the openid that an account gave, \
                     so nobody would be left out; name the person by unionid, which `lianbo explain ID` tells. Nobody is suppressed",
                    shortened(id)
                )));
            }
            if !unknown.is_empty() {
                tracing::warn!(unknown = unknown.len(), "{}", warning(&unknown, asked.len()));
            }
            Ok(Some(unknown))
        }
        Err(error) => {
            tracing::warn!(error = %error, "whether the tables know these ids could not be looked up");
            Ok(None)
        }
    }
}

fn warning(unknown: &[String], of: usize) -> String {
    let shown: Vec<String> = unknown.iter().take(SHOWN).map(|id| shortened(id)).collect();
    let more = if unknown.len() > SHOWN { ", …" } else { "" };
    let which = match of {
        1 => format!("the id {} is", shown.concat()),
        of => format!("{} of {of} ids ({}{more}) are", unknown.len(), shown.join(", ")),
    };
    format!("{which} in no table yet: whoever comes by it will not be sent to; `lianbo explain ID` finds a person")
}

fn described(new: &NewSuppression) -> String {
    let mut parts = Vec::new();
    parts.extend(new.unionid.as_ref().map(|id| format!("unionid {}", id.as_str())));
    parts.extend(new.openid.as_ref().map(|id| format!("openid {}", id.as_str())));
    parts.extend(new.account.as_ref().map(|account| format!("account {account}")));
    parts.extend(new.template_id.as_ref().map(|id| format!("template {}", id.as_str())));
    parts.push(new.reason.clone());
    parts.join(", ")
}

async fn remove(context: &Context, args: Remove) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let account = account(&settings, args.account.as_deref())?;
    let template = args.template.map(TemplateId::new);
    let person = args.person.unionid.or(args.person.openid).unwrap_or_default();
    let app = context.app(settings).await?;
    let ledger = &app.hands().ledger;
    let who = who();
    let order = Order { who: &who, at: context.clock.now() };
    let removed = ledger.order_unsuppress(&person, (account.as_ref(), template.as_ref()), order).await?;
    let what = if removed == 0 { "nothing of that person is suppressed" } else { "no longer suppressed" };
    context.print(&Done { changed: removed, what: what.to_owned(), unknown: None }, |done| done.what.clone());
    ledger.close().await;
    Ok(Exit::Done)
}

async fn list(context: &Context, args: List) -> Result<Exit, Failure> {
    let app = context.app_to_read().await?;
    let (ledger, zone) = (&app.hands().ledger, app.hands().settings.timezone);
    let found = ledger.list_suppressions(0, args.limit.saturating_add(1)).await?;
    ledger.close().await;
    let has_more = u64::try_from(found.len()).is_ok_and(|found| found > u64::from(args.limit));
    let lines: Vec<Line> = found
        .into_iter()
        .take(usize::try_from(args.limit).unwrap_or(usize::MAX))
        .map(|found| found.suppression)
        .map(|one| Line {
            unionid: one.unionid.map(|id| id.as_str().to_owned()),
            openid: one.openid.map(|id| id.as_str().to_owned()),
            account: one.account.map(|account| account.to_string()),
            template_id: one.template_id.map(|id| id.as_str().to_owned()),
            reason: one.reason,
            since: one.since,
            until: one.until,
        })
        .collect();
    context.print(&serde_json::json!({ "suppressions": &lines, "has_more": has_more }), |_| {
        if lines.is_empty() {
            return "nobody is suppressed".to_owned();
        }
        let rows = lines.iter().map(|line| {
            vec![
                line.unionid.clone().or_else(|| line.openid.clone()).unwrap_or_default(),
                line.account.clone().unwrap_or_else(|| "every".to_owned()),
                line.template_id.clone().unwrap_or_else(|| "every".to_owned()),
                local(line.since, zone),
                line.until.map_or_else(|| "for good".to_owned(), |until| local(until, zone)),
                line.reason.clone(),
            ]
        });
        let table = plain(&["person", "account", "template", "since", "until", "reason"], rows);
        if has_more { format!("{table}\nand more: --limit, or `lianbo sql \"from suppressions\"`") } else { table }
    });
    Ok(Exit::Done)
}

fn account(settings: &Settings, name: Option<&str>) -> Result<Option<AccountName>, Failure> {
    name.map(|name| find_account(settings, name).map(|account| account.name.clone())).transpose()
}

/// A date or a time of the workspace's wall clock.
fn moment(text: &str, zone: Tz) -> Result<Timestamp, String> {
    let text = text.trim();
    let wrong = || format!("`{text}` is no date: write 2026-12-31 or 2026-12-31 18:00");
    let local = chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M")
        .or_else(|_| chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S"))
        .or_else(|_| text.parse::<chrono::NaiveDate>().map(chrono::NaiveDateTime::from))
        .map_err(|_| wrong())?;
    local.and_local_timezone(zone).earliest().map(|at| at.to_utc()).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_its_beginning_where_the_workspace_is() {
        let zone = chrono_tz::Asia::Shanghai;
        let shown = |text| moment(text, zone).map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
        assert_eq!(shown("2026-12-31").unwrap(), "2026-12-30T16:00:00Z");
        assert_eq!(shown("2026-12-31 18:00").unwrap(), "2026-12-31T10:00:00Z");
        assert!(shown("31.12.2026").unwrap_err().contains("2026-12-31"));
    }
}

//! The demo in words and tables.

use std::fmt::Write;

use super::super::table::{grouped, plain};
use super::house::{Ended, House};
use super::tally::{Failed, Tally};
use super::{Changed, Kill};
use crate::domain::Counts;
use crate::redact::shortened;

const INFALLIBLE: &str = "writing to a String cannot fail";

pub fn opening(house: &House) -> String {
    let options = house.options();
    format!(
        "Lianbo, from beginning to end, in {}
A WeChat of its own listens on {}: {} followers.
The mini program hands over {} rows of {} users.",
        house.root.display(),
        house.simulator.base_url(),
        grouped(options.followers),
        grouped(house.export.rows),
        grouped(options.users),
    )
}

pub fn heading(number: u32, text: &str) -> String {
    format!("\n{number}. {text}\n")
}

pub fn stages(ended: &Ended) -> String {
    let rows = ended.stages.iter().map(|stage| {
        let calls = stage.api_calls.iter().map(|(name, calls)| format!("{} {name}", grouped(*calls)));
        let calls: Vec<String> = calls.collect();
        vec![
            stage.name.clone(),
            stage.status.clone(),
            grouped(stage.rows_out),
            format!("{:.1}", stage.seconds),
            calls.join(", "),
        ]
    });
    plain(&["stage", "is", "rows", "seconds", "calls of WeChat"], rows)
}

pub fn minds(changed: &Changed) -> String {
    let mut text = String::new();
    for openid in &changed.leavers {
        writeln!(text, "{} unfollows: last night's tables still have them", shortened(openid)).expect(INFALLIBLE);
    }
    for openid in &changed.refusers {
        writeln!(text, "{} refuses this template from now on", shortened(openid)).expect(INFALLIBLE);
    }
    text.trim_end().to_owned()
}

pub fn killed(kill: &Kill) -> String {
    let ledger = &kill.ledger;
    format!(
        "kill -9 {}: gone in the middle of a send
  in the inboxes by then   {}
  the ledger it left says  {} of {} sent, {} failed, {} pending (what was in flight among them)",
        kill.pid,
        grouped(kill.received),
        grouped(ledger.sent),
        grouped(ledger.recipients),
        grouped(ledger.failed),
        grouped(ledger.pending),
    )
}

/// From everybody to those who got the message.
pub fn funnel(nightly: &Ended, campaign: &Ended, house: &House, push: &Counts) -> String {
    let bound = nightly.stage("profiles").map_or(0, |stage| {
        let accounts = stage.detail["accounts"].as_array().into_iter().flatten();
        accounts.filter_map(|account| account["with_unionid"].as_u64()).sum()
    });
    let row = |what: &str, count: u64| vec![what.to_owned(), grouped(count)];
    let rows = [
        row("followers", nightly.rows_of("followers")),
        row("  of them with a unionid", bound),
        row("users of the mini program", nightly.rows_of("mall_users")),
        row("  of them followers by unionid", nightly.rows_of("identities")),
        row("recipients of the campaign", push.recipients),
        row("  sent", push.sent),
        row("  failed", push.failed),
        row("  skipped", push.skipped),
        row("  held", push.held),
        row("  unconfirmed", push.unconfirmed),
        row("  pending", push.pending),
    ];
    format!(
        "Run {} went on, at {} sends a second, and ended {:.1} s after it began\n\n{}",
        campaign.run_id,
        grouped(house.rate),
        campaign.seconds,
        plain(&["from everybody to those who got it", "people"], rows)
    )
}

pub fn failures(failures: &[Failed]) -> String {
    if failures.is_empty() {
        return "\nNobody failed.".to_owned();
    }
    let rows = failures.iter().map(|failed| {
        vec![
            failed.openid.clone(),
            failed.state.to_owned(),
            failed.errcode.map_or_else(String::new, |errcode| errcode.to_string()),
            failed.reason.clone().unwrap_or_default(),
        ]
    });
    format!("\n{}", plain(&["who got nothing", "is", "errcode", "because"], rows))
}

pub fn tally(tally: &Tally, wrong: &[String]) -> String {
    let row = |what: &str, simulator: u64, ledger: String| vec![what.to_owned(), grouped(simulator), ledger];
    let rows = [
        row("to be reached", tally.matchable, grouped(tally.ledger_recipients)),
        row("received once", tally.received_once, grouped(tally.ledger_sent)),
        row("received twice", tally.received_twice, String::new()),
        row("received nothing, for a reason", tally.received_nothing - tally.missed, grouped(tally.ledger_not_sent)),
        row("missed", tally.missed, String::new()),
    ];
    let mut text = plain(&["", "inboxes", "ledger"], rows);
    let repeats = grouped(tally.repeats_kept_off);
    writeln!(text, "\n{repeats} sends of the killed process were repeated under the same id, and delivered once.")
        .expect(INFALLIBLE);
    if wrong.is_empty() {
        text.push_str("Everybody once, nobody twice, nobody missed.");
    }
    for one in wrong {
        writeln!(text, "DOES NOT ADD UP: {one}").expect(INFALLIBLE);
    }
    text.trim_end().to_owned()
}

pub fn next(house: &House, seconds: f64) -> String {
    let options = house.options();
    let base = house.simulator.base_url();
    let port = base.rsplit(':').next().unwrap_or_default().to_owned();
    format!(
        "
That took {seconds:.0} s. What to type next:
  alias lianbo={}
  cd {}
  lianbo status
  lianbo push show campaign
  lianbo push failures campaign
  lianbo sql \"select state, count(*) from deliveries group by state\"
  lianbo coverage --by city
To run there again, in another terminal (this WeChat ends now):
  lianbo simulate --port {port} --seed {} --followers {} --users {}
Your own account: `lianbo init`, and README.md.",
        house.program.display(),
        house.root.display(),
        options.seed,
        options.followers,
        options.users,
    )
}

//! The tables as they stood at the end of a day: of each slice of a table the snapshot that was current then.
//!
//! A snapshot is what a run made of it: what events told after its walk is not laid over it. All tables of a run changed at
//! once, so that several tables of one day fit together. What the ledger feeds is kept as it is now alone, and cannot be
//! read as of a day.

use std::collections::BTreeSet;

use chrono::NaiveDate;

use super::QueryError;
use crate::clock::Timestamp;
use crate::domain::end_of_day;
use crate::domain::tables::{FOLLOWER_TAGS, MEMBERSHIPS};
use crate::ledger::KeptSnapshot;
use crate::stage::tables::{Visible, events::CHANGES};
use crate::stage::{Hands, StageError, live};

/// Days that are listed at most.
const LISTED: usize = 20;

/// What was visible at the end of `day` of the tables in `names`, as SQL spells them.
///
/// # Errors
///
/// [`QueryError::Sql`] for a day that has not come, a table that no day is kept of, and a day that is not kept.
pub(super) async fn visible_at<'a>(
    hands: &Hands,
    day: NaiveDate,
    names: impl Iterator<Item = &'a str>,
) -> Result<Visible, QueryError> {
    let zone = hands.settings.timezone;
    let today = hands.clock.now().with_timezone(&zone).date_naive();
    if day > today {
        return Err(refused(
            format!("--at {day} has not come: it is {today} in {zone}"),
            "name a day that is over; --at of today is the snapshots as they stand".to_owned(),
        ));
    }
    let at = end_of_day(day, zone);
    let then = hands.ledger.snapshots_at(at).await.map_err(StageError::from)?;
    let kept = hands.ledger.kept_snapshots().await.map_err(StageError::from)?;
    let dropped = hands.ledger.dropped_until().await.map_err(StageError::from)?;
    for name in names {
        let table = name.to_lowercase();
        if live::is_live(&table) && table != live::ERROR_CODES {
            return Err(refused(
                format!("`{table}` is kept by the ledger as it is now, not as it was on {day}"),
                "leave --at out and choose rows by their own times; tables with snapshots (`lianbo tables`) can be read \
                 as of a day"
                    .to_owned(),
            ));
        }
        for table in read_off(&table) {
            let own: Vec<&KeptSnapshot> =
                kept.iter().filter(|own| own.table.as_str().eq_ignore_ascii_case(table)).collect();
            let is_there = |slice: &str| {
                then.iter().any(|own| own.table.as_str().eq_ignore_ascii_case(table) && own.slice == slice)
            };
            let gone = dropped.iter().find(|gone| {
                gone.table.as_str().eq_ignore_ascii_case(table) && gone.until > at && !is_there(&gone.slice)
            });
            if gone.is_none() && (own.is_empty() || own.iter().any(|own| is_there(&own.slice))) {
                continue;
            }
            let why = match gone {
                Some(gone) if gone.slice.is_empty() => "what it was then was dropped by a vacuum".to_owned(),
                Some(gone) => format!("what it was then of {} was dropped by a vacuum", gone.slice),
                None => "that is before its first snapshot".to_owned(),
            };
            return Err(refused(format!("`{table}` cannot be read as of {day}: {why}"), days_there_are(&own, zone)));
        }
    }
    let mut visible = Visible::default();
    visible.add(then);
    Ok(visible)
}

/// `$run_at` of a question about a day: its end, or now while it lasts.
pub(super) fn moment(hands: &Hands, day: NaiveDate) -> Timestamp {
    end_of_day(day, hands.settings.timezone).min(hands.clock.now())
}

/// The tables whose snapshots a table is read from.
fn read_off(table: &str) -> Vec<&str> {
    match table {
        MEMBERSHIPS => vec!["followers", CHANGES],
        FOLLOWER_TAGS => vec!["profiles"],
        other => vec![other],
    }
}

fn days_there_are(kept: &[&KeptSnapshot], zone: chrono_tz::Tz) -> String {
    let days: BTreeSet<NaiveDate> = kept.iter().map(|own| own.published_at.with_timezone(&zone).date_naive()).collect();
    let Some(first) = days.first() else { return "no snapshot of it is kept".to_owned() };
    let listed: Vec<String> = days.iter().rev().take(LISTED).rev().map(NaiveDate::to_string).collect();
    let more = if days.len() > LISTED { format!("{first} … ") } else { String::new() };
    format!("its snapshots are of {more}{}; a day in between is as the snapshot before it", listed.join(", "))
}

fn refused(message: String, hint: String) -> QueryError {
    QueryError::Sql { message, offset: None, hint: Some(hint) }
}

//! `max_drop`: what a run made against what was there before, slice by slice.
//!
//! Each account's and each mini program's own rows are compared with its own of the last snapshot, so that a small one that
//! is lost does not hide behind a big one. A table of coverage never has fewer rows: there the rates are compared with
//! those of the last date before today.

use chrono::NaiveDate;

use super::PREVIOUS;
use crate::config::settings::StageKind;
use crate::domain::{Rows, Values};
use crate::engine::{EngineError, Param, Params, Session, quoted};

/// What of a table is compared.
#[derive(Debug, Clone, Copy)]
pub(super) enum Compared {
    /// Rows for each value of these columns together; without any the whole table.
    Rows {
        by: &'static [&'static str],
        /// A followers table keeps those who left: its size is that of the active ones.
        only_active: bool,
    },
    /// `match_rate` and `coverage_rate` of each account × mini program.
    Rates { today: NaiveDate },
}

impl Compared {
    pub fn of(kind: &StageKind, today: NaiveDate) -> Self {
        match kind {
            StageKind::ExtractFollowers(_) => Self::Rows { by: &["account"], only_active: true },
            StageKind::EnrichUnionids(_) => Self::Rows { by: &["account"], only_active: false },
            StageKind::LoadUsers(_) => Self::Rows { by: &["miniprogram"], only_active: false },
            StageKind::JoinIdentities(_) => Self::Rows { by: &["account", "miniprogram"], only_active: false },
            StageKind::MeasureCoverage(_) => Self::Rates { today },
            StageKind::Sql(_)
            | StageKind::MaterializeRecipients(_)
            | StageKind::PushTemplate(_)
            | StageKind::Publish(_) => Self::Rows { by: &[], only_active: false },
        }
    }

    /// The condition on rows that count.
    pub fn counted(self) -> &'static str {
        match self {
            Self::Rows { only_active: true, .. } => " where active",
            _ => "",
        }
    }

    /// What fell by more than `max_drop` of what it was, a text each.
    pub fn fallen(self, session: &Session, table: &str, max_drop: f64) -> Result<Vec<String>, EngineError> {
        let (sql, params) = match self {
            Self::Rows { by, .. } => (rows_sql(&quoted(table), by, self.counted()), Params::new()),
            Self::Rates { today } => {
                let params = Params::from([("today".to_owned(), Param::Date(today))]);
                (RATES.replace("{table}", &quoted(table)), params)
            }
        };
        let rows = session.query(&sql, &params)?;
        let fallen = (0..rows.len()).map(|row| Change::read(&rows, row)).filter(|change| change.is_more_than(max_drop));
        Ok(fallen.map(|change| self.tell(&change)).collect())
    }

    fn tell(self, change: &Change) -> String {
        let percent = change.share() * 100.0;
        match self {
            Self::Rows { only_active, .. } => {
                let what = if only_active { "active followers" } else { "rows" };
                let place = if change.slice.is_empty() { String::new() } else { format!("{}: ", change.slice) };
                format!("{place}{} {what} after {}, {percent:.1} % fewer", change.now, change.before)
            }
            Self::Rates { .. } => format!(
                "{}: {} {:.4} after {:.4} on {}, {percent:.1} % lower",
                change.slice, change.what, change.now, change.before, change.since
            ),
        }
    }
}

/// A figure before and now.
#[derive(Debug)]
struct Change {
    slice: String,
    what: String,
    since: String,
    before: f64,
    now: f64,
}

impl Change {
    fn read(rows: &Rows, row: usize) -> Self {
        let text = |place: usize| match &rows.columns[place].1 {
            Values::Text(values) => values[row].clone().unwrap_or_default(),
            _ => String::new(),
        };
        let number = |place: usize| match &rows.columns[place].1 {
            Values::Float(values) => values[row].unwrap_or(0.0),
            _ => 0.0,
        };
        Self { slice: text(0), what: text(1), since: text(2), before: number(3), now: number(4) }
    }

    /// Whether more is gone than this part of it, to within what a floating number can tell.
    fn is_more_than(&self, part: f64) -> bool {
        self.before > 0.0 && self.before - self.now > (part + 1e-9) * self.before
    }

    /// The part of it that is gone, 0 to 1; 0 where there was nothing or it grew.
    fn share(&self) -> f64 {
        if self.before > 0.0 { (1.0 - self.now / self.before).max(0.0) } else { 0.0 }
    }
}

fn rows_sql(table: &str, by: &[&str], counted: &str) -> String {
    let slice = if by.is_empty() { "''".to_owned() } else { format!("concat_ws(' × ', {})", by.join(", ")) };
    let sized = |table: &str| format!("select {slice} as slice, count(*) as size from {table}{counted} group by 1");
    format!(
        "select before.slice, '' as what, '' as since, cast(before.size as double) as size_before,
                cast(coalesce(made.size, 0) as double) as size_now
         from ({}) as before left join ({}) as made on made.slice = before.slice
         order by before.slice",
        sized(&quoted(PREVIOUS)),
        sized(table)
    )
}

/// A rate that has become NULL has nothing left to be a rate of: that is a fall to nothing.
const RATES: &str = "
with
rates as (
    select date, account, miniprogram, 'match_rate' as what, match_rate as rate from {table}
    union all
    select date, account, miniprogram, 'coverage_rate', coverage_rate from {table}
),
last_dates as (
    select account, miniprogram, max(date) as date from {table}
    where date < $today and account <> '*' and miniprogram <> '*' group by account, miniprogram
)
select concat_ws(' × ', made.account, made.miniprogram) as slice, made.what, cast(before.date as varchar) as since,
       coalesce(before.rate, 0) as rate_before, coalesce(made.rate, 0) as rate_now
from rates as made
join last_dates on last_dates.account = made.account and last_dates.miniprogram = made.miniprogram
join rates as before on before.account = made.account and before.miniprogram = made.miniprogram
 and before.what = made.what and before.date = last_dates.date
where made.date = $today
order by slice, made.what desc";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_of_exactly_what_may_go_is_none() {
        let drop = |before: f64, now: f64| {
            Change { slice: String::new(), what: String::new(), since: String::new(), before, now }.is_more_than(0.05)
        };
        assert!(!drop(1600.0, 1520.0) && !drop(0.0, 0.0) && !drop(10.0, 12.0));
        assert!(drop(1600.0, 1519.0) && drop(40_000_000.0, 37_999_999.0) && drop(1.0, 0.0));
    }
}

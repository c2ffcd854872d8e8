//! Coverage as it is shown: the newest day's table, why people do or do not match, the trend, and one segment.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::engine::text;
use crate::stage::Hands;
use crate::stage::query::{QueryError, records};

/// Days in the trend.
const TREND_DAYS: usize = 14;
/// Values of a segment that are shown one by one.
const SHOWN_VALUES: usize = 20;
/// Columns that a table of earlier days may be without.
const NOT_COUNTED_EARLIER: &str = "select cast(null as bigint) as not_asked, cast(null as bigint) as unreadable,
            cast(null as bigint) as reached_lately, cast(null as varchar) as snapshots where false";
/// The same of segments.
const NOT_COUNTED_BY_SEGMENT: &str = "select cast(null as bigint) as reached_lately where false";
/// All of them together.
const ALL: &str = "*";

/// The newest day's coverage.
#[derive(Debug, Serialize)]
pub struct CoverageView {
    pub date: NaiveDate,
    /// Account × mini program; the rows of all together stand only where there are several.
    pub coverage: Vec<CoverageRow>,
    pub match_report: Vec<MatchRow>,
    /// For each row of `coverage`, the last 14 days that were measured.
    pub trend: Vec<Trend>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CoverageRow {
    pub account: String,
    pub miniprogram: String,
    pub followers: u64,
    pub followers_with_unionid: u64,
    /// Followers whose profile was not asked for yet; `None` where it was measured before this was counted.
    pub not_asked: Option<u64>,
    /// Followers whose profile could not be read; `None` as above.
    pub unreadable: Option<u64>,
    pub users: u64,
    pub users_with_unionid: u64,
    pub matched: u64,
    pub reachable: u64,
    /// Reachable, and a message was delivered lately; `None` as above.
    pub reached_lately: Option<u64>,
    /// 0 to 1; `None` without users.
    pub coverage_rate: Option<f64>,
    /// 0 to 1; `None` without unionids.
    pub match_rate: Option<f64>,
    pub as_of: Option<Timestamp>,
    pub run_id: Option<String>,
    /// What it was measured on, as `table/slice@snapshot`; `None` as above.
    pub snapshots: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MatchRow {
    pub account: String,
    pub miniprogram: String,
    /// `follower` or `user`.
    pub side: String,
    pub reason: String,
    pub people: u64,
    /// Of its side, 0 to 1.
    pub share: Option<f64>,
    /// The same on the last 14 days that were measured, oldest first; 0 on a day without the reason.
    #[serde(default)]
    pub trend: Vec<PeopleDay>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeopleDay {
    pub date: NaiveDate,
    pub people: u64,
}

#[derive(Debug, Serialize)]
pub struct Trend {
    pub account: String,
    pub miniprogram: String,
    /// Oldest first.
    pub days: Vec<TrendDay>,
}

#[derive(Debug, Serialize)]
pub struct TrendDay {
    pub date: NaiveDate,
    pub users: u64,
    pub reachable: u64,
    pub coverage_rate: Option<f64>,
}

/// The newest day's coverage by one segment.
#[derive(Debug, Serialize)]
pub struct SegmentView {
    pub date: NaiveDate,
    pub segment: String,
    pub groups: Vec<SegmentGroup>,
}

/// The values of an account and mini program, most users first.
#[derive(Debug, Serialize)]
pub struct SegmentGroup {
    pub account: String,
    pub miniprogram: String,
    pub values: Vec<SegmentRow>,
    /// The values beyond the first 20, together.
    pub others: Option<Others>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SegmentRow {
    /// `None` where it is unknown.
    pub value: Option<String>,
    pub users: u64,
    pub matched: u64,
    pub reachable: u64,
    pub reached_lately: Option<u64>,
    pub coverage_rate: Option<f64>,
}

#[derive(Debug, Serialize)]
pub struct Others {
    /// How many values these are.
    pub values: usize,
    pub users: u64,
    pub matched: u64,
    pub reachable: u64,
    pub coverage_rate: Option<f64>,
}

#[derive(Deserialize)]
struct Measured {
    date: NaiveDate,
    #[serde(flatten)]
    row: CoverageRow,
}

/// The newest day's coverage with its report and trend; `None` before any was measured.
///
/// # Errors
///
/// [`QueryError`] when the tables cannot be read.
pub async fn coverage(hands: &Hands) -> Result<Option<CoverageView>, QueryError> {
    let sql = format!(
        "select date, account, miniprogram, followers, followers_with_unionid, not_asked, unreadable, users,
                users_with_unionid, matched, reachable, reached_lately, coverage_rate, match_rate, as_of, run_id, snapshots
         from ({NOT_COUNTED_EARLIER} union all by name select * from coverage)
         where date in (select distinct date from coverage order by date desc limit {TREND_DAYS})
         order by date, account = '*', account, miniprogram = '*', miniprogram"
    );
    let measured: Vec<Measured> = records(hands, &sql).await?;
    let Some(date) = measured.last().map(|newest| newest.date) else { return Ok(None) };
    let newest = measured.iter().filter(|measured| measured.date == date).map(|measured| measured.row.clone());
    let coverage = without_needless_sums(newest.collect());
    let trend = coverage.iter().map(|row| trend(row, &measured)).collect();
    let mut days: Vec<NaiveDate> = measured.iter().map(|measured| measured.date).collect();
    days.dedup();
    Ok(Some(CoverageView { date, coverage, match_report: match_report(hands, &days).await?, trend }))
}

/// With one account there is nothing to take together, nor with one mini program.
fn without_needless_sums(rows: Vec<CoverageRow>) -> Vec<CoverageRow> {
    let several = |name: fn(&CoverageRow) -> &str| {
        let mut single = rows.iter().map(name).filter(|name| *name != ALL);
        single.next().is_none_or(|first| single.any(|other| other != first))
    };
    let (accounts, miniprograms) = (several(|row| &row.account), several(|row| &row.miniprogram));
    rows.into_iter()
        .filter(|row| (accounts || row.account != ALL) && (miniprograms || row.miniprogram != ALL))
        .collect()
}

fn trend(of: &CoverageRow, measured: &[Measured]) -> Trend {
    let own = |row: &CoverageRow| row.account == of.account && row.miniprogram == of.miniprogram;
    let day = |measured: &Measured| TrendDay {
        date: measured.date,
        users: measured.row.users,
        reachable: measured.row.reachable,
        coverage_rate: measured.row.coverage_rate,
    };
    let days = measured.iter().filter(|measured| own(&measured.row)).map(day).collect();
    Trend { account: of.account.clone(), miniprogram: of.miniprogram.clone(), days }
}

#[derive(Deserialize)]
struct MatchMeasured {
    date: NaiveDate,
    #[serde(flatten)]
    row: MatchRow,
}

/// The report of the last of these days, each reason with its trend over all of them.
async fn match_report(hands: &Hands, days: &[NaiveDate]) -> Result<Vec<MatchRow>, QueryError> {
    let Some((first, last)) = days.first().zip(days.last()) else { return Ok(Vec::new()) };
    let sql = format!(
        "select date, account, miniprogram, side, reason, people,
                people / nullif(cast(sum(people) over (partition by date, account, miniprogram, side) as double), 0) as share
         from match_report where date between date '{first}' and date '{last}'
         order by account, miniprogram, side, people desc, reason"
    );
    let measured: Vec<MatchMeasured> = records(hands, &sql).await?;
    let newest = measured.iter().filter(|measured| measured.date == *last).map(|measured| measured.row.clone());
    Ok(newest.map(|row| MatchRow { trend: people_by_day(&row, &measured, days), ..row }).collect())
}

fn people_by_day(of: &MatchRow, measured: &[MatchMeasured], days: &[NaiveDate]) -> Vec<PeopleDay> {
    let key = |row: &MatchRow| [&row.account, &row.miniprogram, &row.side, &row.reason].map(String::clone);
    let own: BTreeMap<NaiveDate, u64> = measured
        .iter()
        .filter(|measured| key(&measured.row) == key(of))
        .map(|measured| (measured.date, measured.row.people))
        .collect();
    days.iter().map(|date| PeopleDay { date: *date, people: own.get(date).copied().unwrap_or(0) }).collect()
}

#[derive(Deserialize)]
struct SegmentMeasured {
    date: NaiveDate,
    account: String,
    miniprogram: String,
    #[serde(flatten)]
    row: SegmentRow,
}

/// The newest day's coverage by `segment`; `None` when that day has none.
///
/// # Errors
///
/// [`QueryError`] when the tables cannot be read.
pub async fn by_segment(hands: &Hands, segment: &str) -> Result<Option<SegmentView>, QueryError> {
    let sql = format!(
        "select date, account, miniprogram, value, users, matched, reachable, reached_lately, coverage_rate
         from ({NOT_COUNTED_BY_SEGMENT} union all by name select * from coverage_by_segment)
         where segment = {} and date = (select max(date) from coverage_by_segment)
         order by account, miniprogram, users desc, value nulls last",
        text(segment)
    );
    let measured: Vec<SegmentMeasured> = records(hands, &sql).await?;
    let Some(date) = measured.first().map(|first| first.date) else { return Ok(None) };
    let mut groups: BTreeMap<(String, String), Vec<SegmentRow>> = BTreeMap::new();
    for measured in measured {
        groups.entry((measured.account, measured.miniprogram)).or_default().push(measured.row);
    }
    let groups = groups.into_iter().map(|((account, miniprogram), mut values)| {
        let rest = values.split_off(values.len().min(SHOWN_VALUES));
        SegmentGroup { account, miniprogram, values, others: Others::of(&rest) }
    });
    Ok(Some(SegmentView { date, segment: segment.to_owned(), groups: groups.collect() }))
}

/// The segments that the newest day was measured by.
///
/// # Errors
///
/// [`QueryError`] when the tables cannot be read.
pub async fn segments(hands: &Hands) -> Result<Vec<String>, QueryError> {
    #[derive(Deserialize)]
    struct Segment {
        segment: String,
    }
    let sql = "select distinct segment from coverage_by_segment
               where date = (select max(date) from coverage_by_segment) order by segment";
    let segments: Vec<Segment> = records(hands, sql).await?;
    Ok(segments.into_iter().map(|segment| segment.segment).collect())
}

impl Others {
    fn of(rest: &[SegmentRow]) -> Option<Self> {
        if rest.is_empty() {
            return None;
        }
        let sum = |of: fn(&SegmentRow) -> u64| rest.iter().map(of).sum::<u64>();
        let (users, reachable) = (sum(|row| row.users), sum(|row| row.reachable));
        let matched = sum(|row| row.matched);
        Some(Self { values: rest.len(), users, matched, reachable, coverage_rate: share(reachable, users) })
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of people are far below 2^53")]
fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(account: &str, miniprogram: &str) -> CoverageRow {
        CoverageRow {
            account: account.into(),
            miniprogram: miniprogram.into(),
            followers: 10,
            followers_with_unionid: 9,
            not_asked: Some(1),
            unreadable: None,
            users: 20,
            users_with_unionid: 18,
            matched: 6,
            reachable: 5,
            reached_lately: Some(1),
            coverage_rate: Some(0.25),
            match_rate: None,
            as_of: None,
            run_id: None,
            snapshots: None,
        }
    }

    fn shown(rows: &[(&str, &str)]) -> Vec<(String, String)> {
        let rows = rows.iter().map(|(account, miniprogram)| row(account, miniprogram)).collect();
        without_needless_sums(rows).into_iter().map(|row| (row.account, row.miniprogram)).collect()
    }

    #[test]
    fn sums_over_one_account_or_one_mini_program_are_left_out() {
        let one = shown(&[("main", "mall"), ("main", "*"), ("*", "mall"), ("*", "*")]);
        assert_eq!(one, [("main".to_owned(), "mall".to_owned())]);
        let two = shown(&[("main", "mall"), ("main", "news"), ("main", "*"), ("*", "mall"), ("*", "news"), ("*", "*")]);
        assert_eq!(two.len(), 3);
        assert_eq!(two[2], ("main".to_owned(), "*".to_owned()));
    }

    #[test]
    fn the_others_share_is_of_their_own_users() {
        let value = |users, reachable| SegmentRow {
            value: None,
            users,
            matched: reachable,
            reachable,
            reached_lately: None,
            coverage_rate: None,
        };
        let others = Others::of(&[value(30, 3), value(10, 7)]).unwrap();
        assert_eq!((others.values, others.users, others.coverage_rate), (2, 40, Some(0.25)));
        assert!(Others::of(&[]).is_none());
    }
}

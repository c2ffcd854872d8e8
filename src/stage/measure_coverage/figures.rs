//! The figures of coverage as SQL over what was [gathered](super::gathered).
//!
//! Within one account and one mini program openids are counted; in a `*` row, people, who are unionids, and openids without
//! one. `evidence` holds who is suppressed and who was reached lately.

use std::path::PathBuf;

use chrono::NaiveDate;

use super::segments::{self, Segment};
use crate::clock::Timestamp;
use crate::engine::{EngineError, Param, Params, Session, TableSource, Written, quoted};
use crate::stage::StageError;
use crate::stage::join_identities::people::UsersTable;

/// Where it is known from who is suppressed and who was reached.
pub enum Evidence {
    /// The ledger's tables `suppressions` and `deliveries` as of `at`; written out to `target`, where there is one.
    Ledger { tables: [TableSource; 2], at: Timestamp, lately_from: Timestamp, target: Option<PathBuf> },
    /// What an earlier measurement wrote out, under the name `evidence_kept`.
    Kept(TableSource),
}

pub struct Figures {
    /// Under the name `followers_now`.
    pub followers: TableSource,
    /// Under the name `profiles_now`.
    pub profiles: TableSource,
    pub users: Vec<UsersTable>,
    pub evidence: Evidence,
    /// `_forgotten`, and the salt of its hashes, where anybody was.
    pub forgotten: Option<(TableSource, String)>,
    /// `coverage_before`, `match_report_before`, `coverage_by_segment_before`.
    pub before: [TableSource; 3],
    pub accounts: Vec<String>,
    pub miniprograms: Vec<String>,
    pub segments: Vec<Segment>,
    pub as_of: Timestamp,
    pub run_id: String,
    /// What was read, as `table/slice@id`.
    pub snapshots: String,
    pub today: NaiveDate,
    pub targets: [PathBuf; 3],
}

/// What was measured.
pub struct Measured {
    /// In the order of the stage's tables.
    pub written: [Written; 3],
    /// Of the evidence, where it was written out.
    pub evidence: Option<Written>,
    pub rows_in: u64,
    /// Followers whom the platform still names though they were forgotten: they count as nobody's reach.
    pub forgotten: u64,
}

impl Figures {
    /// Writes the three tables.
    pub fn write(&self, session: &Session) -> Result<Measured, StageError> {
        let forgotten = self.forgotten.as_ref().map(|(table, _)| table);
        let users = self.users.iter().map(|table| &table.source);
        for table in users.chain(&self.before).chain(forgotten).chain([&self.followers, &self.profiles]) {
            session.add_table(table)?;
        }
        let evidence = self.gather_evidence(session)?;
        let forgotten = self.gather(session)?;
        let params = Params::from([
            ("today".to_owned(), Param::Date(self.today)),
            ("as_of".to_owned(), Param::Timestamp(self.as_of)),
            ("run_id".to_owned(), Param::Text(self.run_id.clone())),
            ("snapshots".to_owned(), Param::Text(self.snapshots.clone())),
        ]);
        let rows_in = session.count(ROWS_IN, &Params::new())?;
        let [coverage, report, segments] = &self.targets;
        let written = [
            self.copy(session, COVERAGE, "coverage_before", (&params, coverage))?,
            self.copy(session, MATCH_REPORT, "match_report_before", (&params, report))?,
            self.copy(session, &self.by_segment(), "coverage_by_segment_before", (&params, segments))?,
        ];
        Ok(Measured { written, evidence, rows_in, forgotten })
    }

    fn copy(
        &self,
        session: &Session,
        sql: &str,
        before: &str,
        (params, target): (&Params, &PathBuf),
    ) -> Result<Written, EngineError> {
        let sql = format!("{sql}\nunion all by name\nselect * from {before} where date <> $today");
        session.copy(&sql, params, target)
    }

    fn gather_evidence(&self, session: &Session) -> Result<Option<Written>, StageError> {
        match &self.evidence {
            Evidence::Kept(kept) => {
                session.add_table(kept)?;
                session.run(&format!("create temp table evidence as select * from {}", quoted(&kept.name)))?;
                Ok(None)
            }
            Evidence::Ledger { tables, at, lately_from, target } => {
                for table in tables {
                    session.add_table(table)?;
                }
                let params = Params::from([
                    ("at".to_owned(), Param::Timestamp(*at)),
                    ("lately_from".to_owned(), Param::Timestamp(*lately_from)),
                ]);
                session.execute(EVIDENCE, &params)?;
                let all = "select * from evidence order by all";
                Ok(target.as_ref().map(|target| session.copy(all, &Params::new(), target)).transpose()?)
            }
        }
    }

    fn by_segment(&self) -> String {
        match segments::by_segment(&self.segments) {
            None => "select * from coverage_by_segment_before where false".to_owned(),
            Some(counted) => format!(
                "select $today as date, account, miniprogram, segment, value, users, matched, reachable, reached_lately,
                        reachable / nullif(cast(users as double), 0) as coverage_rate,
                        $as_of as as_of, $run_id as run_id, $snapshots as snapshots
                 from ({counted})"
            ),
        }
    }
}

/// A template that is refused is no loss of reach.
const EVIDENCE: &str = "
create temp table evidence as
select account, openid, unionid, 'suppressed' as what from suppressions
where template_id is null and since <= $at and (until is null or until > $at)
group by account, openid, unionid
union all
select account, openid, unionid, 'reached' as what from deliveries
where delivered = 'success' and not is_test and delivered_at > $lately_from and delivered_at <= $at
group by account, openid, unionid";

const ROWS_IN: &str = "
select cast(coalesce((select sum(people) from followers_by where account <> '*'), 0)
          + coalesce((select users from users_by where miniprogram = '*'), 0) as bigint)";

/// Openids within one account and one mini program, people in a `*` row.
const COVERAGE: &str = "
with
followers as (
    select account, sum(people) as followers, sum(if(missing is null, people, 0)) as followers_with_unionid,
           sum(if(missing = 'not_asked', people, 0)) as not_asked,
           sum(if(missing in ('error', 'quarantined'), people, 0)) as unreadable
    from followers_by group by account
),
users as (
    select *, users - with_unionid + unionids as persons from users_by
),
pairs as (
    select a.account, m.miniprogram, a.account = '*' or m.miniprogram = '*' as of_all
    from (select account from the_accounts union all select '*') as a
    cross join (select miniprogram from the_miniprograms union all select '*') as m
),
counted as (
    select pairs.account, pairs.miniprogram,
           coalesce(followers.followers, 0) as followers,
           coalesce(followers.followers_with_unionid, 0) as followers_with_unionid,
           coalesce(followers.not_asked, 0) as not_asked, coalesce(followers.unreadable, 0) as unreadable,
           coalesce(if(of_all, users.persons, users.users), 0) as users,
           coalesce(if(of_all, users.unionids, users.with_unionid), 0) as users_with_unionid,
           coalesce(if(of_all, ties.unionids, ties.users), 0) as matched,
           coalesce(if(of_all, ties.reachable, ties.users_reachable), 0) as reachable,
           coalesce(if(of_all, ties.reached, ties.users_reached), 0) as reached_lately
    from pairs
    left join followers on followers.account = pairs.account
    left join users on users.miniprogram = pairs.miniprogram
    left join ties on ties.account = pairs.account and ties.miniprogram = pairs.miniprogram
)
select $today as date, account, miniprogram, columns(* exclude (account, miniprogram))::bigint,
       reachable / nullif(cast(users as double), 0) as coverage_rate,
       matched / nullif(cast(users_with_unionid as double), 0) as match_rate,
       $as_of as as_of, $run_id as run_id, $snapshots as snapshots
from counted";

/// Of several who share a unionid one stands in `identities`, by the rule of `join_identities`; the others are a conflict. So
/// `matched` is the same number on both sides, and that of `identities`.
const MATCH_REPORT: &str = "
with
tied as (select * from ties where account <> '*' and miniprogram <> '*'),
both_sides as (
    select f.account, m.miniprogram, 'follower' as side, coalesce(f.missing, 'not_a_user') as reason,
           f.people - if(f.missing is null, coalesce(tied.followers, 0), 0) as people
    from followers_by as f cross join the_miniprograms as m
    left join tied on tied.account = f.account and tied.miniprogram = m.miniprogram
    where f.account <> '*'
    union all
    select a.account, u.miniprogram, 'user', unnest(['no_unionid', 'does_not_follow']),
           unnest([u.users - u.with_unionid, u.with_unionid - coalesce(tied.users, 0)])
    from users_by as u cross join the_accounts as a
    left join tied on tied.account = a.account and tied.miniprogram = u.miniprogram
    where u.miniprogram is distinct from '*'
    union all
    select account, miniprogram, 'follower', unnest(['matched', 'conflict']), unnest([unionids, followers - unionids])
    from tied semi join the_miniprograms using (miniprogram)
    union all
    select account, miniprogram, 'user', unnest(['matched', 'conflict']), unnest([unionids, users - unionids])
    from tied semi join the_accounts using (account)
)
select $today as date, account, miniprogram, side, reason, cast(people as bigint) as people,
       $as_of as as_of, $run_id as run_id, $snapshots as snapshots
from both_sides where people > 0";

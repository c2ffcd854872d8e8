//! The figures of coverage as SQL over two narrow tables: who follows, and who is a user.
//!
//! `f` holds a row per current follower: account, openid, unionid, why it is missing, and the person (unionid, else the
//! openid). `u` holds a row per user: mini program, openid, unionid, person. `um` holds a row per user and account, with what
//! the segments need. `evidence` holds who is suppressed and who was reached lately. Within one account and one mini program
//! openids are counted; in a `*` row, people.

use std::path::PathBuf;

use chrono::NaiveDate;

use super::segments::{self, Segment};
use crate::clock::Timestamp;
use crate::engine::{EngineError, Param, Params, Session, TableSource, Written, quoted, text};
use crate::stage::StageError;
use crate::stage::join_identities::people::{UsersTable, updated_at, users_sql};
use crate::stage::live::forgotten_sql;

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
        session.run(&self.gather())?;
        self.choose(session)?;
        let params = Params::from([
            ("today".to_owned(), Param::Date(self.today)),
            ("as_of".to_owned(), Param::Timestamp(self.as_of)),
            ("run_id".to_owned(), Param::Text(self.run_id.clone())),
            ("snapshots".to_owned(), Param::Text(self.snapshots.clone())),
        ]);
        let none = Params::new();
        let rows_in = session.count("select (select count(*) from f) + (select count(*) from u)", &none)?;
        let forgotten = session.count("select count(distinct person) from f where is_forgotten", &none)?;
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

    fn gather(&self) -> String {
        let profiles = segments::profile_columns(&self.segments, &self.profiles);
        let columns: String = profiles.iter().map(|(alias, sql)| format!(", {sql} as {alias}")).collect();
        let fields: Vec<String> = profiles.iter().map(|(alias, _)| format!("{alias} := f.{alias}")).collect();
        let (packed, taken) = if fields.is_empty() {
            (String::new(), [String::new(), String::new()])
        } else {
            // Of several followers with one unionid the one with the smallest openid speaks for all.
            let taken = |of: &str| profiles.iter().map(|(alias, _)| format!(", {of}{alias}")).collect::<String>();
            let nulls = profiles.iter().map(|(alias, _)| format!(", cast(null as varchar) as {alias}")).collect();
            (
                format!(", arg_min(struct_pack({}), f.openid) as profile", fields.join(", ")),
                [taken("fu.profile."), nulls],
            )
        };
        let users = segments::user_columns(&self.segments);
        let of_users: String = users.iter().map(|column| format!(", u.{}", quoted(&column.name))).collect();
        GATHER
            .replace("{users}", &users_sql(&self.users, &users))
            .replace("{profile_columns}", &columns)
            .replace("{profile_packed}", &packed)
            .replace("{profile_taken}", &taken[0])
            .replace("{profile_nulls}", &taken[1])
            .replace("{of_users}", &of_users)
            .replace("{is_forgotten}", &self.is_forgotten())
            .replace("{accounts}", &names("account", &self.accounts))
            .replace("{miniprograms}", &names("miniprogram", &self.miniprograms))
    }

    /// Looks closer only where a unionid stands twice on one side: two counts of tables that are there anyway tell.
    fn choose(&self, session: &Session) -> Result<(), StageError> {
        let doubled = session.count(DOUBLED, &Params::new())?;
        if doubled > 0 {
            session.run(&NOT_CHOSEN.replace("{users}", &users_sql(&self.users, &[updated_at()])))?;
        }
        Ok(())
    }

    /// A condition on a follower with the profile; no hash is made where nobody was forgotten.
    fn is_forgotten(&self) -> String {
        let Some((_, salt)) = &self.forgotten else { return "false".to_owned() };
        ["followers_now.openid", "profiles_now.unionid"].map(|id| forgotten_sql(salt, id)).join(" or ")
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

/// A table of configured names, so that an account without a follower still has its row.
fn names(column: &str, names: &[String]) -> String {
    if names.is_empty() {
        return format!("select cast(null as varchar) as {column} where false");
    }
    names.iter().map(|name| format!("select {} as {column}", text(name))).collect::<Vec<_>>().join(" union all ")
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

const GATHER: &str = "
create temp table the_accounts as {accounts};
create temp table the_miniprograms as {miniprograms};
create temp table f as
select followers_now.account, followers_now.openid, profiles_now.unionid,
       coalesce(profiles_now.unionid_missing, case when profiles_now.unionid is null then 'not_asked' end) as missing,
       coalesce(profiles_now.unionid, concat_ws('/', followers_now.account, followers_now.openid)) as person,
       {is_forgotten} as is_forgotten
       {profile_columns}
from followers_now
left join profiles_now on profiles_now.account = followers_now.account and profiles_now.openid = followers_now.openid
where followers_now.active;
create temp table u as
select *, coalesce(unionid, concat_ws('/', miniprogram, openid)) as person from ({users});
create temp table user_ids as
select miniprogram, unionid, count(*) as people from u where unionid is not null group by miniprogram, unionid;
create temp table not_chosen_f (account varchar, openid varchar);
create temp table not_chosen_u (miniprogram varchar, openid varchar);
-- One row per account and unionid: is there a follower to send to who is not suppressed for the whole account, nor was
-- forgotten; and did a message reach one lately?
create temp table fu as
select account, unionid, bool_or(can_send) as can_send, bool_or(can_send and was_reached) as was_reached
       {profile_packed}
from (
    select f.*, s.openid is null and s2.unionid is null and not f.is_forgotten as can_send,
           r.openid is not null or r2.unionid is not null as was_reached
    from f
    left join (select distinct openid, account from evidence where openid is not null and what = 'suppressed') as s
      on s.openid = f.openid and (s.account is null or s.account = f.account)
    left join (select distinct unionid, account from evidence where unionid is not null and what = 'suppressed') as s2
      on s2.unionid = f.unionid and (s2.account is null or s2.account = f.account)
    left join (select distinct openid, account from evidence where openid is not null and what = 'reached') as r
      on r.openid = f.openid and r.account = f.account
    left join (select distinct unionid, account from evidence where unionid is not null and what = 'reached') as r2
      on r2.unionid = f.unionid and r2.account = f.account
    where f.unionid is not null
) as f
group by account, unionid;
create temp table fu_all as
select unionid, bool_or(can_send) as can_send, bool_or(was_reached) as was_reached from fu group by unionid;
-- Each user's match in each account, and in any of them.
create temp table um as
select the_accounts.account, u.miniprogram, u.openid, u.unionid, u.person,
       fu.unionid is not null as is_matched, coalesce(fu.can_send, false) as is_reachable,
       coalesce(fu.was_reached, false) as is_reached
       {of_users} {profile_taken}
from u cross join the_accounts
left join fu on fu.account = the_accounts.account and fu.unionid = u.unionid
union all
select '*', u.miniprogram, u.openid, u.unionid, u.person,
       fu_all.unionid is not null, coalesce(fu_all.can_send, false), coalesce(fu_all.was_reached, false)
       {of_users} {profile_nulls}
from u left join fu_all on fu_all.unionid = u.unionid;
";

/// How many stand beside another with the same unionid.
const DOUBLED: &str = "
select (select count(unionid) from f) - (select count(*) from fu)
     + (select coalesce(sum(people), 0) - count(*) from user_ids)";

const COVERAGE: &str = "
with
followers_by as (
    select account, count(*) as followers, count(unionid) as followers_with_unionid,
           count(case when missing = 'not_asked' then 1 end) as not_asked,
           count(case when missing in ('error', 'quarantined') then 1 end) as unreadable
    from f group by account
    union all
    select '*', count(distinct person), count(distinct unionid),
           count(distinct case when missing = 'not_asked' then person end),
           count(distinct case when missing in ('error', 'quarantined') then person end)
    from f
),
users_by as (
    select account, miniprogram, count(*) as users, count(unionid) as users_with_unionid,
           count(case when is_matched then 1 end) as matched, count(case when is_reachable then 1 end) as reachable,
           count(case when is_reached then 1 end) as reached_lately
    from um where account <> '*' group by account, miniprogram
    union all
    select account, '*', count(distinct person), count(distinct unionid),
           count(distinct case when is_matched then unionid end), count(distinct case when is_reachable then unionid end),
           count(distinct case when is_reached then unionid end)
    from um group by account
    union all
    select '*', miniprogram, count(distinct person), count(distinct unionid),
           count(distinct case when is_matched then unionid end), count(distinct case when is_reachable then unionid end),
           count(distinct case when is_reached then unionid end)
    from um where account = '*' group by miniprogram
),
pairs as (
    select a.account, m.miniprogram
    from (select account from the_accounts union all select '*') as a
    cross join (select miniprogram from the_miniprograms union all select '*') as m
)
select $today as date, pairs.account, pairs.miniprogram,
       coalesce(followers_by.followers, 0) as followers,
       coalesce(followers_by.followers_with_unionid, 0) as followers_with_unionid,
       coalesce(followers_by.not_asked, 0) as not_asked, coalesce(followers_by.unreadable, 0) as unreadable,
       coalesce(users_by.users, 0) as users, coalesce(users_by.users_with_unionid, 0) as users_with_unionid,
       coalesce(users_by.matched, 0) as matched, coalesce(users_by.reachable, 0) as reachable,
       coalesce(users_by.reached_lately, 0) as reached_lately,
       users_by.reachable / nullif(cast(users_by.users as double), 0) as coverage_rate,
       users_by.matched / nullif(cast(users_by.users_with_unionid as double), 0) as match_rate,
       $as_of as as_of, $run_id as run_id, $snapshots as snapshots
from pairs
left join followers_by on followers_by.account = pairs.account
left join users_by on users_by.account = pairs.account and users_by.miniprogram = pairs.miniprogram";

/// Whoever shares a unionid and was not chosen (`join_identities`) is a conflict, so that `matched` is the same number on both
/// sides, and that of `identities`.
const MATCH_REPORT: &str = "
with
follower_reasons as (
    select f.account, the_miniprograms.miniprogram,
           case when f.unionid is null then f.missing
                when user_ids.unionid is null then 'not_a_user'
                when not_chosen_f.openid is not null then 'conflict' else 'matched' end as reason
    from f cross join the_miniprograms
    left join user_ids on user_ids.miniprogram = the_miniprograms.miniprogram and user_ids.unionid = f.unionid
    left join not_chosen_f on not_chosen_f.account = f.account and not_chosen_f.openid = f.openid
),
user_reasons as (
    select um.account, um.miniprogram,
           case when um.unionid is null then 'no_unionid'
                when not um.is_matched then 'does_not_follow'
                when not_chosen_u.openid is not null then 'conflict' else 'matched' end as reason
    from um
    left join not_chosen_u on not_chosen_u.miniprogram = um.miniprogram and not_chosen_u.openid = um.openid
    where um.account <> '*'
)
select $today as date, account, miniprogram, 'follower' as side, reason, count(*) as people,
       $as_of as as_of, $run_id as run_id, $snapshots as snapshots
from follower_reasons group by account, miniprogram, reason
union all
select $today as date, account, miniprogram, 'user' as side, reason, count(*) as people,
       $as_of as as_of, $run_id as run_id, $snapshots as snapshots
from user_reasons group by account, miniprogram, reason";

/// Of those who share a unionid all but the one who stands in `identities`, by the rule of `join_identities`.
const NOT_CHOSEN: &str = "
insert into not_chosen_f
select account, openid from (
    select f.account, f.openid, row_number() over (
               partition by f.account, f.unionid order by profiles_now.subscribe_time desc nulls last, f.openid
           ) as place
    from f
    join (select account, unionid from f where unionid is not null group by account, unionid having count(*) > 1) as doubled
      on doubled.account = f.account and doubled.unionid = f.unionid
    join profiles_now on profiles_now.account = f.account and profiles_now.openid = f.openid
) where place > 1;
insert into not_chosen_u
select miniprogram, openid from (
    select users.miniprogram, users.openid, row_number() over (
               partition by users.miniprogram, users.unionid order by users.updated_at desc nulls last, users.openid
           ) as place
    from ({users}) as users
    join user_ids on user_ids.miniprogram = users.miniprogram and user_ids.unionid = users.unionid and user_ids.people > 1
) where place > 1;
";

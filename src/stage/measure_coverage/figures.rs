//! The figures of coverage as SQL over two narrow tables: who follows, and who is a user.
//!
//! `f` holds a row per current follower: account, openid, unionid, why it is missing, and the person (unionid, else the
//! openid). `u` holds a row per user: mini program, openid, unionid, person, and the segments. Within one account and one
//! mini program openids are counted; in a `*` row, people.

use std::path::PathBuf;

use chrono::NaiveDate;

use crate::clock::Timestamp;
use crate::engine::{EngineError, Param, Params, Session, TableSource, Written, quoted, text};
use crate::stage::StageError;
use crate::stage::live::forgotten_sql;

/// A segment: a column of some users tables, else of profiles.
pub struct SegmentColumn {
    pub name: String,
    /// Empty: a column of profiles.
    pub in_users: Vec<String>,
}

pub struct Figures {
    /// Under the name `followers_now`.
    pub followers: TableSource,
    /// Under the name `profiles_now`.
    pub profiles: TableSource,
    pub users: Vec<TableSource>,
    pub suppressions: TableSource,
    /// `_forgotten`, and the salt of its hashes, where anybody was.
    pub forgotten: Option<(TableSource, String)>,
    /// `coverage_before`, `match_report_before`, `coverage_by_segment_before`.
    pub before: [TableSource; 3],
    pub accounts: Vec<String>,
    pub miniprograms: Vec<String>,
    pub segments: Vec<SegmentColumn>,
    pub as_of: Timestamp,
    pub run_id: String,
    pub today: NaiveDate,
    pub targets: [PathBuf; 3],
}

/// What was measured.
pub struct Measured {
    /// In the order of the stage's tables.
    pub written: [Written; 3],
    pub rows_in: u64,
    /// Followers whom the platform still names though they were forgotten: they count as nobody's reach.
    pub forgotten: u64,
}

impl Figures {
    /// Writes the three tables.
    pub fn write(&self, session: &Session) -> Result<Measured, StageError> {
        let forgotten = self.forgotten.as_ref().map(|(table, _)| table);
        let known = self.users.iter().chain(&self.before).chain(forgotten);
        for table in known.chain([&self.followers, &self.profiles, &self.suppressions]) {
            session.add_table(table)?;
        }
        session.run(&self.gather())?;
        let params = Params::from([
            ("today".to_owned(), Param::Date(self.today)),
            ("as_of".to_owned(), Param::Timestamp(self.as_of)),
            ("run_id".to_owned(), Param::Text(self.run_id.clone())),
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
        Ok(Measured { written, rows_in, forgotten })
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

    fn gather(&self) -> String {
        let users: Vec<String> = self
            .users
            .iter()
            .map(|table| {
                let segments: String = self
                    .segments
                    .iter()
                    .filter(|segment| !segment.in_users.is_empty())
                    .map(|segment| {
                        let column = quoted(&segment.name);
                        if segment.in_users.contains(&table.name) {
                            format!(", cast({column} as varchar) as {column}")
                        } else {
                            format!(", cast(null as varchar) as {column}")
                        }
                    })
                    .collect();
                format!("select miniprogram, openid, unionid{segments} from {}", quoted(&table.name))
            })
            .collect();
        let user_segments: String = self
            .segments
            .iter()
            .filter(|segment| !segment.in_users.is_empty())
            .map(|segment| format!(", cast(null as varchar) as {}", quoted(&segment.name)))
            .collect();
        let users = if users.is_empty() {
            format!(
                "select cast(null as varchar) as miniprogram, cast(null as varchar) as openid,
                 cast(null as varchar) as unionid{user_segments} where false"
            )
        } else {
            users.join(" union all ")
        };
        let profile_segments: String = self
            .segments
            .iter()
            .filter(|segment| segment.in_users.is_empty())
            .map(|segment| format!(", cast(profiles_now.{0} as varchar) as {0}", quoted(&segment.name)))
            .collect();
        GATHER
            .replace("{users}", &users)
            .replace("{profile_segments}", &profile_segments)
            .replace("{is_forgotten}", &self.is_forgotten())
            .replace("{accounts}", &names("account", &self.accounts))
            .replace("{miniprograms}", &names("miniprogram", &self.miniprograms))
    }

    /// A condition on a follower with the profile; no hash is made where nobody was forgotten.
    fn is_forgotten(&self) -> String {
        let Some((_, salt)) = &self.forgotten else { return "false".to_owned() };
        ["followers_now.openid", "profiles_now.unionid"].map(|id| forgotten_sql(salt, id)).join(" or ")
    }

    fn by_segment(&self) -> String {
        if self.segments.is_empty() {
            return "select * from coverage_by_segment_before where false".to_owned();
        }
        let of_segments: Vec<String> = self
            .segments
            .iter()
            .map(|segment| {
                let (from, column) = if segment.in_users.is_empty() {
                    (SEGMENT_OF_PROFILES, format!("profile.{}", quoted(&segment.name)))
                } else {
                    (SEGMENT_OF_USERS, format!("u.{}", quoted(&segment.name)))
                };
                from.replace("{segment}", &text(&segment.name)).replace("{value}", &column)
            })
            .collect();
        format!(
            "select date, account, miniprogram, segment, value, users, matched, reachable,
                    reachable / nullif(cast(users as double), 0) as coverage_rate
             from ({})",
            of_segments.join(" union all ")
        )
    }
}

/// A table of configured names, so that an account without a follower still has its row.
fn names(column: &str, names: &[String]) -> String {
    if names.is_empty() {
        return format!("select cast(null as varchar) as {column} where false");
    }
    names.iter().map(|name| format!("select {} as {column}", text(name))).collect::<Vec<_>>().join(" union all ")
}

const GATHER: &str = "
create temp table the_accounts as {accounts};
create temp table the_miniprograms as {miniprograms};
create temp table f as
select followers_now.account, followers_now.openid, profiles_now.unionid,
       coalesce(profiles_now.unionid_missing, case when profiles_now.unionid is null then 'not_asked' end) as missing,
       coalesce(profiles_now.unionid, concat_ws('/', followers_now.account, followers_now.openid)) as person,
       {is_forgotten} as is_forgotten
       {profile_segments}
from followers_now
left join profiles_now on profiles_now.account = followers_now.account and profiles_now.openid = followers_now.openid
where followers_now.active;
create temp table u as
select *, coalesce(unionid, concat_ws('/', miniprogram, openid)) as person from ({users});
-- One row per account and unionid: is there a follower to send to who is not suppressed for the whole account, nor was forgotten?
create temp table fu as
select f.account, f.unionid, bool_or(s.openid is null and s2.unionid is null and not f.is_forgotten) as can_send
from f
left join (
    select openid, account from suppressions
    where openid is not null and template_id is null
    group by openid, account
) as s on s.openid = f.openid and (s.account is null or s.account = f.account)
left join (
    select unionid, account from suppressions
    where unionid is not null and template_id is null
    group by unionid, account
) as s2 on s2.unionid = f.unionid and (s2.account is null or s2.account = f.account)
where f.unionid is not null
group by f.account, f.unionid;
create temp table fu_all as
select unionid, bool_or(can_send) as can_send from fu group by unionid;
-- Each user's match in each account, and in any of them.
create temp table um as
select the_accounts.account, u.miniprogram, u.openid, u.unionid, u.person,
       fu.unionid is not null as is_matched, coalesce(fu.can_send, false) as is_reachable
from u cross join the_accounts
left join fu on fu.account = the_accounts.account and fu.unionid = u.unionid
union all
select '*', u.miniprogram, u.openid, u.unionid, u.person,
       fu_all.unionid is not null, coalesce(fu_all.can_send, false)
from u left join fu_all on fu_all.unionid = u.unionid;
";

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
           count(case when is_matched then 1 end) as matched, count(case when is_reachable then 1 end) as reachable
    from um where account <> '*' group by account, miniprogram
    union all
    select account, '*', count(distinct person), count(distinct unionid),
           count(distinct case when is_matched then unionid end), count(distinct case when is_reachable then unionid end)
    from um group by account
    union all
    select '*', miniprogram, count(distinct person), count(distinct unionid),
           count(distinct case when is_matched then unionid end), count(distinct case when is_reachable then unionid end)
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
       users_by.reachable / nullif(cast(users_by.users as double), 0) as coverage_rate,
       users_by.matched / nullif(cast(users_by.users_with_unionid as double), 0) as match_rate,
       $as_of as as_of, $run_id as run_id
from pairs
left join followers_by on followers_by.account = pairs.account
left join users_by on users_by.account = pairs.account and users_by.miniprogram = pairs.miniprogram";

const MATCH_REPORT: &str = "
with
user_ids as (
    select miniprogram, unionid from u where unionid is not null group by miniprogram, unionid
),
follower_reasons as (
    select f.account, the_miniprograms.miniprogram,
           case when f.unionid is null then f.missing
                when user_ids.unionid is not null then 'matched' else 'not_a_user' end as reason
    from f cross join the_miniprograms
    left join user_ids on user_ids.miniprogram = the_miniprograms.miniprogram and user_ids.unionid = f.unionid
),
user_reasons as (
    select account, miniprogram,
           case when unionid is null then 'no_unionid' when is_matched then 'matched' else 'does_not_follow' end as reason
    from um where account <> '*'
)
select $today as date, account, miniprogram, 'follower' as side, reason, count(*) as people
from follower_reasons group by account, miniprogram, reason
union all
select $today as date, account, miniprogram, 'user' as side, reason, count(*) as people
from user_reasons group by account, miniprogram, reason";

const SEGMENT_OF_USERS: &str = "
select $today as date, um.account, um.miniprogram, {segment} as segment, {value} as value, count(*) as users,
       count(case when um.is_matched then 1 end) as matched, count(case when um.is_reachable then 1 end) as reachable
from um
join u on u.miniprogram = um.miniprogram and u.openid = um.openid
where um.account <> '*'
group by um.account, um.miniprogram, {value}";

const SEGMENT_OF_PROFILES: &str = "
select $today as date, um.account, um.miniprogram, {segment} as segment, {value} as value, count(*) as users,
       count(case when um.is_matched then 1 end) as matched, count(case when um.is_reachable then 1 end) as reachable
from um
left join (
    select * from (
        select *, row_number() over (partition by account, unionid order by openid) as one from f where unionid is not null
    ) where one = 1
) as profile on profile.account = um.account and profile.unionid = um.unionid
where um.account <> '*'
group by um.account, um.miniprogram, {value}";

//! The figures of coverage as SQL over two narrow tables: who follows, and who is a user, each unionid once.
//!
//! `fu` holds a row per account and unionid with how many followers share it, and per reason why there is none; `uu` holds a
//! row per mini program and unionid with how many users share it. `fu_all` and `uu_all` are the same over all accounts and
//! all mini programs. What both sides have in common stands in `ties`, and every figure is a sum over these: within one
//! account and one mini program openids are counted; in a `*` row, people, who are unionids, and openids without one.
//! Only segments look at each user (`um`). `evidence` holds who is suppressed and who was reached lately.

use std::path::PathBuf;

use chrono::NaiveDate;

use super::segments::{self, Segment};
use crate::clock::Timestamp;
use crate::engine::{EngineError, Param, Params, Session, TableSource, Written, quoted, text};
use crate::stage::StageError;
use crate::stage::join_identities::people::{UsersTable, users_sql};
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
        self.gather(session)?;
        let params = Params::from([
            ("today".to_owned(), Param::Date(self.today)),
            ("as_of".to_owned(), Param::Timestamp(self.as_of)),
            ("run_id".to_owned(), Param::Text(self.run_id.clone())),
            ("snapshots".to_owned(), Param::Text(self.snapshots.clone())),
        ]);
        let none = Params::new();
        let rows_in = session.count(ROWS_IN, &none)?;
        let forgotten = session.count(FORGOTTEN, &none)?;
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

    fn gather(&self, session: &Session) -> Result<(), StageError> {
        let names = NAMES
            .replace("{accounts}", &names("account", &self.accounts))
            .replace("{miniprograms}", &names("miniprogram", &self.miniprograms));
        session.run(&names)?;
        let heard =
            |what: &str| session.count(&format!("select count(*) from evidence where what = '{what}'"), &Params::new());
        session.run(&self.followers_sql((heard("suppressed")? > 0, heard("reached")? > 0)))?;
        session.run(&USERS.replace("{users}", &users_sql(&self.users, &[])))?;
        let several = |of: &str, table: &str| {
            Ok::<_, EngineError>(
                session.count(&format!("select count(distinct {of}) from {table}"), &Params::new())? > 1,
            )
        };
        let sides = [
            Side::of("fu", several("account", "fu")?, FOLLOWERS_OF_ALL),
            Side::of("uu", several("miniprogram", "uu")?, USERS_OF_ALL),
        ];
        for side in &sides {
            session.run(&side.all)?;
        }
        session.run(&ties_sql(&sides))?;
        Ok(())
    }

    /// One row per account and unionid: is there a follower to send to who is not suppressed for the whole account, nor was
    /// forgotten; and did a message reach one lately? What nobody is needs no look at each follower.
    fn followers_sql(&self, (has_suppressed, has_reached): (bool, bool)) -> String {
        let profiles = segments::profile_columns(&self.segments, &self.profiles);
        let fields: Vec<String> = profiles.iter().map(|(alias, sql)| format!("{alias} := {sql}")).collect();
        // Of several followers with one unionid the one with the smallest openid speaks for all.
        let packed = if fields.is_empty() {
            String::new()
        } else {
            format!(", arg_min(struct_pack({}), followers_now.openid) as profile", fields.join(", "))
        };
        let is_suppressed = if has_suppressed { "s.openid is not null or s2.unionid is not null" } else { "false" };
        let was_reached = if has_reached { "r.openid is not null or r2.unionid is not null" } else { "false" };
        let joins = [(has_suppressed, SUPPRESSED), (has_reached, REACHED)];
        let joins: String = joins.iter().filter(|(has, _)| *has).map(|(_, join)| *join).collect();
        FOLLOWERS
            .replace("{profile}", &packed)
            .replace("{joins}", &joins)
            .replace("{is_forgotten}", &self.is_forgotten())
            .replace("{is_suppressed}", is_suppressed)
            .replace("{was_reached}", was_reached)
    }

    /// A condition on a follower with the profile; no hash is made where nobody was forgotten.
    fn is_forgotten(&self) -> String {
        let Some((_, salt)) = &self.forgotten else { return "false".to_owned() };
        ["followers_now.openid", "profiles_now.unionid"].map(|id| forgotten_sql(salt, id)).join(" or ")
    }

    /// Each user's match in each account, with what the segments need.
    fn users_matched(&self) -> String {
        let users = segments::user_columns(&self.segments);
        let of_users: String = users.iter().map(|column| format!(", u.{}", quoted(&column.name))).collect();
        let profiles = segments::profile_columns(&self.segments, &self.profiles);
        let taken: String = profiles.iter().map(|(alias, _)| format!(", fu.profile.{alias}")).collect();
        format!(
            "select the_accounts.account, u.miniprogram, fu.unionid is not null as is_matched,
                    coalesce(fu.can_send, false) as is_reachable, coalesce(fu.was_reached, false) as is_reached
                    {of_users} {taken}
             from ({}) as u cross join the_accounts
             left join fu on fu.account = the_accounts.account and fu.unionid = u.unionid",
            users_sql(&self.users, &users)
        )
    }

    fn by_segment(&self) -> String {
        match segments::by_segment(&self.segments, &self.users_matched()) {
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

const NAMES: &str = "
create temp table the_accounts as {accounts};
create temp table the_miniprograms as {miniprograms}";

const FOLLOWERS: &str = "
create temp table fu as
select followers_now.account, profiles_now.unionid,
       case when profiles_now.unionid is null then coalesce(profiles_now.unionid_missing, 'not_asked') end as missing,
       count(*) as people, count(case when {is_forgotten} then 1 end) as forgotten,
       bool_or(not ({is_suppressed} or {is_forgotten})) as can_send,
       bool_or(not ({is_suppressed} or {is_forgotten}) and ({was_reached})) as was_reached
       {profile}
from followers_now
left join profiles_now on profiles_now.account = followers_now.account and profiles_now.openid = followers_now.openid
{joins}
where followers_now.active
group by all";

/// A person who is suppressed both for the account and for all is one line: a follower who met two would count twice.
const SUPPRESSED: &str = "
left join (
    select distinct evidence.openid, a.account
    from evidence join (select distinct account from followers_now) as a
      on evidence.account is null or evidence.account = a.account
    where evidence.openid is not null and what = 'suppressed'
) as s on s.openid = followers_now.openid and s.account = followers_now.account
left join (
    select distinct evidence.unionid, a.account
    from evidence join (select distinct account from followers_now) as a
      on evidence.account is null or evidence.account = a.account
    where evidence.unionid is not null and what = 'suppressed'
) as s2 on s2.unionid = profiles_now.unionid and s2.account = followers_now.account";

const REACHED: &str = "
left join (select distinct openid, account from evidence where openid is not null and what = 'reached') as r
  on r.openid = followers_now.openid and r.account = followers_now.account
left join (select distinct unionid, account from evidence where unionid is not null and what = 'reached') as r2
  on r2.unionid = profiles_now.unionid and r2.account = followers_now.account";

const FOLLOWERS_OF_ALL: &str = "
select '*' as account, unionid, missing, sum(people) as people, bool_or(can_send) as can_send,
       bool_or(was_reached) as was_reached
from fu group by unionid, missing";

const USERS: &str = "
create temp table uu as
select miniprogram, unionid, count(*) as people from ({users}) group by miniprogram, unionid";

const USERS_OF_ALL: &str = "select '*' as miniprogram, unionid, sum(people) as people from uu group by unionid";

/// A side of the match, and the same over all accounts or all mini programs.
struct Side {
    each: &'static str,
    /// Of several: then `all` makes a table of its own.
    has_several: bool,
    all: String,
}

impl Side {
    fn of(each: &'static str, has_several: bool, all: &str) -> Self {
        // Of one alone every unionid stands once already.
        let columns = if each == "fu" {
            "'*' as account, * exclude (account)"
        } else {
            "'*' as miniprogram, * exclude (miniprogram)"
        };
        let all = if has_several {
            format!("create temp table {each}_all as {all}")
        } else {
            format!("create temp view {each}_all as select {columns} from {each}")
        };
        Self { each, has_several, all }
    }
}

/// What both sides have in common, by account (and `*`) and mini program (and `*`): unionids, followers and users that share
/// them, and how many can be reached. Where one side has one name alone, what is true of it is true of all.
fn ties_sql(sides: &[Side; 2]) -> String {
    let [followers, users] = sides;
    let mut sql =
        format!("create temp table ties as {}", TIES.replace("{fu}", followers.each).replace("{uu}", users.each));
    let of_all = |side: &Side| side.has_several.then(|| format!("{}_all", side.each));
    let (fu_all, uu_all) = (of_all(followers), of_all(users));
    let counted = |fu: &str, uu: &str| format!(";\ninsert into ties {}", TIES.replace("{fu}", fu).replace("{uu}", uu));
    let copied =
        |column: &str, of: &str| format!(";\ninsert into ties select * replace ('*' as {column}) from ties where {of}");
    sql += &match &fu_all {
        Some(fu_all) => counted(fu_all, users.each),
        None => copied("account", "account <> '*'"),
    };
    sql += &match &uu_all {
        Some(uu_all) => {
            counted(followers.each, uu_all)
                + &match &fu_all {
                    Some(fu_all) => counted(fu_all, uu_all),
                    None => copied("account", "account <> '*' and miniprogram = '*'"),
                }
        }
        None => copied("miniprogram", "miniprogram <> '*'"),
    };
    sql
}

const TIES: &str = "
select fu.account, uu.miniprogram, count(*) as unionids, sum(fu.people) as followers, sum(uu.people) as users,
       sum(case when fu.can_send then uu.people else 0 end) as users_reachable,
       sum(case when fu.was_reached then uu.people else 0 end) as users_reached,
       count(case when fu.can_send then 1 end) as reachable, count(case when fu.was_reached then 1 end) as reached
from {fu} as fu join {uu} as uu on uu.unionid = fu.unionid
group by fu.account, uu.miniprogram";

const ROWS_IN: &str = "
select cast(coalesce((select sum(people) from fu), 0) + coalesce((select sum(people) from uu), 0) as bigint)";

/// People who were forgotten and follow again.
const FORGOTTEN: &str = "
select cast(count(distinct unionid) + coalesce(sum(case when unionid is null then forgotten end), 0) as bigint)
from fu where forgotten > 0";

/// Openids within one account and one mini program, people in a `*` row.
const COVERAGE: &str = "
with
followers_by as (
    select account, sum(people) as followers, sum(case when unionid is not null then people else 0 end) as followers_with_unionid,
           sum(case when missing = 'not_asked' then people else 0 end) as not_asked,
           sum(case when missing in ('error', 'quarantined') then people else 0 end) as unreadable
    from fu group by account
    union all
    select account, count(unionid) + coalesce(sum(case when unionid is null then people end), 0), count(unionid),
           sum(case when missing = 'not_asked' then people else 0 end),
           sum(case when missing in ('error', 'quarantined') then people else 0 end)
    from fu_all group by account
),
users_by as (
    select miniprogram, sum(people) as users, sum(case when unionid is not null then people else 0 end) as with_unionid,
           count(unionid) + coalesce(sum(case when unionid is null then people end), 0) as persons, count(unionid) as unionids
    from uu group by miniprogram
    union all
    select miniprogram, sum(people), sum(case when unionid is not null then people else 0 end),
           count(unionid) + coalesce(sum(case when unionid is null then people end), 0), count(unionid)
    from uu_all group by miniprogram
),
pairs as (
    select a.account, m.miniprogram, a.account = '*' or m.miniprogram = '*' as of_all
    from (select account from the_accounts union all select '*') as a
    cross join (select miniprogram from the_miniprograms union all select '*') as m
),
counted as (
    select pairs.account, pairs.miniprogram,
           coalesce(followers_by.followers, 0) as followers,
           coalesce(followers_by.followers_with_unionid, 0) as followers_with_unionid,
           coalesce(followers_by.not_asked, 0) as not_asked, coalesce(followers_by.unreadable, 0) as unreadable,
           coalesce(if(of_all, users_by.persons, users_by.users), 0) as users,
           coalesce(if(of_all, users_by.unionids, users_by.with_unionid), 0) as users_with_unionid,
           coalesce(if(of_all, ties.unionids, ties.users), 0) as matched,
           coalesce(if(of_all, ties.reachable, ties.users_reachable), 0) as reachable,
           coalesce(if(of_all, ties.reached, ties.users_reached), 0) as reached_lately
    from pairs
    left join followers_by on followers_by.account = pairs.account
    left join users_by on users_by.miniprogram = pairs.miniprogram
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
followers_by as (select account, missing, sum(people) as people from fu group by account, missing),
users_by as (select miniprogram, unionid is null as has_none, sum(people) as people from uu group by all),
both_sides as (
    select f.account, m.miniprogram, 'follower' as side, coalesce(f.missing, 'not_a_user') as reason,
           f.people - if(f.missing is null, coalesce(tied.followers, 0), 0) as people
    from followers_by as f cross join the_miniprograms as m
    left join tied on tied.account = f.account and tied.miniprogram = m.miniprogram
    union all
    select a.account, u.miniprogram, 'user', if(u.has_none, 'no_unionid', 'does_not_follow'),
           u.people - if(u.has_none, 0, coalesce(tied.users, 0))
    from users_by as u cross join the_accounts as a
    left join tied on tied.account = a.account and tied.miniprogram = u.miniprogram
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

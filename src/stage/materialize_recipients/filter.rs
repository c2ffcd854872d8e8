//! Who of the SELECT's rows is in the set, and why not the others: one pass in the engine.

use std::path::PathBuf;

use crate::config::settings::MaterializeRecipients;
use crate::domain::Values;
use crate::engine::{EngineError, Params, Session, TableSource, Written, quoted, text};
use crate::stage::StageError;

pub struct Filter {
    pub stage: String,
    pub plan: MaterializeRecipients,
    pub sources: Vec<TableSource>,
    /// `_followers`, where the account was ever walked.
    pub followers: Option<TableSource>,
    /// `_profiles`
    pub profiles: TableSource,
    /// `_marks`: events younger than any walk.
    pub marks: TableSource,
    /// `_suppressions`
    pub suppressions: TableSource,
    /// `_deliveries`, where a cap or `not_again` looks back.
    pub deliveries: Option<TableSource>,
    pub templates: Vec<String>,
    pub set_target: PathBuf,
    pub left_target: PathBuf,
    /// Ours, with a leading underscore.
    pub params: Params,
    /// The SELECT's own.
    pub user_params: Params,
}

/// How many of the SELECT's rows are in the set, and why the others are not.
pub struct Judged {
    pub given: u64,
    pub send: u64,
    pub holdout: u64,
    pub reasons: Vec<(String, u64)>,
}

pub struct FrozenSet {
    pub judged: Judged,
    pub set: Written,
    pub left: Written,
}

/// Share of strangers from which the SELECT surely gives the wrong kind of openid.
const MOST_STRANGERS: f64 = 0.5;

impl Filter {
    /// Writes the set and those left out. Blocking.
    pub fn write(&self, session: &Session) -> Result<FrozenSet, StageError> {
        let columns = self.number(session)?;
        let set = session.copy(&set_sql(&columns), &self.params, &self.set_target)?;
        let left = session.copy(LEFT, &self.params, &self.left_target)?;
        Ok(FrozenSet { judged: counted(session)?, set, left })
    }

    /// Judges everybody and writes nothing. Blocking.
    pub fn count(&self, session: &Session) -> Result<Judged, StageError> {
        self.number(session)?;
        counted(session)
    }

    /// Makes `given` and `numbered` in the session; gives the SELECT's columns.
    fn number(&self, session: &Session) -> Result<Vec<(String, String)>, StageError> {
        let columns = self.take_given(session)?;
        self.add_tables(session)?;
        session.execute(&self.judged(&columns), &self.params)?;
        self.check_strangers(session)?;
        session.execute(NUMBERED, &self.params)?;
        Ok(columns)
    }

    /// Runs the SELECT once into `given`, each row with its number.
    fn take_given(&self, session: &Session) -> Result<Vec<(String, String)>, StageError> {
        for source in &self.sources {
            session.add_table(source)?;
        }
        let in_stage = |source: EngineError| StageError::Sql { stage: self.stage.clone(), source };
        let select = self.plan.sql.text.trim_end().trim_end_matches(';');
        let columns = session.bind(select, &self.user_params).map_err(in_stage)?;
        if !columns.iter().any(|(name, _)| name == "openid") {
            let message = "the SELECT must give a column `openid` (the account's, not the mini program's)".to_owned();
            return Err(in_stage(EngineError::Sql { message, offset: None }));
        }
        let given = format!("create temp table given as select row_number() over () as _row, * from (\n{select}\n)");
        session.execute(&given, &self.user_params).map_err(in_stage)?;
        Ok(columns)
    }

    fn add_tables(&self, session: &Session) -> Result<(), StageError> {
        let followers = TableSource {
            name: "_followers".to_owned(),
            columns: vec![("openid".to_owned(), "VARCHAR".to_owned()), ("active".to_owned(), "BOOLEAN".to_owned())],
            parts: Vec::new(),
        };
        session.add_table(self.followers.as_ref().unwrap_or(&followers))?;
        for table in [&self.profiles, &self.marks, &self.suppressions].into_iter().chain(&self.deliveries) {
            session.add_table(table)?;
        }
        Ok(())
    }

    /// Every given row with the first reason to leave it out.
    fn judged(&self, columns: &[(String, String)]) -> String {
        let own_unionid = columns.iter().any(|(name, _)| name == "unionid");
        let given_unionid = if own_unionid { "nullif(trim(cast(given.unionid as varchar)), '')" } else { "null" };
        let knows_followers = self.followers.is_some();
        let templates = if self.templates.is_empty() {
            "false".to_owned()
        } else {
            let list: Vec<String> = self.templates.iter().map(|id| text(id)).collect();
            format!("_suppressions.template_id in ({})", list.join(", "))
        };
        let capped = if self.plan.frequency_cap.is_some() { CAPPED } else { NOBODY };
        let again = if self.plan.not_again.is_some() { AGAIN } else { NOBODY };
        JUDGED
            .replace("{given_unionid}", given_unionid)
            .replace("{knows_followers}", if knows_followers { "true" } else { "false" })
            .replace("{templates}", &templates)
            .replace("{capped}", capped)
            .replace("{again}", again)
    }

    /// A SELECT that gives openids nobody follows with is almost surely giving the mini program's.
    #[expect(clippy::cast_precision_loss, reason = "a share needs no more than 53 bits")]
    fn check_strangers(&self, session: &Session) -> Result<(), StageError> {
        let none = Params::new();
        let strangers = session.count("select count(*) from judged where reason = 'not_a_follower'", &none)?;
        let people = session.count("select count(*) from judged where reason is distinct from 'no_openid'", &none)?;
        if people >= 10 && strangers as f64 / people as f64 > MOST_STRANGERS {
            return Err(StageError::Rule(format!(
                "{strangers} of {people} openids given by the SELECT never followed account `{}`: give the account's own \
                 openids (identities.oa_openid), not the mini program's, or extract the followers first",
                self.plan.account
            )));
        }
        Ok(())
    }
}

fn counted(session: &Session) -> Result<Judged, StageError> {
    let none = Params::new();
    let reasons = session
        .query("select reason, count(*) as people from numbered where reason is not null group by reason", &none)?;
    Ok(Judged {
        given: session.count("select count(*) from given", &none)?,
        send: session.count("select count(*) from numbered where arm = 'send'", &none)?,
        holdout: session.count("select count(*) from numbered where arm = 'holdout'", &none)?,
        reasons: pairs(&reasons),
    })
}

/// The hexadecimal prefix below which a person's hash is held out; stable per person.
pub fn holdout_bound(share: f64) -> String {
    if share >= 1.0 {
        return "g".to_owned();
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of 2^32 is in its range")]
    let bound = (share.max(0.0) * 4_294_967_296.0) as u64;
    format!("{bound:08x}")
}

fn pairs(rows: &crate::domain::Rows) -> Vec<(String, u64)> {
    match rows.columns.as_slice() {
        [(_, Values::Text(names)), (_, Values::Integer(counts))] => names
            .iter()
            .zip(counts)
            .filter_map(|(name, count)| Some((name.clone()?, u64::try_from((*count)?).ok()?)))
            .collect(),
        _ => Vec::new(),
    }
}

/// Numbers and booleans stay what they are in the variables; everything else is text exactly as DuckDB prints it.
fn set_sql(columns: &[(String, String)]) -> String {
    let variables: Vec<String> = columns
        .iter()
        .filter(|(name, _)| name != "openid")
        .map(|(name, ty)| {
            let column = quoted(name);
            let value = match ty.as_str() {
                "TINYINT" | "SMALLINT" | "INTEGER" | "BIGINT" | "DOUBLE" | "BOOLEAN" => format!("given.{column}"),
                _ => format!("cast(given.{column} as varchar)"),
            };
            format!("{column} := {value}")
        })
        .collect();
    let variables = if variables.is_empty() {
        "'{}'".to_owned()
    } else {
        format!("cast(to_json(struct_pack({})) as varchar)", variables.join(", "))
    };
    format!(
        "select $_run_id as run_id, $_pipeline as pipeline, $_stage as stage, numbered.seq, $_account as account,
                numbered.openid, numbered.unionid, numbered.arm, {variables} as variables
         from numbered join given on given._row = numbered._row
         where numbered.arm is not null
         order by numbered.seq"
    )
}

const NOBODY: &str = "select cast(null as varchar) as person where false";

const CAPPED: &str = "
select coalesce(unionid, openid) as person from _deliveries
where state in ('sent', 'held', 'unconfirmed') and coalesce(sent_at, $_now) > $_cap_since
group by coalesce(unionid, openid) having count(*) >= $_cap";

const AGAIN: &str = "
select coalesce(unionid, openid) as person from _deliveries
where pipeline = $_pipeline and run_id <> $_run_id and state in ('sent', 'held', 'unconfirmed')
  and coalesce(sent_at, $_now) > $_not_again_since
group by coalesce(unionid, openid)";

const JUDGED: &str = "
create temp table judged as
with people as (
    select given._row, nullif(trim(cast(given.openid as varchar)), '') as openid,
           coalesce({given_unionid}, _profiles.unionid) as unionid
    from given
    left join _profiles on _profiles.openid = trim(cast(given.openid as varchar))
),
firsts as (
    select openid, min(_row) as _row from people where openid is not null group by openid
),
suppressed as (
    select openid, unionid, max(case when template_id is null then 1 else 0 end) as wholly
    from _suppressions
    where (account is null or account = $_account) and (until is null or until > $_now)
      and (template_id is null or {templates})
    group by openid, unionid
),
by_openid as (select openid, max(wholly) as wholly from suppressed where openid is not null group by openid),
by_unionid as (
    select unionid, max(wholly) as wholly from suppressed where unionid is not null and openid is null group by unionid
),
capped as ({capped}),
again as ({again})
select people._row, people.openid, people.unionid,
       case
           when people.openid is null then 'no_openid'
           when firsts._row is null then 'duplicate'
           when {knows_followers} and _followers.openid is null and coalesce(_marks.active, false) = false
               then 'not_a_follower'
           when coalesce(_marks.active, _followers.active, true) = false then 'gone'
           when by_openid.wholly = 1 or by_unionid.wholly = 1 then 'suppressed'
           when by_openid.wholly = 0 or by_unionid.wholly = 0 then 'refused_template'
           when capped.person is not null then 'frequency_cap'
           when again.person is not null then 'not_again'
       end as reason
from people
left join firsts on firsts._row = people._row
left join _followers on _followers.openid = people.openid
left join _marks on _marks.openid = people.openid
left join by_openid on by_openid.openid = people.openid
left join by_unionid on by_unionid.unionid = people.unionid
left join capped on capped.person = coalesce(people.unionid, people.openid)
left join again on again.person = coalesce(people.unionid, people.openid)";

/// `max` takes by the person's hash, so that the same people are taken whatever the order of the rows.
const NUMBERED: &str = "
create temp table numbered as
with arms as (
    select _row, openid, unionid, reason,
           case
               when reason is not null then null
               when substr(md5(coalesce(unionid, openid)), 1, 8) < $_holdout then 'holdout'
               else 'send'
           end as arm
    from judged
),
ranked as (
    select *,
           case when arm = 'send' and $_max < 9223372036854775807
                then row_number() over (partition by arm order by md5(coalesce(unionid, openid)), openid) else 0 end as rank
    from arms
),
kept as (
    select _row, openid, unionid,
           case when arm = 'send' and rank > $_max then 'max' else reason end as reason,
           case when arm = 'send' and rank > $_max then null else arm end as arm
    from ranked
)
select *, case when arm is not null then row_number() over (order by case arm when 'send' then 0 when 'holdout' then 1 else 2 end, _row) end as seq
from kept";

const LEFT: &str = "
select $_run_id as run_id, $_pipeline as pipeline, $_stage as stage, $_account as account, openid, unionid, reason
from numbered where reason is not null order by _row";

//! Who of the SELECT's rows is in the set, and why not the others: one pass in the engine.

use std::path::PathBuf;

use crate::config::settings::MaterializeRecipients;
use crate::domain::Values;
use crate::engine::{EngineError, Params, Session, TableSource, Written, quoted, text};
use crate::stage::StageError;
use crate::stage::live::forgotten_sql;

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
    /// `_forgotten`, and the salt of its hashes, where anybody was.
    pub forgotten: Option<(TableSource, String)>,
    /// `_deliveries`, where a cap or `not_again` looks back.
    pub deliveries: Option<TableSource>,
    /// `_moved`: what the account's openids of before have become, where it was ever moved.
    pub moved: Option<TableSource>,
    pub templates: Vec<String>,
    /// In a test run, the only people who may be in the set.
    pub only: Option<Vec<String>>,
    /// Whether the SELECT ends in ORDER BY: then the set keeps its order.
    pub is_ordered: bool,
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
        let judged = self.judge(session)?;
        let mut arms = vec![("send", 0)];
        if self.plan.holdout > 0.0 {
            arms.push(("holdout", judged.send));
        }
        // Where nobody is left out and nobody's order is to be kept, the judged are the set.
        let is_everybody = judged.reasons.is_empty() && arms.len() == 1 && !self.keeps_order();
        if !is_everybody {
            for (arm, _) in &arms {
                session.execute(&self.kept_sql(arm), &Params::new())?;
            }
        }
        let from = |arm: &str| if is_everybody { "judged".to_owned() } else { format!("kept_{arm}") };
        let numbered: Vec<String> = arms.iter().map(|(arm, before)| numbered_sql(arm, *before, &from(arm))).collect();
        let set = session.copy(&numbered.join(" union all "), &self.params, &self.set_target)?;
        let left = session.copy(&self.left_sql(), &self.params, &self.left_target)?;
        Ok(FrozenSet { judged, set, left })
    }

    /// Judges everybody and writes nothing. Blocking.
    pub fn count(&self, session: &Session) -> Result<Judged, StageError> {
        self.judge(session)
    }

    /// Makes `judged` in the session; gives how everybody was judged.
    fn judge(&self, session: &Session) -> Result<Judged, StageError> {
        self.add_tables(session)?;
        let columns = self.take_given(session)?;
        let mut params = self.user_params.clone();
        params.extend(self.params.clone());
        let in_stage = |source: EngineError| StageError::Sql { stage: self.stage.clone(), source };
        session.execute(&self.judged(&columns), &params).map_err(in_stage)?;
        self.check_strangers(session)?;
        if self.plan.max.is_some() {
            session.execute(OVER_THE_MOST, &self.params)?;
        }
        let ended = "select coalesce(reason, arm) as ended, count(*) as people from judged group by all";
        let mut reasons = pairs(&session.query(ended, &Params::new())?);
        let mut take = |arm: &str| {
            let at = reasons.iter().position(|(name, _)| name == arm);
            at.map_or(0, |at| reasons.swap_remove(at).1)
        };
        let (send, holdout) = (take("send"), take("holdout"));
        let given = send + holdout + reasons.iter().map(|(_, people)| people).sum::<u64>();
        Ok(Judged { given, send, holdout, reasons })
    }

    /// Makes `given` readable: the SELECT, each row with its number where the SELECT has an order to keep.
    fn take_given(&self, session: &Session) -> Result<Vec<(String, String)>, StageError> {
        for source in &self.sources {
            session.add_table(source)?;
        }
        session.confine(&[&self.set_target, &self.left_target])?;
        let in_stage = |source: EngineError| StageError::Sql { stage: self.stage.clone(), source };
        let columns = session.bind(self.select(), &self.user_params).map_err(in_stage)?;
        if columns.iter().any(|(name, _)| name == "openid") {
            return Ok(columns);
        }
        let message = "the SELECT must give a column `openid` (the account's, not the mini program's)".to_owned();
        Err(in_stage(EngineError::Sql { message, offset: None }))
    }

    fn select(&self) -> &str {
        self.plan.sql.text.trim_end().trim_end_matches(';')
    }

    fn add_tables(&self, session: &Session) -> Result<(), StageError> {
        let tables = [&self.profiles, &self.marks, &self.suppressions].into_iter();
        let forgotten = self.forgotten.as_ref().map(|(table, _)| table);
        for table in tables.chain(&self.followers).chain(&self.deliveries).chain(&self.moved).chain(forgotten) {
            session.add_table(table)?;
        }
        Ok(())
    }

    /// Every given row with the first reason to leave it out, else its arm. What is empty or not asked for is not joined:
    /// a set without suppressions costs what its SELECT costs.
    fn judged(&self, columns: &[(String, String)]) -> String {
        let has = |name: &str| columns.iter().any(|(own, _)| own == name);
        let (mut joins, mut reasons) = (Vec::new(), Vec::new());
        let unionid = if has("unionid") {
            "nullif(trim(cast(given.unionid as varchar)), '')"
        } else {
            joins.push("left join _profiles on _profiles.openid = given._openid".to_owned());
            "_profiles.unionid"
        };
        reasons.push("when given._openid is null then 'no_openid' when given._nth > 1 then 'duplicate'".to_owned());
        if let Some(only) = &self.only {
            let list: Vec<String> = only.iter().map(|openid| text(openid)).collect();
            reasons.push(format!("when given._openid not in ({}) then 'not_a_test_openid'", list.join(", ")));
        }
        let has_marks = !self.marks.parts.is_empty();
        if has_marks {
            joins.push("left join _marks on _marks.openid = given._openid".to_owned());
        }
        if self.followers.is_some() {
            joins.push("left join _followers on _followers.openid = given._openid".to_owned());
            let follows = if has_marks { "coalesce(_marks.active, _followers.active)" } else { "_followers.active" };
            reasons.push(format!("when {follows} is null then 'not_a_follower' when not {follows} then 'gone'"));
        } else if has_marks {
            reasons.push("when not _marks.active then 'gone'".to_owned());
        }
        if !self.suppressions.parts.is_empty() {
            joins.push(BY_OPENID.replace("{suppressed}", &self.suppressed()));
            joins.push(BY_UNIONID.replace("{suppressed}", &self.suppressed()).replace("{unionid}", unionid));
            reasons.push(
                "when by_openid.wholly = 1 or by_unionid.wholly = 1 then 'suppressed'
                 when by_openid.wholly = 0 or by_unionid.wholly = 0 then 'refused_template'"
                    .to_owned(),
            );
        }
        if let Some((_, salt)) = &self.forgotten {
            reasons.push(format!(
                "when {} or {} then 'suppressed'",
                forgotten_sql(salt, "given._openid"),
                forgotten_sql(salt, unionid)
            ));
        }
        let looks_back = self.deliveries.as_ref().is_some_and(|deliveries| !deliveries.parts.is_empty());
        for (is_asked, people, name) in [
            (self.plan.frequency_cap.is_some(), CAPPED, "frequency_cap"),
            (self.plan.not_again.is_some(), AGAIN, "not_again"),
        ] {
            if is_asked && looks_back {
                let people = people.replace("{deliveries}", if self.moved.is_some() { OF_NOW } else { "_deliveries" });
                joins.push(format!(
                    "left join ({people}) as {name} on {name}.person = coalesce({unionid}, given._openid)"
                ));
                reasons.push(format!("when {name}.person is not null then '{name}'"));
            }
        }
        let arm = if self.plan.holdout > 0.0 {
            format!(
                "case when substr(md5(coalesce({unionid}, given._openid)), 1, 8) < $_holdout then 'holdout' else 'send' end"
            )
        } else {
            "'send'".to_owned()
        };
        JUDGED
            .replace("{select}", self.select())
            .replace("{row}", if self.keeps_order() { "row_number() over ()" } else { "0" })
            .replace("{within}", if self.keeps_order() { "order by _row" } else { "" })
            .replace("{unionid}", unionid)
            .replace("{variables}", &variables(columns))
            .replace("{reasons}", &reasons.join(" "))
            .replace("{arm}", &arm)
            .replace("{joins}", &joins.join("\n"))
    }

    /// Those left out. Of whoever was forgotten, the hash that is kept of the openid stands there, and no unionid.
    fn left_sql(&self) -> String {
        let (openid, unionid) = match &self.forgotten {
            Some((_, salt)) => {
                let is_forgotten =
                    format!("({} or {})", forgotten_sql(salt, "_openid"), forgotten_sql(salt, "_unionid"));
                (
                    format!(
                        "case when {is_forgotten} then sha256(concat({}, ':', _openid)) else _openid end",
                        text(salt)
                    ),
                    format!("case when {is_forgotten} then null else _unionid end"),
                )
            }
            None => ("_openid".to_owned(), "_unionid".to_owned()),
        };
        format!(
            "select $_run_id as run_id, $_pipeline as pipeline, $_stage as stage, $_account as account, {openid} as openid,
                    {unionid} as unionid, reason
             from judged where reason is not null"
        )
    }

    fn keeps_order(&self) -> bool {
        self.is_ordered
    }

    fn suppressed(&self) -> String {
        let templates = if self.templates.is_empty() {
            "false".to_owned()
        } else {
            let list: Vec<String> = self.templates.iter().map(|id| text(id)).collect();
            format!("template_id in ({})", list.join(", "))
        };
        SUPPRESSED.replace("{templates}", &templates)
    }

    /// Makes a table of those of one arm who are in the set, in the SELECT's order: the place of a row is its number.
    fn kept_sql(&self, arm: &str) -> String {
        let order = if self.keeps_order() { "order by _row" } else { "" };
        format!(
            "create temp table kept_{arm} as
             select _openid, _unionid, _variables from judged where reason is null and arm = '{arm}' {order}"
        )
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

/// Everybody of one arm, of a table that holds nobody else, with a number. `rowid` counts from 0 without a gap, and is read on all threads, which a window
/// over the whole set is not.
fn numbered_sql(arm: &str, before: u64, from: &str) -> String {
    format!(
        "select $_run_id as run_id, $_pipeline as pipeline, $_stage as stage, rowid + {} as seq, $_account as account,
                _openid as openid, _unionid as unionid, '{arm}' as arm, _variables as variables
         from {from}",
        before + 1
    )
}

/// Numbers and booleans stay what they are in the variables; everything else is text exactly as DuckDB prints it.
fn variables(columns: &[(String, String)]) -> String {
    let variables: Vec<String> = columns
        .iter()
        .filter(|(name, _)| name != "openid")
        .map(|(name, ty)| {
            let column = quoted(name);
            match ty.as_str() {
                "TINYINT" | "SMALLINT" | "INTEGER" | "BIGINT" | "DOUBLE" | "BOOLEAN" => {
                    format!("{column} := given.{column}")
                }
                _ => format!("{column} := cast(given.{column} as varchar)"),
            }
        })
        .collect();
    if variables.is_empty() {
        "'{}'".to_owned()
    } else {
        format!("cast(to_json(struct_pack({})) as varchar)", variables.join(", "))
    }
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

const CAPPED: &str = "
select coalesce(unionid, openid) as person from {deliveries}
where state in ('sent', 'held', 'unconfirmed') and not is_test and coalesce(sent_at, $_now) > $_cap_since
  and (delivered is null or delivered = 'success')
group by coalesce(unionid, openid) having count(*) >= $_cap";

const AGAIN: &str = "
select coalesce(unionid, openid) as person from {deliveries}
where pipeline = $_pipeline and run_id <> $_run_id and state in ('sent', 'held', 'unconfirmed') and not is_test
  and coalesce(sent_at, $_now) > $_not_again_since
group by coalesce(unionid, openid)";

/// The deliveries, those without a unionid under the openid of now: they say to whom they went, which is the openid of then.
const OF_NOW: &str = "(
    select _deliveries.* replace (
        case when _deliveries.unionid is null then coalesce(moved.new_openid, _deliveries.openid) else _deliveries.openid end
            as openid)
    from _deliveries
    left join (
        select openid, max(new_openid) as new_openid from _moved where new_openid is not null group by openid
    ) as moved on moved.openid = _deliveries.openid
)";

const SUPPRESSED: &str = "
    select openid, unionid, max(case when template_id is null then 1 else 0 end) as wholly
    from _suppressions
    where (account is null or account = $_account) and (until is null or until > $_now)
      and (template_id is null or {templates})
    group by openid, unionid";

const BY_OPENID: &str = "left join (
    select openid, max(wholly) as wholly from ({suppressed}) where openid is not null group by openid
) as by_openid on by_openid.openid = given._openid";

const BY_UNIONID: &str = "left join (
    select unionid, max(wholly) as wholly from ({suppressed})
    where unionid is not null and openid is null group by unionid
) as by_unionid on by_unionid.unionid = {unionid}";

const JUDGED: &str = "
create temp table judged as
select given._row, given._openid, {unionid} as _unionid, {variables} as _variables, case {reasons} end as reason, {arm} as arm
from (
    select *, row_number() over (partition by _openid {within}) as _nth
    from (
        select {row} as _row, nullif(trim(cast(openid as varchar)), '') as _openid, * from (
{select}
        )
    )
) as given
{joins}";

/// `max` takes by the person's hash, so that the same people are taken whatever the order of the rows.
const OVER_THE_MOST: &str = "
update judged set reason = 'max'
where reason is null and arm = 'send' and _openid in (
    select _openid from (
        select _openid, row_number() over (order by md5(coalesce(_unionid, _openid)), _openid) as rank
        from judged where reason is null and arm = 'send'
    ) where rank > $_max
)";

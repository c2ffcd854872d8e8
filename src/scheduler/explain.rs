//! One person's whole way: as a follower, as a user, the tie between both, why in or out of each set, each send and its fate.
//! Asked by any id of the person; the others are found by the tie.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::clock::Timestamp;
use crate::config::settings::StageKind;
use crate::domain::tables::MOVED_OPENIDS;
use crate::engine::text;
use crate::exports::{self, ReadOptions};
use crate::ledger::LedgerError;
use crate::stage::load_users::{files_at_hand, options_of};
use crate::stage::query::{QueryError, records};
use crate::stage::{Hands, StageError};
use crate::wechat::lookup_code;

type Record = Map<String, Value>;

/// What is known of a person, in the order of the data.
#[derive(Debug, Serialize)]
pub struct Explanation {
    pub asked: String,
    /// Nobody of this id is known anywhere.
    pub is_unknown: bool,
    pub unionids: Vec<String>,
    pub openids: Vec<String>,
    /// Rows of the followers table.
    pub followers: Vec<Record>,
    pub follower_changes: Vec<Record>,
    pub profiles: Vec<Record>,
    /// Rows of every users table, each with its `table`.
    pub users: Vec<Record>,
    /// Where the exports, as they are now, name the person.
    pub export_lines: Vec<ExportLine>,
    /// Rows that were refused on load and name the person.
    pub quarantine: Vec<Record>,
    pub identities: Vec<Record>,
    /// What could not be tied, or changed.
    pub conflicts: Vec<Record>,
    pub suppressions: Vec<Record>,
    /// Whether a hash of the person's ids is among those who were forgotten.
    pub is_forgotten: bool,
    /// Each set, latest first.
    pub sets: Vec<SetView>,
}

/// A line of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExportLine {
    pub stage: String,
    pub file: String,
    pub line: i64,
}

/// A set and what became of the person in it.
#[derive(Debug, Serialize)]
pub struct SetView {
    pub run_id: String,
    pub pipeline: String,
    pub stage: String,
    pub account: String,
    pub openid: Option<String>,
    /// `send`, `holdout`, or nothing for one who was left out.
    pub arm: Option<String>,
    pub left_out: Option<String>,
    pub sends: Vec<SendView>,
}

/// A send and its fate.
#[derive(Debug, Serialize)]
pub struct SendView {
    pub stage: String,
    pub template_id: String,
    pub seq: Option<i64>,
    pub state: String,
    pub reason: Option<String>,
    pub errcode: Option<i64>,
    pub meaning: Option<&'static str>,
    pub attempts: Option<i64>,
    pub msgid: Option<String>,
    pub sent_at: Option<Timestamp>,
    pub delivered: Option<String>,
    pub delivered_at: Option<Timestamp>,
}

/// Explains the person of an openid or a unionid.
///
/// # Errors
///
/// [`QueryError`] when a table cannot be read.
pub async fn explain(hands: &Hands, asked: &str) -> Result<Explanation, QueryError> {
    let tables = Tables::of(hands).await?;
    let ids = tables.ids(hands, asked).await?;
    let [openids, unionids] = [&ids.openids, &ids.unionids].map(|ids| ids.iter().cloned().collect::<Vec<_>>());
    let list = ids.list();
    let by = |columns: &[&str]| {
        let conditions: Vec<String> = columns.iter().map(|column| format!("{column} in ({list})")).collect();
        conditions.join(" or ")
    };
    let select = async |table: &str, columns: &[&str], order: &str| {
        records::<Record>(hands, &format!("select * from {table} where {} order by {order}", by(columns))).await
    };
    let mut followers = Vec::new();
    for table in &tables.followers {
        followers.extend(select(table, &["openid"], "account").await?);
    }
    let mut profiles = Vec::new();
    for table in &tables.profiles {
        profiles.extend(select(table, &["openid", "unionid"], "account").await?);
    }
    let mut users = Vec::new();
    for table in &tables.users {
        for mut row in select(table, &["openid", "unionid"], "miniprogram").await? {
            row.insert("table".to_owned(), table.clone().into());
            users.push(row);
        }
    }
    let raw: Vec<String> = ids.all().map(|id| format!("contains(raw, {})", text(id))).collect();
    let quarantine = format!("select * from quarantine where {} order by file, line", raw.join(" or "));
    let mut conflicts = select("identity_conflicts", &["openid", "unionid", "other"], "date").await?;
    conflicts.extend(select("identity_changes", &["openid", "unionid", "other"], "date").await?);
    let mut explanation = Explanation {
        asked: asked.to_owned(),
        is_unknown: false,
        openids,
        unionids,
        followers,
        follower_changes: select("follower_changes", &["openid"], "seen_at").await?,
        profiles,
        users,
        export_lines: export_lines(hands, ids.all().map(str::to_owned).collect()).await?,
        quarantine: records(hands, &quarantine).await?,
        identities: select("identities", &["unionid", "oa_openid", "mp_openid"], "account, miniprogram").await?,
        conflicts,
        suppressions: select("suppressions", &["openid", "unionid"], "since").await?,
        is_forgotten: is_forgotten(hands, &ids).await.map_err(StageError::from)?,
        sets: sets(hands, &list, &hashed(hands, &ids).await.map_err(StageError::from)?).await?,
    };
    explanation.is_unknown = explanation.followers.is_empty()
        && explanation.profiles.is_empty()
        && explanation.users.is_empty()
        && explanation.export_lines.is_empty()
        && explanation.quarantine.is_empty()
        && explanation.suppressions.is_empty()
        && explanation.sets.is_empty()
        && !explanation.is_forgotten;
    Ok(explanation)
}

/// The tables that hold people, by what makes them; those that were made.
struct Tables {
    followers: Vec<String>,
    profiles: Vec<String>,
    users: Vec<String>,
}

impl Tables {
    async fn of(hands: &Hands) -> Result<Self, QueryError> {
        let current = hands.ledger.current_snapshots().await.map_err(StageError::from)?;
        let mut tables = Self { followers: Vec::new(), profiles: Vec::new(), users: Vec::new() };
        for stage in hands.settings.pipelines.values().flat_map(|pipeline| &pipeline.stages) {
            let Some(table) = &stage.table else { continue };
            let list = match &stage.kind {
                StageKind::ExtractFollowers(_) => &mut tables.followers,
                StageKind::EnrichUnionids(_) => &mut tables.profiles,
                StageKind::LoadUsers(_) => &mut tables.users,
                _ => continue,
            };
            let name = table.to_string();
            if current.iter().any(|snapshot| snapshot.table == *table) && !list.contains(&name) {
                list.push(name);
            }
        }
        Ok(tables)
    }

    /// Every id of the person: the one that was asked by, the unionids that stand beside it, and the openids beside those.
    async fn ids(&self, hands: &Hands, asked: &str) -> Result<Ids, QueryError> {
        let mut pairs: Vec<String> = self
            .profiles
            .iter()
            .chain(&self.users)
            .map(|table| format!("select openid, unionid from {table}"))
            .collect();
        pairs.push("select openid, unionid from deliveries".to_owned());
        pairs.push(format!("select openid, unionid from {MOVED_OPENIDS}"));
        let pairs = pairs.join(" union all ");
        let asked_text = text(asked);
        let sql = format!(
            "with pairs as ({pairs}), tied as (
                 select distinct unionid from pairs
                 where unionid is not null and (openid = {asked_text} or unionid = {asked_text}))
             select unionid as id, 'unionid' as kind from tied
             union select openid as id, 'openid' as kind from pairs
                 where openid is not null and (unionid in (select unionid from tied) or openid = {asked_text})"
        );
        let mut ids = Ids { asked: asked.to_owned(), unionids: BTreeSet::new(), openids: BTreeSet::new() };
        for row in records::<Record>(hands, &sql).await? {
            let id = row["id"].as_str().unwrap_or_default().to_owned();
            let list = if row["kind"] == "unionid" { &mut ids.unionids } else { &mut ids.openids };
            list.insert(id);
        }
        Ok(ids)
    }
}

struct Ids {
    asked: String,
    unionids: BTreeSet<String>,
    openids: BTreeSet<String>,
}

impl Ids {
    fn all(&self) -> impl Iterator<Item = &str> {
        let known = self.unionids.iter().chain(&self.openids).map(String::as_str);
        known.filter(|id| *id != self.asked).chain([self.asked.as_str()])
    }

    /// As SQL lists them.
    fn list(&self) -> String {
        self.all().map(text).collect::<Vec<_>>().join(", ")
    }
}

async fn is_forgotten(hands: &Hands, ids: &Ids) -> Result<bool, LedgerError> {
    let Some((salt, hashes)) = hands.ledger.forgotten().await? else { return Ok(false) };
    Ok(ids.all().any(|id| hashes.binary_search(&crate::domain::person_hash(&salt, id)).is_ok()))
}

/// The ids as a list for SQL, in the form that is left of them in later sets where the person was forgotten.
async fn hashed(hands: &Hands, ids: &Ids) -> Result<String, LedgerError> {
    let Some((salt, _)) = hands.ledger.forgotten().await? else { return Ok("''".to_owned()) };
    Ok(ids.all().map(|id| text(&crate::domain::person_hash(&salt, id))).collect::<Vec<_>>().join(", "))
}

async fn sets(hands: &Hands, list: &str, hashed: &str) -> Result<Vec<SetView>, QueryError> {
    let columns = "run_id, pipeline, stage, account, openid";
    let sql = format!(
        "select {columns}, arm, cast(null as varchar) as left_out from recipients where openid in ({list}) or unionid in ({list})
         union all
         select {columns}, cast(null as varchar) as arm, reason as left_out from left_out
         where openid in ({list}) or unionid in ({list}) or openid in ({hashed})
         order by run_id desc, stage, left_out nulls first"
    );
    let sends = format!(
        "select * from deliveries where openid in ({list}) or unionid in ({list}) order by run_id desc, stage, seq"
    );
    let sends = records::<Record>(hands, &sends).await?;
    let text_of = |row: &Record, key: &str| row.get(key).and_then(Value::as_str).map(str::to_owned);
    let sets = records::<Record>(hands, &sql).await?;
    Ok(sets
        .into_iter()
        .map(|set| {
            let is_of = |send: &&Record| {
                set["arm"] == "send" && send["run_id"] == set["run_id"] && send["openid"] == set["openid"]
            };
            SetView {
                run_id: text_of(&set, "run_id").unwrap_or_default(),
                pipeline: text_of(&set, "pipeline").unwrap_or_default(),
                stage: text_of(&set, "stage").unwrap_or_default(),
                account: text_of(&set, "account").unwrap_or_default(),
                openid: text_of(&set, "openid"),
                arm: text_of(&set, "arm"),
                left_out: text_of(&set, "left_out"),
                sends: sends.iter().filter(is_of).map(send_view).collect(),
            }
        })
        .collect())
}

fn send_view(row: &Record) -> SendView {
    let text_of = |key: &str| row.get(key).and_then(Value::as_str).map(str::to_owned);
    let number = |key: &str| row.get(key).and_then(Value::as_i64);
    let time = |key: &str| row.get(key).and_then(Value::as_str).and_then(|at| at.parse().ok());
    SendView {
        stage: text_of("stage").unwrap_or_default(),
        template_id: text_of("template_id").unwrap_or_default(),
        seq: number("seq"),
        state: text_of("state").unwrap_or_default(),
        reason: text_of("reason"),
        errcode: number("errcode"),
        meaning: number("errcode").and_then(lookup_code).map(|code| code.meaning),
        attempts: number("attempts"),
        msgid: text_of("msgid"),
        sent_at: time("sent_at"),
        delivered: text_of("delivered"),
        delivered_at: time("delivered_at"),
    }
}

/// Reads the exports as they are now, each to its end: what the table holds does not say where it stood.
async fn export_lines(hands: &Hands, ids: Vec<String>) -> Result<Vec<ExportLine>, QueryError> {
    let settings = hands.settings.clone();
    let found = tokio::task::spawn_blocking(move || {
        let ids: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
        let mut found = Vec::new();
        let stages = settings.pipelines.values();
        for (pipeline, stage) in stages.flat_map(|own| own.stages.iter().map(move |stage| (&own.name, stage))) {
            let StageKind::LoadUsers(plan) = &stage.kind else { continue };
            let files = files_at_hand(&settings, (pipeline, &stage.name), plan);
            for input in files.iter().flat_map(|file| file.inputs().unwrap_or_default()) {
                let options = ReadOptions { keep: Some(&[]), batch_rows: 20_000, ..options_of(plan) };
                let shown =
                    input.shown().strip_prefix(&settings.root).unwrap_or(input.shown()).to_string_lossy().into_owned();
                // A file that cannot be read now is the load's to complain of.
                let _ = exports::read_file(&input, &options, &mut |batch| {
                    found.extend(lines_of(&batch, &ids).map(|line| ExportLine {
                        stage: stage.name.to_string(),
                        file: shown.clone(),
                        line,
                    }));
                    Ok(())
                });
            }
        }
        found
    });
    Ok(found.await.map_err(StageError::from)?)
}

fn lines_of<'a>(batch: &'a exports::Batch, ids: &'a BTreeSet<&'a str>) -> impl Iterator<Item = i64> + 'a {
    let of_ids = |name: &str| name == "openid" || name == "unionid";
    let is_named = move |at: usize| {
        let own = batch.columns.iter().filter(|(name, _)| of_ids(name));
        own.filter_map(|(_, values)| values.get(at)).any(|value| ids.contains(value))
    };
    batch.lines.iter().enumerate().filter(move |(at, _)| is_named(*at)).map(|(_, line)| *line)
}

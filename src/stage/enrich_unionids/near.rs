//! The merge of a night on which few were asked: what was answered is a part more, and of the parts of before only those are
//! written anew that hold a row of somebody who was asked. All others stay the files they are.
//!
//! What is told beside the parts of before ([`digest`](super::digest)) says which those could be; whatever is in doubt is settled as ever
//! ([`merge`](super::merge)), by the same SQL over fewer rows.

use std::collections::HashSet;
use std::path::PathBuf;

use super::digest::{self, Kinds, Wanted};
use super::merge::{CHANGES, DOUBTFUL, MergedProfiles, WITH_CONFIRMED, make_latest, merge_sql, old_changes};
use super::{Inputs, StageContext, StageError, Tally, doubt, narrow};
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, OpenId, QuickSet, TableName, Values};
use crate::engine::{Param, Params, Session, TableSource, Written, files};
use crate::lake::{Lake, LakeError};
use crate::stage::{NewSnapshot, blocking};

/// The merge of an account's answers, where it is known whose followers' rows changed.
pub(super) struct Near<'a, 'b> {
    pub cx: &'a StageContext<'b>,
    pub table: &'a TableName,
    pub account: &'a AccountName,
    pub inputs: &'a Inputs,
    /// Ids and paths of the fetched parts.
    pub parts: &'a [(i64, String)],
    /// Somebody may stand in them twice.
    pub may_be_doubled: bool,
}

impl Near<'_, '_> {
    /// The merge; nothing where it is not known who changed, or half of the table would have to be written anew.
    ///
    /// # Errors
    ///
    /// [`StageError`]; the parts stay for the next run.
    pub async fn merge(self, tally: &mut Tally) -> Result<Option<MergedProfiles>, StageError> {
        let (cx, lake) = (self.cx, &self.cx.hands.lake);
        let Some(before) = cx.visible.slice(self.table.as_str(), self.account.as_str()) else { return Ok(None) };
        let Some(changed) = &self.inputs.changed else { return Ok(None) };
        // Parts of before that lack a column of today's are written anew, all of them.
        if self.inputs.profiles.sql.is_some() {
            return Ok(None);
        }
        let id = cx.new_snapshot_id();
        let profiles_path = Lake::part_path(self.table, self.account.as_str(), &id, 1);
        let changes_path = Lake::part_path(&TableName::new("identity_changes"), self.account.as_str(), &id, 1);
        let mut pass = Pass {
            lake: lake.clone(),
            followers: self.inputs.followers.clone(),
            changed: narrow::source(lake, changed),
            before: self.inputs.profiles.clone(),
            before_bytes: before.bytes,
            fetched: TableSource {
                parts: self.parts.iter().map(|(_, path)| lake.absolute(path)).collect(),
                ..self.inputs.fetched.clone()
            },
            confirmed: TableSource { name: "confirmed".to_owned(), parts: Vec::new(), ..self.inputs.fetched.clone() },
            changes_before: old_changes(cx, self.account),
            may_be_doubled: self.may_be_doubled,
            profiles_target: lake.absolute(&profiles_path),
            changes_target: lake.absolute(&changes_path),
            params: Params::from([
                ("account".to_owned(), Param::Text(self.account.to_string())),
                ("run_at".to_owned(), Param::Timestamp(cx.run.run_at)),
            ]),
        };
        let mut came = self.pass(&mut pass).await?;
        if let Came::InDoubt(doubtful) = came {
            pass.confirmed.parts.push(doubt::settle(cx, self.account, self.inputs, (tally, doubtful)).await?);
            came = self.pass(&mut pass).await?;
        }
        let Came::ToItsEnd(done) = came else { return Ok(None) };
        self.snapshots(id, done, [profiles_path, changes_path]).await.map(Some)
    }

    async fn pass(&self, pass: &mut Pass) -> Result<Came, StageError> {
        let own = pass.clone();
        blocking(&self.cx.hands.sparing_engine(), self.cx.stop, move |session| own.run(session)).await
    }

    async fn snapshots(&self, id: String, done: Done, paths: [String; 2]) -> Result<MergedProfiles, StageError> {
        let (cx, lake) = (self.cx, &self.cx.hands.lake);
        let [profiles_path, changes_path] = paths;
        let before = cx.visible.slice(self.table.as_str(), self.account.as_str());
        let is_kept = |part: &&String| !done.touched.contains(&lake.absolute(part));
        let mut parts: Vec<String> =
            before.map(|before| before.parts.iter().filter(is_kept).cloned().collect()).unwrap_or_default();
        match &done.written {
            Some(written) if written.rows > 0 => parts.push(profiles_path),
            Some(_) => lake.remove(&profiles_path)?,
            None => {
                for (number, (_, part)) in (1..).zip(self.parts) {
                    let path = Lake::part_path(self.table, self.account.as_str(), &id, number);
                    lake.adopt(part, &path)?;
                    digest::adopt(lake, part, &path);
                    parts.push(path);
                }
            }
        }
        let (own, joined) =
            (lake.clone(), Lake::named_part_path((self.table, self.account.as_str(), &id), "joined", 1));
        parts = tokio::task::spawn_blocking(move || compact(&own, parts, &joined)).await??;
        let columns = |table: &str| table_spec(table).map(|spec| spec.sql_columns()).unwrap_or_default();
        let mut bytes = 0;
        for part in &parts {
            bytes += lake.size_bytes(part)?;
        }
        let snapshot = |table: TableName, id: String| NewSnapshot {
            slice: self.account.to_string(),
            id,
            as_of: self.inputs.as_of,
            rows: 0,
            bytes: 0,
            parts: Vec::new(),
            columns: columns("identity_changes"),
            table,
        };
        let changes = done.changes.map(|written| {
            let own = snapshot(TableName::new("identity_changes"), format!("{id}-changes"));
            NewSnapshot { rows: written.rows, bytes: written.bytes, parts: vec![changes_path], ..own }.record(cx)
        });
        let own = snapshot(self.table.clone(), id);
        let profiles = NewSnapshot { rows: done.all.rows, bytes, parts, columns: columns("profiles"), ..own };
        Ok(MergedProfiles {
            profiles: profiles.record(cx),
            changes,
            with_unionid: done.all.with_unionid,
            not_asked: done.all.not_asked,
            quarantined: done.all.quarantined,
        })
    }
}

/// Joins small parts, and what is told beside them.
fn compact(lake: &Lake, parts: Vec<String>, target: &str) -> Result<Vec<String>, LakeError> {
    let left = lake.compact(parts.clone(), target)?;
    let joined: Vec<String> = parts.into_iter().filter(|part| !left.contains(part)).collect();
    if !joined.is_empty() {
        digest::join(lake, &joined, target)?;
    }
    Ok(left)
}

#[derive(Clone)]
struct Pass {
    lake: Lake,
    followers: TableSource,
    changed: TableSource,
    before: TableSource,
    before_bytes: u64,
    fetched: TableSource,
    confirmed: TableSource,
    changes_before: TableSource,
    may_be_doubled: bool,
    profiles_target: PathBuf,
    changes_target: PathBuf,
    params: Params,
}

enum Came {
    ToItsEnd(Done),
    /// People whose unionid has to be asked for singly first.
    InDoubt(Vec<OpenId>),
    /// It is no less than a merge of everybody.
    Nowhere,
}

struct Done {
    /// Parts of before whose rows are in what was written.
    touched: HashSet<PathBuf>,
    /// Nothing: the fetched parts are parts of the table as they are.
    written: Option<Written>,
    changes: Option<Written>,
    all: Kinds,
}

impl Pass {
    fn run(&self, session: &Session) -> Result<Came, StageError> {
        for table in [&self.changed, &self.fetched, &self.confirmed, &self.changes_before] {
            session.add_table(table)?;
        }
        let is_doubled = make_latest(session, self.may_be_doubled)?;
        let (concerned, kinds) = digest::search(&self.lake, &self.before.parts, &self.wanted(session)?)?;
        session.keep_footers(concerned.len())?;
        session.run(&format!("create temp table known as {}", known_sql(&concerned)))?;
        session.run("create view profiles_before as select * from known")?;
        session.run(&format!("create temp table doubtful as {DOUBTFUL}"))?;
        let touched: HashSet<PathBuf> = texts(session, TOUCHED)?.into_iter().map(PathBuf::from).collect();
        let rewritten: u64 = touched.iter().filter_map(|part| part.metadata().ok()).map(|part| part.len()).sum();
        if rewritten * 2 > self.before_bytes {
            return Ok(Came::Nowhere);
        }
        let has_doubts = !self.confirmed.parts.is_empty();
        let doubtful = texts(session, "select distinct openid from doubtful")?;
        if !doubtful.is_empty() && !has_doubts {
            return Ok(Came::InDoubt(doubtful.into_iter().map(OpenId::new).collect()));
        }
        if has_doubts {
            session.run(WITH_CONFIRMED)?;
        }
        self.narrow(session)?;
        let unasked = session.count(UNASKED, &self.params)?;
        let is_plain = touched.is_empty() && !has_doubts && !is_doubled && unasked == 0;
        let (mut written, mut changes) = (None, None);
        if !is_plain {
            session.add_table(&TableSource { parts: touched.iter().cloned().collect(), ..self.before.clone() })?;
            let sql = merge_sql(!touched.is_empty(), has_doubts);
            written = Some(session.copy(&sql, &self.params, &self.profiles_target)?);
        }
        if has_doubts {
            let after = TableSource {
                name: "after".to_owned(),
                parts: vec![self.profiles_target.clone()],
                ..self.before.clone()
            };
            session.add_table(&after)?;
            changes = Some(session.copy(CHANGES, &self.params, &self.changes_target)?);
        }
        let new = if written.is_some() { std::slice::from_ref(&self.profiles_target) } else { &self.fetched.parts };
        let kept = self.before.parts.iter().zip(kinds).filter(|(part, _)| !touched.contains(*part));
        let mut all = Kinds::default();
        kept.map(|(_, kinds)| kinds).chain(digest::kinds_of(&self.lake, new)?).for_each(|kinds| all.join(&kinds));
        Ok(Came::ToItsEnd(Done { touched, written, changes, all }))
    }

    /// Ids of the rows of before that anything about tonight's answers could concern.
    fn wanted(&self, session: &Session) -> Result<Wanted, StageError> {
        let mut wanted = Wanted { ids: QuickSet::default(), fresh_from: None, not_asked: true };
        for sql in ["select openid, unionid from latest", "select openid from changed where active"] {
            wanted.take(session, sql, &self.params)?;
        }
        Ok(wanted)
    }

    /// Makes `followers` of the session those who may have no profile: whoever changed, and who was not asked yet.
    fn narrow(&self, session: &Session) -> Result<(), StageError> {
        session.run("create temp table waiting as select openid from known where unionid_missing = 'not_asked'")?;
        narrow::to_changed_and(session, &self.followers, "waiting")?;
        session.run(
            "alter view followers rename to perhaps_unknown;
             create view followers as select * from perhaps_unknown where openid not in (
                 select openid from known where openid is not null and coalesce(unionid_missing, '') <> 'not_asked')",
        )?;
        Ok(())
    }
}

/// The rows of before that anything about tonight's answers could concern, and the part that each is in: of the `parts` that
/// hold such rows.
fn known_sql(parts: &[PathBuf]) -> String {
    if parts.is_empty() {
        return "select null::varchar as openid, null::varchar as unionid, null::varchar as unionid_missing,
                       null::bigint as errcode, null::bigint as refusals, null::varchar as filename
                where false"
            .to_owned();
    }
    format!(
        "select openid, unionid, unionid_missing, errcode, refusals, filename
         from read_parquet({}, filename = true)
         where openid in (select openid from latest) or unionid in (select unionid from latest)
            or openid in (select openid from changed where active) or unionid_missing = 'not_asked'",
        files(parts)
    )
}

/// Parts that hold a row which is another now.
const TOUCHED: &str = "
select distinct filename from known
where openid in (select openid from latest) or openid in (select openid from doubtful)
   or unionid_missing = 'not_asked'";

/// Followers who are to have a row that says that nobody asked.
const UNASKED: &str = "
select count(*) from followers
where active and openid not in (select openid from latest)";

fn texts(session: &Session, sql: &str) -> Result<Vec<String>, StageError> {
    let rows = session.query(sql, &Params::new())?;
    Ok(match rows.columns.into_iter().next() {
        Some((_, Values::Text(values))) => values.into_iter().flatten().collect(),
        _ => Vec::new(),
    })
}

//! The tables with the openids of now, beside those that are read: every current snapshot that names one of the account's
//! openids of before is written once more, a group of its parts at a time, in the order it had. What was sent stays as it
//! was: sets and deliveries say to whom a message went then.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::Moving;
use super::list::{followers_of, profile_tables};
use crate::clock::Timestamp;
use crate::domain::tables::{MOVED_OPENIDS, table_spec};
use crate::domain::{OpenId, StageName, TableName, UnionId, Values};
use crate::engine::{Engine, Param, Params, Session, TableSource, quoted, text};
use crate::lake::{Lake, LakeError};
use crate::ledger::{AccountMove, SnapshotRecord, Touched};
use crate::stage::tables::{Visible, events::CHANGES};
use crate::stage::{StageError, blocking};

/// Columns that hold an openid of the account, in tables of the house and in those of SQL.
const OPENIDS: [&str; 4] = ["openid", "oa_openid", "other", "chosen"];
/// Parts are read together up to so many rows: each group is joined with everybody's answers.
const ROWS_A_GROUP: u64 = 320_000;
/// Who makes the table of what openids have become.
const STAGE: &str = "migrate";

/// What was made and is not current yet.
pub(super) struct Made {
    pub snapshots: Vec<SnapshotRecord>,
    /// They have an openid of now.
    pub moved: u64,
}

/// Writes every table anew that names an openid of before.
///
/// # Errors
///
/// [`StageError`]; what was written is in nobody's way, and `vacuum` finds it.
pub(super) async fn rewrite(moving: &Moving<'_>, own: &AccountMove, answers: &str) -> Result<Made, StageError> {
    let hands = moving.hands();
    let mut visible = Visible::default();
    visible.add(hands.ledger.current_snapshots().await?);
    let mut rewriting = Rewriting {
        lake: hands.lake.clone(),
        engine: hands.joining_engine(own.people),
        own: own.clone(),
        id: format!("{}-{}", own.run_id, hands.clock.random_id(8)),
        now: hands.clock.now(),
        fence: moving.lease.fence,
        moved: PathBuf::new(),
        gone: Vec::new(),
    };
    let (table, moved) = rewriting.openids(moving, &visible, answers).await?;
    let mut snapshots = vec![table];
    // The changes come after the followers whom they tell of.
    let (changes, others): (Vec<_>, Vec<_>) = visible.all().partition(|own| own.table.as_str() == CHANGES);
    for snapshot in others.into_iter().chain(changes) {
        snapshots.extend(rewriting.snapshot(moving, snapshot).await?);
        if moving.stop().is_cancelled() {
            return Err(StageError::Interrupted);
        }
    }
    Ok(Made { snapshots, moved })
}

/// The unionids of those whom the ledger names and who have no openid of now.
///
/// # Errors
///
/// [`StageError`].
pub(super) async fn unionids(
    moving: &Moving<'_>,
    own: &AccountMove,
    touched: &Touched,
) -> Result<HashMap<OpenId, UnionId>, StageError> {
    let refused: HashSet<OpenId> = touched.refused.iter().cloned().collect();
    if refused.is_empty() {
        return Ok(HashMap::new());
    }
    let list = text(&moving.hands().lake.absolute(&own.list_path).to_string_lossy());
    blocking(&moving.hands().sparing_engine(), moving.stop(), move |session| {
        let mut found = HashMap::new();
        let sql = format!("select openid, unionid from read_parquet([{list}]) where unionid is not null");
        session.stream::<StageError>(&sql, &Params::new(), |rows| {
            let [(_, Values::Text(openids)), (_, Values::Text(unionids))] = rows.columns.as_slice() else {
                return Ok(false);
            };
            for (openid, unionid) in openids.iter().zip(unionids) {
                let (Some(openid), Some(unionid)) = (openid, unionid) else { continue };
                let openid = OpenId::new(openid);
                if refused.contains(&openid) {
                    found.insert(openid, UnionId::new(unionid));
                }
            }
            Ok(true)
        })?;
        Ok(found)
    })
    .await
}

struct Rewriting {
    lake: Lake,
    engine: Engine,
    own: AccountMove,
    /// Of the snapshots that are made.
    id: String,
    now: Timestamp,
    fence: i64,
    /// The part of what openids have become by this move.
    moved: PathBuf,
    /// Parts of followers that tell who is gone by this move.
    gone: Vec<PathBuf>,
}

/// What a copy of a group is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Those who follow and were moved.
    Following,
    /// All other rows of a table of followers.
    Gone,
    /// Of any other table.
    Plain,
}

impl Rewriting {
    fn params(&self) -> Params {
        Params::from([
            ("account".to_owned(), Param::Text(self.own.account.to_string())),
            ("from".to_owned(), Param::Text(self.own.from_app_id.clone())),
            ("to".to_owned(), Param::Text(self.own.to_app_id.clone())),
            ("now".to_owned(), Param::Timestamp(self.now)),
        ])
    }

    /// What openids have become, as a table; and how many have an openid of now.
    async fn openids(
        &mut self,
        moving: &Moving<'_>,
        visible: &Visible,
        answers: &str,
    ) -> Result<(SnapshotRecord, u64), StageError> {
        let account = self.own.account.as_str();
        let table = TableName::new(MOVED_OPENIDS);
        let path = Lake::part_path(&table, account, &self.id, 1);
        self.moved = self.lake.absolute(&path);
        let tables = followers_of(visible, account, true).map(|of| of.table.clone()).chain(profile_tables(moving));
        let known: Vec<String> = tables
            .filter(|table| visible.slice(table.as_str(), account).is_some())
            .map(|table| visible.bare_slice(&self.lake, (table.as_str(), account), "known", Vec::new()).select())
            .map(|rows| format!("select openid from ({rows})"))
            .collect();
        let known = if known.is_empty() { "select '' as openid".to_owned() } else { known.join(" union all ") };
        let part = |path: &str| format!("read_parquet([{}])", text(&self.lake.absolute(path).to_string_lossy()));
        let sql = MOVED
            .replace("{answers}", &part(answers))
            .replace("{list}", &part(&self.own.list_path))
            .replace("{known}", &known);
        let (params, target) = (self.params(), self.moved.clone());
        let (written, moved) = blocking(&self.engine, moving.stop(), move |session| {
            let written = session.copy(&sql, &params, &target)?;
            let target = text(&target.to_string_lossy());
            let moved = format!("select count(*) from read_parquet([{target}]) where reason is null");
            Ok((written, session.count(&moved, &Params::new())?))
        })
        .await?;
        let columns = table_spec(MOVED_OPENIDS).expect("moved_openids is declared").sql_columns();
        let mut made = self.record(&table, account, (StageName::new(STAGE), self.own.started_at));
        made.columns = columns;
        (made.rows, made.bytes, made.parts) = (written.rows, written.bytes, vec![path]);
        // Of moves before: what those openids have become has become another one.
        if let Some(before) = visible.slice(MOVED_OPENIDS, account) {
            self.parts(moving, before, &mut made).await?;
        }
        Ok((made, moved))
    }

    /// A snapshot that takes the place of another.
    fn record(&self, table: &TableName, slice: &str, (stage, as_of): (StageName, Timestamp)) -> SnapshotRecord {
        SnapshotRecord {
            id: format!("{}-{table}", self.id),
            table: table.clone(),
            slice: slice.to_owned(),
            run_id: self.own.run_id.clone(),
            stage,
            as_of,
            rows: 0,
            bytes: 0,
            parts: Vec::new(),
            columns: Vec::new(),
            source_hash: None,
            made_at: self.now,
            fence: self.fence,
            events_to: None,
            app_id: None,
        }
    }

    /// The snapshot anew; nothing where no row of it names an openid of before.
    async fn snapshot(
        &mut self,
        moving: &Moving<'_>,
        before: &SnapshotRecord,
    ) -> Result<Option<SnapshotRecord>, StageError> {
        let account = self.own.account.as_str();
        let is_set = ["recipients", "left_out"].iter().filter_map(|table| table_spec(table));
        let is_history = is_set.map(|spec| spec.sql_columns()).any(|columns| columns == before.columns);
        if is_history || before.table.as_str() == MOVED_OPENIDS {
            return Ok(None);
        }
        // The slice of another account, and a mini program's users, have openids of their own.
        let has = |column: &str| before.columns.iter().any(|(name, _)| name == column);
        let is_of_others = before.slice != account
            && (moving.hands().settings.accounts.keys().any(|other| other.as_str() == before.slice)
                || (has("miniprogram") && !has("account")));
        let is_walked = before.slice == account && before.events_to.is_some();
        if is_of_others {
            return Ok(None);
        }
        if !is_walked && !self.is_named(moving, before).await? {
            return Ok(None);
        }
        let mut made = self.record(&before.table, &before.slice, (before.stage.clone(), before.as_of));
        made.id = format!("{}-{}", made.id, if before.slice.is_empty() { "_" } else { &before.slice });
        made.columns.clone_from(&before.columns);
        made.source_hash.clone_from(&before.source_hash);
        made.events_to = before.events_to;
        made.app_id = is_walked.then(|| self.own.to_app_id.clone());
        self.parts(moving, before, &mut made).await?;
        if is_walked && before.table.as_str() == CHANGES {
            self.unfollows(moving, &mut made).await?;
        }
        Ok(Some(made))
    }

    /// The openids among a snapshot's columns.
    fn openid_columns(snapshot: &SnapshotRecord) -> Vec<&str> {
        if snapshot.table.as_str() == MOVED_OPENIDS {
            return vec!["new_openid"];
        }
        let texts = snapshot.columns.iter().filter(|(_, ty)| ty == "VARCHAR").map(|(name, _)| name.as_str());
        texts.filter(|name| OPENIDS.contains(name)).collect()
    }

    async fn is_named(&self, moving: &Moving<'_>, snapshot: &SnapshotRecord) -> Result<bool, StageError> {
        let columns = Self::openid_columns(snapshot);
        if columns.is_empty() || snapshot.parts.is_empty() {
            return Ok(false);
        }
        let named: Vec<String> =
            columns.iter().map(|name| format!("{} in (select openid from moves)", quoted(name))).collect();
        let sql = format!(
            "select count(*) from (select * from stood {} limit 1)",
            self.of_account(snapshot, "where", &format!("({})", named.join(" or ")))
        );
        let (group, moved, params) = (self.group(&snapshot.parts), self.moved.clone(), self.params());
        blocking(&self.engine, moving.stop(), move |session| {
            add_tables(session, &group, &moved)?;
            Ok(session.count(&sql, &params)? > 0)
        })
        .await
    }

    /// A condition with that of the account's rows beside it, where the table says whose they are.
    fn of_account(&self, snapshot: &SnapshotRecord, word: &str, condition: &str) -> String {
        let account = text(self.own.account.as_str());
        match snapshot.columns.iter().any(|(name, _)| name == "account") {
            true => format!("{word} coalesce(account, {account}) = {account} and {condition}"),
            false => format!("{word} {condition}"),
        }
    }

    fn group(&self, parts: &[String]) -> Vec<PathBuf> {
        parts.iter().map(|part| self.lake.absolute(part)).collect()
    }

    /// Writes the rows of `before` to new parts of `made`.
    async fn parts(
        &mut self,
        moving: &Moving<'_>,
        before: &SnapshotRecord,
        made: &mut SnapshotRecord,
    ) -> Result<(), StageError> {
        let account = self.own.account.to_string();
        let is_followers = before.slice == account && before.events_to.is_some() && before.table.as_str() != CHANGES;
        let kinds: &[Kind] = if is_followers { &[Kind::Following, Kind::Gone] } else { &[Kind::Plain] };
        let groups = groups(&self.lake, &before.parts)?;
        let (mut following, mut gone) = (Vec::new(), Vec::new());
        let first = u32::try_from(made.parts.len()).unwrap_or(u32::MAX) + 1;
        for (number, group) in (first..).zip(groups) {
            for kind in kinds {
                let name = if *kind == Kind::Gone { "gone" } else { "part" };
                let path = Lake::named_part_path((&made.table, &made.slice, &self.id), name, number);
                let written = self.copy(moving, (before, &group, *kind), &path).await?;
                if written.rows == 0 {
                    self.lake.remove(&path)?;
                    continue;
                }
                (made.rows, made.bytes) = (made.rows + written.rows, made.bytes + written.bytes);
                if *kind == Kind::Gone { gone.push(path) } else { following.push(path) }
            }
            if is_followers {
                self.gone.extend(group.iter().map(|part| self.lake.absolute(part)));
            }
        }
        made.parts.extend(following.into_iter().chain(gone));
        Ok(())
    }

    async fn copy(
        &self,
        moving: &Moving<'_>,
        (before, group, kind): (&SnapshotRecord, &[String], Kind),
        path: &str,
    ) -> Result<crate::engine::Written, StageError> {
        let (group, moved) = (self.group(group), self.moved.clone());
        let (sql, params) = (self.rows_sql(before, kind), self.params());
        let target = self.lake.absolute(path);
        blocking(&self.engine, moving.stop(), move |session| {
            add_tables(session, &group, &moved)?;
            Ok(session.copy(&sql, &params, &target)?)
        })
        .await
    }

    /// The rows of a group with the openids of now, in the order they stand in.
    fn rows_sql(&self, before: &SnapshotRecord, kind: Kind) -> String {
        let openids = Self::openid_columns(before);
        let column = |(name, _): &(String, String)| {
            let own = quoted(name);
            match (openids.contains(&name.as_str()), kind) {
                (true, _) => {
                    let of = quoted(&format!("of_{name}"));
                    format!("coalesce({of}.new_openid, stood.{own}) as {own}")
                }
                (false, Kind::Following | Kind::Gone) if name == "active" => {
                    format!("{FOLLOWS} as {own}")
                }
                (false, _) => format!("stood.{own}"),
            }
        };
        let columns: Vec<String> = before.columns.iter().map(column).collect();
        let joins: Vec<String> = openids
            .iter()
            .map(|name| {
                let of = quoted(&format!("of_{name}"));
                let condition = format!("{of}.openid = stood.{}", quoted(name));
                format!("left join moves as {of} {}", self.of_account(before, "on", &condition))
            })
            .collect();
        let which = match kind {
            Kind::Following => format!("where {FOLLOWS}"),
            Kind::Gone => format!("where not {FOLLOWS}"),
            Kind::Plain => String::new(),
        };
        format!("select {} from stood {} {which} order by stood._part, stood._row", columns.join(", "), joins.join(" "))
    }

    /// Who followed, as far as the walks tell, and has no openid of now, has left the account by the move.
    async fn unfollows(&self, moving: &Moving<'_>, made: &mut SnapshotRecord) -> Result<(), StageError> {
        if self.gone.is_empty() {
            return Ok(());
        }
        let number = u32::try_from(made.parts.len()).unwrap_or(u32::MAX) + 1;
        let path = Lake::named_part_path((&made.table, &made.slice, &self.id), "part", number);
        let (group, moved, params) = (self.gone.clone(), self.moved.clone(), self.params());
        let target = self.lake.absolute(&path);
        let written = blocking(&self.engine, moving.stop(), move |session| {
            add_tables(session, &group, &moved)?;
            Ok(session.copy(UNFOLLOWS, &params, &target)?)
        })
        .await?;
        if written.rows == 0 {
            return Ok(self.lake.remove(&path)?);
        }
        (made.rows, made.bytes) = (made.rows + written.rows, made.bytes + written.bytes);
        made.parts.push(path);
        Ok(())
    }
}

/// Makes `stood` of a group, each with its place, and `moves`: what each openid has become.
fn add_tables(session: &Session, group: &[PathBuf], moved: &Path) -> Result<(), StageError> {
    let list =
        |paths: &[PathBuf]| paths.iter().map(|path| text(&path.to_string_lossy())).collect::<Vec<_>>().join(", ");
    let view = |name: &str, sql: String, parts: &[PathBuf]| TableSource {
        name: name.to_owned(),
        columns: Vec::new(),
        parts: parts.to_vec(),
        sql: Some(sql),
        are_alike: false,
    };
    let files = list(group);
    let rows = format!(
        "select * exclude (_file, file_row_number), list_position([{files}], _file) as _part, file_row_number as _row
         from read_parquet([{files}], union_by_name = true, filename = '_file', file_row_number = true)"
    );
    let moved = [moved.to_owned()];
    let moves = format!("select openid, new_openid from read_parquet([{}]) where reason is null", list(&moved));
    session.add_table(&view("stood", rows, group))?;
    Ok(session.add_table(&view("moves", moves, &moved))?)
}

/// Parts side by side, each group of about as many rows.
fn groups(lake: &Lake, parts: &[String]) -> Result<Vec<Vec<String>>, LakeError> {
    let (mut groups, mut rows) = (Vec::<Vec<String>>::new(), ROWS_A_GROUP);
    for part in parts {
        if rows >= ROWS_A_GROUP {
            groups.push(Vec::new());
            rows = 0;
        }
        rows += lake.rows_of(part)?;
        groups.last_mut().expect("one was begun").push(part.clone());
    }
    Ok(groups)
}

/// Of a row of followers: follows the account of now.
const FOLLOWS: &str = "(stood.active and of_openid.new_openid is not null)";

const UNFOLLOWS: &str = "
select local_date($now) as date, $account as account, openid, 'unfollow' as change, $now as seen_at, 'migration' as source
from stood where active and not exists (select 1 from moves where moves.openid = stood.openid)";

/// An openid of now belongs to one person: whoever else was given it, and whose is in the tables already, stays as gone.
const MOVED: &str = "
select $account as account, answers.openid, answers.new_openid, list.unionid,
       case when answers.new_openid is null then answers.reason
            when answers.place > first_of.place then 'its new openid was given to another openid as well'
            when known.openid is not null then 'its new openid was in the tables before'
       end as reason,
       $from as from_app_id, $to as to_app_id, $now as moved_at
from {answers} as answers
left join {list} as list on list.openid = answers.openid
left join (
    select new_openid, min(place) as place from {answers}
    where new_openid is not null group by new_openid having count(*) > 1
) as first_of on first_of.new_openid = answers.new_openid
left join (select distinct openid from ({known})) as known on known.openid = answers.new_openid
order by answers.place";

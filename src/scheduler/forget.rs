//! Forgetting a person: every part of the lake that names the person is written anew without the rows that do, old
//! snapshots and what stages keep for themselves included; then the ledger; then the catalog. No run goes on meanwhile.
//!
//! What others hold (exports, published files, WeChat) is not touched; it is told. Should it bring the person back, the
//! hashes that stay keep every set from taking the person in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::catalog;
use super::conductor::{Conductor, Held, RunError};
use crate::config::settings::{Settings, StageKind};
use crate::domain::UnionId;
use crate::engine::{Params, Session, TableSource, quoted, text};
use crate::ledger::{Forgetting, Forgotten, Order, SnapshotRecord};
use crate::redact::shortened;
use crate::stage::load_users::objects;
use crate::stage::{Hands, StageError, blocking};

/// Columns beside a unionid that name the same person.
const OPENID_COLUMNS: [&str; 4] = ["openid", "oa_openid", "mp_openid", "new_openid"];
/// Columns that hold whole rows or messages as text.
const WHOLE_ROWS: [&str; 3] = ["raw", "variables", "body"];

/// What was forgotten.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Shortened.
    pub unionid: String,
    /// How many openids of the person were known.
    pub openids: usize,
    /// Rows removed, by table; in older snapshots of it too. `work`: what stages keep for themselves.
    pub rows: BTreeMap<String, u64>,
    #[serde(flatten)]
    pub ledger: Forgotten,
    /// What is not ours to change.
    pub remains: Vec<String>,
}

/// Forgets the person of a unionid.
///
/// # Errors
///
/// [`RunError::Usage`] while a run goes on, when a push that is not over holds the person, and when nobody has this unionid;
/// nothing is changed then.
pub async fn forget(conductor: &Conductor, unionid: &UnionId, who: &str) -> Result<Report, RunError> {
    let held = conductor.hold_every_pipeline().await?;
    let done = forget_held(conductor, &held, unionid, who).await;
    held.release().await?;
    done
}

async fn forget_held(conductor: &Conductor, held: &Held, unionid: &UnionId, who: &str) -> Result<Report, RunError> {
    let hands = &conductor.hands;
    if let Some(own) = hands.ledger.open_moves().await?.first() {
        return Err(RunError::Usage(format!(
            "account `{0}` is being moved, and this person may stand on the list of whom to ask for: finish it with `lianbo migrate \
             {0} --from {1}`, then forget",
            own.account, own.from_app_id
        )));
    }
    let snapshots = hands.ledger.every_snapshot().await?;
    let mut ids = openids(hands, &snapshots, unionid, held.stop()).await?;
    ids.extend(hands.ledger.openids_of(unionid).await?);
    let person = Person { unionid: unionid.as_str().to_owned(), openids: ids.into_iter().collect() };
    refuse_open_pushes(hands, &person, held.stop()).await?;
    let mut rows: BTreeMap<String, u64> = BTreeMap::new();
    let mut left_behind = Vec::new();
    let eraser = Eraser { hands, person: &person, stop: held.stop() };
    for snapshot in &snapshots {
        let rewritten = eraser.snapshot(snapshot).await?;
        if rewritten.removed > 0 {
            *rows.entry(snapshot.table.to_string()).or_default() += rewritten.removed;
            left_behind.extend(rewritten.old_parts);
        }
    }
    let named: BTreeSet<&String> = snapshots.iter().flat_map(|snapshot| &snapshot.parts).collect();
    for path in loose_parts(hands.lake.root(), &named) {
        let removed = eraser.file(&path, &path).await?.map_or(0, |erased| erased.rows);
        if removed > 0 {
            *rows.entry("work".to_owned()).or_default() += removed;
        }
    }
    let new_salt = hands.clock.random_id(32);
    let whom = Forgetting { unionid, openids: &person.openids, new_salt: &new_salt };
    if rows.is_empty() && !hands.ledger.names(whom).await? {
        return Err(RunError::Usage(unknown(unionid)));
    }
    hands.ledger.forget_who_is_in_doubt().await?;
    let ledger = hands.ledger.forget(whom, Order { who, at: hands.clock.now() }).await?;
    catalog::refresh(hands).await?;
    for part in left_behind {
        hands.lake.remove(&part).map_err(StageError::from)?;
    }
    objects::throw_away(&hands.lake).map_err(StageError::from)?;
    Ok(Report {
        unionid: shortened(unionid.as_str()),
        openids: person.openids.len(),
        rows,
        ledger,
        remains: remains(&hands.settings),
    })
}

fn unknown(unionid: &UnionId) -> String {
    format!(
        "nobody with the unionid {} stands in any table, snapshot or the ledger: nothing is erased. Give the unionid, not an \
         openid (`lianbo explain OPENID` tells it); whom you do not know yet, `lianbo suppress add --unionid U --reason WHY` \
         keeps from being sent to",
        shortened(unionid.as_str())
    )
}

#[derive(Debug, Clone)]
struct Person {
    unionid: String,
    openids: Vec<String>,
}

impl Person {
    /// A condition on a row of these columns that names the person; nothing where no column could.
    fn named_by(&self, columns: &[(String, String)]) -> Option<String> {
        let ids: Vec<String> = self.openids.iter().chain([&self.unionid]).map(|id| text(id)).collect();
        let conditions: Vec<String> = columns
            .iter()
            .filter(|(_, ty)| ty == "VARCHAR")
            .map(|(name, _)| {
                let column = quoted(name);
                if WHOLE_ROWS.contains(&name.as_str()) {
                    let parts: Vec<String> = ids.iter().map(|id| format!("contains({column}, {id})")).collect();
                    parts.join(" or ")
                } else {
                    format!("{column} in ({})", ids.join(", "))
                }
            })
            .map(|condition| format!("coalesce({condition}, false)"))
            .collect();
        (!conditions.is_empty()).then(|| conditions.join(" or "))
    }
}

/// Every openid that stands beside the unionid anywhere in the lake.
async fn openids(
    hands: &Hands,
    snapshots: &[SnapshotRecord],
    unionid: &UnionId,
    stop: &CancellationToken,
) -> Result<BTreeSet<String>, StageError> {
    let is_tied = |snapshot: &&SnapshotRecord| snapshot.columns.iter().any(|(name, _)| name == "unionid");
    let parts = snapshots.iter().filter(is_tied).flat_map(|snapshot| &snapshot.parts);
    let parts: Vec<PathBuf> = parts.map(|part| hands.lake.absolute(part)).filter(|part| part.exists()).collect();
    let unionid = text(unionid.as_str());
    blocking(&hands.engine, stop, move |session| {
        let mut found = BTreeSet::new();
        for part in parts {
            let columns = read_part(session, &part)?;
            for (name, _) in columns.iter().filter(|(name, _)| OPENID_COLUMNS.contains(&name.as_str())) {
                let sql = format!("select distinct {} as openid from part where unionid = {unionid}", quoted(name));
                for (_, values) in session.query(&sql, &Params::new())?.columns {
                    if let crate::domain::Values::Text(values) = values {
                        found.extend(values.into_iter().flatten());
                    }
                }
            }
        }
        Ok(found)
    })
    .await
}

/// Makes a file readable as `part`; gives its columns.
fn read_part(session: &Session, path: &Path) -> Result<Vec<(String, String)>, StageError> {
    session.add_table(&TableSource {
        name: "part".to_owned(),
        columns: Vec::new(),
        parts: vec![path.to_owned()],
        sql: None,
        are_alike: false,
    })?;
    Ok(session.bind("select * from part", &Params::new())?)
}

/// A push that goes on counts the people of its set: one that holds the person has to come to its end first.
async fn refuse_open_pushes(hands: &Hands, person: &Person, stop: &CancellationToken) -> Result<(), RunError> {
    for push in hands.ledger.every_push().await? {
        let set = hands.lake.absolute(&push.set_path);
        if push.ended_at.is_some() || !set.exists() {
            continue;
        }
        let person = person.clone();
        let is_in = blocking(&hands.engine, stop, move |session| {
            let columns = read_part(session, &set)?;
            let Some(named) = person.named_by(&columns) else { return Ok(false) };
            Ok(session.count(&format!("select count(*) from part where {named}"), &Params::new())? > 0)
        })
        .await?;
        if is_in {
            return Err(RunError::Usage(format!(
                "this person is in the set of push {0}/{1}, which is not over: finish it with `lianbo run {2} --continue`, or cancel \
                 it with `lianbo push cancel {0}`, then forget; until then `lianbo suppress add` keeps the person from it",
                push.run_id, push.stage, push.pipeline
            )));
        }
    }
    Ok(())
}

struct Rewritten {
    removed: u64,
    old_parts: Vec<String>,
}

/// Takes a person out of files.
struct Eraser<'a> {
    hands: &'a Hands,
    person: &'a Person,
    stop: &'a CancellationToken,
}

impl Eraser<'_> {
    async fn snapshot(&self, snapshot: &SnapshotRecord) -> Result<Rewritten, StageError> {
        let hands = self.hands;
        let (mut parts, mut old_parts) = (Vec::new(), Vec::new());
        let (mut removed, mut bytes) = (0, 0);
        for part in &snapshot.parts {
            let from = hands.lake.absolute(part);
            let stem = part.trim_end_matches(".parquet");
            let new = format!("{stem}-{}.parquet", hands.clock.random_id(4));
            match self.file(&from, &hands.lake.absolute(&new)).await? {
                Some(erased) => {
                    removed += erased.rows;
                    bytes += erased.bytes_left;
                    parts.push(new);
                    old_parts.push(part.clone());
                }
                None => {
                    bytes += std::fs::metadata(&from).map_or(0, |meta| meta.len());
                    parts.push(part.clone());
                }
            }
        }
        if removed > 0 {
            hands.ledger.replace_parts(&snapshot.id, &parts, (snapshot.rows.saturating_sub(removed), bytes)).await?;
        }
        Ok(Rewritten { removed, old_parts })
    }

    /// Writes `from` without the person to `to`, where it names the person at all.
    async fn file(&self, from: &Path, to: &Path) -> Result<Option<Erased>, StageError> {
        if !from.exists() {
            return Ok(None);
        }
        let (from, to, person) = (from.to_owned(), to.to_owned(), self.person.clone());
        blocking(&self.hands.engine, self.stop, move |session| {
            let columns = read_part(session, &from)?;
            let Some(named) = person.named_by(&columns) else { return Ok(None) };
            let rows = session.count(&format!("select count(*) from part where {named}"), &Params::new())?;
            if rows == 0 {
                return Ok(None);
            }
            let written = session.copy(&format!("select * from part where not ({named})"), &Params::new(), &to)?;
            Ok(Some(Erased { rows, bytes_left: written.bytes }))
        })
        .await
    }
}

struct Erased {
    rows: u64,
    bytes_left: u64,
}

/// Files of the lake that no snapshot names: pages, details, messages, archives, what `vacuum` will drop.
fn loose_parts(root: &Path, named: &BTreeSet<&String>) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "parquet") {
                let relative = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                if !named.contains(&relative) {
                    found.push(path);
                }
            }
        }
    }
    found.sort();
    found
}

fn remains(settings: &Settings) -> Vec<String> {
    let mut remains = Vec::new();
    for stage in settings.pipelines.values().flat_map(|pipeline| &pipeline.stages) {
        match &stage.kind {
            StageKind::LoadUsers(plan) => remains.push(format!(
                "the exports {} are the mini program's: have the person taken out there, or the next load brings the row back",
                plan.shown_source()
            )),
            StageKind::Publish(plan) => {
                remains.push(format!("files published to {} stay until they are published anew", plan.to.display()));
            }
            _ => {}
        }
    }
    remains.push(
        "who still follows an account comes back with its next walk; is never sent to, nor counted as reachable"
            .to_owned(),
    );
    remains
}

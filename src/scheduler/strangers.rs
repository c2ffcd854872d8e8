//! Ids that stand in no table, or in none that a message could go by: a slip of the pen looks like a person.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use crate::domain::{ColumnType, Rows, Values};
use crate::engine::{Params, Session, TableSource, quoted};
use crate::ledger::SnapshotRecord;
use crate::stage::{Hands, StageError, blocking, live};

/// Columns that name people.
const ID_COLUMNS: [&str; 4] = ["openid", "unionid", "oa_openid", "mp_openid"];
/// Whoever stands in a set stands in another table almost surely, and there is a file for each set ever made.
const SETS: [&str; 2] = ["recipients", "left_out"];

/// An id that somebody typed.
#[derive(Debug, Clone, Copy)]
pub enum Asked<'a> {
    UnionId(&'a str),
    /// To which an account sends.
    OpenId(&'a str),
}

impl<'a> Asked<'a> {
    fn id(self) -> &'a str {
        match self {
            Self::UnionId(id) | Self::OpenId(id) => id,
        }
    }
}

/// What the tables say of ids.
#[derive(Debug, Default)]
pub struct Looked {
    /// Those that no current table holds and no event named, in their order.
    pub strangers: Vec<String>,
    /// Openids to which no account sends, since a mini program gave them, each with a table that says so.
    pub of_miniprograms: Vec<(String, String)>,
}

/// Looks for `asked` in the tables.
///
/// # Errors
///
/// [`StageError`] when a table cannot be read.
pub async fn strangers(hands: &Hands, asked: &[Asked<'_>]) -> Result<Looked, StageError> {
    let ids: Vec<String> = asked.iter().map(|asked| asked.id().to_owned()).collect();
    let mut left: BTreeSet<String> = ids.iter().cloned().collect();
    for known in hands.ledger.marked(&ids).await? {
        left.remove(&known);
    }
    let openids: BTreeSet<String> =
        asked.iter().filter(|asked| matches!(asked, Asked::OpenId(_))).map(|asked| asked.id().to_owned()).collect();
    let (sets, tables): (Vec<_>, Vec<_>) =
        hands.ledger.current_snapshots().await?.into_iter().partition(|own| SETS.contains(&own.table.as_str()));
    let places: Vec<Place> = tables.iter().chain(&sets).filter_map(|snapshot| Place::of(hands, snapshot)).collect();
    let source = write_asked(hands, &ids)?;
    let table = source.clone();
    let stop = CancellationToken::new();
    let found = blocking(&hands.engine, &stop, move |session| {
        session.add_table(&table)?;
        let mut of_miniprograms: BTreeMap<String, String> = BTreeMap::new();
        for place in places {
            if left.is_empty() {
                break;
            }
            for id in place.holds(session, &place.columns)? {
                left.remove(&id);
            }
            for id in place.holds(session, &place.miniprogram_columns)? {
                if openids.contains(&id) {
                    of_miniprograms.entry(id).or_insert_with(|| place.table.clone());
                } else {
                    left.remove(&id);
                }
            }
        }
        of_miniprograms.retain(|id, _| left.remove(id));
        Ok((left, of_miniprograms))
    })
    .await;
    live::discard(hands, &source)?;
    let (left, of_miniprograms) = found?;
    let mut told = BTreeSet::new();
    let strangers = ids.iter().filter(|id| left.contains(*id) && told.insert(*id)).cloned().collect();
    Ok(Looked { strangers, of_miniprograms: of_miniprograms.into_iter().collect() })
}

/// Where people may stand.
struct Place {
    table: String,
    parts: Vec<PathBuf>,
    columns: Vec<String>,
    /// Columns with openids of a mini program.
    miniprogram_columns: Vec<String>,
}

impl Place {
    fn of(hands: &Hands, snapshot: &SnapshotRecord) -> Option<Self> {
        let has = |wanted: &str| snapshot.columns.iter().any(|(name, _)| name == wanted);
        let is_of_users = has("miniprogram") && !has("account");
        let names_people = |name: &str, ty: &str| ID_COLUMNS.contains(&name) && ty == "VARCHAR";
        let named = snapshot.columns.iter().filter(|(name, ty)| names_people(name, ty)).map(|(name, _)| name.clone());
        let (miniprogram_columns, columns): (Vec<String>, Vec<String>) =
            named.partition(|name| name == "mp_openid" || (name == "openid" && is_of_users));
        let parts: Vec<PathBuf> =
            snapshot.parts.iter().map(|part| hands.lake.absolute(part)).filter(|part| part.exists()).collect();
        let is_empty = parts.is_empty() || (columns.is_empty() && miniprogram_columns.is_empty());
        (!is_empty).then(|| Self { table: snapshot.table.to_string(), parts, columns, miniprogram_columns })
    }

    /// Those of the table `asked` that stand in any of these columns.
    fn holds(&self, session: &Session, columns: &[String]) -> Result<Vec<String>, StageError> {
        if columns.is_empty() {
            return Ok(Vec::new());
        }
        session.add_table(&TableSource {
            name: "held".to_owned(),
            columns: Vec::new(),
            parts: self.parts.clone(),
            sql: None,
            are_alike: false,
        })?;
        let holds: Vec<String> =
            columns.iter().map(|column| format!("id in (select {} from held)", quoted(column))).collect();
        let known = session.query(&format!("select id from asked where {}", holds.join(" or ")), &Params::new())?;
        let ids = known.columns.into_iter().filter_map(|(_, values)| match values {
            Values::Text(ids) => Some(ids.into_iter().flatten()),
            _ => None,
        });
        Ok(ids.flatten().collect())
    }
}

/// The ids as the table `asked`.
fn write_asked(hands: &Hands, ids: &[String]) -> Result<TableSource, StageError> {
    let lake = hands.lake.scratch();
    let path = format!("{}/asked-{}.parquet", live::FOLDER, hands.clock.random_id(12));
    let mut writer = lake.writer(&path, &[("id", ColumnType::Text)])?;
    let ids = ids.iter().map(|id| Some(id.clone())).collect();
    writer.write(Rows { columns: vec![("id".to_owned(), Values::Text(ids))] })?;
    let part = lake.absolute(&writer.finish()?.path);
    Ok(TableSource { name: "asked".to_owned(), columns: Vec::new(), parts: vec![part], sql: None, are_alike: false })
}

//! Ids that stand in no table: a slip of the pen looks like a person.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use crate::domain::{ColumnType, Rows, Values};
use crate::engine::{Params, TableSource, quoted};
use crate::ledger::SnapshotRecord;
use crate::stage::{Hands, StageError, blocking, live};

/// Columns that name people.
const ID_COLUMNS: [&str; 4] = ["openid", "unionid", "oa_openid", "mp_openid"];
/// Whoever stands in a set stands in another table almost surely, and there is a file for each set ever made.
const SETS: [&str; 2] = ["recipients", "left_out"];

/// Those of `ids` (openids of any kind, unionids) that no current table holds and no event named, in their order.
///
/// # Errors
///
/// [`StageError`] when a table cannot be read.
pub async fn strangers(hands: &Hands, ids: &[String]) -> Result<Vec<String>, StageError> {
    let mut left: BTreeSet<String> = ids.iter().cloned().collect();
    for known in hands.ledger.marked(ids).await? {
        left.remove(&known);
    }
    let mut places: Vec<Place> = Vec::new();
    let (sets, tables): (Vec<_>, Vec<_>) =
        hands.ledger.current_snapshots().await?.into_iter().partition(|own| SETS.contains(&own.table.as_str()));
    places.extend(tables.iter().chain(&sets).filter_map(|snapshot| Place::of(hands, snapshot)));
    let asked = write_asked(hands, ids)?;
    let source = asked.clone();
    let stop = CancellationToken::new();
    let found = blocking(&hands.engine, &stop, move |session| {
        session.add_table(&source)?;
        for place in places {
            if left.is_empty() {
                break;
            }
            session.add_table(&TableSource {
                name: "held".to_owned(),
                columns: Vec::new(),
                parts: place.parts,
                sql: None,
                are_alike: false,
            })?;
            let holds: Vec<String> =
                place.columns.iter().map(|column| format!("id in (select {} from held)", quoted(column))).collect();
            let known = session.query(&format!("select id from asked where {}", holds.join(" or ")), &Params::new())?;
            for (_, values) in known.columns {
                if let Values::Text(values) = values {
                    for id in values.into_iter().flatten() {
                        left.remove(&id);
                    }
                }
            }
        }
        Ok(left)
    })
    .await;
    live::discard(hands, &asked)?;
    let left = found?;
    let mut told = BTreeSet::new();
    Ok(ids.iter().filter(|id| left.contains(*id) && told.insert(*id)).cloned().collect())
}

/// Where people may stand.
struct Place {
    parts: Vec<PathBuf>,
    columns: Vec<String>,
}

impl Place {
    fn of(hands: &Hands, snapshot: &SnapshotRecord) -> Option<Self> {
        let names_people = |name: &str, ty: &str| ID_COLUMNS.contains(&name) && ty == "VARCHAR";
        let columns: Vec<String> =
            snapshot.columns.iter().filter(|(name, ty)| names_people(name, ty)).map(|(name, _)| name.clone()).collect();
        let parts: Vec<PathBuf> =
            snapshot.parts.iter().map(|part| hands.lake.absolute(part)).filter(|part| part.exists()).collect();
        (!columns.is_empty() && !parts.is_empty()).then_some(Self { parts, columns })
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

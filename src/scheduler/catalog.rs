//! `data/catalog.duckdb` from what is current: derived, written aside, renamed into place.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::domain::tables::TABLES;
use crate::engine::TableSource;
use crate::lake::LakeError;
use crate::lake::catalog::{CatalogTable, CatalogWriter};
use crate::stage::live::{self, Ending};
use crate::stage::{Hands, StageError, tables::Visible};

/// The ledger's note of the parts that the catalog names, so that `vacuum` keeps them.
pub const PARTS_KEY: &str = "catalog_parts";
/// The ledger's note of the folder the catalog was written for: a moved workspace gets a new one.
pub const ROOT_KEY: &str = "catalog_root";

/// A reader of the catalog before this one still has its files for so long.
const READER_GRACE: Duration = Duration::from_secs(3600);

/// Where a workspace's catalog is.
pub fn path(hands: &Hands) -> PathBuf {
    hands.settings.root.join("data/catalog.duckdb")
}

/// A catalog that was begun before what it is to show is known: DuckDB takes its time to start.
pub struct Begun(JoinHandle<Result<CatalogWriter, LakeError>>);

impl Begun {
    /// Begins one beside whatever else is done. One that is dropped leaves nothing behind.
    pub fn now(hands: &Hands) -> Self {
        let (target, engine) = (path(hands), hands.engine.clone());
        Self(tokio::task::spawn_blocking(move || CatalogWriter::begin(&target, engine.local_time_macros())))
    }
}

/// Writes the catalog anew.
///
/// # Errors
///
/// [`StageError`] when the ledger, the lake or DuckDB refuse; the catalog before stays.
pub async fn refresh(hands: &Hands) -> Result<(), StageError> {
    write(hands, None, Begun::now(hands)).await
}

/// As [`refresh`], in `begun` and with a run's end that is recorded right after: nothing slow is left to do then.
///
/// # Errors
///
/// As [`refresh`].
pub async fn refresh_ending(hands: &Hands, ending: &Ending<'_>, begun: Begun) -> Result<(), StageError> {
    write(hands, Some(ending), begun).await
}

async fn write(hands: &Hands, ending: Option<&Ending<'_>>, begun: Begun) -> Result<(), StageError> {
    let generation = hands.ledger.snapshots_generation().await?;
    let mut visible = Visible::default();
    visible.add(hands.ledger.current_snapshots().await?);
    let mut tables = Vec::new();
    let mut live_parts = Vec::new();
    let in_lake =
        |part: &Path| part.strip_prefix(hands.lake.root()).ok().map(|path| path.to_string_lossy().into_owned());
    let events = live::export_events(hands, &visible).await?;
    live_parts.extend(events.as_ref().and_then(|events| in_lake(events.part())));
    visible.lay_over(events);
    for spec in TABLES {
        let source = if live::is_live(spec.name) {
            let source = live::export_ending(hands, spec.name, ending).await?;
            live_parts.extend(source.parts.iter().filter_map(|part| in_lake(part)));
            Some(source)
        } else {
            visible.source(&hands.lake, spec.name)
        };
        tables.extend(source);
    }
    for name in visible.names().filter(|name| !TABLES.iter().any(|spec| spec.name == name.as_str())) {
        tables.extend(visible.source(&hands.lake, name.as_str()));
    }
    let in_catalog = |source: TableSource| CatalogTable {
        select: source.select(),
        files: if source.sql.is_none() { source.parts } else { Vec::new() },
        name: source.name,
    };
    let tables: Vec<CatalogTable> = tables.into_iter().map(in_catalog).collect();
    let root = hands.settings.root.to_string_lossy().into_owned();
    let notes = [
        ("generation".to_owned(), generation.to_string()),
        ("written_at".to_owned(), hands.clock.now().to_rfc3339()),
        ("workspace".to_owned(), root.clone()),
    ];
    let writer = begun.0.await??;
    tokio::task::spawn_blocking(move || {
        let notes: Vec<(&str, String)> = notes.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        writer.finish(&tables, &notes)
    })
    .await??;
    let kept: HashSet<String> = live_parts.iter().cloned().collect();
    // Files carry the machine's time, also where this clock was moved.
    let machine_now = hands.clock.now() - hands.clock.offset();
    hands.lake.drop_old_live(&kept, READER_GRACE, machine_now)?;
    let parts = serde_json::to_string(&live_parts).unwrap_or_default();
    hands.ledger.set_meta(PARTS_KEY, &parts).await?;
    hands.ledger.set_meta(ROOT_KEY, &root).await?;
    Ok(hands.ledger.set_catalog_generation(generation).await?)
}

/// Repairs the catalog when a crash kept it behind the ledger, or the workspace was moved.
///
/// # Errors
///
/// As [`refresh`].
pub async fn repair(hands: &Hands) -> Result<(), StageError> {
    let is_behind = hands.ledger.catalog_generation().await? != hands.ledger.snapshots_generation().await?;
    let root = hands.ledger.get_meta(ROOT_KEY).await?;
    let was_moved = root.is_some_and(|root| hands.settings.root != std::path::Path::new(&root));
    let is_missing = !path(hands).exists() && hands.ledger.snapshots_generation().await? > 0;
    if is_behind || was_moved || is_missing { refresh(hands).await } else { Ok(()) }
}

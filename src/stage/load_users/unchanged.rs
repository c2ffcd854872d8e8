//! Files that are as they were: what was made of them last time is taken once more, and nothing is read but their bytes.
//!
//! Told apart is by content, not by times: the hash covers every file's name and bytes, what the stage says of them, who was
//! forgotten, and the version that reads them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::SourceFile;
use crate::config::settings::LoadUsers;
use crate::ledger::SnapshotRecord;
use crate::stage::{StageContext, StageError, blocking};

/// Raised when the same files would be read otherwise than before.
const READING: u32 = 2;

/// The hash of what a load reads.
///
/// # Errors
///
/// [`StageError::Rule`] for a file that cannot be read, [`StageError::Interrupted`].
pub async fn source_hash(cx: &StageContext<'_>, plan: &LoadUsers, files: &[SourceFile]) -> Result<String, StageError> {
    let mut hash = Sha256::new();
    hash.update(format!("{READING} {} {} ", env!("CARGO_PKG_VERSION"), cx.hands.settings.timezone));
    hash.update(format!("{:?}", Told::of(plan)));
    // Who was forgotten since is counted as the files name them.
    if let Some((_, forgotten)) = cx.hands.ledger.forgotten().await? {
        hash.update(format!("{forgotten:?}"));
    }
    for file in files {
        let shown = super::shown(cx, &file.shown);
        let path = file.on_disk.clone();
        let of_file = blocking(&cx.hands.engine, cx.stop, move |_| {
            content_hash(&path)
                .map_err(|error| StageError::Rule(format!("cannot read {}: {error}; look at the disk", path.display())))
        });
        hash.update(format!("{shown:?} {} ", of_file.await?));
    }
    Ok(format!("{:x}", hash.finalize()))
}

/// What the stage says that bears on its rows; where the files are said to be, and how old they may be, does not.
#[derive(Debug)]
#[expect(dead_code, reason = "read by its Debug alone")]
struct Told<'a> {
    reading: crate::exports::ReadOptions<'a>,
    types: &'a std::collections::BTreeMap<String, String>,
    on_new_column: crate::config::settings::OnNewColumn,
    max_bad: f64,
}

impl<'a> Told<'a> {
    fn of(plan: &'a LoadUsers) -> Self {
        Self {
            reading: super::options_of(plan),
            types: &plan.types,
            on_new_column: plan.on_new_column,
            max_bad: plan.max_bad,
        }
    }
}

fn content_hash(file: &Path) -> io::Result<String> {
    let mut file = File::open(file)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(format!("{:x}", hash.finalize())),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// The users and the quarantine that were made of the same source.
pub fn made_before<'a>(
    cx: &'a StageContext<'_>,
    plan: &LoadUsers,
    hash: &str,
) -> Option<(&'a SnapshotRecord, &'a SnapshotRecord)> {
    let table = cx.stage.table.as_ref()?;
    let users = cx.visible.slice(table.as_str(), plan.miniprogram.as_str())?;
    let quarantine = cx.visible.slice("quarantine", cx.stage.name.as_str())?;
    // What this run made before it was stopped is made anew: a run tells the same whether it was stopped or not.
    let is_earlier = |record: &SnapshotRecord| record.run_id != cx.run.run_id;
    let is_of_it = |record: &SnapshotRecord| record.source_hash.as_deref() == Some(hash) && is_earlier(record);
    let is_whole = |record: &SnapshotRecord| record.parts.iter().all(|part| cx.hands.lake.absolute(part).is_file());
    [users, quarantine].into_iter().all(|record| is_of_it(record) && is_whole(record)).then_some((users, quarantine))
}

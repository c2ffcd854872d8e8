//! Removing what nothing refers to: dropped snapshots, unfinished files, empty folders.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{DIGEST, Lake, LakeError};
use crate::clock::Timestamp;

/// What a vacuum removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    pub files: u64,
    pub bytes: u64,
}

impl Lake {
    /// Removes every file below `tables/` and `work/` that is older than `grace` and not among `kept` (relative paths),
    /// then the folders left empty. Files younger than `grace` stay: a stage may be about to record them.
    ///
    /// # Errors
    ///
    /// [`LakeError::Remove`], [`LakeError::Read`]; what was removed before stays removed.
    pub fn drop_unreferenced(
        &self,
        kept: &HashSet<String>,
        grace: Duration,
        now: Timestamp,
    ) -> Result<Dropped, LakeError> {
        let mut dropped = Dropped::default();
        for folder in ["tables", "work"] {
            self.drop_old(folder, kept, (grace, now), &mut dropped)?;
        }
        Ok(dropped)
    }

    /// The same for what the ledger's tables were written out to for readers (`work/live/`): each look leaves some.
    ///
    /// # Errors
    ///
    /// As [`drop_unreferenced`](Self::drop_unreferenced).
    pub fn drop_old_live(&self, kept: &HashSet<String>, grace: Duration, now: Timestamp) -> Result<Dropped, LakeError> {
        let mut dropped = Dropped::default();
        self.drop_old("work/live", kept, (grace, now), &mut dropped)?;
        Ok(dropped)
    }

    fn drop_old(
        &self,
        folder: &str,
        kept: &HashSet<String>,
        (grace, now): (Duration, Timestamp),
        dropped: &mut Dropped,
    ) -> Result<(), LakeError> {
        let oldest_kept = SystemTime::from(now).checked_sub(grace).unwrap_or(SystemTime::UNIX_EPOCH);
        let folder = self.root.join(folder);
        if folder.exists() {
            self.sweep(&folder, kept, oldest_kept, dropped)?;
        }
        Ok(())
    }

    fn sweep(
        &self,
        folder: &Path,
        kept: &HashSet<String>,
        oldest_kept: SystemTime,
        dropped: &mut Dropped,
    ) -> Result<bool, LakeError> {
        let read_error = |source| LakeError::Read { path: folder.to_owned(), source };
        let mut is_empty = true;
        for entry in std::fs::read_dir(folder).map_err(read_error)? {
            let entry = entry.map_err(read_error)?;
            let path = entry.path();
            let meta = entry.metadata().map_err(read_error)?;
            if meta.is_dir() {
                if self.sweep(&path, kept, oldest_kept, dropped)? {
                    // Another process may have just put a file into it: then it stays.
                    let _ = std::fs::remove_dir(&path);
                } else {
                    is_empty = false;
                }
                continue;
            }
            let is_digest = path.extension().is_some_and(|extension| extension == DIGEST);
            let relative = self.relative(&if is_digest { path.with_extension("parquet") } else { path.clone() });
            let is_young = meta.modified().map_or(true, |at| at > oldest_kept);
            if kept.contains(&relative) || is_young {
                is_empty = false;
                continue;
            }
            std::fs::remove_file(&path).map_err(|source| LakeError::Remove { path: path.clone(), source })?;
            dropped.files += 1;
            dropped.bytes += meta.len();
        }
        Ok(is_empty)
    }
}

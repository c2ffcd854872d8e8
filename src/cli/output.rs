//! A file that a person asks for with `-o`: never one of those that the workspace lives by.

use std::path::{Path, PathBuf};

use super::exit::Failure;
use crate::config::settings::Settings;

/// What can be known before anything is written.
///
/// # Errors
///
/// [`Failure::Usage`] when `path` cannot be written, or is the workspace's own.
pub fn may_be_written(path: &Path, settings: &Settings) -> Result<(), Failure> {
    let refused = |why: &str| Err(Failure::Usage(format!("{} cannot be written: {why}", path.display())));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(folder) = folder.canonicalize() else { return refused("its folder is not there") };
    if let Some(own) = own_of(&folder, path, settings) {
        return refused(&format!("{own} of this workspace; name a file elsewhere"));
    }
    match path.metadata() {
        Ok(found) if !found.is_file() => refused("it is there, and is no file"),
        _ => Ok(()),
    }
}

/// What of the workspace stands, or would stand, under that name.
fn own_of(folder: &Path, path: &Path, settings: &Settings) -> Option<&'static str> {
    let is_in = |own: &Path| own.canonicalize().is_ok_and(|own| folder.starts_with(own));
    let is_beside = |own: &Path| own.parent().and_then(|own| own.canonicalize().ok()).as_deref() == Some(folder);
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let begins_as = |own: &Path| {
        let own = own.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        !own.is_empty() && name.starts_with(&own)
    };
    let folders: [(PathBuf, &str); 3] = [
        (settings.root.join("config"), "it is in the configuration"),
        (settings.root.join("pipelines"), "it is among the pipelines"),
        (settings.lake.root.clone(), "it is in the lake"),
    ];
    // Beside the ledger and the catalog stand files that are named after them.
    let files: [(PathBuf, &str); 3] = [
        (settings.ledger.path.clone(), "it is the ledger"),
        (settings.root.join("data/catalog.duckdb"), "it is the catalog"),
        (settings.root.join(".env"), "it is the environment"),
    ];
    let folder = folders.iter().find(|(own, _)| is_in(own)).map(|(_, what)| *what);
    folder.or_else(|| files.iter().find(|(own, _)| is_beside(own) && begins_as(own)).map(|(_, what)| *what))
}

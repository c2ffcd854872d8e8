//! Where the workspace is, and the files in it that hold settings.
//!
//! Finds and reads; what the files say is read elsewhere. Makes nothing.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::problems::Problems;

/// The file that makes a folder a workspace.
pub const CONFIG_FILE: &str = "config/lianbo.toml";
/// Where the pipelines are, and their SQL below.
pub(super) const PIPELINES: &str = "pipelines";
/// The variable that names the workspace.
pub const WORKSPACE_VARIABLE: &str = "LIANBO_WORKSPACE";

/// Why there is no workspace to work in.
#[derive(Debug, thiserror::Error)]
pub enum NoWorkspace {
    #[error("no {CONFIG_FILE} in {} (named by {named_by}); `lianbo init DIR` makes a workspace", folder.display())]
    NotThere { folder: PathBuf, named_by: &'static str },
    #[error(
        "no {CONFIG_FILE} in {} or any folder above it; name a workspace with --workspace DIR or {WORKSPACE_VARIABLE}, \
         or make one with `lianbo init`",
        start.display()
    )]
    NotFound { start: PathBuf },
    #[error("finding the current folder")]
    CurrentFolder(#[source] std::io::Error),
}

/// The workspace: `explicit` (`--workspace`), else what `LIANBO_WORKSPACE` names, else the nearest folder from the current
/// one upwards that has a `config/lianbo.toml`. An absolute path.
///
/// # Errors
///
/// [`NoWorkspace`] says which folders were looked at.
pub fn find_workspace(explicit: Option<&Path>) -> Result<PathBuf, NoWorkspace> {
    let current = std::env::current_dir().map_err(NoWorkspace::CurrentFolder)?;
    find_from(explicit, std::env::var_os(WORKSPACE_VARIABLE), &current)
}

fn find_from(explicit: Option<&Path>, variable: Option<OsString>, current: &Path) -> Result<PathBuf, NoWorkspace> {
    let variable = variable.filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = match (explicit, variable) {
        (Some(folder), _) => Some((folder.to_owned(), "--workspace")),
        (None, Some(folder)) => Some((folder, WORKSPACE_VARIABLE)),
        (None, None) => None,
    };
    if let Some((folder, named_by)) = named {
        let folder = tidy(&current.join(folder));
        if folder.join(CONFIG_FILE).is_file() {
            return Ok(folder);
        }
        return Err(NoWorkspace::NotThere { folder, named_by });
    }
    current
        .ancestors()
        .find(|folder| folder.join(CONFIG_FILE).is_file())
        .map(Path::to_owned)
        .ok_or_else(|| NoWorkspace::NotFound { start: current.to_owned() })
}

/// The path without `.` and `..`, links resolved, where it exists.
pub(super) fn tidy(path: &Path) -> PathBuf {
    path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}

/// A file's text under its path relative to the workspace.
#[derive(Debug)]
pub(super) struct SourceFile {
    pub path: PathBuf,
    pub text: String,
}

/// Reads a text file of the workspace, or reports why it cannot be read; its text is known to `problems` from then on.
pub(super) fn read_text(root: &Path, path: &Path, problems: &mut Problems) -> Option<SourceFile> {
    match std::fs::read(root.join(path)) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => {
                problems.register_source(path, text.as_str());
                Some(SourceFile { path: path.to_owned(), text })
            }
            Err(error) => {
                let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
                problems.in_file(path, format!("line {line} is not UTF-8 text")).hint("save the file as UTF-8");
                None
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            problems.in_file(path, "there is no such file").hint("`lianbo init` makes a workspace with all files");
            None
        }
        Err(error) => {
            problems.in_file(path, format!("cannot be read: {error}")).hint("check who may read it");
            None
        }
    }
}

/// Every `pipelines/*.toml`, by name.
pub(super) fn pipeline_files(root: &Path, problems: &mut Problems) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(root.join(PIPELINES)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            problems.in_file(PIPELINES, format!("cannot be read: {error}")).hint("check who may read it");
            return Vec::new();
        }
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| Path::new(PIPELINES).join(entry.file_name()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml") && root.join(path).is_file())
        .filter(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')))
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(at: &Path) -> PathBuf {
        std::fs::create_dir_all(at.join("config")).unwrap();
        std::fs::write(at.join(CONFIG_FILE), "").unwrap();
        at.canonicalize().unwrap()
    }

    #[test]
    fn the_flag_wins_over_the_variable_and_that_over_the_folders_above() {
        let folder = tempfile::tempdir().unwrap();
        let above = workspace(folder.path());
        let (flag, variable) = (workspace(&above.join("flag")), workspace(&above.join("variable")));
        let deep = above.join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        assert_eq!(find_from(Some(&flag), Some(variable.clone().into()), &deep).unwrap(), flag);
        assert_eq!(find_from(None, Some(variable.clone().into()), &deep).unwrap(), variable);
        assert_eq!(find_from(None, None, &deep).unwrap(), above);
        assert_eq!(find_from(Some(Path::new("../../flag")), None, &deep).unwrap(), flag);
    }

    #[test]
    fn a_named_folder_without_settings_is_an_error_even_below_a_workspace() {
        let folder = tempfile::tempdir().unwrap();
        let above = workspace(folder.path());
        let error = find_from(Some(Path::new("nowhere")), None, &above).unwrap_err();
        assert!(error.to_string().contains("--workspace"), "{error}");
    }
}

//! `lianbo init`: a new workspace with commented files. A file that is there already is never written over.

use std::fmt::Write;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;

use super::context::Context;
use super::exit::{Exit, Failure};
use crate::config::{CONFIG_FILE, workspace_files};

/// Where the shipped `load_users` stage looks for what the mini program hands over.
pub(super) const EXPORTS: &str = "data/exports/mall";
const GITIGNORE: (&str, &str) =
    (".gitignore", "/.env\n/data/lake\n/data/published\n/data/ledger.db*\n/data/catalog.duckdb*\n/data/logs\n");
const EXPORTS_README: &str = "\
Here belongs what the mini program's team hands over of its users: a CSV file with openid, unionid, last_login and
whatever else the campaigns choose by. pipelines/nightly.toml says which files are read and how columns are named.
";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder; left out: the current one
    dir: Option<PathBuf>,
}

/// What was made.
#[derive(Debug, Serialize)]
struct Made {
    workspace: PathBuf,
    written: Vec<String>,
    kept: Vec<String>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let dir = args.dir.or_else(|| context.workspace.clone()).unwrap_or_else(|| PathBuf::from("."));
    if dir.join(CONFIG_FILE).exists() {
        let folder = dir.display();
        return Err(Failure::Usage(format!("{folder} is a workspace already; nothing was written")));
    }
    let made = unpack(&dir)?;
    context.print(&made, describe);
    Ok(Exit::Done)
}

fn unpack(dir: &Path) -> Result<Made, Failure> {
    let readme = format!("{EXPORTS}/README.txt");
    let own = [(readme.as_str(), EXPORTS_README), GITIGNORE];
    let mut made = Made { workspace: dir.to_owned(), written: Vec::new(), kept: Vec::new() };
    for (path, text) in workspace_files().iter().chain(&own) {
        let list = if write_new(&dir.join(path), text)? { &mut made.written } else { &mut made.kept };
        list.push((*path).to_owned());
    }
    made.workspace = dir.canonicalize().with_context(|| format!("finding {}", dir.display()))?;
    Ok(made)
}

/// Writes a file with the folders above it; false when one is there already, which stays as it is.
///
/// # Errors
///
/// [`Failure::Other`] when it cannot be written.
pub(super) fn write_new(path: &Path, text: &str) -> Result<bool, Failure> {
    let writing = || format!("writing {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(writing)?;
    }
    match std::fs::File::create_new(path) {
        Ok(mut file) => {
            file.write_all(text.as_bytes()).with_context(writing)?;
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Failure::Other(anyhow::Error::new(error).context(writing()))),
    }
}

fn describe(made: &Made) -> String {
    let mut text = format!("A workspace in {}:\n", made.workspace.display());
    for path in &made.written {
        writeln!(text, "  {path}").expect("writing to a String cannot fail");
    }
    for path in &made.kept {
        writeln!(text, "  {path} was there and stays as it is").expect("writing to a String cannot fail");
    }
    text.push_str(&next_steps(&made.workspace));
    text
}

fn next_steps(workspace: &Path) -> String {
    format!(
        "
Next:
  cd {}
  cp .env.example .env       # the account's AppID and secret; WeChat's address; else it talks to `lianbo simulate`
  # put the mini program's users into {EXPORTS}/, as CSV
  lianbo check --online      # files and SQL, then token, IP whitelist, quotas, templates
  lianbo run nightly
  lianbo coverage            # whom you can reach
",
        workspace.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_written_once_and_what_is_there_stays() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("shop");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(".env.example"), "mine").unwrap();
        let made = unpack(&dir).unwrap();
        assert_eq!(made.kept, [".env.example"]);
        assert_eq!(std::fs::read_to_string(dir.join(".env.example")).unwrap(), "mine");
        assert!(dir.join(CONFIG_FILE).is_file() && dir.join("pipelines/campaign/audience.sql").is_file());
        let again = unpack(&dir).unwrap();
        assert!(again.written.is_empty());
    }

    #[test]
    fn a_new_workspace_has_no_problems() {
        let folder = tempfile::tempdir().unwrap();
        unpack(folder.path()).unwrap();
        let environment = crate::config::Environment::from_pairs::<&str, &str>([]);
        let loaded = crate::config::load(folder.path(), &environment);
        assert!(loaded.settings.is_some(), "{}", loaded.problems);
    }
}

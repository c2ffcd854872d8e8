//! Python packages for a story: installed once a machine, pinned, into a folder of the cache.

use std::path::{Path, PathBuf};

use tokio::process::Command;

/// A Python with the packages, in an environment called `name`, which grows with them; `None` where it cannot be had and
/// nobody insists.
pub async fn python(name: &str, packages: &[&str]) -> Option<PathBuf> {
    let home = |name: &str| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let cache = home("LIANBO_CACHE")
        .or_else(|| home("XDG_CACHE_HOME").map(|path| path.join("lianbo")))
        .or_else(|| home("HOME").map(|path| path.join(".cache/lianbo")))
        .unwrap_or_else(|| std::env::temp_dir().join("lianbo"));
    // Stories run side by side: one makes it, the others wait.
    static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _alone = ONE.lock().await;
    let folder = cache.join(name);
    let (python, ready) = (folder.join("bin/python"), folder.join("ready"));
    if ready.exists() {
        return Some(python);
    }
    match make(&folder, packages).await {
        Ok(()) => {
            std::fs::write(ready, packages.join("\n")).unwrap();
            Some(python)
        }
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "no Python with {packages:?}: {why}");
            eprintln!("skipped: no Python with {packages:?}: {why}");
            None
        }
    }
}

async fn make(folder: &Path, packages: &[&str]) -> Result<(), String> {
    std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
    let run = async |program: &Path, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().await.map_err(|error| error.to_string())?;
        output.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
    };
    run(Path::new("python3"), &["-m", "venv", folder.to_str().unwrap()]).await?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"];
    run(&folder.join("bin/python"), &[&pip[..], packages].concat()).await
}

//! Real database servers for a story: started in a temporary folder on a free port, stopped with it.
//!
//! They refuse to run as root, so that they are somebody else's where the tests are root's.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use sqlx::mysql::MySqlConnectOptions;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};

use crate::house::comes_true;

/// Stands in no log, error, ledger or lake.
pub const PASSWORD: &str = "hunter2/quite#secret";
const NOBODY: u32 = 65534;
const START: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    MariaDb,
    Postgres,
}

/// A server with a database `mall`, a user `lianbo` who may do everything in it, and a certificate for `localhost`.
pub struct Server {
    pub kind: Kind,
    pub port: u16,
    folder: tempfile::TempDir,
    process: Child,
}

/// Both servers, or `None` where this machine has none of them and nobody insists.
pub async fn both() -> Option<[Server; 2]> {
    let (maria, postgres) = tokio::join!(Server::start(Kind::MariaDb), Server::start(Kind::Postgres));
    Some([maria?, postgres?])
}

impl Server {
    async fn start(kind: Kind) -> Option<Self> {
        let Some(programs) = kind.programs() else {
            assert!(std::env::var_os("CI").is_none(), "{kind:?} is not installed: see .ci/run");
            eprintln!("skipped: {kind:?} is not installed (apt-get install mariadb-server postgresql)");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        certify(folder.path());
        let [prepare, serve] = programs;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let is_root =
            std::fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own)).unwrap() == 0;
        if is_root {
            for path in ["", "server.pem", "server.key"] {
                chown(folder.path().join(path), Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        let command = |program: &Path| {
            let mut command = Command::new(program);
            command.current_dir(folder.path()).env("HOME", folder.path()).env("TMPDIR", folder.path());
            command.stdin(Stdio::null());
            command.stdout(Stdio::null()).stderr(std::fs::File::create(folder.path().join("log")).unwrap());
            if is_root {
                command.uid(NOBODY).gid(NOBODY);
            }
            command
        };
        let prepared = tokio::task::block_in_place(|| {
            command(&prepare).args(kind.prepare_arguments(folder.path())).status().unwrap()
        });
        let log = || std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        assert!(prepared.success(), "{kind:?}: {}", log());
        let process = command(&serve).args(kind.serve_arguments(folder.path(), port)).spawn().unwrap();
        let server = Self { kind, port, folder, process };
        comes_true(START, async || server.try_run("select 1", true).await.is_ok()).await;
        server.settle_in().await;
        Some(server)
    }

    async fn settle_in(&self) {
        let sql = match self.kind {
            Kind::MariaDb => format!(
                "create database mall character set utf8mb4; create user lianbo@'%' identified by '{PASSWORD}';
                 grant all on mall.* to lianbo@'%'; drop user if exists ''@localhost; set global log_bin_trust_function_creators = 1"
            ),
            Kind::Postgres => format!("create user lianbo password '{PASSWORD}'"),
        };
        self.try_run(&sql, true).await.unwrap();
        if self.kind == Kind::Postgres {
            self.try_run("create database mall owner lianbo", true).await.unwrap();
        }
    }

    /// Where the server is, for a configuration that has the password out of the environment.
    pub fn url(&self, host: &str, settings: &str) -> String {
        let scheme = if self.kind == Kind::MariaDb { "mysql" } else { "postgres" };
        format!("{scheme}://lianbo:${{MALL_PASSWORD}}@{host}:{}/mall{settings}", self.port)
    }

    /// Whoever trusts this trusts the server.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// Runs statements in `mall`.
    pub async fn run(&self, sql: &str) {
        self.try_run(sql, false).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// The only value of a query, as text.
    pub async fn value(&self, sql: &str) -> String {
        let sql = AssertSqlSafe(sql.to_owned());
        match self.kind {
            Kind::MariaDb => {
                let mut line = self.maria(false).connect().await.unwrap();
                sqlx::query_scalar::<_, String>(sql).fetch_one(&mut line).await.unwrap()
            }
            Kind::Postgres => {
                let mut line = self.postgres(false).connect().await.unwrap();
                sqlx::query_scalar::<_, String>(sql).fetch_one(&mut line).await.unwrap()
            }
        }
    }

    async fn try_run(&self, sql: &str, as_root: bool) -> Result<(), sqlx::Error> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match self.kind {
            Kind::MariaDb => sql.execute(&mut self.maria(as_root).connect().await?).await.map(|_| ()),
            Kind::Postgres => sql.execute(&mut self.postgres(as_root).connect().await?).await.map(|_| ()),
        }
    }

    fn maria(&self, as_root: bool) -> MySqlConnectOptions {
        let options = MySqlConnectOptions::new().socket(self.folder.path().join("socket"));
        if as_root { options.username("root") } else { options.username("lianbo").password(PASSWORD).database("mall") }
    }

    fn postgres(&self, as_root: bool) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass().socket(self.folder.path()).port(self.port);
        if as_root {
            options.username("root").database("postgres")
        } else {
            options.username("lianbo").password(PASSWORD).database("mall")
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // What it keeps is thrown away: there is nothing to end in peace.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Kind {
    /// What prepares a server's folder, and the server.
    fn programs(self) -> Option<[PathBuf; 2]> {
        let found = |names: [&str; 2], folders: &[PathBuf]| {
            let of_folder = |folder: &PathBuf| names.map(|name| folder.join(name));
            folders.iter().map(of_folder).find(|programs| programs.iter().all(|program| program.is_file()))
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        match self {
            Self::MariaDb => {
                folders.extend(["/usr/sbin", "/usr/bin"].map(PathBuf::from));
                let of = |name: &str| folders.iter().map(|folder| folder.join(name)).find(|program| program.is_file());
                Some([of("mariadb-install-db")?, of("mariadbd")?])
            }
            Self::Postgres => {
                let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
                folders.extend(versions.map(|version| version.path().join("bin")));
                found(["initdb", "postgres"], &folders)
            }
        }
    }

    fn prepare_arguments(self, folder: &Path) -> Vec<String> {
        let data = folder.join("data").display().to_string();
        match self {
            Self::MariaDb => vec![
                "--no-defaults".into(),
                format!("--datadir={data}"),
                "--auth-root-authentication-method=normal".into(),
                "--skip-test-db".into(),
                "--innodb-log-file-size=8M".into(),
            ],
            Self::Postgres => ["-D", &data, "-U", "root", "-E", "UTF8", "--locale=C", "--no-sync", "--wal-segsize=1"]
                .map(str::to_owned)
                .into_iter()
                .chain(["--auth-local=trust", "--auth-host=scram-sha-256"].map(str::to_owned))
                .collect(),
        }
    }

    fn serve_arguments(self, folder: &Path, port: u16) -> Vec<String> {
        let file = |name: &str| folder.join(name).display().to_string();
        match self {
            Self::MariaDb => vec![
                "--no-defaults".into(),
                format!("--datadir={}", file("data")),
                format!("--port={port}"),
                "--bind-address=127.0.0.1".into(),
                format!("--socket={}", file("socket")),
                format!("--pid-file={}", file("pid")),
                format!("--ssl-cert={}", file("server.pem")),
                format!("--ssl-key={}", file("server.key")),
                "--innodb-flush-log-at-trx-commit=0".into(),
                "--innodb-log-file-size=8M".into(),
            ],
            Self::Postgres => {
                let mut arguments: Vec<String> =
                    ["-D", &file("data"), "-p", &port.to_string(), "-k"].map(str::to_owned).into();
                arguments.push(folder.display().to_string());
                for setting in [
                    "listen_addresses=127.0.0.1".to_owned(),
                    "fsync=off".to_owned(),
                    "ssl=on".to_owned(),
                    format!("ssl_cert_file={}", file("server.pem")),
                    format!("ssl_key_file={}", file("server.key")),
                ] {
                    arguments.extend(["-c".to_owned(), setting]);
                }
                arguments
            }
        }
    }
}

fn certify(folder: &Path) {
    let mut of_authority = CertificateParams::default();
    of_authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(of_authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    std::fs::write(folder.join("authority.pem"), authority.pem()).unwrap();
    std::fs::write(folder.join("server.pem"), certificate.pem()).unwrap();
    let path = folder.join("server.key");
    std::fs::write(&path, key.serialize_pem()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

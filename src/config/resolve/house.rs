//! `config/lianbo.toml` → what the whole house shares: zone, accounts, mini programs, ledger, lake, engine, server, alerts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use chrono_tz::Tz;

use super::{account, defaults, fields};
use crate::config::file::{Field, Section};
use crate::config::problems::suggestion;
use crate::config::settings::{
    Account, AlertSettings, AlertStyle, EngineSettings, LakeSettings, LedgerSettings, MiniProgram, Pipeline,
    ServerSettings, Settings,
};
use crate::config::units;
use crate::domain::{AccountName, MiniProgramName};
use crate::template::fields::FieldRules;

/// What `config/lianbo.toml` says, and what pipelines are read against.
pub(in crate::config) struct House {
    pub root: PathBuf,
    /// `false`: the file could not be read, so that no name can be called unknown.
    pub names_known: bool,
    pub timezone: Tz,
    pub accounts: BTreeMap<AccountName, Account>,
    pub miniprograms: BTreeMap<MiniProgramName, MiniProgram>,
    ledger: LedgerSettings,
    lake: LakeSettings,
    engine: EngineSettings,
    server: ServerSettings,
    alerts: AlertSettings,
    fields: FieldRules,
}

impl House {
    /// The house of a workspace whose `config/lianbo.toml` cannot be read.
    pub fn unknown(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            names_known: false,
            timezone: defaults::TIMEZONE,
            accounts: BTreeMap::new(),
            miniprograms: BTreeMap::new(),
            ledger: LedgerSettings { path: sqlite_path(root, defaults::LEDGER_URL).unwrap_or_default() },
            lake: LakeSettings { root: root.join(defaults::LAKE_URL) },
            engine: default_engine(),
            server: ServerSettings { listen: default_listen(), token: None },
            alerts: AlertSettings { webhook: None, style: AlertStyle::Plain, heartbeat: None },
            fields: FieldRules::documented(),
        }
    }

    pub fn into_settings(self, pipelines: Vec<Pipeline>) -> Settings {
        Settings {
            root: self.root,
            timezone: self.timezone,
            accounts: self.accounts,
            miniprograms: self.miniprograms,
            ledger: self.ledger,
            lake: self.lake,
            engine: self.engine,
            server: self.server,
            alerts: self.alerts,
            fields: self.fields,
            pipelines: pipelines.into_iter().map(|pipeline| (pipeline.name.clone(), pipeline)).collect(),
        }
    }
}

/// Reads the file; `root` is absolute.
pub(super) fn read(root: &Path, mut file: Section<'_>) -> House {
    let mut house = House { names_known: true, ..House::unknown(root) };
    if let Some(zone) = file.take("timezone").and_then(|field| field.unit(units::timezone)) {
        house.timezone = zone;
    }
    let mut app_ids = AppIds::default();
    for field in file.section("accounts", "`[accounts]`").fields() {
        let Some(section) = field.section(format!("the account `{}`", field.name)) else { continue };
        check_name(&field, "an account");
        let (name, of_app_id) = (AccountName::new(field.name), field_of(&section, "app_id"));
        let account = account::read(name.clone(), section);
        app_ids.is_of(format!("account `{name}`"), of_app_id.as_ref(), &account.app_id);
        house.accounts.insert(name, account);
    }
    for field in file.section("miniprograms", "`[miniprograms]`").fields() {
        let Some(section) = field.section(format!("the mini program `{}`", field.name)) else { continue };
        check_name(&field, "a mini program");
        let (name, of_app_id) = (MiniProgramName::new(field.name), field_of(&section, "app_id"));
        let miniprogram = miniprogram(name.clone(), section);
        app_ids.is_of(format!("mini program `{name}`"), of_app_id.as_ref(), &miniprogram.app_id);
        house.miniprograms.insert(name, miniprogram);
    }
    house.ledger =
        LedgerSettings { path: ledger(root, file.section("ledger", "`[ledger]`")).unwrap_or(house.ledger.path) };
    house.lake = LakeSettings { root: lake(root, file.section("lake", "`[lake]`")).unwrap_or(house.lake.root) };
    house.engine = engine(file.section("engine", "`[engine]`"));
    house.server = server(file.section("server", "`[server]`"));
    house.alerts = alerts(file.section("alerts", "`[alerts]`"));
    house.fields = fields::read(&file.section("fields", "`[fields]`"));
    file.finish();
    house
}

fn field_of<'a>(section: &Section<'a>, key: &str) -> Option<Field<'a>> {
    section.fields().into_iter().find(|field| field.name == key)
}

/// Who has which app id. Of two with one, everything would be done twice to the same people.
#[derive(Default)]
struct AppIds(BTreeMap<String, String>);

impl AppIds {
    /// Refuses an app id that another has as well.
    fn is_of(&mut self, who: String, field: Option<&Field<'_>>, app_id: &str) {
        let Some(field) = field.filter(|_| !app_id.is_empty()) else { return };
        match self.0.get(app_id) {
            Some(other) => field.refuse(
                format!("{who} and {other} have one app id, \"{app_id}\""),
                "each account and mini program has an AppID of its own: put it right, or leave one of both out",
            ),
            None => drop(self.0.insert(app_id.to_owned(), who)),
        }
    }
}

/// Names stand in paths, addresses and tables, where `*` means all of them together.
fn check_name(field: &Field<'_>, what: &str) {
    let fits = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    if field.name.is_empty() || !field.name.chars().all(fits) {
        field.refuse_key(format!("`{}` cannot name {what}", field.name), "use letters, digits, `_` and `-`");
    }
}

fn miniprogram(name: MiniProgramName, mut section: Section<'_>) -> MiniProgram {
    let app_id =
        section.require("app_id", "the mini program's own AppID, from its console").and_then(|field| field.full_text());
    let app_secret = section.take("app_secret").and_then(|field| field.optional_secret());
    section.finish();
    MiniProgram { name, app_id: app_id.unwrap_or_default(), app_secret }
}

fn sqlite_path(root: &Path, url: &str) -> Option<PathBuf> {
    url.strip_prefix("sqlite://").filter(|path| !path.is_empty() && !path.contains('?')).map(|path| root.join(path))
}

fn ledger(root: &Path, mut section: Section<'_>) -> Option<PathBuf> {
    let field = section.take("url");
    section.finish();
    let field = field?;
    let url = field.full_text()?;
    let path = sqlite_path(root, &url);
    if path.is_none() {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            field.refuse(
                "a ledger in PostgreSQL is not supported yet",
                format!("use url = \"{}\"", defaults::LEDGER_URL),
            );
        } else {
            field.refuse("this is not the address of a ledger", format!("write url = \"{}\"", defaults::LEDGER_URL));
        }
    }
    path
}

fn lake(root: &Path, mut section: Section<'_>) -> Option<PathBuf> {
    let field = section.take("url");
    section.finish();
    let field = field?;
    let url = field.full_text()?;
    if url.contains("://") {
        let scheme = url.split("://").next().unwrap_or_default();
        field.refuse(
            format!("a lake at {scheme}:// is not supported yet"),
            format!("use a folder: url = \"{}\"", defaults::LAKE_URL),
        );
        return None;
    }
    Some(root.join(url))
}

fn default_engine() -> EngineSettings {
    EngineSettings {
        memory_limit: defaults::MEMORY_LIMIT.to_owned(),
        memory_limit_bytes: units::size(defaults::MEMORY_LIMIT).expect("the default is a size"),
        threads: 0,
    }
}

fn engine(mut section: Section<'_>) -> EngineSettings {
    let mut engine = default_engine();
    if let Some(field) = section.take("kind")
        && field.choice(&[("duckdb", false), ("spark", true)]) == Some(true)
    {
        field.refuse("the engine `spark` is not supported yet", "use kind = \"duckdb\"");
    }
    if let Some(field) = section.take("memory_limit")
        && let Some(bytes) = field.unit(units::size)
    {
        let text = field.text().unwrap_or_default();
        if bytes < defaults::LEAST_MEMORY_BYTES {
            field.refuse(
                format!("\"{text}\" is less memory than the engine works with"),
                format!("use {} or more: \"{}\"", defaults::LEAST_MEMORY, defaults::MEMORY_LIMIT),
            );
        } else {
            engine.memory_limit = text;
            engine.memory_limit_bytes = bytes;
        }
    }
    if let Some(threads) = section.take("threads").and_then(|field| field.count("threads", 0..=1024)) {
        engine.threads = usize::try_from(threads).expect("at most 1024");
    }
    section.finish();
    engine
}

fn default_listen() -> SocketAddr {
    defaults::LISTEN.parse().expect("the default is an address")
}

fn server(mut section: Section<'_>) -> ServerSettings {
    let listen_field = section.take("listen");
    let token = section.take("token").and_then(|field| field.optional_secret());
    section.finish();
    let Some(field) = listen_field else { return ServerSettings { listen: default_listen(), token } };
    let listen = field.text().and_then(|text| {
        let parsed = text.parse::<SocketAddr>().ok();
        if parsed.is_none() {
            field.refuse(
                format!("\"{text}\" is not an address to listen on"),
                "write a number address and a port: \"127.0.0.1:8787\"",
            );
        }
        parsed
    });
    if listen.is_some_and(|address| !address.ip().is_loopback()) && token.is_none() {
        field.refuse(
            "an address others can reach needs a token, and `[server]` has none",
            "set token = \"${LIANBO_TOKEN}\" and export LIANBO_TOKEN, or listen on 127.0.0.1",
        );
    }
    ServerSettings { listen: listen.unwrap_or_else(default_listen), token }
}

fn alerts(mut section: Section<'_>) -> AlertSettings {
    let webhook = section.take("webhook").and_then(|field| optional_address(&field));
    let style = section.take("style").and_then(|field| {
        field.choice(&[
            ("plain", AlertStyle::Plain),
            ("wecom", AlertStyle::Wecom),
            ("feishu", AlertStyle::Feishu),
            ("dingtalk", AlertStyle::Dingtalk),
        ])
    });
    let heartbeat = section.take("heartbeat").and_then(|field| optional_address(&field));
    section.finish();
    AlertSettings { webhook, style: style.unwrap_or(AlertStyle::Plain), heartbeat }
}

fn optional_address(field: &Field<'_>) -> Option<String> {
    let text = field.optional_text()?;
    if !is_address(&text) {
        field.refuse("this is not an address", "write http://… or https://…, or leave it empty");
    }
    Some(text)
}

/// Whether `text` is `http://` or `https://` and a host.
pub(in crate::config) fn is_address(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        !rest.starts_with(['/', ':', '?']) && !rest.is_empty() && !rest.contains(char::is_whitespace)
    })
}

/// What to do about a name that is none of `known`.
pub(in crate::config) fn unknown_name<'a>(
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
    table: &str,
) -> String {
    suggestion(name, known, &format!("config/lianbo.toml has no [{table}.…] yet"))
}

//! The settings layer: what the rooms receive. Complete and checked; every default stands in `resolve`, nowhere else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{NaiveDateTime, NaiveTime};
use chrono_tz::Tz;
use secrecy::SecretString;

use crate::domain::{
    AccountName, BucketAddress, DatabaseAddress, MiniProgramName, OpenId, PipelineName, StageName, TableName,
    TemplateId,
};
use crate::template::fields::FieldRules;

/// A whole workspace, ready to be wired.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Absolute path of the workspace folder.
    pub root: PathBuf,
    pub timezone: Tz,
    pub accounts: BTreeMap<AccountName, Account>,
    pub miniprograms: BTreeMap<MiniProgramName, MiniProgram>,
    pub ledger: LedgerSettings,
    pub lake: LakeSettings,
    pub engine: EngineSettings,
    pub server: ServerSettings,
    pub alerts: AlertSettings,
    /// What fields of messages may hold.
    pub fields: FieldRules,
    pub pipelines: BTreeMap<PipelineName, Pipeline>,
}

impl Settings {
    /// `path` as given in a file, against the workspace.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }
}

/// An Official Account.
#[derive(Debug, Clone)]
pub struct Account {
    pub name: AccountName,
    pub app_id: String,
    pub app_secret: SecretString,
    /// Scheme and host without a trailing slash.
    pub api_base: String,
    pub token: TokenSource,
    /// The key of the mini program's page in a message: `pagepath`, `path` or `page`.
    pub page_key: String,
    /// Read calls in flight, all stages of this account together.
    pub concurrency: usize,
    /// The ceiling over all pushes of this account together, sends a second.
    pub send_rate: Option<f64>,
    pub timeout: Duration,
    pub quota: AccountQuota,
    pub callback_token: Option<SecretString>,
    pub encoding_aes_key: Option<SecretString>,
}

#[derive(Debug, Clone)]
pub enum TokenSource {
    Stable,
    Legacy,
    /// A token centre of the house: GET answers `{"access_token","expires_in"}`.
    Centre {
        url: String,
    },
}

/// Our own ceilings in calls a quota day, by endpoint (`message/template/send`).
#[derive(Debug, Clone, Default)]
pub struct AccountQuota {
    pub ceilings: BTreeMap<String, u64>,
    /// Kept for pushes with `priority = "service"`.
    pub reserve: BTreeMap<String, u64>,
}

#[derive(Debug, Clone)]
pub struct MiniProgram {
    pub name: MiniProgramName,
    pub app_id: String,
    pub app_secret: Option<SecretString>,
}

/// A SQLite file.
#[derive(Debug, Clone)]
pub struct LedgerSettings {
    /// Absolute.
    pub path: PathBuf,
}

#[derive(Debug, Clone)]
pub struct LakeSettings {
    /// Absolute.
    pub root: PathBuf,
}

#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// As DuckDB reads it (`4GB`).
    pub memory_limit: String,
    pub memory_limit_bytes: u64,
    /// 0: all processors.
    pub threads: usize,
}

#[derive(Debug, Clone)]
pub struct ServerSettings {
    pub listen: std::net::SocketAddr,
    pub token: Option<SecretString>,
}

#[derive(Debug, Clone)]
pub struct AlertSettings {
    pub webhook: Option<String>,
    pub style: AlertStyle,
    pub heartbeat: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlertStyle {
    Plain,
    Wecom,
    Feishu,
    Dingtalk,
}

/// Where something stands in a file, for problems found after reading (SQL, stages, tables).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Relative to the workspace (`pipelines/nightly.toml`).
    pub file: PathBuf,
    /// Byte range in the file.
    pub span: std::ops::Range<usize>,
}

#[derive(Debug, Clone)]
pub struct Pipeline {
    pub name: PipelineName,
    /// Relative to the workspace.
    pub file: PathBuf,
    pub description: String,
    pub schedule: Option<Schedule>,
    pub catch_up: CatchUp,
    pub after: Vec<PipelineName>,
    pub retry: Option<Retry>,
    pub params: BTreeMap<String, ParamValue>,
    /// In the order of the file.
    pub stages: Vec<Stage>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// Six fields, seconds first; checked.
    Cron(String),
    /// Local time in the workspace's zone, once.
    Once(NaiveDateTime),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatchUp {
    Latest,
    Skip,
}

#[derive(Debug, Clone, Copy)]
pub struct Retry {
    pub times: u32,
    pub wait: Duration,
}

/// A parameter as TOML gave it; `--param` texts take the type of the declared value.
#[derive(Debug, Clone, PartialEq)]
pub enum ParamValue {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
}

#[derive(Debug, Clone)]
pub struct Stage {
    pub name: StageName,
    /// Of the `[stages.NAME]` header, for problems.
    pub place: Place,
    pub kind: StageKind,
    /// What the stage makes; a push and a publish make none.
    pub table: Option<TableName>,
    pub needs: Vec<StageName>,
    pub checks: Option<Checks>,
    pub on_failure: OnFailure,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    Stop,
    Continue,
}

/// A column that a key names, and where.
#[derive(Debug, Clone)]
pub struct NamedColumn {
    pub name: String,
    pub place: Place,
}

#[derive(Debug, Clone, Default)]
pub struct Checks {
    pub not_null: Vec<NamedColumn>,
    pub unique: Vec<NamedColumn>,
    pub min_rows: Option<u64>,
    /// Share of the last snapshot's rows of each account and mini program, 0 to 1; of coverage, share of its rates.
    pub max_drop: Option<f64>,
    /// A SELECT that must return no row, over the stage's own table and all others.
    pub sql: Option<SqlText>,
    /// Each with a severity of its own.
    pub rules: Vec<Rule>,
    pub severity: Severity,
}

/// A check in the manner of dbt.
#[derive(Debug, Clone)]
pub struct Rule {
    /// As it is told: its key and what it is about.
    pub name: String,
    /// The column it is about.
    pub column: Option<NamedColumn>,
    pub kind: RuleKind,
    pub severity: Severity,
}

#[derive(Debug, Clone)]
pub enum RuleKind {
    /// A SELECT of what breaks the rule.
    NoRow(SqlText),
    /// The share of the rows of the last snapshot that may have come or gone, 0 to 1.
    Change(f64),
}

impl Rule {
    /// The SELECT that must return no row, where it is one.
    pub fn select(&self) -> Option<&SqlText> {
        match &self.kind {
            RuleKind::NoRow(sql) => Some(sql),
            RuleKind::Change(_) => None,
        }
    }
}

impl Checks {
    /// Every SELECT that must return no row.
    pub fn selects(&self) -> impl Iterator<Item = &SqlText> {
        self.sql.iter().chain(self.rules.iter().filter_map(Rule::select))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Severity {
    #[default]
    Fail,
    Warn,
}

#[derive(Debug, Clone)]
pub enum StageKind {
    ExtractFollowers(ExtractFollowers),
    EnrichUnionids(EnrichUnionids),
    LoadUsers(Box<LoadUsers>),
    JoinIdentities(JoinIdentities),
    MeasureCoverage(MeasureCoverage),
    Sql(SqlStage),
    MaterializeRecipients(Box<MaterializeRecipients>),
    PushTemplate(Box<PushTemplate>),
    Publish(Publish),
}

impl StageKind {
    /// As the files spell it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ExtractFollowers(_) => "extract_followers",
            Self::EnrichUnionids(_) => "enrich_unionids",
            Self::LoadUsers(_) => "load_users",
            Self::JoinIdentities(_) => "join_identities",
            Self::MeasureCoverage(_) => "measure_coverage",
            Self::Sql(_) => "sql",
            Self::MaterializeRecipients(_) => "materialize_recipients",
            Self::PushTemplate(_) => "push_template",
            Self::Publish(_) => "publish",
        }
    }
}

#[derive(Debug, Clone)]
pub struct ExtractFollowers {
    pub accounts: Vec<AccountName>,
    pub reuse_within: Duration,
}

#[derive(Debug, Clone)]
pub struct EnrichUnionids {
    pub accounts: Vec<AccountName>,
    /// The followers table.
    pub from: TableName,
    pub refresh_after: Duration,
    /// Calls a run.
    pub budget: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct LoadUsers {
    pub miniprogram: MiniProgramName,
    /// A glob relative to the workspace, or `s3://BUCKET/GLOB`; empty where a database is read.
    pub files: String,
    /// Of `source.files` or `source.database`.
    pub files_place: Place,
    /// Where the files are objects.
    pub bucket: Option<BucketAddress>,
    /// What is read in place of files.
    pub database: Option<DatabaseSource>,
    pub encoding: Encoding,
    /// Between the fields of csv files; `None`: found out.
    pub delimiter: Option<u8>,
    /// `None`: the first that is not hidden.
    pub sheet: Option<SheetChoice>,
    /// The first row of a sheet is 1; `None`: the first that is not blank.
    pub header_row: Option<u32>,
    /// Our name → the export's name, in the order of the file. Always holds `openid`; `unionid` and `updated_at` where mapped or left at their own names.
    pub columns: Vec<(String, String)>,
    pub columns_place: Option<Place>,
    /// Our column name → DuckDB type.
    pub types: BTreeMap<String, String>,
    /// Columns (our names) to keep beside the standard ones; `None`: all.
    pub keep: Option<Vec<String>>,
    pub on_new_column: OnNewColumn,
    pub max_age: Option<Duration>,
    /// How long a missing or old file is waited for, a time of day in the workspace's zone.
    pub wait_until: Option<NaiveTime>,
    /// Share of a file's rows, 0 to 1.
    pub max_bad: f64,
}

impl LoadUsers {
    /// Where the users come from, as messages name it.
    pub fn shown_source(&self) -> String {
        self.database.as_ref().map_or_else(|| self.files.clone(), |source| source.address.shown())
    }
}

/// A mini program's database.
#[derive(Debug, Clone)]
pub struct DatabaseSource {
    pub address: DatabaseAddress,
    /// One SELECT.
    pub query: String,
    /// The column that is paged along; `None`: the query is one stream.
    pub key: Option<String>,
    /// Rows of a page.
    pub page_rows: u64,
    /// Longest time of one statement.
    pub timeout: Duration,
}

/// What becomes of a column that nothing names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnNewColumn {
    Keep,
    Ignore,
    Fail,
}

/// A sheet of a workbook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SheetChoice {
    Name(String),
    /// From the left; the first is 1.
    Number(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Auto,
    Utf8,
    /// GBK and its superset GB18030.
    Gb18030,
}

#[derive(Debug, Clone, Default)]
pub struct JoinIdentities {
    /// Users tables; empty: those of every `load_users` stage of the workspace.
    pub users: Vec<TableName>,
    /// Columns that tie whom the unionid does not, in this order.
    pub further_keys: Vec<String>,
    pub keys_place: Option<Place>,
    /// A table with account, openid and columns for further keys; without it they are columns of the profiles.
    pub bindings: Option<TableName>,
}

#[derive(Debug, Clone)]
pub struct MeasureCoverage {
    pub segments: Vec<String>,
    pub segments_place: Option<Place>,
    /// How long a delivered message counts for `reached_lately`.
    pub lately: Duration,
}

/// SQL as it stands in a file, with where it stands, for problems.
#[derive(Debug, Clone)]
pub struct SqlText {
    pub text: String,
    /// The file's place; for SQL written inside TOML the span of the value.
    pub place: Place,
}

#[derive(Debug, Clone)]
pub struct SqlStage {
    pub sql: SqlText,
    /// Empty: the table is replaced.
    pub upsert_by: Vec<NamedColumn>,
}

#[derive(Debug, Clone)]
pub struct MaterializeRecipients {
    pub account: AccountName,
    pub sql: SqlText,
    /// Share kept back, 0 to 1.
    pub holdout: f64,
    pub frequency_cap: Option<FrequencyCap>,
    pub not_again: Option<Duration>,
    pub max: Option<u64>,
    pub max_staleness: Option<Duration>,
}

#[derive(Debug, Clone, Copy)]
pub struct FrequencyCap {
    pub messages: u32,
    pub days: u32,
}

#[derive(Debug, Clone)]
pub struct PushTemplate {
    pub account: AccountName,
    /// The `materialize_recipients` stage (of the same pipeline) whose set is sent to.
    pub recipients: StageName,
    pub recipients_place: Place,
    pub template_id: TemplateId,
    pub template_id_place: Place,
    pub miniprogram: Option<MessageMiniProgram>,
    pub url: Option<String>,
    /// Field → template text, in the order of the file.
    pub data: Vec<MessageField>,
    /// Sends a second.
    pub rate: f64,
    pub concurrency: usize,
    pub unconfirmed: Unconfirmed,
    pub halt_when: HaltWhen,
    pub priority: Priority,
    pub approve: bool,
    pub on_invalid: OnInvalid,
    pub on_expiry: OnExpiry,
    pub window: Option<Window>,
    pub daily_limit: Option<u64>,
    pub expires: Option<Duration>,
    pub canary: Option<Canary>,
    pub test_openids: Vec<OpenId>,
}

#[derive(Debug, Clone)]
pub struct MessageField {
    pub name: String,
    pub text: String,
    pub place: Place,
}

#[derive(Debug, Clone)]
pub struct MessageMiniProgram {
    pub app_id: String,
    /// A template text.
    pub pagepath: String,
    pub place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unconfirmed {
    Keep,
    Resend,
}

#[derive(Debug, Clone, Copy)]
pub struct HaltWhen {
    pub failed_share: f64,
    pub after: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    Campaign,
    Service,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInvalid {
    Stop,
    Skip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExpiry {
    Stop,
    Skip,
}

/// Hours of the day in the workspace's zone in which to send; `from` after `to` passes midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub from: NaiveTime,
    pub to: NaiveTime,
}

#[derive(Debug, Clone, Copy)]
pub struct Canary {
    pub first: u64,
    pub wait: Duration,
    pub max_not_delivered: f64,
}

#[derive(Debug, Clone)]
pub struct Publish {
    pub tables: Vec<TableName>,
    pub tables_place: Place,
    /// Absolute.
    pub to: PathBuf,
    pub format: PublishFormat,
    /// Texts that a spreadsheet would take for formulas are left as they are.
    pub is_raw: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublishFormat {
    Parquet,
    Csv,
    Xlsx,
}

/// The default table of `extract_followers`.
pub const FOLLOWERS: &str = "followers";
/// The default table of `enrich_unionids`.
pub const PROFILES: &str = "profiles";
/// The default table of `join_identities`.
pub const IDENTITIES: &str = "identities";

//! `[stages.NAME]` → a [`Stage`]: the keys that every kind has, and the way to the keys of its own kind.

use crate::config::file::{Field, Item, Section};
use crate::config::problems::accepted;
use crate::config::resolve::{Made, StageMention};
use crate::config::settings::{Checks, MiniProgram, NamedColumn, OnFailure, Place, SqlText, Stage};
use crate::config::workspace::{PIPELINES, read_text};
use crate::domain::{AccountName, MiniProgramName, StageName, TableName};

use super::{Surroundings, checks, is_identifier, load_users, push, recipients, tables};
use crate::config::resolve::unknown_name;

const KINDS: [&str; 9] = [
    "extract_followers",
    "enrich_unionids",
    "load_users",
    "join_identities",
    "measure_coverage",
    "sql",
    "materialize_recipients",
    "push_template",
    "publish",
];

/// One stage while it is read.
pub(super) struct StageReader<'a> {
    pub section: Section<'a>,
    pub name: StageName,
    pub around: Surroundings<'a>,
}

/// Reads a stage; `None` where a key that it cannot be without is missing or wrong.
pub(super) fn read<'a>(field: &Field<'a>, around: Surroundings<'a>) -> Option<Stage> {
    if !is_identifier(field.name) {
        field.refuse_key(format!("`{}` cannot name a stage", field.name), "use lower-case letters, digits and `_`");
    }
    let name = StageName::new(field.name);
    let id = (around.pipeline.clone(), name.clone());
    around.mentions.borrow_mut().stages.insert(id.clone(), None);
    let mut section = field.section("a stage")?;
    let kind_field = section.require("kind", &format!("one of {}", KINDS.join(", ")));
    let table_name = TableName::new(field.name);
    let Some(kind) = kind_field.and_then(|field| kind(&field)) else {
        let made = Made { table: table_name, kind: None, place: section.place() };
        around.mentions.borrow_mut().made.push(made);
        return None;
    };
    around.mentions.borrow_mut().stages.insert(id, Some(kind));
    section.title = format!("a `{kind}` stage");
    let place = field.page.place(field.key_span.clone());
    let mut reader = StageReader { section, name: name.clone(), around };
    let needs = reader.needs();
    let table = reader.table(kind);
    let (checks, on_failure) = table.as_ref().map_or((None, None), |table| reader.promises(table));
    let kind = match kind {
        "extract_followers" => tables::extract_followers(&mut reader),
        "enrich_unionids" => tables::enrich_unionids(&mut reader),
        "load_users" => load_users::read(&mut reader),
        "join_identities" => tables::join_identities(&mut reader),
        "measure_coverage" => Some(tables::measure_coverage(&mut reader)),
        "sql" => tables::sql(&mut reader),
        "materialize_recipients" => recipients::read(&mut reader),
        "push_template" => push::read(&mut reader),
        _ => tables::publish(&mut reader),
    };
    reader.section.finish();
    Some(Stage { name, place, kind: kind?, table, needs, checks, on_failure: on_failure.unwrap_or(OnFailure::Stop) })
}

fn kind(field: &Field<'_>) -> Option<&'static str> {
    let text = field.text()?;
    let known = KINDS.into_iter().find(|kind| *kind == text);
    if known.is_none() {
        let hint = accepted(&text, KINDS.into_iter());
        field.refuse(format!("\"{text}\" is not a kind of stage"), hint);
    }
    known
}

impl StageReader<'_> {
    fn needs(&mut self) -> Vec<StageName> {
        let Some(field) = self.section.take("needs") else { return Vec::new() };
        let mut needs = Vec::new();
        for item in field.texts().unwrap_or_default() {
            let to = StageName::new(item.text);
            self.mention_stage(&to, field.page.place(item.span), false);
            needs.push(to);
        }
        needs
    }

    pub fn mention_stage(&self, to: &StageName, place: Place, as_recipients: bool) {
        self.around.mentions.borrow_mut().needed_stages.push(StageMention {
            pipeline: self.around.pipeline.clone(),
            from: self.name.clone(),
            to: to.clone(),
            place,
            as_recipients,
        });
    }

    /// The table that the stage makes, noted with its place.
    fn table(&mut self, kind: &'static str) -> Option<TableName> {
        if matches!(kind, "push_template" | "publish") {
            return None;
        }
        let made = |table: &str, place: Place| {
            let table = TableName::new(table);
            self.around.mentions.borrow_mut().made.push(Made { table: table.clone(), kind: Some(kind), place });
            table
        };
        if kind == "measure_coverage" {
            let tables = crate::config::resolve::COVERAGE_TABLES.map(|table| made(table, self.section.place()));
            return tables.into_iter().next();
        }
        let given = self.section.take("table");
        let text = given.as_ref().and_then(|field| field.full_text());
        if let (Some(field), Some(text)) = (&given, &text)
            && !is_identifier(text)
        {
            field.refuse(format!("\"{text}\" cannot name a table"), "use lower-case letters, digits and `_`");
        }
        let place = given.map_or_else(|| self.section.place(), |field| field.place());
        Some(made(text.as_deref().unwrap_or(self.name.as_str()), place))
    }

    /// `checks` and `on_failure`.
    fn promises(&mut self, table: &TableName) -> (Option<Checks>, Option<OnFailure>) {
        let section = self.section.section("checks", "`checks`");
        let checks = section.is_present().then(|| checks::read(section, table));
        let on_failure = self
            .section
            .take("on_failure")
            .and_then(|field| field.choice(&[("stop", OnFailure::Stop), ("continue", OnFailure::Continue)]));
        (checks, on_failure)
    }

    /// `account` as a name or a list; every account where it is left out.
    pub fn accounts(&mut self) -> Option<Vec<AccountName>> {
        let house = self.around.house;
        let Some(field) = self.section.take("account") else {
            if house.names_known && house.accounts.is_empty() {
                let message = "there is no account for this stage";
                self.section.page.problem(
                    self.section.span.clone(),
                    message,
                    "add [accounts.main] to config/lianbo.toml",
                );
            }
            return Some(house.accounts.keys().cloned().collect());
        };
        let items = field.texts()?;
        if items.is_empty() {
            field.refuse("this list names no account", "name one, or leave `account` out for every account");
        }
        let mut accounts = Vec::new();
        for item in items {
            let Some(account) = self.known_account(&field, &item) else { continue };
            if accounts.contains(&account) {
                field.page.problem(item.span, format!("`{account}` is named twice"), "name each account once");
            } else {
                accounts.push(account);
            }
        }
        Some(accounts)
    }

    fn known_account(&self, field: &Field<'_>, item: &Item) -> Option<AccountName> {
        let house = self.around.house;
        let known = house.accounts.keys().map(AccountName::as_str);
        if house.names_known && !house.accounts.contains_key(item.text.as_str()) {
            let hint = unknown_name(&item.text, known, "accounts");
            field.page.problem(item.span.clone(), format!("there is no account `{}`", item.text), hint);
            return None;
        }
        Some(AccountName::new(item.text.as_str()))
    }

    /// `account` where a stage has exactly one; it may be left out where there is only one.
    pub fn one_account(&mut self) -> Option<AccountName> {
        let house = self.around.house;
        let Some(field) = self.section.take("account") else {
            let mut names = house.accounts.keys();
            return match (names.next(), names.next()) {
                (Some(only), None) => Some(only.clone()),
                _ => {
                    let known = house.accounts.keys().map(AccountName::as_str);
                    self.missing("account", unknown_name("", known, "accounts"));
                    None
                }
            };
        };
        let items = field.texts()?;
        match items.as_slice() {
            [only] => self.known_account(&field, only),
            _ => {
                field.refuse("this stage has one account", "make a stage for each account");
                None
            }
        }
    }

    fn missing(&self, key: &str, hint: String) {
        if self.around.house.names_known {
            self.section.page.problem(self.section.span.clone(), format!("`{key}` is missing"), hint);
        }
    }

    /// The one mini program of a stage; it may be left out where there is only one.
    pub fn one_miniprogram(&mut self) -> Option<MiniProgramName> {
        let found = self.section.take("miniprogram");
        let span = self.section.span.clone();
        let missing = || self.section.page.problem(span, "`miniprogram` is missing", self.miniprograms_hint());
        match found {
            Some(field) => self.known_miniprogram(&field).map(|one| one.name.clone()),
            None => self.only_miniprogram(missing).map(|one| one.name.clone()),
        }
    }

    fn miniprograms_hint(&self) -> String {
        unknown_name("", self.around.house.miniprograms.keys().map(MiniProgramName::as_str), "miniprograms")
    }

    /// The mini program there is, where there is exactly one; `missing` is told otherwise.
    pub fn only_miniprogram(&self, missing: impl FnOnce()) -> Option<&MiniProgram> {
        let mut all = self.around.house.miniprograms.values();
        match (all.next(), all.next()) {
            (Some(only), None) => Some(only),
            _ => {
                if self.around.house.names_known {
                    missing();
                }
                None
            }
        }
    }

    /// The mini program that a field names.
    pub fn known_miniprogram(&self, field: &Field<'_>) -> Option<&MiniProgram> {
        let house = self.around.house;
        let items = field.texts()?;
        let [Item { text, span }] = items.as_slice() else {
            field.refuse("one mini program is named here", "make a stage for each mini program");
            return None;
        };
        let found = house.miniprograms.get(text.as_str());
        if found.is_none() && house.names_known {
            let hint = unknown_name(text, house.miniprograms.keys().map(MiniProgramName::as_str), "miniprograms");
            field.page.problem(span.clone(), format!("there is no mini program `{text}`"), hint);
        }
        found
    }

    /// The SQL of `file`, else of `PIPELINE/STAGE.sql`, below `pipelines/`.
    pub fn sql_file(&mut self) -> Option<SqlText> {
        let field = self.section.take("file");
        let relative = match &field {
            Some(field) => field.full_text()?,
            None => format!("{}/{}.sql", self.around.pipeline, self.name),
        };
        let path = std::path::Path::new(PIPELINES).join(&relative);
        let page = self.section.page;
        let place = field.as_ref().map_or_else(|| self.section.place(), Field::place);
        if !self.around.house.root.join(&path).is_file() {
            let hint = match &field {
                Some(_) => "a stage's `file` is relative to pipelines/",
                None => "write the SELECT there, or name another with `file`",
            };
            page.problem(place.span, format!("there is no file {}", path.display()), hint);
            return None;
        }
        let source = read_text(&self.around.house.root, &path, &mut page.desk.problems.borrow_mut())?;
        if source.text.trim().is_empty() {
            page.problem(place.span, format!("{} is empty", path.display()), "write one SELECT into it");
            return None;
        }
        let span = 0..source.text.len();
        Some(SqlText { text: source.text, place: Place { file: source.path, span } })
    }
}

/// A list of column names, each with its place.
pub(super) fn named_columns(field: &Field<'_>) -> Option<Vec<NamedColumn>> {
    let named = |item: Item| NamedColumn { place: field.page.place(item.span), name: item.text };
    Some(field.texts()?.into_iter().map(named).collect())
}

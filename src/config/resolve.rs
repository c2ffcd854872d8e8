//! All files of a workspace → [`Settings`]: the one way through, and what of it is usable when something is wrong.
//!
//! `config/lianbo.toml` first ([`house`], [`account`]), then each pipeline ([`super::pipeline`]), then what the files say of
//! each other ([`cross`]). Every step reports what it finds and goes on, so that all problems are told at once. A value
//! that is wrong is replaced by its default to go on with; the problem that was reported keeps it from ever being used.

mod account;
mod cross;
mod fields;
mod house;

pub(super) mod defaults;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeTable;

pub(super) use cross::{COVERAGE_TABLES, Made, Mentions, StageMention, TableMention, Wanted};
pub(super) use house::{House, is_address, unknown_name};

use super::environment::Environment;
use super::file::{Desk, Page, Section};
use super::pipeline;
use super::problems::Problems;
use super::settings::{Place, Settings};
use super::workspace::{self, CONFIG_FILE, SourceFile};
use crate::domain::TableName;

/// What became of reading a workspace.
#[derive(Debug)]
pub struct Loaded {
    /// The settings, when nothing is wrong.
    pub settings: Option<Settings>,
    pub problems: Problems,
    /// What could be read although something is wrong: for looking at the SQL as well before all problems are told.
    pub draft: Option<Draft>,
}

/// Settings with holes. Never to be run.
#[derive(Debug)]
pub struct Draft {
    pub settings: Settings,
    /// Tables of stages that could not be read: SQL that reads one of them cannot be judged.
    pub unread_tables: BTreeSet<TableName>,
}

/// Reads the workspace at `root`. Touches nothing and calls nobody.
pub fn load(root: &Path, environment: &Environment) -> Loaded {
    let root = workspace::tidy(root);
    let mut problems = Problems::new();
    report_environment(&root, environment, &mut problems);
    let config = workspace::read_text(&root, Path::new(CONFIG_FILE), &mut problems);
    let pipelines: Vec<SourceFile> = workspace::pipeline_files(&root, &mut problems)
        .iter()
        .filter_map(|path| workspace::read_text(&root, path, &mut problems))
        .collect();

    let desk = Desk { environment, problems: RefCell::new(problems) };
    let config_tree = config.as_ref().and_then(|file| parse(&desk, file));
    let house = config_tree.as_ref().map_or_else(
        || House::unknown(&root),
        |(page, tree)| house::read(&root, Section::new(*page, "config/lianbo.toml", tree)),
    );
    let mentions = RefCell::new(Mentions::default());
    let mut read = Vec::new();
    let mut all_parsed = config_tree.is_some();
    for file in &pipelines {
        match parse(&desk, file) {
            Some((page, tree)) => {
                read.push(pipeline::read(Section::new(page, "a pipeline", &tree), &house, &mentions));
            }
            None => {
                all_parsed = false;
                mentions.borrow_mut().unread_pipelines.push(pipeline::name_of(&file.path));
            }
        }
    }
    let mentions = mentions.into_inner();
    let mut problems = desk.problems.into_inner();
    cross::check(&mentions, &read, &mut problems);

    let made: BTreeSet<TableName> =
        read.iter().flat_map(|one| one.stages.iter().filter_map(|s| s.table.clone())).collect();
    let unread_tables = mentions.made.iter().map(|m| m.table.clone()).filter(|table| !made.contains(table)).collect();
    let settings = house.into_settings(read);
    if problems.is_empty() {
        Loaded { settings: Some(settings), problems, draft: None }
    } else {
        Loaded { settings: None, problems, draft: all_parsed.then_some(Draft { settings, unread_tables }) }
    }
}

/// The tree of a file, unless its syntax is wrong: then every such place is reported, the first of a line only, since
/// what follows on it is mostly a consequence.
fn parse<'a>(desk: &'a Desk<'a>, file: &'a SourceFile) -> Option<(Page<'a>, Spanned<DeTable<'a>>)> {
    let page = Page { desk, file: &file.path, text: &file.text };
    let (tree, errors) = DeTable::parse_recoverable(&file.text);
    let mut lines = BTreeSet::new();
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        let line = file.text.get(..span.start).map_or(0, |before| before.matches('\n').count());
        if lines.insert(line) {
            page.problem(
                span,
                format!("not TOML: {}", error.message().trim()),
                "the rest of this file is read once its syntax is right",
            );
        }
    }
    errors.is_empty().then_some((page, tree))
}

fn report_environment(root: &Path, environment: &Environment, problems: &mut Problems) {
    let Some((line, why)) = &environment.file_problem else { return };
    let file = PathBuf::from(".env");
    // The file is mostly secrets: its lines are counted here, and never shown.
    let lines = std::fs::read_to_string(root.join(&file)).map_or(0, |text| text.lines().count());
    problems.register_source(&file, "\n".repeat(lines));
    let message = format!(".env {why}");
    match line {
        Some(line) => problems.at(&Place { file, span: line - 1..line - 1 }, message),
        None => problems.in_file(file, message),
    }
    .hint("one NAME=value a line; quote a value that has spaces");
}

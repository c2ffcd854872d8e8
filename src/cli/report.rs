//! `lianbo report`: one HTML file with plots, each with its table and the SQL behind it.

mod page;
mod plot;
mod sections;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;

use self::page::{Filled, Head};
use self::sections::SECTIONS;
use super::context::Context;
use super::exit::{Exit, Failure};
use super::output::may_be_written;
use super::sql::failure;
use crate::stage::query;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where it is written; a file that is there is replaced
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    output: PathBuf,
    /// How far trends look back from the newest day
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// The language that is shown first; the page has both
    #[arg(long, value_enum, default_value = "zh")]
    language: Language,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Language {
    Zh,
    En,
}

#[derive(Debug, Serialize)]
struct Written<'a> {
    path: &'a Path,
    bytes: usize,
    /// Rows of each section, by its id.
    sections: BTreeMap<&'static str, usize>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let app = context.app_to_read().await?;
    let hands = app.hands();
    may_be_written(&args.output, &hands.settings)?;
    let mut filled = Vec::with_capacity(SECTIONS.len());
    for section in &SECTIONS {
        let sql = section.sql(args.days);
        let rows = query::rows(hands, &sql).await.map_err(|error| failure(error, &sql))?;
        filled.push(Filled { section, sql, rows });
    }
    let root = std::path::absolute(&hands.settings.root).unwrap_or_else(|_| hands.settings.root.clone());
    let head = Head {
        workspace: &root.file_name().unwrap_or_default().to_string_lossy(),
        made_at: context.clock.now(),
        zone: hands.settings.timezone,
        is_chinese: args.language == Language::Zh,
    };
    let html = page::html(&head, &filled);
    write_whole(&args.output, &html, &context.clock.random_id(6))?;
    let sections = filled.iter().map(|filled| (filled.section.id, filled.rows.len())).collect();
    let written = Written { path: &args.output, bytes: html.len(), sections };
    context.print(&written, |written| {
        let empty: Vec<&str> = written.sections.iter().filter(|(_, rows)| **rows == 0).map(|(id, _)| *id).collect();
        let note =
            if empty.is_empty() { String::new() } else { format!("; nothing to show yet for {}", empty.join(", ")) };
        format!("{} is written{note}", written.path.display())
    });
    hands.ledger.close().await;
    Ok(Exit::Done)
}

/// The file appears under its name when it is whole; before, and after an error, what was there stays.
fn write_whole(path: &Path, text: &str, id: &str) -> Result<(), Failure> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{id}.tmp"));
    let aside = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&aside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&aside, path)
    };
    write().map_err(|error| {
        // The error that is told is the first one.
        let _ = std::fs::remove_file(&aside);
        Failure::Usage(format!("{} cannot be written: {error}", path.display()))
    })
}

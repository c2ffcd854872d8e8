//! `lianbo vacuum`: drops old snapshots and finished staging, and says what went.

use std::collections::BTreeMap;

use super::context::{Context, who};
use super::exit::{Exit, Failure};
use super::measures::{local, size};
use super::table::{grouped, plain};
use crate::scheduler::vacuum::{Vacuumed, vacuum};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Snapshots to keep of each account's and mini program's tables, the current one included
    #[arg(long, value_name = "N", default_value_t = 14, value_parser = clap::value_parser!(u32).range(1..))]
    keep: u32,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let app = context.existing_app().await?;
    let hands = app.hands();
    let keep = usize::try_from(args.keep).unwrap_or(usize::MAX);
    let vacuumed = vacuum(hands, keep, who()).await?;
    context.print(&vacuumed, |vacuumed| {
        let older_than = local(vacuumed.older_than, hands.settings.timezone);
        describe(vacuumed, &older_than)
    });
    hands.ledger.close().await;
    Ok(Exit::Done)
}

fn describe(vacuumed: &Vacuumed, older_than: &str) -> String {
    if vacuumed.files == 0 && vacuumed.snapshots.is_empty() {
        let keep = vacuumed.keep;
        return format!("Nothing to drop: the {keep} latest snapshots stay, and what is younger than {older_than}.");
    }
    let mut tables: BTreeMap<(&str, &str), (u64, u64, u64)> = BTreeMap::new();
    for snapshot in &vacuumed.snapshots {
        let sums = tables.entry((&snapshot.table, &snapshot.slice)).or_default();
        *sums = (sums.0 + 1, sums.1 + snapshot.rows, sums.2 + snapshot.bytes);
    }
    let mut text = String::new();
    if !tables.is_empty() {
        let rows = tables.into_iter().map(|((table, slice), (snapshots, rows, bytes))| {
            vec![table.to_owned(), slice.to_owned(), grouped(snapshots), grouped(rows), size(bytes)]
        });
        text = format!("{}\n", plain(&["table", "of", "snapshots dropped", "rows", "size"], rows));
    }
    let files = grouped(vacuumed.files);
    format!("{text}Dropped {} snapshots; {files} files, {}.", vacuumed.snapshots.len(), size(vacuumed.bytes))
}

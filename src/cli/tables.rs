//! `lianbo tables [--describe [TABLE]]`: the tables there are, how old they are, and what their columns mean.

use super::context::Context;
use super::exit::{Exit, Failure};
use super::measures::{local, size};
use super::table::{grouped, plain};
use crate::app::App;
use crate::config::nearest;
use crate::domain::tables::READ_OFF;
use crate::scheduler::inventory::{self, Description, TableView};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Columns with type, meaning and unit; of one table, or of all
    #[arg(long, value_name = "TABLE", num_args = 0..=1)]
    describe: Option<Option<String>>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let app = App::open_to_read(settings.clone(), context.clock).await?;
    let ledger = app.as_ref().map(|app| &app.hands().ledger);
    match args.describe {
        None => {
            let tables = inventory::tables(&settings, ledger).await?;
            context.print(&serde_json::json!({ "tables": &tables }), |_| {
                let text = list(&tables, settings.timezone);
                if ledger.is_some() {
                    text
                } else {
                    format!("{text}\nNothing ran yet; begin with `lianbo run PIPELINE`.")
                }
            });
        }
        Some(only) => {
            let described = inventory::describe(&settings, ledger, only.as_deref()).await?;
            if let (Some(name), true) = (&only, described.is_empty()) {
                let names = inventory::names(&settings, ledger).await?;
                return Err(unknown(name, &names));
            }
            context.print(&serde_json::json!({ "tables": &described }), |_| {
                let texts: Vec<String> = described.iter().map(describe).collect();
                texts.join("\n\n")
            });
        }
    }
    if let Some(ledger) = ledger {
        ledger.close().await;
    }
    Ok(Exit::Done)
}

fn unknown(name: &str, names: &[String]) -> Failure {
    let hint = match nearest(name, names.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`lianbo tables` lists them".to_owned(),
    };
    Failure::Usage(format!("there is no table `{name}`; {hint}"))
}

fn list(tables: &[TableView], zone: chrono_tz::Tz) -> String {
    let mut rows = Vec::new();
    for table in tables {
        if table.is_live {
            rows.push(vec![table.table.clone(), String::new(), String::new(), String::new(), "live".to_owned()]);
            continue;
        }
        if let Some((_, from)) = READ_OFF.iter().find(|(name, _)| *name == table.table) {
            rows.push(vec![table.table.clone(), String::new(), String::new(), String::new(), format!("as {from}")]);
            continue;
        }
        let rows_of = |rows: u64, bytes: u64| [grouped(rows), size(bytes)];
        let name = match table.slices.as_slice() {
            [one] if !one.slice.is_empty() => format!("{} ({})", table.table, one.slice),
            _ => table.table.clone(),
        };
        let mut line = vec![name];
        line.extend(rows_of(table.rows.unwrap_or(0), table.bytes));
        line.push(if table.slices.is_empty() { String::new() } else { grouped(table.snapshots) });
        line.push(table.as_of.map_or_else(|| "not made yet".to_owned(), |at| local(at, zone)));
        line.push(table.run_id.clone().unwrap_or_default());
        rows.push(line);
        // Sets have a slice for each push: too many to list.
        let is_of_sets = matches!(table.table.as_str(), "recipients" | "left_out");
        let is_listed = table.slices.len() > 1 && !is_of_sets;
        for slice in table.slices.iter().filter(|_| is_listed) {
            let mut line = vec![format!("  {}", slice.slice)];
            line.extend(rows_of(slice.rows, slice.bytes));
            line.extend([grouped(slice.snapshots), local(slice.as_of, zone), slice.run_id.clone()]);
            rows.push(line);
        }
    }
    for row in &mut rows {
        row.resize(6, String::new());
    }
    plain(&["table", "rows", "size", "snapshots", "as of", "run"], rows)
}

fn describe(table: &Description) -> String {
    let title = if table.row.is_empty() { table.table.clone() } else { format!("{}: {}", table.table, table.row) };
    if table.columns.is_empty() {
        return format!("{title}\nIts columns are known when it was made.");
    }
    let rows = table
        .columns
        .iter()
        .map(|column| vec![column.name.clone(), column.column_type.to_lowercase(), column.meaning.clone()]);
    format!("{title}\n{}", plain(&["column", "type", "meaning and unit"], rows))
}

//! `lianbo forget`: removes a person from every table and the ledger; what stays is a salted hash that keeps the person from
//! every set to come.

use std::fmt::Write;

use super::context::{Context, who};
use super::exit::{Exit, Failure, of_run};
use super::table::grouped;
use crate::domain::UnionId;
use crate::scheduler::forget::{Report, forget};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The person's unionid
    #[arg(long, value_name = "U")]
    unionid: String,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let unionid = args.unionid.trim();
    if unionid.is_empty() {
        return Err(Failure::Usage("--unionid names nobody".to_owned()));
    }
    let app = context.existing_app().await?;
    let report = forget(&app.conductor, &UnionId::new(unionid), &who()).await.map_err(of_run)?;
    context.print(&report, describe);
    app.hands().ledger.close().await;
    Ok(Exit::Done)
}

fn describe(report: &Report) -> String {
    let mut text = format!("{} is forgotten, with {} openids", report.unionid, report.openids);
    for (table, rows) in &report.rows {
        let _ = write!(text, "\n  {} rows of {table}, old snapshots included", grouped(*rows));
    }
    let ledger = [
        (report.ledger.deliveries, "deliveries stay counted, without a name"),
        (report.ledger.follower_marks, "marks of events"),
        (report.ledger.callbacks, "events of WeChat"),
        (report.ledger.suppressions, "suppressions, now kept as hashes"),
    ];
    for (rows, what) in ledger.iter().filter(|(rows, _)| *rows > 0) {
        let _ = write!(text, "\n  {} {what}", grouped(*rows));
    }
    for remain in &report.remains {
        let _ = write!(text, "\nnote: {remain}");
    }
    text
}

//! `lianbo suppress import FILE`: a csv with a header. A column `unionid` or `openid` names people; `account`,
//! `template_id`, `reason` and `until` may stand beside it. Every line that is wrong is told, and then nobody is added.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{Done, account, moment, order, unknown};
use crate::cli::context::Context;
use crate::cli::exit::{Exit, Failure};
use crate::cli::table::grouped;
use crate::clock::Timestamp;
use crate::config::nearest;
use crate::config::settings::Settings;
use crate::domain::{OpenId, TemplateId, UnionId};
use crate::ledger::NewSuppression;

const COLUMNS: [&str; 6] = ["unionid", "openid", "account", "template_id", "reason", "until"];
/// Wrong lines that are told one by one.
const TOLD: usize = 20;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A csv file in UTF-8 with the columns unionid or openid, and any of account, template_id, reason, until
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Why, for lines that say no reason
    #[arg(long, default_value = "imported")]
    reason: String,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let settings = context.settings()?;
    let new = read(&settings, &args, context.clock.now()).map_err(Failure::Usage)?;
    let app = context.app(settings).await?;
    let ledger = &app.hands().ledger;
    let detail = format!("{} people of {}", new.len(), args.file.display());
    let unknown = unknown(app.hands(), &new).await?;
    let added = order(ledger, context, &new, detail).await?;
    let known = u64::try_from(new.len()).unwrap_or(u64::MAX) - added;
    let mut what = format!("{} suppressed", grouped(added));
    if known > 0 {
        what.push_str(&format!("; {} were so already", grouped(known)));
    }
    context.print(&Done { changed: added, what, unknown }, |done| done.what.clone());
    ledger.close().await;
    Ok(Exit::Done)
}

/// Everybody of the file.
///
/// # Errors
///
/// What is wrong, each with file and line.
fn read(settings: &Settings, args: &Args, now: Timestamp) -> Result<Vec<NewSuppression>, String> {
    let shown = args.file.display();
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .flexible(true)
        .from_path(&args.file)
        .map_err(|error| format!("{shown} cannot be read: {error}"))?;
    let header = reader.headers().map_err(|error| format!("{shown}: {error}"))?.clone();
    let columns = columns(&args.file, &header)?;
    let (mut people, mut wrong) = (Vec::new(), Vec::new());
    let mut seen: HashMap<Vec<String>, u64> = HashMap::new();
    let mut record = csv::StringRecord::new();
    loop {
        match reader.read_record(&mut record) {
            Ok(false) => break,
            Ok(true) => {}
            Err(error) => {
                let line = error.position().map_or(0, csv::Position::line);
                wrong.push(format!("{shown}:{line}: this cannot be read as UTF-8 csv"));
                continue;
            }
        }
        let line = record.position().map_or(0, csv::Position::line);
        let row = Row { settings, record: &record, columns: &columns, width: header.len() };
        match row.person(&args.reason, now) {
            Ok(named) => {
                let key = [0, 1, 2, 3].map(|at| row.value(COLUMNS[at]).unwrap_or_default().to_owned()).to_vec();
                match seen.insert(key, line) {
                    Some(before) => wrong.push(format!("{shown}:{line}: the same person as on line {before}")),
                    None => people.extend(named),
                }
            }
            Err(why) => wrong.push(format!("{shown}:{line}: {why}")),
        }
    }
    if wrong.is_empty() {
        return Ok(people);
    }
    let count = wrong.len();
    wrong.truncate(TOLD);
    if count > TOLD {
        wrong.push(format!("and {} more lines", count - TOLD));
    }
    wrong.push("nobody was added; mend the file and import it again".to_owned());
    Err(wrong.join("\n"))
}

fn columns(file: &Path, header: &csv::StringRecord) -> Result<HashMap<&'static str, usize>, String> {
    let mut columns = HashMap::new();
    for (at, name) in header.iter().enumerate() {
        let name = name.trim_start_matches('\u{FEFF}');
        let Some(known) = COLUMNS.iter().find(|known| **known == name) else {
            let hint =
                nearest(name, COLUMNS.into_iter()).map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            return Err(format!(
                "{}:1: there is no column `{name}`: known are {}{hint}",
                file.display(),
                COLUMNS.join(", ")
            ));
        };
        if columns.insert(*known, at).is_some() {
            return Err(format!("{}:1: the column `{name}` stands twice", file.display()));
        }
    }
    if columns.contains_key("unionid") || columns.contains_key("openid") {
        return Ok(columns);
    }
    Err(format!("{}:1: a column `unionid` or `openid` has to name the people", file.display()))
}

struct Row<'a> {
    settings: &'a Settings,
    record: &'a csv::StringRecord,
    columns: &'a HashMap<&'static str, usize>,
    width: usize,
}

impl<'a> Row<'a> {
    fn value(&self, column: &str) -> Option<&'a str> {
        self.record.get(*self.columns.get(column)?).filter(|value| !value.is_empty())
    }

    /// Whoever is named by both ids is suppressed by each: either may be all that a set knows of the person.
    fn person(&self, reason: &str, now: Timestamp) -> Result<Vec<NewSuppression>, String> {
        if self.record.len() != self.width {
            return Err(format!("{} fields where the header has {}", self.record.len(), self.width));
        }
        let (unionid, openid) = (self.value("unionid"), self.value("openid"));
        if unionid.is_none() && openid.is_none() {
            return Err("neither a unionid nor an openid".to_owned());
        }
        let account = account(self.settings, self.value("account")).map_err(|failure| match failure {
            Failure::Usage(text) => text,
            other => format!("{other:?}"),
        })?;
        let until = self.value("until").map(|text| moment(text, self.settings.timezone)).transpose()?;
        if until.is_some_and(|until| until <= now) {
            return Err("`until` is over already: it would suppress nobody".to_owned());
        }
        let nobody = NewSuppression {
            unionid: None,
            openid: None,
            account,
            template_id: self.value("template_id").map(TemplateId::new),
            reason: self.value("reason").unwrap_or(reason).to_owned(),
            since: now,
            until,
        };
        let by_unionid = unionid.map(|id| NewSuppression { unionid: Some(UnionId::new(id)), ..nobody.clone() });
        let by_openid = openid.map(|id| NewSuppression { openid: Some(OpenId::new(id)), ..nobody.clone() });
        Ok(by_unionid.into_iter().chain(by_openid).collect())
    }
}

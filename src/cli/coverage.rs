//! `lianbo coverage [--by COLUMN]`: whom the accounts reach, why not the others, and how it went lately.

use super::context::Context;
use super::exit::{Exit, Failure};
use super::measures::{bar, local, percent};
use super::table::{grouped, plain};
use crate::config::nearest;
use crate::config::settings::{Settings, StageKind};
use crate::scheduler::coverage::{self, CoverageRow, CoverageView, MatchRow, SegmentGroup, SegmentView, Trend};
use crate::stage::Hands;

/// Characters of a whole bar.
const BAR: u16 = 40;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The newest day by one segment of measure_coverage (a column of users or profiles)
    #[arg(long, value_name = "COLUMN")]
    by: Option<String>,
}

pub async fn run(context: &Context, args: Args) -> Result<Exit, Failure> {
    let app = context.app_to_read().await?;
    let hands = app.hands();
    match args.by {
        None => {
            let view = coverage::coverage(hands).await?.ok_or_else(|| not_measured(&hands.settings))?;
            context.print(&view, |view| describe(view, &hands.settings));
        }
        Some(segment) => match coverage::by_segment(hands, &segment).await? {
            Some(view) => context.print(&view, describe_segment),
            None => return Err(no_segment(hands, &segment).await?),
        },
    }
    hands.ledger.close().await;
    Ok(Exit::Done)
}

fn not_measured(settings: &Settings) -> Failure {
    let mut pipelines = settings.pipelines.values();
    let measuring = pipelines
        .find(|pipeline| pipeline.stages.iter().any(|stage| matches!(stage.kind, StageKind::MeasureCoverage(_))));
    Failure::Usage(match measuring {
        Some(pipeline) => format!("coverage was not measured yet; `lianbo run {}` does it", pipeline.name),
        None => "coverage was not measured yet; give a pipeline a stage of kind = \"measure_coverage\"".to_owned(),
    })
}

async fn no_segment(hands: &Hands, segment: &str) -> Result<Failure, Failure> {
    let known = coverage::segments(hands).await?;
    let hint = match (nearest(segment, known.iter().map(String::as_str)), known.is_empty()) {
        (Some(near), _) => format!("did you mean `{near}`?"),
        (None, false) => format!("it was measured by: {}", known.join(", ")),
        (None, true) => "name it in `segments` of the measure_coverage stage and run the pipeline".to_owned(),
    };
    Ok(Failure::Usage(format!("coverage was not measured by `{segment}`; {hint}")))
}

fn describe(view: &CoverageView, settings: &Settings) -> String {
    let header = [
        "account",
        "mini program",
        "followers",
        "with unionid",
        "users",
        "with unionid",
        "matched",
        "reachable",
        "reached lately",
        "coverage",
        "match rate",
    ];
    let oldest = view.coverage.iter().filter_map(|row| row.as_of).min();
    let as_of = oldest.map_or_else(String::new, |at| format!(", data as of {}", local(at, settings.timezone)));
    let mut text = format!("Coverage on {}{as_of}\n{}", view.date, plain(&header, view.coverage.iter().map(row)));
    for line in unknown(&view.coverage) {
        text.push('\n');
        text.push_str(&line);
    }
    text.push_str("\n\nWhy people match, or not\n");
    text.push_str(&match_report(&view.match_report));
    for trend in &view.trend {
        text.push_str(&draw(trend));
    }
    text
}

/// A line for each account of whose followers some are not known yet: their reach is still to come.
fn unknown(rows: &[CoverageRow]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for row in rows.iter().filter(|row| row.account != "*") {
        let mut counts = Vec::new();
        if let Some(people) = row.not_asked.filter(|people| *people > 0) {
            counts.push(format!("{} not asked yet", grouped(people)));
        }
        if let Some(people) = row.unreadable.filter(|people| *people > 0) {
            counts.push(format!("{} could not be read", grouped(people)));
        }
        let line = format!("{}: of {} followers {}", row.account, grouped(row.followers), counts.join(", "));
        if !counts.is_empty() && !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

fn row(row: &CoverageRow) -> Vec<String> {
    let mut cells = vec![row.account.clone(), row.miniprogram.clone()];
    let counts =
        [row.followers, row.followers_with_unionid, row.users, row.users_with_unionid, row.matched, row.reachable];
    cells.extend(counts.map(grouped));
    cells.push(row.reached_lately.map_or_else(String::new, grouped));
    cells.extend([percent(row.coverage_rate), percent(row.match_rate)]);
    cells
}

fn match_report(rows: &[MatchRow]) -> String {
    let rows = rows.iter().map(|row| {
        let words = [&row.account, &row.miniprogram, &row.side, &row.reason].map(Clone::clone);
        let mut cells = words.to_vec();
        cells.extend([grouped(row.people), percent(row.share), since_before(row)]);
        cells
    });
    plain(&["account", "mini program", "side", "reason", "people", "share of side", "since the day before"], rows)
}

/// How many more or fewer than on the last day before that was measured.
fn since_before(row: &MatchRow) -> String {
    let [.., before, now] = row.trend.as_slice() else { return String::new() };
    let sign = match now.people.cmp(&before.people) {
        std::cmp::Ordering::Less => "-",
        std::cmp::Ordering::Equal => "",
        std::cmp::Ordering::Greater => "+",
    };
    format!("{sign}{}", grouped(now.people.abs_diff(before.people)))
}

fn draw(trend: &Trend) -> String {
    let mut text = format!("\n\nCoverage of {} × {}\n", trend.account, trend.miniprogram);
    let lines = trend.days.iter().map(|day| {
        let rate = percent(day.coverage_rate);
        format!("{}  {rate:>6}  {}", day.date, bar(day.coverage_rate.unwrap_or(0.0), BAR)).trim_end().to_owned()
    });
    text.push_str(&lines.collect::<Vec<_>>().join("\n"));
    text
}

fn describe_segment(view: &SegmentView) -> String {
    let mut text = format!("Coverage by {} on {}", view.segment, view.date);
    for group in &view.groups {
        let header = [view.segment.as_str(), "users", "matched", "reachable", "coverage", ""];
        let title = format!("\n\n{} × {}\n", group.account, group.miniprogram);
        text.push_str(&title);
        text.push_str(&plain(&header, segment_rows(group)));
    }
    text
}

fn segment_rows(group: &SegmentGroup) -> Vec<Vec<String>> {
    let cells = |name: String, counts: [u64; 3], rate: Option<f64>| {
        let mut cells = vec![name];
        cells.extend(counts.map(grouped));
        cells.extend([percent(rate), bar(rate.unwrap_or(0.0), BAR / 2)]);
        cells
    };
    let mut rows: Vec<Vec<String>> = Vec::new();
    for row in &group.values {
        let name = row.value.clone().unwrap_or_else(|| "(unknown)".to_owned());
        rows.push(cells(name, [row.users, row.matched, row.reachable], row.coverage_rate));
    }
    if let Some(others) = &group.others {
        let name = format!("({} others)", others.values);
        rows.push(cells(name, [others.users, others.matched, others.reachable], others.coverage_rate));
    }
    rows
}

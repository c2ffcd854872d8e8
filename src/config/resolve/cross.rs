//! What the files say of each other: stages that name stages, pipelines that name pipelines, tables that two stages make.
//!
//! While a pipeline is read, every such name is noted in [`Mentions`] with its place; when all files are read, [`check`]
//! judges them. Tables that SQL reads are not known here: that is judged by who can read SQL.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::problems::{Problems, suggestion};
use crate::config::settings::{Pipeline, Place, StageKind};
use crate::domain::{PipelineName, StageName, TableName};

/// Tables that exist from the start or are live views of the ledger: no stage may make one under another kind.
const BUILT_IN: [&str; 20] = [
    "recipients",
    "left_out",
    "pushes",
    "deliveries",
    "runs",
    "run_stages",
    "audit",
    "api_calls",
    "suppressions",
    "error_codes",
    "coverage",
    "match_report",
    "coverage_by_segment",
    "follower_changes",
    "memberships",
    "follower_tags",
    "reach_evidence",
    "quarantine",
    "identity_conflicts",
    "identity_changes",
];
/// What every `measure_coverage` stage makes.
pub(in crate::config) const COVERAGE_TABLES: [&str; 3] = ["coverage", "match_report", "coverage_by_segment"];

/// Names found in the files, each with its place.
#[derive(Debug, Default)]
pub(in crate::config) struct Mentions {
    /// Every stage there is, also one whose settings are wrong, with its kind where that is known.
    pub stages: BTreeMap<(PipelineName, StageName), Option<&'static str>>,
    pub made: Vec<Made>,
    pub needed_stages: Vec<StageMention>,
    /// Pipeline, what it names in `after`, and where.
    pub after: Vec<(PipelineName, PipelineName, Place)>,
    pub read_tables: Vec<TableMention>,
    /// Pipelines whose file is not TOML: they exist, and make nobody knows what.
    pub unread_pipelines: Vec<PipelineName>,
}

/// A table that a stage makes.
#[derive(Debug)]
pub(in crate::config) struct Made {
    pub table: TableName,
    pub kind: Option<&'static str>,
    pub place: Place,
}

/// A stage named by another one of its pipeline.
#[derive(Debug)]
pub(in crate::config) struct StageMention {
    pub pipeline: PipelineName,
    pub from: StageName,
    pub to: StageName,
    pub place: Place,
    /// Named as a push's `recipients`.
    pub as_recipients: bool,
}

/// A table named by a key (not by SQL).
#[derive(Debug)]
pub(in crate::config) struct TableMention {
    pub table: TableName,
    pub place: Place,
    pub wanted: Wanted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) enum Wanted {
    Followers,
    Users,
    Any,
}

impl Wanted {
    fn noun(self) -> &'static str {
        match self {
            Self::Followers => "table of followers",
            Self::Users => "table of users",
            Self::Any => "table",
        }
    }

    /// A table from SQL may be one of users; followers are walked an account at a time, which SQL does not give. A stage
    /// whose kind could not be read may be anything.
    fn accepts(self, kind: Option<&str>) -> bool {
        match (self, kind) {
            (_, None) | (Self::Any, _) | (Self::Users, Some("sql")) => true,
            (Self::Followers, Some(kind)) => kind == "extract_followers",
            (Self::Users, Some(kind)) => kind == "load_users",
        }
    }
}

pub(super) fn check(mentions: &Mentions, pipelines: &[Pipeline], problems: &mut Problems) {
    tables_made_once(mentions, problems);
    tables_read(mentions, problems);
    stages_named(mentions, problems);
    same_account(pipelines, problems);
    pipelines_named(mentions, problems);
    let needs = mentions.needed_stages.iter();
    let needs = needs.map(|m| ((&m.pipeline, &m.from), (&m.pipeline, &m.to), &m.place));
    circles(&needs.collect::<Vec<_>>(), |(_, stage)| stage.to_string(), problems);
    let after = mentions.after.iter().map(|(from, to, place)| (from, to, place));
    circles(&after.collect::<Vec<_>>(), |pipeline| pipeline.to_string(), problems);
}

fn tables_made_once(mentions: &Mentions, problems: &mut Problems) {
    let mut first: BTreeMap<&TableName, &Made> = BTreeMap::new();
    for made in &mentions.made {
        let coverage = made.kind == Some("measure_coverage") && COVERAGE_TABLES.contains(&made.table.as_str());
        if BUILT_IN.contains(&made.table.as_str()) && !coverage && made.kind.is_some() {
            problems
                .at(&made.place, format!("the table `{}` is there from the start; no stage can make it", made.table))
                .hint("name the stage otherwise, or give it another table: table = \"…\"");
        }
        let Some(other) = first.get(&made.table) else {
            first.insert(&made.table, made);
            continue;
        };
        // The sets of all campaigns may have one name: a set is known by its run.
        if made.kind == Some("materialize_recipients") && other.kind == made.kind {
            continue;
        }
        let (line, _) = problems.position(&other.place);
        problems
            .at(
                &made.place,
                format!("the table `{}` is already made at {}:{line}", made.table, other.place.file.display()),
            )
            .hint("a table is made by one stage; name this one otherwise, or give it another table: table = \"…\"");
    }
}

fn tables_read(mentions: &Mentions, problems: &mut Problems) {
    if !mentions.unread_pipelines.is_empty() {
        return;
    }
    for mention in &mentions.read_tables {
        let built_in = BUILT_IN.iter().copied().filter(|_| mention.wanted == Wanted::Any);
        let made =
            mentions.made.iter().filter(|made| mention.wanted.accepts(made.kind)).map(|made| made.table.as_str());
        let fitting: BTreeSet<&str> = made.chain(built_in).collect();
        if fitting.contains(mention.table.as_str()) {
            continue;
        }
        let noun = mention.wanted.noun();
        let message = if mentions.made.iter().any(|made| made.table == mention.table) {
            format!("`{}` is not a {noun}", mention.table)
        } else {
            format!("no stage makes a {noun} `{}`", mention.table)
        };
        let hint = suggestion(mention.table.as_str(), fitting.iter().copied(), &format!("no stage makes a {noun} yet"));
        problems.at(&mention.place, message).hint(hint);
    }
}

fn stages_named(mentions: &Mentions, problems: &mut Problems) {
    for mention in &mentions.needed_stages {
        let fits =
            |kind: &Option<&str>| !mention.as_recipients || kind.is_none_or(|kind| kind == "materialize_recipients");
        let known = mentions
            .stages
            .iter()
            .filter(|((pipeline, stage), kind)| *pipeline == mention.pipeline && *stage != mention.from && fits(kind))
            .map(|((_, stage), _)| stage.as_str());
        let noun = if mention.as_recipients { "`materialize_recipients` stage" } else { "stage" };
        let none = format!("this pipeline has no other {noun}");
        match mentions.stages.get(&(mention.pipeline.clone(), mention.to.clone())) {
            Some(kind) if fits(kind) => {}
            Some(kind) => {
                let message =
                    format!("`{}` is a `{}` stage; a push needs a recipient set", mention.to, kind.unwrap_or("?"));
                problems.at(&mention.place, message).hint(suggestion(mention.to.as_str(), known, &none));
            }
            None => {
                let message = format!("this pipeline has no {noun} `{}`", mention.to);
                problems.at(&mention.place, message).hint(suggestion(mention.to.as_str(), known, &none));
            }
        }
    }
}

/// An openid belongs to one account: a set of another account's could not be sent to.
fn same_account(pipelines: &[Pipeline], problems: &mut Problems) {
    for pipeline in pipelines {
        for stage in &pipeline.stages {
            let StageKind::PushTemplate(push) = &stage.kind else { continue };
            let set = pipeline.stages.iter().find(|other| other.name == push.recipients);
            let Some(StageKind::MaterializeRecipients(set)) = set.map(|stage| &stage.kind) else { continue };
            if set.account != push.account {
                let message = format!(
                    "the set `{}` is of the account `{}`, and this push sends from `{}`",
                    push.recipients, set.account, push.account
                );
                problems.at(&push.recipients_place, message).hint("give both stages one account");
            }
        }
    }
}

fn pipelines_named(mentions: &Mentions, problems: &mut Problems) {
    let mut known: BTreeSet<&str> = mentions.stages.keys().map(|(pipeline, _)| pipeline.as_str()).collect();
    known.extend(mentions.unread_pipelines.iter().map(PipelineName::as_str));
    for (from, to, place) in &mentions.after {
        if !known.contains(to.as_str()) {
            let others = known.iter().copied().filter(|name| *name != from.as_str());
            problems.at(place, format!("there is no pipeline `{to}`")).hint(suggestion(
                to.as_str(),
                others,
                "there is no other pipeline",
            ));
        }
    }
}

/// Reports each circle once, at the mention that closes it.
fn circles<N: Ord + Copy>(edges: &[(N, N, &Place)], name: impl Fn(N) -> String, problems: &mut Problems) {
    let mut next: BTreeMap<N, Vec<(N, &Place)>> = BTreeMap::new();
    for (from, to, place) in edges {
        next.entry(*from).or_default().push((*to, *place));
    }
    let mut done = BTreeSet::new();
    for start in next.keys() {
        // Depth first without recursion: the way from `start`, and for each step which of its edges comes next.
        let mut way: Vec<(N, usize)> = vec![(*start, 0)];
        while let Some((node, edge)) = way.last_mut() {
            let node = *node;
            let following = next.get(&node).and_then(|edges| edges.get(*edge)).filter(|_| !done.contains(&node));
            let Some((to, place)) = following else {
                done.insert(node);
                way.pop();
                continue;
            };
            *edge += 1;
            if let Some(at) = way.iter().position(|(visited, _)| visited == to) {
                let circle: Vec<String> = way[at..].iter().map(|(node, _)| *node).chain([*to]).map(&name).collect();
                problems
                    .at(place, format!("this closes a circle: {}", circle.join(" → ")))
                    .hint("each waits for the next; take one of these names out");
            } else if !done.contains(to) {
                way.push((*to, 0));
            }
        }
    }
}

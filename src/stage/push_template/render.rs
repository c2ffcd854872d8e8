//! Rendering a set: each message written and held against the rules of its fields, then frozen as a row of a file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use serde_json::{Map, Value};

use super::messages::Spec;
use crate::domain::{ColumnType, Rows, Values, client_msg_id};
use crate::engine::{Params, Session, TableSource};
use crate::lake::Lake;
use crate::stage::StageError;
use crate::template::fields::{FieldRules, check_address};
use crate::template::{Renderer, Variables};
use crate::wechat::Message as Body;

/// Messages of one row group.
const BATCH: usize = 10_000;
const MOST_THREADS: usize = 8;
/// Examples shown of each broken rule.
const EXAMPLES: usize = 3;

pub struct Job {
    pub spec: Spec,
    pub set: std::path::PathBuf,
    pub path: String,
    pub lake: Lake,
    pub timezone: chrono_tz::Tz,
}

/// What the check found.
#[derive(Default)]
pub struct Checked {
    pub broken: u64,
    /// Field → (count, examples).
    fields: BTreeMap<String, (u64, Vec<String>)>,
}

impl Checked {
    fn note(&mut self, field: &str, example: String) {
        let (count, examples) = self.fields.entry(field.to_owned()).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(example);
        }
    }

    /// Takes in what another thread found.
    fn add(&mut self, other: Self) {
        self.broken += other.broken;
        for (field, (count, mut examples)) in other.fields {
            let (all, shown) = self.fields.entry(field).or_default();
            *all += count;
            shown.append(&mut examples);
            shown.truncate(EXAMPLES);
        }
    }

    pub fn report(&self, recipients: u64) -> String {
        let mut text = format!("{} of {recipients} messages break their template's rules, none was sent:", self.broken);
        for (field, (count, examples)) in &self.fields {
            text.push_str(&format!("\n  {field}: {count} messages, e.g. {}", examples.join("; ")));
        }
        text.push_str("\nmend the data or the SELECT, or set on_invalid = \"skip\" to leave these people out");
        text
    }
}

impl Job {
    pub fn render_all(&self, session: &Session) -> Result<Checked, StageError> {
        let texts = self.texts();
        let named: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let renderer = Renderer::compile(&named, self.timezone).map_err(|problems| {
            let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
            StageError::Rule(all.join("; "))
        })?;
        session.add_table(&TableSource {
            name: "set".to_owned(),
            columns: Vec::new(),
            parts: vec![self.set.clone()],
            sql: None,
            are_alike: false,
        })?;
        let rules = &self.spec.rules;
        let fixed = self.fixed(&renderer, rules);
        let forms = Forms { renderer: &renderer, rules, fixed: &fixed };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
        let mut writer = self.lake.writer(&self.path, &SCHEMA)?;
        let mut checked = Checked::default();
        // One thread reads, several render, one writes: nothing is sent before all of it is done.
        std::thread::scope(|scope| {
            let (mut given, mut done, mut renderers) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..threads {
                let (give, take) = sync_channel::<Rows>(1);
                let (finish, finished) = sync_channel::<Frozen>(1);
                let forms = &forms;
                renderers.push(scope.spawn(move || self.render_groups(forms, &take, &finish)));
                given.push(give);
                done.push(finished);
            }
            let written = scope.spawn(move || {
                write_in_turn(&done, |group| writer.write(group.rows()))?;
                writer.finish()
            });
            let read = self.read_set(session, given);
            for renderer in renderers {
                checked.add(joined(renderer));
            }
            joined(written)?;
            read
        })?;
        Ok(checked)
    }

    /// Hands the set's rows out, group by group and in turn, until it ends or nobody takes them any more.
    fn read_set(&self, session: &Session, given: Vec<SyncSender<Rows>>) -> Result<(), StageError> {
        let select = "select seq, openid, unionid, variables from \"set\" where arm = 'send'";
        let mut turn = given.iter().cycle();
        // Whoever takes no more has failed, and says why.
        session.stream::<StageError>(select, &Params::new(), |rows| {
            Ok(turn.next().is_some_and(|renderer| renderer.send(rows).is_ok()))
        })
    }

    /// Renders group after group; gives what the check found.
    fn render_groups(&self, forms: &Forms<'_>, groups: &Receiver<Rows>, finished: &SyncSender<Frozen>) -> Checked {
        let mut checked = Checked::default();
        for rows in groups {
            if finished.send(self.render_group(forms, rows, &mut checked)).is_err() {
                break;
            }
        }
        checked
    }

    fn render_group(&self, forms: &Forms<'_>, rows: Rows, checked: &mut Checked) -> Frozen {
        let mut group = Frozen::default();
        let mut columns = rows.columns.into_iter().map(|(_, values)| values);
        let (
            Some(Values::Integer(seqs)),
            Some(Values::Text(openids)),
            Some(Values::Text(unionids)),
            Some(Values::Text(variables)),
        ) = (columns.next(), columns.next(), columns.next(), columns.next())
        else {
            unreachable!("the SELECT names a number and three texts")
        };
        let people = seqs.into_iter().zip(openids).zip(unionids).zip(variables);
        for (((seq, openid), unionid), variables) in people {
            let seq = u64::try_from(seq.unwrap_or_default()).unwrap_or_default();
            let openid = openid.unwrap_or_default();
            let recipient: Map<String, Value> =
                serde_json::from_str(variables.as_deref().unwrap_or("{}")).unwrap_or_default();
            let one = Recipient { seq, openid: &openid, variables: &recipient };
            let (body, invalid) = self.render(forms, &one, checked);
            group.push((seq, openid, unionid), body, invalid);
        }
        group
    }

    /// The texts that come out the same for everybody, rendered and checked once. One that breaks a rule is not among
    /// them: it is reported for each message.
    fn fixed(&self, renderer: &Renderer, rules: &FieldRules) -> Vec<Option<Fixed>> {
        let nobody = Map::new();
        let variables = Variables { now: self.spec.now, recipient: &nobody, common: &self.spec.common };
        let fixed = |index: usize| {
            let mut value = String::new();
            renderer.render(index, &variables, &mut value).ok()?;
            if let Some((name, _)) = self.spec.data.get(index) {
                rules.check(name, &value).ok()?;
            }
            let unless = renderer.variables(index).iter().filter(|name| *name != "now").cloned().collect();
            Some(Fixed { value, unless })
        };
        (0..renderer.len()).map(fixed).collect()
    }

    /// Fields first, then page and address.
    fn texts(&self) -> Vec<(String, String)> {
        let mut texts = self.spec.data.clone();
        if let Some((_, pagepath)) = &self.spec.miniprogram {
            texts.push(("pagepath".to_owned(), pagepath.clone()));
        }
        if let Some(url) = &self.spec.url {
            texts.push(("url".to_owned(), url.clone()));
        }
        texts
    }

    fn render(
        &self,
        forms: &Forms<'_>,
        one: &Recipient<'_>,
        checked: &mut Checked,
    ) -> (Option<String>, Option<String>) {
        let variables = Variables { now: self.spec.now, recipient: one.variables, common: &self.spec.common };
        let fields = self.spec.data.len();
        let mut values: Vec<Cow<'_, str>> = Vec::with_capacity(forms.fixed.len());
        let mut invalid: Option<String> = None;
        for (index, fixed) in forms.fixed.iter().enumerate() {
            if let Some(fixed) = fixed.as_ref().filter(|fixed| fixed.holds_for(one)) {
                values.push(Cow::Borrowed(&fixed.value));
                continue;
            }
            let mut value = String::new();
            let name = self.spec.data.get(index).map_or("pagepath or url", |(name, _)| name.as_str());
            let problem = match forms.renderer.render(index, &variables, &mut value) {
                Err(error) => Some(error.to_string()),
                Ok(()) if index < fields => forms.rules.check(name, &value).err().map(|problem| problem.to_string()),
                Ok(()) => check_address(name, &value).err().map(|problem| problem.to_string()),
            };
            if let Some(problem) = problem {
                checked.note(name, format!("seq {}: {problem}", one.seq));
                invalid.get_or_insert(problem);
            }
            values.push(Cow::Owned(value));
        }
        if invalid.is_some() {
            checked.broken += 1;
            return (None, invalid);
        }
        let data: Vec<(&str, &str)> =
            self.spec.data.iter().zip(&values).map(|((name, _), value)| (name.as_str(), value.as_ref())).collect();
        let mut rest = values[fields..].iter();
        let page =
            self.spec.miniprogram.as_ref().map(|(app_id, _)| (app_id.as_str(), rest.next().map_or("", Cow::as_ref)));
        let id = client_msg_id(&self.spec.run_id, &self.spec.stage, one.seq);
        let body = Body {
            touser: one.openid,
            template_id: &self.spec.template_id,
            url: self.spec.url.as_ref().and_then(|_| rest.next()).map(Cow::as_ref),
            miniprogram: page,
            page_key: &self.spec.page_key,
            client_msg_id: &id,
            data: &data,
        };
        (String::from_utf8(body.write()).ok(), None)
    }
}

/// Writes what comes out of several threads in the order in which it was handed to them.
fn write_in_turn<E>(finished: &[Receiver<Frozen>], mut write: impl FnMut(Frozen) -> Result<(), E>) -> Result<(), E> {
    let mut group = Frozen::default();
    for renderer in finished.iter().cycle() {
        // The first who has nothing more was handed nothing more, and so was nobody after.
        let Ok(more) = renderer.recv() else { break };
        group.append(more);
        if group.len() >= BATCH {
            write(std::mem::take(&mut group))?;
        }
    }
    write(group)
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// How the messages are made.
struct Forms<'a> {
    renderer: &'a Renderer,
    rules: &'a FieldRules,
    fixed: &'a [Option<Fixed>],
}

/// A text that names no column of the recipients.
struct Fixed {
    value: String,
    /// What it names: a column of that name would hide it.
    unless: Vec<String>,
}

impl Fixed {
    fn holds_for(&self, one: &Recipient<'_>) -> bool {
        self.unless.iter().all(|name| !one.variables.contains_key(name))
    }
}

struct Recipient<'a> {
    seq: u64,
    openid: &'a str,
    variables: &'a Map<String, Value>,
}

const SCHEMA: [(&str, ColumnType); 5] = [
    ("seq", ColumnType::Integer),
    ("openid", ColumnType::Text),
    ("unionid", ColumnType::Text),
    ("body", ColumnType::Text),
    ("invalid", ColumnType::Text),
];

#[derive(Default)]
struct Frozen {
    seq: Vec<Option<i64>>,
    openid: Vec<Option<String>>,
    unionid: Vec<Option<String>>,
    body: Vec<Option<String>>,
    invalid: Vec<Option<String>>,
}

impl Frozen {
    fn push(&mut self, person: (u64, String, Option<String>), body: Option<String>, invalid: Option<String>) {
        self.seq.push(i64::try_from(person.0).ok());
        self.openid.push(Some(person.1));
        self.unionid.push(person.2);
        self.body.push(body);
        self.invalid.push(invalid);
    }

    fn len(&self) -> usize {
        self.seq.len()
    }

    fn append(&mut self, mut other: Self) {
        self.seq.append(&mut other.seq);
        self.openid.append(&mut other.openid);
        self.unionid.append(&mut other.unionid);
        self.body.append(&mut other.body);
        self.invalid.append(&mut other.invalid);
    }

    fn rows(self) -> Rows {
        let columns = [
            ("seq", Values::Integer(self.seq)),
            ("openid", Values::Text(self.openid)),
            ("unionid", Values::Text(self.unionid)),
            ("body", Values::Text(self.body)),
            ("invalid", Values::Text(self.invalid)),
        ];
        Rows { columns: columns.into_iter().map(|(name, values)| (name.to_owned(), values)).collect() }
    }
}

//! The messages of a push: rendered from the frozen set and checked, all of them, before the first send.
//!
//! They are frozen as a file of their own, bytes as they will leave, named by the hash of everything that shaped them.
//! When an operator mends the template or a text while recipients are still owed, that hash changes and the messages
//! are rendered anew; the set and its numbering stay.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::Pushing;
use crate::config::settings::{OnInvalid, ParamValue, PushTemplate};
use crate::domain::{ColumnType, OpenId, Rows, UnionId, Values, client_msg_id};
use crate::engine::{Engine, Params, Session, TableSource};
use crate::lake::Lake;
use crate::ledger::Push;
use crate::stage::{StageContext, StageError, blocking};
use crate::template::fields::FieldRules;
use crate::template::{Renderer, Variables};
use crate::wechat::{Message as Body, Template};

/// Messages rendered into one row group.
const BATCH: usize = 10_000;
/// Examples shown of each broken rule.
const EXAMPLES: usize = 3;

/// One message as frozen.
#[derive(Debug)]
pub struct Message {
    pub seq: u64,
    pub openid: OpenId,
    pub unionid: Option<UnionId>,
    pub body: Vec<u8>,
    /// Which rule it breaks; such a message is never sent.
    pub invalid: Option<String>,
}

/// Renders and checks every message, unless exactly these messages are frozen already.
///
/// # Errors
///
/// [`StageError::Rule`] with a report by field when messages break rules and `on_invalid` is `stop`: nothing was sent.
pub async fn prepare(cx: &StageContext<'_>, plan: &PushTemplate, push: Push) -> Result<Push, StageError> {
    let spec = Spec::of(cx, plan, &push);
    let hash = spec.hash();
    if push.message_hash.as_deref() == Some(hash.as_str())
        && push.messages_path.as_deref().is_some_and(|path| cx.hands.lake.absolute(path).exists())
    {
        return Ok(push);
    }
    check_template(cx, plan).await?;
    let path = format!("work/messages/{}.{}.{hash}.parquet", cx.run.run_id, cx.stage.name);
    let job = Job {
        spec,
        set: cx.hands.lake.absolute(&push.set_path),
        path: path.clone(),
        lake: cx.hands.lake.clone(),
        timezone: cx.hands.settings.timezone,
    };
    let checked = blocking(&cx.hands.engine.single_threaded(), cx.stop, move |session| job.render_all(session)).await?;
    if checked.broken > 0 && plan.on_invalid == OnInvalid::Stop {
        cx.hands.lake.remove(&path)?;
        return Err(StageError::Rule(checked.report(push.recipients)));
    }
    if checked.broken > 0 {
        tracing::warn!(messages = checked.broken, "{}", checked.report(push.recipients));
    }
    cx.hands.ledger.set_messages(cx.lease, push.key, &hash, &path).await?;
    if let Some(old) = push.messages_path.as_deref().filter(|old| *old != path) {
        cx.hands.lake.remove(old)?;
    }
    super::reread(cx, &push).await
}

/// The template's fields must be exactly the message's; a template that is not in the list may still work (category
/// templates were reported missing from it): a warning.
async fn check_template(cx: &StageContext<'_>, plan: &PushTemplate) -> Result<(), StageError> {
    let templates: Vec<Template> = cx.wechat(&plan.account).templates().await?;
    let Some(template) = templates.iter().find(|template| template.template_id == plan.template_id) else {
        tracing::warn!(account = %plan.account, "the template is not in the account's list; the first send will tell");
        return Ok(());
    };
    let ours: Vec<&str> = plan.data.iter().map(|field| field.name.as_str()).collect();
    let missing: Vec<&str> = template.fields.iter().map(String::as_str).filter(|field| !ours.contains(field)).collect();
    let extra: Vec<&str> =
        ours.iter().copied().filter(|field| !template.fields.iter().any(|own| own == field)).collect();
    if missing.is_empty() && extra.is_empty() {
        return Ok(());
    }
    Err(StageError::Rule(format!(
        "the data of stage `{}` does not fit its template \"{}\": missing {}, not in the template {}; the template has {}",
        cx.stage.name,
        template.title,
        listed(&missing),
        listed(&extra),
        template.fields.join(", ")
    )))
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// Everything that shapes a message beside its recipient.
#[derive(Clone)]
pub struct Spec {
    template_id: String,
    url: Option<String>,
    miniprogram: Option<(String, String)>,
    page_key: String,
    data: Vec<(String, String)>,
    common: Map<String, Value>,
    now: crate::clock::Timestamp,
    set_hash: String,
    run_id: crate::domain::RunId,
    stage: crate::domain::StageName,
}

impl Spec {
    fn of(cx: &StageContext<'_>, plan: &PushTemplate, push: &Push) -> Self {
        Self {
            template_id: plan.template_id.as_str().to_owned(),
            url: plan.url.clone(),
            miniprogram: plan.miniprogram.as_ref().map(|mini| (mini.app_id.clone(), mini.pagepath.clone())),
            page_key: cx.hands.account(&plan.account).page_key.clone(),
            data: plan.data.iter().map(|field| (field.name.clone(), field.text.clone())).collect(),
            common: common_variables(cx),
            now: push.frozen_at,
            set_hash: push.set_hash.clone(),
            run_id: cx.run.run_id.clone(),
            stage: cx.stage.name.clone(),
        }
    }

    fn hash(&self) -> String {
        let shaped = serde_json::json!([
            self.template_id,
            self.url,
            self.miniprogram,
            self.page_key,
            self.data,
            self.common,
            crate::clock::to_micros(self.now),
            self.set_hash,
            self.run_id,
            self.stage,
        ]);
        let hash = Sha256::digest(shaped.to_string().as_bytes());
        hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What every recipient's message may name: parameters, the pipeline, the run.
pub fn common_variables(cx: &StageContext<'_>) -> Map<String, Value> {
    let given: BTreeMap<String, Value> = serde_json::from_str(&cx.run.params).unwrap_or_default();
    let declared = cx.hands.settings.pipelines.get(&cx.run.pipeline).into_iter().flat_map(|pipeline| &pipeline.params);
    let mut common: Map<String, Value> = declared
        .map(|(name, value)| {
            let value = match value {
                ParamValue::Text(text) => Value::from(text.as_str()),
                ParamValue::Integer(number) => Value::from(*number),
                ParamValue::Float(number) => Value::from(*number),
                ParamValue::Boolean(value) => Value::from(*value),
            };
            (name.clone(), value)
        })
        .collect();
    common.extend(given);
    common.insert("pipeline".to_owned(), Value::from(cx.run.pipeline.as_str()));
    common.insert("run_id".to_owned(), Value::from(cx.run.run_id.as_str()));
    common.insert("today".to_owned(), Value::from(cx.run.today.to_string()));
    common
}

struct Job {
    spec: Spec,
    set: std::path::PathBuf,
    path: String,
    lake: Lake,
    timezone: chrono_tz::Tz,
}

/// What the check found.
#[derive(Default)]
struct Checked {
    broken: u64,
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

    fn report(&self, recipients: u64) -> String {
        let mut text = format!("{} of {recipients} messages break their template's rules, none was sent:", self.broken);
        for (field, (count, examples)) in &self.fields {
            text.push_str(&format!("\n  {field}: {count} messages, e.g. {}", examples.join("; ")));
        }
        text.push_str("\nmend the data or the SELECT, or set on_invalid = \"skip\" to leave these people out");
        text
    }
}

impl Job {
    fn render_all(&self, session: &Session) -> Result<Checked, StageError> {
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
        })?;
        let mut writer = self.lake.writer(&self.path, &SCHEMA)?;
        let rules = FieldRules::documented();
        let mut checked = Checked::default();
        let mut batch = Frozen::default();
        let select = "select seq, openid, unionid, variables from \"set\" where arm = 'send'";
        session.stream::<StageError>(select, &Params::new(), |rows| {
            let [
                (_, Values::Integer(seqs)),
                (_, Values::Text(openids)),
                (_, Values::Text(unionids)),
                (_, Values::Text(variables)),
            ] = rows.columns.as_slice()
            else {
                return Ok(false);
            };
            for row in 0..seqs.len() {
                let seq = u64::try_from(seqs[row].unwrap_or_default()).unwrap_or_default();
                let openid = openids[row].as_deref().unwrap_or_default();
                let recipient: Map<String, Value> =
                    serde_json::from_str(variables[row].as_deref().unwrap_or("{}")).unwrap_or_default();
                let one = Recipient { seq, openid, variables: &recipient };
                let (body, invalid) = self.render(&renderer, &rules, &one, &mut checked);
                batch.push((seq, openid, unionids[row].clone()), body, invalid);
            }
            if batch.len() >= BATCH {
                writer.write(std::mem::take(&mut batch).rows())?;
            }
            Ok(true)
        })?;
        writer.write(batch.rows())?;
        writer.finish()?;
        Ok(checked)
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
        renderer: &Renderer,
        rules: &FieldRules,
        one: &Recipient<'_>,
        checked: &mut Checked,
    ) -> (Option<String>, Option<String>) {
        let variables = Variables { now: self.spec.now, recipient: one.variables, common: &self.spec.common };
        let fields = self.spec.data.len();
        let mut values: Vec<String> = Vec::with_capacity(renderer.len());
        let mut invalid: Option<String> = None;
        for index in 0..renderer.len() {
            let mut value = String::new();
            let name = self.spec.data.get(index).map_or("pagepath or url", |(name, _)| name.as_str());
            let problem = match renderer.render(index, &variables, &mut value) {
                Err(error) => Some(error.to_string()),
                Ok(()) if index < fields => rules.check(name, &value).err().map(|problem| problem.to_string()),
                Ok(()) => None,
            };
            if let Some(problem) = problem {
                checked.note(name, format!("seq {}: {problem}", one.seq));
                invalid.get_or_insert(problem);
            }
            values.push(value);
        }
        if invalid.is_some() {
            checked.broken += 1;
            return (None, invalid);
        }
        let data: Vec<(&str, &str)> =
            self.spec.data.iter().zip(&values).map(|((name, _), value)| (name.as_str(), value.as_str())).collect();
        let mut rest = values[fields..].iter();
        let page =
            self.spec.miniprogram.as_ref().map(|(app_id, _)| (app_id.as_str(), rest.next().map_or("", String::as_str)));
        let id = client_msg_id(&self.spec.run_id, &self.spec.stage, one.seq);
        let body = Body {
            touser: one.openid,
            template_id: &self.spec.template_id,
            url: self.spec.url.as_ref().and_then(|_| rest.next()).map(String::as_str),
            miniprogram: page,
            page_key: &self.spec.page_key,
            client_msg_id: &id,
            data: &data,
        };
        (String::from_utf8(body.write()).ok(), None)
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
    fn push(&mut self, person: (u64, &str, Option<String>), body: Option<String>, invalid: Option<String>) {
        self.seq.push(i64::try_from(person.0).ok());
        self.openid.push(Some(person.1.to_owned()));
        self.unionid.push(person.2);
        self.body.push(body);
        self.invalid.push(invalid);
    }

    fn len(&self) -> usize {
        self.seq.len()
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

/// Reads frozen messages in the order of the set, a few thousand in memory.
pub struct MessageReader {
    batches: mpsc::Receiver<Result<Vec<Message>, StageError>>,
    left: std::collections::VecDeque<Message>,
}

impl MessageReader {
    /// Messages after the last one claimed.
    ///
    /// # Errors
    ///
    /// [`StageError::Rule`] when the messages were never frozen.
    pub fn open(pushing: &Pushing<'_>) -> Result<Self, StageError> {
        let (send, batches) = mpsc::channel(4);
        let engine = pushing.cx.hands.engine.single_threaded();
        let file = messages_file(pushing)?;
        let sql = format!("{SELECT} where seq > {}", pushing.push.claimed_to);
        // The thread ends with the file, or when this reader is dropped and the channel closes.
        tokio::task::spawn_blocking(move || {
            let ended = read(&engine, file, &sql, |messages| send.blocking_send(Ok(messages)).is_ok());
            if let Err(error) = ended {
                let _ = send.blocking_send(Err(error));
            }
        });
        Ok(Self { batches, left: std::collections::VecDeque::new() })
    }

    /// No messages: nobody is to be claimed any more.
    pub fn empty() -> Self {
        let (_, batches) = mpsc::channel(1);
        Self { batches, left: std::collections::VecDeque::new() }
    }

    /// The next messages, at most `most`; none at the end.
    ///
    /// # Errors
    ///
    /// [`StageError`] when the file cannot be read.
    pub async fn next(&mut self, most: usize) -> Result<Vec<Message>, StageError> {
        while self.left.len() < most {
            match self.batches.recv().await {
                Some(batch) => self.left.extend(batch?),
                None => break,
            }
        }
        let most = most.min(self.left.len());
        Ok(self.left.drain(..most).collect())
    }

    /// The messages of given seqs, in their order.
    ///
    /// # Errors
    ///
    /// [`StageError`] when the file cannot be read.
    pub async fn of_seqs(pushing: &Pushing<'_>, seqs: &[u64]) -> Result<Vec<Message>, StageError> {
        let engine = pushing.cx.hands.engine.single_threaded();
        let file = messages_file(pushing)?;
        let list: Vec<String> = seqs.iter().map(ToString::to_string).collect();
        let sql = format!("{SELECT} where seq in ({}) order by seq", list.join(", "));
        tokio::task::spawn_blocking(move || {
            let mut all = Vec::new();
            read(&engine, file, &sql, |messages| {
                all.extend(messages);
                true
            })?;
            Ok(all)
        })
        .await?
    }
}

const SELECT: &str = "select seq, openid, unionid, body, invalid from messages";

/// The first `n` messages of a file. Blocking.
pub fn first(engine: &Engine, file: std::path::PathBuf, n: u32) -> Result<Vec<Message>, StageError> {
    let mut all = Vec::new();
    read(engine, file, &format!("{SELECT} order by seq limit {n}"), |messages| {
        all.extend(messages);
        true
    })?;
    Ok(all)
}

fn messages_file(pushing: &Pushing<'_>) -> Result<std::path::PathBuf, StageError> {
    let path = pushing.push.messages_path.as_deref();
    let path = path.ok_or_else(|| StageError::Rule("the messages were not frozen".to_owned()))?;
    Ok(pushing.cx.hands.lake.absolute(path))
}

fn read(
    engine: &Engine,
    file: std::path::PathBuf,
    sql: &str,
    mut sink: impl FnMut(Vec<Message>) -> bool,
) -> Result<(), StageError> {
    let session = engine.session()?;
    session.add_table(&TableSource { name: "messages".to_owned(), columns: Vec::new(), parts: vec![file] })?;
    session.stream::<StageError>(sql, &Params::new(), |rows| Ok(sink(messages(rows))))
}

fn messages(rows: Rows) -> Vec<Message> {
    let mut columns = rows.columns.into_iter().map(|(_, values)| values);
    let (
        Some(Values::Integer(seqs)),
        Some(Values::Text(openids)),
        Some(Values::Text(unionids)),
        Some(Values::Text(bodies)),
        Some(Values::Text(invalids)),
    ) = (columns.next(), columns.next(), columns.next(), columns.next(), columns.next())
    else {
        return Vec::new();
    };
    let people = seqs.into_iter().zip(openids).zip(unionids).zip(bodies).zip(invalids);
    people
        .map(|((((seq, openid), unionid), body), invalid)| Message {
            seq: u64::try_from(seq.unwrap_or_default()).unwrap_or_default(),
            openid: OpenId::new(openid.unwrap_or_default()),
            unionid: unionid.map(UnionId::new),
            body: body.unwrap_or_default().into_bytes(),
            invalid,
        })
        .collect()
}

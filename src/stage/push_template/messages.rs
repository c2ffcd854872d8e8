//! The messages of a push: rendered from the frozen set and checked, all of them, before the first send.
//!
//! They are frozen as a file of their own, bytes as they will leave, named by the hash of everything that shaped them.
//! When an operator mends the template or a text while recipients are still owed, that hash changes and the messages
//! are rendered anew; the set and its numbering stay.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::render::Job;
use crate::config::settings::{OnInvalid, ParamValue, PushTemplate};
use crate::ledger::Push;
use crate::stage::{StageContext, StageError, blocking};
use crate::template::fields::FieldRules;
use crate::wechat::Template;

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
    let checked =
        blocking(&cx.hands.sparing_engine().single_threaded(), cx.stop, move |session| job.render_all(session)).await?;
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
    pub template_id: String,
    pub url: Option<String>,
    pub miniprogram: Option<(String, String)>,
    pub page_key: String,
    pub data: Vec<(String, String)>,
    pub common: Map<String, Value>,
    pub now: crate::clock::Timestamp,
    /// What fields may hold.
    pub rules: FieldRules,
    pub set_hash: String,
    pub run_id: crate::domain::RunId,
    pub stage: crate::domain::StageName,
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
            rules: cx.hands.settings.fields.clone(),
            set_hash: push.set_hash.clone(),
            run_id: cx.run.run_id.clone(),
            stage: cx.stage.name.clone(),
        }
    }

    fn hash(&self) -> String {
        // Other rules than the documented ones judge the messages anew when they change.
        let rules = if self.rules == FieldRules::documented() { String::new() } else { format!("{:?}", self.rules) };
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
        let hash = Sha256::digest(format!("{shaped}{rules}").as_bytes());
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

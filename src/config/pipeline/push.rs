//! The keys of a `push_template` stage: the message, to whom, how fast, and when to stop.

use std::time::Duration;

use super::stage::StageReader;
use crate::config::file::{Field, Section};
use crate::config::resolve::defaults;
use crate::config::settings::{
    Canary, HaltWhen, MessageField, MessageMiniProgram, OnExpiry, OnInvalid, Place, Priority, PushTemplate, StageKind,
    Unconfirmed,
};
use crate::config::units;
use crate::domain::{OpenId, StageName, TemplateId};

pub(super) fn read(stage: &mut StageReader<'_>) -> Option<StageKind> {
    let account = stage.one_account();
    let recipients = recipients(stage);
    let template = stage.section.require("template_id", "the template's id, from the account's console");
    let template = template.and_then(|field| Some((TemplateId::new(field.full_text()?), field.place())));
    let miniprogram = stage.section.take("miniprogram").and_then(|field| miniprogram(stage, &field));
    let section = &mut stage.section;
    let url = section.take("url").and_then(|field| url(&field));
    let data_field = section.require("data", "the template's fields: data = { thing1 = \"{{ product }}\" }");
    let rate = section.take("rate").and_then(|field| field.rate());
    let concurrency = section.take("concurrency").and_then(|field| field.count("sends in flight", 1..=10_000));
    let unconfirmed = section
        .take("unconfirmed")
        .and_then(|field| field.choice(&[("keep", Unconfirmed::Keep), ("resend", Unconfirmed::Resend)]));
    let halt_when = halt_when(section.section("halt_when", "`halt_when`"));
    let priority = section
        .take("priority")
        .and_then(|field| field.choice(&[("campaign", Priority::Campaign), ("service", Priority::Service)]));
    let approve = section.take("approve").and_then(|field| field.boolean());
    let on_invalid = section
        .take("on_invalid")
        .and_then(|field| field.choice(&[("stop", OnInvalid::Stop), ("skip", OnInvalid::Skip)]));
    let on_expiry =
        section.take("on_expiry").and_then(|field| field.choice(&[("stop", OnExpiry::Stop), ("skip", OnExpiry::Skip)]));
    let window = section.take("window").and_then(|field| field.unit(units::window));
    let daily_limit = section.take("daily_limit").and_then(|field| daily_limit(&field));
    let expires = section.take("expires").and_then(|field| Some((field.positive_duration()?, field.text()?)));
    let canary_section = section.section("canary", "`canary`");
    let canary = if canary_section.is_present() { canary(canary_section, expires.as_ref()) } else { None };
    let test_openids = section.take("test_openids").map(|field| test_openids(&field)).unwrap_or_default();
    let data = data_field.and_then(|field| data(&field, section));
    let (recipients, recipients_place) = recipients?;
    let (template_id, template_id_place) = template?;
    Some(StageKind::PushTemplate(Box::new(PushTemplate {
        account: account?,
        recipients,
        recipients_place,
        template_id,
        template_id_place,
        miniprogram,
        url,
        data: data?,
        rate: rate.unwrap_or(defaults::RATE),
        concurrency: usize::try_from(concurrency.unwrap_or(defaults::SEND_CONCURRENCY)).expect("at most 10 000"),
        unconfirmed: unconfirmed.unwrap_or(Unconfirmed::Keep),
        halt_when,
        priority: priority.unwrap_or(Priority::Campaign),
        approve: approve.unwrap_or(false),
        on_invalid: on_invalid.unwrap_or(OnInvalid::Stop),
        on_expiry: on_expiry.unwrap_or(OnExpiry::Stop),
        window,
        daily_limit,
        expires: expires.map(|(expires, _)| expires),
        canary,
        test_openids,
    })))
}

fn recipients(stage: &mut StageReader<'_>) -> Option<(StageName, Place)> {
    let field = stage.section.require("recipients", "name the `materialize_recipients` stage whose set is sent to")?;
    let name = StageName::new(field.full_text()?);
    stage.mention_stage(&name, field.place(), true);
    Some((name, field.place()))
}

/// A message opens a page of a mini program, by the name it has in `config/lianbo.toml`.
fn miniprogram(stage: &StageReader<'_>, field: &Field<'_>) -> Option<MessageMiniProgram> {
    let mut section = field.section("a push's `miniprogram`")?;
    let name = section.take("name");
    let pagepath = section.take("pagepath").and_then(|field| field.text());
    section.finish();
    let app_id = match name {
        Some(name) => stage.known_miniprogram(&name),
        None => stage
            .only_miniprogram(|| field.refuse("`name` is missing", "name the mini program as in config/lianbo.toml")),
    }?
    .app_id
    .clone();
    Some(MessageMiniProgram { app_id, pagepath: pagepath.unwrap_or_default(), place: field.place() })
}

fn url(field: &Field<'_>) -> Option<String> {
    let text = field.optional_text()?;
    if !["http://", "https://", "{{"].iter().any(|start| text.starts_with(start)) {
        field.refuse("this is not an address", "write https://…, or leave `url` out");
    }
    Some(text)
}

fn halt_when(mut section: Section<'_>) -> HaltWhen {
    let failed_share = section.take("failed_share").and_then(|field| field.share());
    let after = section.take("after").and_then(|field| field.count("recipients", 1..=u64::MAX));
    section.finish();
    HaltWhen {
        failed_share: failed_share.unwrap_or(defaults::HALT_WHEN.failed_share),
        after: after.unwrap_or(defaults::HALT_WHEN.after),
    }
}

fn daily_limit(field: &Field<'_>) -> Option<u64> {
    let number = field.integer()?;
    let limit = u64::try_from(number).ok().filter(|limit| *limit > 0);
    if limit.is_none() {
        let hint = "use 1 or more; to send nothing, leave the stage out or set approve = true";
        field.refuse(format!("{number} is not a number of sends"), hint);
    }
    limit
}

fn canary(mut section: Section<'_>, expires: Option<&(Duration, String)>) -> Option<Canary> {
    let first = section
        .require("first", "how many are sent first: canary = { first = 100, wait = \"10m\", max_not_delivered = 0.3 }");
    let first = first.and_then(|field| field.count("sends", 1..=u64::MAX));
    let place = section.place();
    let wait_field = section.take("wait");
    let wait = wait_field.as_ref().and_then(|field| field.positive_duration());
    if let Some((most, text)) = expires.filter(|(most, _)| wait.unwrap_or(defaults::CANARY_WAIT) >= *most) {
        let waits = wait.unwrap_or(defaults::CANARY_WAIT);
        let message =
            format!("the canary waits {} s, and the push expires after {} s", waits.as_secs(), most.as_secs());
        let hint = format!(
            "everybody after the first would be skipped: give the canary a `wait` shorter than `expires` (\"{text}\"), or the \
             push a later `expires`"
        );
        match &wait_field {
            Some(field) => field.refuse(message, hint),
            None => section.page.problem(place.span, message, hint),
        }
    }
    let max_not_delivered = section.take("max_not_delivered").and_then(|field| field.share());
    section.finish();
    Some(Canary {
        first: first?,
        wait: wait.unwrap_or(defaults::CANARY_WAIT),
        max_not_delivered: max_not_delivered.unwrap_or(defaults::CANARY_MAX_NOT_DELIVERED),
    })
}

fn test_openids(field: &Field<'_>) -> Vec<OpenId> {
    let items = field.texts().unwrap_or_default();
    for item in items.iter().filter(|item| item.text.trim().is_empty()) {
        field.page.problem(item.span.clone(), "this openid is empty", "take it out of the list");
    }
    items.iter().map(|item| OpenId::new(&item.text)).collect()
}

/// The fields of the message. A key of the push among them is there by mistake: below a `[stages.NAME.data]` header every
/// later key belongs to `data`.
fn data(field: &Field<'_>, push: &Section<'_>) -> Option<Vec<MessageField>> {
    let section = field.section("`data`")?;
    let header = field.page.text.get(field.value.span()).is_some_and(|source| source.starts_with('['));
    let mut fields = Vec::new();
    for field in section.fields() {
        if push.knows(field.name) {
            let hint = if header {
                "put it above the line of the `data` header: below it every key is a field of the message"
            } else {
                "put it beside `data`, not into it"
            };
            field.refuse_key(format!("`{}` is a key of the push, not a field of the message", field.name), hint);
        } else if field.is_table() {
            field.refuse("a field of the message is a text", "write the text alone: thing1 = \"{{ product }}\"");
        } else if let Some(text) = field.text() {
            fields.push(MessageField { name: field.name.to_owned(), text, place: field.place() });
        }
    }
    if section.fields().is_empty() {
        field.refuse("a message without fields", "give the template's fields: data = { thing1 = \"{{ product }}\" }");
    }
    Some(fields)
}

//! The texts of a push: they must be readable, and name only what every recipient has.

use std::collections::BTreeSet;

use super::place::{within, word_near};
use super::{Checker, hint};
use crate::config::settings::{Pipeline, Place, PushTemplate, Stage};
use crate::domain::StageName;
use crate::template::{Renderer, TemplateError};

/// What every message may name beside columns and parameters.
const COMMON: [&str; 4] = ["now", "today", "pipeline", "run_id"];

/// One text of a message.
struct Text<'a> {
    text: &'a str,
    place: &'a Place,
}

/// What the texts of one push may name.
struct Known<'a> {
    set: &'a StageName,
    names: Vec<&'a str>,
}

impl Checker<'_> {
    /// Judges every text of a push against the columns of its set; of a set that is not known, only whether it can be read.
    pub fn messages(&mut self, pipeline: &Pipeline, stage: &Stage, plan: &PushTemplate) {
        let columns = self.set_columns.get(&(pipeline.name.clone(), plan.recipients.clone())).cloned();
        let known = columns.as_ref().map(|columns| {
            let columns = columns.iter().map(|(name, _)| name.as_str()).filter(|name| *name != "openid");
            let names = columns.chain(pipeline.params.keys().map(String::as_str)).chain(COMMON).collect();
            Known { set: &plan.recipients, names }
        });
        let fields = plan.data.iter().map(|field| Text { text: &field.text, place: &field.place });
        let page = plan.miniprogram.iter().map(|page| Text { text: &page.pagepath, place: &page.place });
        let url = plan.url.iter().map(|url| Text { text: url, place: &stage.place });
        self.canary(stage, plan);
        for text in fields.chain(page).chain(url) {
            // One by one, so that a text that cannot be read hides nothing in the others.
            match (Renderer::compile(&[("", text.text)], self.settings.timezone), &known) {
                (Err(errors), _) => errors.iter().for_each(|error| self.unreadable(&text, error)),
                (Ok(renderer), Some(known)) => self.unknown_variables(&text, renderer.variables(0), known),
                (Ok(_), None) => {}
            }
        }
    }

    /// A canary without events would wait in vain, each time.
    fn canary(&mut self, stage: &Stage, plan: &PushTemplate) {
        let is_told = self.settings.accounts.get(&plan.account).is_none_or(|account| account.callback_token.is_some());
        if plan.canary.is_some() && !is_told {
            let account = &plan.account;
            let message = format!(
                "a canary judges by finish events, and account `{account}` receives none: it has no callback token"
            );
            let hint = format!(
                "set `token` in [accounts.{account}.callback], enter it in the account's console, and keep `lianbo serve` running; \
                 or leave `canary` out: `lianbo run --test` tries a message on test_openids"
            );
            self.problems.at(&stage.place, message).hint(hint);
        }
    }

    fn unreadable(&mut self, text: &Text<'_>, error: &TemplateError) {
        let place = within(&self.settings.root, text.text, text.place, error.span.clone());
        self.problems
            .at(&place, format!("this text cannot be read: {}", error.message))
            .hint("a value is written {{ name }}, a moment {{ now | datetime }}");
    }

    fn unknown_variables(&mut self, text: &Text<'_>, variables: &BTreeSet<String>, known: &Known<'_>) {
        for name in variables.iter().filter(|name| !known.names.contains(&name.as_str())) {
            let place = within(&self.settings.root, text.text, text.place, word_near(text.text, name, 0));
            let (message, hint) = if name == "openid" {
                let message = "`openid` is who receives the message, not a variable of it".to_owned();
                (message, "give it once more under another name in the SELECT".to_owned())
            } else {
                let message = format!("`{name}` is no column of `{}` and no parameter", known.set);
                (message, hint(name, known.names.iter().copied(), "variables"))
            };
            self.problems.at(&place, message).hint(hint);
        }
    }
}

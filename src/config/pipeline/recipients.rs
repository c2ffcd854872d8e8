//! The keys of a `materialize_recipients` stage: who is in the set, and who is left out of it.

use super::stage::StageReader;
use crate::config::file::Section;
use crate::config::resolve::defaults;
use crate::config::settings::{FrequencyCap, MaterializeRecipients, StageKind};

pub(super) fn read(stage: &mut StageReader<'_>) -> Option<StageKind> {
    let account = stage.one_account();
    let sql = stage.sql_file();
    let section = &mut stage.section;
    let holdout = section.take("holdout").and_then(|field| {
        let share = field.share()?;
        if share >= 1.0 {
            field.refuse("everybody would be held back", "use a share below 1: 0.1 holds back every tenth");
        }
        Some(share)
    });
    let cap = section.section("frequency_cap", "`frequency_cap`");
    let frequency_cap = if cap.is_present() { frequency_cap(cap) } else { None };
    let not_again = section.take("not_again").and_then(|field| field.positive_duration());
    let max = section.take("max").and_then(|field| field.count("people", 1..=u64::MAX));
    let max_staleness = section.take("max_staleness").and_then(|field| field.positive_duration());
    Some(StageKind::MaterializeRecipients(Box::new(MaterializeRecipients {
        account: account?,
        sql: sql?,
        holdout: holdout.unwrap_or(0.0),
        frequency_cap,
        not_again,
        max,
        max_staleness: Some(max_staleness.unwrap_or(defaults::MAX_STALENESS)),
    })))
}

fn frequency_cap(mut section: Section<'_>) -> Option<FrequencyCap> {
    let both = "say both: frequency_cap = { messages = 2, days = 7 }";
    let messages = section.require("messages", both).and_then(|field| field.count("messages", 1..=1_000_000));
    let days = section.require("days", both).and_then(|field| field.count("days", 1..=3650));
    section.finish();
    Some(FrequencyCap { messages: u32::try_from(messages?).ok()?, days: u32::try_from(days?).ok()? })
}

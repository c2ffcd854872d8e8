//! `[fields]`: what a field of a template message may hold, where WeChat has other rules than its documentation, or
//! none that is documented. A name of a type (`thing`) changes its rule; the name of a field (`const4`) narrows that field
//! to the values its template was approved with.

use crate::config::file::{Field, Section};
use crate::config::problems::{accepted, nearest};
use crate::template::fields::{FieldRule, FieldRules, Form, field_type};

const FORMS: [(&str, Form); 11] = [
    ("any", Form::Any),
    ("no_chinese", Form::NoChinese),
    ("number", Form::Number),
    ("letters", Form::Letters),
    ("symbols", Form::Symbols),
    ("chinese", Form::Chinese),
    ("phone_number", Form::PhoneNumber),
    ("car_number", Form::CarNumber),
    ("time", Form::Time),
    ("date", Form::Date),
    ("amount", Form::Amount),
];
/// No field of WeChat's is longer.
const MOST_CHARACTERS: u64 = 1_000;

pub(super) fn read(section: &Section<'_>) -> FieldRules {
    let mut rules = FieldRules::documented();
    for field in section.fields() {
        let is_type = field_type(field.name) == field.name;
        if is_misspelt(&field) {
            continue;
        }
        let Some(inner) = field.section(format!("the rule of `{}`", field.name)) else { continue };
        if is_type {
            rule(&field, inner, &mut rules);
        } else {
            values(&field, inner, &mut rules);
        }
    }
    rules
}

/// A type that is nobody's, and a slip away from a documented one: its rule would hold for no field at all. One that is
/// like none of them may be of WeChat's that are not documented.
fn is_misspelt(field: &Field<'_>) -> bool {
    let (documented, own) = (FieldRules::documented(), field_type(field.name));
    let types = documented.types();
    if documented.of_type(own).is_some() || nearest(own, types.clone()).is_none() {
        return false;
    }
    let hint =
        format!("{}; a type that WeChat does not document is named as it stands in the template", accepted(own, types));
    field.refuse_key(format!("`{own}` is no type of field"), hint);
    true
}

/// Keys that are left out stay as they are documented.
fn rule(field: &Field<'_>, mut section: Section<'_>, rules: &mut FieldRules) {
    let form = section.take("form").and_then(|field| field.choice(&FORMS));
    let mut most = |key| section.take(key).and_then(|field| field.count("characters", 1..=MOST_CHARACTERS));
    let (most, most_latin) = (most("most"), most("most_latin"));
    section.finish();
    let count = |most: Option<u64>| most.map(|most| usize::try_from(most).expect("at most a thousand"));
    let known = rules.of_type(field.name).cloned();
    let (old_form, old_most, old_latin, old_text) =
        known.map_or((Form::Any, None, None, String::new()), |rule| (rule.form, rule.most, rule.most_latin, rule.text));
    let form = form.unwrap_or(old_form);
    let word = FORMS.iter().find(|(_, own)| *own == form).map_or("any", |(word, _)| *word);
    let text = match (count(most).or(old_most), most.is_some() || form != old_form || old_text.is_empty()) {
        (_, false) => old_text,
        (Some(most), true) => format!("takes `{word}`, at most {most} characters, as [fields] says"),
        (None, true) => format!("takes `{word}`, as [fields] says"),
    };
    let rule = FieldRule {
        form,
        most: count(most).or(old_most),
        // A new length holds for every alphabet, unless another is given.
        most_latin: count(most_latin).or(if most.is_some() { None } else { old_latin }),
        text,
    };
    rules.set(field.name, rule);
}

fn values(field: &Field<'_>, mut section: Section<'_>, rules: &mut FieldRules) {
    let list = section.require(
        "values",
        "const4 = { values = [\"已发货\", \"已签收\"] }; a type's rule has no number: thing = { most = 30 }",
    );
    let values = list.as_ref().and_then(|field| field.texts());
    section.finish();
    let is_empty = values.as_ref().is_some_and(|values| values.iter().all(|item| item.text.trim().is_empty()));
    if let Some(list) = list.filter(|_| is_empty) {
        let hint = format!(
            "name at least one value, as the template was approved with: {0} = {{ values = [\"已发货\"] }}, or take `{0}` out: \
             then the rule of its type holds",
            field.name
        );
        list.refuse(format!("no value is left for `{}`: no message with it could be sent", field.name), hint);
        return;
    }
    let values: Vec<String> = values.into_iter().flatten().map(|item| item.text).collect();
    if !values.is_empty() {
        rules.allow_only(field.name, values);
    }
}

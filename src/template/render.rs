//! How one text becomes a message.
//!
//! A set may hold millions of recipients and most texts are a constant or `{{ name }}` between words, perhaps with one of
//! our filters. Those are cut into pieces once and written straight into the message; every other text goes through the
//! template engine. Both ways give the same result; the tests of `template` hold them together.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

use chrono_tz::Tz;
use minijinja::value::{Enumerator, Object, Value as EngineValue};
use minijinja::{Environment, Error, ErrorKind, Output, State};
use serde_json::Value;

use super::moment::{self, Look, Moment};
use super::{RenderError, Variables};

/// The way a text is rendered.
#[derive(Debug)]
pub enum Plan {
    Constant(String),
    Pieces(Vec<Piece>),
    /// Under this name in the environment.
    Engine {
        key: String,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    Literal(String),
    Variable { name: String, look: Option<Look> },
}

/// Why a rendering failed, before the text's name is known.
#[derive(Debug)]
pub enum Trouble {
    Null(String),
    Missing(String),
    Evaluate(String),
}

impl Trouble {
    pub fn of(self, name: &str) -> RenderError {
        let name = name.to_owned();
        match self {
            Self::Null(variable) => RenderError::Null { name, variable },
            Self::Missing(variable) => RenderError::Missing { name, variable },
            Self::Evaluate(reason) => RenderError::Evaluate { name, reason },
        }
    }
}

/// What is wrong with a text, and where.
type Problem = (String, Range<usize>);

/// Chooses the way of a text and finds the names it uses; a text for the engine is added to `environment`.
pub fn compile(
    environment: &mut Environment<'static>,
    index: usize,
    text: &str,
) -> Result<(Plan, BTreeSet<String>), Problem> {
    if !["{{", "{%", "{#"].iter().any(|opening| text.contains(opening)) {
        return Ok((Plan::Constant(text.to_owned()), BTreeSet::new()));
    }
    if let Some(pieces) = cut(text) {
        let names = pieces.iter().filter_map(|piece| match piece {
            Piece::Variable { name, .. } => Some(name.clone()),
            Piece::Literal(_) => None,
        });
        let names = names.collect();
        return Ok((Plan::Pieces(pieces), names));
    }
    let key = index.to_string();
    environment.add_template_owned(key.clone(), text.to_owned()).map_err(|error| {
        let place = error.range().filter(|range| range.end <= text.len()).unwrap_or(0..text.len());
        (error.detail().unwrap_or("wrong syntax").to_owned(), place)
    })?;
    if let Some(problem) = unknown_filter(environment, text) {
        return Err(problem);
    }
    let names = names(environment, &key, text);
    Ok((Plan::Engine { key }, names))
}

/// The names an engine text uses. The engine's own list leaves out what stands before a slice (`name[:4]`), so a copy
/// is asked in which a slice is two subscripts; where that cannot be read, the list is as the engine gives it.
fn names(environment: &Environment<'_>, key: &str, text: &str) -> BTreeSet<String> {
    let mut copy = String::with_capacity(text.len());
    let mut sliced = false;
    let mut depth = 0_usize;
    for c in text.chars() {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        match c {
            '[' => copy.push_str("[0-"),
            ']' => copy.push_str("-0]"),
            ':' if depth > 0 => {
                sliced = true;
                copy.push_str("-0][0-");
            }
            other => copy.push(other),
        }
    }
    let template = environment.get_template(key).expect("a text is added before its names are asked for");
    let mut names = template.undeclared_variables(false);
    if let (true, Ok(template)) = (sliced, environment.template_from_named_str(key, &copy)) {
        names.extend(template.undeclared_variables(false));
    }
    names.into_iter().collect()
}

/// The pieces of a text that holds nothing but words and `{{ name }}` or `{{ name | datetime }}`; any other gives `None`.
fn cut(text: &str) -> Option<Vec<Piece>> {
    if text.contains("{%") || text.contains("{#") {
        return None;
    }
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("{{") {
        if at > 0 {
            pieces.push(Piece::Literal(rest[..at].to_owned()));
        }
        let end = at + rest[at..].find("}}")?;
        pieces.push(variable(&rest[at + 2..end])?);
        rest = &rest[end + 2..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Literal(rest.to_owned()));
    }
    Some(pieces)
}

fn variable(inside: &str) -> Option<Piece> {
    /// Words that mean something to the engine.
    const WORDS: [&str; 14] =
        ["true", "True", "false", "False", "none", "None", "loop", "self", "not", "and", "or", "if", "in", "is"];
    let (name, look) = match inside.split_once('|') {
        None => (inside.trim(), None),
        Some((name, filter)) => (name.trim(), Some(Look::ALL.into_iter().find(|look| look.as_str() == filter.trim())?)),
    };
    let starts_well = name.starts_with(|c: char| c.is_alphabetic() || c == '_');
    let is_name = starts_well && name.chars().all(|c| c.is_alphanumeric() || c == '_') && !WORDS.contains(&name);
    is_name.then(|| Piece::Variable { name: name.to_owned(), look })
}

/// The engine would meet an unknown filter only while rendering; a text that cannot be rendered is to be found before.
fn unknown_filter(environment: &Environment<'_>, text: &str) -> Option<Problem> {
    filters(text).into_iter().find_map(|place| {
        let name = &text[place.clone()];
        let unknown = matches!(environment.empty_state().apply_filter(name, &[]),
            Err(error) if error.kind() == ErrorKind::UnknownFilter);
        unknown.then(|| (format!("there is no filter `{name}`"), place))
    })
}

/// Where filters are named: a word after a bar inside `{{ }}` or `{% %}`, outside quotes.
fn filters(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let (mut found, mut at) = (Vec::new(), 0);
    let (mut inside, mut quote) = (false, None);
    while at < bytes.len() {
        match (bytes[at], quote) {
            (b'\\', Some(_)) => at += 1,
            (byte, Some(open)) if byte == open => quote = None,
            (_, Some(_)) => {}
            (byte @ (b'"' | b'\''), None) if inside => quote = Some(byte),
            (b'{', None) if matches!(bytes.get(at + 1), Some(b'{' | b'%')) => inside = true,
            (b'{', None) if bytes.get(at + 1) == Some(&b'#') && !inside => {
                at = text[at..].find("#}").map_or(bytes.len(), |end| at + end);
            }
            (b'}' | b'%', None) if bytes.get(at + 1) == Some(&b'}') => inside = false,
            (b'|', None) if inside => {
                let blank = bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
                let start = at + 1 + blank;
                let length = bytes[start..].iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b'_').count();
                if length > 0 {
                    found.push(start..start + length);
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Writes pieces one after the other.
pub fn pieces(pieces: &[Piece], variables: &Variables<'_>, zone: Tz, out: &mut String) -> Result<(), Trouble> {
    for piece in pieces {
        match piece {
            Piece::Literal(text) => out.push_str(text),
            Piece::Variable { name, look } if name == "now" => {
                out.push_str(&moment::show(variables.now, zone, look.unwrap_or(Look::DateTime)));
            }
            Piece::Variable { name, look } => match (value(variables, name), look) {
                (None, _) => return Err(Trouble::Missing(name.clone())),
                (Some(Value::Null), _) => return Err(Trouble::Null(name.clone())),
                (Some(Value::String(text)), None) => out.push_str(text),
                (Some(other), None) => {
                    write!(out, "{}", to_engine(other)).expect("writing to a String never fails");
                }
                (Some(other), Some(look)) => {
                    let text = other.as_str().unwrap_or_default();
                    out.push_str(&moment::show_text(text, zone, *look).map_err(Trouble::Evaluate)?);
                }
            },
        }
    }
    Ok(())
}

fn value<'a>(variables: &Variables<'a>, name: &str) -> Option<&'a Value> {
    variables.recipient.get(name).or_else(|| variables.common.get(name))
}

fn to_engine(value: &Value) -> EngineValue {
    match value {
        // A use of NULL is then an error unless the text asks for it (`default`, `is defined`).
        Value::Null => EngineValue::UNDEFINED,
        Value::Bool(truth) => EngineValue::from(*truth),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => EngineValue::from(whole),
            (None, Some(whole)) => EngineValue::from(whole),
            (None, None) => EngineValue::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => EngineValue::from(text.as_str()),
        Value::Array(items) => items.iter().map(to_engine).collect(),
        Value::Object(fields) => {
            EngineValue::from_pairs(fields.iter().map(|(key, value)| (key.as_str(), to_engine(value))))
        }
    }
}

/// The names of one text with their values; what is missing is not in it.
#[derive(Debug)]
struct Context(Vec<(String, EngineValue)>);

impl Object for Context {
    fn get_value(self: &Arc<Self>, key: &EngineValue) -> Option<EngineValue> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<EngineValue> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.iter().map(|(name, _)| EngineValue::from(name.as_str())).collect())
    }
}

/// What the engine is given for one recipient: the names the text uses and no others.
pub fn context(names: &BTreeSet<String>, variables: &Variables<'_>, zone: Tz) -> EngineValue {
    let bound = names.iter().filter_map(|name| {
        let given = match name.as_str() {
            "now" => EngineValue::from_object(Moment { at: variables.now, zone }),
            _ => to_engine(value(variables, name)?),
        };
        Some((name.clone(), given))
    });
    EngineValue::from_object(Context(bound.collect()))
}

/// The engine's own formatter would print `none`.
pub fn refuse_none(out: &mut Output, state: &mut State, value: &EngineValue) -> Result<(), Error> {
    if value.is_none() {
        return Err(Error::new(ErrorKind::InvalidOperation, "the expression has no value"));
    }
    minijinja::escape_formatter(out, state, value)
}

/// The whole `{{ }}` or `{% %}` of an error's place: the place itself may be a filter alone.
fn tag_around(source: &str, place: Range<usize>) -> &str {
    let before = source.get(..place.start).unwrap_or_default();
    let start = ["{{", "{%"].into_iter().filter_map(|opening| before.rfind(opening)).max().unwrap_or(0);
    let after = source.get(place.end..).unwrap_or_default();
    let end = ["}}", "%}"].into_iter().filter_map(|closing| after.find(closing)).min();
    source.get(start..end.map_or(source.len(), |end| place.end + end)).unwrap_or(source)
}

/// Turns the engine's error into one that names the variable at fault, where there is one.
pub fn explain(error: &Error, source: &str, names: &BTreeSet<String>, variables: &Variables<'_>) -> Trouble {
    let fault = |name: &str| match value(variables, name) {
        None if name != "now" => Some(Trouble::Missing(name.to_owned())),
        Some(Value::Null) if name != "now" => Some(Trouble::Null(name.to_owned())),
        _ => None,
    };
    let place = error.range().map_or(source, |range| tag_around(source, range));
    let words: Vec<&str> = place.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let (named, others): (Vec<_>, Vec<_>) = names.iter().partition(|name| words.contains(&name.as_str()));
    // Elsewhere a NULL may be meant (`default`), so other names come in only where something was undefined.
    let others = others.into_iter().filter(|_| error.kind() == ErrorKind::UndefinedError);
    if let Some(trouble) = named.into_iter().chain(others).find_map(|name| fault(name)) {
        return trouble;
    }
    Trouble::Evaluate(error.detail().map_or_else(|| error.kind().to_string(), str::to_owned))
}

//! `{{ }}` texts of messages: compiled once, rendered once a recipient, and checked against the rules of their fields.
//!
//! A text goes through [`Renderer::compile`], its variables are compared with the columns of the set
//! ([`Renderer::variables`]), it is rendered with the values of each recipient ([`Renderer::render`]), and what came out
//! is held against [`fields`]. Nothing stands in for a missing value: an unknown variable or a NULL is an error, so that
//! nobody receives "Dear none". What a template of an account looks like, and who receives it, is not known here.

pub mod fields;
mod moment;
mod render;

use std::collections::BTreeSet;
use std::ops::Range;

use chrono_tz::Tz;
use minijinja::{Environment, UndefinedBehavior, syntax::SyntaxConfig};
use serde_json::{Map, Value};

use crate::clock::Timestamp;
use render::Plan;

/// A text that cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("text of `{name}` cannot be read: {message}")]
pub struct TemplateError {
    /// The name given to the text.
    pub name: String,
    pub message: String,
    /// Within the text, from 1.
    pub line: usize,
    /// The bytes at fault within the text; empty at a point.
    pub span: Range<usize>,
}

/// A text that cannot be rendered for one recipient.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    #[error("`{variable}` is NULL for this recipient")]
    Null { name: String, variable: String },

    #[error("`{variable}` is no column of the recipients and no parameter")]
    Missing { name: String, variable: String },

    #[error("cannot render `{name}`: {reason}")]
    Evaluate { name: String, reason: String },
}

/// What one rendering may name. A recipient's column hides a common value of the same name; `now` hides both.
#[derive(Debug, Clone, Copy)]
pub struct Variables<'a> {
    /// When the set was frozen: `now` in every message of it.
    pub now: Timestamp,
    /// The columns of this recipient.
    pub recipient: &'a Map<String, Value>,
    /// The same for everybody: parameters, `pipeline`.
    pub common: &'a Map<String, Value>,
}

/// Compiled texts in the order in which they were given. Shared by reference between threads.
#[derive(Debug)]
pub struct Renderer {
    environment: Environment<'static>,
    zone: Tz,
    texts: Vec<Text>,
}

#[derive(Debug)]
struct Text {
    name: String,
    plan: Plan,
    variables: BTreeSet<String>,
}

impl Renderer {
    /// Compiles `(name, text)` pairs; the names appear in errors only and may repeat. Dates and times are shown in `zone`.
    ///
    /// # Errors
    ///
    /// Every text that cannot be compiled, in order: wrong syntax, an unknown filter.
    pub fn compile(texts: &[(&str, &str)], zone: Tz) -> Result<Self, Vec<TemplateError>> {
        let mut environment = environment(zone);
        let mut compiled = Vec::with_capacity(texts.len());
        let mut problems = Vec::new();
        for (index, (name, text)) in texts.iter().enumerate() {
            match render::compile(&mut environment, index, text) {
                Ok((plan, variables)) => compiled.push(Text { name: (*name).to_owned(), plan, variables }),
                Err((message, span)) => problems.push(TemplateError {
                    name: (*name).to_owned(),
                    message,
                    line: 1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count(),
                    span,
                }),
            }
        }
        if problems.is_empty() { Ok(Self { environment, zone, texts: compiled }) } else { Err(problems) }
    }

    /// How many texts were compiled.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// The names a text uses, `now` among them, so that they can be bound to columns before anything is rendered.
    ///
    /// # Panics
    ///
    /// When `index` is not below [`len`](Self::len); so does [`render`](Self::render).
    pub fn variables(&self, index: usize) -> &BTreeSet<String> {
        &self.texts[index].variables
    }

    /// The text itself, where it is the same for everybody.
    pub fn constant(&self, index: usize) -> Option<&str> {
        match &self.texts[index].plan {
            Plan::Constant(text) => Some(text),
            Plan::Pieces(_) | Plan::Engine { .. } => None,
        }
    }

    /// Appends the rendered text to `out`.
    ///
    /// # Errors
    ///
    /// A variable that is missing or NULL, or a filter that cannot take its value. `out` is then as it was before.
    pub fn render(&self, index: usize, variables: &Variables<'_>, out: &mut String) -> Result<(), RenderError> {
        let before = out.len();
        let text = &self.texts[index];
        let rendered = match &text.plan {
            Plan::Constant(constant) => {
                out.push_str(constant);
                Ok(())
            }
            Plan::Pieces(pieces) => render::pieces(pieces, variables, self.zone, out),
            Plan::Engine { key } => self.through_engine(key, text, variables, out),
        };
        rendered.map_err(|trouble| {
            out.truncate(before);
            trouble.of(&text.name)
        })
    }

    fn through_engine(
        &self,
        key: &str,
        text: &Text,
        variables: &Variables<'_>,
        out: &mut String,
    ) -> Result<(), render::Trouble> {
        let context = render::context(&text.variables, variables, self.zone);
        let template = self.environment.get_template(key).expect("every engine text was added when compiling");
        match template.render(context) {
            Ok(rendered) => {
                out.push_str(&rendered);
                Ok(())
            }
            Err(error) => Err(render::explain(&error, template.source(), &text.variables, variables)),
        }
    }
}

/// Strict, without escaping, with our filters, and without functions: a message names values and shapes them.
fn environment(zone: Tz) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_formatter(render::refuse_none);
    // Errors carry their place only then; it costs nothing while rendering goes well.
    environment.set_debug(true);
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    for function in ["range", "dict", "debug", "namespace"] {
        environment.remove_global(function);
    }
    moment::add_filters(&mut environment, zone);
    environment
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other} is no object"),
        }
    }

    fn render_in(zone: Tz, text: &str, recipient: Value) -> Result<String, RenderError> {
        let renderer = Renderer::compile(&[("thing1", text)], zone).expect("compiles");
        let now = chrono::Utc.with_ymd_and_hms(2026, 11, 23, 1, 30, 0).unwrap();
        let common = map(json!({"pipeline": "campaign", "product": "common"}));
        let mut out = String::from(">");
        renderer
            .render(0, &Variables { now, recipient: &map(recipient), common: &common }, &mut out)
            .inspect_err(|_| assert_eq!(out, ">", "a failed rendering leaves nothing behind"))?;
        Ok(out[1..].to_owned())
    }

    fn render(text: &str, recipient: Value) -> Result<String, RenderError> {
        render_in(chrono_tz::Asia::Shanghai, text, recipient)
    }

    #[test]
    fn columns_hide_common_values_and_nothing_is_escaped() {
        let shown = render("{{ pipeline }}: {{product}} & co", json!({"product": "<茶>"})).unwrap();
        assert_eq!(shown, "campaign: <茶> & co");
        assert_eq!(render("{{ product | upper }} & <co>", json!({})).unwrap(), "COMMON & <co>");
    }

    #[test]
    fn now_is_shown_in_the_workspace_zone() {
        for (text, expected) in [
            ("{{ now }}", "2026-11-23 09:30"),
            ("{{ now | datetime }}", "2026-11-23 09:30"),
            ("{{ now|date }}", "2026-11-23"),
            ("{{ now | time }}", "09:30"),
            ("{{ now | time | upper }}", "09:30"),
            ("{{ (now | date)[:4] }}年", "2026年"),
            ("{% if true %}{{ now }}{% endif %}", "2026-11-23 09:30"),
        ] {
            assert_eq!(render(text, json!({})).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn timestamps_of_the_lake_are_utc_and_dates_have_no_zone() {
        let recipient = json!({"at": "2026-11-22 23:59:59.123456", "iso": "2026-11-22T23:59:59Z",
            "offset": "2026-11-23 08:00:00+08", "day": "2026-11-22"});
        for (text, expected) in [
            ("{{ at | datetime }}", "2026-11-23 07:59"),
            ("{{ at | date }}", "2026-11-23"),
            ("{{ iso | time }}", "07:59"),
            ("{{ offset | time }}", "08:00"),
            ("{{ day | date }}", "2026-11-22"),
        ] {
            assert_eq!(render(text, recipient.clone()).unwrap(), expected, "{text}");
        }
        let error = render("{{ day | time }}", recipient.clone()).unwrap_err().to_string();
        assert!(error.contains("no time of day"), "{error}");
        let error = render("{{ now | time ~ (day | time) }}", recipient).unwrap_err().to_string();
        assert!(error.contains("no time of day"), "{error}");
    }

    #[test]
    fn null_is_an_error_that_names_the_variable_on_both_ways() {
        for text in ["{{ price }}元", "{{ price | upper }}", "{{ product }}{{ price | round }}", "{{ price | date }}"]
        {
            let error = render(text, json!({"price": null, "product": "x"})).unwrap_err();
            assert_eq!(error.to_string(), "`price` is NULL for this recipient", "{text}");
        }
        assert_eq!(render("{{ price | default('免费') }}", json!({"price": null})).unwrap(), "免费");
    }

    #[test]
    fn a_missing_variable_is_named_on_both_ways() {
        for text in ["{{ pirce }}", "{{ pirce | upper }}", "{{ range }}", "{% if range %}x{% endif %}"] {
            let error = render(text, json!({"price": 1})).unwrap_err();
            assert!(matches!(error, RenderError::Missing { .. }), "{text}: {error}");
        }
    }

    #[test]
    fn an_expression_without_a_value_is_never_sent_as_none() {
        assert!(render("{{ none }}", json!({})).is_err());
        assert!(render("{{ [none] | first }}", json!({})).is_err());
    }

    #[test]
    fn the_short_way_and_the_engine_agree() {
        let values = json!({"a": 1, "b": 2.0, "c": true, "d": "字", "e": 9_007_199_254_740_993_i64, "f": [1, "x"], "g": 1e21,
            "h": 0.1, "i": -5});
        for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "now"] {
            let short = render(&format!("<{{{{ {name} }}}}>\n"), values.clone()).unwrap();
            let engine = render(&format!("{{# engine #}}<{{{{ {name} }}}}>\n"), values.clone()).unwrap();
            assert_eq!(short, engine, "{name}");
        }
        assert_eq!(render("{{ e }}", values).unwrap(), "9007199254740993");
    }

    #[test]
    fn a_column_may_have_a_chinese_name() {
        assert_eq!(render("{{ 城市 }}", json!({"城市": "杭州"})).unwrap(), "杭州");
    }

    #[test]
    fn variables_are_known_before_rendering() {
        let texts = [
            ("a", "plain"),
            ("b", "{{ x }}{{ now | date }}"),
            ("c", "{% for i in list %}{{ i ~ y }}{% endfor %}"),
            ("d", "{{ x[:4] }}{{ (y | upper)[1:z] }}"),
        ];
        let renderer = Renderer::compile(&texts, chrono_tz::UTC).unwrap();
        let names = |index: usize| renderer.variables(index).iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!((names(0), names(1), names(2)), (vec![], vec!["now", "x"], vec!["list", "y"]));
        assert_eq!(names(3), ["x", "y", "z"]);
        assert_eq!((renderer.constant(0), renderer.constant(1)), (Some("plain"), None));
    }

    #[test]
    fn every_text_that_cannot_be_read_is_reported_with_its_place() {
        let texts = [("a", "ok"), ("b", "x\n{{ name }"), ("c", "{{ now | datetme }}"), ("d", "{% if x %}")];
        let problems = Renderer::compile(&texts, chrono_tz::UTC).unwrap_err();
        assert_eq!(problems.iter().map(|problem| problem.name.as_str()).collect::<Vec<_>>(), ["b", "c", "d"]);
        assert_eq!(problems[0].line, 2);
        assert_eq!(problems[1].span, 9..16);
        assert!(problems[1].message.contains("datetme"), "{}", problems[1].message);
    }

    #[test]
    fn a_bar_inside_a_quoted_text_is_no_filter() {
        assert_eq!(render("{{ \"a | b\" ~ product }} | c", json!({})).unwrap(), "a | bcommon | c");
    }
}

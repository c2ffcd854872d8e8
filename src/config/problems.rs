//! What is wrong in the workspace's files: collected whole, then shown at once, grouped by file.
//!
//! The readers of `config` put problems in while they go through the files; other rooms add theirs (SQL that does not
//! bind, a stage that reads a table nobody makes) with [`Problems::at`]. A problem keeps a place; the text of the line is
//! taken from the sources registered here, with secrets as stars. Deciding what is wrong happens elsewhere.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::secret;
use super::settings::Place;

/// Characters of a source line that are shown.
const SHOWN_CHARACTERS: usize = 160;

/// Every problem found so far, with the texts of the files they are in.
#[derive(Debug, Clone, Default)]
pub struct Problems {
    sources: BTreeMap<PathBuf, Arc<str>>,
    found: Vec<Problem>,
}

/// One problem. Made by [`Problems::at`] or [`Problems::in_file`].
#[derive(Debug, Clone)]
pub struct Problem {
    file: PathBuf,
    /// Byte range in the file; `None` when the file as a whole is meant.
    span: Option<Range<usize>>,
    message: String,
    hint: Option<String>,
}

impl Problem {
    /// What to do about it: what is accepted, the nearest known name, the next step.
    pub fn hint(&mut self, hint: impl Into<String>) -> &mut Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A problem as it is shown.
struct Shown<'a> {
    line: usize,
    column: usize,
    source: String,
    problem: &'a Problem,
}

impl Problems {
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps the text of a file (path relative to the workspace), so that its lines can be shown.
    pub fn register_source(&mut self, file: impl Into<PathBuf>, text: impl Into<Arc<str>>) {
        self.sources.insert(file.into(), text.into());
    }

    /// A problem at a place of a file.
    pub fn at(&mut self, place: &Place, message: impl Into<String>) -> &mut Problem {
        self.push(place.file.clone(), Some(place.span.clone()), message.into())
    }

    /// A problem of a file as a whole: it is missing, or cannot be read.
    pub fn in_file(&mut self, file: impl Into<PathBuf>, message: impl Into<String>) -> &mut Problem {
        self.push(file.into(), None, message.into())
    }

    fn push(&mut self, file: PathBuf, span: Option<Range<usize>>, message: String) -> &mut Problem {
        self.found.push(Problem { file, span, message, hint: None });
        self.found.last_mut().expect("a problem was just pushed")
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub fn len(&self) -> usize {
        self.found.len()
    }

    /// Line and column (both from 1, in characters) of a place; line 1, column 1 for a file whose text is not known.
    pub fn position(&self, place: &Place) -> (usize, usize) {
        self.sources.get(&place.file).map_or((1, 1), |text| position(text, place.span.start))
    }

    /// An array of `{file, line, column, source, message, hint}`, in the order of the files.
    pub fn to_json(&self) -> Value {
        let mut problems = Vec::with_capacity(self.found.len());
        for (file, shown) in self.by_file() {
            problems.extend(shown.into_iter().map(|one| {
                json!({
                    "file": file.to_string_lossy(),
                    "line": one.line,
                    "column": one.column,
                    "source": one.source,
                    "message": one.problem.message,
                    "hint": one.problem.hint,
                })
            }));
        }
        Value::Array(problems)
    }

    fn by_file(&self) -> BTreeMap<&Path, Vec<Shown<'_>>> {
        let mut files: BTreeMap<&Path, Vec<Shown<'_>>> = BTreeMap::new();
        for problem in &self.found {
            let text = self.sources.get(&problem.file);
            let (line, column) = match (text, &problem.span) {
                (Some(text), Some(span)) => position(text, span.start),
                _ => (1, 1),
            };
            let source = match (text, &problem.span) {
                (Some(text), Some(_)) => shown_line(text.lines().nth(line - 1).unwrap_or_default()),
                _ => String::new(),
            };
            files.entry(&problem.file).or_default().push(Shown { line, column, source, problem });
        }
        for shown in files.values_mut() {
            shown.sort_by_key(|one| (one.line, one.column));
        }
        files
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (file, shown)) in self.by_file().into_iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let noun = if shown.len() == 1 { "problem" } else { "problems" };
            writeln!(f, "{}: {} {noun}\n", file.display(), shown.len())?;
            let places: Vec<String> = shown.iter().map(|one| format!("{}:{}", one.line, one.column)).collect();
            let width = places.iter().map(String::len).max().unwrap_or_default();
            for (one, place) in shown.iter().zip(places) {
                let mut lines = Vec::with_capacity(3);
                if !one.source.is_empty() {
                    lines.push(one.source.as_str());
                }
                lines.extend(one.problem.message.lines());
                lines.extend(one.problem.hint.iter().flat_map(|hint| hint.lines()));
                for (number, line) in lines.into_iter().enumerate() {
                    let margin = if number == 0 { place.as_str() } else { "" };
                    writeln!(f, "  {margin:width$}  {line}")?;
                }
            }
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

fn position(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

fn shown_line(line: &str) -> String {
    let line = secret::starred(line.trim());
    if line.chars().count() <= SHOWN_CHARACTERS {
        return line;
    }
    line.chars().take(SHOWN_CHARACTERS).chain(['…']).collect()
}

/// The known name that `word` was probably meant to be; `None` when none is near.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let most = (word.chars().count() / 3).max(1);
    known
        .map(|name| (strsim::damerau_levenshtein(&word, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= most || (word.len() >= 4 && name.starts_with(&word)))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `did you mean …?` where a name is near, else the names there are.
pub(super) fn suggestion<'a>(word: &str, known: impl Iterator<Item = &'a str> + Clone, none: &str) -> String {
    if let Some(name) = nearest(word, known.clone()) {
        return format!("did you mean `{name}`?");
    }
    let names: Vec<String> = known.map(|name| format!("`{name}`")).collect();
    if names.is_empty() { none.to_owned() } else { format!("known here: {}", names.join(", ")) }
}

/// The same for a set that nothing can be added to: all that is accepted, after the nearest.
pub(super) fn accepted<'a>(word: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let near = nearest(word, known.clone()).map_or_else(String::new, |name| format!("did you mean `{name}`? "));
    let names: Vec<String> = known.map(|name| format!("`{name}`")).collect();
    format!("{near}accepted: {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_shown_by_file_with_their_line_and_what_to_do() {
        let mut problems = Problems::new();
        let text = "rate = \"50/s\"\n  daily_limit = 0\nratee = \"200/s\"\n";
        problems.register_source("pipelines/campaign.toml", text);
        let place = |start: usize| Place { file: "pipelines/campaign.toml".into(), span: start..start + 1 };
        problems.at(&place(32), "unknown key").hint("did you mean `rate`?");
        problems.at(&place(30), "0 is not a number of sends").hint("use 1 or more");
        problems.in_file("config/lianbo.toml", "there is no such file");
        assert_eq!(
            problems.to_string(),
            [
                "config/lianbo.toml: 1 problem",
                "",
                "  1:1  there is no such file",
                "",
                "pipelines/campaign.toml: 2 problems",
                "",
                "  2:17  daily_limit = 0",
                "        0 is not a number of sends",
                "        use 1 or more",
                "  3:1   ratee = \"200/s\"",
                "        unknown key",
                "        did you mean `rate`?",
                "",
            ]
            .join("\n")
        );
        assert_eq!(problems.to_json()[1]["column"], 17);
        assert_eq!(problems.to_json()[2]["hint"], "did you mean `rate`?");
    }

    #[test]
    fn a_column_counts_characters_and_not_bytes() {
        assert_eq!(position("城市 = 1", "城市 = ".len()), (1, 6));
    }

    #[test]
    fn a_near_name_is_found_and_a_far_one_is_not() {
        let known = ["rate", "recipients", "template_id", "data"];
        assert_eq!(nearest("ratee", known.into_iter()), Some("rate"));
        assert_eq!(nearest("recipeints", known.into_iter()), Some("recipients"));
        assert_eq!(nearest("templat", known.into_iter()), Some("template_id"));
        assert_eq!(nearest("nothing_like_it", known.into_iter()), None);
    }
}

//! `${NAME}` and `${NAME:-default}`: values that come from outside the files.
//!
//! The variables of the process win over those of the workspace's `.env`. Values are put into strings of the TOML files
//! and nowhere else; SQL is never touched.

use std::collections::BTreeMap;
use std::path::Path;

/// The variables that the files may name.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// What is wrong with `.env`: line (from 1, where known) and why.
    pub(super) file_problem: Option<(Option<usize>, String)>,
}

/// Why a string could not be filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unfilled {
    /// No such variable, and no default.
    Unset { name: String },
    /// `${` without its `}`, or without a name.
    Malformed { reference: String },
}

impl Environment {
    /// The variables of this process over those of `root`'s `.env`.
    pub fn of_process(root: &Path) -> Self {
        let mut environment = Self::default();
        match std::fs::read(root.join(".env")) {
            Ok(bytes) => environment.read_file(&bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => environment.file_problem = Some((None, format!("cannot be read: {error}"))),
        }
        for (name, value) in std::env::vars_os() {
            if let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) {
                environment.variables.insert(name, value);
            }
        }
        environment
    }

    /// Exactly these variables.
    pub fn from_pairs<N: Into<String>, V: Into<String>>(pairs: impl IntoIterator<Item = (N, V)>) -> Self {
        let variables = pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { variables, file_problem: None }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    fn read_file(&mut self, bytes: &[u8]) {
        let mut lines = dotenvy::from_read_iter(bytes);
        loop {
            match lines.next() {
                None => return,
                Some(Ok((name, value))) => {
                    self.variables.insert(name, value);
                }
                Some(Err(error)) => {
                    // The text of the line stays out of the message: it may hold a secret.
                    let line = match &error {
                        dotenvy::Error::LineParse(text, _) => String::from_utf8_lossy(bytes)
                            .lines()
                            .position(|line| !text.is_empty() && line.contains(text.as_str()))
                            .map(|index| index + 1),
                        _ => None,
                    };
                    self.file_problem = Some((line, "is not lines of NAME=value".to_owned()));
                    return;
                }
            }
        }
    }

    /// `text` with its references replaced; `$${` stands for a plain `${`.
    pub(super) fn fill(&self, text: &str) -> Result<String, Unfilled> {
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find("${") {
            if rest[..at].ends_with('$') {
                filled.push_str(&rest[..at - 1]);
                filled.push_str("${");
                rest = &rest[at + 2..];
                continue;
            }
            filled.push_str(&rest[..at]);
            let malformed = || Unfilled::Malformed { reference: "${".to_owned() };
            let end = rest[at..].find('}').ok_or_else(malformed)?;
            let reference = &rest[at + 2..at + end];
            let (name, default) = match reference.split_once(":-") {
                Some((name, default)) => (name, Some(default)),
                None => (reference, None),
            };
            if !is_variable(name) {
                return Err(Unfilled::Malformed { reference: format!("${{{name}") });
            }
            let value = match (self.get(name), default) {
                (Some(""), Some(default)) | (None, Some(default)) => default,
                (Some(value), _) => value,
                (None, None) => return Err(Unfilled::Unset { name: name.to_owned() }),
            };
            filled.push_str(value);
            rest = &rest[at + end + 1..];
        }
        filled.push_str(rest);
        Ok(filled)
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").field("variables", &self.variables.len()).finish_non_exhaustive()
    }
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_filled_in_defaults_included() {
        let environment = Environment::from_pairs([("A", "one"), ("EMPTY", "")]);
        assert_eq!(environment.fill("x ${A} ${B:-two} ${A}").unwrap(), "x one two one");
        assert_eq!(environment.fill("${EMPTY}|${EMPTY:-d}|${B:-}").unwrap(), "|d|");
        assert_eq!(environment.fill("$${A} {{ a }} $x").unwrap(), "${A} {{ a }} $x");
    }

    #[test]
    fn an_unset_variable_is_named() {
        let environment = Environment::default();
        assert_eq!(environment.fill("${NOPE}"), Err(Unfilled::Unset { name: "NOPE".to_owned() }));
        assert!(matches!(environment.fill("${NOPE"), Err(Unfilled::Malformed { .. })));
        assert!(matches!(environment.fill("${}"), Err(Unfilled::Malformed { .. })));
    }

    #[test]
    fn the_workspace_file_is_read_and_a_bad_line_of_it_is_named_but_not_shown() {
        let mut environment = Environment::default();
        environment.read_file(b"# c\nA=\"one two\"\nexport B=2\n");
        assert_eq!((environment.get("A"), environment.get("B")), (Some("one two"), Some("2")));
        environment.read_file(b"A=1\nthis is my hunter2\n");
        let (line, why) = environment.file_problem.unwrap();
        assert_eq!(line, Some(2));
        assert!(!why.contains("hunter2"));
    }
}

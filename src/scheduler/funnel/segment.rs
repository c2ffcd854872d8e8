//! By what a funnel is told apart: the day of the send, a variable of the set, a column of a table, or several of these at
//! once, as segments of coverage are written.

use super::person::{Found, PersonColumn};
use crate::engine::text;
use crate::stage::Hands;
use crate::stage::query::QueryError;

/// The day of the send, as a segment.
pub const DAY: &str = "day";
/// Before a variable's name: the variable and nothing else.
const VARIABLES: &str = "variables.";
/// Between the parts of a segment, and between their values.
const AND: char = '+';
/// A part whose value is not known, beside others.
const UNKNOWN: &str = "(unknown)";

/// What a funnel is told apart by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// The day of the send in the workspace's time zone; unsent people have none.
    Day,
    /// A variable of the set: a column of its SELECT.
    Variable(String),
    /// A column of a table that knows people.
    Column(PersonColumn),
}

impl Segment {
    /// Reads a segment. `variables`: those of the set; `None` of one that nobody is in, where any may be meant.
    ///
    /// # Errors
    ///
    /// The part that is nothing of these.
    pub fn read(written: &str, variables: Option<&[String]>) -> Result<Self, String> {
        let has = |name: &str| variables.is_none_or(|known| known.iter().any(|own| own == name));
        let is_variable = |name: &str| variables.is_some() && has(name);
        let part = |written: &str| {
            let written = written.trim();
            if written == DAY {
                return Ok(Part::Day);
            }
            let named = written.strip_prefix(VARIABLES).filter(|name| has(name));
            match named.or_else(|| is_variable(written).then_some(written)) {
                Some(variable) => Ok(Part::Variable(variable.to_owned())),
                None => match PersonColumn::read(written) {
                    Some(column) if !written.starts_with(VARIABLES) => Ok(Part::Column(column)),
                    None if has(written) => Ok(Part::Variable(written.to_owned())),
                    _ => Err(written.to_owned()),
                },
            }
        };
        // A variable of that very name goes before several of them.
        let parts = if written.contains(AND) && !is_variable(written) {
            written.split(AND).map(part).collect::<Result<Vec<_>, _>>()?
        } else {
            vec![part(written)?]
        };
        Ok(Self { parts })
    }

    /// Whether it needs a send: then nobody of a holdout has a value.
    pub fn has_day(&self) -> bool {
        self.parts.contains(&Part::Day)
    }

    /// Its value as SQL over `r` (the set) and `d` (the deliveries), and the joins that it takes.
    ///
    /// # Errors
    ///
    /// [`QueryError::Sql`] when a table or a column is not there, or the table does not know people.
    pub async fn sql(&self, hands: &Hands) -> Result<(String, String), QueryError> {
        let (mut values, mut joins) = (Vec::new(), String::new());
        for (number, part) in self.parts.iter().enumerate() {
            values.push(match part {
                Part::Day => "cast(local_date(d.sent_at) as varchar)".to_owned(),
                Part::Variable(name) => {
                    let path = format!("$.\"{}\"", name.replace('"', "\\\""));
                    format!("json_extract_string(r.variables, {})", text(&path))
                }
                Part::Column(column) => {
                    let (found, alias) = (Found::find(hands, column).await?, format!("s{number}"));
                    joins += &found.join(&alias, &format!("min(cast({} as varchar))", found.name()));
                    format!("{alias}.value")
                }
            });
        }
        let value = match values.as_slice() {
            [value] => value.clone(),
            values => {
                let known: Vec<String> = values.iter().map(|value| format!("coalesce({value}, '{UNKNOWN}')")).collect();
                format!("concat_ws(' {AND} ', {})", known.join(", "))
            }
        };
        Ok((value, joins))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(written: &str) -> Result<Vec<Part>, String> {
        let variables = ["city", "day", "a+b", "x.y"].map(str::to_owned);
        Segment::read(written, Some(&variables)).map(|segment| segment.parts)
    }

    #[test]
    fn a_segment_is_the_day_a_column_a_variable_or_several_of_these() {
        let variable = |name: &str| Part::Variable(name.to_owned());
        let column = |table: &str, column: &str| {
            Part::Column(PersonColumn { table: table.to_owned(), column: column.to_owned() })
        };
        assert_eq!(read("day"), Ok(vec![Part::Day]));
        assert_eq!(read("city"), Ok(vec![variable("city")]));
        assert_eq!(read("mall_users.city"), Ok(vec![column("mall_users", "city")]));
        assert_eq!(read("city + day+mall_users.city").map(|parts| parts.len()), Ok(3));
        assert_eq!(read("a+b"), Ok(vec![variable("a+b")]), "a variable of that very name");
        assert_eq!(read("x.y"), Ok(vec![variable("x.y")]));
        assert_eq!(read("variables.day"), Ok(vec![variable("day")]), "what else would be the day of the send");
        for (wrong, part) in [("colour", "colour"), ("city+colour", "colour"), ("variables.colour", "variables.colour")]
        {
            assert_eq!(read(wrong), Err(part.to_owned()));
        }
        let of_nobody = Segment::read("colour", None).unwrap();
        assert_eq!(of_nobody.parts, [variable("colour")]);
    }
}

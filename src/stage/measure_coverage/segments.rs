//! What a segment names: a column of users or profiles, the month of one (cohorts), a tag, or several of these at once.
//!
//! `city`, `month(registered_at)`, `tag`, `city + month(subscribe_time)`. A column of exactly that name goes before every
//! other reading.

use crate::engine::{TableSource, quoted, text};
use crate::stage::join_identities::people::{UserColumn, UsersTable};

/// Between the parts of a segment, and between their values.
const AND: char = '+';
const TAG: &str = "tag";
/// The column of profiles that tags are read off.
const TAGS: &str = "tagid_list";
/// A part whose value is not known, beside others.
const UNKNOWN: &str = "(unknown)";

/// A segment as it was written, with its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub name: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    column: String,
    of: Side,
    reading: Reading,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Users,
    Profiles,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Value,
    Month,
    Tags,
}

impl Segment {
    /// Reads a segment; the name of the column that nobody has where there is one.
    ///
    /// # Errors
    ///
    /// That name.
    pub fn read(
        written: &str,
        in_users: &dyn Fn(&str) -> bool,
        in_profiles: &dyn Fn(&str) -> bool,
    ) -> Result<Self, String> {
        let side = |column: &str| match (in_users(column), in_profiles(column)) {
            (true, _) => Some(Side::Users),
            (false, true) => Some(Side::Profiles),
            (false, false) => None,
        };
        let part = |written: &str| {
            let written = written.trim();
            let made = |column: &str, of, reading| Part { column: column.to_owned(), of, reading };
            if let Some(of) = side(written) {
                return Ok(made(written, of, Reading::Value));
            }
            if written == TAG {
                return Ok(tags_part());
            }
            let inner = written.strip_prefix("month(").and_then(|rest| rest.strip_suffix(')')).map(str::trim);
            let column = inner.unwrap_or(written);
            match (inner.is_some(), side(column)) {
                (true, Some(of)) => Ok(made(column, of, Reading::Month)),
                _ => Err(column.to_owned()),
            }
        };
        let parts = match (side(written), written.contains(AND)) {
            (None, true) => written.split(AND).map(part).collect::<Result<Vec<_>, _>>()?,
            _ => vec![part(written)?],
        };
        Ok(Self { name: written.to_owned(), parts })
    }

    /// Whether a person can have several values: then values do not sum to the whole.
    pub fn has_several_values(&self) -> bool {
        self.parts.iter().any(|part| part.reading == Reading::Tags)
    }

    /// Its value as SQL over a row with the columns of [`user_columns`] and [`profile_columns`].
    pub fn value_sql(&self) -> String {
        let one = |part: &Part| match part.reading {
            Reading::Tags => "nullif(_tag, '')".to_owned(),
            Reading::Value | Reading::Month => part.alias(),
        };
        match self.parts.as_slice() {
            [part] => one(part),
            parts => {
                let values = parts.iter().map(|part| format!("coalesce({}, '{UNKNOWN}')", one(part)));
                format!("concat_ws(' {AND} ', {})", values.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

impl Part {
    /// The column that carries it through the figures.
    fn alias(&self) -> String {
        let side = match self.of {
            Side::Users => "user",
            Side::Profiles => "profile",
        };
        let reading = match self.reading {
            Reading::Month => "month_",
            Reading::Value | Reading::Tags => "",
        };
        quoted(&format!("_{side}_{reading}{}", self.column.to_lowercase()))
    }

    /// Its text, of a column of that type.
    fn sql(&self, column: &str, ty: &str) -> String {
        match self.reading {
            Reading::Value | Reading::Tags => format!("cast({column} as varchar)"),
            // Times in tables are UTC; a date, and what is text, is a wall clock's already.
            Reading::Month if ty.eq_ignore_ascii_case("timestamp") => {
                format!("strftime(local_time({column}), '%Y-%m')")
            }
            Reading::Month => {
                let value = format!("replace(cast({column} as varchar), '/', '-')");
                format!("strftime(try_cast({value} as timestamp), '%Y-%m')")
            }
        }
    }
}

/// Columns of users that the segments need, each once.
pub fn user_columns(segments: &[Segment]) -> Vec<UserColumn<'static>> {
    let made = |part: Part| {
        let name = unquoted(&part.alias());
        UserColumn::new(name, move |table: &UsersTable| match table.column_type(&part.column) {
            Some(ty) => part.sql(&quoted(&part.column), ty),
            None => "cast(null as varchar)".to_owned(),
        })
    };
    parts_of(segments, Side::Users).into_iter().map(made).collect()
}

/// Names and SQL of the columns of `profiles_now` that the segments need, each once.
pub fn profile_columns(segments: &[Segment], profiles: &TableSource) -> Vec<(String, String)> {
    let parts = parts_of(segments, Side::Profiles).into_iter();
    parts
        .map(|part| {
            let own = profiles.columns.iter().find(|(name, _)| name.eq_ignore_ascii_case(&part.column));
            let ty = own.map_or("VARCHAR", |(_, ty)| ty.as_str());
            (part.alias(), part.sql(&format!("profiles_now.{}", quoted(&part.column)), ty))
        })
        .collect()
}

fn tags_part() -> Part {
    Part { column: TAGS.to_owned(), of: Side::Profiles, reading: Reading::Tags }
}

fn parts_of(segments: &[Segment], side: Side) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for part in segments.iter().flat_map(|segment| &segment.parts).filter(|part| part.of == side) {
        if !parts.iter().any(|other| other.alias() == part.alias()) {
            parts.push(part.clone());
        }
    }
    parts
}

fn unquoted(name: &str) -> String {
    name.trim_matches('"').replace("\"\"", "\"")
}

/// By what everybody is counted at once.
pub struct Sets {
    columns: Vec<String>,
    /// Of the columns, each once.
    sets: Vec<Vec<String>>,
}

/// The columns of each segment, beside the whole.
pub fn sets(segments: &[Segment]) -> Sets {
    let columns = [Side::Users, Side::Profiles].map(|side| parts_of(segments, side)).concat();
    let columns: Vec<String> = columns.iter().map(Part::alias).collect();
    let mut sets: Vec<Vec<String>> = vec![Vec::new()];
    for segment in segments {
        let of: Vec<String> = segment.parts.iter().map(Part::alias).collect();
        let set: Vec<String> = columns.iter().filter(|column| of.contains(column)).cloned().collect();
        if !sets.contains(&set) {
            sets.push(set);
        }
    }
    Sets { columns, sets }
}

impl Sets {
    /// Fills in `{columns}`, `{of_set}`, `{sets}`, and `{whole}`, which is `of_set` of a row that no segment is about.
    pub fn fill(&self, sql: &str) -> String {
        let columns: String = self.columns.iter().map(|column| format!(", {column}")).collect();
        let grouping: Vec<String> = self.columns.iter().map(|column| format!(", grouping({column})")).collect();
        let set = |set: &Vec<String>| {
            let more: String = set.iter().map(|column| format!(", {column}")).collect();
            format!("(account, miniprogram, standing{more})")
        };
        sql.replace("{columns}", &columns)
            .replace("{of_set}", &format!("concat(''{})", grouping.concat()))
            .replace("{sets}", &self.sets.iter().map(set).collect::<Vec<_>>().join(", "))
            .replace("{whole}", &self.name(&[]))
    }

    fn name(&self, set: &[String]) -> String {
        self.columns.iter().map(|column| if set.contains(column) { '0' } else { '1' }).collect()
    }
}

/// The SELECT of all segments over `_counted`.
pub fn by_segment(segments: &[Segment]) -> Option<String> {
    let sets = sets(segments);
    let one = |segment: &Segment| {
        let of: Vec<String> = segment.parts.iter().map(Part::alias).collect();
        let rows = format!("from _counted where of_set = '{}'", sets.name(&of));
        let rows = if segment.has_several_values() {
            TAGGED.replace("{tags}", &tags_part().alias()).replace("{rows}", &rows)
        } else {
            rows
        };
        VALUES
            .replace("{segment}", &text(&segment.name))
            .replace("{value}", &segment.value_sql())
            .replace("{rows}", &rows)
    };
    (!segments.is_empty()).then(|| segments.iter().map(one).collect::<Vec<_>>().join("\nunion all"))
}

/// A row for each tag of a row's list.
const TAGGED: &str =
    "select *, unnest(coalesce(list_distinct(string_split(trim({tags}, '[] '), ',')), [''])) as _tag {rows}";

const VALUES: &str = "
select cast(account as varchar) as account, cast(miniprogram as varchar) as miniprogram, {segment} as segment,
       {value} as value, cast(sum(users) as bigint) as users,
       cast(sum(if(is_matched(standing), users, 0)) as bigint) as matched,
       cast(sum(if(is_reachable(standing), users, 0)) as bigint) as reachable,
       cast(sum(if(is_reached(standing), users, 0)) as bigint) as reached_lately
from ({rows}) semi join the_accounts using (account)
group by account, miniprogram, value";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(written: &str) -> Result<Segment, String> {
        let has = |names: &'static [&'static str]| move |column: &str| names.contains(&column);
        Segment::read(written, &has(&["city", "registered_at", "a+b"]), &has(&["subscribe_time", "city"]))
    }

    #[test]
    fn a_segment_is_a_column_a_month_a_tag_or_several_of_these() {
        let parts = |written: &str| read(written).map(|segment| segment.parts.len());
        assert_eq!(parts("city"), Ok(1));
        assert_eq!(parts("month(registered_at)+ tag +city"), Ok(3));
        assert_eq!(parts("a+b"), Ok(1), "a column of that very name");
        assert!(read("tag").unwrap().has_several_values());
        assert_eq!(read("city").unwrap().parts[0].of, Side::Users, "users go before profiles");
        assert_eq!(read("month(subscribe_time)").unwrap().parts[0].of, Side::Profiles);
        assert_eq!(parts("citty"), Err("citty".to_owned()));
        assert_eq!(parts("city+month(joined)"), Err("joined".to_owned()));
    }
}

//! The report as one HTML file without a script and without a network: both languages stand in it, and a choice on the page
//! shows one. Widths are shares of the window, so that it reads on a phone; on paper it is black on white.

use std::fmt::Write as _;

use chrono_tz::Tz;

use super::plot;
use super::sections::{Section, Words, heading, page, said};
use crate::clock::Timestamp;
use crate::domain::{Rows, Values};

/// A longer table is folded up on the screen; on paper it is open.
const SHORT: usize = 12;
/// Rows of a table; a report is no export.
const MOST_ROWS: usize = 400;

/// A section with its rows and the SQL they came of.
pub struct Filled<'a> {
    pub section: &'a Section,
    pub sql: String,
    pub rows: Rows,
}

/// What is said once on the page.
pub struct Head<'a> {
    pub workspace: &'a str,
    pub made_at: Timestamp,
    pub zone: Tz,
    pub is_chinese: bool,
}

/// The whole page.
pub fn html(head: &Head<'_>, sections: &[Filled<'_>]) -> String {
    let made = head.made_at.with_timezone(&head.zone).format("%Y-%m-%d %H:%M %Z");
    let checked = |is: bool| if is { " checked" } else { "" };
    let mut out = format!(
        "<!doctype html>\n<html lang=\"{lang}\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title} · {workspace}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <input type=\"radio\" name=\"language\" id=\"zh\"{zh}><input type=\"radio\" name=\"language\" id=\"en\"{en}>\n\
         <header><h1>{heading} <small>{workspace}</small></h1>\n\
         <p>{made_word} {made} · <label for=\"zh\">中文</label> <label for=\"en\">English</label></p>\n<nav>",
        lang = if head.is_chinese { "zh" } else { "en" },
        title = if head.is_chinese { page::TITLE.zh } else { page::TITLE.en },
        workspace = escaped(head.workspace),
        zh = checked(head.is_chinese),
        en = checked(!head.is_chinese),
        heading = both(page::TITLE),
        made_word = both(page::MADE),
    );
    for Filled { section, .. } in sections {
        let _ = write!(out, "<a href=\"#{}\">{}</a> ", section.id, both(section.title));
    }
    out.push_str("</nav></header>\n<main>\n");
    for filled in sections {
        section(&mut out, filled, head.zone);
    }
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

fn section(out: &mut String, Filled { section, sql, rows }: &Filled<'_>, zone: Tz) {
    let _ = writeln!(
        out,
        "<section id=\"{}\">\n<h2>{}</h2>\n<p>{}</p>",
        section.id,
        both(section.title),
        both(section.about)
    );
    if rows.is_empty() {
        let _ = writeln!(out, "<p class=\"nothing\">{}</p>", both(page::NOTHING));
    } else {
        plot::draw(out, section.plot, rows, zone);
        table(out, rows, zone);
    }
    let _ = writeln!(
        out,
        "<details><summary>{}</summary><pre>{}</pre></details>\n</section>",
        both(page::SQL),
        escaped(sql)
    );
}

fn table(out: &mut String, rows: &Rows, zone: Tz) {
    let open = if rows.len() <= SHORT { " open" } else { "" };
    let _ =
        write!(out, "<details{open}><summary>{}</summary><div class=\"wide\"><table><thead><tr>", both(page::TABLE));
    for (name, values) in &rows.columns {
        let _ = write!(out, "<th{}>{}</th>", class(values), column(name));
    }
    out.push_str("</tr></thead><tbody>\n");
    for row in 0..rows.len().min(MOST_ROWS) {
        out.push_str("<tr>");
        for (name, values) in &rows.columns {
            let _ = write!(out, "<td{}>{}</td>", class(values), cell(name, values, (row, zone)));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>");
    if rows.len() > MOST_ROWS {
        let _ = write!(out, "<p class=\"nothing\">{}</p>", both(page::MORE));
    }
    out.push_str("</details>\n");
}

fn class(values: &Values) -> &'static str {
    match values {
        Values::Integer(_) | Values::Float(_) => " class=\"number\"",
        _ => "",
    }
}

/// A column's heading in both languages.
pub fn column(name: &str) -> String {
    heading(name).map_or_else(|| escaped(name), both)
}

/// A value as it is read: numbers in groups, shares as percent, times in the workspace's zone.
pub fn cell(name: &str, values: &Values, (row, zone): (usize, Tz)) -> String {
    match values {
        Values::Text(values) => match values[row].as_deref() {
            None => both(page::UNKNOWN),
            Some(value) => said(name, value).map_or_else(|| escaped(value), both),
        },
        Values::Integer(values) => values[row].map_or_else(String::new, whole),
        Values::Float(values) if name.ends_with("_rate") => values[row].map_or_else(String::new, percent),
        Values::Float(values) => values[row].map_or_else(String::new, |value| value.to_string()),
        Values::Boolean(values) => values[row].map_or_else(String::new, |value| value.to_string()),
        Values::Timestamp(values) => values[row].map_or_else(String::new, |micros| {
            crate::clock::from_micros(micros).with_timezone(&zone).format("%Y-%m-%d %H:%M").to_string()
        }),
        Values::Date(values) => {
            values[row].and_then(chrono::NaiveDate::from_epoch_days).map_or_else(String::new, |date| date.to_string())
        }
    }
}

/// A whole number in groups of three.
pub fn whole(number: i64) -> String {
    let sign = if number < 0 { "−" } else { "" };
    format!("{sign}{}", crate::cli::table::grouped(number.unsigned_abs()))
}

/// A share as percent.
pub fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// Both languages, of which the page shows one.
pub fn both(words: Words) -> String {
    if words.en == words.zh {
        return escaped(words.en);
    }
    format!("<span lang=\"zh\">{}</span><span lang=\"en\">{}</span>", escaped(words.zh), escaped(words.en))
}

/// Text that cannot be taken for markup, in elements and in quoted attributes.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(letter),
        }
    }
    out
}

const STYLE: &str = include_str!("style.css");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_the_data_is_no_markup() {
        assert_eq!(escaped("<b a='\"'>&"), "&lt;b a=&#39;&quot;&#39;&gt;&amp;");
        let values = Values::Text(vec![Some("<script>".to_owned()), None, Some("matched".to_owned())]);
        let shown = |row| cell("reason", &values, (row, chrono_tz::Asia::Shanghai));
        assert_eq!(shown(0), "&lt;script&gt;");
        assert!(shown(1).contains("unknown") && shown(2).contains("已匹配"));
    }

    #[test]
    fn a_city_that_is_called_as_one_of_our_words_stays_that_city() {
        let shown = |column, word: &str| {
            cell(column, &Values::Text(vec![Some(word.to_owned())]), (0, chrono_tz::Asia::Shanghai))
        };
        for word in ["*", "user", "matched"] {
            assert_eq!(shown("value", word), word);
        }
        assert_eq!(shown("reason", "*"), "*");
        assert!(shown("account", "*").contains("all together") && shown("side", "user").contains("用户"));
    }

    #[test]
    fn numbers_read_as_numbers_and_shares_as_percent() {
        let zone = chrono_tz::Asia::Shanghai;
        assert_eq!(cell("users", &Values::Integer(vec![Some(1_234_567)]), (0, zone)), "1 234 567");
        assert_eq!(cell("coverage_rate", &Values::Float(vec![Some(0.4963)]), (0, zone)), "49.6%");
        assert_eq!(cell("coverage_rate", &Values::Float(vec![None]), (0, zone)), "");
        assert_eq!(cell("as_of", &Values::Timestamp(vec![Some(0)]), (0, zone)), "1970-01-01 08:00");
    }
}

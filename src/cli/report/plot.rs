//! Plots of the report: bars are boxes whose width is a share, so that their texts stay readable at every width; lines are
//! SVG that is stretched, with its texts beside it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chrono_tz::Tz;

use super::page::{cell, column, percent, whole};
use super::sections::Plot;
use crate::domain::{Rows, Values};

/// The SVG's own units; it is stretched to the page.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 200.0;
/// Colours of lines; the next line begins anew, dashed.
const COLOURS: usize = 6;
/// Most groups that are drawn; the table has all.
const MOST_GROUPS: usize = 12;

/// Draws the rows.
pub fn draw(out: &mut String, plot: Plot, rows: &Rows, zone: Tz) {
    let drawing = Drawing { rows, zone };
    match plot {
        Plot::Funnel { of, steps } => drawing.funnels(out, of, steps),
        Plot::Shares { of, name, value } => drawing.bars(out, of, name, |group, row| {
            let all: f64 = group.iter().map(|row| drawing.number(value, *row)).sum();
            (drawing.number(value, row), all)
        }),
        Plot::Rates { of, name, part, whole } => {
            drawing.bars(out, of, name, |_, row| (drawing.number(part, row), drawing.number(whole, row)));
        }
        Plot::Lines { of, value } => drawing.lines(out, of, value),
        Plot::UpAndDown { of, up, down } => drawing.up_and_down(out, of, (up, down)),
    }
}

struct Drawing<'a> {
    rows: &'a Rows,
    zone: Tz,
}

impl Drawing<'_> {
    /// Rows by the values of `of`, in the order they come.
    fn groups(&self, of: &[&str]) -> Vec<(String, Vec<usize>)> {
        let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
        for row in 0..self.rows.len() {
            let name = self.title(of, row);
            match groups.iter_mut().find(|(own, _)| *own == name) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((name, vec![row])),
            }
        }
        groups
    }

    fn title(&self, of: &[&str], row: usize) -> String {
        let names: Vec<String> = of.iter().map(|name| self.text(name, row)).collect();
        names.join(" · ")
    }

    fn text(&self, name: &str, row: usize) -> String {
        cell(name, self.values(name), (row, self.zone))
    }

    fn values(&self, name: &str) -> &Values {
        let found = self.rows.columns.iter().find(|(own, _)| own == name);
        &found.expect("plots name columns of their own SQL").1
    }

    #[expect(clippy::cast_precision_loss, reason = "drawn")]
    fn number(&self, name: &str, row: usize) -> f64 {
        self.known(name, row).unwrap_or(match self.values(name) {
            Values::Integer(values) => values[row].unwrap_or(0) as f64,
            _ => 0.0,
        })
    }

    fn known(&self, name: &str, row: usize) -> Option<f64> {
        match self.values(name) {
            Values::Float(values) => values[row],
            _ => None,
        }
    }

    fn funnels(&self, out: &mut String, of: &[&str], steps: &[&str]) {
        out.push_str("<div class=\"plot\">\n");
        for row in 0..self.rows.len().min(MOST_GROUPS) {
            let _ = writeln!(out, "<h3>{}</h3>", self.title(of, row));
            let first = self.number(steps[0], row);
            for step in steps {
                bar(out, &column(step), (self.number(step, row), first));
            }
        }
        out.push_str("</div>\n");
        others(out, self.rows.len());
    }

    fn bars(&self, out: &mut String, of: &[&str], name: &str, part: impl Fn(&[usize], usize) -> (f64, f64)) {
        out.push_str("<div class=\"plot\">\n");
        let groups = self.groups(of);
        for (title, rows) in groups.iter().take(MOST_GROUPS) {
            let _ = writeln!(out, "<h3>{title}</h3>");
            for row in rows {
                bar(out, &self.text(name, *row), part(rows, *row));
            }
        }
        out.push_str("</div>\n");
        others(out, groups.len());
    }

    /// Every day of the rows, as a place from left to right.
    fn days(&self) -> BTreeMap<String, f64> {
        let mut days: BTreeMap<String, f64> = (0..self.rows.len()).map(|row| (self.text("date", row), 0.0)).collect();
        let last = f64::from(u32::try_from(days.len().saturating_sub(1)).unwrap_or(u32::MAX)).max(1.0);
        for (place, at) in (0_u32..).zip(days.values_mut()) {
            *at = f64::from(place) / last * WIDTH;
        }
        days
    }

    fn lines(&self, out: &mut String, of: &[&str], value: &str) {
        let days = self.days();
        let groups = self.groups(of);
        let all = (0..self.rows.len()).filter_map(|row| self.known(value, row));
        let top = nice(all.fold(0.0, f64::max));
        axes(out, &days, (&percent(top), "0%"));
        for (number, (_, rows)) in groups.iter().take(MOST_GROUPS).enumerate() {
            let points: Vec<(f64, f64)> = rows
                .iter()
                .filter_map(|row| Some((days[&self.text("date", *row)], self.known(value, *row)?)))
                .map(|(x, share)| (x, HEIGHT - share / top * HEIGHT))
                .collect();
            line(out, number, &points);
        }
        out.push_str("</svg></div>");
        dates(out, &days);
        legend(out, &groups);
        others(out, groups.len());
    }

    fn up_and_down(&self, out: &mut String, of: &[&str], (up, down): (&str, &str)) {
        let days = self.days();
        let groups = self.groups(of);
        for (title, rows) in groups.iter().take(MOST_GROUPS) {
            let most = rows.iter().map(|row| self.number(up, *row).max(self.number(down, *row))).fold(1.0, f64::max);
            let _ = writeln!(out, "<h3>{title}</h3>");
            axes(out, &days, (&format!("+{}", rounded(most)), &format!("−{}", rounded(most))));
            let width = (WIDTH / f64::from(u32::try_from(days.len()).unwrap_or(1)) * 0.7).min(40.0);
            for row in rows {
                let at = (days[&self.text("date", *row)] - width / 2.0).clamp(0.0, WIDTH - width);
                let height = |value: f64| value / most * HEIGHT / 2.0;
                let (gained, lost) = (height(self.number(up, *row)), height(self.number(down, *row)));
                let middle = HEIGHT / 2.0;
                let _ = write!(
                    out,
                    "<rect class=\"up\" x=\"{at:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{gained:.1}\"/>\
                     <rect class=\"down\" x=\"{at:.1}\" y=\"{middle:.1}\" width=\"{width:.1}\" height=\"{lost:.1}\"/>",
                    middle - gained
                );
            }
            out.push_str("</svg></div>");
            dates(out, &days);
        }
        let _ = writeln!(
            out,
            "<p class=\"legend\"><span class=\"up\">■</span> {} <span class=\"down\">■</span> {}</p>",
            column(up),
            column(down)
        );
        others(out, groups.len());
    }
}

/// Says so where not all groups are drawn.
fn others(out: &mut String, all: usize) {
    if all > MOST_GROUPS {
        let _ = writeln!(
            out,
            "<p class=\"nothing\"><span lang=\"zh\">共 {all} 项，图中为前 {MOST_GROUPS} 项，其余见数据表。</span>\
             <span lang=\"en\">The first {MOST_GROUPS} of {all} are drawn; the table has the others.</span></p>"
        );
    }
}

/// A bar of a part of a whole, with its number and its share.
fn bar(out: &mut String, name: &str, (part, of): (f64, f64)) {
    let share = if of > 0.0 { (part / of).clamp(0.0, 1.0) } else { 0.0 };
    let said = if of > 0.0 { percent(part / of) } else { String::new() };
    let _ = writeln!(
        out,
        "<div class=\"bar\"><span class=\"name\">{name}</span><span class=\"track\"><i style=\"width:{:.2}%\"></i></span>\
         <span class=\"number\">{} <small>{said}</small></span></div>",
        share * 100.0,
        rounded(part)
    );
}

#[expect(clippy::cast_possible_truncation, reason = "counts of people")]
fn rounded(number: f64) -> String {
    whole(number.round() as i64)
}

/// A round share above the highest.
fn nice(highest: f64) -> f64 {
    let steps = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0];
    steps.into_iter().find(|step| *step >= highest).unwrap_or(highest)
}

/// Begins a picture with its two ends of the vertical axis.
fn axes(out: &mut String, days: &BTreeMap<String, f64>, (top, bottom): (&str, &str)) {
    let _ = write!(
        out,
        "<div class=\"plot lines\" role=\"img\" aria-label=\"{} – {}\"><span class=\"top\">{top}</span><span class=\"bottom\">{bottom}</span>\
         <svg viewBox=\"0 -4 {WIDTH} {}\" preserveAspectRatio=\"none\">",
        days.keys().next().map_or("", String::as_str),
        days.keys().next_back().map_or("", String::as_str),
        HEIGHT + 8.0
    );
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let _ = write!(out, "<path class=\"grid\" d=\"M0 {0}H{WIDTH}\"/>", HEIGHT * share);
    }
}

fn line(out: &mut String, number: usize, points: &[(f64, f64)]) {
    let colour = number % COLOURS;
    let dashed = if number >= COLOURS { " dashed" } else { "" };
    if let [(_, y)] = points {
        let _ = write!(out, "<path class=\"line c{colour}{dashed}\" d=\"M0 {y:.1}H{WIDTH}\"/>");
        return;
    }
    let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
    let _ = write!(out, "<path class=\"line c{colour}{dashed}\" d=\"M{}\"/>", path.join("L"));
}

/// The first, the middle and the last day, below a picture.
fn dates(out: &mut String, days: &BTreeMap<String, f64>) {
    let names: Vec<&str> = days.keys().map(String::as_str).collect();
    let shown: Vec<&str> = match names.len() {
        0..=2 => names,
        many => vec![names[0], names[many / 2], names[many - 1]],
    };
    let shown: String = shown.iter().map(|day| format!("<span>{day}</span>")).collect();
    let _ = writeln!(out, "<p class=\"dates\">{shown}</p>");
}

fn legend(out: &mut String, groups: &[(String, Vec<usize>)]) {
    out.push_str("<p class=\"legend\">");
    for (number, (title, _)) in groups.iter().take(MOST_GROUPS).enumerate() {
        let mark = if number >= COLOURS { "┅" } else { "━" };
        let _ = write!(out, "<span class=\"key\"><span class=\"c{}\">{mark}</span> {title}</span> ", number % COLOURS);
    }
    out.push_str("</p>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(plot: Plot, columns: Vec<(&str, Values)>) -> String {
        let rows = Rows { columns: columns.into_iter().map(|(name, values)| (name.to_owned(), values)).collect() };
        let mut out = String::new();
        draw(&mut out, plot, &rows, chrono_tz::Asia::Shanghai);
        out
    }

    fn text(values: &[&str]) -> Values {
        Values::Text(values.iter().map(|value| Some((*value).to_owned())).collect())
    }

    #[test]
    fn a_bar_is_as_wide_as_its_share_of_the_whole() {
        let columns = vec![
            ("side", text(&["u", "u"])),
            ("reason", text(&["a", "b"])),
            ("people", Values::Integer(vec![Some(30), Some(10)])),
        ];
        let shares = drawn(Plot::Shares { of: &["side"], name: "reason", value: "people" }, columns);
        assert!(shares.contains("width:75.00%") && shares.contains("width:25.00%"), "{shares}");
        let columns = vec![
            ("account", text(&["a"])),
            ("users", Values::Integer(vec![Some(0)])),
            ("matched", Values::Integer(vec![Some(0)])),
        ];
        let nobody = drawn(Plot::Funnel { of: &["account"], steps: &["users", "matched"] }, columns);
        assert!(nobody.contains("width:0.00%") && !nobody.contains("NaN"), "{nobody}");
    }

    #[test]
    fn a_line_goes_from_the_first_day_to_the_last_below_a_round_top() {
        let columns = vec![
            ("account", text(&["a", "a", "a"])),
            ("date", Values::Date(vec![Some(20_000), Some(20_001), Some(20_002)])),
            ("coverage_rate", Values::Float(vec![Some(0.0), None, Some(0.45)])),
        ];
        let lines = drawn(Plot::Lines { of: &["account"], value: "coverage_rate" }, columns);
        assert!(lines.contains("M0.0 200.0L1000.0 20.0") && lines.contains("50.0%"), "{lines}");
    }

    #[test]
    fn one_day_is_drawn_too() {
        let columns = vec![
            ("account", text(&["a"])),
            ("date", Values::Date(vec![Some(20_000)])),
            ("followed", Values::Integer(vec![Some(5)])),
            ("unfollowed", Values::Integer(vec![Some(2)])),
        ];
        let picture = drawn(Plot::UpAndDown { of: &["account"], up: "followed", down: "unfollowed" }, columns);
        assert!(picture.contains("height=\"100.0\"") && picture.contains("height=\"40.0\""), "{picture}");
    }
}

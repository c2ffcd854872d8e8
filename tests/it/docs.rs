//! What stands in docs/ is so: the page of tables is the one the code gives, and the notebooks' SQL gives what they show.
//!
//! With `LIANBO_WRITE_DOCS` set both are written instead (`make docs`).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use chrono::{NaiveDate, NaiveDateTime};
use lianbo::domain::tables::markdown;
use lianbo::simulator::SALE_TEMPLATE_ID;

use crate::house::{EXPORT, House, small};

/// Rows of an answer that a notebook shows.
const SHOWN: usize = 8;

fn of_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn is_to_be_written() -> bool {
    std::env::var_os("LIANBO_WRITE_DOCS").is_some()
}

#[test]
fn the_page_of_tables_is_the_one_that_the_code_gives() {
    let path = of_repository("docs/tables.md");
    if is_to_be_written() {
        std::fs::write(&path, markdown()).unwrap();
    }
    let page = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(page == markdown(), "docs/tables.md is stale: `make docs` writes it anew");
}

/// A world of three nights with the shipped pipelines: some came and left, some refuse the message, some log in after it.
async fn world() -> House {
    let house = House::build(small()).await;
    for name in ["pipelines/nightly.toml", "pipelines/campaign.toml", "pipelines/campaign/audience.sql"] {
        house.write(name, &std::fs::read_to_string(of_repository(name)).unwrap());
    }
    house.edit("pipelines/campaign.toml", "rate = \"50/s\"", "rate = \"5000/s\"");
    house.edit("pipelines/campaign.toml", "# holdout = 0.05 ", "holdout = 0.2 ");
    house.night().await;
    house.pass(86_400);
    for openid in house.simulator.matchable().iter().step_by(20) {
        assert!(house.simulator.unfollow(openid));
    }
    house.simulator.unfollow_some(5);
    house.simulator.follow_some(4);
    house.night().await;
    for openid in house.simulator.matchable().iter().step_by(60) {
        assert!(house.simulator.refuse_template(openid, SALE_TEMPLATE_ID));
    }
    house.run("campaign", &["--param", "city=*"]).await.ends(0);
    house.pass(86_400);
    let now = house.now().with_timezone(&chrono_tz::Asia::Shanghai).format("%Y-%m-%d %H:%M:%S").to_string();
    let export = house.read(EXPORT);
    let held_out = house
        .rows(
            "select i.mp_openid from recipients as r join identities as i on i.oa_openid = r.openid
             where r.arm = 'holdout'",
        )
        .await;
    // Of all of them a fifth come back by themselves, of those who got a message a third more.
    let came_back = |(number, line): (usize, &str)| {
        let is_held_out = held_out.iter().any(|row| line.starts_with(&row[0]));
        match line.rsplit_once(',') {
            Some((before, _)) if number > 0 && (number % 5 == 0 || (number % 3 == 0 && !is_held_out)) => {
                format!("{before},{now}\n")
            }
            _ => format!("{line}\n"),
        }
    };
    house.write(EXPORT, &export.lines().enumerate().map(came_back).collect::<String>());
    house.night().await;
    house
}

/// A block of SQL with the table shown below it.
struct Block {
    sql: String,
    /// Header and rows.
    shown: Vec<Vec<String>>,
    /// The lines of the table in the page.
    lines: std::ops::Range<usize>,
}

fn blocks(page: &[String]) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut at = 0;
    while let Some(begin) = page[at..].iter().position(|line| line == "```sql").map(|found| at + found + 1) {
        let end = begin + page[begin..].iter().position(|line| line == "```").unwrap();
        let first = end + 1 + page[end + 1..].iter().position(|line| !line.is_empty()).unwrap();
        let rows = page[first..].iter().take_while(|line| line.starts_with('|')).count();
        let cells =
            |line: &String| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        let shown = page[first..first + rows].iter().enumerate().filter(|(number, _)| *number != 1);
        let shown = shown.map(|(_, line)| cells(line)).collect();
        blocks.push(Block { sql: page[begin..end].join("\n"), shown, lines: first..first + rows });
        at = end + 1;
    }
    blocks
}

fn table(answer: &[Vec<String>]) -> Vec<String> {
    let line = |cells: &[String]| {
        cells.iter().fold("|".to_owned(), |mut line, cell| {
            write!(line, " {cell} |").unwrap();
            line
        })
    };
    let mut lines: Vec<String> = answer.iter().take(SHOWN + 1).map(|row| line(row)).collect();
    lines.insert(1, line(&vec!["---".to_owned(); answer[0].len()]));
    lines
}

/// What the values of a column are.
fn kinds(answer: &[Vec<String>]) -> Vec<&'static str> {
    let kind = |cell: &String| match cell {
        _ if cell.parse::<f64>().is_ok() => "number",
        _ if cell.parse::<NaiveDate>().is_ok() => "date",
        _ if NaiveDateTime::parse_from_str(cell, "%Y-%m-%d %H:%M:%S%.f").is_ok() => "time",
        _ => "text",
    };
    let of_column =
        |at: usize| answer[1..].iter().map(|row| &row[at]).find(|cell| !cell.is_empty()).map_or("null", kind);
    (0..answer[0].len()).map(of_column).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_notebooks_sql_gives_what_they_show() {
    let house = world().await;
    let mut asked = 0;
    for name in ["who-can-i-reach", "why-is-coverage-falling", "did-the-campaign-work"] {
        let path = of_repository(&format!("docs/notebooks/{name}.md"));
        let mut page: Vec<String> = std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
        for block in blocks(&page).iter().rev() {
            let outcome = house.lianbo(&["sql", &block.sql, "--format", "csv", "--raw"]).await.ends(0);
            let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(outcome.stdout.as_bytes());
            let answer: Vec<Vec<String>> =
                reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect();
            assert!(answer.len() > 1, "{name}: no row comes of\n{}", block.sql);
            if is_to_be_written() {
                page.splice(block.lines.clone(), table(&answer));
                continue;
            }
            assert_eq!(answer[0], block.shown[0], "{name}: the columns of\n{}", block.sql);
            assert_eq!(kinds(&answer), kinds(&block.shown), "{name}: the values of\n{}", block.sql);
            asked += 1;
        }
        if is_to_be_written() {
            std::fs::write(&path, page.join("\n") + "\n").unwrap();
        }
    }
    assert!(asked >= 12 || is_to_be_written(), "{asked} blocks were asked");
}

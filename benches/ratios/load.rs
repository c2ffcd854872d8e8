//! Loading an export of five million users beside what somebody would write for it in bare DuckDB: the file read with its
//! rejects, each openid once with its newest row, written as Parquet.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use lianbo::engine::{Engine, Params};

use crate::Figure;
use crate::join::copy;
use crate::space::{Space, median, simulator};

/// As which this program is started to be bare DuckDB.
pub const BARE: &str = "bare-load";
const ROUNDS: usize = 3;
const LIMIT: &str = "400MB";
/// Bare DuckDB ends with less: "could not allocate block".
const BARE_LIMIT: &str = "4GB";
const MOST_MB: f64 = 500.0;

/// Every hundredth line says again, later, who an earlier one is; every hundred-thousandth has a field too few.
const LINES: &str = "
select 'm' || substr(sha256('mp' || person), 1, 27) as openid, 'u' || substr(sha256('un' || person), 1, 27) as unionid,
       '用户' || person as nickname, 'city ' || (person % 40) as city,
       strftime(timestamp '2024-01-01' + interval (person % 700) day, '%Y-%m-%d %H:%M:%S') as registered_at,
       strftime(timestamp '2026-01-01' + interval (i // 60) second, '%Y-%m-%d %H:%M:%S') as last_login,
       cast(person * 7919 % 100000 as varchar) as points
from (select i, if(i % 100 = 99, i - 50, i) as person from range({rows}) as t(i))";

pub async fn measure(rows: u64) -> Vec<Figure> {
    let world = simulator(1_000).await;
    let space = Space::new(&world, LIMIT);
    let file = space.folder.path().join("data/exports/mall/users.csv");
    write_export(&space, &file, rows);
    space.write(
        "pipelines/load.toml",
        "[stages.mall_users]\nkind = \"load_users\"\nsource.files = \"data/exports/mall/*.csv\"\ncolumns = { updated_at = \"last_login\" }\n",
    );
    let (mut ours, mut others, mut peak) = (Vec::new(), Vec::new(), 0);
    for round in 0..ROUNDS {
        others.push(bare_apart(&space, &file));
        // A file that is as it was is not loaded again.
        append(&file, round);
        let run = tokio::task::block_in_place(|| space.run("load"));
        ours.push(run.stage_seconds("mall_users"));
        peak = peak.max(run.peak_bytes);
    }
    let ratio = median(others.iter().zip(&ours).map(|(other, ours)| other / ours).collect());
    let size = std::fs::metadata(&file).expect("the export is there").len() / 1_000_000;
    vec![
        Figure {
            name: format!("load of a csv of {rows} rows, {size} MB, `memory_limit = \"{LIMIT}\"`, medians of {ROUNDS}"),
            ours: median(ours),
            bare: median(others),
            unit: "s",
            ratio,
            wanted: "≥ 0.7 of bare DuckDB's speed",
            is_met: ratio >= 0.7,
        },
        memory(peak),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "sizes for people")]
fn memory(peak: u64) -> Figure {
    let peak = peak as f64 / 1e6;
    Figure {
        name: "the same: peak memory of the whole process".to_owned(),
        ours: peak,
        bare: MOST_MB,
        unit: "MB",
        ratio: peak / MOST_MB,
        wanted: "< 500 MB",
        is_met: peak < MOST_MB,
    }
}

fn write_export(space: &Space, file: &Path, rows: u64) {
    std::fs::create_dir_all(file.parent().expect("in a folder")).expect("a folder");
    let session = engine(space.folder.path()).session().expect("a session");
    let lines = LINES.replace("{rows}", &rows.to_string());
    copy(&session, &lines, (file, "format csv, header"));
    for line in 0..rows / 100_000 {
        append(file, usize::try_from(line).expect("few"));
    }
}

/// A line with a field too few.
fn append(file: &Path, number: usize) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().append(true).open(file).expect("the export is there");
    writeln!(file, "broken{number},line").expect("a line more");
}

fn engine(root: &Path) -> Engine {
    Engine::new(BARE_LIMIT, 0, root.join("spill"), chrono_tz::Asia::Shanghai)
}

fn bare_apart(space: &Space, file: &Path) -> f64 {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.arg(BARE).arg(space.folder.path()).arg(file);
    let output = command.stderr(Stdio::inherit()).output().expect("bare DuckDB runs");
    assert!(output.status.success(), "bare DuckDB failed");
    let seconds = String::from_utf8_lossy(&output.stdout).trim().parse().expect("bare DuckDB says its seconds");
    eprintln!("  bare: {seconds:.3} s");
    seconds
}

/// The whole life of a bare DuckDB: `ROOT FILE`.
pub fn bare_alone(arguments: &[String]) {
    let [root, file] = arguments else { panic!("{BARE} ROOT FILE") };
    let (root, file) = (PathBuf::from(root), PathBuf::from(file));
    let began = Instant::now();
    let session = engine(&root).session().expect("a session");
    session
        .run(&format!(
            "create view lines as select * from read_csv('{}', header = true, all_varchar = true, store_rejects = true)",
            file.display()
        ))
        .expect("the export is read");
    let newest = "select * exclude (nth) from (
                      select *, row_number() over (partition by openid order by last_login desc) as nth from lines
                  ) where nth = 1";
    copy(&session, newest, (&root.join("bare.parquet"), "format parquet"));
    let rejected = session.count("select count(*) from reject_errors", &Params::new()).expect("rejects");
    assert!(rejected > 0, "the broken lines were not rejected");
    println!("{}", began.elapsed().as_secs_f64());
}

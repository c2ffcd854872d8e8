//! The house rules that a compiler does not hold: who may know whom, and how long a file may be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Rooms of the hands' floor and below: what they may know of the rest of the crate.
const LOW_ROOMS: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("crash", &[]),
    ("redact", &[]),
    ("domain", &["clock", "redact"]),
    ("template", &HOUSEHOLD),
    ("engine", &HOUSEHOLD),
    ("exports", &HOUSEHOLD),
    ("lake", &HOUSEHOLD),
    ("ledger", &HOUSEHOLD),
    ("pace", &HOUSEHOLD),
    ("wechat", &HOUSEHOLD),
    ("simulator", &[]),
];
const HOUSEHOLD: [&str; 5] = ["domain", "clock", "crash", "redact", "template"];

/// Crates that only some rooms may name.
const TAMED: &[(&str, &[&str])] = &[
    ("duckdb", &["engine", "lake/catalog"]),
    ("sqlx", &["ledger", "exports/database"]),
    ("reqwest", &["wechat", "scheduler/alert", "exports/bucket"]),
    ("ring", &["exports/bucket"]),
    ("axum", &["serve", "simulator"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("indicatif", &["cli"]),
    ("polars", &["lake"]),
    ("calamine", &["exports"]),
    ("zip", &["exports"]),
];

/// What only the clocks may call.
const BANNED: &[&str] =
    &["Utc::now(", "Local::now(", "Instant::now(", "SystemTime::now(", "time::sleep(", "thread::sleep(", "rand::rng("];
const CLOCKS: [&str; 2] = ["clock", "simulator/clock"];

const MOST_LINES: usize = 600;

/// Every source by its room's name (`ledger/runs`), without what is compiled for its own tests only.
fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = BTreeMap::new();
    for path in rust_files(&root) {
        let name = path.strip_prefix(&root).unwrap().with_extension("");
        let name = name.to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        if name.ends_with("/tests") || name.ends_with("/testing") {
            continue;
        }
        let own = text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
        sources.insert(name, own);
    }
    assert!(sources.len() > 100, "{} sources were found", sources.len());
    sources
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found
}

fn is_in(name: &str, room: &str) -> bool {
    name == room || name.strip_prefix(room).is_some_and(|rest| rest.starts_with('/'))
}

/// The code of a source, without comments.
fn code(text: &str) -> String {
    text.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line }).collect::<Vec<_>>().join("\n")
}

/// Whether a path of the crate of that name begins somewhere (`duckdb::`), and not within a longer word.
fn names_crate(code: &str, name: &str) -> bool {
    let path = format!("{name}::");
    code.match_indices(&path).any(|(at, _)| {
        let before = code[..at].chars().next_back().unwrap_or(' ');
        !(before.is_alphanumeric() || before == '_' || before == ':')
    })
}

/// The rooms that a source names as `crate::ROOM`, also in a list in braces.
fn rooms_named(code: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (at, start) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back().unwrap_or(' ');
        if before.is_alphanumeric() || before == '_' || before == '$' {
            continue;
        }
        let rest = &code[at + start.len()..];
        let word =
            |text: &str| -> String { text.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
        match rest.strip_prefix('{') {
            None => rooms.push(word(rest)),
            Some(list) => {
                let mut depth = 0;
                let mut item = String::new();
                for letter in list.chars() {
                    match letter {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => rooms.push(word(&std::mem::take(&mut item))),
                        _ if depth == 0 => item.push(letter),
                        _ => {}
                    }
                }
                rooms.push(word(&item));
            }
        }
    }
    rooms.retain(|room| room.chars().next().is_some_and(char::is_lowercase));
    rooms
}

#[test]
fn the_arrows_go_down() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        let Some((room, known)) = LOW_ROOMS.iter().find(|(room, _)| is_in(&name, room)) else { continue };
        for named in rooms_named(&code(&text)) {
            if named != *room && !known.contains(&named.as_str()) {
                wrong.push(format!("{name} knows {named}"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn the_higher_floors_are_known_from_above_alone() {
    // From the top; a room knows what stands behind it, and not what stands before it.
    let floors = ["cli", "serve", "app", "scheduler", "stage"];
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        let Some(floor) = floors.iter().position(|room| is_in(&name, room)) else { continue };
        let above = &floors[..floor];
        let named = rooms_named(&code(&text));
        wrong.extend(
            named.iter().filter(|room| above.contains(&room.as_str())).map(|room| format!("{name} knows {room}")),
        );
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn each_large_crate_is_known_to_its_own_rooms_alone() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        let code = code(&text);
        for (tamed, rooms) in TAMED {
            if names_crate(&code, tamed) && !rooms.iter().any(|room| is_in(&name, room)) {
                wrong.push(format!("{name} names {tamed}"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn only_the_clocks_read_the_time_wait_and_draw() {
    let mut wrong = Vec::new();
    for (name, text) in sources().into_iter().filter(|(name, _)| !CLOCKS.contains(&name.as_str())) {
        let code = code(&text);
        wrong.extend(BANNED.iter().filter(|call| code.contains(**call)).map(|call| format!("{name} calls {call})")));
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn no_file_is_too_long_and_each_says_what_it_is_for() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        let lines = text.lines().count();
        if lines > MOST_LINES {
            wrong.push(format!("{name} has {lines} lines"));
        }
        if !text.starts_with("//!") {
            wrong.push(format!("{name} does not say what it is for"));
        }
        if name.ends_with("mod") {
            wrong.push(format!("{name}: a room's file stands beside its folder"));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn the_reader_of_sources_sees_what_it_should() {
    let code = "use crate::{clock::Clock, domain::{A, b}, ledger};\nlet x = crate::lake::Part; my_duckdb::x; duckdb::y";
    assert_eq!(rooms_named(code), ["clock", "domain", "ledger", "lake"]);
    assert!(
        names_crate(code, "duckdb") && !names_crate("my_duckdb::x", "duckdb") && !names_crate("a::duckdb::x", "duckdb")
    );
    assert!(is_in("ledger/runs", "ledger") && !is_in("ledgers", "ledger"));
}

/// `engine/library.rs` names each function of DuckDB that the crate calls; one that is missing there is linked, and then
/// every command waits for the whole library at its start.
#[cfg(all(not(feature = "bundled"), target_os = "linux", target_arch = "x86_64", target_env = "gnu"))]
#[test]
fn the_program_starts_without_duckdb_which_is_opened_when_it_is_needed() {
    let traced =
        std::process::Command::new(env!("CARGO_BIN_EXE_lianbo")).env("LD_TRACE_LOADED_OBJECTS", "1").output().unwrap();
    let libraries = String::from_utf8(traced.stdout).unwrap();
    assert!(libraries.contains("libc.so"), "the loader lists what it loads: {libraries}");
    assert!(!libraries.contains("libduckdb"), "{libraries}");
}

//! What stands in docs/ is so: the page of tables is the one the code gives.
//!
//! With `LIANBO_WRITE_DOCS` set it is written instead (`make docs`).

use std::path::{Path, PathBuf};

use lianbo::domain::tables::markdown;

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

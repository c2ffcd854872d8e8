//! Which keys a pattern means: those that it would mean as paths of files.
//!
//! `*` stays within a folder and `**` does not; what is called like a folder (`…/`) is no file. A folder that is called like
//! a Parquet file stands for those in it, without what writers note for themselves (`_temporary`, `.crc`).

use glob::{MatchOptions, Pattern};

const AS_PATHS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };
const PARQUET: &str = ".parquet";

/// Whether a key is meant.
pub(super) fn is_meant(pattern: &Pattern, key: &str) -> bool {
    if key.ends_with('/') {
        return false;
    }
    pattern.matches_with(key, AS_PATHS) || (key.ends_with(PARQUET) && is_in_meant_folder(pattern, key))
}

fn is_in_meant_folder(pattern: &Pattern, key: &str) -> bool {
    key.match_indices('/').any(|(at, _)| {
        let (folder, inside) = (&key[..at], &key[at + 1..]);
        let is_note = || inside.split('/').any(|name| name.starts_with(['_', '.']));
        folder.ends_with(PARQUET) && pattern.matches_with(folder, AS_PATHS) && !is_note()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_the_keys_that_it_would_mean_as_paths() {
        for (pattern, key, is) in [
            ("exports/*.csv", "exports/a.csv", true),
            ("exports/*.csv", "exports/old/a.csv", false),
            ("exports/**/*.csv", "exports/old/a.csv", true),
            ("exports/**/*.csv", "exports/a.csv", true),
            ("exports/dt=*/users-*.csv.gz", "exports/dt=2026-11-24/users-1.csv.gz", true),
            ("exports/dt=*/users-*.csv.gz", "exports/dt=1/x/users-1.csv.gz", false),
            ("exports/*", "exports/", false),
            ("exports/*", "exports/.hidden.csv", true),
            ("exports/*", "exports/users.parquet/day=1/part-0.parquet", true),
            ("exports/users.parquet", "exports/users.parquet/part-0.parquet", true),
            ("exports/users.parquet", "exports/users.parquet/_temporary/part-0.parquet", false),
            ("exports/users.parquet", "exports/users.parquet/_SUCCESS", false),
            ("exports/users.parquet", "exports/users.parquet2/part-0.parquet", false),
            ("exports/users.csv", "exports/users.csv.bak", false),
        ] {
            assert_eq!(is_meant(&Pattern::new(pattern).unwrap(), key), is, "{pattern} {key}");
        }
    }
}

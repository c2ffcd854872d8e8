//! The mini program's user table as its owner would export it: a CSV of the same people, from the seed alone.
//!
//! The first followers of the world are matched from its end: of `followers` people the last `matched_users` are
//! users too, and the other users follow nobody. All properties are drawn by person, so that this order shows nowhere.

use std::io::Write;

use chrono::{DateTime, FixedOffset};

use super::people::{People, PeopleOptions, Trait, mix};

const TWO_YEARS_SECONDS: u64 = 2 * 365 * 86_400;
const SHANGHAI_SECONDS: i32 = 8 * 3600;

/// What the export of a mini program holds.
#[derive(Debug, Clone)]
pub struct UsersOptions {
    pub seed: u64,
    pub app_id: String,
    pub miniprogram_app_id: String,
    /// Followers of the account in the same world.
    pub followers: u64,
    pub users: u64,
    /// Of the users, those who follow the account.
    pub matched_users: u64,
    /// The part of the users whose unionid was never learnt.
    pub blank_unionid_share: f64,
    /// One in so many users stands in the file twice, the older row with an older login; 0 for none.
    pub repeated_row_every: u64,
}

impl Default for UsersOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            app_id: "wx0000000000000000".to_owned(),
            miniprogram_app_id: "wx1111111111111111".to_owned(),
            followers: 20_000,
            users: 30_000,
            matched_users: 16_000,
            blank_unionid_share: 0.02,
            repeated_row_every: 1_000,
        }
    }
}

impl UsersOptions {
    /// The indices of the users.
    pub fn indices(&self) -> std::ops::Range<u64> {
        let matched = self.matched_users.min(self.users).min(self.followers);
        let first = self.followers - matched;
        first..first + self.users
    }

    /// Whether the export has this user's unionid.
    pub(super) fn holds_unionid(&self, people: &People, index: u64) -> bool {
        !people.happens(index, Trait::ExportedUnionid, self.blank_unionid_share)
    }

    /// Followers and users together, everybody once.
    pub fn people(&self) -> u64 {
        self.indices().end.max(self.followers)
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// Lines below the header.
    pub rows: u64,
    pub users: u64,
    /// Users with a unionid who follow the account.
    pub matched: u64,
}

/// Writes `openid,unionid,nickname,city,registered_at,last_login`, times in Shanghai. The same options give the same
/// bytes.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_users_csv(out: impl Write, options: &UsersOptions) -> csv::Result<Exported> {
    let people = People::new(&PeopleOptions {
        seed: options.seed,
        bound_share: 1.0,
        room: options.people(),
        app_id: &options.app_id,
        miniprogram_app_id: &options.miniprogram_app_id,
    });
    let mut file = csv::Writer::from_writer(out);
    file.write_record(["openid", "unionid", "nickname", "city", "registered_at", "last_login"])?;
    let mut exported = Exported { rows: 0, users: options.users, matched: 0 };
    let indices = options.indices();
    // Shuffled, so that neighbours in the file are strangers to each other.
    for position in 0..people.capacity() {
        let index = people.at_position(position);
        if !indices.contains(&index) {
            continue;
        }
        let row = Row::of(&people, index, options);
        exported.matched += u64::from(index < options.followers && !row.unionid.is_empty());
        if people.one_in(index, Trait::RepeatedRow, options.repeated_row_every) {
            row.before().write(&mut file)?;
            exported.rows += 1;
        }
        row.write(&mut file)?;
        exported.rows += 1;
    }
    file.flush()?;
    Ok(exported)
}

struct Row {
    openid: String,
    unionid: String,
    nickname: &'static str,
    city: &'static str,
    registered_at_seconds: i64,
    last_login_seconds: i64,
}

impl Row {
    fn of(people: &People, index: u64, options: &UsersOptions) -> Self {
        let registered_at_seconds = people.before_the_beginning(index, Trait::Registered, TWO_YEARS_SECONDS);
        let since = people.before_the_beginning(index, Trait::LastLogin, TWO_YEARS_SECONDS);
        Self {
            openid: people.mp_openid(index),
            unionid: if options.holds_unionid(people, index) { people.unionid(index) } else { String::new() },
            nickname: people.nickname(index),
            city: people.city(index),
            registered_at_seconds,
            last_login_seconds: since.max(registered_at_seconds),
        }
    }

    /// The same person some weeks earlier.
    fn before(&self) -> Self {
        let weeks = 1 + i64::try_from(mix(self.last_login_seconds.unsigned_abs()) % 8).expect("below eight");
        Self {
            openid: self.openid.clone(),
            unionid: self.unionid.clone(),
            last_login_seconds: self.last_login_seconds - weeks * 7 * 86_400,
            ..*self
        }
    }

    fn write<W: Write>(&self, file: &mut csv::Writer<W>) -> csv::Result<()> {
        file.write_record([
            &self.openid,
            &self.unionid,
            self.nickname,
            self.city,
            &local_time(self.registered_at_seconds),
            &local_time(self.last_login_seconds),
        ])
    }
}

fn local_time(at_seconds: i64) -> String {
    let zone = FixedOffset::east_opt(SHANGHAI_SECONDS).expect("eight hours is a valid offset");
    let at = DateTime::from_timestamp(at_seconds, 0).unwrap_or_default().with_timezone(&zone);
    at.format("%Y-%m-%d %H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn options() -> UsersOptions {
        UsersOptions {
            followers: 2_000,
            users: 3_000,
            matched_users: 1_500,
            repeated_row_every: 100,
            ..Default::default()
        }
    }

    #[test]
    fn the_export_has_every_user_the_asked_overlap_and_some_rows_twice() {
        let mut file = Vec::new();
        let exported = write_users_csv(&mut file, &options()).unwrap();
        let mut reader = csv::Reader::from_reader(file.as_slice());
        let mut rows: HashMap<String, u32> = HashMap::new();
        let mut blank = 0;
        for row in reader.records().map(Result::unwrap) {
            *rows.entry(row[0].to_owned()).or_default() += 1;
            blank += usize::from(row[1].is_empty());
        }
        assert_eq!(rows.len(), 3_000);
        assert!(rows.values().any(|times| *times == 2));
        assert!((20..120).contains(&blank), "{blank}");
        assert!((1_400..=1_500).contains(&exported.matched), "{}", exported.matched);
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_gives_others() {
        let write = |seed| {
            let mut file = Vec::new();
            write_users_csv(&mut file, &UsersOptions { seed, ..options() }).unwrap();
            file
        };
        assert_eq!(write(5), write(5));
        assert_ne!(write(5), write(6));
    }

    #[test]
    fn an_overlap_larger_than_either_side_is_the_smaller_side() {
        let options = UsersOptions { followers: 10, users: 100, matched_users: 50, ..UsersOptions::default() };
        assert_eq!((options.indices(), options.people()), (0..100, 100));
    }
}

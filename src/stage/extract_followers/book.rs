//! What is kept of a walk page by page: the page's file, who stood on it, and where it differs from the list before.
//!
//! A page is written before it is recorded; the rest is done while the next page is on its way: whether anybody on it was met
//! before, and joining pages into the parts that they will be, unless a row of theirs comes out otherwise (`assemble`). What a power
//! cut took of a page is found by the next start (`walk`); only a first night's pages, which are parts themselves, are waited
//! for.

use std::collections::BTreeMap;

use tokio::task::JoinHandle;

use super::merge::is_of_followers;
use super::roll::{Exceptions, Roll};
use crate::clock::to_micros;
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, ColumnType, Texts, Values};
use crate::lake::{Fingerprints, Lake, LakeError, PartColumn, WholeFile};
use crate::ledger::Walk;
use crate::stage::{StageContext, StageError};

/// Pages that become one part.
pub(super) const PAGES_A_PART: u32 = 32;

/// Parts that were joined while the walk went on: the number of a part, from 1, and its file, relative to the lake.
pub(super) type Joined = BTreeMap<u32, String>;

/// What the book of a whole walk says.
pub(super) struct Ended {
    /// Nobody stands on two pages, for certain.
    pub is_distinct: bool,
    pub exceptions: Option<Exceptions>,
    pub joined: Joined,
}

/// The pages of a walk so far.
pub(super) struct Book {
    lake: Lake,
    account: AccountName,
    /// Microseconds since 1970.
    walked_at: i64,
    roll: Option<Roll>,
    /// Fingerprints of everybody so far, after the last page.
    met: JoinHandle<Result<Fingerprints, LakeError>>,
    /// The pages of the part that is being filled.
    filling: Vec<String>,
    joining: Option<JoinHandle<Result<Joined, LakeError>>>,
}

impl Book {
    /// The book of a walk as it stands in the ledger: its recorded pages are read again.
    ///
    /// # Errors
    ///
    /// [`StageError`] when they cannot be read.
    pub async fn begin(cx: &StageContext<'_>, walk: &Walk) -> Result<Self, StageError> {
        let lake = cx.hands.lake.clone();
        let table = cx.stage.table.as_ref().expect("an extract stage has a table");
        let known = cx.visible.slice(table.as_str(), walk.account.as_str());
        let walked_at = to_micros(walk.started_at);
        let roll = known.map(|known| {
            let parts = known.parts.iter().filter(|part| is_of_followers(part)).cloned().collect();
            Roll::begin(lake.clone(), parts, walked_at)
        });
        let pages = cx.hands.ledger.walk_pages(walk.id).await?;
        let paths: Vec<String> = pages.into_iter().map(|page| page.path).collect();
        let account = walk.account.clone();
        let (lake, roll, met) = tokio::task::spawn_blocking(move || read_again(lake, roll, &paths)).await??;
        let met = tokio::spawn(async { Ok(met) });
        Ok(Self { lake, account, walked_at, roll, met, filling: Vec::new(), joining: None })
    }

    /// Writes the next page to `path`.
    ///
    /// # Errors
    ///
    /// [`StageError`]; nothing is left under the name then.
    pub async fn write(mut self, number: u32, path: &str, page: Texts) -> Result<Self, StageError> {
        let path = path.to_owned();
        let (book, file, page, path) = tokio::task::spawn_blocking(move || {
            let first_seen = self.roll.as_mut().map(|roll| roll.meet(number, &page));
            let file = self.write_page(&path, &page, first_seen)?;
            Ok::<_, LakeError>((self, file, page, path))
        })
        .await??;
        let mut met = book.met.await??;
        let is_first_night = book.roll.is_none();
        let noting = tokio::task::spawn_blocking(move || {
            page.iter().flatten().for_each(|openid| met.note(openid));
            if is_first_night {
                file.make_durable()?;
            }
            Ok(met)
        });
        Self { met: noting, ..book }.join(number, path).await
    }

    /// Joins a part's pages when the last of them is there.
    async fn join(mut self, number: u32, path: String) -> Result<Self, StageError> {
        if self.roll.as_ref().is_some_and(|roll| !roll.is_lost()) {
            self.filling.push(path);
        }
        if !number.is_multiple_of(PAGES_A_PART) {
            return Ok(self);
        }
        let pages = std::mem::take(&mut self.filling);
        if pages.len() == PAGES_A_PART as usize {
            let mut joined = self.joined().await?;
            let (lake, part) = (self.lake.clone(), number / PAGES_A_PART);
            let target = format!("{}-joined-{part:04}.parquet", pages[0].trim_end_matches(".parquet"));
            self.joining = Some(tokio::task::spawn_blocking(move || {
                if lake.join(&pages, &target)?.is_some() {
                    joined.insert(part, target);
                }
                Ok(joined)
            }));
        }
        Ok(self)
    }

    async fn joined(&mut self) -> Result<Joined, StageError> {
        match self.joining.take() {
            Some(joining) => Ok(joining.await??),
            None => Ok(Joined::new()),
        }
    }

    /// # Errors
    ///
    /// [`StageError`] when a page is not on the disk, or pages could not be joined.
    pub async fn end(mut self) -> Result<Ended, StageError> {
        let joined = self.joined().await?;
        let (mut met, roll) = (self.met.await??, self.roll);
        let rest = tokio::task::spawn_blocking(move || roll.and_then(Roll::end));
        let is_distinct = tokio::task::spawn_blocking(move || met.are_distinct()).await?;
        Ok(Ended { is_distinct, exceptions: rest.await?, joined })
    }

    /// As it stands, a page is a part of the table: also of a first night's, where it has nothing to differ from.
    fn write_page(
        &self,
        path: &str,
        openids: &Texts,
        first_seen: Option<Vec<Option<i64>>>,
    ) -> Result<WholeFile, LakeError> {
        let schema = table_spec("followers").expect("followers is declared").part_schema();
        let mut writer = self.lake.writer_of_ids(path, &schema)?;
        let columns = vec![
            ("account", PartColumn::Same(self.account.as_str())),
            ("openid", PartColumn::Texts(openids)),
            ("first_seen_at", times(first_seen, self.walked_at)),
            ("last_seen_at", PartColumn::SameTime(self.walked_at)),
            ("active", PartColumn::SameBoolean(true)),
        ];
        writer.write_columns(openids.len(), columns)?;
        writer.finish_soon().map(|(_, file)| file)
    }
}

fn times(times: Option<Vec<Option<i64>>>, otherwise: i64) -> PartColumn<'static> {
    match times {
        Some(times) if times.iter().any(|time| *time != Some(otherwise)) => {
            PartColumn::Values(Values::Timestamp(times))
        }
        _ => PartColumn::SameTime(otherwise),
    }
}

/// Reads recorded pages again, in their order. One that was written beside another list than the roll's ends the comparing.
fn read_again(
    lake: Lake,
    mut roll: Option<Roll>,
    pages: &[String],
) -> Result<(Lake, Option<Roll>, Fingerprints), LakeError> {
    const COLUMNS: [(&str, ColumnType); 2] = [("openid", ColumnType::Text), ("first_seen_at", ColumnType::Timestamp)];
    let mut met = lake.fingerprints();
    for (number, path) in (1..).zip(pages) {
        let rows = usize::try_from(lake.rows_of(path)?).unwrap_or(usize::MAX);
        let mut page = lake.read_rows(path, &COLUMNS, 0..rows)?;
        let (openids, first_seen) = (page.texts(0), page.integers(1));
        openids.iter().flatten().for_each(|openid| met.note(openid));
        roll = roll.and_then(|mut roll| (roll.meet(number, &openids) == first_seen).then_some(roll));
        lake.make_durable(path)?;
    }
    Ok((lake, roll, met))
}

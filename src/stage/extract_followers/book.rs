//! What is kept of a walk page by page: the part of the table that its pages become, who stood on them, and where they differ from
//! the list before.
//!
//! All is done while the next page is on its way: comparing, writing the page as a row group, and noting whom it names. A first
//! night's pages are parts each for itself, since whoever asks for details waits for them, and are waited for until they are on the
//! disk; later [`PAGES_A_PART`] are one part. What a power cut took of a part is found by the next start (`walk`).

use std::collections::HashSet;

use tokio::task::JoinHandle;

use super::merge::is_of_followers;
use super::roll::{Exceptions, Roll};
use crate::clock::to_micros;
use crate::domain::tables::table_spec;
use crate::domain::{AccountName, ColumnType, OpenId, Texts, Values};
use crate::lake::{Fingerprints, Lake, LakeError, Noted, PartColumn, PartWriter, WholeFile};
use crate::ledger::Walk;
use crate::stage::{StageContext, StageError};
use crate::wechat::FollowerPage;

/// Pages that become one part.
pub(super) const PAGES_A_PART: u32 = 32;

/// What the book of a whole walk says.
pub(super) struct Ended {
    /// Nobody stands on two pages, for certain.
    pub is_distinct: bool,
    pub exceptions: Option<Exceptions>,
}

/// A part that is whole, to be recorded.
pub(super) struct WrittenPart {
    pub first_page: u32,
    pub last_page: u32,
    /// Relative to the lake.
    pub path: String,
    pub openids: u64,
    /// As its last page says.
    pub next_openid: Option<OpenId>,
    pub total: Option<u64>,
}

/// What recorded pages were like.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Who stands last on each: the cursor after it.
    pub cursors: HashSet<String>,
    /// Openids of the longest.
    pub largest: u64,
}

/// The pages of a walk so far.
pub(super) struct Book {
    lake: Lake,
    account: AccountName,
    /// Where its parts are, relative to the lake.
    folder: String,
    /// Microseconds since 1970.
    walked_at: i64,
    roll: Option<Roll>,
    /// Everybody so far, after the last page.
    met: JoinHandle<Met>,
    seen: Seen,
    /// Pages and parts that are written, the open part among them.
    pages: u32,
    parts: u32,
    open: Option<OpenPart>,
    /// The part before it, on its way to the disk.
    reaching_disk: Option<JoinHandle<Result<(), LakeError>>>,
}

/// Everybody who was met.
enum Met {
    /// Anybody may have come twice.
    FirstNight(Fingerprints),
    /// Whoever stands where they stood last night came there once: only those who do not have to be looked for among all.
    LaterNight(Noted),
}

impl Met {
    fn note(&mut self, openids: &Texts) {
        match self {
            Self::FirstNight(prints) => openids.iter().flatten().for_each(|openid| prints.note(openid)),
            Self::LaterNight(noted) => openids.iter().flatten().for_each(|openid| noted.note(openid)),
        }
    }

    /// Whether nobody came twice, for certain. Blocking.
    fn are_distinct(self, exceptions: Option<&Exceptions>) -> bool {
        match self {
            Self::FirstNight(mut prints) => prints.are_distinct(),
            Self::LaterNight(mut noted) => exceptions
                .is_some_and(|exceptions| !noted.may_repeat(exceptions.met.iter().map(|met| met.openid.as_str()))),
        }
    }
}

/// A part that is being filled.
struct OpenPart {
    writer: PartWriter,
    so_far: WrittenPart,
}

impl OpenPart {
    fn pages(&self) -> u32 {
        self.so_far.last_page + 1 - self.so_far.first_page
    }
}

impl Book {
    /// The book of a walk as it stands in the ledger: its recorded parts are read again.
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
        let parts = cx.hands.ledger.walk_parts(walk.id).await?;
        let paths: Vec<String> = parts.into_iter().map(|part| part.path).collect();
        let parts = u32::try_from(paths.len()).unwrap_or(u32::MAX);
        let again = tokio::task::spawn_blocking(move || read_again(&lake, roll, &paths).map(|read| (lake, read)));
        let (lake, (roll, met, seen)) = again.await??;
        Ok(Self {
            lake,
            seen,
            account: walk.account.clone(),
            folder: format!("work/walks/{}/{}", walk.account, walk.id),
            walked_at,
            roll,
            met: tokio::spawn(async { met }),
            pages: walk.pages,
            parts,
            open: None,
            reaching_disk: None,
        })
    }

    /// What the pages were like that were recorded when it was begun; once.
    pub fn seen(&mut self) -> Seen {
        std::mem::take(&mut self.seen)
    }

    /// Whether the next page begins a part.
    pub fn begins_part(&self) -> bool {
        self.open.as_ref().is_none_or(|open| open.pages() == PAGES_A_PART)
    }

    /// Writes the next page; gives the part that is whole with it, or was before it.
    ///
    /// # Errors
    ///
    /// [`StageError`]; nothing is left under the name then.
    pub async fn write(mut self, page: FollowerPage) -> Result<(Self, Option<WrittenPart>), StageError> {
        let (mut own, ended, page) = tokio::task::spawn_blocking(move || {
            let before = if self.begins_part() { self.close()? } else { None };
            self.append(&page)?;
            let is_first_night = self.roll.is_none();
            let ended = if is_first_night { self.close()? } else { before };
            Ok::<_, LakeError>((self, ended, page))
        })
        .await??;
        let mut met = own.met.await?;
        own.met = tokio::task::spawn_blocking(move || {
            met.note(&page.openids);
            met
        });
        own.reaching_disk(ended).await
    }

    /// Ends the part that is being filled, if there is one.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub async fn end_part(mut self) -> Result<(Self, Option<WrittenPart>), StageError> {
        let (own, ended) = tokio::task::spawn_blocking(move || {
            let ended = self.close()?;
            Ok::<_, LakeError>((self, ended))
        })
        .await??;
        own.reaching_disk(ended).await
    }

    /// # Errors
    ///
    /// [`StageError`] when a part is not on the disk.
    pub async fn end(self) -> Result<Ended, StageError> {
        let (met, roll) = (self.met.await?, self.roll);
        let looking = move || {
            let exceptions = roll.and_then(Roll::end);
            Ended { is_distinct: met.are_distinct(exceptions.as_ref()), exceptions }
        };
        let ended = tokio::task::spawn_blocking(looking).await?;
        if let Some(reaching) = self.reaching_disk {
            reaching.await??;
        }
        Ok(ended)
    }

    /// Sees to it that a part is on the disk some time, and that the one before it is.
    async fn reaching_disk(
        mut self,
        ended: Option<(WrittenPart, WholeFile)>,
    ) -> Result<(Self, Option<WrittenPart>), StageError> {
        let Some((part, file)) = ended else { return Ok((self, None)) };
        let now = tokio::task::spawn_blocking(move || file.make_durable());
        if let Some(before) = self.reaching_disk.replace(now) {
            before.await??;
        }
        Ok((self, Some(part)))
    }

    /// Compares a page and writes it, as a row group of the part that is being filled. Blocking.
    ///
    /// As it stands it is rows of the table: also of a first night's, where it has nothing to differ from.
    fn append(&mut self, page: &FollowerPage) -> Result<(), LakeError> {
        self.pages += 1;
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.begin_part()?,
        };
        let place = (self.parts, usize::try_from(open.so_far.openids).unwrap_or(usize::MAX));
        let first_seen = self.roll.as_mut().map(|roll| roll.meet(place, &page.openids));
        let columns = vec![
            ("account", PartColumn::Same(self.account.as_str())),
            ("openid", PartColumn::Texts(&page.openids)),
            ("first_seen_at", times(first_seen, self.walked_at)),
            ("last_seen_at", PartColumn::SameTime(self.walked_at)),
            ("active", PartColumn::SameBoolean(true)),
        ];
        open.writer.write_columns(page.openids.len(), columns)?;
        open.so_far.last_page = self.pages;
        open.so_far.openids += u64::try_from(page.openids.len()).unwrap_or(u64::MAX);
        (open.so_far.next_openid, open.so_far.total) = (page.next_openid.clone(), page.total);
        self.open = Some(open);
        Ok(())
    }

    fn begin_part(&mut self) -> Result<OpenPart, LakeError> {
        let path = format!("{}/page-{:05}.parquet", self.folder, self.pages);
        let schema = table_spec("followers").expect("followers is declared").part_schema();
        let writer = self.lake.writer_of_ids(&path, &schema)?;
        self.parts += 1;
        let (first_page, last_page) = (self.pages, self.pages);
        let so_far = WrittenPart { first_page, last_page, path, openids: 0, next_openid: None, total: None };
        Ok(OpenPart { writer, so_far })
    }

    fn close(&mut self) -> Result<Option<(WrittenPart, WholeFile)>, LakeError> {
        let Some(OpenPart { writer, so_far }) = self.open.take() else { return Ok(None) };
        let (_, file) = writer.finish_soon()?;
        Ok(Some((so_far, file)))
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

/// Reads recorded parts again, in their order, page by page. One that was written beside another list than the roll's ends the
/// comparing.
fn read_again(lake: &Lake, mut roll: Option<Roll>, parts: &[String]) -> Result<(Option<Roll>, Met, Seen), LakeError> {
    const COLUMNS: [(&str, ColumnType); 2] = [("openid", ColumnType::Text), ("first_seen_at", ColumnType::Timestamp)];
    let mut met = match roll {
        None => Met::FirstNight(lake.fingerprints()),
        Some(_) => Met::LaterNight(lake.noted()),
    };
    let mut seen = Seen::default();
    for (number, path) in (1..).zip(parts) {
        let mut from = 0;
        for rows in lake.group_rows(path)? {
            let mut page = lake.read_rows(path, &COLUMNS, from..from + rows)?;
            let (openids, first_seen) = (page.texts(0), page.integers(1));
            met.note(&openids);
            roll = roll.and_then(|mut roll| (roll.meet((number, from), &openids) == first_seen).then_some(roll));
            seen.largest = seen.largest.max(u64::try_from(rows).unwrap_or(u64::MAX));
            seen.cursors.extend(openids.iter().last().flatten().map(str::to_owned));
            from += rows;
        }
        lake.make_durable(path)?;
    }
    Ok((roll, met, seen))
}

//! The pages of a walk that have arrived and are not recorded yet, as they came: so that the next one can be asked for while they
//! are compared and written, many of them as one part. A process that was killed meanwhile finds them here and does not ask
//! again.
//!
//! Two files a walk, which take turns: the pages of a part stand in one, those of the next part in the other, and the first
//! is written over when its part is recorded (a file a page would have the file system look for room for it). A page is a line of
//! JSON that says what comes, a checksum of all of it, and the openids. What a kill or a power cut tore, and what is left of pages
//! before, is told by the checksum and by the numbers: only the pages that follow those the ledger has are pages.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use flate2::Crc;
use serde::{Deserialize, Serialize};

use crate::crash::{self, CrashPoint};
use crate::domain::{OpenId, Texts};
use crate::lake::{Lake, LakeError};
use crate::ledger::Walk;
use crate::wechat::FollowerPage;

#[derive(Serialize, Deserialize)]
struct Header {
    page: u32,
    total: Option<u64>,
    count: u64,
    next_openid: Option<String>,
    openids: usize,
    /// Of all openids together.
    bytes: usize,
    /// Of each openid: end to end where all are of one length, as nearly all are, else a line each.
    length: Option<usize>,
}

/// Where the next page is put.
#[derive(Debug, Clone)]
pub(super) struct Log {
    lake: Lake,
    /// Relative to the lake.
    folder: String,
    /// Which of the two files.
    file: usize,
    at: u64,
}

impl Log {
    /// The log of a walk, and the pages in it that come after those the walk has recorded. Blocking.
    pub fn open(lake: &Lake, walk: &Walk) -> (Self, Vec<FollowerPage>) {
        let mut log = Self { lake: lake.clone(), folder: folder(walk), file: 0, at: 0 };
        let mut found = HashMap::new();
        for file in 0..FILES.len() {
            let bytes = std::fs::read(log.path(file)).unwrap_or_default();
            let mut at = 0;
            while let Some((number, page, length)) = read(&bytes[at..]) {
                at += length;
                found.insert(number, (page, file, at));
            }
        }
        let mut pages = Vec::new();
        for number in walk.pages + 1.. {
            let Some((page, file, end)) = found.remove(&number) else { break };
            (log.file, log.at) = (file, u64::try_from(end).unwrap_or(u64::MAX));
            pages.push(page);
        }
        (log, pages)
    }

    /// Lets go of page `number` and all after it. Blocking.
    ///
    /// # Errors
    ///
    /// [`LakeError`] when a file cannot be cut short.
    pub fn take_back(lake: &Lake, walk: &Walk, number: u32) -> Result<(), LakeError> {
        let log = Self { lake: lake.clone(), folder: folder(walk), file: 0, at: 0 };
        for file in 0..FILES.len() {
            let path = log.path(file);
            let bytes = std::fs::read(&path).unwrap_or_default();
            let mut at = 0;
            while let Some((own, _, length)) = read(&bytes[at..]) {
                if own >= number {
                    let cut = || OpenOptions::new().write(true).open(&path)?.set_len(u64::try_from(at).unwrap_or(0));
                    cut().map_err(|source| LakeError::Write { path: path.clone(), source })?;
                    break;
                }
                at += length;
            }
        }
        Ok(())
    }

    /// Puts page `number` behind the one before; `begins_part`: over the pages of the part before last. Blocking.
    ///
    /// # Errors
    ///
    /// [`LakeError`] when it cannot be written.
    pub fn put(&mut self, number: u32, page: &FollowerPage, begins_part: bool) -> Result<(), LakeError> {
        if begins_part {
            (self.file, self.at) = (1 - self.file, 0);
        }
        let length = length_of_each(&page.openids);
        let text = match length {
            Some(_) => Cow::Borrowed(page.openids.parts().0),
            None => page.openids.iter().flatten().flat_map(|openid| [openid, "\n"]).collect(),
        };
        let header = Header {
            page: number,
            total: page.total,
            count: page.count,
            next_openid: page.next_openid.as_ref().map(|next| next.as_str().to_owned()),
            openids: page.openids.len(),
            bytes: text.len(),
            length,
        };
        let header = serde_json::to_string(&header).expect("a header is JSON");
        let line = format!("{header} {:08x}\n", checksum(&header, &text));
        let path = self.path(self.file);
        let write = || {
            std::fs::create_dir_all(path.parent().expect("it lies in a folder"))?;
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
            file.write_all_at(line.as_bytes(), self.at)?;
            file.write_all_at(text.as_bytes(), self.at + in_bytes(&line))
        };
        write().map_err(|source| LakeError::Write { path: path.clone(), source })?;
        self.at += in_bytes(&line) + in_bytes(&text);
        crash::pass(CrashPoint::AfterPageArrived);
        Ok(())
    }

    fn path(&self, file: usize) -> PathBuf {
        self.lake.absolute(&format!("{}/{}", self.folder, FILES[file]))
    }
}

const FILES: [&str; 2] = ["arrived-0", "arrived-1"];

fn folder(walk: &Walk) -> String {
    format!("work/walks/{}/{}", walk.account, walk.id)
}

fn in_bytes(text: &str) -> u64 {
    u64::try_from(text.len()).expect("a page is short")
}

/// The length of every one of them, if they have one.
fn length_of_each(openids: &Texts) -> Option<usize> {
    let (_, ends) = openids.parts();
    let length = *ends.first()?;
    ends.iter().zip(1..).all(|(end, place)| *end == length * place).then_some(length)
}

fn checksum(header: &str, text: &str) -> u32 {
    let mut sum = Crc::new();
    sum.update(header.as_bytes());
    sum.update(text.as_bytes());
    sum.sum()
}

/// The page that stands at the beginning of `bytes`: its number, it, and its bytes.
fn read(bytes: &[u8]) -> Option<(u32, FollowerPage, usize)> {
    let line = bytes.split_inclusive(|byte| *byte == b'\n').next()?;
    let (json, told) = std::str::from_utf8(line).ok()?.trim_end().rsplit_once(' ')?;
    let header: Header = serde_json::from_str(json).ok()?;
    let text = std::str::from_utf8(bytes[line.len()..].get(..header.bytes)?).ok()?;
    if u32::from_str_radix(told, 16) != Ok(checksum(json, text)) {
        return None;
    }
    let openids: Texts = match header.length {
        Some(length) => {
            let openid = |place: usize| text.get(place * length..(place + 1) * length);
            (0..header.openids).map(|place| openid(place).map(Some)).collect::<Option<_>>()?
        }
        None => text.lines().map(Some).collect(),
    };
    if openids.len() != header.openids {
        return None;
    }
    let page = FollowerPage {
        total: header.total,
        count: header.count,
        openids,
        next_openid: header.next_openid.map(OpenId::new),
        // An end is recorded at once.
        is_last: false,
    };
    Some((header.page, page, line.len() + header.bytes))
}

/// Removes what was put aside.
///
/// # Errors
///
/// [`LakeError::Remove`].
pub(super) fn remove(lake: &Lake, walk: &Walk) -> Result<(), LakeError> {
    // Of before there were two.
    let old = ["arrived"];
    FILES.iter().chain(&old).try_for_each(|file| lake.remove(&format!("{}/{file}", folder(walk))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::domain::{AccountName, RunId};

    fn walk(pages: u32) -> Walk {
        Walk {
            id: 7,
            account: AccountName::new("main"),
            run_id: RunId::new("r"),
            started_at: Timestamp::UNIX_EPOCH,
            finished_at: None,
            merged: false,
            pages,
            openids: 0,
            total: None,
            next_openid: None,
            restarts: 0,
        }
    }

    fn page(openids: &[&str]) -> FollowerPage {
        FollowerPage {
            total: Some(9),
            count: 2,
            openids: openids.iter().copied().map(Some).collect(),
            next_openid: openids.last().map(|last| OpenId::new(*last)),
            is_last: false,
        }
    }

    fn found(lake: &Lake, pages: u32) -> Vec<FollowerPage> {
        Log::open(lake, &walk(pages)).1
    }

    #[test]
    fn pages_are_found_that_follow_the_recorded_ones() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(folder.path());
        let (mut log, pages) = Log::open(&lake, &walk(2));
        assert!(pages.is_empty());
        let put = [&["oA", "oB"][..], &["oC"], &["oD", "oEE", "o"], &["oG"]].map(page);
        for (number, page) in (3..).zip(&put[..3]) {
            log.put(number, page, number == 3).unwrap();
        }
        log.put(6, &put[3], true).unwrap();
        assert_eq!(found(&lake, 2), put);
        assert_eq!(found(&lake, 4), put[2..], "some were recorded");
        assert_eq!((found(&lake, 6), found(&lake, 1)), (vec![], vec![]), "all were, or one is missing between");
        // A part more, over the first: its other pages stand behind it still.
        let (mut log, _) = Log::open(&lake, &walk(5));
        log.put(7, &page(&["oH"]), false).unwrap();
        log.put(8, &page(&["oI"]), true).unwrap();
        assert_eq!(found(&lake, 5), [put[3].clone(), page(&["oH"]), page(&["oI"])]);
        // The last one is put aside anew, behind the one before in whichever file.
        Log::take_back(&lake, &walk(6), 8).unwrap();
        let (mut log, pages) = Log::open(&lake, &walk(6));
        assert_eq!(pages, [page(&["oH"])]);
        log.put(8, &page(&["oJ", "oK"]), false).unwrap();
        log.put(9, &page(&["oL"]), false).unwrap();
        assert_eq!(found(&lake, 6), [page(&["oH"]), page(&["oJ", "oK"]), page(&["oL"])]);
        remove(&lake, &walk(0)).unwrap();
        assert!(found(&lake, 6).is_empty());
    }

    #[test]
    fn what_was_torn_is_no_page_wherever_it_was_torn() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(folder.path());
        let (first, second, longer) = (page(&["oA", "oB"]), page(&["oC", "oD"]), page(&["oX", "oY", "oZ"]));
        let written = |pages: [&FollowerPage; 2], from: u32| {
            remove(&lake, &walk(0)).unwrap();
            let (mut log, _) = Log::open(&lake, &walk(from));
            for (number, page) in (from + 1..).zip(pages) {
                log.put(number, page, false).unwrap();
            }
            std::fs::read(log.path(0)).unwrap()
        };
        let before = written([&longer, &longer], 0);
        let whole = written([&first, &second], 4);
        let ends_first = read(&whole).unwrap().2;
        for torn in 0..=whole.len() {
            let mut bytes = whole[..torn].to_vec();
            bytes.extend_from_slice(&before[torn..]);
            std::fs::write(lake.absolute(&format!("{}/{}", super::folder(&walk(4)), FILES[0])), &bytes).unwrap();
            let is_there = |end: usize| usize::from(bytes[..end] == whole[..end]);
            let wanted = is_there(ends_first) + is_there(ends_first) * is_there(whole.len());
            assert_eq!(found(&lake, 4), [&first, &second].map(Clone::clone)[..wanted], "{torn} bytes of it");
        }
        let hole = whole.iter().enumerate().map(|(at, byte)| if at == ends_first - 3 { 0 } else { *byte });
        std::fs::write(lake.absolute(&format!("{}/{}", super::folder(&walk(4)), FILES[0])), hole.collect::<Vec<_>>())
            .unwrap();
        assert!(found(&lake, 4).is_empty(), "a block that never reached the disk");
    }
}

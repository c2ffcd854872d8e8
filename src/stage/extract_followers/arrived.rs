//! The page of a walk that arrived last, as a file of its own until it is kept: so that the next one can be asked for while
//! this one is compared, written and recorded. A process that was killed meanwhile finds it here and does not ask again.
//!
//! One file a walk, written over by each page (a file a page would have the file system look for room for it): a line of JSON
//! that says what comes, an openid a line, and the first line again. What a kill tore is told by the two lines; then, and
//! where the file is of another page than the ledger lacks, it is no page, and that one is asked for again.

use std::fs::OpenOptions;
use std::io::Write;

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
    /// Lines that follow.
    openids: usize,
    bytes: usize,
}

fn path(walk: &Walk) -> String {
    format!("work/walks/{}/{}/arrived", walk.account, walk.id)
}

/// Puts aside the page that comes after those the walk has recorded. Blocking.
///
/// # Errors
///
/// [`LakeError`] when the file cannot be written.
pub(super) fn put(lake: &Lake, walk: &Walk, page: &FollowerPage) -> Result<(), LakeError> {
    let bytes = page.openids.iter().flatten().map(|openid| openid.len() + 1).sum();
    let header = Header {
        page: walk.pages + 1,
        total: page.total,
        count: page.count,
        next_openid: page.next_openid.as_ref().map(|next| next.as_str().to_owned()),
        openids: page.openids.len(),
        bytes,
    };
    let line = serde_json::to_string(&header).expect("a header is JSON") + "\n";
    let mut text = String::with_capacity(bytes + 2 * line.len());
    text.push_str(&line);
    for openid in page.openids.iter().flatten() {
        text.push_str(openid);
        text.push('\n');
    }
    text.push_str(&line);
    let file = lake.absolute(&path(walk));
    let write = || {
        std::fs::create_dir_all(file.parent().expect("it lies in a folder"))?;
        OpenOptions::new().write(true).create(true).truncate(false).open(&file)?.write_all(text.as_bytes())
    };
    write().map_err(|source| LakeError::Write { path: file.clone(), source })?;
    crash::pass(CrashPoint::AfterPageArrived);
    Ok(())
}

/// The page that was put aside, if it is the one that the walk's records lack. Blocking.
pub(super) fn find(lake: &Lake, walk: &Walk) -> Option<FollowerPage> {
    let text = std::fs::read(lake.absolute(&path(walk))).ok()?;
    let line = text.split_inclusive(|byte| *byte == b'\n').next()?;
    let header: Header = serde_json::from_slice(line).ok()?;
    // A longer page of before may stand behind it.
    let (openids, end) = text[line.len()..].split_at_checked(header.bytes)?;
    if header.page != walk.pages + 1 || !end.starts_with(line) {
        return None;
    }
    let openids: Texts = std::str::from_utf8(openids).ok()?.lines().map(Some).collect();
    (openids.len() == header.openids).then(|| FollowerPage {
        total: header.total,
        count: header.count,
        openids,
        next_openid: header.next_openid.map(OpenId::new),
        // An end is kept at once.
        is_last: false,
    })
}

/// Removes what was put aside.
///
/// # Errors
///
/// [`LakeError::Remove`].
pub(super) fn remove(lake: &Lake, walk: &Walk) -> Result<(), LakeError> {
    lake.remove(&path(walk))
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

    #[test]
    fn a_page_is_found_where_it_is_the_next_one_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(folder.path());
        let page = |openids: &[&str]| FollowerPage {
            total: Some(9),
            count: 2,
            openids: openids.iter().copied().map(Some).collect(),
            next_openid: openids.last().map(|last| OpenId::new(*last)),
            is_last: false,
        };
        assert_eq!(find(&lake, &walk(3)), None);
        put(&lake, &walk(2), &page(&["oZ"])).unwrap();
        put(&lake, &walk(3), &page(&["oA", "oB"])).unwrap();
        assert_eq!(find(&lake, &walk(3)), Some(page(&["oA", "oB"])));
        assert_eq!([find(&lake, &walk(2)), find(&lake, &walk(4))], [None, None]);
        let file = lake.absolute(&path(&walk(3)));
        put(&lake, &walk(4), &page(&["oC", "oD", "oE"])).unwrap();
        let longer = std::fs::read_to_string(&file).unwrap();
        put(&lake, &walk(5), &page(&["oF"])).unwrap();
        assert_eq!(find(&lake, &walk(5)), Some(page(&["oF"])), "behind it stands what is left of a longer one");
        let next = std::fs::read_to_string(&file).unwrap();
        let line = next.lines().next().unwrap();
        let own = 2 * (line.len() + 1) + "oF\n".len();
        for torn in 0..next.len() {
            std::fs::write(&file, next[..torn].to_owned() + &longer[torn..]).unwrap();
            assert_eq!(find(&lake, &walk(5)).is_some(), torn >= own, "{torn} bytes of it");
        }
        remove(&lake, &walk(3)).unwrap();
        assert_eq!(find(&lake, &walk(3)), None);
    }
}

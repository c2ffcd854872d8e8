//! What a walk over the followers says of itself while it is under way, to whoever asks for details beside it.
//!
//! Only that there is something new: the pages themselves are files, and the ledger says which.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;

use crate::clock::Timestamp;
use crate::domain::AccountName;
use crate::lake::Lake;

/// How far the walk over an account is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WalkState {
    /// The walk whose pages are recorded; `None` before it began.
    pub walk: Option<i64>,
    /// Pages recorded so far.
    pub pages: u32,
    pub has_ended: bool,
    /// It reached the end of the list, and no page was ever taken back.
    pub is_whole: bool,
    /// It is known that nobody stood on two pages.
    pub is_distinct: bool,
}

/// A file with the rows of followers that are not as they were in the snapshot before; it goes with this.
#[derive(Debug)]
pub struct Changed {
    lake: Lake,
    path: String,
    /// When the walk of the snapshot before began.
    pub before: Timestamp,
    /// The snapshot that has these rows.
    pub snapshot: String,
}

impl Changed {
    /// The file that will be at `path`, relative to `lake`, until it is known what it is of.
    pub fn new(lake: &Lake, path: String) -> Self {
        Self { lake: lake.clone(), path, before: Timestamp::MIN_UTC, snapshot: String::new() }
    }

    /// Says which snapshots it stands between.
    pub fn of(self, before: Timestamp, snapshot: String) -> Self {
        let mut own = self;
        (own.before, own.snapshot) = (before, snapshot);
        own
    }

    /// Relative to the lake.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        // What cannot be removed is in nobody's way: `vacuum` finds it.
        let _ = self.lake.remove(&self.path);
    }
}

/// What walks found changed, by account.
pub type Changes = BTreeMap<AccountName, Arc<Changed>>;

/// A board that the walk writes on and others look at.
#[derive(Default)]
pub struct WalkNews {
    board: watch::Sender<Board>,
    changes: Mutex<Changes>,
}

#[derive(Default)]
struct Board {
    accounts: BTreeMap<AccountName, WalkState>,
    is_over: bool,
}

impl Board {
    fn of(&self, account: &AccountName) -> WalkState {
        let state = self.accounts.get(account).copied().unwrap_or_default();
        WalkState { has_ended: state.has_ended || self.is_over, ..state }
    }
}

impl WalkNews {
    /// A page more is recorded.
    pub fn tell(&self, account: &AccountName, walk: i64, pages: u32) {
        self.change(account, |state| (state.walk, state.pages) = (Some(walk), pages));
    }

    /// The walk over an account has come to its end.
    pub fn end(&self, account: &AccountName, (is_whole, is_distinct): (bool, bool)) {
        self.change(account, |state| {
            (state.has_ended, state.is_whole, state.is_distinct) = (true, is_whole, is_distinct);
        });
    }

    /// What the merge of a walk found changed.
    pub fn changed(&self, account: &AccountName, changed: Changed) {
        self.changes.lock().expect("nobody panics while holding it").insert(account.clone(), Arc::new(changed));
    }

    /// What all merges so far found changed.
    pub fn into_changes(self) -> Changes {
        self.changes.into_inner().expect("nobody panics while holding it")
    }

    /// Nothing more comes of any account.
    pub fn end_all(&self) {
        self.board.send_modify(|board| board.is_over = true);
    }

    fn change(&self, account: &AccountName, change: impl FnOnce(&mut WalkState)) {
        self.board.send_modify(|board| change(board.accounts.entry(account.clone()).or_default()));
    }

    /// Waits until an account is not in state `than` any more, and gives the state it is in.
    ///
    /// Cancel safe.
    pub async fn other(&self, account: &AccountName, than: WalkState) -> WalkState {
        let mut board = self.board.subscribe();
        let changed = board.wait_for(|board| board.of(account) != than).await.map(|board| board.of(account));
        changed.expect("the board is borrowed, so its writer is there")
    }
}

//! Single values about the ledger itself, and the number that tells whether the catalog is behind the snapshots.

use sqlx::SqliteConnection;

use super::error::Doing;
use super::{Ledger, LedgerError};
use crate::clock::{Timestamp, from_micros, to_micros};
use crate::domain::{AccountName, OpenId};

const SNAPSHOTS: &str = "snapshots_generation";
const CATALOG: &str = "catalog_generation";
const REBOUND: &str = "rebound_at";
const IN_DOUBT: &str = "in_doubt";

fn rebound_key(account: &AccountName) -> String {
    format!("{REBOUND}:{account}")
}

fn in_doubt_key(account: &AccountName) -> String {
    format!("{IN_DOUBT}:{account}")
}

impl Ledger {
    /// The value of a key, if it was ever set.
    pub async fn get_meta(&self, key: &str) -> Result<Option<String>, LedgerError> {
        sqlx::query_scalar("select value from meta where key = $1")
            .bind(key)
            .fetch_optional(&self.readers)
            .await
            .doing("read a value of the ledger")
    }

    pub async fn set_meta(&self, key: &str, value: &str) -> Result<(), LedgerError> {
        sqlx::query(
            "insert into meta (key, value) values ($1, $2) on conflict (key) do update set value = excluded.value",
        )
        .bind(key)
        .bind(value)
        .execute(&self.writer)
        .await
        .doing("keep a value of the ledger")?;
        Ok(())
    }

    /// Forgets a key.
    pub async fn remove_meta(&self, key: &str) -> Result<(), LedgerError> {
        sqlx::query("delete from meta where key = $1")
            .bind(key)
            .execute(&self.writer)
            .await
            .doing("forget a value of the ledger")?;
        Ok(())
    }

    /// Since when an account gives unionids of another Open Platform account than before, if it ever was bound anew.
    pub async fn rebound_at(&self, account: &AccountName) -> Result<Option<Timestamp>, LedgerError> {
        let Some(value) = self.get_meta(&rebound_key(account)).await? else { return Ok(None) };
        match value.parse() {
            Ok(micros) => Ok(Some(from_micros(micros))),
            Err(_) => Err(LedgerError::Unreadable { what: REBOUND, value }),
        }
    }

    /// Remembers since when, by the first answer of a run that told so.
    pub async fn note_rebound(&self, account: &AccountName, at: Timestamp) -> Result<(), LedgerError> {
        self.set_meta(&rebound_key(account), &to_micros(at).to_string()).await
    }

    /// Followers of an account who were asked for and not told of, in the batches that they are to be asked in next.
    pub async fn openids_in_doubt(&self, account: &AccountName) -> Result<Vec<Vec<OpenId>>, LedgerError> {
        let Some(value) = self.get_meta(&in_doubt_key(account)).await? else { return Ok(Vec::new()) };
        match serde_json::from_str::<Vec<Vec<String>>>(&value) {
            Ok(pieces) => Ok(pieces.into_iter().map(|piece| piece.into_iter().map(OpenId::new).collect()).collect()),
            Err(_) => Err(LedgerError::Unreadable { what: IN_DOUBT, value }),
        }
    }

    /// Remembers them in place of those before.
    pub async fn keep_openids_in_doubt(
        &self,
        account: &AccountName,
        pieces: &[Vec<OpenId>],
    ) -> Result<(), LedgerError> {
        if pieces.is_empty() {
            return self.remove_meta(&in_doubt_key(account)).await;
        }
        let pieces: Vec<Vec<&str>> = pieces.iter().map(|piece| piece.iter().map(OpenId::as_str).collect()).collect();
        let value = serde_json::to_string(&pieces).expect("text can always be written to memory");
        self.set_meta(&in_doubt_key(account), &value).await
    }

    /// Forgets who is in doubt, of every account: they are asked for again as everybody else.
    pub async fn forget_who_is_in_doubt(&self) -> Result<(), LedgerError> {
        sqlx::query("delete from meta where key like $1")
            .bind(format!("{IN_DOUBT}:%"))
            .execute(&self.writer)
            .await
            .doing("forget who is in doubt")?;
        Ok(())
    }

    /// Grows with every change of which snapshots are current.
    pub async fn snapshots_generation(&self) -> Result<u64, LedgerError> {
        self.generation(SNAPSHOTS).await
    }

    /// The generation of snapshots that the catalog shows; behind [`Ledger::snapshots_generation`] it must be rewritten.
    pub async fn catalog_generation(&self) -> Result<u64, LedgerError> {
        self.generation(CATALOG).await
    }

    pub async fn set_catalog_generation(&self, generation: u64) -> Result<(), LedgerError> {
        self.set_meta(CATALOG, &generation.to_string()).await
    }

    async fn generation(&self, key: &'static str) -> Result<u64, LedgerError> {
        let Some(value) = self.get_meta(key).await? else { return Ok(0) };
        value.parse().map_err(|_| LedgerError::Unreadable { what: key, value })
    }
}

/// Counts a change of the current snapshots, in the transaction that makes it.
pub(super) async fn grow_snapshots_generation(connection: &mut SqliteConnection) -> Result<(), LedgerError> {
    sqlx::query(
        "insert into meta (key, value) values ($1, '1')
         on conflict (key) do update set value = cast(cast(meta.value as bigint) + 1 as text)",
    )
    .bind(SNAPSHOTS)
    .execute(connection)
    .await
    .doing("count a change of the current snapshots")?;
    Ok(())
}

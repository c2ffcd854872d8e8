//! People who asked to be forgotten: nothing of them stays here but a salted hash of each of their ids, by which they are
//! known again should an export or a follower list bring them back. The counts of past pushes stay: their deliveries
//! remain without a name.

use std::collections::{HashMap, HashSet};

use sqlx::SqliteConnection;

use super::error::Doing;
use super::sql::{Columns, read_all};
use super::{AuditEntry, Ledger, LedgerError, Order};
use crate::clock::to_micros;
use crate::domain::{OpenId, UnionId, person_hash};

/// The key of the salt among the ledger's single values.
const SALT: &str = "forget_salt";
/// What stands in a delivery, and in a later event about it, in place of an openid.
pub(super) const NOBODY: &str = "forgotten";

/// Whom to forget, by every id that is known of the person.
#[derive(Debug, Clone, Copy)]
pub struct Forgetting<'a> {
    pub unionid: &'a UnionId,
    pub openids: &'a [String],
    /// Used if none was set before: random, for good.
    pub new_salt: &'a str,
}

/// Rows of the ledger that named the person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Forgotten {
    pub deliveries: u64,
    pub follower_marks: u64,
    pub callbacks: u64,
    pub suppressions: u64,
}

impl Ledger {
    /// Forgets a person in one transaction, and then writes the whole file anew; a person who was forgotten before stays so.
    /// When the second fails, forgetting the person again makes up for it.
    pub async fn forget(&self, whom: Forgetting<'_>, order: Order<'_>) -> Result<Forgotten, LedgerError> {
        const DOING: &str = "forget a person";
        let mut tx = self.begin(DOING).await?;
        sqlx::query("insert into meta (key, value) values ($1, $2) on conflict (key) do nothing")
            .bind(SALT)
            .bind(whom.new_salt)
            .execute(&mut *tx)
            .await
            .doing(DOING)?;
        let salt: String = sqlx::query_scalar("select value from meta where key = $1")
            .bind(SALT)
            .fetch_one(&mut *tx)
            .await
            .doing(DOING)?;
        let mut found = Forgotten { deliveries: 0, follower_marks: 0, callbacks: 0, suppressions: 0 };
        let ids = whom.openids.iter().map(String::as_str).chain([whom.unionid.as_str()]);
        for id in ids {
            remember_hash(&mut tx, &person_hash(&salt, id), order).await?;
            let mut count = async |sql: &'static str| {
                let done = sqlx::query(sql).bind(id).bind(NOBODY).execute(&mut *tx).await.doing(DOING)?;
                Ok::<u64, LedgerError>(done.rows_affected())
            };
            found.deliveries +=
                count("update deliveries set openid = $2, unionid = null where openid = $1 or unionid = $1").await?;
            found.follower_marks += count("delete from follower_marks where openid = $1 and $2 is not null").await?;
            count("delete from follower_events where openid = $1 and $2 is not null").await?;
            count("delete from former_openids where (openid = $1 or new_openid = $1) and $2 is not null").await?;
            found.callbacks += count("delete from callbacks where openid = $1 and $2 is not null").await?;
            found.suppressions +=
                count("delete from suppressions where (openid = $1 or unionid = $1) and $2 is not null").await?;
            count(
                "update pushes set deliveries_version = deliveries_version + 1
                 where $1 <> $2 and written_path is not null",
            )
            .await?;
            count("update audit set detail = replace(detail, $1, $2) where instr(detail, $1) > 0").await?;
        }
        let hash: String = person_hash(&salt, whom.unionid.as_str()).chars().take(12).collect();
        let detail = format!("a person, kept as hash {hash}…, under {} openids", whom.openids.len());
        let entry =
            AuditEntry { at: order.at, who: order.who.to_owned(), command: "forget".to_owned(), run_id: None, detail };
        super::audit::insert(&mut tx, &entry).await?;
        tx.commit().await.doing(DOING)?;
        self.leave_no_trace().await?;
        Ok(found)
    }

    /// Writes the file anew, and empties the log: where a page was split as a table grew, its rows are still on the old
    /// one, which no deletion reaches.
    async fn leave_no_trace(&self) -> Result<(), LedgerError> {
        for statement in ["vacuum", "pragma wal_checkpoint(truncate)"] {
            sqlx::query(statement).fetch_all(&self.writer).await.doing("write the ledger's file anew")?;
        }
        Ok(())
    }

    /// Whether a row here names the person, or the person was forgotten before.
    pub async fn names(&self, whom: Forgetting<'_>) -> Result<bool, LedgerError> {
        const DOING: &str = "look for a person to forget";
        let salt = self.get_meta(SALT).await?;
        for id in whom.openids.iter().map(String::as_str).chain([whom.unionid.as_str()]) {
            let is_named: bool = sqlx::query_scalar(
                "select exists (select 1 from forgotten where hash = $2)
                     or exists (select 1 from deliveries where openid = $1 or unionid = $1)
                     or exists (select 1 from follower_marks where openid = $1)
                     or exists (select 1 from follower_events where openid = $1)
                     or exists (select 1 from former_openids where openid = $1 or new_openid = $1)
                     or exists (select 1 from callbacks where openid = $1)
                     or exists (select 1 from suppressions where openid = $1 or unionid = $1)
                     or exists (select 1 from audit where instr(detail, $1) > 0)",
            )
            .bind(id)
            .bind(salt.as_deref().map(|salt| person_hash(salt, id)))
            .fetch_one(&self.readers)
            .await
            .doing(DOING)?;
            if is_named {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Openids that stand beside a unionid here.
    pub async fn openids_of(&self, unionid: &UnionId) -> Result<Vec<String>, LedgerError> {
        let rows = sqlx::query(
            "select distinct openid from deliveries where unionid = $1
             union select openid from suppressions where unionid = $1 and openid is not null",
        )
        .bind(unionid.as_str())
        .fetch_all(&self.readers)
        .await
        .doing("look up the openids of a person")?;
        read_all(rows, |row| row.text("openid"))
    }

    /// The salt and the hashes of everybody who was forgotten; nothing when nobody was.
    pub async fn forgotten(&self) -> Result<Option<(String, Vec<String>)>, LedgerError> {
        let Some(salt) = self.get_meta(SALT).await? else { return Ok(None) };
        let rows = sqlx::query("select hash from forgotten order by hash")
            .fetch_all(&self.readers)
            .await
            .doing("list who was forgotten")?;
        Ok(Some((salt, read_all(rows, |row| row.text("hash"))?)).filter(|(_, hashes)| !hashes.is_empty()))
    }
}

async fn remember_hash(tx: &mut SqliteConnection, hash: &str, order: Order<'_>) -> Result<(), LedgerError> {
    sqlx::query("insert into forgotten (hash, since) values ($1, $2) on conflict (hash) do nothing")
        .bind(hash)
        .bind(to_micros(order.at))
        .execute(tx)
        .await
        .doing("keep the hash of a person")?;
    Ok(())
}

/// Those of `ids` that are a forgotten person's, inside a writing transaction: nothing of them is written in the clear again.
pub(super) async fn among<'a>(
    tx: &mut SqliteConnection,
    ids: impl Iterator<Item = &'a str>,
) -> Result<HashSet<&'a str>, LedgerError> {
    const DOING: &str = "look up who was forgotten";
    let salt: Option<String> =
        sqlx::query_scalar("select value from meta where key = $1 and exists (select 1 from forgotten)")
            .bind(SALT)
            .fetch_optional(&mut *tx)
            .await
            .doing(DOING)?;
    let Some(salt) = salt else { return Ok(HashSet::new()) };
    let mut forgotten = HashSet::new();
    for id in ids {
        let is_forgotten: bool = sqlx::query_scalar("select exists (select 1 from forgotten where hash = $1)")
            .bind(person_hash(&salt, id))
            .fetch_one(&mut *tx)
            .await
            .doing(DOING)?;
        if is_forgotten {
            forgotten.insert(id);
        }
    }
    Ok(forgotten)
}

/// Adds those of `people` who were forgotten.
pub(super) async fn blocked(
    connection: &mut SqliteConnection,
    people: &[(&OpenId, Option<&UnionId>)],
    blocked: &mut HashMap<OpenId, String>,
) -> Result<(), LedgerError> {
    const DOING: &str = "look up who was forgotten";
    let salt: Option<String> = sqlx::query_scalar("select value from meta where key = $1")
        .bind(SALT)
        .fetch_optional(&mut *connection)
        .await
        .doing(DOING)?;
    let Some(salt) = salt else { return Ok(()) };
    for (openid, unionid) in people {
        let hashes =
            [Some(openid.as_str()), unionid.map(UnionId::as_str)].map(|id| id.map(|id| person_hash(&salt, id)));
        let is_forgotten: bool = sqlx::query_scalar("select exists (select 1 from forgotten where hash in ($1, $2))")
            .bind(&hashes[0])
            .bind(&hashes[1])
            .fetch_one(&mut *connection)
            .await
            .doing(DOING)?;
        if is_forgotten {
            blocked.insert((*openid).clone(), "suppressed".to_owned());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{DeliveryRow, NewSuppression};
    use super::*;
    use crate::domain::{AccountName, DeliveryState, TemplateId};

    #[tokio::test]
    async fn a_forgotten_person_is_nowhere_and_is_known_again_by_a_hash_alone() {
        let house = House::new().await;
        let (ledger, push) = (&house.ledger, house.push("r1", 3).await);
        let people = people(1..=3);
        let _ = house.begin(&push, fresh(&intents(&people))).await;
        let _ = house.record(&push, &[1, 2, 3].map(|seq| outcome(seq, 1, DeliveryState::Sent))).await;
        let unionid = UnionId::new("union-a");
        let suppression = NewSuppression {
            unionid: Some(unionid.clone()),
            openid: None,
            account: None,
            template_id: None,
            reason: "asked".into(),
            since: at(0),
            until: None,
        };
        ledger.add_suppressions(&[suppression]).await.unwrap();
        let openids = [people[1].1.as_str().to_owned()];
        let whom = Forgetting { unionid: &unionid, openids: &openids, new_salt: "salt" };
        let stranger = UnionId::new("union-z");
        assert!(!ledger.names(Forgetting { unionid: &stranger, openids: &[], ..whom }).await.unwrap());
        assert!(ledger.names(Forgetting { openids: &[], ..whom }).await.unwrap());
        let found = ledger.forget(whom, Order { who: "ada", at: at(9) }).await.unwrap();
        assert!(ledger.names(whom).await.unwrap(), "who was forgotten is known to have been");
        assert_eq!(found, Forgotten { deliveries: 1, follower_marks: 0, callbacks: 0, suppressions: 1 });
        let rows: Vec<DeliveryRow> = ledger.deliveries(push.key, 0, 9).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.openid.as_str()).collect::<Vec<_>>()[1], "forgotten");
        assert_eq!(house.reload(&push).await.counts.sent, 3, "what was sent stays counted");
        let (main, template) = (AccountName::new("main"), TemplateId::new("t"));
        let asked = [(&people[0].1, None), (&people[1].1, None), (&people[2].1, Some(&unionid))];
        let mut blocked: Vec<OpenId> =
            ledger.blocked_now(&main, &template, &asked, at(10)).await.unwrap().into_keys().collect();
        blocked.sort();
        assert_eq!(blocked, [people[1].1.clone(), people[2].1.clone()]);
        let (salt, hashes) = ledger.forgotten().await.unwrap().unwrap();
        assert_eq!((salt.as_str(), hashes.len()), ("salt", 2));
        assert!(!ledger.audit(1).await.unwrap()[0].detail.contains("union-a"));
    }

    #[tokio::test]
    async fn no_page_of_the_file_keeps_a_forgotten_person() {
        let house = House::new().await;
        let (ledger, push) = (&house.ledger, house.push("r1", 2_000).await);
        let people = people(1..=2_000);
        let _ = house.begin(&push, fresh(&intents(&people))).await;
        let outcomes: Vec<_> = (1..=2_000).map(|seq| outcome(seq, 1, DeliveryState::Sent)).collect();
        let _ = house.record(&push, &outcomes).await;
        // Spread, so that some stood where the table's pages were split as it grew.
        let forgotten: Vec<String> = people.iter().step_by(20).map(|(_, openid)| openid.as_str().to_owned()).collect();
        let whom = Forgetting { unionid: &UnionId::new("union-a"), openids: &forgotten, new_salt: "salt" };
        let found = ledger.forget(whom, Order { who: "ada", at: at(9) }).await.unwrap();
        assert_eq!(found.deliveries, 100);
        let bytes = std::fs::read(&house.path).unwrap();
        let stands = |id: &str| bytes.windows(id.len()).any(|window| window == id.as_bytes());
        assert_eq!(forgotten.iter().find(|id| stands(id)), None);
        assert!(stands(people[1].1.as_str()), "the others are still there");
    }
}

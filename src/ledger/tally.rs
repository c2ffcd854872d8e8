//! How many of the calls that a push reserved it really made, known even when its process was killed: then whoever takes
//! the push over gives the others back to the day. What was reserved stands in the ledger, in the transactions that reserve;
//! what was made is the length of a file beside it, which grows by a byte before each call. A byte costs no commit: a killed
//! process loses none of them. After a power cut, on another machine, or while the process that counts may still be alive,
//! the file is not believed, and every reserved call stays counted: the day's count is never below the calls made.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sqlx::SqliteConnection;

use super::error::Doing;
use super::sql::{Columns, int};
use super::{Holder, Lease, Ledger, LedgerError, QuotaCharge, push_calls, quota};
use crate::domain::{AccountName, QuotaDay};

/// Names one start of the machine: what a process wrote is there for all that come after it, until the machine dies.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Counts the calls of a push that sends now.
#[derive(Debug)]
pub struct CallTally {
    path: PathBuf,
    file: File,
}

impl CallTally {
    /// A call is about to be made.
    pub fn one(&self) {
        if (&self.file).write_all(b".").is_err() {
            // One that misses a call must not be believed by whoever finds it.
            let _ = self.file.set_len(0);
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Ledger {
    /// Begins a tally named `id` for a push whose sending begins, of calls to `endpoint`. Of the one before, if its process
    /// was killed, the calls that were reserved and not made are given back to their day. `None`: the calls cannot be
    /// counted here, and all that is reserved stays counted when this process is killed.
    ///
    /// # Errors
    ///
    /// [`LedgerError::LeaseLost`], and what a transaction can meet.
    pub async fn begin_tally(
        &self,
        lease: &Lease,
        push_key: i64,
        (endpoint, id): (&str, &str),
    ) -> Result<Option<CallTally>, LedgerError> {
        let path = self.tally_path(push_key);
        self.replace_tally(lease, push_key, (endpoint, Some(id))).await?;
        let begun = begin_file(&path, id);
        if let Err(error) = &begun {
            tracing::debug!(%error, "the calls of a push are not counted beside the ledger");
        }
        Ok(begun.ok().map(|file| CallTally { path, file }))
    }

    /// Ends a tally after `made` calls: what was reserved beyond them is given back.
    ///
    /// # Errors
    ///
    /// What a transaction can meet. Nothing is done where another holder has begun a tally of its own.
    pub async fn end_tally(
        &self,
        lease: &Lease,
        push_key: i64,
        (endpoint, id, made): (&str, &str, u64),
    ) -> Result<(), LedgerError> {
        const DOING: &str = "give back the calls that a push did not make";
        let Some(mut tx) = self.begin_under(lease, DOING).await? else { return Ok(()) };
        match open_tally(&mut tx, push_key).await? {
            Some(tally) if tally.id == id => tally.settle(&mut tx, endpoint, made).await?,
            _ => return Ok(()),
        }
        name_tally(&mut tx, push_key, None).await?;
        tx.commit().await.doing(DOING)?;
        // Nothing names it any more.
        let _ = fs::remove_file(self.tally_path(push_key));
        Ok(())
    }

    /// For a push that nobody sends any more: what a killed process reserved and did not call is given back.
    ///
    /// # Errors
    ///
    /// As [`Ledger::begin_tally`].
    pub async fn settle_tally(&self, lease: &Lease, push_key: i64, endpoint: &str) -> Result<(), LedgerError> {
        self.replace_tally(lease, push_key, (endpoint, None)).await?;
        // Nothing names it any more.
        let _ = fs::remove_file(self.tally_path(push_key));
        Ok(())
    }

    async fn replace_tally(
        &self,
        lease: &Lease,
        push_key: i64,
        (endpoint, id): (&str, Option<&str>),
    ) -> Result<(), LedgerError> {
        const DOING: &str = "take over the calls that a push reserved";
        let mut tx = self.begin_held(lease, DOING).await?;
        if let Some(before) = open_tally(&mut tx, push_key).await?
            && let Some(made) = made_by(&self.tally_path(push_key), &before.id)
        {
            before.settle(&mut tx, endpoint, made).await?;
        }
        name_tally(&mut tx, push_key, id).await?;
        tx.commit().await.doing(DOING)
    }

    /// Counts calls that a push made beyond those it reserved, whatever the day's limit: they were made.
    ///
    /// # Errors
    ///
    /// What a transaction can meet.
    pub async fn charge_calls(&self, push_key: i64, charge: &QuotaCharge<'_>, n: u64) -> Result<(), LedgerError> {
        const DOING: &str = "count the repeats of a push";
        let mut tx = self.begin_note(DOING).await?;
        quota::add_calls(&mut tx, charge, n).await?;
        reserved(&mut tx, push_key, (charge.day, int(n))).await?;
        tx.commit().await.doing(DOING)
    }

    fn tally_path(&self, push_key: i64) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!("-calls-{push_key}"));
        self.path.with_file_name(name)
    }
}

/// Notes that a push reserved so many more calls of a day, or fewer, in the transaction that does: they are its own as well
/// as its account's. A tally that goes on into
/// another day is given up: nobody could tell of which day the calls were that were not made.
pub(super) async fn reserved(
    connection: &mut SqliteConnection,
    push_key: i64,
    (day, n): (QuotaDay, i64),
) -> Result<(), LedgerError> {
    push_calls::change(connection, push_key, (day, n)).await?;
    sqlx::query(
        "update pushes set calls_reserved = calls_reserved + $1, calls_day = $2,
             calls_tally = case when coalesce(calls_day, $2) = $2 then calls_tally end
         where key = $3 and calls_tally is not null",
    )
    .bind(n)
    .bind(day.to_string())
    .bind(push_key)
    .execute(connection)
    .await
    .doing("note the calls that a push reserved")?;
    Ok(())
}

/// A tally that was begun and not ended.
struct Open {
    id: String,
    push_key: i64,
    account: AccountName,
    reserved: u64,
    /// Nothing was reserved before this is known.
    day: Option<QuotaDay>,
}

impl Open {
    /// Makes the day's count that of the calls made: repeats that a killed process had not counted yet come to it.
    async fn settle(&self, tx: &mut SqliteConnection, endpoint: &str, made: u64) -> Result<(), LedgerError> {
        let Some(day) = self.day else { return Ok(()) };
        let charge = QuotaCharge { account: &self.account, endpoint, day, limit: None, keep: 0 };
        push_calls::change(tx, self.push_key, (day, int(made) - int(self.reserved))).await?;
        if made > self.reserved {
            return quota::add_calls(tx, &charge, made - self.reserved).await;
        }
        quota::subtract_calls(tx, &charge, self.reserved - made).await
    }
}

async fn name_tally(tx: &mut SqliteConnection, push_key: i64, id: Option<&str>) -> Result<(), LedgerError> {
    sqlx::query("update pushes set calls_tally = $1, calls_reserved = 0, calls_day = null where key = $2")
        .bind(id)
        .bind(push_key)
        .execute(tx)
        .await
        .doing("name the count of a push's calls")?;
    Ok(())
}

async fn open_tally(tx: &mut SqliteConnection, push_key: i64) -> Result<Option<Open>, LedgerError> {
    let row = sqlx::query(
        "select account, calls_tally, calls_reserved, calls_day from pushes
         where key = $1 and calls_tally is not null",
    )
    .bind(push_key)
    .fetch_optional(tx)
    .await
    .doing("look up the calls that a push reserved")?;
    let Some(row) = row else { return Ok(None) };
    Ok(Some(Open {
        id: row.text("calls_tally")?,
        push_key,
        account: AccountName::new(row.text("account")?),
        reserved: row.count("calls_reserved")?,
        day: row.optional_text("calls_day")?.map(|_| row.date("calls_day")).transpose()?.map(QuotaDay::from_date),
    }))
}

fn begin_file(path: &Path, id: &str) -> io::Result<File> {
    // First, so that one that cannot be replaced is not left for another.
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().append(true).create_new(true).open(path)?;
    let Holder { id, host, pid, started } = Holder::this_process(id.to_owned());
    file.write_all(format!("{id}\t{}\t{host}\t{pid}\t{started}\n", boot()?).as_bytes())?;
    Ok(file)
}

pub(super) fn boot() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT)?.trim().to_owned())
}

/// The calls that were made under a tally, if its file tells of them, the machine has not died since, and nobody makes more.
fn made_by(path: &Path, id: &str) -> Option<u64> {
    let found = fs::read(path).ok()?;
    let end = found.iter().position(|byte| *byte == b'\n')?;
    let (head, calls) = found.split_at(end);
    let mut head = std::str::from_utf8(head).ok()?.split('\t');
    if head.next()? != id || head.next()? != boot().ok()? {
        return None;
    }
    let (host, pid, started) = (head.next()?.to_owned(), head.next()?.parse().ok()?, head.next()?.parse().ok()?);
    let holder = Holder { id: id.to_owned(), host, pid, started };
    let is_over = holder == Holder::this_process(id.to_owned()) || holder.is_dead();
    is_over.then(|| u64::try_from(calls.len() - 1).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{Begin, OutcomeBatch, Push};
    use super::super::{GiveBack, Recorded};
    use super::*;
    use crate::domain::DeliveryState;

    const SEND: &str = "send";

    async fn calls(house: &House) -> u64 {
        house.ledger.usage(None, None).await.unwrap().iter().map(|usage| usage.calls).sum()
    }

    async fn begin(house: &House, push: &Push, id: &str) -> CallTally {
        house.ledger.begin_tally(&house.lease, push.key, (SEND, id)).await.unwrap().unwrap()
    }

    fn charge(main: &AccountName, seconds: i64) -> QuotaCharge<'_> {
        QuotaCharge { account: main, endpoint: SEND, day: QuotaDay::of(at(seconds)), limit: None, keep: 0 }
    }

    #[tokio::test]
    async fn whoever_takes_over_gives_back_what_a_killed_process_did_not_call() {
        let house = House::new().await;
        let (push, main) = (house.push("r1", 30).await, AccountName::new("main"));
        let people = people(1..=20);
        let all = intents(&people);
        let first = begin(&house, &push, "first").await;
        let quota = Some(charge(&main, 0));
        let _ = house.begin(&push, Begin { quota, ..fresh(&all) }).await;
        (0..7).for_each(|_| first.one());
        house.ledger.charge_calls(push.key, &charge(&main, 0), 2).await.unwrap();
        (0..2).for_each(|_| first.one());
        let put_back = [outcome(20, 1, DeliveryState::Pending)];
        let give_back = Some(GiveBack { account: &main, endpoint: SEND, day: QuotaDay::of(at(0)), n: 1 });
        let batch = OutcomeBatch { give_back, ..only(&put_back) };
        let recorded = house.ledger.record_outcomes(&house.lease, push.key, batch).await.unwrap();
        assert_eq!(recorded, Recorded::Yes { changed: 1 });
        assert_eq!(calls(&house).await, 21);
        drop(first);

        let second = begin(&house, &push, "second").await;
        assert_eq!(calls(&house).await, 9, "what was called");
        let again = Begin { again: &[1, 2, 3], claimed_to: 20, quota, ..fresh(&[]) };
        let _ = house.begin(&push, again).await;
        second.one();
        house.ledger.end_tally(&house.lease, push.key, (SEND, "first", 0)).await.unwrap();
        assert_eq!(calls(&house).await, 12, "not its own tally");
        house.ledger.end_tally(&house.lease, push.key, (SEND, "second", 1)).await.unwrap();
        assert_eq!(calls(&house).await, 10);
        house.ledger.end_tally(&house.lease, push.key, (SEND, "second", 1)).await.unwrap();
        assert_eq!(calls(&house).await, 10, "once");

        // Repeats that were made and not counted before the process died.
        let third = begin(&house, &push, "third").await;
        let _ = house.begin(&push, Begin { again: &[1], claimed_to: 20, quota, ..fresh(&[]) }).await;
        (0..3).for_each(|_| third.one());
        drop(third);
        house.ledger.settle_tally(&house.lease, push.key, SEND).await.unwrap();
        assert_eq!(calls(&house).await, 13);
    }

    #[tokio::test]
    async fn what_cannot_be_known_stays_counted() {
        let house = House::new().await;
        let (push, main) = (house.push("r1", 30).await, AccountName::new("main"));
        let path = house.ledger.tally_path(push.key);
        let people = people(1..=30);
        let all = intents(&people);
        // The machine died: the file has another boot's name.
        drop(begin(&house, &push, "first").await);
        let _ = house.begin(&push, Begin { quota: Some(charge(&main, 0)), ..fresh(&all[..10]) }).await;
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(&boot().unwrap(), "another boot")).unwrap();
        drop(begin(&house, &push, "second").await);
        assert_eq!(calls(&house).await, 10);
        // It is gone.
        let more = Begin { quota: Some(charge(&main, 0)), claimed_to: 20, ..fresh(&all[10..20]) };
        let _ = house.begin(&push, more).await;
        fs::remove_file(&path).unwrap();
        drop(begin(&house, &push, "third").await);
        assert_eq!(calls(&house).await, 20);
        // It went on into another day.
        let today = Begin { quota: Some(charge(&main, 0)), claimed_to: 25, ..fresh(&all[20..25]) };
        let _ = house.begin(&push, today).await;
        let tomorrow = Begin { quota: Some(charge(&main, 86_400)), claimed_to: 30, ..fresh(&all[25..]) };
        let _ = house.begin(&push, tomorrow).await;
        drop(begin(&house, &push, "fourth").await);
        assert_eq!(calls(&house).await, 30);
    }
}

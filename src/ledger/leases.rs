//! Leases: who may go on with something, until when, and how a holder who was replaced is kept from writing.
//!
//! A lease is a name with a fence. Each new holder gets a higher fence, and every write done under a lease first asks,
//! in its own transaction, whether the name still has that fence. A lease runs out by the database's clock; a holder on
//! this machine whose process is gone is replaced at once. A holder that is merely late keeps its lease as long as
//! nobody has taken it.

use std::fs;
use std::time::Duration;

use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;

use super::error::Doing;
use super::sql::Columns;
use super::{Ledger, LedgerError};

/// Who holds a lease: a process, told apart from a later one with the same number by when it started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Unique to this holding, for instance a random id; two holdings of one process have two.
    pub id: String,
    /// The machine and, inside a container, its process namespace: process numbers are comparable only within.
    pub host: String,
    pub pid: u32,
    /// When the process started, in ticks since the machine did; 0 where the system does not tell.
    pub started: u64,
}

/// The right to write under a name, as long as nobody else got a higher fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub name: String,
    pub fence: i64,
    pub holder_id: String,
}

/// What came of asking for a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Acquired {
    Mine(Lease),
    HeldBy(Holder),
}

impl Holder {
    /// This process, under an id of the caller's.
    pub fn this_process(id: String) -> Self {
        let pid = std::process::id();
        Self { id, host: this_host(), pid, started: process_start(pid).unwrap_or(0) }
    }

    /// Whether the holder's process is known to be gone. Only a process of this host can be known so.
    pub(super) fn is_dead(&self) -> bool {
        // A system without /proc tells nothing about anybody, not even about ourselves.
        self.host == this_host()
            && process_start(std::process::id()).is_some()
            && process_start(self.pid) != Some(self.started)
    }
}

impl Ledger {
    /// Takes a lease that is free, run out, or whose holder's process is known to be dead.
    ///
    /// A lease held by the same `holder.id` counts as held: one holding is one worker.
    pub async fn acquire_lease(&self, name: &str, holder: &Holder, ttl: Duration) -> Result<Acquired, LedgerError> {
        const DOING: &str = "acquire a lease";
        let mut tx = self.begin_note(DOING).await?;
        if let Some((current, in_time)) = holding(&mut tx, name).await?
            && in_time
            && !current.is_dead()
        {
            return Ok(Acquired::HeldBy(current));
        }
        let row = sqlx::query(
            "insert into leases (name, fence, holder_id, host, pid, started, expires_at)
             values ($1, 1, $2, $3, $4, $5, unixepoch('subsec') + $6)
             on conflict (name) do update set fence = leases.fence + 1, holder_id = excluded.holder_id,
                 host = excluded.host, pid = excluded.pid, started = excluded.started, expires_at = excluded.expires_at
             returning fence",
        )
        .bind(name)
        .bind(&holder.id)
        .bind(&holder.host)
        .bind(i64::from(holder.pid))
        .bind(super::sql::int(holder.started))
        .bind(ttl.as_secs_f64())
        .fetch_one(&mut *tx)
        .await
        .doing(DOING)?;
        let fence = row.read("fence")?;
        tx.commit().await.doing(DOING)?;
        Ok(Acquired::Mine(Lease { name: name.to_owned(), fence, holder_id: holder.id.clone() }))
    }

    /// Keeps a lease for `ttl` from now; false when somebody else has it.
    pub async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<bool, LedgerError> {
        let done = sqlx::query(
            "update leases set expires_at = unixepoch('subsec') + $1
             where name = $2 and fence = $3 and holder_id = $4",
        )
        .bind(ttl.as_secs_f64())
        .bind(&lease.name)
        .bind(lease.fence)
        .bind(&lease.holder_id)
        .execute(&self.notes)
        .await
        .doing("renew a lease")?;
        Ok(done.rows_affected() == 1)
    }

    /// Gives a lease back. Nothing happens when it was lost before.
    pub async fn release_lease(&self, lease: &Lease) -> Result<(), LedgerError> {
        sqlx::query(
            "update leases set holder_id = null, expires_at = null
             where name = $1 and fence = $2 and holder_id = $3",
        )
        .bind(&lease.name)
        .bind(lease.fence)
        .bind(&lease.holder_id)
        .execute(&self.notes)
        .await
        .doing("release a lease")?;
        Ok(())
    }

    /// Whether a lease still is whose it was: nobody else took it up to this moment.
    pub async fn holds(&self, lease: &Lease) -> Result<bool, LedgerError> {
        let mut connection = self.readers.acquire().await.doing("look up a lease")?;
        is_held(&mut connection, lease).await
    }

    /// Who holds a lease now: nobody when it is free, run out, or its holder is known to be dead.
    pub async fn lease_holder(&self, name: &str) -> Result<Option<Holder>, LedgerError> {
        let mut connection = self.readers.acquire().await.doing("look up a lease")?;
        let found = holding(&mut connection, name).await?;
        Ok(found.filter(|(holder, in_time)| *in_time && !holder.is_dead()).map(|(holder, _)| holder))
    }
}

/// Whether a lease still has its fence; whoever is to write asks inside the transaction that does.
pub(super) async fn is_held(connection: &mut SqliteConnection, lease: &Lease) -> Result<bool, LedgerError> {
    let row = sqlx::query("select 1 from leases where name = $1 and fence = $2 and holder_id = $3")
        .bind(&lease.name)
        .bind(lease.fence)
        .bind(&lease.holder_id)
        .fetch_optional(connection)
        .await
        .doing("look up a lease")?;
    Ok(row.is_some())
}

/// The holder that is written down, and whether its time has not run out.
async fn holding(connection: &mut SqliteConnection, name: &str) -> Result<Option<(Holder, bool)>, LedgerError> {
    let row = sqlx::query(
        "select holder_id, host, pid, started, expires_at > unixepoch('subsec') as in_time
         from leases where name = $1 and holder_id is not null",
    )
    .bind(name)
    .fetch_optional(connection)
    .await
    .doing("look up a lease")?;
    row.map(|row: SqliteRow| Ok((holder_of(&row)?, row.read("in_time")?))).transpose()
}

fn holder_of(row: &SqliteRow) -> Result<Holder, LedgerError> {
    Ok(Holder {
        id: row.text("holder_id")?,
        host: row.text("host")?,
        pid: row.read("pid")?,
        started: row.count("started")?,
    })
}

/// The machine's name, and the process namespace where that is not the machine's first.
fn this_host() -> String {
    const FIRST_NAMESPACE: &str = "pid:[4026531836]";
    let name = fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map_or_else(|| "this machine".to_owned(), |name| name.trim().to_owned());
    match fs::read_link("/proc/self/ns/pid") {
        Ok(namespace) if namespace.as_os_str() != FIRST_NAMESPACE => format!("{name} {}", namespace.display()),
        _ => name,
    }
}

/// When a process started (field 22 of its `stat`), or `None` when there is none. A process that has ended but was not
/// yet waited for by its parent is none.
fn process_start(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets and may hold anything, brackets and spaces too.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    let start = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn mine(acquired: Acquired) -> Lease {
        match acquired {
            Acquired::Mine(lease) => lease,
            Acquired::HeldBy(holder) => panic!("held by {holder:?}"),
        }
    }

    #[tokio::test]
    async fn of_two_ledgers_that_race_for_a_lease_one_gets_it() {
        let house = House::new().await;
        let other = Ledger::open(&house.path).await.unwrap();
        for round in 0..20 {
            let name = format!("run:{round}");
            let (one, two) = (Holder::this_process("one".into()), Holder::this_process("two".into()));
            let (a, b) =
                tokio::join!(house.ledger.acquire_lease(&name, &one, MINUTE), other.acquire_lease(&name, &two, MINUTE));
            let won = [a.unwrap(), b.unwrap()].iter().filter(|got| matches!(got, Acquired::Mine(_))).count();
            assert_eq!(won, 1);
        }
    }

    #[tokio::test]
    async fn a_dead_process_of_this_machine_is_replaced_at_once() {
        let house = House::new().await;
        let mut child = tokio::process::Command::new("sleep")
            .arg("60")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let pid = child.id().unwrap();
        let holder = Holder { id: "child".into(), host: this_host(), pid, started: process_start(pid).unwrap() };
        let first = mine(house.ledger.acquire_lease("run:x", &holder, MINUTE).await.unwrap());
        let me = Holder::this_process("me".into());
        assert_eq!(house.ledger.acquire_lease("run:x", &me, MINUTE).await.unwrap(), Acquired::HeldBy(holder.clone()));
        assert_eq!(house.ledger.lease_holder("run:x").await.unwrap(), Some(holder));
        child.kill().await.unwrap();
        assert_eq!(house.ledger.lease_holder("run:x").await.unwrap(), None);
        let second = mine(house.ledger.acquire_lease("run:x", &me, MINUTE).await.unwrap());
        assert!(second.fence > first.fence);
        assert!(!house.ledger.renew_lease(&first, MINUTE).await.unwrap());
    }

    #[tokio::test]
    async fn a_process_number_used_again_is_another_process() {
        let house = House::new().await;
        let mut before = Holder::this_process("before".into());
        before.started += 1;
        let _ = mine(house.ledger.acquire_lease("run:x", &before, MINUTE).await.unwrap());
        let _ = mine(house.ledger.acquire_lease("run:x", &Holder::this_process("me".into()), MINUTE).await.unwrap());
    }

    #[tokio::test]
    async fn a_holder_elsewhere_keeps_its_lease_until_it_runs_out() {
        let house = House::new().await;
        let far = Holder { id: "far".into(), host: "elsewhere".into(), pid: 1, started: 1 };
        let me = Holder::this_process("me".into());
        let _ = mine(house.ledger.acquire_lease("run:x", &far, MINUTE).await.unwrap());
        assert_eq!(house.ledger.acquire_lease("run:x", &me, MINUTE).await.unwrap(), Acquired::HeldBy(far.clone()));
        let _ = mine(house.ledger.acquire_lease("run:y", &far, Duration::ZERO).await.unwrap());
        let _ = mine(house.ledger.acquire_lease("run:y", &me, MINUTE).await.unwrap());
    }

    #[tokio::test]
    async fn a_released_lease_is_free_and_its_fence_goes_on_growing() {
        let house = House::new().await;
        let me = Holder::this_process("me".into());
        let first = mine(house.ledger.acquire_lease("run:x", &me, MINUTE).await.unwrap());
        house.ledger.release_lease(&first).await.unwrap();
        assert_eq!(house.ledger.lease_holder("run:x").await.unwrap(), None);
        let second = mine(house.ledger.acquire_lease("run:x", &me, MINUTE).await.unwrap());
        house.ledger.release_lease(&first).await.unwrap();
        assert_eq!(second.fence, first.fence + 1);
        assert_eq!(house.ledger.lease_holder("run:x").await.unwrap(), Some(me));
    }
}

//! Applying events that are due: one transaction a batch, in which everything is looked up, decided and written.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, SqliteConnection};

use crate::clock::{Timestamp, to_micros};
use crate::domain::{AccountName, Candidate, Delivered, DeliveryState, Finish, Finished, OpenId, finish};
use crate::ledger::deliveries::{index_msgids, index_openids};
use crate::ledger::error::Doing;
use crate::ledger::marks::{self, NewMark};
use crate::ledger::pushes::Growth;
use crate::ledger::sql::{Columns, batches, int, read_all, repeated};
use crate::ledger::{Ledger, LedgerError, forgotten};

const DOING: &str = "apply events";
const FINISH_EVENT: &str = "TEMPLATESENDJOBFINISH";
/// The first wait of an event that is early, in microseconds; it doubles.
const FIRST_WAIT_MICROS: i64 = 1_000_000;
const LONGEST_WAIT_MICROS: i64 = 600_000_000;
/// Deliveries that an event may be about though none has its id: each in the words of the index that holds these few.
const OPEN_ENDS: [&str; 3] = [
    "d.state = 'sending'",
    "d.state = 'pending' and d.first_try_at is not null",
    "(d.state in ('held', 'unconfirmed') or (d.state = 'sent' and d.msgid is null))",
];
/// Doubled so often at most.
const DOUBLINGS: i64 = 10;
/// Times of events are whole seconds, rounded down.
const SECOND_MICROS: i64 = 1_000_000;

/// What came of a batch of events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// Events that were due and were looked at.
    pub looked_at: u64,
    /// Deliveries that learnt what became of them.
    pub told: u64,
    /// Of these, those that were held or unconfirmed.
    pub settled: u64,
    /// People who came or went.
    pub marked: u64,
    /// Events that wait for the outcome of a send.
    pub early: u64,
}

impl std::ops::AddAssign for Applied {
    fn add_assign(&mut self, other: Self) {
        self.looked_at += other.looked_at;
        self.told += other.told;
        self.settled += other.settled;
        self.marked += other.marked;
        self.early += other.early;
    }
}

/// What an event came to, as its row says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Told,
    Settled,
    Known,
    Early,
    Unmatched,
    Marked,
    /// A later walk of the followers knows better.
    Older,
    /// Of a kind that changes nothing here.
    Ignored,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Told => "told",
            Self::Settled => "settled",
            Self::Known => "known",
            Self::Early => "early",
            Self::Unmatched => "unmatched",
            Self::Marked => "marked",
            Self::Older => "older",
            Self::Ignored => "ignored",
        }
    }
}

/// An event that is due.
struct Due {
    id: i64,
    account: AccountName,
    openid: OpenId,
    created_at: Timestamp,
    event: String,
    msgid: i64,
    status: String,
}

impl Due {
    fn finish(&self) -> Option<Finish> {
        (self.event == FINISH_EVENT).then(|| Finish {
            msgid: (self.msgid != 0).then_some(self.msgid),
            at: self.created_at,
            delivered: Delivered::of_status(&self.status),
        })
    }
}

/// A delivery that learns something.
struct Word<'a> {
    push_key: i64,
    seq: u64,
    to: DeliveryState,
    event: &'a Due,
    delivered: Delivered,
}

impl Ledger {
    /// Applies at most `limit` events that are due, in one transaction. `looked_at` below `limit`: none is left.
    ///
    /// # Errors
    ///
    /// [`LedgerError`]; nothing of the batch was applied then.
    pub async fn apply_callbacks(&self, limit: u32, now: Timestamp) -> Result<Applied, LedgerError> {
        if !self.has_due(now).await? {
            return Ok(Applied::default());
        }
        let mut tx = self.begin(DOING).await?;
        let due = select_due(&mut tx, limit, now).await?;
        let mut people = People::gather(&mut tx, &due).await?;
        let walks = walks_began(&mut tx).await?;
        let (mut outcomes, mut words) = (BTreeMap::<Outcome, Vec<i64>>::new(), Vec::new());
        for event in &due {
            let outcome = match event.finish() {
                Some(said) => people.decide(event, &said, &mut words),
                None => mark(&mut tx, event, &walks).await?,
            };
            outcomes.entry(outcome).or_default().push(event.id);
        }
        write_words(&mut tx, &words, now).await?;
        settle(&mut tx, &words, &people, now).await?;
        for (outcome, ids) in &outcomes {
            write_outcome(&mut tx, *outcome, ids, now).await?;
        }
        tx.commit().await.doing(DOING)?;
        let count = |wanted: Outcome| outcomes.get(&wanted).map_or(0, |ids| rows(ids.len()));
        Ok(Applied {
            looked_at: rows(due.len()),
            told: count(Outcome::Told) + count(Outcome::Settled),
            settled: count(Outcome::Settled),
            marked: count(Outcome::Marked),
            early: count(Outcome::Early),
        })
    }

    async fn has_due(&self, now: Timestamp) -> Result<bool, LedgerError> {
        sqlx::query_scalar("select exists (select 1 from callbacks where due_at <= $1)")
            .bind(to_micros(now))
            .fetch_one(&self.readers)
            .await
            .doing(DOING)
    }
}

async fn select_due(tx: &mut SqliteConnection, limit: u32, now: Timestamp) -> Result<Vec<Due>, LedgerError> {
    let rows = sqlx::query(
        "select id, account, openid, created_at, event, msgid, coalesce(status, '') as status from callbacks
         where due_at <= $1 order by due_at, id limit $2",
    )
    .bind(to_micros(now))
    .bind(limit)
    .fetch_all(tx)
    .await
    .doing(DOING)?;
    read_all(rows, |row| {
        Ok(Due {
            id: row.read("id")?,
            account: AccountName::new(row.text("account")?),
            openid: OpenId::new(row.text("openid")?),
            created_at: row.time("created_at")?,
            event: row.text("event")?,
            msgid: row.read("msgid")?,
            status: row.text("status")?,
        })
    })
}

type Person = (AccountName, OpenId);

/// The deliveries of the people whom a batch tells of, changed as the batch is decided.
#[derive(Default)]
struct People {
    deliveries: HashMap<Person, Vec<Candidate>>,
    /// Where each that was settled came from.
    settled: HashMap<(i64, u64), DeliveryState>,
}

impl People {
    /// Looks up by id first; by person among the few whose end is open where no id finds anybody; and among everybody
    /// sent to only where an event names no message: nothing else needs that index.
    async fn gather(tx: &mut SqliteConnection, due: &[Due]) -> Result<Self, LedgerError> {
        let mut people = Self::default();
        let finished = || due.iter().filter(|event| event.event == FINISH_EVENT);
        let msgids = distinct(finished().map(|event| event.msgid).filter(|msgid| *msgid != 0));
        if !msgids.is_empty() {
            index_msgids(tx).await?;
        }
        for msgids in batches(&msgids) {
            let sql = candidates(&format!("d.msgid in ({})", repeated("?", msgids.len())));
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for msgid in msgids {
                query = query.bind(*msgid);
            }
            people.add(&query.fetch_all(&mut *tx).await.doing(DOING)?)?;
        }
        let strangers = finished().filter(|event| {
            // Under the name of everybody who was forgotten stand several people: only a msgid tells them apart.
            event.msgid != 0 && event.openid.as_str() != forgotten::NOBODY && !people.holds(event)
        });
        let strangers = distinct(strangers.map(|event| event.openid.as_str()));
        for open in OPEN_ENDS {
            people.add_of(tx, &strangers, open).await?;
        }
        let nameless = distinct(finished().filter(|event| event.msgid == 0).map(|event| event.openid.as_str()));
        if !nameless.is_empty() {
            index_openids(tx).await?;
            people.add_of(tx, &nameless, "true").await?;
        }
        Ok(people)
    }

    /// Adds the deliveries to these people that are like `filter`, one of ours.
    async fn add_of(&mut self, tx: &mut SqliteConnection, openids: &[&str], filter: &str) -> Result<(), LedgerError> {
        for openids in batches(openids) {
            let sql = candidates(&format!("{filter} and d.openid in ({})", repeated("?", openids.len())));
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for openid in openids {
                query = query.bind(*openid);
            }
            self.add(&query.fetch_all(&mut *tx).await.doing(DOING)?)?;
        }
        Ok(())
    }

    fn holds(&self, event: &Due) -> bool {
        let own = self.deliveries.get(&(event.account.clone(), event.openid.clone()));
        own.is_some_and(|own| own.iter().any(|one| one.msgid == Some(event.msgid)))
    }

    fn add(&mut self, rows: &[SqliteRow]) -> Result<(), LedgerError> {
        for row in rows {
            let person = (AccountName::new(row.text("account")?), OpenId::new(row.text("openid")?));
            let delivered = row.optional_text("delivered")?.and_then(|word| Delivered::parse(&word));
            let candidate = Candidate {
                push_key: row.read("push_key")?,
                seq: row.count("seq")?,
                state: row.word("state", DeliveryState::parse)?,
                msgid: row.read("msgid")?,
                first_try_at: row.optional_time("first_try_at")?,
                delivered: delivered.zip(row.optional_time("delivered_at")?),
            };
            let own = self.deliveries.entry(person).or_default();
            if !own.iter().any(|one| (one.push_key, one.seq) == (candidate.push_key, candidate.seq)) {
                own.push(candidate);
            }
        }
        Ok(())
    }

    fn decide<'a>(&mut self, event: &'a Due, said: &Finish, words: &mut Vec<Word<'a>>) -> Outcome {
        let own = self.deliveries.entry((event.account.clone(), event.openid.clone())).or_default();
        match finish(said, own) {
            Finished::Known => Outcome::Known,
            Finished::Early => Outcome::Early,
            Finished::Unmatched => Outcome::Unmatched,
            Finished::Told { push_key, seq, from, to } => {
                let mut told = own.iter_mut().filter(|one| (one.push_key, one.seq) == (push_key, seq));
                told.by_ref().for_each(|one| {
                    (one.state, one.delivered) = (to, Some((said.delivered, said.at)));
                    one.msgid = one.msgid.or(said.msgid);
                });
                words.push(Word { push_key, seq, to, event, delivered: said.delivered });
                if from == to {
                    return Outcome::Told;
                }
                self.settled.insert((push_key, seq), from);
                Outcome::Settled
            }
        }
    }
}

fn candidates(filter: &str) -> String {
    format!(
        "select p.account, d.push_key, d.seq, d.state, d.msgid, d.openid, d.first_try_at, d.delivered, d.delivered_at
         from deliveries as d join pushes as p on p.key = d.push_key where {filter}"
    )
}

fn distinct<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// When the walk behind each account's current followers began.
async fn walks_began(tx: &mut SqliteConnection) -> Result<HashMap<String, i64>, LedgerError> {
    let rows = sqlx::query(
        "select slice, min(as_of) as as_of from snapshots
         where events_to is not null and published_at is not null and superseded_at is null group by slice",
    )
    .fetch_all(tx)
    .await
    .doing(DOING)?;
    let walks = read_all(rows, |row| Ok((row.text("slice")?, row.read("as_of")?)))?;
    Ok(walks.into_iter().collect())
}

async fn mark(tx: &mut SqliteConnection, event: &Due, walks: &HashMap<String, i64>) -> Result<Outcome, LedgerError> {
    let is_active = match event.event.as_str() {
        "subscribe" => true,
        "unsubscribe" => false,
        _ => return Ok(Outcome::Ignored),
    };
    let began = walks.get(event.account.as_str()).copied().unwrap_or(i64::MIN);
    if to_micros(event.created_at).saturating_add(SECOND_MICROS) <= began {
        return Ok(Outcome::Older);
    }
    let Due { account, openid, created_at, .. } = event;
    marks::upsert(tx, &NewMark { account, openid, is_active, at: *created_at, source: "event" }).await?;
    Ok(Outcome::Marked)
}

/// Writes what deliveries learnt. The form is that of outcomes: an upsert fed from a join is one lookup per row.
async fn write_words(tx: &mut SqliteConnection, words: &[Word<'_>], now: Timestamp) -> Result<(), LedgerError> {
    for words in batches(words) {
        let sql = format!(
            "insert into deliveries (push_key, seq, state, attempt, openid, msgid, delivered, delivered_at, updated_at)
             select d.push_key, d.seq, d.state, d.attempt, d.openid, v.column3, v.column4, v.column5, ?
             from (values {}) as v cross join deliveries as d
             where d.push_key = v.column1 and d.seq = v.column2
             on conflict (push_key, seq) do update set msgid = coalesce(deliveries.msgid, excluded.msgid),
                 delivered = excluded.delivered, delivered_at = excluded.delivered_at,
                 updated_at = excluded.updated_at",
            repeated("(?,?,?,?,?)", words.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(to_micros(now));
        for word in words {
            query = query
                .bind(word.push_key)
                .bind(int(word.seq))
                .bind((word.event.msgid != 0).then_some(word.event.msgid))
                .bind(word.delivered.as_str())
                .bind(to_micros(word.event.created_at));
        }
        query.execute(&mut *tx).await.doing(DOING)?;
    }
    let pushes: BTreeSet<i64> = words.iter().map(|word| word.push_key).collect();
    for push_key in pushes {
        Growth::default().apply(tx, push_key).await?;
    }
    Ok(())
}

/// Settles what was held or unconfirmed, and moves the counts of its push by as much.
async fn settle(
    tx: &mut SqliteConnection,
    words: &[Word<'_>],
    people: &People,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let mut growths: BTreeMap<i64, Growth> = BTreeMap::new();
    for word in words {
        let Some(from) = people.settled.get(&(word.push_key, word.seq)).filter(|from| **from != word.to) else {
            continue;
        };
        let reason = (word.to == DeliveryState::Failed).then_some(word.event.status.as_str());
        let done = sqlx::query(
            "update deliveries set state = $1, reason = $2, errcode = null, retry_at = null, updated_at = $3,
                 sent_at = case when $1 = 'sent' then coalesce(sent_at, $4) else sent_at end
             where push_key = $5 and seq = $6 and state = $7",
        )
        .bind(word.to.as_str())
        .bind(reason)
        .bind(to_micros(now))
        .bind(to_micros(word.event.created_at))
        .bind(word.push_key)
        .bind(int(word.seq))
        .bind(from.as_str())
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        if done.rows_affected() == 1 {
            let growth = growths.entry(word.push_key).or_default();
            growth.count(*from, -1);
            growth.count(word.to, 1);
        }
    }
    for (push_key, growth) in growths {
        growth.apply(tx, push_key).await?;
    }
    Ok(())
}

async fn write_outcome(
    tx: &mut SqliteConnection,
    outcome: Outcome,
    ids: &[i64],
    now: Timestamp,
) -> Result<(), LedgerError> {
    let next = match outcome {
        Outcome::Early => format!("? + min({FIRST_WAIT_MICROS} << min(looks, {DOUBLINGS}), {LONGEST_WAIT_MICROS})"),
        _ => "null".to_owned(),
    };
    for ids in batches(ids) {
        let sql = format!(
            "update callbacks set outcome = ?, applied_at = ?, due_at = {next}, looks = looks + 1 where id in ({})",
            repeated("?", ids.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(outcome.as_str()).bind(to_micros(now));
        if outcome == Outcome::Early {
            query = query.bind(to_micros(now));
        }
        for id in ids {
            query = query.bind(*id);
        }
        query.execute(&mut *tx).await.doing(DOING)?;
    }
    Ok(())
}

fn rows(count: usize) -> u64 {
    u64::try_from(count).expect("a count of rows in memory fits 64 bits")
}

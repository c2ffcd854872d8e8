//! Frequency caps at the send: how many messages a person has had within a time, over all accounts. The deliveries are the
//! account of it: whoever accepted one is charged by its row, and what was refused, or was not delivered in the end,
//! charges nothing. Asked in the transaction that claims, and only while another push may have sent since the set was made.

use std::collections::{HashMap, HashSet};

use sqlx::{AssertSqlSafe, SqliteConnection};

use super::deliveries::index_openids;
use super::error::Doing;
use super::sql::{Columns, batches, int, repeated};
use super::{Begin, LedgerError, repeats};
use crate::clock::{Timestamp, to_micros};
use crate::domain::{OpenId, UnionId};

/// At most so many messages to a person since a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapRule {
    pub messages: u32,
    pub since: Timestamp,
}

/// Who of a batch may not be sent to now.
#[derive(Debug, Default)]
pub(super) struct Capped {
    /// Had as many as the cap allows.
    pub(super) over: HashSet<OpenId>,
    /// Is being sent what would be the last: known a little later.
    pub(super) near: HashSet<OpenId>,
}

type People<'a> = [(&'a OpenId, Option<&'a UnionId>)];

/// Why whoever had enough is skipped.
pub(super) const REASON: &str = "frequency_cap";
const DOING: &str = "look up who has had enough messages";

/// Judges everybody of a batch who is not in flight already.
pub(super) async fn of_batch(
    tx: &mut SqliteConnection,
    push_key: i64,
    batch: &Begin<'_>,
) -> Result<Capped, LedgerError> {
    let Some(rule) = batch.cap else { return Ok(Capped::default()) };
    let again = not_in_flight(tx, push_key, batch.again).await?;
    let fresh = batch.fresh.iter().map(|intent| (intent.openid, intent.unionid));
    let people: Vec<_> = fresh.chain(again.iter().map(|(_, openid, unionid)| (openid, unionid.as_ref()))).collect();
    judge(tx, push_key, rule, &people).await
}

/// Leaves out whoever of those again has had enough meanwhile.
pub(super) async fn skip_again(
    tx: &mut SqliteConnection,
    push_key: i64,
    over: &HashSet<OpenId>,
    batch: &Begin<'_>,
) -> Result<(), LedgerError> {
    if over.is_empty() || batch.again.is_empty() {
        return Ok(());
    }
    let again = not_in_flight(tx, push_key, batch.again).await?;
    let left_out: Vec<(u64, &str)> =
        again.iter().filter(|(_, openid, _)| over.contains(openid)).map(|(seq, ..)| (*seq, REASON)).collect();
    repeats::leave_out(tx, push_key, (&left_out, batch.now)).await
}

/// Those of `again` who were put back, or may be sent to once more.
async fn not_in_flight(
    tx: &mut SqliteConnection,
    push_key: i64,
    again: &[u64],
) -> Result<Vec<(u64, OpenId, Option<UnionId>)>, LedgerError> {
    let mut people = Vec::new();
    for seqs in batches(again) {
        let sql = format!(
            "select seq, openid, unionid from deliveries
             where push_key = ? and state in ('pending', 'unconfirmed') and seq in ({})",
            repeated("?", seqs.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql)).bind(push_key);
        for seq in seqs {
            query = query.bind(int(*seq));
        }
        for row in query.fetch_all(&mut *tx).await.doing(DOING)? {
            let unionid = row.optional_text("unionid")?.map(UnionId::new);
            people.push((row.count("seq")?, OpenId::new(row.text("openid")?), unionid));
        }
    }
    Ok(people)
}

/// Judges people by what other pushes sent them.
async fn judge(
    tx: &mut SqliteConnection,
    push_key: i64,
    rule: CapRule,
    people: &People<'_>,
) -> Result<Capped, LedgerError> {
    if people.is_empty() || !others_sent(tx, push_key).await? {
        return Ok(Capped::default());
    }
    index_people(tx).await?;
    let mut had: HashMap<String, (u64, u64)> = HashMap::new();
    let unionids: Vec<&str> = people.iter().filter_map(|(_, unionid)| Some(unionid.as_ref()?.as_str())).collect();
    let openids: Vec<&str> =
        people.iter().filter(|(_, unionid)| unionid.is_none()).map(|(openid, _)| openid.as_str()).collect();
    let former = former(tx, &openids).await?;
    let openids: Vec<&str> = openids.iter().copied().chain(former.keys().map(String::as_str)).collect();
    for (column, ids) in [("d.unionid", unionids), ("d.unionid is null and d.openid", openids)] {
        for ids in batches(&ids) {
            count(tx, (push_key, rule), (column, ids), &mut had).await?;
        }
    }
    for (old, new) in &former {
        let (charged, under_way) = had.get(old).copied().unwrap_or_default();
        let entry = had.entry(new.clone()).or_default();
        *entry = (entry.0 + charged, entry.1 + under_way);
    }
    let most = u64::from(rule.messages);
    let mut capped = Capped::default();
    for (openid, unionid) in people {
        let person = unionid.map_or(openid.as_str(), UnionId::as_str);
        let Some((charged, under_way)) = had.get(person) else { continue };
        if *charged >= most {
            capped.over.insert((*openid).clone());
        } else if charged + under_way >= most {
            capped.near.insert((*openid).clone());
        }
    }
    Ok(capped)
}

/// The openids that these people had before their account was moved, as far as a message went to one: old to new.
async fn former(tx: &mut SqliteConnection, openids: &[&str]) -> Result<HashMap<String, String>, LedgerError> {
    let mut former = HashMap::new();
    for ids in batches(openids) {
        let marks = repeated("?", ids.len());
        let sql = format!("select openid, new_openid from former_openids where new_openid in ({marks})");
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for id in ids {
            query = query.bind(*id);
        }
        for row in query.fetch_all(&mut *tx).await.doing(DOING)? {
            former.insert(row.text("openid")?, row.text("new_openid")?);
        }
    }
    Ok(former)
}

/// Whether any other push may have sent since this one's set was made; what was sent before is in the set already.
async fn others_sent(tx: &mut SqliteConnection, push_key: i64) -> Result<bool, LedgerError> {
    sqlx::query_scalar(
        "select exists (
             select 1 from pushes as other
             where other.key <> $1 and not other.is_test and other.claimed > 0
                 and (other.ended_at is null or other.ended_at >= (
                     select r.started_at from pushes as p join runs as r on r.run_id = p.run_id where p.key = $1)))",
    )
    .bind(push_key)
    .fetch_one(tx)
    .await
    .doing(DOING)
}

/// Takes a second for a million rows, once; a push that is capped beside no other never pays for it.
async fn index_people(tx: &mut SqliteConnection) -> Result<(), LedgerError> {
    index_openids(tx).await?;
    sqlx::query("create index if not exists deliveries_by_unionid on deliveries (unionid) where unionid is not null")
        .execute(tx)
        .await
        .doing(DOING)?;
    Ok(())
}

/// Adds what these people had: messages that count, and those under way.
async fn count(
    tx: &mut SqliteConnection,
    (push_key, rule): (i64, CapRule),
    (column, ids): (&str, &[&str]),
    had: &mut HashMap<String, (u64, u64)>,
) -> Result<(), LedgerError> {
    let sql = format!(
        "select coalesce(d.unionid, d.openid) as person, d.state = 'sending' as under_way, count(*) as n
         from deliveries as d join pushes as p on p.key = d.push_key
         where d.push_key <> ? and not p.is_test and d.state in ('sent', 'held', 'unconfirmed', 'sending')
             and (d.delivered is null or d.delivered = 'success')
             and coalesce(d.sent_at, d.first_try_at, d.updated_at) > ? and {column} in ({})
         group by 1, 2",
        repeated("?", ids.len())
    );
    let mut query = sqlx::query(AssertSqlSafe(sql)).bind(push_key).bind(to_micros(rule.since));
    for id in ids {
        query = query.bind(*id);
    }
    for row in query.fetch_all(tx).await.doing(DOING)? {
        let entry = had.entry(row.text("person")?).or_default();
        let n = row.count("n")?;
        match row.read::<bool>("under_way")? {
            true => entry.1 += n,
            false => entry.0 += n,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::super::{Begun, Push};
    use super::*;
    use crate::domain::{Counts, DeliveryState};

    const RULE: CapRule = CapRule { messages: 1, since: Timestamp::UNIX_EPOCH };

    async fn claim(house: &House, push: &Push, seqs: std::ops::RangeInclusive<u64>) -> Vec<u64> {
        let people = people(seqs);
        let intents = intents(&people);
        let batch = Begin { cap: Some(RULE), ..fresh(&intents) };
        let Begun::Yes { attempts } = house.begin(push, batch).await else { panic!("nothing was claimed") };
        attempts.into_iter().map(|(seq, _)| seq).collect()
    }

    #[tokio::test]
    async fn a_message_to_the_openid_of_before_is_charged_to_that_of_now() {
        let house = House::new().await;
        let (first, second) = (house.push("r1", 2).await, house.push("r2", 2).await);
        assert_eq!(claim(&house, &first, 1..=2).await, [1, 2]);
        let _ = house.record(&first, &[outcome(1, 1, DeliveryState::Sent), outcome(2, 1, DeliveryState::Failed)]).await;
        let sql = "insert into account_moves (id, account, from_app_id, to_app_id, run_id, list_path, people, followers, started_at)
             values (1, 'main', 'a', 'b', 'move-1', '', 0, 0, 0);
             insert into former_openids (new_openid, openid, account, move_id)
             select 'new-' || openid, openid, 'main', 1 from deliveries";
        sqlx::raw_sql(sql).execute(&house.ledger.writer).await.unwrap();
        let now: Vec<_> = people(1..=2)
            .into_iter()
            .map(|(seq, openid)| (seq, OpenId::new(format!("new-{}", openid.as_str()))))
            .collect();
        let intents = intents(&now);
        let batch = Begin { cap: Some(RULE), ..fresh(&intents) };
        let Begun::Yes { attempts } = house.begin(&second, batch).await else { panic!("nothing was claimed") };
        assert_eq!(attempts.into_iter().map(|(seq, _)| seq).collect::<Vec<_>>(), [2]);
        assert_eq!(house.reload(&second).await.counts.skipped, 1);
    }

    #[tokio::test]
    async fn a_cap_is_charged_on_acceptance_and_given_back_on_failure() {
        let house = House::new().await;
        let (first, second) = (house.push("r1", 4).await, house.push("r2", 4).await);
        assert_eq!(claim(&house, &first, 1..=4).await, [1, 2, 3, 4]);
        let ends = [
            outcome(1, 1, DeliveryState::Sent),
            outcome(2, 1, DeliveryState::Failed),
            outcome(3, 1, DeliveryState::Unconfirmed),
        ];
        let _ = house.record(&first, &ends).await;
        // One has had it, one was refused, one may have had it, and one is being sent to at this moment.
        assert_eq!(claim(&house, &second, 1..=4).await, [2]);
        let counts = house.reload(&second).await.counts;
        assert_eq!(counts, Counts { recipients: 4, skipped: 2, pending: 2, ..Counts::default() });
        let _ = house.record(&first, &[outcome(4, 1, DeliveryState::Failed)]).await;
        let again = Begin { again: &[4], claimed_to: 4, now: at(9), cap: Some(RULE), ..fresh(&[]) };
        assert_eq!(house.begin(&second, again).await, Begun::Yes { attempts: vec![(4, 1)] });
        let _ = house.record(&second, &[outcome(4, 1, DeliveryState::Pending)]).await;
        let third = house.push("r3", 4).await;
        let people = people(4..=4);
        let _ = house.begin(&third, fresh(&intents(&people))).await;
        let _ = house.record(&third, &[outcome(4, 1, DeliveryState::Sent)]).await;
        let again = Begin { again: &[4], claimed_to: 4, now: at(20), cap: Some(RULE), ..fresh(&[]) };
        assert_eq!(
            house.begin(&second, again).await,
            Begun::Yes { attempts: vec![] },
            "whoever was put back is looked at again"
        );
        assert_eq!(house.reload(&second).await.counts, house.ledger.state_counts(second.key).await.unwrap());
        assert_eq!(house.reload(&second).await.counts.skipped, 3);
    }
}

//! Messages that the platform's review holds: of which templates it is to be asked, and what it said. What passes comes as
//! a finish event; only what was refused is learnt by asking.

use sqlx::SqliteConnection;

use super::error::Doing;
use super::pushes::Growth;
use super::sql::{Columns, int, read_all};
use super::{Ledger, LedgerError};
use crate::clock::{Timestamp, to_micros};
use crate::domain::{AccountName, DeliveryState, OpenId, TemplateId};

/// A template of which messages are held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Review {
    pub account: AccountName,
    pub template_id: TemplateId,
    /// The newest refused message that was ever read; 0: none.
    pub largest_id: u64,
}

/// When it is worth asking.
#[derive(Debug, Clone, Copy)]
pub struct ReviewTimes {
    /// Held since before this: decided by now.
    pub held_before: Timestamp,
    /// Held since after this: not given up yet.
    pub held_after: Timestamp,
    /// Not asked since this.
    pub asked_before: Timestamp,
}

/// A message that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedMessage {
    pub openid: OpenId,
    pub sent_at: Option<Timestamp>,
}

/// The platform's time of a message is that of its send or that of the decision: no earlier than the send but for two
/// clocks, and no later than a day after it.
const SKEW_MICROS: i64 = 15 * 60 * 1_000_000;
const LATEST_MICROS: i64 = 24 * 3_600 * 1_000_000;
const DOING: &str = "follow up messages under review";

impl Ledger {
    /// The templates that are to be asked about now; costs one look when nothing is held.
    pub async fn reviews_due(&self, times: ReviewTimes) -> Result<Vec<Review>, LedgerError> {
        // The first condition is that of the small index.
        let rows = sqlx::query(
            "select distinct p.account, p.template_id, coalesce(r.largest_id, 0) as largest_id
             from deliveries as d join pushes as p on p.key = d.push_key
             left join reviews as r on r.account = p.account and r.template_id = p.template_id
             where (d.state in ('held', 'unconfirmed') or (d.state = 'sent' and d.msgid is null))
                 and d.state = 'held' and d.updated_at between $1 and $2
                 and (r.asked_at is null or r.asked_at <= $3)
             order by p.account, p.template_id",
        )
        .bind(to_micros(times.held_after))
        .bind(to_micros(times.held_before))
        .bind(to_micros(times.asked_before))
        .fetch_all(&self.readers)
        .await
        .doing(DOING)?;
        read_all(rows, |row| {
            Ok(Review {
                account: AccountName::new(row.text("account")?),
                template_id: TemplateId::new(row.text("template_id")?),
                largest_id: row.count("largest_id")?,
            })
        })
    }

    /// Settles what was refused as failed, and remembers that it was asked and how far the list was read. Returns how many
    /// deliveries were settled. `review` carries the newest id that is known now.
    pub async fn apply_review(
        &self,
        review: &Review,
        refused: &[RefusedMessage],
        now: Timestamp,
    ) -> Result<u64, LedgerError> {
        let mut tx = self.begin(DOING).await?;
        let mut settled = 0;
        for message in refused {
            settled += refuse(&mut tx, review, message, now).await?;
        }
        sqlx::query(
            "insert into reviews (account, template_id, asked_at, largest_id) values ($1, $2, $3, $4)
             on conflict (account, template_id) do update set asked_at = excluded.asked_at,
                 largest_id = max(reviews.largest_id, excluded.largest_id)",
        )
        .bind(review.account.as_str())
        .bind(review.template_id.as_str())
        .bind(to_micros(now))
        .bind(int(review.largest_id))
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        tx.commit().await.doing(DOING)?;
        Ok(settled)
    }
}

/// The latest held message of the template to this person, sent about then.
async fn refuse(
    tx: &mut SqliteConnection,
    review: &Review,
    message: &RefusedMessage,
    now: Timestamp,
) -> Result<u64, LedgerError> {
    let found = sqlx::query(
        "select d.push_key, d.seq from deliveries as d join pushes as p on p.key = d.push_key
         where (d.state in ('held', 'unconfirmed') or (d.state = 'sent' and d.msgid is null))
             and d.state = 'held' and d.openid = $1 and p.account = $2 and p.template_id = $3
             and ($4 is null or $4 between d.updated_at - $5 and d.updated_at + $6)
         order by d.updated_at desc limit 1",
    )
    .bind(message.openid.as_str())
    .bind(review.account.as_str())
    .bind(review.template_id.as_str())
    .bind(message.sent_at.map(to_micros))
    .bind(SKEW_MICROS)
    .bind(LATEST_MICROS)
    .fetch_optional(&mut *tx)
    .await
    .doing(DOING)?;
    let Some(found) = found else { return Ok(0) };
    let (push_key, seq): (i64, u64) = (found.read("push_key")?, found.count("seq")?);
    sqlx::query(
        "update deliveries set state = 'failed', reason = 'refused by WeChat''s review', updated_at = $1
         where push_key = $2 and seq = $3 and state = 'held'",
    )
    .bind(to_micros(now))
    .bind(push_key)
    .bind(int(seq))
    .execute(&mut *tx)
    .await
    .doing(DOING)?;
    let mut growth = Growth::default();
    growth.count(DeliveryState::Held, -1);
    growth.count(DeliveryState::Failed, 1);
    growth.apply(tx, push_key).await?;
    Ok(1)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[tokio::test]
    async fn what_the_review_refused_fails_once_and_a_template_is_not_asked_about_again_at_once() {
        let house = House::new().await;
        let push = house.push("r1", 3).await;
        let people = people(1..=3);
        let _ = house.begin(&push, fresh(&intents(&people))).await;
        let held = [outcome(1, 1, DeliveryState::Held), outcome(2, 1, DeliveryState::Held)];
        let _ = house.record(&push, &held).await;
        let times = |now: i64| ReviewTimes {
            held_before: at(now - 1_800),
            held_after: at(now - 86_400),
            asked_before: at(now - 1_800),
        };
        assert!(house.ledger.reviews_due(times(600)).await.unwrap().is_empty(), "too early to know");
        let due = house.ledger.reviews_due(times(3_600)).await.unwrap();
        let [review] = due.as_slice() else { panic!("{due:?}") };
        assert_eq!((&review.account, &review.template_id, review.largest_id), (&push.account, &push.template_id, 0));
        let refused = RefusedMessage { openid: people[0].1.clone(), sent_at: None };
        let stranger = RefusedMessage { openid: OpenId::new("nobody"), sent_at: Some(at(0)) };
        let long_ago = RefusedMessage { openid: people[1].1.clone(), sent_at: Some(at(-100_000)) };
        let all = [refused, stranger, long_ago];
        let review = Review { largest_id: 9, ..review.clone() };
        assert_eq!(house.ledger.apply_review(&review, &all, at(3_600)).await.unwrap(), 1);
        assert_eq!(house.ledger.apply_review(&review, &all, at(3_600)).await.unwrap(), 0);
        let counts = house.reload(&push).await.counts;
        assert_eq!((counts.failed, counts.held), (1, 1));
        assert_eq!(counts, house.ledger.state_counts(push.key).await.unwrap());
        assert!(house.ledger.reviews_due(times(3_601)).await.unwrap().is_empty(), "asked a moment ago");
        assert_eq!(house.ledger.reviews_due(times(7_200)).await.unwrap()[0].largest_id, 9);
        assert!(house.ledger.reviews_due(times(200_000)).await.unwrap().is_empty(), "given up");
    }
}

//! People not to send to: for every account or one, for every template or one, for a time or for good.

use std::collections::{HashMap, HashSet};

use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, SqliteConnection};

use super::error::Doing;
use super::sql::{Columns, batches, micros, read_all, repeated};
use super::{AuditEntry, Ledger, LedgerError, Order, audit, forgotten, marks};
use crate::clock::{Timestamp, to_micros};
use crate::domain::{AccountName, OpenId, TemplateId, UnionId};

/// The reason of whoever stands on an account's blacklist.
pub(super) const BLACKLISTED: &str = "blacklisted";

/// A person not to send to from now on. One of `unionid` and `openid` must be there.
#[derive(Debug, Clone, PartialEq)]
pub struct NewSuppression {
    pub unionid: Option<UnionId>,
    pub openid: Option<OpenId>,
    /// `None`: every account.
    pub account: Option<AccountName>,
    /// `None`: every template.
    pub template_id: Option<TemplateId>,
    pub reason: String,
    pub since: Timestamp,
    /// Not any more from then on.
    pub until: Option<Timestamp>,
}

/// A suppression as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Suppression {
    pub id: i64,
    pub suppression: NewSuppression,
}

impl Ledger {
    /// Adds suppressions; one that is there already, but for its time and reason, is not added again. Returns how many
    /// were new.
    pub async fn add_suppressions(&self, new: &[NewSuppression]) -> Result<u64, LedgerError> {
        let mut tx = self.begin("add suppressions").await?;
        let added = insert(&mut tx, new).await?;
        tx.commit().await.doing("add suppressions")?;
        Ok(added)
    }

    /// The same on somebody's order: all of them or none, with a line in the audit.
    pub async fn order_suppressions(
        &self,
        new: &[NewSuppression],
        order: Order<'_>,
        detail: String,
    ) -> Result<u64, LedgerError> {
        const DOING: &str = "add suppressions";
        let mut tx = self.begin(DOING).await?;
        let added = insert(&mut tx, new).await?;
        audit::insert(&mut tx, &entry(order, "suppress add", detail)).await?;
        tx.commit().await.doing(DOING)?;
        Ok(added)
    }

    /// Removes the suppressions of a unionid or openid on somebody's order, all of them or those of `scope`; returns how
    /// many there were.
    pub async fn order_unsuppress(
        &self,
        person: &str,
        scope: (Option<&AccountName>, Option<&TemplateId>),
        order: Order<'_>,
    ) -> Result<u64, LedgerError> {
        const DOING: &str = "remove suppressions";
        let mut tx = self.begin(DOING).await?;
        let done = sqlx::query(
            "delete from suppressions where (unionid = $1 or openid = $1)
                 and ($2 is null or account = $2) and ($3 is null or template_id = $3)",
        )
        .bind(person)
        .bind(scope.0.map(AccountName::as_str))
        .bind(scope.1.map(TemplateId::as_str))
        .execute(&mut *tx)
        .await
        .doing(DOING)?;
        if done.rows_affected() > 0 {
            let detail = format!("{} suppressions of {person}", done.rows_affected());
            audit::insert(&mut tx, &entry(order, "suppress remove", detail)).await?;
        }
        tx.commit().await.doing(DOING)?;
        Ok(done.rows_affected())
    }

    /// Makes the suppressions for an account's blacklist exactly these people; who stood there before keeps the time. Whoever
    /// was forgotten is not sent to anyway, and not named again.
    pub async fn replace_blacklist(
        &self,
        account: &AccountName,
        mut listed: HashSet<OpenId>,
        now: Timestamp,
    ) -> Result<(), LedgerError> {
        const DOING: &str = "remember an account's blacklist";
        let mut tx = self.begin(DOING).await?;
        let forgotten = forgotten::among(&mut tx, listed.iter().map(OpenId::as_str)).await?;
        let forgotten: Vec<OpenId> = forgotten.into_iter().map(OpenId::new).collect();
        listed.retain(|openid| !forgotten.contains(openid));
        let rows = sqlx::query("select id, openid from suppressions where account = $1 and reason = $2")
            .bind(account.as_str())
            .bind(BLACKLISTED)
            .fetch_all(&mut *tx)
            .await
            .doing(DOING)?;
        for row in &rows {
            if !listed.remove(&OpenId::new(row.text("openid")?)) {
                sqlx::query("delete from suppressions where id = $1")
                    .bind(row.read::<i64>("id")?)
                    .execute(&mut *tx)
                    .await
                    .doing(DOING)?;
            }
        }
        let new: Vec<NewSuppression> = listed
            .into_iter()
            .map(|openid| NewSuppression {
                unionid: None,
                openid: Some(openid),
                account: Some(account.clone()),
                template_id: None,
                reason: BLACKLISTED.to_owned(),
                since: now,
                until: None,
            })
            .collect();
        insert(&mut tx, &new).await?;
        tx.commit().await.doing(DOING)
    }

    /// Suppressions in the order they were made, from after an id.
    pub async fn list_suppressions(&self, after_id: i64, limit: u32) -> Result<Vec<Suppression>, LedgerError> {
        let rows = sqlx::query(
            "select id, unionid, openid, account, template_id, reason, since, until
             from suppressions where id > $1 order by id limit $2",
        )
        .bind(after_id)
        .bind(limit)
        .fetch_all(&self.readers)
        .await
        .doing("list suppressions")?;
        read_all(rows, read_suppression)
    }

    /// Who of these people must not be sent this template by this account now, and why: `unfollowed` for those marked
    /// as gone, else the reason of a suppression. Costs one look when nobody is suppressed or gone.
    pub async fn blocked_now(
        &self,
        account: &AccountName,
        template_id: &TemplateId,
        people: &[(&OpenId, Option<&UnionId>)],
        now: Timestamp,
    ) -> Result<HashMap<OpenId, String>, LedgerError> {
        const DOING: &str = "look up who is suppressed";
        let mut connection = self.readers.acquire().await.doing(DOING)?;
        let row = sqlx::query(
            "select exists (select 1 from suppressions) as suppressed,
                 exists (select 1 from follower_marks where not active) as gone,
                 exists (select 1 from forgotten) as forgotten",
        )
        .fetch_one(&mut *connection)
        .await
        .doing(DOING)?;
        let mut blocked = HashMap::new();
        if row.read("suppressed")? {
            let by_unionid: HashMap<&str, &OpenId> =
                people.iter().filter_map(|(openid, unionid)| Some((unionid.as_ref()?.as_str(), *openid))).collect();
            let by_openid: HashMap<&str, &OpenId> =
                people.iter().map(|(openid, _)| (openid.as_str(), *openid)).collect();
            for (column, ids) in [("unionid", by_unionid), ("openid", by_openid)] {
                let scope = Scope { column, account, template_id, now };
                suppressed(&mut connection, &scope, &ids, &mut blocked).await?;
            }
        }
        if row.read("gone")? {
            marks::gone(&mut connection, account, people, &mut blocked).await?;
        }
        if row.read("forgotten")? {
            forgotten::blocked(&mut connection, people, &mut blocked).await?;
        }
        Ok(blocked)
    }
}

fn entry(order: Order<'_>, command: &str, detail: String) -> AuditEntry {
    AuditEntry { at: order.at, who: order.who.to_owned(), command: command.to_owned(), run_id: None, detail }
}

/// Which suppressions count.
struct Scope<'a> {
    /// `unionid` or `openid`.
    column: &'static str,
    account: &'a AccountName,
    template_id: &'a TemplateId,
    now: Timestamp,
}

async fn suppressed(
    connection: &mut SqliteConnection,
    scope: &Scope<'_>,
    ids: &HashMap<&str, &OpenId>,
    blocked: &mut HashMap<OpenId, String>,
) -> Result<(), LedgerError> {
    let mut keys: Vec<&str> = ids.keys().copied().collect();
    keys.sort_unstable();
    for keys in batches(&keys) {
        let sql = format!(
            "select {0} as person, reason from suppressions
             where since <= ? and (until is null or until > ?) and (account is null or account = ?)
                 and (template_id is null or template_id = ?) and {0} in ({1})
             order by id desc",
            scope.column,
            repeated("?", keys.len())
        );
        let mut query = sqlx::query(AssertSqlSafe(sql))
            .bind(to_micros(scope.now))
            .bind(to_micros(scope.now))
            .bind(scope.account.as_str())
            .bind(scope.template_id.as_str());
        for key in keys {
            query = query.bind(*key);
        }
        for row in query.fetch_all(&mut *connection).await.doing("look up who is suppressed")? {
            if let Some(openid) = ids.get(row.text("person")?.as_str()) {
                blocked.insert((*openid).clone(), row.text("reason")?);
            }
        }
    }
    Ok(())
}

/// Adds suppressions that are not there yet, inside a writing transaction.
pub(super) async fn insert(tx: &mut SqliteConnection, new: &[NewSuppression]) -> Result<u64, LedgerError> {
    let mut added = 0;
    for suppression in new {
        let person = [
            suppression.unionid.as_ref().map(UnionId::as_str),
            suppression.openid.as_ref().map(OpenId::as_str),
            suppression.account.as_ref().map(AccountName::as_str),
            suppression.template_id.as_ref().map(TemplateId::as_str),
        ];
        let done = sqlx::query(
            "insert into suppressions (unionid, openid, account, template_id, reason, since, until)
             select $1, $2, $3, $4, $5, $6, $7
             where not exists (
                 select 1 from suppressions
                 where coalesce(unionid, '') = coalesce($1, '') and coalesce(openid, '') = coalesce($2, '')
                     and (unionid = $1 or openid = $2)
                     and coalesce(account, '') = coalesce($3, '') and coalesce(template_id, '') = coalesce($4, '')
                     and (until is null or until >= coalesce($7, until + 1)))",
        )
        .bind(person[0])
        .bind(person[1])
        .bind(person[2])
        .bind(person[3])
        .bind(&suppression.reason)
        .bind(to_micros(suppression.since))
        .bind(micros(suppression.until))
        .execute(&mut *tx)
        .await
        .doing("add suppressions")?;
        added += done.rows_affected();
    }
    Ok(added)
}

fn read_suppression(row: &SqliteRow) -> Result<Suppression, LedgerError> {
    Ok(Suppression {
        id: row.read("id")?,
        suppression: NewSuppression {
            unionid: row.optional_text("unionid")?.map(UnionId::new),
            openid: row.optional_text("openid")?.map(OpenId::new),
            account: row.optional_text("account")?.map(AccountName::new),
            template_id: row.optional_text("template_id")?.map(TemplateId::new),
            reason: row.text("reason")?,
            since: row.time("since")?,
            until: row.optional_time("until")?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn person(unionid: &str) -> NewSuppression {
        NewSuppression {
            unionid: Some(UnionId::new(unionid)),
            openid: None,
            account: None,
            template_id: None,
            reason: "asked".into(),
            since: at(0),
            until: None,
        }
    }

    #[tokio::test]
    async fn a_suppression_holds_for_its_person_its_account_its_template_and_its_time() {
        let house = House::new().await;
        let (main, side) = (AccountName::new("main"), AccountName::new("side"));
        let (sale, news) = (TemplateId::new("tpl-sale-0000"), TemplateId::new("tpl-news-0000"));
        let everywhere = person("union-a");
        let here = NewSuppression { account: Some(main.clone()), ..person("union-b") };
        let this_one = NewSuppression { template_id: Some(sale.clone()), ..person("union-c") };
        let a_while = NewSuppression { until: Some(at(100)), ..person("union-d") };
        house.ledger.add_suppressions(&[everywhere, here, this_one, a_while]).await.unwrap();
        let openids = ["a", "b", "c", "d", "e"].map(OpenId::new);
        let unionids = ["a", "b", "c", "d", "e"].map(|name| UnionId::new(format!("union-{name}")));
        let people: Vec<_> = openids.iter().zip(unionids.iter().map(Some)).collect();
        let blocked = async |account: &AccountName, template: &TemplateId, now| {
            let found = house.ledger.blocked_now(account, template, &people, at(now)).await.unwrap();
            let mut found: Vec<_> = found.keys().map(|openid| openid.as_str().to_owned()).collect();
            found.sort();
            found.concat()
        };
        assert_eq!(blocked(&main, &sale, 50).await, "abcd");
        assert_eq!(blocked(&side, &sale, 50).await, "acd");
        assert_eq!(blocked(&main, &news, 50).await, "abd");
        assert_eq!(blocked(&main, &sale, 100).await, "abc");
        assert_eq!(blocked(&main, &sale, -1).await, "");
    }

    #[tokio::test]
    async fn a_blacklist_is_what_was_listed_last_and_leaves_other_suppressions_alone() {
        let house = House::new().await;
        let (main, side) = (AccountName::new("main"), AccountName::new("side"));
        house.ledger.add_suppressions(&[person("union-a")]).await.unwrap();
        let listed = |names: &[&str]| names.iter().map(|name| OpenId::new(*name)).collect::<HashSet<_>>();
        house.ledger.replace_blacklist(&main, listed(&["a", "b"]), at(1)).await.unwrap();
        house.ledger.replace_blacklist(&side, listed(&["a"]), at(1)).await.unwrap();
        house.ledger.replace_blacklist(&main, listed(&["b", "c"]), at(2)).await.unwrap();
        let all = house.ledger.list_suppressions(0, 10).await.unwrap();
        let mut main_list: Vec<_> = all
            .iter()
            .filter(|one| one.suppression.account.as_ref() == Some(&main))
            .map(|one| (one.suppression.openid.as_ref().unwrap().as_str(), one.suppression.since))
            .collect();
        main_list.sort_unstable();
        assert_eq!(main_list, [("b", at(1)), ("c", at(2))]);
        assert_eq!(all.len(), 4);
    }

    #[tokio::test]
    async fn the_same_suppression_is_kept_once_and_removed_by_its_person() {
        let house = House::new().await;
        let short = NewSuppression { until: Some(at(10)), ..person("union-a") };
        let long = NewSuppression { until: Some(at(20)), ..person("union-a") };
        let forever = person("union-a");
        let all = [short.clone(), short.clone(), long, short, forever.clone(), forever];
        assert_eq!(house.ledger.add_suppressions(&all).await.unwrap(), 3);
        assert_eq!(house.ledger.list_suppressions(0, 10).await.unwrap().len(), 3);
        let order = Order { who: "ada", at: at(30) };
        let side = AccountName::new("side");
        assert_eq!(house.ledger.order_unsuppress("union-a", (Some(&side), None), order).await.unwrap(), 0);
        assert_eq!(house.ledger.order_unsuppress("union-a", (None, None), order).await.unwrap(), 3);
        assert_eq!(house.ledger.audit(9).await.unwrap().len(), 1);
        assert!(house.ledger.list_suppressions(0, 10).await.unwrap().is_empty());
    }
}

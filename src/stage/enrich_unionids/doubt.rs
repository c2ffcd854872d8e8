//! Unionids in doubt: asked for singly, by the same calls, budget and parts as everybody else.
//!
//! An answer recorded as that of a single call is believed and not asked for again, by whichever run. Whom no call is left
//! for is not believed this time, and is asked again when their profile is looked at next.
//!
//! Where more than a twentieth of those asked have a unionid that nobody had before, it is not the answers that are wrong:
//! the account was bound to another Open Platform account. A few are asked singly; when all of them confirm it, nobody else
//! is asked, nothing of the account is taken in, and the operator says whether it is meant to be so.

use std::collections::HashSet;
use std::path::PathBuf;

use super::ask::{Asking, Tally};
use super::merge::make_latest;
use super::{Inputs, fetched_source, unless_spent};
use crate::clock::{Timestamp, from_micros};
use crate::domain::{AccountName, OpenId, Values};
use crate::engine::{Params, Session};
use crate::stage::{StageContext, StageError, blocking};

/// One in so many asked has a unionid that nobody had before: more, and it is a rebinding.
const REBOUND_ONE_IN: u64 = 20;
/// Fewer are asked singly, whatever their share.
const REBOUND_LEAST: u64 = 20;
/// Single calls that must confirm it.
const REBOUND_SAMPLE: usize = 10;

/// Asks singly for those of `doubtful` whom no single call has told of yet, and gives a part with what is believed of them.
///
/// # Errors
///
/// [`StageError`]; [`StageError::Rebound`] when the operator has to say that the account was bound anew.
pub(super) async fn settle(
    cx: &StageContext<'_>,
    account: &AccountName,
    inputs: &Inputs,
    (tally, mut doubtful): (&mut Tally, Vec<OpenId>),
) -> Result<PathBuf, StageError> {
    let was_complete = tally.is_complete;
    let doubt = Doubt { cx, account, inputs };
    let mut found = doubt.look(None).await?;
    let mut takes_moved = false;
    if found.may_be_rebound() {
        let sample: Vec<OpenId> = found.moved.iter().take(REBOUND_SAMPLE).cloned().collect();
        doubt.ask(tally, sample.iter().filter(|openid| !found.single.contains(openid)).cloned().collect()).await?;
        found = doubt.look(None).await?;
        let (told, confirmed) = found.confirmed(&sample);
        // Where no call was left for them it cannot be told: then nobody is believed.
        takes_moved = told > 0 && told == confirmed && found.may_be_rebound();
        if takes_moved {
            let what = found.rebound(account, confirmed);
            if !cx.accepts_drop {
                return Err(StageError::Rebound(format!(
                    "{what}. Nothing of the account is taken in, and its unionids stay as they were; where it is meant to be so, \
                     lianbo run {} --accept-drop \"why\" takes the new ones, and every other profile is asked for again",
                    cx.run.pipeline
                )));
            }
            tracing::warn!(account = %account, "{what}: taken as accepted; every other profile is asked for again");
            if let Some(at) = found.first_moved_at {
                cx.hands.ledger.note_rebound(account, at).await?;
            }
            tally.accepted = Some(what);
            let moved: HashSet<&OpenId> = found.moved.iter().collect();
            doubtful.retain(|openid| !moved.contains(openid));
        }
    }
    let waiting = doubtful.iter().filter(|openid| !found.single.contains(openid)).cloned().collect();
    doubt.ask(tally, waiting).await?;
    let path = cx.hands.lake.absolute(&format!("work/profiles/{account}/confirmed-{}.parquet", cx.new_snapshot_id()));
    let single = doubt.look(Some((path.clone(), takes_moved))).await?.single;
    let unconfirmed = doubtful.iter().filter(|openid| !single.contains(openid)).count();
    if unconfirmed > 0 {
        tracing::warn!(
            account = %account, people = unconfirmed,
            "no call is left to ask singly for {unconfirmed} people whose unionid is in doubt: they stay as they were, and are \
             looked at again on the next night"
        );
    }
    tally.unconfirmed = u64::try_from(unconfirmed).unwrap_or(u64::MAX);
    tally.is_complete = was_complete;
    Ok(path)
}

struct Doubt<'a, 'b> {
    cx: &'a StageContext<'b>,
    account: &'a AccountName,
    inputs: &'a Inputs,
}

impl Doubt<'_, '_> {
    async fn ask(&self, tally: &mut Tally, people: Vec<OpenId>) -> Result<(), StageError> {
        let (count, account) = (people.len(), self.account);
        if count == 0 || !tally.budget.has_room(&self.cx.calls) {
            return Ok(());
        }
        tracing::warn!(account = %account, people = count, "unionids in doubt: asking singly for {count} people");
        let asked = Asking::new(self.cx, account, tally, None).singly(people).await;
        unless_spent(self.cx, tally, asked)
    }

    /// What the answers so far tell. `confirmed`: where to write the answers that are believed, and whether those are among
    /// them whose unionid nobody had before.
    async fn look(&self, confirmed: Option<(PathBuf, bool)>) -> Result<Found, StageError> {
        let tables = [fetched_source(self.cx, self.account).await?, self.inputs.profiles.clone()];
        blocking(&self.cx.hands.joining_engine(self.inputs.people), self.cx.stop, move |session| {
            for table in &tables {
                session.add_table(table)?;
            }
            make_latest(session, true)?;
            session.run(MOVED)?;
            if let Some((path, takes_moved)) = &confirmed {
                let sql = if *takes_moved {
                    format!("{SINGLE} or openid in (select openid from moved)")
                } else {
                    SINGLE.to_owned()
                };
                session.copy(&sql, &Params::new(), path)?;
            }
            Found::read(session)
        })
        .await
    }
}

struct Found {
    /// Of whom a single call has told.
    single: HashSet<OpenId>,
    /// Who has a unionid that nobody had before, in no order that means anything.
    moved: Vec<OpenId>,
    first_moved_at: Option<Timestamp>,
    /// People of whom a unionid is known from before and from now.
    compared: u64,
}

impl Found {
    fn read(session: &Session) -> Result<Self, StageError> {
        let first = session.query("select cast(min(epoch_us(fetched_at)) as bigint) from moved", &Params::new())?;
        let first = match first.columns.first() {
            Some((_, Values::Integer(values))) => values.first().copied().flatten(),
            _ => None,
        };
        Ok(Self {
            single: openids(session, &SINGLE.replace('*', "openid"))?.into_iter().collect(),
            moved: openids(session, "select openid from moved order by md5(openid)")?,
            first_moved_at: first.map(from_micros),
            compared: session.count(COMPARED, &Params::new())?,
        })
    }

    fn may_be_rebound(&self) -> bool {
        let moved = u64::try_from(self.moved.len()).unwrap_or(u64::MAX);
        moved >= REBOUND_LEAST && moved.saturating_mul(REBOUND_ONE_IN) > self.compared
    }

    /// Of `sample`, how many a single call has told of, and how many of these have moved by it.
    fn confirmed(&self, sample: &[OpenId]) -> (usize, usize) {
        let moved: HashSet<&OpenId> = self.moved.iter().collect();
        let told: Vec<&OpenId> = sample.iter().filter(|openid| self.single.contains(*openid)).collect();
        (told.len(), told.iter().filter(|openid| moved.contains(*openid)).count())
    }

    fn rebound(&self, account: &AccountName, confirmed: usize) -> String {
        format!(
            "account `{account}` seems to be bound to another Open Platform account: {} of {} followers who were asked have a \
             unionid that nobody had before ({confirmed} asked singly confirm it), and unionids of mini programs bound \
             elsewhere match none of them",
            self.moved.len(),
            self.compared
        )
    }
}

fn openids(session: &Session, sql: &str) -> Result<Vec<OpenId>, StageError> {
    let mut found = Vec::new();
    session.stream::<StageError>(sql, &Params::new(), |rows| {
        if let Some((_, Values::Text(values))) = rows.columns.first() {
            found.extend(values.iter().flatten().map(OpenId::new));
        }
        Ok(true)
    })?;
    Ok(found)
}

const SINGLE: &str = "select * from latest where is_single";

/// People of whom a unionid is known from before and from now.
const COMPARED: &str = "
select count(*)
from latest
join profiles_before on profiles_before.openid = latest.openid
where profiles_before.unionid is not null and latest.unionid is not null";

/// A batch that has shifted hands out unionids that others have; these nobody had.
const MOVED: &str = "
create temp table moved as
select latest.openid, latest.fetched_at
from latest
join profiles_before on profiles_before.openid = latest.openid
where profiles_before.unionid is not null and latest.unionid is not null
  and profiles_before.unionid <> latest.unionid
  and not exists (select 1 from profiles_before as known where known.unionid = latest.unionid)";

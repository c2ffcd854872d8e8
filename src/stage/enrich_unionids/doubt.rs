//! Unionids in doubt: asked for singly, by the same calls, budget and parts as everybody else.
//!
//! An answer recorded as that of a single call is believed and not asked for again, by whichever run. Whom no call is left
//! for is not believed this time, and is asked again when their profile is looked at next.
//!
//! Where more than a twentieth of those asked have a unionid that nobody had before, it is not the answers that are wrong:
//! the account was bound to another Open Platform account. A few are asked singly, by calls that were kept for it
//! ([`budget`](super::budget)); when all of them confirm it, nobody else is asked, nothing of the account is taken in, and
//! the operator says whether it is meant to be so. Once they have, whose profile is older than that is expected to have
//! another unionid, on as many nights as a budget needs.

use std::collections::HashSet;
use std::path::PathBuf;

use super::ask::{Asking, Tally};
use super::budget::LEAST_CALLS;
use super::merge::make_latest;
use super::{Inputs, fetched_source, unless_spent};
use crate::clock::{Timestamp, from_micros};
use crate::config::settings::StageKind;
use crate::domain::{AccountName, OpenId, PipelineName, Values};
use crate::engine::{Param, Params, Session};
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
    tally.budget.release_kept();
    let doubt = Doubt { cx, account, inputs, rebound_at: cx.hands.ledger.rebound_at(account).await? };
    let mut found = doubt.look(None).await?;
    let mut taken = Taken::Nobody;
    if found.may_be_rebound() {
        let sample: Vec<OpenId> = found.moved.iter().take(REBOUND_SAMPLE).cloned().collect();
        doubt.ask(tally, sample.iter().filter(|openid| !found.single.contains(openid)).cloned().collect()).await?;
        found = doubt.look(None).await?;
        let (told, confirmed) = found.confirmed(&sample);
        if told == 0 && found.may_be_rebound() {
            doubt.unless_untold(tally, &found)?;
        }
        if told > 0 && told == confirmed && found.may_be_rebound() {
            taken = doubt.judge(tally, &found, confirmed).await?;
            let moved: HashSet<&OpenId> = match taken {
                Taken::Expected => found.expected.iter().collect(),
                Taken::Nobody | Taken::Moved => found.moved.iter().collect(),
            };
            doubtful.retain(|openid| !moved.contains(openid));
        }
    }
    let waiting = doubtful.iter().filter(|openid| !found.single.contains(openid)).cloned().collect();
    doubt.ask(tally, waiting).await?;
    let path = cx.hands.lake.absolute(&format!("work/profiles/{account}/confirmed-{}.parquet", cx.new_snapshot_id()));
    let single = doubt.look(Some((path.clone(), taken))).await?.single;
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

/// Who is believed without a single call of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Nobody,
    /// Those of whom an accepted rebinding lets expect it.
    Expected,
    /// Everybody whose unionid nobody had before.
    Moved,
}

struct Doubt<'a, 'b> {
    cx: &'a StageContext<'b>,
    account: &'a AccountName,
    inputs: &'a Inputs,
    /// Since when the account is known to be bound anew.
    rebound_at: Option<Timestamp>,
}

impl Doubt<'_, '_> {
    /// What is taken of an account that was bound anew: the rest of a rebinding that was accepted, or all when it is now.
    async fn judge(&self, tally: &mut Tally, found: &Found, confirmed: usize) -> Result<Taken, StageError> {
        let (cx, account) = (self.cx, self.account);
        if !found.is_new() {
            tracing::info!(
                account = %account, people = found.expected.len(),
                "account `{account}` was bound anew, as was accepted: {} more followers have their new unionid", found.expected.len()
            );
            return Ok(Taken::Expected);
        }
        let what = found.rebound(account, confirmed);
        if !cx.accepts_drop {
            let why = format!(
                "{what}. Nothing of the account is taken in, and its unionids stay as they were; where it is meant to be so, \
                 {} takes the new ones, and every other profile is asked for again",
                accepting(&cx.run.pipeline)
            );
            return Err(StageError::Rebound { why, is_certain: true });
        }
        tracing::warn!(account = %account, "{what}: taken as accepted; every other profile is asked for again");
        if let Some(at) = found.first_moved_at {
            cx.hands.ledger.note_rebound(account, at).await?;
        }
        tally.accepted = Some(what);
        Ok(Taken::Moved)
    }

    /// That an account may be bound anew and no call was left to tell is no night that went well.
    fn unless_untold(&self, tally: &Tally, found: &Found) -> Result<(), StageError> {
        let (account, pipeline) = (self.account, &self.cx.run.pipeline);
        let why = match (tally.spent, &self.cx.stage.kind) {
            (Some(endpoint), _) => {
                format!("the day's {} calls are used up. {} on the next day asks", endpoint.as_str(), go_on(pipeline))
            }
            (None, StageKind::EnrichUnionids(plan)) if !tally.budget.has_room(&self.cx.calls) => {
                let accounts = u64::try_from(plan.accounts.len()).unwrap_or(u64::MAX);
                format!(
                    "budget = {} has none left for it. Give stage `{}` a budget of {} at least (an account needs {LEAST_CALLS}: one \
                     that asks, one that confirms); then {} asks",
                    plan.budget.unwrap_or_default(),
                    self.cx.stage.name,
                    accounts.saturating_mul(LEAST_CALLS),
                    go_on(pipeline)
                )
            }
            // They were asked, and gave no unionid.
            (None, _) => return Ok(()),
        };
        let why = format!(
            "account `{account}` may be bound to another Open Platform account: {} of {} followers who were asked have a \
             unionid that nobody had before. Asking one of them singly would tell, and {why}. Until then nothing of the account \
             is taken in, and its unionids stay as they were",
            found.moved.len(),
            found.compared
        );
        Err(StageError::Rebound { why, is_certain: false })
    }

    async fn ask(&self, tally: &mut Tally, people: Vec<OpenId>) -> Result<(), StageError> {
        let (count, account) = (people.len(), self.account);
        if count == 0 || !tally.budget.has_room(&self.cx.calls) {
            return Ok(());
        }
        tracing::warn!(account = %account, people = count, "unionids in doubt: asking singly for {count} people");
        let asked = Asking::new(self.cx, account, tally, None).singly(people).await;
        unless_spent(self.cx, tally, asked)
    }

    /// What the answers so far tell. `confirmed`: where to write the answers that are believed, and who is among them
    /// without having been asked singly.
    async fn look(&self, confirmed: Option<(PathBuf, Taken)>) -> Result<Found, StageError> {
        let rebound_at = Param::Timestamp(self.rebound_at.unwrap_or_else(|| from_micros(0)));
        let tables = [fetched_source(self.cx, self.account).await?, self.inputs.profiles.clone()];
        blocking(&self.cx.hands.joining_engine(self.inputs.people), self.cx.stop, move |session| {
            for table in &tables {
                session.add_table(table)?;
            }
            make_latest(session, true)?;
            session.execute(MOVED, &Params::from([("rebound_at".to_owned(), rebound_at)]))?;
            if let Some((path, taken)) = &confirmed {
                let sql = match taken {
                    Taken::Nobody => SINGLE.to_owned(),
                    Taken::Expected => format!("{SINGLE} or openid in (select openid from moved where is_expected)"),
                    Taken::Moved => format!("{SINGLE} or openid in (select openid from moved)"),
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
    /// Of these, whom it gave a unionid.
    told: HashSet<OpenId>,
    /// Who has a unionid that nobody had before, in no order that means anything.
    moved: Vec<OpenId>,
    /// Of these, who was asked last before the account was bound anew, as is known.
    expected: Vec<OpenId>,
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
            told: openids(session, TOLD)?.into_iter().collect(),
            expected: openids(session, "select openid from moved where is_expected")?,
            moved: openids(session, "select openid from moved order by md5(openid)")?,
            first_moved_at: first.map(from_micros),
            compared: session.count(COMPARED, &Params::new())?,
        })
    }

    fn may_be_rebound(&self) -> bool {
        self.are_too_many(self.moved.len())
    }

    /// Whether it is more than the rest of a rebinding that was accepted.
    fn is_new(&self) -> bool {
        self.are_too_many(self.moved.len() - self.expected.len())
    }

    fn are_too_many(&self, people: usize) -> bool {
        let people = u64::try_from(people).unwrap_or(u64::MAX);
        people >= REBOUND_LEAST && people.saturating_mul(REBOUND_ONE_IN) > self.compared
    }

    /// Of `sample`, how many a single call gave a unionid, and how many of these have moved by it.
    fn confirmed(&self, sample: &[OpenId]) -> (usize, usize) {
        let moved: HashSet<&OpenId> = self.moved.iter().collect();
        let told: Vec<&OpenId> = sample.iter().filter(|openid| self.told.contains(*openid)).collect();
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

/// The command that accepts what only the operator can.
fn accepting(pipeline: &PipelineName) -> String {
    format!("lianbo run {pipeline} --accept-drop \"why\"")
}

/// The command that goes on with the run when what it lacked is there.
fn go_on(pipeline: &PipelineName) -> String {
    format!("lianbo run {pipeline} --continue")
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

const TOLD: &str = "select openid from latest where is_single and unionid is not null";

/// People of whom a unionid is known from before and from now.
const COMPARED: &str = "
select count(*)
from latest
join profiles_before on profiles_before.openid = latest.openid
where profiles_before.unionid is not null and latest.unionid is not null";

/// A batch that has shifted hands out unionids that others have; these nobody had.
const MOVED: &str = "
create temp table moved as
select latest.openid, latest.fetched_at, coalesce(profiles_before.fetched_at < $rebound_at, false) as is_expected
from latest
join profiles_before on profiles_before.openid = latest.openid
where profiles_before.unionid is not null and latest.unionid is not null
  and profiles_before.unionid <> latest.unionid
  and not exists (select 1 from profiles_before as known where known.unionid = latest.unionid)";

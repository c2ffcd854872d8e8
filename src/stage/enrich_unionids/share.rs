//! How a budget is shared by the accounts of a stage. Each that has profiles gets two calls first, one that asks and one
//! that confirms. Beyond that what matters most goes first over all accounts: people of an audience, then whoever was never
//! asked, then stale profiles. Who matters alike is asked for in equal shares, so that no account waits for another. What an
//! account does not need goes on to those after it.

use chrono::Datelike;

use super::budget::{Budget, LEAST_CALLS, details, kept_of};
use super::need::{NEEDED, REFUSED};
use super::{BATCH, Inputs, MOST_SINGLY, first, known};
use crate::config::settings::EnrichUnionids;
use crate::domain::AccountName;
use crate::stage::{StageContext, StageError, blocking};
use crate::wechat::CallCounts;

/// Calls of each importance, most important first: those that everybody has, then of an audience, of the new, of the stale.
type Calls = [u64; 4];

/// What is known of an account before it is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    /// Unionids that an answer may contradict.
    pub has_profiles: bool,
    /// Answers that an earlier run did not come to merge.
    pub has_answers: bool,
}

impl Known {
    pub const NOTHING: Self = Self { has_profiles: false, has_answers: false };
}

/// The shares of accounts that have not been asked yet.
pub(super) struct Shares {
    budget: Option<u64>,
    accounts: u64,
    /// In the order in which they are asked; the next one last.
    ahead: Vec<(AccountName, u64)>,
}

impl Shares {
    /// Of the accounts of a stage, by what each of them needs.
    ///
    /// # Errors
    ///
    /// [`StageError`] when the tables or the ledger cannot be read.
    pub async fn of(cx: &StageContext<'_>, plan: &EnrichUnionids) -> Result<Self, StageError> {
        let mut shares = Self::equal(cx, plan);
        let Some(budget) = plan.budget.filter(|_| plan.accounts.len() > 1) else { return Ok(shares) };
        let mut needs = Vec::new();
        for account in &plan.accounts {
            needs.push(calls_of(cx, plan, account).await?);
        }
        let left = budget.saturating_sub(details(&cx.calls));
        // Where a call is left over, another account has it every night.
        let night = usize::try_from(cx.run.today.num_days_from_ce()).unwrap_or(0);
        let allotted = allot(left, &needs, night % needs.len());
        for ((_, share), calls) in shares.ahead.iter_mut().rev().zip(allotted) {
            *share = calls;
        }
        Ok(shares)
    }

    /// The same where it is not known yet what each needs: the same for each.
    pub fn equal(cx: &StageContext<'_>, plan: &EnrichUnionids) -> Self {
        let accounts = u64::try_from(plan.accounts.len()).unwrap_or(u64::MAX);
        let each = plan.budget.map_or(0, |budget| budget.saturating_sub(details(&cx.calls)) / accounts.max(1));
        let ahead = plan.accounts.iter().rev().map(|account| (account.clone(), each)).collect();
        Self { budget: plan.budget, accounts, ahead }
    }

    /// The budget of the next account: its share, and what those before it left of theirs.
    pub fn next(&mut self, made: &CallCounts, known: Known) -> Budget {
        self.ahead.pop();
        let later: u64 = self.ahead.iter().map(|(_, share)| share).sum();
        self.of_share(made, known, |left| left.saturating_sub(later))
    }

    /// The same where those before it have not been asked yet: its own share alone.
    pub fn next_alone(&mut self, made: &CallCounts, known: Known) -> Budget {
        let own = self.ahead.pop().map_or(0, |(_, share)| share);
        self.of_share(made, known, |left| left.min(own))
    }

    fn of_share(&self, made: &CallCounts, known: Known, share: impl FnOnce(u64) -> u64) -> Budget {
        let Some(budget) = self.budget else { return Budget::new(None, 0, made) };
        let share = share(budget.saturating_sub(details(made)));
        let usual = if known.has_profiles { kept_of((budget / self.accounts.max(1)).max(share)) } else { 0 };
        // Without anybody asked there is nothing to confirm.
        let most = if known.has_answers { share } else { share.saturating_sub(1) };
        Budget::new(Some(share), usual.min(most), made)
    }
}

/// How many batches of each account of a stage its budget would let begin now; nothing where there is none.
///
/// # Errors
///
/// [`StageError`] when the tables or the ledger cannot be read.
pub async fn batches_within_budget(
    cx: &StageContext<'_>,
    plan: &EnrichUnionids,
) -> Result<Option<Vec<u64>>, StageError> {
    if plan.budget.is_none() {
        return Ok(None);
    }
    let (mut by_need, mut equal) = (Shares::of(cx, plan).await?, Shares::equal(cx, plan));
    let mut batches = Vec::with_capacity(plan.accounts.len());
    for account in &plan.accounts {
        let known = known(cx, account).await?;
        let (own, equal) = (by_need.next_alone(&cx.calls, known), equal.next_alone(&cx.calls, known));
        let is_walked = cx.visible.slice(plan.from.as_str(), account.as_str()).is_some();
        batches.push(if is_walked { own } else { equal }.left(&cx.calls));
    }
    Ok(Some(batches))
}

/// The calls that an account needs, as far as its day has them.
async fn calls_of(cx: &StageContext<'_>, plan: &EnrichUnionids, account: &AccountName) -> Result<Calls, StageError> {
    let table = cx.stage.table.as_ref().expect("an enrich stage has a table");
    if cx.visible.slice(plan.from.as_str(), account.as_str()).is_none() {
        return Ok(Calls::default());
    }
    let inputs = Inputs::gather(cx, plan, table, account).await?;
    let has_known = !inputs.profiles.parts.is_empty();
    let (params, everybody) = (inputs.stale.params(), inputs.people);
    let tables = [inputs.followers, inputs.profiles, inputs.fetched];
    let audience = first::audience(cx, account);
    let (people, refused) = blocking(&cx.hands.joining_engine(everybody), cx.stop, move |session| {
        for table in &tables {
            session.add_table(table)?;
        }
        let refused = session.count(&format!("select count(*) from ({REFUSED})"), &params)?;
        Ok((first::counted(session, (NEEDED, &params), &audience)?, refused))
    })
    .await?;
    let mut calls = in_calls(people);
    calls[1] += u64::try_from(cx.hands.ledger.openids_in_doubt(account).await?.len()).unwrap_or(u64::MAX);
    calls[3] += if refused <= MOST_SINGLY { refused } else { batches(refused) };
    if has_known {
        calls = with_kept(calls);
    }
    Ok(within(calls, first::calls_left_today(cx, account).await?))
}

fn batches(people: u64) -> u64 {
    people.div_ceil(u64::try_from(BATCH).unwrap_or(u64::MAX))
}

/// Batches are filled up with whoever comes next.
fn in_calls([audience, new, stale]: [u64; 3]) -> Calls {
    let (first, second) = (batches(audience), batches(audience + new));
    [0, first, second - first, batches(audience + new + stale) - second]
}

/// With the calls that are kept, and those that the account has in any case first.
fn with_kept(mut calls: Calls) -> Calls {
    let all: u64 = calls.iter().sum();
    let Some(most) = calls.iter_mut().find(|calls| **calls > 0) else { return calls };
    *most += kept_of(all).max(1);
    for importance in 1..calls.len() {
        let moved = calls[importance].min(LEAST_CALLS - calls[0]);
        calls[importance] -= moved;
        calls[0] += moved;
    }
    calls
}

/// What is less important first goes without.
fn within(calls: Calls, mut left: u64) -> Calls {
    calls.map(|own| {
        let fits = own.min(left);
        left -= fits;
        fits
    })
}

/// Gives `budget` calls to accounts, to the most important needs of all of them first and in equal shares; `first` is served
/// first where not everybody can have one more. What nobody needs is given to nobody.
fn allot(budget: u64, needs: &[Calls], first: usize) -> Vec<u64> {
    let mut allotted = vec![0; needs.len()];
    let mut left = budget;
    for importance in 0..Calls::default().len() {
        let mut open: Vec<u64> = needs.iter().map(|calls| calls[importance]).collect();
        loop {
            let waiting = open.iter().filter(|calls| **calls > 0).count();
            let Some(each) = left.checked_div(u64::try_from(waiting).unwrap_or(u64::MAX)) else { break };
            if left == 0 {
                break;
            }
            for place in 0..needs.len() {
                let account = (first + place) % needs.len();
                let given = open[account].min(each.max(1)).min(left);
                open[account] -= given;
                allotted[account] += given;
                left -= given;
            }
        }
    }
    allotted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_matters_most_goes_first_over_all_accounts_and_who_matters_alike_in_equal_shares() {
        let stale_alone = [0, 0, 0, 50];
        assert_eq!(allot(10, &[stale_alone, [0, 3, 4, 0]], 0), [3, 7]);
        assert_eq!(allot(10, &[stale_alone, stale_alone], 0), [5, 5]);
        assert_eq!(allot(9, &[stale_alone, [0, 0, 0, 2], stale_alone], 2), [3, 2, 4]);
        assert_eq!(allot(1, &[stale_alone, stale_alone], 1), [0, 1]);
        assert_eq!(allot(100, &[[0, 1, 2, 3], [0, 0, 0, 0]], 0), [6, 0]);
    }

    #[test]
    fn an_account_with_profiles_has_two_calls_whatever_matters_more_elsewhere() {
        assert_eq!(with_kept([0, 0, 0, 50]), [2, 0, 0, 53]);
        assert_eq!(with_kept([0, 1, 0, 0]), [2, 0, 0, 0]);
        assert_eq!(with_kept([0, 0, 0, 0]), [0, 0, 0, 0]);
        assert_eq!(allot(10, &[with_kept([0, 0, 0, 50]), [0, 0, 30, 0]], 0), [2, 8]);
    }

    #[test]
    fn batches_are_filled_up_with_whoever_comes_next() {
        assert_eq!(in_calls([30, 60, 20]), [0, 1, 0, 1]);
        assert_eq!(in_calls([0, 250, 60]), [0, 0, 3, 1]);
        assert_eq!(within([0, 2, 3, 4], 4), [0, 2, 2, 0]);
    }

    #[test]
    fn of_a_share_that_is_one_call_it_asks_unless_answers_wait_to_be_confirmed() {
        let made = CallCounts::default();
        let shares = || Shares {
            budget: Some(2),
            accounts: 2,
            ahead: vec![(AccountName::new("b"), 1), (AccountName::new("a"), 1)],
        };
        let profiles = Known { has_profiles: true, has_answers: false };
        assert_eq!(shares().next(&made, profiles).left(&made), 1);
        assert_eq!(shares().next(&made, Known { has_answers: true, ..profiles }).left(&made), 1, "none is kept of one");
        let mut shares = Shares {
            budget: Some(20),
            accounts: 2,
            ahead: vec![(AccountName::new("b"), 4), (AccountName::new("a"), 10)],
        };
        assert_eq!(shares.next(&made, profiles).left(&made), 14, "what nobody needs, and two are kept");
    }

    proptest! {
        #[test]
        fn no_call_is_lost_and_none_is_given_twice(
            budget in 0_u64..200,
            needs in prop::collection::vec([0_u64..3, 0_u64..60, 0_u64..60, 0_u64..60], 1..6),
            first in 0_usize..6,
        ) {
            let allotted = allot(budget, &needs, first % needs.len());
            let wanted: u64 = needs.iter().flatten().sum();
            prop_assert_eq!(allotted.iter().sum::<u64>(), budget.min(wanted));
            for (given, needs) in allotted.iter().zip(&needs) {
                prop_assert!(*given <= needs.iter().sum::<u64>());
            }
        }
    }
}

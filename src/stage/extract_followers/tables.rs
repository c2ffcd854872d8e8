//! The SQL of the merge: what becomes of everybody whom the list, the rows before or an event names. Whoever gives it fewer
//! people gets the same rows for those.

use std::path::PathBuf;

use crate::engine::{Params, Session, TableSource};
use crate::stage::tables::events;
use crate::stage::{StageError, live};

/// A walk, the rows before it and what was told meanwhile: of everybody, or of some.
pub(super) struct Pass {
    /// Rows of followers as they were.
    pub before: TableSource,
    /// `openid` and the `place` of it on the list.
    pub walk: TableSource,
    pub told: TableSource,
    /// `_forgotten`, and the salt of its hashes, where anybody was.
    pub forgotten: Option<(TableSource, String)>,
    /// An account's first walk makes no changes.
    pub is_first: bool,
}

/// A walk as it is read off its pages.
pub(super) fn walk_source(parts: Vec<PathBuf>) -> TableSource {
    let columns = vec![("openid".to_owned(), "VARCHAR".to_owned()), ("place".to_owned(), "BIGINT".to_owned())];
    let mut walk = TableSource { name: "walk".to_owned(), columns, parts, sql: None, are_alike: false };
    if !walk.parts.is_empty() {
        walk.sql = Some(format!(
            "select openid, cast(regexp_extract(filename, 'page-([0-9]+)', 1) as bigint) * 1000000 + file_row_number as place
             from read_parquet({}, filename = true, file_row_number = true)",
            crate::engine::files(&walk.parts)
        ));
    }
    walk
}

/// The rows of `after` in the order of the list: those who follow, or the others.
pub(super) fn followers_sql(active: bool) -> String {
    let who = if active { "active" } else { "not active" };
    format!(
        "select account, openid, first_seen_at, last_seen_at, active from after where {who} order by place nulls last, openid"
    )
}

impl Pass {
    /// Makes `after`: everybody's row, and `place`, their place on the list.
    ///
    /// # Errors
    ///
    /// [`StageError`] when a table cannot be read, or what is between does not fit on the disk.
    pub fn run(&self, session: &Session, params: &Params) -> Result<(), StageError> {
        if let Some((table, _)) = &self.forgotten {
            session.add_table(table)?;
        }
        for table in [&self.before, &self.walk, &self.told] {
            session.add_table(table)?;
        }
        let is_plain = self.before.parts.is_empty() && self.told.parts.is_empty();
        session.run(&format!("create view last_word as {}", events::last_words("select * from told")))?;
        session.run(if self.is_first { KNOWN_FIRST } else { KNOWN })?;
        let made = format!("create temp table after as {}", if is_plain { FIRST } else { MERGE });
        session.execute(&made, params)?;
        Ok(())
    }

    /// The SELECT of who came and who left, after [`run`](Self::run).
    pub fn changes_sql(&self) -> String {
        let turns = events::turns("select * from told", "select $account as account, openid, active from known");
        let changes = if self.is_first { turns } else { format!("{turns}\nunion all {FOUND}\nunion all {UNHEARD}") };
        format!("select * from ({changes}) where not {}", self.is_forgotten())
    }

    /// A condition on a row: it is of somebody who was forgotten.
    pub fn is_forgotten(&self) -> String {
        match &self.forgotten {
            Some((_, salt)) => live::forgotten_sql(salt, "openid"),
            None => "false".to_owned(),
        }
    }
}

/// With nothing before it, a walk is the table.
const FIRST: &str = "
select $account as account, openid, $walked_at as first_seen_at, $walked_at as last_seen_at, true as active,
       min(place) as place
from walk group by openid";

/// An event of the walk's first second or later knows better than the walk, which may have passed the person's page.
/// Whoever left without having been known to follow is nobody's follower and has no row.
const MERGE: &str = "
select
    $account as account,
    openid,
    coalesce(before.first_seen_at, least(walked.seen_at, last_word.came_first_at)) as first_seen_at,
    greatest(before.last_seen_at, walked.seen_at, last_word.came_last_at) as last_seen_at,
    case
        when last_word.told_at > $walked_at - interval 1 second then last_word.active
        else walked.seen_at is not null
    end as active,
    walked.place
from (select openid, $walked_at as seen_at, min(place) as place from walk group by openid) as walked
full outer join before using (openid)
full outer join last_word using (openid)
where walked.seen_at is not null or before.account is not null or last_word.came_first_at is not null";

/// What an event is a change against: the table before; on a first walk, the walk.
const KNOWN: &str = "create view known as select openid, active from before";
const KNOWN_FIRST: &str = "create view known as select distinct openid, true as active from walk";

/// Who changed without an event that told it: found by the walk.
const FOUND: &str = "
select
    local_date($walked_at) as date,
    $account as account,
    after.openid,
    case when after.active then 'follow' else 'unfollow' end as change,
    $walked_at as seen_at,
    'walk' as source
from after
left join known on known.openid = after.openid
left join last_word on last_word.openid = after.openid
where after.active <> coalesce(last_word.active, known.active, false)";

/// Whom the walk met, and who left while it was under way, had come, though nothing told of it: what is told first of them since
/// the walk began is that they left.
const UNHEARD: &str = "
select local_date(unnest([came_at, left_at])) as date, $account as account, openid, unnest(['follow', 'unfollow']) as change,
       unnest([came_at, left_at]) as seen_at, unnest(['walk', 'event']) as source
from (
    select openid, least(seen_at, $walked_at) as came_at, seen_at as left_at
    from (
        select told.openid, told.active, told.seen_at,
               coalesce(
                   lag(told.active) over (partition by told.openid order by told.n), known.active, false) as was_active,
               row_number() over (
                   partition by told.openid, told.seen_at > $walked_at - interval 1 second order by told.n) as number
        from told left join known on known.openid = told.openid
    ) as late
    where number = 1 and seen_at > $walked_at - interval 1 second and not active and not was_active
      and openid in (select openid from walk)
) as unheard";

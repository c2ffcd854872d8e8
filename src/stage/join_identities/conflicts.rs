//! One unionid with several users, or several followers: who of them stands in `identities`, and who in
//! `identity_conflicts`.
//!
//! Of several followers the one who followed last stands, of several users the one whose row is newest; where these times
//! are the same or missing, the one with the smallest openid. That is a total order: the same rows give the same choice,
//! whatever order they come in. Nothing here runs in a night in which no unionid is doubled.

/// Tied pairs with what is chosen by: `joined` reads the pairs, `profiles` and `users` whom they are of. Only doubled
/// unionids are looked up.
pub fn ranked_sql(joined: &str, profiles: &str, users: &str) -> String {
    format!(
        "with _doubled as (
    select unionid, account, miniprogram from {joined} group by unionid, account, miniprogram having count(*) > 1
),
_pairs as (
    select distinct joined.* from {joined} as joined
    join _doubled on _doubled.unionid = joined.unionid and _doubled.account = joined.account
     and _doubled.miniprogram = joined.miniprogram
),
_ranked as (
    select _pairs.*, profiles.subscribe_time as followed_at, users.updated_at,
           row_number() over (
               partition by _pairs.unionid, _pairs.account, _pairs.miniprogram
               order by profiles.subscribe_time desc nulls last, _pairs.oa_openid, users.updated_at desc nulls last,
                        _pairs.mp_openid
           ) as place
    from _pairs
    join {profiles} as profiles on profiles.account = _pairs.account and profiles.openid = _pairs.oa_openid
    join ({users}) as users on users.miniprogram = _pairs.miniprogram and users.openid = _pairs.mp_openid
)"
    )
}

/// `identities` with one row for a unionid, account and mini program.
pub fn chosen_sql(ranked: &str, joined: &str) -> String {
    format!(
        "{ranked}
select joined.* from {joined} as joined
where not exists (
    select 1 from _doubled where _doubled.unionid = joined.unionid and _doubled.account = joined.account
     and _doubled.miniprogram = joined.miniprogram
)
union all
select unionid, account, oa_openid, miniprogram, mp_openid, key from _ranked where place = 1"
    )
}

/// Rows of `identity_conflicts` for everybody who was not chosen.
pub fn conflicts_sql(ranked: &str) -> String {
    format!(
        "{ranked},
_best as (select * from _ranked where place = 1),
_others as (
    select _ranked.account, _ranked.miniprogram, _ranked.mp_openid as openid, _ranked.unionid, _best.mp_openid as chosen,
           'several_users' as reason,
           case when _ranked.updated_at is not distinct from _best.updated_at then 'smallest_id' else 'newest' end as rule
    from _ranked
    join _best on _best.unionid = _ranked.unionid and _best.account = _ranked.account and _best.miniprogram = _ranked.miniprogram
    where _ranked.mp_openid <> _best.mp_openid
    union
    select _ranked.account, _ranked.miniprogram, _ranked.oa_openid, _ranked.unionid, _best.oa_openid, 'several_followers',
           case when _ranked.followed_at is not distinct from _best.followed_at then 'smallest_id' else 'newest' end
    from _ranked
    join _best on _best.unionid = _ranked.unionid and _best.account = _ranked.account and _best.miniprogram = _ranked.miniprogram
    where _ranked.oa_openid <> _best.oa_openid
)
select $today as date, account, miniprogram, openid, unionid, chosen as other, reason, 'unionid' as key, chosen, rule
from _others"
    )
}

/// Rows of `identity_conflicts` for users with several unionids, of `found` as
/// [`several_unionids_sql`](super::people::several_unionids_sql) gives them.
pub fn of_several_unionids(found: &str) -> String {
    format!(
        "select $today as date, cast(null as varchar) as account, miniprogram, openid, unionid, chosen as other,
       'several_unionids' as reason, 'unionid' as key, chosen, rule from ({found})"
    )
}

/// The table with today's rows being those of `found`, SELECTs of such rows; those of other days stay.
pub fn today_sql(found: &[String]) -> String {
    let fresh: String = found.iter().map(|sql| format!("union all by name select * from ({sql})\n")).collect();
    format!("select * from {TABLE} where date <> $today\n{fresh}")
}

/// The table with these rows more.
pub fn more_sql(found: &[String]) -> String {
    let fresh: String = found.iter().map(|sql| format!("union all by name select * from ({sql})\n")).collect();
    format!("select * from {TABLE}\n{fresh}")
}

const TABLE: &str = "identity_conflicts";

-- What a send writes, twice in its life, carries only the indexes that a push itself asks for.

-- An openid is as good as random: its index cost more than the rest of the row's writing together. Where WeChat's events
-- name no message, `deliveries::index_openids` makes it again, and only there a push pays for it.
drop index deliveries_by_openid;
-- SQLite does not see that `state = 'sending'` is within `state in (…)`: no statement ever used it.
drop index deliveries_open;

-- Small at any time: a second's sends of each push that goes on.
create index deliveries_in_flight on deliveries (push_key, seq) where state = 'sending';
create index deliveries_put_back on deliveries (push_key, retry_at, seq) where state = 'pending';
create index pushes_open on pushes (account) where ended_at is null;

-- The sends a second that a push may use of its account's ceiling, and until when by the database's clock.
create table rate_shares (
    account text not null,
    push_key integer not null,
    wanted real not null,
    granted real not null,
    expires_at real not null,
    primary key (account, push_key)
) without rowid;

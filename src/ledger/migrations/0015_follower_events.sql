-- Every coming and going that was told between walks, in the order it was accepted. A snapshot of followers says up to
-- which of them it has in it; what came after is laid over it by whoever reads.
create table follower_events (
    -- Never given twice: a snapshot that names one must not find another behind it.
    id integer primary key autoincrement,
    account text not null,
    openid text not null,
    active boolean not null,
    at integer not null,
    -- As in follower_marks.
    source text not null
);
create index follower_events_of on follower_events (account, id);
create index follower_events_who on follower_events (openid);

-- The last of them that a snapshot has in it; null for tables that they do not concern.
alter table snapshots add column events_to integer;
update snapshots set events_to = 0 where table_name in ('followers', 'follower_changes');
insert into follower_events (account, openid, active, at, source)
    select account, openid, active, at, source from follower_marks where not undecided order by at;

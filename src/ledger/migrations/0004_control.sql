-- What people order. Times are microseconds since 1970, UTC.

-- The stop switch: nothing is sent for an account that stands here; '*' is every account.
create table freezes (
    account text primary key,
    who text not null,
    at integer not null
);

-- People who were forgotten: of each id a salted hash is left, so that nobody is sent to again.
create table forgotten (
    hash text primary key,
    since integer not null
);

-- Pushes of those whom another push did not reach.
create table resends (
    run_id text not null references runs (run_id),
    stage text not null,
    of_push text not null,
    primary key (run_id, stage)
);

-- What exactly was approved: set, template, texts, rate and window.
alter table pushes add column approved_hash text;

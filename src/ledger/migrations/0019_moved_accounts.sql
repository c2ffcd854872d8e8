-- An account that is or was moved into another one, where all of its followers have other openids.
create table account_moves (
    id integer primary key,
    account text not null,
    from_app_id text not null,
    to_app_id text not null,
    -- Under which the snapshots of the move are made.
    run_id text not null unique,
    -- Everybody to ask for, in this order, those who follow first; relative to the lake.
    list_path text not null,
    people integer not null,
    followers integer not null,
    -- So many of the list are answered for.
    asked integer not null default 0,
    started_at integer not null,
    ended_at integer,
    -- What came of it, a JSON object.
    outcome text,
    check (asked <= people)
);
create unique index account_moves_open on account_moves (account) where ended_at is null;

-- The answers of a move that goes on: its checkpoint. Empty again soon after it.
create table moved_openids (
    move_id integer not null references account_moves (id),
    -- On the list, from 1.
    place integer not null,
    openid text not null,
    new_openid text,
    -- Why there is no new one.
    reason text,
    primary key (move_id, place)
) without rowid;

-- Whom a message was sent to, before a move, of whom no unionid was known: such a message is found by the openid of then.
create table former_openids (
    new_openid text not null,
    openid text not null,
    account text not null,
    move_id integer not null references account_moves (id),
    primary key (new_openid, openid)
) without rowid;

-- Of a table of followers: the account's app id when they were walked, to which their openids belong.
alter table snapshots add column app_id text;

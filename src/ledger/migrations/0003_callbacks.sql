-- What the platform told us, kept before it is answered, and looked at afterwards. One row an event: the key is what the
-- platform's repeats have in common.
create table callbacks (
    id integer primary key,
    account text not null,
    openid text not null,
    created_at integer not null,
    event text not null,
    event_key text not null,
    -- 0 when the event names none.
    msgid integer not null,
    status text,
    received_at integer not null,
    -- When it is to be looked at; null when nothing is left to do.
    due_at integer,
    looks integer not null default 0,
    applied_at integer,
    outcome text,
    unique (openid, created_at, event, msgid, event_key, account)
);
create index callbacks_due on callbacks (due_at) where due_at is not null;

-- Deliveries that an event may be about though it has none of their ids. Small: what is sent and has its id is in neither.
create index if not exists deliveries_in_flight on deliveries (push_key, seq) where state = 'sending';
create index if not exists deliveries_put_back on deliveries (push_key, retry_at, seq) where state = 'pending';
create index deliveries_in_doubt on deliveries (openid)
    where (state in ('held', 'unconfirmed') or (state = 'sent' and msgid is null));

-- Two events of one second that contradict each other: nobody knows until the platform is asked.
alter table follower_marks add column undecided boolean not null default false;

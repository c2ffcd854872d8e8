-- The ledger's first form. Times are microseconds since 1970, UTC; dates are ISO texts; ids of people keep their case.

create table meta (
    key text primary key,
    value text not null
);

-- A row stays when its lease is released: its fence must go on growing. expires_at is in seconds of the database's clock.
create table leases (
    name text primary key,
    fence integer not null,
    holder_id text,
    host text,
    pid integer,
    started integer,
    expires_at real
);

create table runs (
    id integer primary key,
    run_id text not null unique,
    pipeline text not null,
    status text not null,
    reason text,
    waiting_until integer,
    trigger_kind text not null,
    scheduled_for integer,
    today text not null,
    run_at integer not null,
    params text not null,
    is_test boolean not null,
    attempt integer not null,
    started_at integer not null,
    ended_at integer,
    published boolean not null default false,
    cancel_requested boolean not null default false,
    fence integer not null
);
create index runs_by_pipeline on runs (pipeline, started_at);
create index runs_by_status on runs (status);

create table run_stages (
    id integer primary key,
    run_id text not null references runs (run_id),
    stage text not null,
    kind text not null,
    table_name text,
    status text not null,
    rows_in integer not null,
    rows_out integer not null,
    started_at integer not null,
    seconds real not null,
    api_calls text not null,
    detail text not null,
    error text,
    unique (run_id, stage)
);

create table fires (
    id integer primary key,
    pipeline text not null,
    scheduled_for integer not null,
    claimed_at integer not null,
    outcome text,
    run_id text,
    reason text,
    unique (pipeline, scheduled_for)
);

create table schedules (
    pipeline text primary key,
    schedule text not null,
    first_seen_at integer not null
);

-- Current is what was published and not superseded; the index lets no table have two current snapshots of a slice.
create table snapshots (
    id text primary key,
    table_name text not null,
    slice text not null,
    run_id text not null,
    stage text not null,
    as_of integer not null,
    row_count integer not null,
    bytes integer not null,
    parts text not null,
    columns text not null,
    source_hash text,
    made_at integer not null,
    fence integer not null,
    published_at integer,
    superseded_at integer
);
create unique index snapshots_current on snapshots (table_name, slice)
    where published_at is not null and superseded_at is null;
create unique index snapshots_staged on snapshots (run_id, table_name, slice)
    where published_at is null and superseded_at is null;
create index snapshots_by_table on snapshots (table_name, slice, published_at);

create table walks (
    id integer primary key,
    account text not null,
    run_id text not null,
    started_at integer not null,
    finished_at integer,
    merged boolean not null default false,
    pages integer not null default 0,
    openids integer not null default 0,
    total integer,
    next_openid text,
    restarts integer not null default 0
);
create index walks_by_account on walks (account, merged);

create table walk_pages (
    walk_id integer not null references walks (id) on delete cascade,
    page integer not null,
    path text not null,
    openids integer not null,
    next_openid text,
    recorded_at integer not null,
    primary key (walk_id, page)
);

create table profile_parts (
    id integer primary key,
    account text not null,
    path text not null,
    row_count integer not null,
    recorded_at integer not null,
    unique (account, path)
);

create table tokens (
    account text primary key,
    token text not null,
    expires_at integer not null,
    fetched_at integer not null
);

create table forced_tokens (
    account text not null,
    day text not null,
    taken integer not null,
    last_at integer not null,
    primary key (account, day)
);

create table api_usage (
    id integer primary key,
    account text not null,
    endpoint text not null,
    day text not null,
    calls integer not null default 0 check (calls >= 0),
    errors integer not null default 0,
    wechat_limit integer,
    wechat_used integer,
    wechat_at integer,
    exhausted_at integer,
    unique (account, endpoint, day)
);

-- pending is what is left of the recipients: it is never stored, so that the counts cannot fail to add up.
create table pushes (
    key integer primary key,
    run_id text not null references runs (run_id),
    pipeline text not null,
    stage text not null,
    account text not null,
    template_id text not null,
    set_hash text not null,
    set_path text not null,
    message_hash text,
    messages_path text,
    frozen_at integer not null,
    recipients integer not null,
    state text not null,
    reason text,
    sent integer not null default 0 check (sent >= 0),
    failed integer not null default 0 check (failed >= 0),
    skipped integer not null default 0 check (skipped >= 0),
    held integer not null default 0 check (held >= 0),
    unconfirmed integer not null default 0 check (unconfirmed >= 0),
    claimed integer not null default 0,
    claimed_to integer not null default 0,
    rest_reason text,
    rate_override real,
    is_paused boolean not null default false,
    is_test boolean not null,
    approved_by text,
    approved_at integer,
    first_send_at integer,
    started_at integer,
    ended_at integer,
    halted_errcode integer,
    archived_path text,
    unique (run_id, stage),
    check (claimed <= recipients),
    check (sent + failed + skipped + held + unconfirmed <= recipients)
);

-- One row per recipient that was claimed; who has none is pending, or skipped where the push has a rest_reason.
create table deliveries (
    push_key integer not null references pushes (key),
    seq integer not null,
    state text not null,
    attempt integer not null,
    reason text,
    errcode integer,
    msgid integer,
    openid text not null,
    unionid text,
    first_try_at integer,
    sent_at integer,
    retry_at integer,
    delivered text,
    delivered_at integer,
    updated_at integer not null,
    primary key (push_key, seq)
) without rowid;
create index deliveries_by_msgid on deliveries (msgid) where msgid is not null;
create index deliveries_by_openid on deliveries (openid);
create index deliveries_open on deliveries (push_key, state, seq) where state in ('pending', 'sending');

create table suppressions (
    id integer primary key,
    unionid text,
    openid text,
    account text,
    template_id text,
    reason text not null,
    since integer not null,
    until integer,
    check (unionid is not null or openid is not null)
);
create index suppressions_by_unionid on suppressions (unionid) where unionid is not null;
create index suppressions_by_openid on suppressions (openid) where openid is not null;

create table follower_marks (
    account text not null,
    openid text not null,
    active boolean not null,
    at integer not null,
    source text not null,
    primary key (account, openid)
) without rowid;

create table audit (
    id integer primary key,
    at integer not null,
    who text not null,
    command text not null,
    run_id text,
    detail text not null
);

create table alerts (
    key text primary key,
    state text not null,
    changed_at integer not null
);

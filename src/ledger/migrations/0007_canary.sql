-- The first messages of a push that has a canary: until when their finish events are waited for, set once all of them
-- were sent, and what was judged: `passed` or `failed`.
alter table pushes add column canary_until integer;
alter table pushes add column canary_verdict text;

-- When the platform was last asked which messages of a template its review refused, and how far its list was read.
create table reviews (
    account text not null,
    template_id text not null,
    asked_at integer not null,
    largest_id integer not null,
    primary key (account, template_id)
) without rowid;

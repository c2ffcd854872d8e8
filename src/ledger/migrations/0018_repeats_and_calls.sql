-- How often a recipient was sent the message once more while nobody knew whether an earlier one had arrived. Whoever was is
-- in doubt for good, unless an answer or an event says that it arrived.
alter table deliveries add column repeats integer not null default 0;

-- The calls that a push made or reserved on a quota day: a part of its account's, for the limit of its own.
create table push_calls (
    push_key integer not null references pushes (key),
    day text not null,
    calls integer not null check (calls >= 0),
    primary key (push_key, day)
) without rowid;
insert into push_calls (push_key, day, calls)
    select p.key, u.day, u.calls from api_usage as u
    join pushes as p on u.endpoint = 'message/template/send#' || p.key;
delete from api_usage where endpoint like '%#%';

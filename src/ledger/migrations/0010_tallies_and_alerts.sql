-- What a push reserved of the day's calls since its sending began last, and under which tally it counts those it made: whoever
-- takes over a push whose process was killed gives the difference back. No tally: nobody can tell.
alter table pushes add column calls_tally text;
alter table pushes add column calls_reserved integer not null default 0;
alter table pushes add column calls_day text;

-- Alerts that nobody could be told of: posted later, oldest first.
create table alerts_owed (
    id integer primary key,
    at integer not null,
    alert text not null,
    -- Whoever tries to post it leaves the time here, so that nobody else does at the same moment.
    tried_at integer
);

-- What a push reserved of the day's calls since its sending began last, and under which tally it counts those it made: whoever
-- takes over a push whose process was killed gives the difference back. No tally: nobody can tell.
alter table pushes add column calls_tally text;
alter table pushes add column calls_reserved integer not null default 0;
alter table pushes add column calls_day text;

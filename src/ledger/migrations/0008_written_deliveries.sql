-- The deliveries of a push that is over hardly ever change: they are written out once, and again only when an event or a
-- forgotten person changed them since.
alter table pushes add column deliveries_version integer not null default 0;
alter table pushes add column written_path text;
alter table pushes add column written_version integer;

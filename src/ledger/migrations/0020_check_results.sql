-- What each check of a stage came to, whatever became of the run: the last line of a run, stage and check is the one that held.
create table check_results (
    id integer primary key,
    checked_at integer not null,
    run_id text not null,
    stage text not null,
    table_name text,
    check_name text not null,
    outcome text not null check (outcome in ('passed', 'warned', 'failed', 'accepted')),
    found text
);
create index check_results_by_run on check_results (run_id);

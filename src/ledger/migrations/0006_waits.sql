-- What a push waits for has a beginning and an end; what the platform says of a day holds for everybody who sends.

-- Since when the push waits or is halted, and until when; null while it sends.
alter table pushes add column waits_since integer;
alter table pushes add column waits_until integer;

-- The platform refused a call of this endpoint: nothing is granted before this.
alter table api_usage add column held_until integer;
-- Calls of ours that the day has room for by the platform's latest word; null: it has not said.
alter table api_usage add column room integer;

-- A service push goes before campaigns: `campaign` or `service`; and its weight where a ceiling is divided.
alter table pushes add column priority text not null default 'campaign';
alter table rate_shares add column weight real not null default 1;

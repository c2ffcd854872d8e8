//! The tables an analyst may rely on: their columns, types, meanings and units, declared once. Checking SQL, writing parts,
//! `tables --describe` and the generated documentation all read this.

mod markdown;

pub use self::markdown::markdown;
use super::ColumnType::{self, Boolean, Date, Float, Integer, Text, Timestamp};

/// A column with what it means.
#[derive(Debug, Clone, Copy)]
pub struct ColumnSpec {
    pub name: &'static str,
    pub column_type: ColumnType,
    pub meaning: &'static str,
}

/// A table with what a row is.
#[derive(Debug, Clone, Copy)]
pub struct TableSpec {
    pub name: &'static str,
    pub row: &'static str,
    pub columns: &'static [ColumnSpec],
    /// Whether the ledger feeds it, so that `lianbo sql` shows it as it is at that moment.
    pub is_live: bool,
}

impl TableSpec {
    /// Name and DuckDB type of each column.
    pub fn sql_columns(&self) -> Vec<(String, String)> {
        self.columns.iter().map(|column| (column.name.to_owned(), column.column_type.sql().to_owned())).collect()
    }

    /// Name and type of each column, as parts are written.
    pub fn part_schema(&self) -> Vec<(&'static str, ColumnType)> {
        self.columns.iter().map(|column| (column.name, column.column_type)).collect()
    }
}

/// The table that a stage of the standard kinds makes, or the ledger feeds, by its standard name.
pub fn table_spec(name: &str) -> Option<&'static TableSpec> {
    TABLES.iter().find(|table| table.name == name)
}

const fn column(name: &'static str, column_type: ColumnType, meaning: &'static str) -> ColumnSpec {
    ColumnSpec { name, column_type, meaning }
}

const ACCOUNT: ColumnSpec = column("account", Text, "Official Account, as the configuration names it");
const MINIPROGRAM: ColumnSpec = column("miniprogram", Text, "mini program, as the configuration names it");
const RUN_ID: ColumnSpec = column("run_id", Text, "run that made the row");
const PIPELINE: ColumnSpec = column("pipeline", Text, "pipeline of the run");
const STAGE: ColumnSpec = column("stage", Text, "stage of the pipeline");
const DATE: ColumnSpec = column("date", Date, "day in the workspace's time zone");
const OPENID: ColumnSpec = column("openid", Text, "person towards the Official Account");
const UNIONID: ColumnSpec = column("unionid", Text, "person towards the Open Platform account; NULL when unknown");
const AS_OF: ColumnSpec = column("as_of", Timestamp, "the oldest of the data it was measured on, UTC");
const SNAPSHOTS: ColumnSpec =
    column("snapshots", Text, "what it was measured on: table/slice@snapshot, as `lianbo tables --json` names them");
const SEQ: ColumnSpec = column("seq", Integer, "number in the set, from 1");

/// The columns that every table of a mini program's users has; the others are the export's.
pub const USERS: [ColumnSpec; 4] = [
    MINIPROGRAM,
    column("openid", Text, "person towards the mini program"),
    UNIONID,
    column(
        "updated_at",
        Timestamp,
        "when the mini program last changed the row, UTC; NULL when it says nothing or no time; the latest row of an openid holds",
    ),
];

/// Since when and until when each person followed: read off followers and their changes, never written.
pub const MEMBERSHIPS: &str = "memberships";

/// Who carries which tag: read off profiles, never written.
pub const FOLLOWER_TAGS: &str = "follower_tags";

/// What openids have become whose account was moved into another one: made by no stage.
pub const MOVED_OPENIDS: &str = "moved_openids";

/// Tables that are read off others whenever somebody reads them, each with what it is read off.
pub const READ_OFF: [(&str, &str); 2] = [(MEMBERSHIPS, "followers"), (FOLLOWER_TAGS, "profiles")];

/// Every declared table, in the order of the data.
pub const TABLES: &[TableSpec] = &[
    TableSpec {
        name: "followers",
        row: "a follower now or in the past",
        is_live: false,
        columns: &[
            ACCOUNT,
            OPENID,
            column(
                "first_seen_at",
                Timestamp,
                "start of the walk that saw the person first, or the subscribe event that told of the person before, UTC",
            ),
            column(
                "last_seen_at",
                Timestamp,
                "start of the last walk that saw the person, or a later subscribe event, UTC",
            ),
            column("active", Boolean, "follows, as far as the last walk and later events tell"),
        ],
    },
    TableSpec {
        name: "follower_changes",
        row: "a follow or unfollow; an account's first walk makes none",
        is_live: false,
        columns: &[
            DATE,
            ACCOUNT,
            OPENID,
            column("change", Text, "follow or unfollow"),
            column(
                "seen_at",
                Timestamp,
                "when it happened, by the event; else the start of the walk that found it, UTC",
            ),
            column(
                "source",
                Text,
                "walk, event, or migration: the account was moved, and the person has no openid there",
            ),
        ],
    },
    TableSpec {
        name: MEMBERSHIPS,
        row: "a time during which a person followed, read off followers and follower_changes",
        is_live: false,
        columns: &[
            ACCOUNT,
            OPENID,
            column("membership", Integer, "number of it for the person, from 1; more than 1: came back"),
            column("followed_at", Timestamp, "since when, as far as walks and events tell, UTC"),
            column("left_at", Timestamp, "until when, or when last seen where nothing tells; NULL while it lasts, UTC"),
        ],
    },
    TableSpec {
        name: "profiles",
        row: "a follower's profile as last fetched",
        is_live: false,
        columns: &[
            ACCOUNT,
            OPENID,
            UNIONID,
            column(
                "unionid_missing",
                Text,
                "why unionid is NULL: not_asked, not_bound, unfollowed, error, quarantined",
            ),
            column("subscribe", Boolean, "followed when it was fetched"),
            column("subscribe_time", Timestamp, "last time of following, UTC"),
            column("subscribe_scene", Text, "how the person came to follow (ADD_SCENE_…)"),
            column("qr_scene", Integer, "number of the QR code scene"),
            column("qr_scene_str", Text, "text of the QR code scene"),
            column("tagid_list", Text, "tags as a JSON list of ids"),
            column("language", Text, "language of the client; empty since 2021-12-27"),
            column("remark", Text, "the operator's remark"),
            column("groupid", Integer, "group (old form of tags)"),
            column("fetched_at", Timestamp, "when WeChat gave it, UTC"),
            column("errcode", Integer, "WeChat's code where it refused the openid, else NULL"),
            column(
                "refusals",
                Integer,
                "times in a row that it refused; asked again after 1, then 2, then every 4 dates",
            ),
        ],
    },
    TableSpec {
        name: FOLLOWER_TAGS,
        row: "a tag of a follower's profile as last fetched, read off profiles",
        is_live: false,
        columns: &[ACCOUNT, OPENID, column("tag_id", Integer, "the account's number of the tag")],
    },
    TableSpec {
        name: "quarantine",
        row: "a row refused on load",
        is_live: false,
        columns: &[
            column("source", Text, "load_users stage"),
            column("file", Text, "file, relative to the workspace"),
            column("line", Integer, "line in the file where the row begins, from 1"),
            column("reason", Text, "why it was refused"),
            column("raw", Text, "the row as it stood, at most 2000 characters"),
        ],
    },
    TableSpec {
        name: "identities",
        row: "a person known on both sides",
        is_live: false,
        columns: &[
            column(
                "unionid",
                Text,
                "person towards the Open Platform account; of people tied by another key NULL where neither side has one",
            ),
            ACCOUNT,
            column("oa_openid", Text, "person towards the Official Account"),
            MINIPROGRAM,
            column("mp_openid", Text, "person towards the mini program"),
            column("key", Text, "by what both were tied: unionid, or a further key of the stage"),
        ],
    },
    TableSpec {
        name: "identity_conflicts",
        row: "an openid that could not be tied alone",
        is_live: false,
        columns: &[
            DATE,
            ACCOUNT,
            MINIPROGRAM,
            column("openid", Text, "the openid that was not taken; with a further key that of the user"),
            UNIONID,
            column("other", Text, "the other openid, or unionid, that it stands against"),
            column("reason", Text, "several_users, several_followers, several_unionids or keys_disagree"),
            column("key", Text, "unionid, or the further key that brought it up"),
            column("chosen", Text, "what stands in its place; NULL where nothing was taken"),
            column(
                "rule",
                Text,
                "why that: newest (followed last, updated last), smallest_id (times are the same), earlier_key, none",
            ),
        ],
    },
    TableSpec {
        name: "identity_changes",
        row: "a unionid that changed for an openid, confirmed singly",
        is_live: false,
        columns: &[
            DATE,
            ACCOUNT,
            MINIPROGRAM,
            OPENID,
            UNIONID,
            column("other", Text, "the unionid before"),
            column("reason", Text, "unionid_changed or unionid_shared"),
        ],
    },
    TableSpec {
        name: MOVED_OPENIDS,
        row: "an openid of before an account was moved into another one, with what it has become",
        is_live: false,
        columns: &[
            ACCOUNT,
            column("openid", Text, "person towards the account of before"),
            column("new_openid", Text, "person towards the account of now; NULL where WeChat told none"),
            UNIONID,
            column(
                "reason",
                Text,
                "why the person stays under the openid of before, as gone: WeChat's words, or what was wrong with its answer; NULL for who \
                 was moved",
            ),
            column("from_app_id", Text, "app id of the account of before"),
            column("to_app_id", Text, "app id of the account of now"),
            column("moved_at", Timestamp, "when the tables were changed, UTC"),
        ],
    },
    TableSpec {
        name: "coverage",
        row: "a day × account × mini program; * is all of them together, counted in people",
        is_live: false,
        columns: &[
            DATE,
            ACCOUNT,
            MINIPROGRAM,
            column("followers", Integer, "current followers (openids; people in a * row)"),
            column("followers_with_unionid", Integer, "current followers whose unionid is known"),
            column("not_asked", Integer, "current followers whose profile was not asked for yet"),
            column("unreadable", Integer, "current followers whose profile could not be read (error, quarantined)"),
            column("users", Integer, "mini-program users (openids; people in a * row)"),
            column("users_with_unionid", Integer, "users whose unionid is known"),
            column("matched", Integer, "users whose unionid a current follower has"),
            column("reachable", Integer, "matched, not blacklisted, not suppressed for the whole account"),
            column("reached_lately", Integer, "reachable, and a message was delivered to them lately (finish event)"),
            column("coverage_rate", Float, "reachable / users, 0 to 1; NULL without users"),
            column("match_rate", Float, "matched / users_with_unionid, 0 to 1; NULL without any"),
            AS_OF,
            RUN_ID,
            SNAPSHOTS,
        ],
    },
    TableSpec {
        name: "coverage_by_segment",
        row: "coverage per value of a segment",
        is_live: false,
        columns: &[
            DATE,
            ACCOUNT,
            MINIPROGRAM,
            column(
                "segment",
                Text,
                "as the stage names it: a column of users or profiles, month(column), tag, or several",
            ),
            column("value", Text, "its value; NULL where unknown; of tags a person counts for each"),
            column("users", Integer, "mini-program users with the value"),
            column("matched", Integer, "of these, users whose unionid a current follower has"),
            column("reachable", Integer, "of these, reachable"),
            column("reached_lately", Integer, "of these, reached lately"),
            column("coverage_rate", Float, "reachable / users, 0 to 1; NULL without users"),
            AS_OF,
            RUN_ID,
            SNAPSHOTS,
        ],
    },
    TableSpec {
        name: "match_report",
        row: "why people do or do not match; each side sums to the whole",
        is_live: false,
        columns: &[
            DATE,
            ACCOUNT,
            MINIPROGRAM,
            column("side", Text, "follower or user"),
            column("reason", Text, "matched, or why not; conflict: shares a unionid with who is matched"),
            column("people", Integer, "number of people"),
            AS_OF,
            RUN_ID,
            SNAPSHOTS,
        ],
    },
    TableSpec {
        name: "reach_evidence",
        row: "who was suppressed, or reached lately, when coverage was measured last",
        is_live: false,
        columns: &[
            column("account", Text, "Official Account; NULL for all of them"),
            OPENID,
            UNIONID,
            column("what", Text, "suppressed or reached"),
        ],
    },
    TableSpec {
        name: "recipients",
        row: "a recipient of any set, ever",
        is_live: true,
        columns: &[
            RUN_ID,
            PIPELINE,
            STAGE,
            SEQ,
            ACCOUNT,
            OPENID,
            UNIONID,
            column("arm", Text, "send or holdout"),
            column("variables", Text, "the message's variables, a JSON object"),
        ],
    },
    TableSpec {
        name: "left_out",
        row: "given by the SELECT, not in the set",
        is_live: true,
        columns: &[
            RUN_ID,
            PIPELINE,
            STAGE,
            ACCOUNT,
            column("openid", Text, "person towards the Official Account; of one who was forgotten a salted hash"),
            UNIONID,
            column("reason", Text, "why it was left out"),
        ],
    },
    TableSpec {
        name: "pushes",
        row: "a push",
        is_live: true,
        columns: &[
            RUN_ID,
            PIPELINE,
            STAGE,
            ACCOUNT,
            column("template_id", Text, "message template"),
            column("set_hash", Text, "hash of the frozen set"),
            column("state", Text, "pending, sending, waiting, halted, paused, done, cancelled"),
            column("recipients", Integer, "recipients of arm send"),
            column("sent", Integer, "accepted by WeChat"),
            column("failed", Integer, "refused for good"),
            column("skipped", Integer, "left out at the last look, expired, or cancelled"),
            column("held", Integer, "under WeChat's review; never repeated"),
            column("unconfirmed", Integer, "no answer came; never repeated by itself"),
            column("pending", Integer, "still owed, in flight included"),
            column("approved_by", Text, "who approved it"),
            column("approved_at", Timestamp, "when, UTC"),
            column("started_at", Timestamp, "when the set was frozen, UTC"),
            column("ended_at", Timestamp, "when nothing was pending any more, UTC"),
        ],
    },
    TableSpec {
        name: "deliveries",
        row: "a recipient's fate",
        is_live: true,
        columns: &[
            RUN_ID,
            PIPELINE,
            STAGE,
            ACCOUNT,
            SEQ,
            OPENID,
            UNIONID,
            column("template_id", Text, "message template"),
            column("state", Text, "pending, sent, failed, skipped, held, unconfirmed"),
            column("reason", Text, "why it is not sent"),
            column("errcode", Integer, "WeChat's last error code"),
            column("msgid", Integer, "WeChat's message id, 64 bits"),
            column("client_msg_id", Text, "our id of the message, the same after any restart"),
            column("attempts", Integer, "sends tried"),
            column("sent_at", Timestamp, "when WeChat accepted it, UTC"),
            column("delivered", Text, "success, blocked, failed; NULL while unknown"),
            column("delivered_at", Timestamp, "time of the finish event, UTC"),
            column("is_test", Boolean, "of a run with --test: it counts for nothing"),
        ],
    },
    TableSpec {
        name: "callbacks",
        row: "an event that WeChat posted, kept for a week",
        is_live: true,
        columns: &[
            ACCOUNT,
            OPENID,
            column("event", Text, "subscribe, unsubscribe, TEMPLATESENDJOBFINISH"),
            column("event_key", Text, "what the event is about, such as the scene of a QR code; empty when nothing"),
            column("msgid", Integer, "message a finish event is about; 0 when it names none"),
            column("status", Text, "of a finish event, as WeChat spells it"),
            column("created_at", Timestamp, "when it happened as WeChat says, UTC, whole seconds"),
            column("received_at", Timestamp, "when it was kept, UTC"),
            column("applied_at", Timestamp, "when it was last looked at, UTC; NULL when not yet"),
            column(
                "outcome",
                Text,
                "told or settled (a delivery), known (a repeat), early (waits for its send), unmatched, marked (a follower), older (than the last walk), ignored",
            ),
        ],
    },
    TableSpec {
        name: "audit",
        row: "what a person or a schedule ordered",
        is_live: true,
        columns: &[
            column("at", Timestamp, "when, UTC"),
            column("who", Text, "who"),
            column("command", Text, "what"),
            RUN_ID,
            column("detail", Text, "more"),
        ],
    },
    TableSpec {
        name: "error_codes",
        row: "a code of WeChat",
        is_live: true,
        columns: &[
            column("errcode", Integer, "the code"),
            column("class", Text, "what it asks of us"),
            column("meaning", Text, "what it says"),
            column("advice", Text, "what to do"),
        ],
    },
    TableSpec {
        name: "suppressions",
        row: "a person not to send to",
        is_live: true,
        columns: &[
            UNIONID,
            OPENID,
            column("account", Text, "NULL: every account"),
            column("template_id", Text, "NULL: every template"),
            column("reason", Text, "why"),
            column("since", Timestamp, "from when, UTC"),
            column("until", Timestamp, "until when, UTC; NULL: for good"),
        ],
    },
    TableSpec {
        name: "api_calls",
        row: "an account × endpoint × quota day",
        is_live: true,
        columns: &[
            column("date", Date, "quota day, Shanghai"),
            ACCOUNT,
            column("endpoint", Text, "user/get, message/template/send, …"),
            column(
                "calls",
                Integer,
                "calls made, but for those that WeChat refuses for want of quota and does not count",
            ),
            column("errors", Integer, "calls refused, for want of quota too, or unanswered"),
            column("quota", Integer, "the day's limit as WeChat last said; NULL while unknown"),
        ],
    },
    TableSpec {
        name: "runs",
        row: "a run",
        is_live: true,
        columns: &[
            RUN_ID,
            PIPELINE,
            column("status", Text, "running, waiting, halted, failed, partial, succeeded, cancelled"),
            column("reason", Text, "why it waits, failed or was halted"),
            column("waiting_until", Timestamp, "when it goes on, UTC"),
            column("scheduled_for", Timestamp, "the scheduled time it answers to, UTC; NULL: by hand"),
            column("started_at", Timestamp, "when it began, UTC"),
            column("ended_at", Timestamp, "when it was over, UTC; NULL until then"),
            column("seconds", Float, "seconds from start to end"),
        ],
    },
    TableSpec {
        name: "run_stages",
        row: "a stage of a run",
        is_live: true,
        columns: &[
            RUN_ID,
            PIPELINE,
            STAGE,
            column("name", Text, "the stage again, as `run --json` calls it"),
            column("kind", Text, "kind of the stage"),
            column("status", Text, "pending, running, waiting, halted, failed, partial, succeeded, skipped"),
            column("rows_in", Integer, "rows read"),
            column("rows_out", Integer, "rows made"),
            column("seconds", Float, "seconds spent in it"),
            column("api_calls", Text, "calls per endpoint, a JSON object"),
            column("detail", Text, "more, a JSON object"),
            column("error", Text, "why it failed"),
        ],
    },
    TableSpec {
        name: "check_results",
        row: "a check of a stage in a run, each time it was made",
        is_live: true,
        columns: &[
            column("checked_at", Timestamp, "when, UTC"),
            RUN_ID,
            PIPELINE,
            STAGE,
            column("table_name", Text, "table that the stage makes"),
            column("check_name", Text, "the check as its key and what it is about, such as not_null openid"),
            column("outcome", Text, "passed; broken: warned, failed (the stage failed), accepted (by --accept-drop)"),
            column("found", Text, "what breaks it; NULL when it passed"),
        ],
    },
];

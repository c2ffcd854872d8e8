//! What the report shows: for each section its words in both languages, the SQL behind it, and how its rows are drawn.

/// A text in English and in Chinese.
#[derive(Debug, Clone, Copy)]
pub struct Words {
    pub en: &'static str,
    pub zh: &'static str,
}

const fn words(en: &'static str, zh: &'static str) -> Words {
    Words { en, zh }
}

pub struct Section {
    pub id: &'static str,
    pub title: Words,
    /// What one sees, in a sentence.
    pub about: Words,
    /// Ready to be asked with `lianbo sql`, but for `{days}`.
    sql: &'static str,
    pub plot: Plot,
}

impl Section {
    /// The question, looking back so many days.
    pub fn sql(&self, days: u32) -> String {
        self.sql.trim().replace("{days}", &days.to_string())
    }
}

/// How rows are drawn; all names are columns of the SQL.
#[derive(Debug, Clone, Copy)]
pub enum Plot {
    /// Each row by itself: steps as shares of the first.
    Funnel { of: &'static [&'static str], steps: &'static [&'static str] },
    /// Rows of a group as shares of all of it.
    Shares { of: &'static [&'static str], name: &'static str, value: &'static str },
    /// Rows of a group, each a part of its own whole.
    Rates { of: &'static [&'static str], name: &'static str, part: &'static str, whole: &'static str },
    /// A share by day, a line a group.
    Lines { of: &'static [&'static str], value: &'static str },
    /// What came and what went by day, a picture a group.
    UpAndDown { of: &'static [&'static str], up: &'static str, down: &'static str },
}

const PAIR: &[&str] = &["account", "miniprogram"];

/// All together (`*`) is shown where there are several.
pub const SECTIONS: [Section; 7] = [
    Section {
        id: "coverage",
        title: words("Coverage now", "当前覆盖"),
        about: words(
            "Of the mini program's users, whom the Official Account can reach.",
            "小程序的用户中，公众号能触达多少人。",
        ),
        sql: "
with newest as (select * from coverage where date = (select max(date) from coverage))
select account, miniprogram, users, users_with_unionid, matched, reachable, reached_lately, coverage_rate, match_rate,
       followers, followers_with_unionid, date, as_of, run_id
from newest
where (account <> '*' or (select count(distinct account) > 2 from newest))
  and (miniprogram <> '*' or (select count(distinct miniprogram) > 2 from newest))
order by account <> '*', miniprogram <> '*', users desc, account, miniprogram",
        plot: Plot::Funnel { of: PAIR, steps: &["users", "users_with_unionid", "matched", "reachable"] },
    },
    Section {
        id: "trend",
        title: words("Coverage day by day", "覆盖率趋势"),
        about: words("The share of users who can be reached.", "可触达用户占全部用户的比例。"),
        sql: "
with shown as (select * from coverage where date > (select max(date) from coverage) - {days})
select date, account, miniprogram, coverage_rate, reachable, users
from shown
where (account <> '*' or (select count(distinct account) > 2 from shown))
  and (miniprogram <> '*' or (select count(distinct miniprogram) > 2 from shown))
order by account <> '*', miniprogram <> '*', account, miniprogram, date",
        plot: Plot::Lines { of: PAIR, value: "coverage_rate" },
    },
    Section {
        id: "match",
        title: words("Why people match, or not", "匹配与未匹配的原因"),
        about: words("Each side sums to the whole.", "每一侧各项之和等于总数。"),
        sql: "
select account, miniprogram, side, reason, people, date
from match_report where date = (select max(date) from match_report)
order by sum(people) over (partition by account, miniprogram) desc, account, miniprogram, side, people desc, reason",
        plot: Plot::Shares { of: &["account", "miniprogram", "side"], name: "reason", value: "people" },
    },
    Section {
        id: "segments",
        title: words("Coverage by segment", "分群覆盖"),
        about: words("The twelve values with most users of each segment.", "每个分群中用户最多的十二个取值。"),
        sql: "
select account, miniprogram, segment, value, users, matched, reachable, coverage_rate, date
from coverage_by_segment where date = (select max(date) from coverage_by_segment)
qualify row_number() over (partition by account, miniprogram, segment order by users desc, value) <= 12
order by sum(users) over (partition by account, miniprogram) desc, account, miniprogram, segment, users desc, value",
        plot: Plot::Rates {
            of: &["account", "miniprogram", "segment"],
            name: "value",
            part: "reachable",
            whole: "users",
        },
    },
    Section {
        id: "followers",
        title: words("Followers gained and lost", "关注与取消关注"),
        about: words("By walks and events; an account's first walk makes none.", "来自名单与事件；首次拉取名单不计入。"),
        sql: "
select date, account, count(*) filter (change = 'follow') as followed, count(*) filter (change = 'unfollow') as unfollowed
from follower_changes where date > (select max(date) from follower_changes) - {days}
group by date, account order by account, date",
        plot: Plot::UpAndDown { of: &["account"], up: "followed", down: "unfollowed" },
    },
    Section {
        id: "campaigns",
        title: words("Campaigns", "群发活动"),
        about: words(
            "The last twelve pushes; delivered is what finish events have told so far.",
            "最近十二次推送；送达数以目前收到的完成事件为准。",
        ),
        sql: "
with last as (select * from pushes order by started_at desc nulls last, run_id limit 12),
told as (
    select run_id, stage, count(*) filter (delivered = 'success') as delivered
    from deliveries where state = 'sent' group by run_id, stage
)
select pipeline, run_id, stage, account, started_at, recipients, sent, coalesce(delivered, 0) as delivered, failed, skipped,
       held, unconfirmed, pending, state
from last left join told using (run_id, stage)
order by started_at desc nulls last, run_id, stage",
        plot: Plot::Funnel { of: &["pipeline", "started_at"], steps: &["recipients", "sent", "delivered"] },
    },
    Section {
        id: "quota",
        title: words("Quota used", "接口额度使用"),
        about: words("Calls of each day beside what the day allows.", "每天的调用次数与当日额度之比。"),
        sql: "
select date, account, endpoint, calls, errors, quota, calls / nullif(cast(quota as double), 0) as used_rate
from api_calls where date > (select max(date) from api_calls) - {days} and quota is not null
order by account, endpoint, date",
        plot: Plot::Lines { of: &["account", "endpoint"], value: "used_rate" },
    },
];

/// A column's heading; its own name where nothing is declared.
pub fn heading(column: &str) -> Option<Words> {
    let known = [
        ("account", "account", "公众号"),
        ("miniprogram", "mini program", "小程序"),
        ("users", "users", "用户"),
        ("users_with_unionid", "users with unionid", "有 unionid 的用户"),
        ("followers", "followers", "粉丝"),
        ("followers_with_unionid", "followers with unionid", "有 unionid 的粉丝"),
        ("matched", "matched", "已匹配"),
        ("reachable", "reachable", "可触达"),
        ("reached_lately", "reached lately", "近期触达"),
        ("coverage_rate", "coverage", "覆盖率"),
        ("match_rate", "match rate", "匹配率"),
        ("date", "date", "日期"),
        ("as_of", "data as of", "数据截至"),
        ("run_id", "run", "运行"),
        ("side", "side", "一侧"),
        ("reason", "reason", "原因"),
        ("people", "people", "人数"),
        ("segment", "segment", "分群"),
        ("value", "value", "取值"),
        ("followed", "followed", "关注"),
        ("unfollowed", "unfollowed", "取消关注"),
        ("pipeline", "pipeline", "流水线"),
        ("stage", "stage", "阶段"),
        ("started_at", "started", "开始时间"),
        ("recipients", "recipients", "收件人"),
        ("sent", "sent", "已发送"),
        ("delivered", "delivered", "已送达"),
        ("failed", "failed", "失败"),
        ("skipped", "skipped", "跳过"),
        ("held", "held", "暂缓"),
        ("unconfirmed", "unconfirmed", "未确认"),
        ("pending", "pending", "待发送"),
        ("state", "state", "状态"),
        ("endpoint", "endpoint", "接口"),
        ("calls", "calls", "调用"),
        ("errors", "errors", "错误"),
        ("quota", "quota", "额度"),
        ("used_rate", "used", "已用"),
    ];
    known.iter().find(|(name, ..)| *name == column).map(|(_, en, zh)| words(en, zh))
}

/// A word that we write into a column, in Chinese as well; others stay as they are, and so does what people wrote: a city may
/// be called anything.
pub fn said(column: &str, value: &str) -> Option<Words> {
    let known: &[(&str, &str, &str)] = match column {
        "account" | "miniprogram" => &[("*", "all together", "合计")],
        "side" => &[("follower", "followers", "粉丝"), ("user", "users", "用户")],
        "reason" => &[
            ("matched", "matched", "已匹配"),
            ("conflict", "conflict: shares a unionid", "冲突：同一 unionid"),
            ("not_a_user", "not a user of the mini program", "不是小程序用户"),
            ("does_not_follow", "does not follow", "未关注"),
            ("no_unionid", "no unionid in the export", "导出中无 unionid"),
            ("not_asked", "not asked yet", "尚未查询"),
            ("not_bound", "not bound", "未绑定"),
            ("unfollowed", "unfollowed meanwhile", "期间取消关注"),
            ("error", "could not be read", "查询出错"),
            ("quarantined", "quarantined", "已隔离"),
        ],
        _ => &[],
    };
    known.iter().find(|(name, ..)| *name == value).map(|(_, en, zh)| words(en, zh))
}

/// Words of the page itself.
pub mod page {
    use super::{Words, words};

    pub const TITLE: Words = words("Coverage report", "覆盖报告");
    pub const MADE: Words = words("made", "生成于");
    pub const NOTHING: Words = words("Nothing to show yet.", "暂无数据。");
    pub const TABLE: Words = words("Table", "数据表");
    pub const SQL: Words = words("SQL behind it", "查询语句");
    pub const UNKNOWN: Words = words("(unknown)", "（未知）");
    pub const MORE: Words =
        words("The table is cut here; the SQL gives all of it.", "表格在此截断，查询语句给出全部。");
}

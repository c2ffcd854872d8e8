//! Two houses over one ledger, against the simulator and without it.

use std::path::Path;
use std::time::Duration;

use chrono::TimeDelta;

use super::meter::block;
use super::*;
use crate::config::{CONFIG_FILE, Environment, workspace_files};
use crate::domain::QuotaDay;
use crate::simulator::{Options, Simulator};
use crate::wechat::{CallEnd, CallMeter, Endpoint, Refused};

/// A workspace with one account at `base`, and what else `[accounts.main]` says.
fn settings(root: &Path, base: &str, more: &str) -> Settings {
    let options = Options::default();
    let config = format!(
        "[accounts.main]\napp_id = \"{}\"\napp_secret = \"{}\"\napi_base = \"{base}\"\n{more}\n",
        options.app_id, options.app_secret
    );
    std::fs::create_dir_all(root.join("config")).unwrap();
    std::fs::write(root.join(CONFIG_FILE), config).unwrap();
    let loaded = crate::config::load(root, &Environment::default());
    loaded.settings.unwrap_or_else(|| panic!("{}", loaded.problems))
}

async fn open(settings: &Settings) -> App {
    App::open(settings.clone(), Clock::default()).await.unwrap()
}

fn main_account(app: &App) -> WeChat {
    app.hands().wechat(&AccountName::new("main")).clone()
}

async fn meter(settings: &Settings) -> LedgerMeter {
    let ledger = Ledger::open(&settings.ledger.path).await.unwrap();
    LedgerMeter::new(ledger, &settings.accounts["main"], Clock::default())
}

async fn usage(settings: &Settings, endpoint: Endpoint) -> (u64, u64, bool) {
    let ledger = Ledger::open(&settings.ledger.path).await.unwrap();
    let usage = ledger.usage(None, None).await.unwrap();
    let usage = usage.iter().find(|usage| usage.endpoint == endpoint.as_str()).unwrap();
    (usage.calls, usage.errors, usage.exhausted_at.is_some())
}

#[tokio::test(flavor = "multi_thread")]
async fn houses_over_one_ledger_fetch_one_token_together() {
    let wechat = Simulator::start(Options { latency: Duration::from_millis(20), ..Options::default() }).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), &wechat.base_url(), "");
    let (one, other) = (open(&settings).await, open(&settings).await);
    let (one, other) = (main_account(&one), main_account(&other));
    let (first, second) = tokio::join!(one.templates(), other.templates());
    assert_eq!(first.unwrap().len(), second.unwrap().len());
    assert_eq!(wechat.calls().get("stable_token"), Some(&1));
    open(&settings).await;
    main_account(&open(&settings).await).templates().await.unwrap();
    assert_eq!(wechat.calls().get("stable_token"), Some(&1), "a later process takes the kept token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_of_another_kind_or_address_is_not_taken() {
    let (wechat, elsewhere) =
        (Simulator::start(Options::default()).await.unwrap(), Simulator::start(Options::default()).await.unwrap());
    let folder = tempfile::tempdir().unwrap();
    for (base, more) in [
        (wechat.base_url(), ""),
        (wechat.base_url(), "token = \"legacy\""),
        (elsewhere.base_url(), ""),
        (wechat.base_url(), ""),
    ] {
        let app = open(&settings(folder.path(), &base, more)).await;
        main_account(&app).templates().await.unwrap();
    }
    assert_eq!((wechat.calls()["stable_token"], wechat.calls()["token"]), (1, 1));
    assert_eq!(elsewhere.calls()["stable_token"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn meters_of_two_processes_never_pass_a_limit_together() {
    let folder = tempfile::tempdir().unwrap();
    let limits = "[accounts.main.quota]\n\"user/info/batchget\" = 100\n\"user/get\" = 30";
    let settings = settings(folder.path(), "http://127.0.0.1:1", limits);
    let meters = [Arc::new(meter(&settings).await), Arc::new(meter(&settings).await)];
    for (endpoint, limit) in [(Endpoint::UserInfoBatchget, 100), (Endpoint::UserGet, 30)] {
        let asked = (0..160).map(|number: usize| {
            let meter = meters[number % 2].clone();
            tokio::spawn(async move {
                let is_granted = meter.before(endpoint).await.is_ok();
                meter.during(endpoint).await;
                is_granted
            })
        });
        let answers = futures::future::join_all(asked.collect::<Vec<_>>()).await;
        let granted = answers.iter().map(|granted| u64::from(*granted.as_ref().unwrap())).sum::<u64>();
        // Near the limit one may be refused while the other still holds a part of its block.
        assert!(granted <= limit && granted > limit - block(endpoint), "{endpoint}: {granted}");
        assert_eq!(usage(&settings, endpoint).await.0, limit, "{endpoint}");
        for meter in &meters {
            meter.settle().await.unwrap();
        }
        assert_eq!(usage(&settings, endpoint).await.0, granted, "{endpoint}");
    }
}

#[tokio::test]
async fn what_was_reserved_and_not_called_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), "http://127.0.0.1:1", "");
    let meter = meter(&settings).await;
    for end in [CallEnd::Answered, CallEnd::NoAnswer, CallEnd::Refused(-1)] {
        meter.before(Endpoint::UserInfoBatchget).await.unwrap();
        meter.after(Endpoint::UserInfoBatchget, end);
    }
    assert_eq!(usage(&settings, Endpoint::UserInfoBatchget).await, (32, 0, false));
    meter.settle().await.unwrap();
    assert_eq!(usage(&settings, Endpoint::UserInfoBatchget).await, (3, 2, false));
    meter.settle().await.unwrap();
    assert_eq!(usage(&settings, Endpoint::UserInfoBatchget).await, (3, 2, false), "nothing comes back twice");
}

#[tokio::test]
async fn the_lower_of_our_ceiling_and_the_figure_of_wechat_holds() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), "http://127.0.0.1:1", "[accounts.main.quota]\n\"user/get\" = 3");
    let meter = meter(&settings).await;
    let ledger = Ledger::open(&settings.ledger.path).await.unwrap();
    let now = Clock::default().now();
    let figure = crate::ledger::QuotaFigure { limit: 2, used: 0, at: now };
    ledger.note_wechat_quota(&AccountName::new("main"), "user/get", QuotaDay::of(now), figure).await.unwrap();
    meter.before(Endpoint::UserGet).await.unwrap();
    meter.before(Endpoint::UserGet).await.unwrap();
    let refused = meter.before(Endpoint::UserGet).await;
    let Err(Refused::QuotaSpent { until }) = refused else { panic!("{refused:?}") };
    let wait = until - QuotaDay::of(now).next().starts_at();
    assert!(wait >= TimeDelta::minutes(1) && wait <= TimeDelta::minutes(5), "{wait}");
    assert!(meter.before(Endpoint::QuotaGet).await.is_ok() && meter.before(Endpoint::StableToken).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_allowed_more_than_the_documented_default_is_asked_for_its_figure_before_it_is_refused() {
    use crate::ledger::QuotaCharge;

    let mut options = Options::default();
    options.quota.insert("user/get".to_owned(), 502);
    let wechat = Simulator::start(options).await.unwrap();
    let day = QuotaDay::of(Clock::default().now());
    for (more, pages) in
        [("", 2), ("[accounts.main.quota]\n\"user/get\" = 501", 1), ("[accounts.main.quota]\n\"user/get\" = 500", 0)]
    {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings(folder.path(), &wechat.base_url(), more);
        let app = open(&settings).await;
        let (main, ledger) = (AccountName::new("main"), Ledger::open(&settings.ledger.path).await.unwrap());
        let charge = QuotaCharge { account: &main, endpoint: "user/get", day, limit: None, keep: 0 };
        ledger.reserve_calls(&charge, 500).await.unwrap();
        let asked_before = wechat.calls().get("openapi/quota/get").copied().unwrap_or(0);
        let mut walked = 0;
        while main_account(&app).followers_page(None).await.is_ok() {
            walked += 1;
        }
        assert_eq!(walked, pages, "{more}");
        let asked = wechat.calls().get("openapi/quota/get").copied().unwrap_or(0) - asked_before;
        assert_eq!(asked, u64::from(pages > 0), "once a day is enough: {more}");
    }
}

#[tokio::test]
async fn a_day_is_closed_by_refusals_past_a_minute_and_not_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), "http://127.0.0.1:1", "");
    let meter = meter(&settings).await;
    let spent = CallEnd::Refused(45009);
    let noon = QuotaDay::of(Clock::default().now()).starts_at() + TimeDelta::hours(12);
    let after = |seconds: i64, end: CallEnd| {
        meter.note_end(Endpoint::UserInfoBatchget, end, noon + TimeDelta::seconds(seconds))
    };
    for (seconds, end) in [(0, spent), (50, spent), (80, CallEnd::Answered), (100, spent)] {
        meter.before(Endpoint::UserInfoBatchget).await.unwrap();
        after(seconds, end);
    }
    assert!(meter.before(Endpoint::UserInfoBatchget).await.is_ok(), "it was a minute's limit");
    after(200, spent);
    assert!(matches!(meter.before(Endpoint::UserInfoBatchget).await, Err(Refused::QuotaSpent { .. })));
    assert_eq!(
        usage(&settings, Endpoint::UserInfoBatchget).await,
        (1, 4, true),
        "others know it, and only what was answered counts"
    );
}

#[tokio::test]
async fn refusals_around_midnight_do_not_close_the_new_day() {
    let folder = tempfile::tempdir().unwrap();
    let meter = meter(&settings(folder.path(), "http://127.0.0.1:1", "")).await;
    let today = QuotaDay::of(Clock::default().now());
    for seconds in [-120, 20, 70] {
        let at = today.starts_at() + TimeDelta::seconds(seconds);
        meter.note_end(Endpoint::UserGet, CallEnd::Refused(45009), at);
    }
    assert!(meter.before(Endpoint::UserGet).await.is_ok());
}

#[tokio::test]
async fn token_and_quota_calls_are_never_refused() {
    let folder = tempfile::tempdir().unwrap();
    let limits = "[accounts.main.quota]\n\"openapi/quota/get\" = 1";
    let settings = settings(folder.path(), "http://127.0.0.1:1", limits);
    let meter = meter(&settings).await;
    let now = Clock::default().now();
    for endpoint in [Endpoint::QuotaGet, Endpoint::StableToken, Endpoint::Token] {
        for seconds in [0, 100, 200] {
            meter.before(endpoint).await.unwrap();
            meter.note_end(endpoint, CallEnd::Refused(45009), now + TimeDelta::seconds(seconds));
        }
        meter.settle().await.unwrap();
        assert_eq!(usage(&settings, endpoint).await.0, 3, "{endpoint}: each is counted, none is reserved ahead");
        assert!(meter.before(endpoint).await.is_ok(), "{endpoint}");
    }
}

#[tokio::test]
async fn looking_leaves_no_ledger_behind() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), "http://127.0.0.1:1", "");
    assert!(App::open_existing(settings.clone(), Clock::default()).await.unwrap().is_none());
    assert!(!settings.ledger.path.exists());
    open(&settings).await;
    assert!(App::open_existing(settings, Clock::default()).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_workspace_passes_the_check_and_stays_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in workspace_files() {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let checked = load_and_check(folder.path(), &Environment::default()).await.unwrap();
    assert!(checked.settings.is_some(), "{}", checked.problems);
    assert!(!folder.path().join("data").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_keys_and_wrong_sql_are_told_together() {
    let folder = tempfile::tempdir().unwrap();
    settings(folder.path(), "http://127.0.0.1:1", "");
    let pipeline = "retries = 3\n[stages.s]\nkind = \"sql\"\n";
    std::fs::create_dir_all(folder.path().join("pipelines/p")).unwrap();
    std::fs::write(folder.path().join("pipelines/p.toml"), pipeline).unwrap();
    std::fs::write(folder.path().join("pipelines/p/s.sql"), "select openid\nfrom folowers").unwrap();
    let checked = load_and_check(folder.path(), &Environment::default()).await.unwrap();
    assert!(checked.settings.is_none());
    let told = checked.problems.to_json();
    assert_eq!(told.as_array().unwrap().len(), 2, "{told}");
    assert_eq!((&told[1]["file"], &told[1]["line"]), (&"pipelines/p.toml".into(), &1.into()));
    assert_eq!((&told[0]["file"], &told[0]["line"]), (&"pipelines/p/s.sql".into(), &2.into()));
    assert_eq!(told[0]["hint"], "did you mean `followers`?");
}

#[tokio::test]
async fn what_is_used_is_our_own_count_and_what_wechat_said_stands_beside_it_with_its_time() {
    use crate::ledger::{QuotaCharge, QuotaFigure};
    use crate::scheduler::allowance::allowances;

    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), "http://127.0.0.1:1", "");
    let ledger = Ledger::open(&settings.ledger.path).await.unwrap();
    let now = Clock::default().now();
    let (main, day, endpoint) = (AccountName::new("main"), QuotaDay::of(now), Endpoint::TemplateSend);
    let of = async || allowances(&settings, Some(&ledger), day, &[endpoint]).await.unwrap().remove(0);
    let charge = QuotaCharge { account: &main, endpoint: endpoint.as_str(), day, limit: None, keep: 0 };
    ledger.reserve_calls(&charge, 120).await.unwrap();
    assert_eq!((of().await.used, of().await.left_today, of().await.wechat), (120, Some(99_880), None));
    // In the middle of a push WeChat knew of fewer; later others have sent for the account as well.
    for (said, left) in [(60, 99_880), (150, 99_850)] {
        let figure = QuotaFigure { limit: 100_000, used: said, at: now };
        ledger.note_wechat_quota(&main, endpoint.as_str(), day, figure).await.unwrap();
        let found = of().await;
        assert_eq!((found.used, found.left_today), (120, Some(left)));
        let told = found.wechat.unwrap();
        assert_eq!((told.used, told.at.timestamp_micros()), (said, now.timestamp_micros()));
    }
}

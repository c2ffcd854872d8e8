//! The process ends at each named point of the way, and the run that goes on ends as one that was never stopped.

use lianbo::crash::CrashPoint;
use lianbo::simulator::Options;

use crate::house::{House, NIGHTLY, Outcome, campaign, crowd, outcome};

const ABORTED: i32 = -6;

/// Everything that a night, a push and a publication leave, but times, ids and what a second try may count differently.
const END: &str = "select line from (
    select concat_ws('|', 'delivery', stage, seq, openid, unionid, state, reason, errcode) as line from deliveries
    union all select concat_ws('|', 'recipient', stage, arm, seq, openid, unionid, variables) from recipients
    union all select concat_ws('|', 'left out', stage, openid, reason) from left_out
    union all select concat_ws('|', 'push', state, recipients, sent, failed, skipped, held, unconfirmed, pending)
        from pushes
    union all select concat_ws('|', 'run', pipeline, status) from runs
    union all select concat_ws('|', 'stage', name, status, rows_in, rows_out) from run_stages
    union all select concat_ws('|', 'follower', openid, active) from followers
    union all select concat_ws('|', 'profile', openid, unionid, unionid_missing) from profiles
    union all select concat_ws('|', 'user', openid, unionid) from mall_users
    union all select concat_ws('|', 'identity', unionid, oa_openid, mp_openid) from identities
    union all select concat_ws('|', 'coverage', account, miniprogram, followers, users, matched, reachable)
        from coverage
    union all select concat_ws('|', 'change', openid, change) from follower_changes
    union all select concat_ws('|', 'quarantine', source, line) from quarantine
) order by line";

/// A house whose one pipeline does the whole way, with such a push.
async fn house(keys: &str) -> House {
    let house = House::build(Options { page_size: 30, ..crowd(48) }).await;
    let files = "[stages.files]\nkind = \"publish\"\ntables = [\"identities\"]\nformat = \"csv\"";
    let pipeline = format!("{NIGHTLY}{}", campaign(&format!("{keys}\n{files}")));
    std::fs::remove_file(house.path("pipelines/nightly.toml")).unwrap();
    house.write("pipelines/campaign.toml", &pipeline);
    house
}

async fn run_with(house: &House, name: &str, value: &str) -> Outcome {
    let mut command = house.command(&["run", "campaign", "--yes", "--json"]);
    outcome(command.env(name, value).output().await.unwrap())
}

/// What is left when all is over, by the tables, the published file, the catalog and the people.
async fn end(house: &House) -> Vec<String> {
    house.everybody_has_one();
    let mut lines: Vec<String> = house.rows(END).await.into_iter().flatten().collect();
    let mut published: Vec<String> = house.read("data/published/identities.csv").lines().map(str::to_owned).collect();
    published.sort_unstable();
    lines.extend(published);
    let config = duckdb::Config::default().access_mode(duckdb::AccessMode::ReadOnly).unwrap();
    let catalog = duckdb::Connection::open_with_flags(house.path("data/catalog.duckdb"), config).unwrap();
    let sql = "select concat_ws('|', 'catalog', (select count(*) from deliveries where state = 'sent'),
        (select string_agg(status) from runs), (select count(*) from identities), (select state from pushes))";
    lines.push(catalog.query_row(sql, [], |row| row.get(0)).unwrap());
    let calls = "select sum(calls) from api_calls where endpoint = 'message/template/send'";
    let (counted, made) = (house.numbers(calls).await[0], house.calls("message/template/send"));
    assert!(counted >= made, "{made} sends were made, and only {counted} are counted against the day");
    let rooms = house.files().into_keys().filter(|path| path.to_string_lossy().contains("-room-"));
    lines.push(format!("{} files of room set aside", rooms.count()));
    lines
}

/// Ends the process at every point in turn, each in a house of its own. `passing` says at which passing, of so many.
async fn crash_everywhere(keys: &str, passing: impl Fn(usize) -> usize) {
    let undisturbed = house(keys).await;
    let run = run_with(&undisturbed, "LIANBO_LOG", "lianbo::crash=trace").await.ends(0);
    let wanted = end(&undisturbed).await;
    let people = usize::try_from(undisturbed.matchable()).unwrap();
    assert!(people > 40 && wanted.iter().filter(|line| line.ends_with("|sent")).count() == people, "{wanted:?}");
    for point in CrashPoint::ALL {
        let name = point.name();
        let passed = run.stderr.lines().filter(|line| line.ends_with(&format!("passes {name}"))).count();
        assert!(passed > 0, "{name} is not reached, so nothing is proven of it");
        let passing = passing(passed);
        let at = format!("{name}:{passing}");
        let house = house(keys).await;
        let crashed = run_with(&house, "LIANBO_CRASH_AT", &at).await;
        assert_eq!(crashed.code, ABORTED, "{at} of {passed} was not reached: {crashed:?}");
        let continued = house.run("campaign", &[]).await;
        assert_eq!(continued.code, 0, "after {at}: {continued:?}");
        assert_eq!(end(&house).await, wanted, "after {at}");
        let kept_off = house.simulator.inbox().repeats_kept_off;
        match point {
            // Accepted, and nobody knows: without the same id this person would have it twice.
            CrashPoint::AfterSend => assert!(kept_off > 0, "after {at} nothing was repeated"),
            CrashPoint::AfterPushEnd => assert_eq!(kept_off, 0, "after {at}"),
            CrashPoint::BeforeIntentCommit | CrashPoint::AfterIntentCommit if passing == 1 => {
                assert_eq!(kept_off, 0, "after {at}: something was sent before its intent was durable");
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_ends_at_any_point_of_one_batch_ends_as_if_it_never_had() {
    crash_everywhere("rate = \"5000/s\"", |_| 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_ends_at_any_point_amid_several_batches_ends_as_if_it_never_had() {
    crash_everywhere("rate = \"40/s\"\nconcurrency = 8", |passed| 1 + passed / 2).await;
}

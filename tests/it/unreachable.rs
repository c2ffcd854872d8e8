//! A WeChat that is not there: nobody waits for minutes without a word, and what we know ourselves is still told.

use std::time::Duration;

use lianbo::clock::Clock;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use crate::house::{House, outcome, small};

const ACCOUNT: &str = "timeout = \"3s\"";

/// A port on which connections are taken and nothing is ever said.
async fn silent() -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            open.spawn(async move { while stream.read_u8().await.is_ok() {} });
        }
    });
    (base, task)
}

/// A port on which nobody listens.
async fn refusing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// The house after a good night, and then its account's address is another.
async fn moved_to(base: &str) -> House {
    let house = House::build(small()).await;
    house.night().await;
    house.edit("config/lianbo.toml", &house.simulator.base_url(), base);
    // A time out longer than anybody's patience at a terminal.
    house.edit("config/lianbo.toml", ACCOUNT, "timeout = \"60s\"");
    house
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_refuses_connections_fails_the_run_soon_and_says_so_all_along() {
    let base = refusing().await;
    let house = moved_to(&base).await;
    let host = base.trim_start_matches("http://");
    let began = Clock::default().monotonic();
    let failed = house.run("nightly", &[]).await.ends(1);
    assert!(began.elapsed() < Duration::from_secs(60), "it took {:?}", began.elapsed());
    let waits: Vec<&str> = failed.stderr.lines().filter(|line| line.contains("trying again in")).collect();
    assert!((2..=6).contains(&waits.len()), "{}", failed.stderr);
    assert!(waits[0].contains(host) && waits[0].contains("main"), "{waits:?}");
    let reason = failed.json()["reason"].as_str().unwrap().to_owned();
    assert!(["main", host, "api_base", "DNS"].iter().all(|word| reason.contains(word)), "{reason}");
    assert_eq!(house.numbers("select count(*) from followers").await, [600]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_look_answer_within_seconds_when_wechat_is_silent_and_show_our_own_figures() {
    let (base, _listening) = silent().await;
    let house = moved_to(&base).await;
    let host = base.trim_start_matches("http://");
    for (arguments, code, told) in [
        (&["quota"][..], 0, &["WeChat did not answer", host, "user/get"][..]),
        (&["check", "--online"], 1, &["WRONG", "main", host, "api_base"]),
        (&["plan", "campaign"], 0, &["message/template/send"]),
        (&["status"], 0, &["nightly"]),
    ] {
        let began = Clock::default().monotonic();
        let said = house.lianbo(arguments).await;
        assert!(began.elapsed() < Duration::from_secs(20), "{arguments:?} took {:?}", began.elapsed());
        let missing: Vec<_> = told.iter().filter(|words| !said.text().contains(**words)).collect();
        assert!(said.code == code && missing.is_empty(), "{arguments:?} without {missing:?}: {said:?}");
    }
    let quota = house.lianbo(&["quota", "main", "--json"]).await.ends(0).json();
    let of_walk = &quota["accounts"][0]["endpoints"][0];
    assert_eq!((of_walk["endpoint"].as_str(), of_walk["used"].as_u64()), (Some("user/get"), Some(4)), "{quota}");
    assert!(of_walk["not_told"].as_str().is_some_and(|why| why.contains(host)), "{quota}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_environment_names_a_proxy_a_night_and_a_push_go_through_it() {
    let house = House::build(small()).await;
    let proxy = house.simulator.base_url();
    // A name that nothing resolves: whoever goes there by itself finds nobody.
    house.edit("config/lianbo.toml", &proxy, "http://api.wechat.invalid");
    let through = async |pipeline: &str| {
        let arguments = ["run", pipeline, "-y", "--json"];
        outcome(house.command(&arguments).env("http_proxy", &proxy).output().await.unwrap())
    };
    through("nightly").await.ends(0);
    through("campaign").await.ends(0);
    house.everybody_has_one();
    let refused = house.lianbo(&["check", "--online"]).await.ends(1);
    assert!(refused.text().contains("api.wechat.invalid"), "{refused:?}");
    let passing = house.command(&["check", "--online"]).env("http_proxy", &proxy).output().await.unwrap();
    assert_eq!(outcome(passing).code, 0);
}

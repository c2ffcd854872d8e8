//! What people order while a push goes on, as another process sees it; who is never sent to; and what is told of one person.

use std::time::Duration;

use lianbo::simulator::{Endpoint, Fault, Order};

use crate::callbacks;
use crate::house::{House, crowd, ended, small};
use crate::serve::Serving;

/// A push slow enough to be spoken to.
const SLOW: &str = "rate = \"40/s\"\nconcurrency = 4";

impl House {
    /// Starts the campaign and waits for its first sends.
    async fn begun(&self) -> tokio::process::Child {
        let child = self.begin("campaign");
        crate::house::eventually(Duration::from_secs(60), || self.calls("message/template/send") > 5).await;
        child
    }

    async fn audited(&self, command: &str) -> u64 {
        self.numbers(&format!(
            "select count(*) from audit where command = '{command}' and who <> '' and \"at\" is not null"
        ))
        .await[0]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stop_switch_stops_a_push_of_another_process_and_holds_through_restarts() {
    let house = House::build(crowd(2_000)).await;
    house.campaign(SLOW);
    house.night().await;
    let push = house.begun().await;
    house.lianbo(&["freeze", "main"]).await.ends(0);
    let before = house.calls("message/template/send");
    let waits = ended(push).await.ends(75);
    assert!(waits.json()["reason"].as_str().unwrap().starts_with("frozen"), "{waits:?}");
    let after = house.calls("message/template/send");
    assert!(after - before <= 2 * 44 + 4, "{} were sent after the order", after - before);
    house.run("campaign", &[]).await.ends(75);
    house.lianbo(&["freeze", "main"]).await.ends(0);
    assert_eq!(house.calls("message/template/send"), after, "nothing is sent while it is on");
    let status = house.lianbo(&["status", "--json"]).await.ends(1).json();
    assert!(status.to_string().contains("lianbo thaw main"), "{status}");
    house.lianbo(&["thaw"]).await.ends(0);
    house.lianbo(&["push", "rate", "campaign", "5000/s"]).await.ends(0);
    house.run("campaign", &[]).await.ends(0);
    house.everybody_has_one();
    assert_eq!((house.audited("freeze").await, house.audited("thaw").await), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_another_rate_and_a_cancel_reach_a_push_of_another_process() {
    let house = House::build(crowd(2_000)).await;
    house.campaign(SLOW);
    house.night().await;
    let push = house.begun().await;
    house.lianbo(&["push", "pause", "campaign"]).await.ends(0);
    ended(push).await.ends(75);
    house.lianbo(&["push", "resume", "campaign"]).await.ends(0);
    let before = house.calls("message/template/send");
    let push = house.begin("campaign");
    // Cancelled before it is taken up, it would be over, and this one a new campaign.
    crate::house::eventually(Duration::from_secs(60), || house.calls("message/template/send") > before).await;
    house.lianbo(&["push", "rate", "campaign", "30/s"]).await.ends(0);
    let shown = house.lianbo(&["push", "show", "campaign", "--json"]).await.ends(0).json();
    assert_eq!(shown["pushes"][0]["rate"]["set"], 30.0);
    house.lianbo(&["push", "cancel", "campaign"]).await.ends(0);
    let over = ended(push).await;
    assert_ne!(over.code, 0, "{over:?}");
    let counts = "select recipients - sent - skipped, skipped > 0, state = 'cancelled' from pushes";
    assert_eq!(house.row(counts).await, ["0", "true", "true"]);
    for command in ["push pause", "push resume", "push rate", "cancel"] {
        assert!(house.audited(command).await >= 1, "{command}");
    }
    nothing_is_ordered(&house, "cancelled").await;
}

/// Whatever is ordered of the campaign's latest run, which is over, is refused and says so.
async fn nothing_is_ordered(house: &House, status: &str) {
    let before = house.numbers("select count(*) from audit").await;
    for order in [&["resume"][..], &["pause"], &["rate", "30/s"], &["approve", "--hash", "cafe"], &["cancel"]] {
        let command = [&["push", order[0], "campaign"], &order[1..]].concat();
        let refused = house.lianbo(&command).await.ends(2);
        assert!(refused.stderr.contains(&format!("is {status}")), "{command:?}: {refused:?}");
    }
    assert_eq!(house.numbers("select count(*) from audit").await, before, "nothing was ordered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn to_continue_goes_on_with_what_is_unfinished_and_never_begins_a_campaign() {
    let house = House::build(crowd(400)).await;
    house.campaign("rate = \"100/s\"\nconcurrency = 4");
    let runs = async || house.numbers("select count(*) from runs where pipeline = 'campaign'").await[0];
    let idle = house.run("campaign", &["--continue"]).await.ends(0).json();
    assert_eq!((&idle["continued"], &idle["latest"]), (&false.into(), &serde_json::Value::Null));
    house.night().await;
    house.lianbo(&["run", "campaign", "--continue", "--fresh"]).await.ends(2);
    let push = house.begun().await;
    // It follows whoever sends, and goes on when that one stops.
    let beside = house.command(&["run", "campaign", "--continue", "--yes", "--json"]).spawn().unwrap();
    crate::house::signal(&push, "-TERM");
    let stopped = ended(push).await.ends(75);
    let told = stopped.json()["next"]["commands"][0].as_str().unwrap().to_owned();
    assert_eq!(told, "lianbo run campaign --continue");
    let followed = ended(beside).await;
    assert!([0, 75].contains(&followed.code), "{followed:?}");
    let way: Vec<&str> = told.split(' ').skip(1).collect();
    house.lianbo(&way).await.ends(0);
    house.everybody_has_one();
    let idle = house.lianbo(&way).await.ends(0);
    assert!(idle.stdout.contains("is succeeded): nothing is begun"), "{idle:?}");
    assert_eq!(runs().await, 1);
    house.everybody_has_one();
    nothing_is_ordered(&house, "succeeded").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_is_void_when_the_rate_or_the_window_changes() {
    let house = House::build(small()).await;
    house.campaign("approve = true\nrate = \"500/s\"");
    house.night().await;
    house.run("campaign", &[]).await.ends(75);
    let hash = async || {
        let shown = house.lianbo(&["push", "show", "campaign", "--json"]).await.ends(0).json();
        shown["pushes"][0]["approval_hash"].as_str().unwrap().to_owned()
    };
    let first = hash().await;
    house.lianbo(&["push", "approve", "campaign", "--hash", &first]).await.ends(0);
    house.lianbo(&["push", "rate", "campaign", "100/s"]).await.ends(0);
    let waits = house.run("campaign", &[]).await.ends(75);
    assert!(waits.json()["reason"].as_str().unwrap().contains("has changed"), "{waits:?}");
    let second = hash().await;
    assert_ne!(first, second);
    house.lianbo(&["push", "approve", "campaign", "--hash", &first]).await.ends(2);
    house.lianbo(&["push", "approve", "campaign", "--hash", &second]).await.ends(0);
    house.campaign("approve = true\nrate = \"500/s\"\nwindow = \"00:00-23:59\"");
    house.run("campaign", &[]).await.ends(75);
    assert_eq!(house.calls("message/template/send"), 0);
    house.lianbo(&["push", "approve", "campaign", "--hash", &hash().await]).await.ends(0);
    house.run("campaign", &[]).await.ends(0);
    house.everybody_has_one();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_who_are_suppressed_are_left_out_and_an_import_is_all_or_nothing() {
    let house = House::build(small()).await;
    house.night().await;
    let people = house.rows("select unionid, oa_openid from identities order by unionid limit 4").await;
    for nobody in ["", "  ", "two words"] {
        house.lianbo(&["suppress", "add", "--unionid", nobody, "--reason", "a slip"]).await.ends(2);
    }
    house.lianbo(&["suppress", "add", "--unionid", &people[0][0], "--reason", "asked on the phone"]).await.ends(0);
    house
        .lianbo(&["suppress", "add", "--openid", &people[1][1], "--account", "main", "--reason", "asked"])
        .await
        .ends(0);
    house.write(
        "out.csv",
        &format!("unionid,reason,until\n{},gone,2099-01-01\n,nobody,\n{},x,yesterday\n", people[2][0], people[3][0]),
    );
    let file = house.path("out.csv").to_str().unwrap().to_owned();
    let refused = house.lianbo(&["suppress", "import", &file]).await.ends(2);
    assert!(
        refused.text().contains("out.csv:3: neither") && refused.text().contains("out.csv:4: `yesterday`"),
        "{refused:?}"
    );
    assert_eq!(house.numbers("select count(*) from suppressions").await, [2]);
    house.write("out.csv", &format!("unionid,reason,until\n{},gone,2099-01-01\n", people[2][0]));
    house.lianbo(&["suppress", "import", &file]).await.ends(0);
    let listed = house.lianbo(&["suppress", "list", "--json"]).await.ends(0).json();
    assert_eq!(listed["suppressions"].as_array().unwrap().len(), 3);
    house.lianbo(&["suppress", "remove", "--openid", &people[1][1]]).await.ends(0);
    house.run("campaign", &[]).await.ends(0);
    assert_eq!(house.numbers("select count(*) from left_out where reason = 'suppressed'").await, [2]);
    let received = [0, 1, 2].map(|at| house.simulator.received(&people[at][1]));
    assert_eq!(received, [0, 1, 0]);
    let told = house.lianbo(&["explain", &people[0][0], "--json"]).await.ends(0).json();
    assert_eq!(told["sets"][0]["left_out"], "suppressed");
    assert_eq!(told["suppressions"][0]["reason"], "asked on the phone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_nobody_has_is_told_and_may_be_suppressed_ahead_of_time() {
    let house = House::build(small()).await;
    house.night().await;
    let person = house.row("select unionid, oa_openid, mp_openid from identities order by unionid limit 1").await;
    let stranger = "union-of-nobody-at-all";
    let ahead = house.lianbo(&["suppress", "add", "--unionid", stranger, "--reason", "asked", "--json"]).await.ends(0);
    assert_eq!((&ahead.json()["changed"], &ahead.json()["unknown"]), (&1.into(), &serde_json::json!([stranger])));
    assert!(ahead.stderr.contains("in no table yet"), "{ahead:?}");
    for id in &person[..2] {
        let known = house.lianbo(&["suppress", "add", "--openid", id, "--reason", "asked", "--json"]).await.ends(0);
        assert_eq!(known.json()["unknown"], serde_json::json!([]), "{id}");
        assert!(!known.stderr.contains("in no table yet"), "{known:?}");
    }
    let nothing_goes_there =
        house.lianbo(&["suppress", "add", "--openid", &person[2], "--reason", "asked"]).await.ends(2);
    assert!(nothing_goes_there.text().contains("is one of a mini program (table "), "{nothing_goes_there:?}");
    house.write("out.csv", &format!("openid\n{}\n{}\n", person[1], person[2]));
    let file = house.path("out.csv").to_str().unwrap().to_owned();
    let before = house.numbers("select count(*) from suppressions").await;
    house.lianbo(&["suppress", "import", &file]).await.ends(2);
    assert_eq!(house.numbers("select count(*) from suppressions").await, before);
    house.write("out.csv", &format!("unionid\n{}\nunion-of-nobody-else\n", person[0]));
    let file = house.path("out.csv").to_str().unwrap().to_owned();
    let imported = house.lianbo(&["suppress", "import", &file, "--json"]).await.ends(0);
    assert_eq!(imported.json()["unknown"], serde_json::json!(["union-of-nobody-else"]));
    assert!(imported.stderr.contains("1 of 2 ids"), "{imported:?}");
    let before = house.numbers("select count(*) from audit").await;
    let refused = house.lianbo(&["forget", "--unionid", "union-of-nobody-known"]).await.ends(2);
    assert!(refused.text().contains("nothing is erased"), "{refused:?}");
    assert_eq!(house.numbers("select count(*) from audit").await, before, "nothing was done");
    // Whoever was suppressed ahead of time is known by that alone.
    house.lianbo(&["forget", "--unionid", stranger]).await.ends(0);
    house.lianbo(&["forget", "--unionid", stranger]).await.ends(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_persons_whole_way_is_told_by_any_of_the_ids() {
    let house = House::build(small()).await;
    house.night().await;
    house.run("campaign", &[]).await.ends(0);
    let person = house.row("select unionid, oa_openid, mp_openid from identities order by unionid limit 1").await;
    let mut told = Vec::new();
    for id in &person {
        let mut one = house.lianbo(&["explain", id, "--json"]).await.ends(0).json();
        one["asked"] = serde_json::Value::Null;
        told.push(one);
    }
    assert!(told[0] == told[1] && told[1] == told[2], "{told:?}");
    let told = &told[0];
    assert_eq!(told["followers"][0]["openid"], person[1].as_str());
    assert_eq!(told["profiles"][0]["unionid"], person[0].as_str());
    assert_eq!(told["users"][0]["openid"], person[2].as_str());
    assert!(told["export_lines"][0]["line"].as_u64().unwrap() > 1);
    assert_eq!(told["sets"][0]["arm"], "send");
    assert_eq!(told["sets"][0]["sends"][0]["state"], "sent");
    house.lianbo(&["explain", "oNOBODY-AT-ALL"]).await.ends(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_person_stands_nowhere_and_is_never_sent_to_again() {
    let house = House::build(small()).await;
    house.night().await;
    house.night().await;
    house.run("campaign", &[]).await.ends(0);
    let person = house.row("select unionid, oa_openid, mp_openid from identities order by unionid limit 1").await;
    let sent = house.numbers("select count(*) from deliveries where state = 'sent'").await;
    let done = house.lianbo(&["forget", "--unionid", &person[0], "--json"]).await.ends(0).json();
    assert!(done["rows"]["identities"].as_u64().unwrap() >= 2, "old snapshots too: {done}");
    assert_eq!((done["deliveries"].as_u64(), done["openids"].as_u64()), (Some(1), Some(2)));
    assert_eq!(house.numbers("select count(*) from deliveries where state = 'sent'").await, sent);
    for (path, bytes) in house.files() {
        // The export is the mini program's own.
        if path.starts_with(house.path("data")) && !path.starts_with(house.path("data/exports")) {
            for id in &person {
                let is_there = bytes.windows(id.len()).any(|window| window == id.as_bytes());
                assert!(!is_there, "{id} stands in {}", path.display());
            }
        }
    }
    // The follower list and the export bring the person back, and no set takes the person in.
    let reachable =
        "select reachable from coverage where account = 'main' and miniprogram = '*' order by date desc limit 1";
    let before = house.numbers(reachable).await[0];
    let night = house.night().await;
    assert_eq!(house.numbers(reachable).await[0], before - 1, "nobody can reach who was forgotten");
    assert_eq!(house.numbers("select count(*) from follower_changes").await, [0]);
    let kept_out =
        [&night.stage("followers")["detail"]["walks"][0]["forgotten"], &night.stage("coverage")["detail"]["forgotten"]]
            .map(|count| count.as_u64().unwrap());
    assert_eq!(kept_out, [1, 1]);
    house.run("campaign", &[]).await.ends(0);
    assert_eq!(house.simulator.received(&person[1]), 1);
    let told = house.lianbo(&["explain", &person[1], "--json"]).await.ends(0).json();
    assert_eq!((&told["is_forgotten"], &told["sets"][0]["left_out"]), (&true.into(), &"suppressed".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_of_a_forgotten_person_afterwards_is_written_under_no_name() {
    let house = callbacks::house(small()).await;
    house.night().await;
    let person = house.row("select unionid, oa_openid, mp_openid from identities order by unionid limit 1").await;
    let openid = person[1].as_str();
    house.run("campaign", &[]).await.ends(0);
    let msgid = house.row(&format!("select msgid from deliveries where openid = '{openid}'")).await.remove(0);
    house.lianbo(&["forget", "--unionid", &person[0]]).await.ends(0);
    let serving = Serving::begin(&house, &[]).await;
    let finished = format!(
        "<Event><![CDATA[TEMPLATESENDJOBFINISH]]></Event><MsgID>{msgid}</MsgID><Status><![CDATA[success]]></Status>"
    );
    let events = ["<Event>unsubscribe</Event>", "<Event>subscribe</Event>", finished.as_str()];
    for told in events.map(|inner| callbacks::event(openid, inner)) {
        let answer = callbacks::post(&serving, &format!("/callback/main?{}", callbacks::signed()), &told).await;
        assert_eq!(answer, (200, "success".to_owned()));
    }
    // The delivery learns what became of it all the same.
    callbacks::comes_to(&house, "select count(*) from deliveries where delivered = 'success'", &[1]).await;
    assert_eq!(house.rows("select openid, event from callbacks").await, [["forgotten", "TEMPLATESENDJOBFINISH"]]);
    serving.stop().await;
    for (path, bytes) in house.files() {
        let is_ledger = path.to_string_lossy().contains("ledger.db");
        let names = bytes.windows(openid.len()).any(|window| window == openid.as_bytes());
        assert!(!(is_ledger && names), "the openid stands in {}", path.display());
    }
    house.simulator.clear_inbox();
    house.night().await;
    house.run("campaign", &[]).await.ends(0);
    assert_eq!(house.simulator.received(openid), 0);
    let left_out = "select reason, length(openid), unionid from left_out";
    assert_eq!(house.rows(left_out).await, [["suppressed", "64", ""]]);
    let told = house.lianbo(&["explain", openid, "--json"]).await.ends(0).json();
    assert_eq!((&told["is_forgotten"], &told["sets"][0]["left_out"]), (&true.into(), &"suppressed".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_failed_is_sent_to_again_by_a_push_of_just_those() {
    let house = House::build(small()).await;
    house.night().await;
    house.simulator.order(Order::next(Fault::Errcode(47003)).at(Endpoint::TemplateSend).after(5).times(2));
    let first = house.run("campaign", &[]).await.ends(0);
    assert_eq!(first.counts()[2], 2, "{first:?}");
    house.lianbo(&["push", "resend", "campaign", "--failed", "--errcode", "43004"]).await.ends(2);
    let made = house.lianbo(&["push", "resend", "campaign", "--failed", "--json"]).await.ends(0).json();
    assert_eq!((&made["recipients"], &made["next"]), (&2.into(), &"lianbo run campaign --continue".into()));
    let again = house.run("campaign", &["--continue"]).await.ends(0);
    assert_eq!(again.counts(), [2, 2, 0, 0, 0, 0, 0]);
    house.everybody_has_one();
    let show = async |name: &str| house.lianbo(&["push", "show", name, "--json"]).await.ends(0).json();
    let new = made["run_id"].as_str().unwrap();
    assert_eq!(show(new).await["pushes"][0]["resend_of"], made["resend_of"]);
    // The campaign is still its own push, and tells of the other one.
    let own = show("campaign").await;
    assert_eq!((&own["run_id"], &own["pushes"][0]["failed"]), (&first.json()["run_id"], &2.into()));
    assert_eq!(own["pushes"][0]["resends"], serde_json::json!([new]));
    let told = house.lianbo(&["push", "show", "campaign"]).await.ends(0).stdout;
    assert!(told.contains(&format!("sent to again by {new}, succeeded")), "{told}");
    let old = made["resend_of"].as_str().unwrap();
    house.lianbo(&["push", "resend", old, "--failed"]).await.ends(2);
    assert_eq!(house.audited("push resend").await, 1);
}

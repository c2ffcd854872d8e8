//! Stories of what was added to the platform's first reading: tags, marks, odd limits, sealed events.

use super::*;

#[tokio::test]
async fn the_members_of_a_tag_are_paged_like_the_followers() {
    let (_simulator, mut caller) = started(Options { page_size: 20, ..small() }).await;
    let target = caller.with_token("/cgi-bin/user/tag/get");
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = caller.post(&target, &json!({ "tagid": 2, "next_openid": cursor })).await;
        let Some(openids) = page["data"]["openid"].as_array() else {
            assert_eq!((&page["count"], &page["next_openid"]), (&json!(0), &json!("")));
            break;
        };
        all.extend(openids.iter().map(|openid| openid.as_str().unwrap().to_owned()));
        cursor = page["next_openid"].as_str().unwrap().to_owned();
    }
    let tags = caller.get(&caller.with_token("/cgi-bin/tags/get")).await;
    assert_eq!(tags["tags"][0]["id"], 2);
    assert!(all.len() > 25 && all.len() == all.iter().collect::<HashSet<_>>().len(), "{}", all.len());
    let of_one = caller.post(&caller.with_token("/cgi-bin/tags/getidlist"), &json!({ "openid": all[0] })).await;
    assert_eq!(of_one, json!({ "tagid_list": [2] }));
    assert_eq!(caller.post(&target, &json!({ "tagid": 7 })).await["errcode"], 45159);
}

#[tokio::test]
async fn the_blacklist_is_changed_and_read() {
    let (simulator, mut caller) = started(small()).await;
    let openid = simulator.ids(3).0;
    let (add, remove) = ("/cgi-bin/tags/members/batchblacklist", "/cgi-bin/tags/members/batchunblacklist");
    let named = json!({ "openid_list": [openid] });
    assert_eq!(caller.post(&caller.with_token(add), &named).await["errcode"], 0);
    assert_eq!(caller.send(&message(&openid, "a")).await["errcode"], 43019);
    let list = caller.with_token("/cgi-bin/tags/members/getblacklist");
    assert_eq!(caller.post(&list, &json!({})).await["data"]["openid"], json!([openid]));
    assert_eq!(caller.post(&caller.with_token(remove), &named).await["errcode"], 0);
    assert_eq!(caller.post(&list, &json!({})).await["count"], 0);
    assert_eq!(caller.send(&message(&openid, "a")).await["errcode"], 0);
    let many = json!({ "openid_list": vec![openid; 21] });
    assert_eq!(caller.post(&caller.with_token(add), &many).await["errcode"], 40032);
}

#[tokio::test]
async fn a_remark_is_kept_and_a_moved_account_tells_the_new_openids() {
    let (simulator, mut caller) = started(small()).await;
    let openid = simulator.ids(3).0;
    let asked = json!({ "openid": openid, "remark": "VIP \"一\"" });
    assert_eq!(caller.post(&caller.with_token("/cgi-bin/user/info/updateremark"), &asked).await["errcode"], 0);
    let target = format!("{}&openid={openid}", caller.with_token("/cgi-bin/user/info"));
    assert_eq!(caller.get(&target).await["remark"], "VIP \"一\"");

    let before = Simulator::start(Options { app_id: "wxold".to_owned(), ..small() }).await.unwrap();
    let asked = json!({ "from_appid": "wxold", "openid_list": [before.ids(3).0, "oNobody"] });
    let moved = caller.post(&caller.with_token("/cgi-bin/changeopenid"), &asked).await;
    assert_eq!(moved["result_list"][0]["new_openid"], json!(openid));
    assert_eq!(moved["result_list"][1]["err_msg"], "ori_openid error");

    let (_simulator, mut caller) = started(Options { moved_from: Some("wxolder".to_owned()), ..small() }).await;
    let moved = caller.post(&caller.with_token("/cgi-bin/changeopenid"), &asked).await;
    assert_eq!(moved["result_list"][0]["err_msg"], "ori_openid error", "it was moved from another one");
}

#[tokio::test]
async fn sends_to_one_person_at_once_or_too_soon_are_refused_and_can_be_repeated() {
    let at_once = Faults { same_person_at_once_refused: true, ..Faults::default() };
    let latency = std::time::Duration::from_millis(300);
    let (simulator, mut caller) = started(Options { faults: at_once, latency, ..small() }).await;
    let mut second = Caller::of(&simulator).await;
    let openid = simulator.ids(3).0;
    let (one, two) = (message(&openid, "a"), message(&openid, "b"));
    let (first, other) = tokio::join!(caller.send(&one), second.send(&two));
    let mut codes = [first["errcode"].as_i64().unwrap(), other["errcode"].as_i64().unwrap()];
    codes.sort_unstable();
    assert_eq!(codes, [0, 43108]);
    assert_eq!(simulator.received(&openid), 1);

    let (simulator, mut caller) = started(small()).await;
    simulator.set_faults(Faults { same_person_within_seconds: 60, ..Faults::default() });
    assert_eq!(caller.send(&message(&openid, "a")).await["errcode"], 0);
    assert_eq!(caller.send(&message(&openid, "a")).await["errcode"], 0, "a repeat is known as one");
    assert_eq!(caller.send(&message(&openid, "b")).await["errcode"], 43117);
    simulator.advance(61);
    assert_eq!(caller.send(&message(&openid, "b")).await["errcode"], 0);
    assert_eq!(simulator.received(&openid), 2);
}

#[tokio::test]
async fn a_minute_has_its_limit_and_some_people_their_own_code() {
    let minute_limits = BTreeMap::from([("message/template/send".to_owned(), 2)]);
    let (simulator, mut caller) =
        started(Options { faults: Faults { minute_limits, ..Faults::default() }, ..small() }).await;
    simulator.set_clock("2026-11-24T10:00:00Z".parse().unwrap());
    let mut caller_of_that_day = Caller::of(&simulator).await;
    std::mem::swap(&mut caller, &mut caller_of_that_day);
    let mut codes = Vec::new();
    for index in 0..3 {
        codes.push(caller.send(&message(&simulator.ids(index).0, "")).await["errcode"].as_i64().unwrap());
    }
    assert_eq!(codes, [0, 0, 45011]);
    simulator.advance(60);
    assert_eq!(caller.send(&message(&simulator.ids(5).0, "")).await["errcode"], 0);

    let person_errcodes_every = BTreeMap::from([(50002, 1)]);
    simulator.set_faults(Faults { person_errcodes_every, ..Faults::default() });
    assert_eq!(caller.send(&message(&simulator.ids(6).0, "")).await["errcode"], 50002);
}

#[tokio::test]
async fn the_shown_quota_is_right_within_a_hundredth_and_is_cleared_by_itself() {
    let (simulator, mut caller) = started(small()).await;
    for index in 0..200 {
        caller.send(&message(&simulator.ids(index).0, "")).await;
    }
    simulator.set_faults(Faults { quota_wobble_permille: 10, ..Faults::default() });
    let path = json!({ "cgi_path": "/cgi-bin/message/template/send" });
    let mut shown = HashSet::new();
    for _ in 0..30 {
        let quota = caller.post(&caller.with_token("/cgi-bin/openapi/quota/get"), &path).await["quota"].clone();
        let used = quota["used"].as_u64().unwrap();
        assert_eq!(quota["remain"].as_u64().unwrap() + used, quota["daily_limit"].as_u64().unwrap());
        shown.insert(used);
    }
    assert!(shown.iter().all(|used| (198..=202).contains(used)) && shown.len() > 2, "{shown:?}");
    assert_eq!(caller.post(&caller.with_token("/cgi-bin/openapi/quota/clear"), &path).await["errcode"], 0);
    let quota = caller.post(&caller.with_token("/cgi-bin/openapi/quota/get"), &path).await["quota"].clone();
    assert_eq!(quota["used"], 0);
}

#[tokio::test]
async fn an_event_comes_in_each_mode_and_the_address_is_checked() {
    const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";
    for (mode, in_the_open, sealed) in
        [(CallbackMode::Plain, true, false), (CallbackMode::Compatible, true, true), (CallbackMode::Safe, false, true)]
    {
        let (url, mut hears) = callback_address(Vec::new()).await;
        let callback = Some(Callback::new(url, "tok").sealed(mode, KEY));
        let (simulator, _caller) = started(Options { callback, ..small() }).await;
        simulator.unfollow(&simulator.ids(1).0);
        let event = hears.recv().await.unwrap();
        assert_eq!(event.contains("unsubscribe"), in_the_open, "{mode:?}");
        assert_eq!(event.contains("<Encrypt>") && event.contains("&encrypt_type=aes&"), sealed, "{mode:?}");
        assert!(event.contains("<ToUserName><![CDATA[gh_5d3a1f0c92b7]]></ToUserName>"));
    }
    let short = Callback::new("http://127.0.0.1:1/", "tok").sealed(CallbackMode::Safe, "short");
    assert!(Simulator::start(Options { callback: Some(short), ..small() }).await.is_err());
}

#[tokio::test]
async fn comings_and_goings_are_told_thrice_or_never_and_other_events_by_order() {
    let (url, mut hears) = callback_address(Vec::new()).await;
    let callback = Some(Callback::new(url, "tok"));
    let follow_events = FollowHabits { repeated_every: 1, ..FollowHabits::default() };
    let (simulator, mut caller) =
        started(Options { callback, faults: Faults { follow_events, ..Faults::default() }, ..small() }).await;
    let openid = simulator.ids(1).0;
    simulator.unfollow(&openid);
    for _ in 0..3 {
        assert!(hears.recv().await.unwrap().contains("[unsubscribe]"));
    }
    let follow_events = FollowHabits { missing_every: 1, ..FollowHabits::default() };
    simulator.set_faults(Faults { follow_events, ..Faults::default() });
    simulator.follow(&openid);
    let order = json!({ "openid": openid, "event": "SCAN", "fields": "<EventKey>9</EventKey>",
        "created_at_seconds": 1_764_000_000 });
    caller.post("/_simulator/event", &order).await;
    let told = hears.recv().await.unwrap();
    assert!(told.contains("<CreateTime>1764000000</CreateTime>"), "{told}");
    assert!(told.contains("<Event><![CDATA[SCAN]]></Event><EventKey>9</EventKey></xml>"), "{told}");
}

#[tokio::test]
async fn a_clock_that_is_moved_moves_those_who_come_and_go() {
    let (simulator, mut caller) = started(Options { followers: 2_000, page_size: 10_000, ..small() }).await;
    let churn = ChurnHabits { leave: 0.5, come: 0.0, come_back: 0.0 };
    simulator.set_faults(Faults { churn_per_second: churn, ..Faults::default() });
    let before = caller.page("").await["total"].as_u64().unwrap();
    simulator.advance(600);
    let after = caller.page("").await["total"].as_u64().unwrap();
    assert!(before - after >= 299, "{before} {after}");
    simulator.set_faults(Faults::default());
    let still = simulator.followers();
    simulator.advance(600);
    assert_eq!(simulator.followers(), still);
}

#[tokio::test]
async fn who_comes_and_goes_by_the_clock_is_told_to_the_callback() {
    let (simulator, _) = started(small()).await;
    let (url, mut posts) = callback_address(Vec::new()).await;
    simulator.set_callback(&Callback::new(url, "t")).unwrap();
    let churn = ChurnHabits { leave: 1.0, come: 1.0, come_back: 0.0 };
    simulator.set_faults(Faults { churn_per_second: churn, ..Faults::default() });
    simulator.advance(5);
    let (mut came, mut left) = (0, 0);
    while came < 5 || left < 5 {
        let post = posts.recv().await.unwrap();
        came += u32::from(post.contains("[subscribe]"));
        left += u32::from(post.contains("[unsubscribe]"));
    }
}

#[tokio::test]
async fn the_total_may_lie_and_a_page_may_be_empty_once_or_always() {
    let (simulator, mut caller) = started(Options { page_size: 20, ..small() }).await;
    let followers = simulator.followers();
    simulator.set_faults(Faults { total_off: -7, ..Faults::default() });
    assert_eq!(caller.page("").await["total"], followers - 7);
    simulator.set_faults(Faults { total_wobble: 5, ..Faults::default() });
    let mut totals = HashSet::new();
    for _ in 0..40 {
        let total = caller.page("").await["total"].as_u64().unwrap();
        assert!(total.abs_diff(followers) <= 5);
        totals.insert(total);
    }
    assert!(totals.len() > 3);

    simulator.set_faults(Faults { empty_page: 2, ..Faults::default() });
    let first = caller.page("").await;
    let cursor = first["next_openid"].as_str().unwrap().to_owned();
    for _ in 0..2 {
        assert_eq!(caller.page(&cursor).await["count"], 0);
    }
    simulator.set_faults(Faults::default());
    simulator.order(Order::next(Fault::EmptyPage).at(Endpoint::UserGet));
    let empty = caller.page(&cursor).await;
    assert_eq!((&empty["count"], &empty["data"], &empty["total"]), (&json!(0), &Value::Null, &json!(followers)));
    assert_eq!(caller.page(&cursor).await["count"], 20);
}

#[tokio::test]
async fn unionids_change_one_by_one_or_all_and_may_be_missing_later() {
    let (simulator, mut caller) = started(Options { bound_share: 1.0, ..small() }).await;
    let openids: Vec<String> = (0..40).map(|index| simulator.ids(index).0).collect();
    let unionids = |answer: &Value| -> HashMap<String, Option<String>> {
        let people = answer["user_info_list"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        people.map(|person| (text(&person["openid"]).unwrap(), text(&person["unionid"]))).collect()
    };
    let before = unionids(&caller.batch(&openids).await);
    assert!(simulator.rebind(&openids[7]) && !simulator.rebind(&openids[7]));
    let after = unionids(&caller.batch(&openids).await);
    let changed: Vec<&String> = openids.iter().filter(|openid| before[*openid] != after[*openid]).collect();
    assert_eq!(changed, [&openids[7]]);

    simulator.set_faults(Faults { changed_unionid_every: 1, ..Faults::default() });
    let all = unionids(&caller.batch(&openids).await);
    assert!(openids.iter().all(|openid| before[openid] != all[openid] && all[openid].is_some()));
    assert!(simulator.matchable().is_empty());

    simulator.set_faults(Faults { missing_unionid_every: 4, left_out_every: 5, ..Faults::default() });
    let fewer = unionids(&caller.batch(&openids).await);
    let missing = fewer.values().filter(|unionid| unionid.is_none()).count();
    assert!((1..30).contains(&missing) && (10..40).contains(&fewer.len()), "{missing} of {}", fewer.len());
    let left_out = openids.iter().find(|openid| !fewer.contains_key(*openid)).unwrap();
    let single = caller.get(&format!("{}&openid={left_out}", caller.with_token("/cgi-bin/user/info"))).await;
    assert_eq!(single["openid"], json!(left_out));
}

#[tokio::test]
async fn an_idle_connection_ends_by_itself_or_at_the_next_call() {
    for end in [IdleEnd::Close, IdleEnd::Reset] {
        let (simulator, _) = started(small()).await;
        simulator.set_faults(Faults { idle_ends_after_milliseconds: 30, idle_end: end, ..Faults::default() });
        let mut caller = Caller::of(&simulator).await;
        let mut rest = Vec::new();
        let ended = caller.stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty() && ended.is_ok() == (end == IdleEnd::Close), "{end:?}: {ended:?}");
    }
    let (simulator, _) = started(small()).await;
    simulator.set_faults(Faults { idle_ends_after_milliseconds: 1, idle_end: IdleEnd::NextCall, ..Faults::default() });
    let mut caller = TcpStream::connect(simulator.base_url().strip_prefix("http://").unwrap()).await.unwrap();
    let before = simulator.calls();
    // Whatever the machine is busy with, the first byte comes later than a millisecond after the connection was taken.
    let (half, other) = b"GET /cgi-bin/user/get HTTP/1.1\r\n\r\n".split_at(8);
    caller.write_all(half).await.unwrap();
    eventually_idle(&simulator).await;
    caller.write_all(other).await.unwrap();
    let mut rest = Vec::new();
    assert!(caller.read_to_end(&mut rest).await.is_err() && rest.is_empty());
    assert_eq!(simulator.calls(), before, "the call was not looked at");
}

/// Lets real time pass by calls on another connection until some milliseconds are over.
async fn eventually_idle(simulator: &Simulator) {
    let began = simulator.world.clock.machine_micros();
    while simulator.world.clock.machine_micros() - began < 5_000 {
        tokio::task::yield_now().await;
    }
}

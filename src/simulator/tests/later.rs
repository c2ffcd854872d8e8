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

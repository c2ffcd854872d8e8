//! Tokens, repeats of reads, the meter, and sends that are made once.

use super::*;

#[tokio::test]
async fn the_first_call_fetches_one_token_for_all() {
    let (base, log) = server(|asked| stable(asked, "T1", "F1").unwrap_or_else(|| json(LAST_PAGE))).await;
    let store = Arc::new(Store::default());
    let wechat = client(&base, &store);
    let pages = futures::future::join_all((0..8).map(|_| wechat.followers_page(None))).await;
    assert!(pages.iter().all(|page| page.as_ref().is_ok_and(|page| page.is_last)));
    assert_eq!(asked_for(&log, "stable_token"), 1);
    assert_eq!(store.token.lock().unwrap().as_ref().unwrap().access_token.expose_secret(), "T1");
}

#[tokio::test]
async fn a_refused_token_is_renewed_once_and_the_call_made_again() {
    let (base, log) = server(|asked| {
        stable(asked, "T2", "F1").unwrap_or_else(|| json(if asked.has_token("T2") { LAST_PAGE } else { NOT_LATEST }))
    })
    .await;
    let wechat = client(&base, &store());
    wechat.followers_page(None).await.unwrap();
    assert_eq!((asked_for(&log, "stable_token"), asked_for(&log, "user/get")), (1, 2));
}

#[tokio::test]
async fn a_token_that_another_process_renewed_is_taken_over() {
    let calls = AtomicUsize::new(0);
    let (base, log) = server(move |asked| {
        let good = if calls.fetch_add(1, Ordering::SeqCst) == 0 { "T1" } else { "T2" };
        json(if asked.has_token(good) { LAST_PAGE } else { NOT_LATEST })
    })
    .await;
    let store = store();
    let wechat = client(&base, &store);
    wechat.followers_page(None).await.unwrap();
    *store.token.lock().unwrap() = Some(token("T2"));
    wechat.followers_page(None).await.unwrap();
    assert_eq!(asked_for(&log, "stable_token"), 0);
}

#[tokio::test]
async fn a_string_that_nothing_gets_through_with_is_forced_out_once() {
    let (base, log) = server(|asked| {
        stable(asked, "T1", "F1").unwrap_or_else(|| json(if asked.has_token("F1") { LAST_PAGE } else { NOT_LATEST }))
    })
    .await;
    let wechat = client(&base, &store());
    wechat.followers_page(None).await.unwrap();
    assert_eq!((asked_for(&log, "stable_token"), asked_for(&log, "user/get")), (2, 5));
}

#[tokio::test]
async fn a_few_refusals_of_a_good_token_in_a_row_force_nothing() {
    let asked = AtomicUsize::new(0);
    let (base, log) = server(move |asking| {
        let answer = || if asked.fetch_add(1, Ordering::SeqCst) < 3 { NOT_LATEST } else { LAST_PAGE };
        stable(asking, "T1", "F1").unwrap_or_else(|| json(answer()))
    })
    .await;
    let store = store();
    client(&base, &store).followers_page(None).await.unwrap();
    assert_eq!((asked_for(&log, "stable_token"), asked_for(&log, "user/get")), (1, 4));
    assert_eq!(store.forced_left.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn whoever_waits_for_a_token_that_is_not_answered_shares_its_failure() {
    let (base, log) = server(|_| Say::HangUp).await;
    let wechat = client(&base, &Arc::new(Store::default())).at_once(Duration::from_secs(1));
    let pages = futures::future::join_all((0..16).map(|_| wechat.followers_page(None))).await;
    for page in pages {
        let error = page.unwrap_err();
        assert!(matches!(&error, WeChatError::Unreachable { tries: 1, .. }), "{error}");
        assert!(error.to_string().contains("account main") && error.is_transient(), "{error}");
    }
    assert!((1..=3).contains(&asked_for(&log, "stable_token")), "{}", asked_for(&log, "stable_token"));
    assert_eq!(asked_for(&log, "user/get"), 0);
}

#[tokio::test]
async fn without_a_forced_renewal_left_an_operator_is_asked_for() {
    let (base, log) = server(|asked| stable(asked, "T1", "F1").unwrap_or_else(|| json(NOT_LATEST))).await;
    let store = store();
    store.forced_left.store(0, Ordering::SeqCst);
    let wechat = client(&base, &store);
    let error = wechat.followers_page(None).await.unwrap_err();
    assert!(matches!(error, WeChatError::TokenRejected { .. }) && !error.is_transient(), "{error}");
    let SendOutcome::Refused { class, .. } = wechat.send(b"{}".to_vec()).await else { panic!("a send went through") };
    assert_eq!(class, CodeClass::Operator);
    assert!(asked_for(&log, "stable_token") <= 2, "a dead token must not be asked for again and again");
}

#[tokio::test]
async fn passing_refusals_of_a_good_token_do_not_become_a_storm_of_renewals() {
    let sends = AtomicUsize::new(0);
    let (base, log) = server(move |asked| {
        let every_fifth = || sends.fetch_add(1, Ordering::SeqCst).is_multiple_of(5);
        stable(asked, "T1", "F1").unwrap_or_else(|| json(if every_fifth() { NOT_LATEST } else { SENT }))
    })
    .await;
    let wechat = client(&base, &store());
    for _ in 0..40 {
        let outcome = wechat.send(b"{}".to_vec()).await;
        assert_eq!(outcome, SendOutcome::Accepted { msgid: Some(3264439863978712345), duplicate: false });
    }
    assert_eq!(asked_for(&log, "stable_token"), 1);
}

#[tokio::test]
async fn a_wrong_secret_is_never_asked_with_twice() {
    let (base, log) = server(|_| json(NOT_LATEST)).await;
    let error = client(&base, &Arc::new(Store::default())).followers_page(None).await.unwrap_err();
    assert!(matches!(error, WeChatError::Refused { class: CodeClass::Operator, .. }), "{error}");
    assert_eq!(asked_for(&log, ""), 1);
}

#[tokio::test]
async fn a_busy_wechat_is_asked_six_times_and_an_ip_refusal_once() {
    let (base, log) = server(|asked| match asked.target.contains("user/get") {
        true => json(r#"{"errcode":-1,"errmsg":"system error"}"#),
        false => json(r#"{"errcode":40164,"errmsg":"invalid ip 1.2.3.4"}"#),
    })
    .await;
    let wechat = client(&base, &store());
    assert!(wechat.followers_page(None).await.unwrap_err().is_transient());
    assert!(!wechat.templates().await.unwrap_err().is_transient());
    assert_eq!((asked_for(&log, "user/get"), asked_for(&log, "get_all_private_template")), (6, 1));
}

#[tokio::test]
async fn broken_connections_and_pages_of_proxies_are_tried_again() {
    let calls = AtomicUsize::new(0);
    let (base, _) = server(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 => Say::HangUp,
        1 => Say::Status(502),
        2 => Say::Raw("text/html", b"<html>".to_vec()),
        _ => Say::Raw("text/plain", LAST_PAGE.as_bytes().to_vec()),
    })
    .await;
    let counts = Arc::new(CallCounts::default());
    client(&base, &store()).counting(Arc::clone(&counts)).followers_page(None).await.unwrap();
    assert_eq!(counts.snapshot(), BTreeMap::from([("user/get".to_owned(), 4)]));
}

#[tokio::test]
async fn a_spent_day_is_told_from_a_spent_minute_by_the_quota() {
    let (base, log) = server(|asked| {
        let remain = if asked.body.contains("/cgi-bin/user/get") { 0 } else { 9_000 };
        if asked.target.contains("quota/get") {
            let quota = format!(r#"{{"daily_limit":10000,"used":1000,"remain":{remain}}}"#);
            return Say::Json(format!(r#"{{"errcode":0,"errmsg":"ok","quota":{quota}}}"#));
        }
        json(r#"{"errcode":45009,"errmsg":"reach max api daily quota limit"}"#)
    })
    .await;
    let wechat = client(&base, &store());
    let error = wechat.followers_page(None).await.unwrap_err();
    assert!(matches!(error, WeChatError::QuotaSpent { endpoint: Endpoint::UserGet, .. }), "{error}");
    assert_eq!(asked_for(&log, "user/get"), 1);
    let error = wechat.profile(&OpenId::new("openid1")).await.unwrap_err();
    assert!(matches!(error, WeChatError::QuotaSpent { endpoint: Endpoint::UserInfo, .. }), "{error}");
    assert_eq!(asked_for(&log, "user/info"), 6);
    assert_eq!(asked_for(&log, "quota/get"), 2, "once for each of both");
}

#[test]
fn a_45009_of_the_minute_is_not_said_to_be_of_the_day() {
    let said = |class| {
        let (endpoint, errmsg) = (Endpoint::UserInfo, "reach max api daily quota limit".to_owned());
        WeChatError::Refused { endpoint, errcode: 45009, errmsg, rid: None, class }.to_string()
    };
    assert!(said(CodeClass::Quota).contains("the next quota day"), "{}", said(CodeClass::Quota));
    let minute = said(CodeClass::Slow);
    assert!(!minute.contains("quota day") && minute.contains("it goes on with the next minute"), "{minute}");
}

#[tokio::test]
async fn what_the_meter_refuses_never_leaves() {
    let (base, log) = server(|_| json(LAST_PAGE)).await;
    let meter = Arc::new(Meter { spent: Some(Endpoint::UserGet), ..Meter::default() });
    let wechat = WeChat::new(settings(&base), store() as _, Arc::clone(&meter) as _, Clock::default()).unwrap();
    let error = wechat.followers_page(None).await.unwrap_err();
    assert!(matches!(error, WeChatError::QuotaSpent { .. }));
    assert_eq!(asked_for(&log, ""), 0);
    assert!(meter.ends.lock().unwrap().is_empty());
}

/// One profile as `user/info` gives it.
#[tokio::test]
async fn an_answer_lost_on_the_way_leaves_the_send_open_and_is_not_repeated() {
    let (base, log) = server(|_| Say::HangUp).await;
    let outcome = client(&base, &store()).send(b"{}".to_vec()).await;
    let SendOutcome::NoAnswer { reason, may_have_left: true } = outcome else { panic!("{outcome:?}") };
    assert!(!reason.contains("T1"), "{reason}");
    assert_eq!(asked_for(&log, "template/send"), 1);
}

#[tokio::test]
async fn a_send_that_reached_nobody_certainly_did_not_leave() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let outcome = client(&base, &store()).send(b"{}".to_vec()).await;
    assert!(matches!(outcome, SendOutcome::NoAnswer { may_have_left: false, .. }), "{outcome:?}");
}

#[tokio::test]
async fn a_send_is_made_once_whatever_the_answer() {
    let answers = [
        (json(r#"{"errcode":-1,"errmsg":"system error"}"#), "retry"),
        (json(r#"{"errcode":47003,"errmsg":"argument invalid! data.thing1.value invalid rid: 1-2-3"}"#), "recipient"),
        (json(r#"{"errcode":45065,"errmsg":"clientmsgid exist"}"#), "duplicate"),
        (json("{}"), "open"),
        (Say::Status(502), "open"),
        (Say::Status(412), "operator"),
    ];
    for (answer, expected) in answers {
        let answer = Mutex::new(Some(answer));
        let (base, log) = server(move |_| answer.lock().unwrap().take().unwrap_or(Say::HangUp)).await;
        let outcome = client(&base, &store()).send(b"{}".to_vec()).await;
        let told = match &outcome {
            SendOutcome::Accepted { duplicate, .. } => {
                if *duplicate {
                    "duplicate"
                } else {
                    "accepted"
                }
            }
            SendOutcome::Refused { class, field, errcode, .. } => {
                assert_eq!(field.as_deref(), (*errcode == 47003).then_some("thing1"));
                class.as_str()
            }
            SendOutcome::NoAnswer { may_have_left, .. } => {
                if *may_have_left {
                    "open"
                } else {
                    "not sent"
                }
            }
        };
        assert_eq!((told, asked_for(&log, "")), (expected, 1), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_token_centre_and_the_legacy_call_are_asked_in_their_own_way() {
    let (base, log) = server(|asked| match asked.target.contains("user/get") {
        true => json(LAST_PAGE),
        false => json(r#"{"access_token":"C1","expires_in":"1500"}"#),
    })
    .await;
    let kinds = [
        (TokenKind::Centre { url: format!("{base}/our/token") }, "/our/token"),
        (TokenKind::Legacy, "/cgi-bin/token?"),
    ];
    for (kind, path) in kinds {
        let settings = WeChatSettings { token: kind, ..settings(&base) };
        let store = Arc::new(Store::default());
        let wechat =
            WeChat::new(settings, Arc::clone(&store) as _, Arc::new(Meter::default()), Clock::default()).unwrap();
        wechat.followers_page(None).await.unwrap();
        assert_eq!(asked_for(&log, path), 1);
        let stored = wechat.stored_token().await.unwrap().unwrap();
        assert_eq!(stored.expires_at - stored.fetched_at, TimeDelta::seconds(1500));
    }
}

#[tokio::test]
async fn no_error_shows_the_token_or_the_secret() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    for kind in [TokenKind::Legacy, TokenKind::Stable] {
        let settings = WeChatSettings { token: kind, ..settings(&base) };
        for store in [store(), Arc::new(Store::default())] {
            let wechat =
                WeChat::new(settings.clone(), store as _, Arc::new(Meter::default()), Clock::default()).unwrap();
            let error = wechat.followers_page(None).await.unwrap_err();
            assert!(matches!(error, WeChatError::Unreachable { tries: 6, .. }), "{error}");
            let shown = format!("{error:?}");
            assert!(!shown.contains("s3cret") && !shown.contains("=T1"), "{shown}");
        }
    }
}

//! Stories told over TCP, as any caller would: nothing here reaches into the world.

mod later;

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;

/// A caller with one connection and a token.
struct Caller {
    stream: TcpStream,
    token: String,
}

impl Caller {
    async fn of(simulator: &Simulator) -> Self {
        let stream = TcpStream::connect(simulator.base_url().strip_prefix("http://").unwrap()).await.unwrap();
        let mut caller = Self { stream, token: String::new() };
        let answer = caller.post("/cgi-bin/stable_token", &credentials(simulator)).await;
        caller.token = answer["access_token"].as_str().unwrap().to_owned();
        assert!(!caller.token.is_empty() && caller.token.len() <= 512);
        caller
    }

    /// Status and body; `None` when the connection ended instead.
    async fn raw(&mut self, request: &[u8]) -> Option<(u16, Vec<u8>)> {
        self.stream.write_all(request).await.unwrap();
        let mut bytes = Vec::new();
        let head_end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if self.stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return None;
            }
        };
        let head = String::from_utf8(bytes[..head_end].to_vec()).unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        let end = head_end + length.parse::<usize>().unwrap();
        while bytes.len() < end {
            assert!(self.stream.read_buf(&mut bytes).await.unwrap() > 0);
        }
        Some((head.split(' ').nth(1).unwrap().parse().unwrap(), bytes[head_end..].to_vec()))
    }

    async fn get(&mut self, target: &str) -> Value {
        let (_, body) = self.raw(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    async fn post(&mut self, target: &str, body: &Value) -> Value {
        let (_, body) = self.raw(&post_bytes(target, body)).await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    fn with_token(&self, path: &str) -> String {
        format!("{path}?access_token={}", self.token)
    }

    async fn page(&mut self, next_openid: &str) -> Value {
        let target = self.with_token("/cgi-bin/user/get");
        let cursor = if next_openid.is_empty() { String::new() } else { format!("&next_openid={next_openid}") };
        self.get(&format!("{target}{cursor}")).await
    }

    async fn batch(&mut self, openids: &[String]) -> Value {
        let list: Vec<Value> = openids.iter().map(|openid| json!({ "openid": openid, "lang": "zh_CN" })).collect();
        self.post(&self.with_token("/cgi-bin/user/info/batchget"), &json!({ "user_list": list })).await
    }

    async fn send(&mut self, message: &Value) -> Value {
        self.post(&self.with_token("/cgi-bin/message/template/send"), message).await
    }

    /// Walks the follower list to its end by the rules a caller has to follow.
    async fn walk(&mut self) -> Vec<String> {
        let (mut all, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.page(&cursor).await;
            let openids = page["data"]["openid"].as_array().cloned().unwrap_or_default();
            all.extend(openids.iter().map(|openid| openid.as_str().unwrap().to_owned()));
            let next = page["next_openid"].as_str().unwrap().to_owned();
            if openids.is_empty() || next.is_empty() || next == cursor {
                return all;
            }
            cursor = next;
        }
    }
}

fn post_bytes(target: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn credentials(simulator: &Simulator) -> Value {
    let options = simulator.options();
    json!({ "grant_type": "client_credential", "appid": options.app_id, "secret": options.app_secret })
}

fn message(openid: &str, client_msg_id: &str) -> Value {
    json!({
        "touser": openid,
        "template_id": SALE_TEMPLATE_ID,
        "miniprogram": { "appid": "wx1111111111111111", "pagepath": "pages/sale/index?c=1" },
        "client_msg_id": client_msg_id,
        "data": {
            "thing1": { "value": "秋冬外套" },
            "time2": { "value": "2026-11-24 10:00" },
            "amount3": { "value": "39.80元" },
        },
    })
}

fn small() -> Options {
    Options { followers: 250, users: 300, matched_users: 200, page_size: 100, ..Options::default() }
}

async fn started(options: Options) -> (Simulator, Caller) {
    let simulator = Simulator::start(options).await.unwrap();
    let caller = Caller::of(&simulator).await;
    (simulator, caller)
}

#[tokio::test]
async fn every_end_of_the_list_gives_every_follower_once() {
    for list_end in [ListEnd::DataAbsent, ListEnd::EmptyList, ListEnd::EmptyCursor, ListEnd::SameCursor] {
        let faults = Faults { list_end, ..Faults::default() };
        let (simulator, mut caller) = started(Options { faults, ..small() }).await;
        let all = caller.walk().await;
        let distinct: HashSet<&String> = all.iter().collect();
        assert_eq!((all.len(), distinct.len()), (250, 250), "{list_end:?}");
        let pages = if list_end == ListEnd::EmptyCursor { 3 } else { 4 };
        assert_eq!(simulator.calls()["user/get"], pages, "{list_end:?}");
        simulator.stop().await;
    }
}

#[tokio::test]
async fn the_list_is_walkable_while_people_come_and_go() {
    let faults = Faults { churn_per_page: 10, repeated_openids: 3, blank_openids: true, ..Faults::default() };
    let (simulator, mut caller) = started(Options { faults, ..small() }).await;
    let all = caller.walk().await;
    let blanks = all.iter().filter(|openid| openid.is_empty()).count();
    let distinct: HashSet<&String> = all.iter().filter(|openid| !openid.is_empty()).collect();
    assert!(blanks >= 3);
    assert!(distinct.len() < all.len() - blanks, "some come twice");
    assert_eq!(simulator.followers(), 250);
}

#[tokio::test]
async fn a_cursor_that_unfollowed_goes_on_or_is_refused() {
    let (simulator, mut caller) = started(small()).await;
    let cursor = caller.page("").await["next_openid"].as_str().unwrap().to_owned();
    assert!(simulator.unfollow(&cursor));
    assert_eq!(caller.page(&cursor).await["count"], 100);
    simulator.set_faults(Faults { gone_cursor_refused: true, ..Faults::default() });
    assert_eq!(caller.page(&cursor).await["errcode"], 40003);
}

#[tokio::test]
async fn the_details_agree_with_the_export_of_the_mini_program() {
    let (simulator, mut caller) = started(small()).await;
    let mut file = Vec::new();
    let exported = write_users_csv(&mut file, &simulator.options().users_options()).unwrap();
    let users: HashMap<String, String> = csv::Reader::from_reader(file.as_slice())
        .records()
        .map(Result::unwrap)
        .map(|row| (row[1].to_owned(), row[0].to_owned()))
        .collect();
    let (mut seen, mut bound, mut matched) = (0, 0, 0);
    for openids in caller.walk().await.chunks(100) {
        let answer = caller.batch(openids).await;
        let list = answer["user_info_list"].as_array().unwrap();
        let order: Vec<&str> = list.iter().map(|one| one["openid"].as_str().unwrap()).collect();
        assert_ne!(order, openids.iter().map(String::as_str).collect::<Vec<_>>(), "in an order of its own");
        seen += order.iter().collect::<HashSet<_>>().len();
        let unionids: Vec<&str> = list.iter().filter_map(|one| one["unionid"].as_str()).collect();
        bound += unionids.len();
        matched += unionids.iter().filter(|unionid| users.contains_key(**unionid)).count();
    }
    assert_eq!(seen, 250);
    assert!((225..250).contains(&bound), "{bound}");
    assert!(matched > 170 && matched <= usize::try_from(exported.matched).unwrap(), "{matched} {exported:?}");
}

#[tokio::test]
async fn an_openid_of_nobody_spoils_a_batch_in_each_known_way() {
    let (simulator, mut caller) = started(Options { bound_share: 1.0, ..small() }).await;
    let (one, two, three) = (simulator.ids(0), simulator.ids(1), simulator.ids(2));
    let asked = [one.0.clone(), "oNobody".to_owned(), two.0.clone(), three.0.clone()];
    assert_eq!(caller.batch(&asked).await["errcode"], 40003);

    simulator.set_faults(Faults { invalid_in_batch: InvalidInBatch::ShortAnswer, ..Faults::default() });
    assert_eq!(caller.batch(&asked).await["user_info_list"].as_array().unwrap().len(), 3);

    simulator.set_faults(Faults { invalid_in_batch: InvalidInBatch::Shift, ..Faults::default() });
    let answer = caller.batch(&asked).await;
    let unionid_of = |openid: &str| {
        let list = answer["user_info_list"].as_array().unwrap();
        list.iter().find(|entry| entry["openid"] == openid).unwrap()["unionid"].clone()
    };
    assert_eq!(unionid_of(&one.0), one.1);
    assert_eq!(unionid_of(&two.0), three.1);
    assert_eq!(unionid_of(&three.0), Value::Null);

    let many = vec![one.0; 101];
    assert_eq!(caller.batch(&many).await["errcode"], 40032);
}

#[tokio::test]
async fn somebody_who_left_has_three_shapes() {
    let (simulator, mut caller) = started(Options { bound_share: 1.0, ..small() }).await;
    let (openid, unionid, _) = simulator.ids(4);
    simulator.unfollow(&openid);
    for (shape, nickname, shown) in [
        (NonFollower::Bare, Value::Null, Value::Null),
        (NonFollower::EmptyProfile, json!(""), Value::Null),
        (NonFollower::WithUnionid, json!(""), json!(unionid)),
    ] {
        simulator.set_faults(Faults { non_follower: shape, ..Faults::default() });
        let target = format!("{}&openid={openid}", caller.with_token("/cgi-bin/user/info"));
        let answer = caller.get(&target).await;
        assert_eq!(answer["subscribe"], 0);
        assert_eq!((&answer["nickname"], &answer["unionid"]), (&nickname, &shown), "{shape:?}");
    }
}

#[tokio::test]
async fn broken_answers_are_broken_as_bytes() {
    let (simulator, mut caller) = started(small()).await;
    let target = format!("{}&openid={}", caller.with_token("/cgi-bin/user/info"), simulator.ids(0).0);
    let request = format!("GET {target} HTTP/1.1\r\n\r\n").into_bytes();
    simulator.set_faults(Faults { broken_json_every: 1, ..Faults::default() });
    let (_, broken) = caller.raw(&request).await.unwrap();
    assert!(serde_json::from_slice::<Value>(&broken).is_err());
    simulator.set_faults(Faults { control_characters_every: 1, ..Faults::default() });
    let (_, odd) = caller.raw(&request).await.unwrap();
    assert!(std::str::from_utf8(&odd).is_err() && odd.contains(&0x14));
}

#[tokio::test]
async fn a_message_repeated_with_its_id_is_delivered_once_whatever_the_answer() {
    for (duplicate_answer, errcode, same_msgid) in [
        (DuplicateAnswer::SameMsgid, 0, true),
        (DuplicateAnswer::NewMsgid, 0, false),
        (DuplicateAnswer::Refused, 45065, false),
    ] {
        let (simulator, mut caller) =
            started(Options { faults: Faults { duplicate_answer, ..Faults::default() }, ..small() }).await;
        let openid = simulator.ids(1).0;
        let first = caller.send(&message(&openid, "run-1")).await;
        assert_eq!((&first["errcode"], &first["errmsg"]), (&json!(0), &json!("ok")));
        assert!(first["msgid"].as_u64().unwrap() > 1 << 61);
        let second = caller.send(&message(&openid, "run-1")).await;
        assert_eq!(second["errcode"], errcode);
        assert_eq!(first["msgid"] == second["msgid"], same_msgid);
        assert_eq!(simulator.received(&openid), 1);
        assert_eq!(simulator.inbox().repeats_kept_off, 1);

        simulator.advance(601);
        caller.send(&message(&openid, "run-1")).await;
        assert_eq!(simulator.received(&openid), 2, "past the window it is a new message");
        assert_eq!(simulator.inbox().twice_or_more, 1);
    }
}

#[tokio::test]
async fn an_answer_can_be_lost_after_the_message_was_accepted() {
    let (simulator, mut caller) = started(small()).await;
    let openid = simulator.ids(1).0;
    simulator.order(Order::next(Fault::LostAnswer).at(Endpoint::TemplateSend));
    let request = post_bytes(&caller.with_token("/cgi-bin/message/template/send"), &message(&openid, "a"));
    assert_eq!(caller.raw(&request).await, None);
    assert_eq!(simulator.received(&openid), 1);

    let mut caller = Caller::of(&simulator).await;
    simulator.order(Order::next(Fault::LostRequest).at(Endpoint::TemplateSend));
    assert_eq!(caller.raw(&request).await, None);
    let mut caller = Caller::of(&simulator).await;
    assert_eq!(caller.send(&message(&openid, "a")).await["errcode"], 0);
    assert_eq!(simulator.received(&openid), 1);
}

#[tokio::test]
async fn a_message_without_an_id_meets_the_sixty_second_rule_only_when_it_holds() {
    let (simulator, mut caller) = started(small()).await;
    let openid = simulator.ids(1).0;
    caller.send(&message(&openid, "")).await;
    assert_eq!(caller.send(&message(&openid, "")).await["errcode"], 0);
    simulator.set_faults(Faults { sixty_second_rule: true, ..Faults::default() });
    caller.send(&message(&openid, "")).await;
    assert_eq!(caller.send(&message(&openid, "")).await["errcode"], 40241);
    assert_eq!(simulator.received(&openid), 3);
}

#[tokio::test]
async fn whoever_cannot_be_reached_is_refused_with_the_reason() {
    let (simulator, mut caller) = started(small()).await;
    let openid = |index| simulator.ids(index).0;
    simulator.unfollow(&openid(1));
    simulator.blacklist(&openid(2));
    assert!(simulator.refuse_template(&openid(3), SALE_TEMPLATE_ID));
    for (openid, errcode) in
        [(openid(1), 43004), (openid(2), 43019), (openid(3), 43101), (simulator.ids(4).2, 40003), (openid(299), 40003)]
    {
        assert_eq!(caller.send(&message(&openid, "")).await["errcode"], errcode);
    }
    let mut other = message(&openid(3), "");
    other["template_id"] = json!(ORDER_TEMPLATE_ID);
    other["data"] = json!({
        "phrase1": { "value": "已发货" }, "character_string2": { "value": "SF1" }, "const3": { "value": "快递" },
    });
    assert_eq!(caller.send(&other).await["errcode"], 0, "another template is not refused");
    other["data"]["const3"]["value"] = json!("飞鸽");
    let refused = caller.send(&other).await;
    assert_eq!(refused["errcode"], 47003);
    assert!(refused["errmsg"].as_str().unwrap().starts_with("argument invalid! data.const3.value invalid"));
    other["miniprogram"]["appid"] = json!("wx9999999999999999");
    assert_eq!(caller.send(&other).await["errcode"], 40013);
    assert!(simulator.kill_template(SALE_TEMPLATE_ID));
    assert_eq!(caller.send(&message(&openid(5), "")).await["errcode"], 40037);
    let listed = caller.get(&caller.with_token("/cgi-bin/template/get_all_private_template")).await;
    assert_eq!(listed["template_list"].as_array().unwrap().len(), 1);
    assert_eq!(simulator.inbox().messages, 1);
}

#[tokio::test]
async fn the_day_ends_before_the_shown_figure_and_begins_again_at_midnight_or_later() {
    let quota = BTreeMap::from([("message/template/send".to_owned(), 5)]);
    let hidden_limits = BTreeMap::from([("message/template/send".to_owned(), 2)]);
    let faults = Faults { hidden_limits, quota_reset_lag_seconds: 300, ..Faults::default() };
    let simulator = Simulator::start(Options { quota, faults, ..small() }).await.unwrap();
    simulator.set_clock("2026-11-24T15:59:00Z".parse().unwrap());
    let send = async |caller: &mut Caller, index| {
        caller.send(&message(&simulator.ids(index).0, "")).await["errcode"].as_i64().unwrap()
    };
    let mut caller = Caller::of(&simulator).await;
    assert_eq!((send(&mut caller, 0).await, send(&mut caller, 1).await), (0, 0));
    assert_eq!(send(&mut caller, 2).await, 45009);
    let path = json!({ "cgi_path": "/cgi-bin/message/template/send" });
    let shown = caller.post(&caller.with_token("/cgi-bin/openapi/quota/get"), &path).await;
    assert_eq!(shown["quota"], json!({ "daily_limit": 5, "used": 2, "remain": 3 }));
    simulator.advance(120);
    assert_eq!(send(&mut caller, 2).await, 45009, "the reset lags");
    simulator.advance(300);
    assert_eq!(send(&mut caller, 2).await, 0);
    let wrong = json!({ "cgi_path": "/cgi-bin/nothing" });
    assert_eq!(caller.post(&caller.with_token("/cgi-bin/openapi/quota/get"), &wrong).await["errcode"], 76021);
}

#[tokio::test]
async fn tokens_are_asked_for_and_judged() {
    let (simulator, mut caller) = started(small()).await;
    assert_eq!(caller.get("/cgi-bin/user/get").await["errcode"], 41001);
    assert_eq!(caller.get("/cgi-bin/user/get?access_token=guess").await["errcode"], 40001);
    let mut wrong = credentials(&simulator);
    wrong["secret"] = json!("guess");
    assert_eq!(caller.post("/cgi-bin/stable_token", &wrong).await["errcode"], 40125);
    let again = caller.post("/cgi-bin/stable_token", &credentials(&simulator)).await;
    assert_eq!(again["access_token"], caller.token.as_str());
    let options = simulator.options();
    let (appid, secret) = (&options.app_id, &options.app_secret);
    let target = format!("/cgi-bin/token?grant_type=client_credential&appid={appid}&secret={secret}");
    let legacy = caller.get(&target).await;
    assert_eq!(legacy["expires_in"], 7200);
    assert_ne!(legacy["access_token"], caller.token.as_str());
    simulator.advance(7300);
    assert_eq!(caller.page("").await["errcode"], 42001);
    caller = Caller::of(&simulator).await;
    simulator.set_faults(Faults { spurious_token_every: 2, ..Faults::default() });
    assert_eq!(caller.page("").await["count"], 100);
    assert_eq!(caller.page("").await["errcode"], 40001);
    simulator.set_faults(Faults { ip_not_listed: true, ..Faults::default() });
    assert_eq!(caller.post("/cgi-bin/stable_token", &credentials(&simulator)).await["errcode"], 40164);
}

#[tokio::test]
async fn a_chunked_body_is_refused_without_json() {
    let (_simulator, mut caller) = started(small()).await;
    let request = b"POST /cgi-bin/stable_token HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";
    assert_eq!(caller.raw(request).await, Some((412, Vec::new())));
}

#[tokio::test]
async fn a_login_code_is_good_once() {
    let (simulator, mut caller) = started(small()).await;
    let (appid, secret) = ("wx1111111111111111", simulator.options().miniprogram_app_secret.clone());
    let code = simulator.login_code(120);
    let target =
        format!("/sns/jscode2session?appid={appid}&secret={secret}&js_code={code}&grant_type=authorization_code");
    let answer = caller.get(&target).await;
    let (_, unionid, mp_openid) = simulator.ids(120);
    assert_eq!((&answer["openid"], &answer["unionid"]), (&json!(mp_openid), &json!(unionid)));
    assert_eq!(caller.get(&target).await["errcode"], 40163);
}

/// An address that answers every event with the next of `answers` (then `success`) and hands the request on.
async fn callback_address(answers: Vec<&'static str>) -> (String, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/callback/main", listener.local_addr().unwrap());
    let (heard, hears) = mpsc::unbounded_channel();
    let answers = Arc::new(std::sync::Mutex::new(answers.into_iter()));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (heard, answers) = (heard.clone(), answers.clone());
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
                    let text = String::from_utf8(bytes.clone()).unwrap();
                    if !text.ends_with("</xml>") {
                        continue;
                    }
                    bytes.clear();
                    heard.send(text).unwrap();
                    let body = answers.lock().unwrap().next().unwrap_or("success");
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    (url, hears)
}

fn prompt(finish: FinishHabits) -> Faults {
    Faults { finish: FinishHabits { delay_milliseconds: 0, ..finish }, ..Faults::default() }
}

#[tokio::test]
async fn a_finish_event_is_signed_and_tried_three_times() {
    let (url, mut hears) = callback_address(vec!["no", "no"]).await;
    let callback = Some(Callback::new(url, "tok"));
    let faults = prompt(FinishHabits::default());
    let (simulator, mut caller) = started(Options { callback, faults, ..small() }).await;
    let openid = simulator.ids(1).0;
    let msgid = caller.send(&message(&openid, "x")).await["msgid"].as_u64().unwrap();
    let mut event = String::new();
    for _ in 0..3 {
        event = hears.recv().await.unwrap();
        assert!(event.contains(&format!("<MsgID>{msgid}</MsgID><Status><![CDATA[success]]></Status>")), "{event}");
        assert!(event.contains(&format!("<FromUserName><![CDATA[{openid}]]></FromUserName>")));
    }
    let query = event.split([' ', '?']).nth(2).unwrap();
    let query: HashMap<&str, &str> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    assert_eq!(query["signature"], envelope::signature(&["tok", query["timestamp"], query["nonce"]]));
    simulator.unfollow(&openid);
    assert!(hears.recv().await.unwrap().contains("<Event><![CDATA[unsubscribe]]></Event>"));
    assert_eq!((simulator.callbacks().failed_tries, simulator.callbacks().given_up), (2, 0));
    simulator.stop().await;
}

#[tokio::test]
async fn finish_events_come_thrice_without_an_id_and_with_other_fates() {
    let (url, mut hears) = callback_address(Vec::new()).await;
    let callback = Some(Callback::new(url, "tok"));
    let finish =
        FinishHabits { repeated_every: 1, msgid_zero: true, system_failed_every: 1, ..FinishHabits::default() };
    let (simulator, mut caller) = started(Options { callback, faults: prompt(finish), ..small() }).await;
    caller.send(&message(&simulator.ids(1).0, "x")).await;
    let bodies: HashSet<String> = [hears.recv().await, hears.recv().await, hears.recv().await]
        .map(|event| event.unwrap().split_once("\r\n\r\n").unwrap().1.to_owned())
        .into();
    assert_eq!(bodies.len(), 1);
    assert!(bodies.iter().all(|body| body.contains("<MsgID>0</MsgID><Status><![CDATA[failed: system failed]]>")));
    assert_eq!((simulator.inbox().messages, simulator.inbox().undelivered), (0, 1));
}

#[tokio::test]
async fn a_message_under_review_is_delivered_later() {
    let (url, mut hears) = callback_address(Vec::new()).await;
    let callback = Some(Callback::new(url, "tok"));
    let faults = Faults { audit_every: 1, ..prompt(FinishHabits::default()) };
    let (simulator, mut caller) = started(Options { callback, faults, ..small() }).await;
    let openid = simulator.ids(1).0;
    let held = caller.send(&message(&openid, "x")).await;
    assert_eq!((&held["errcode"], &held["msgid"]), (&json!(40252), &Value::Null));
    assert_eq!(simulator.received(&openid), 0);
    simulator.advance(1_800);
    assert!(hears.recv().await.unwrap().contains("TEMPLATESENDJOBFINISH"));
    assert_eq!(simulator.received(&openid), 1);
}

#[tokio::test]
async fn another_process_looks_and_orders_over_http() {
    let (simulator, mut caller) = started(small()).await;
    let person = caller.get("/_simulator/person?index=7").await;
    let openid = person["openid"].as_str().unwrap().to_owned();
    let order = json!({ "fault": { "errcode": -1 }, "endpoint": "message/template/send", "times": 1 });
    caller.post("/_simulator/order", &order).await;
    assert_eq!(caller.send(&message(&openid, "a")).await["errcode"], -1);
    assert_eq!(caller.send(&message(&openid, "a")).await["errcode"], 0);
    assert_eq!(caller.get(&format!("/_simulator/received?openid={openid}")).await["received"], 1);
    assert_eq!(caller.get("/_simulator/inbox").await["once"], 1);
    assert_eq!(caller.get("/_simulator/calls").await["message/template/send"], 2);
    let gone = caller.post("/_simulator/unfollow", &json!({ "count": 5 })).await;
    assert_eq!(gone["changed"], 5);
    assert_eq!(caller.get("/_simulator/world").await["followers"], 245);
    assert_eq!(caller.post("/_simulator/follow", &json!({ "openids": gone["openids"] })).await["changed"], 5);
    let before = caller.post("/_simulator/clock", &json!({})).await["now_seconds"].as_i64().unwrap();
    let after = caller.post("/_simulator/clock", &json!({ "advance_seconds": 3_600 })).await;
    assert!(after["now_seconds"].as_i64().unwrap() >= before + 3_600);
    caller.post("/_simulator/faults", &json!({ "list_end": "empty_cursor" })).await;
    assert_eq!(simulator.faults().list_end, ListEnd::EmptyCursor);
    assert!(caller.post("/_simulator/order", &json!({ "fault": "none" })).await["error"].is_string());
}

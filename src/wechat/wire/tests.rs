use super::*;
use crate::wechat::CodeClass;
use proptest::prelude::*;

fn reply(body: impl AsRef<[u8]>) -> Reply {
    Reply { status: 200, body: body.as_ref().to_vec() }
}

fn page(body: &str, after: Option<&str>) -> FollowerPage {
    let after = after.map(OpenId::new);
    decode::<FollowerAnswer>(Endpoint::UserGet, &reply(body)).unwrap().into_page(after.as_ref())
}

#[test]
fn every_shape_of_the_end_of_the_list_is_an_end() {
    let ends = [
        (r#"{"total":3,"count":0,"next_openid":""}"#, Some("c")),
        (r#"{"total":3,"count":0,"data":{"openid":[]},"next_openid":"c"}"#, Some("b")),
        (r#"{"total":3,"count":1,"data":{"openid":["c"]},"next_openid":""}"#, Some("b")),
        (r#"{"total":3,"count":1,"data":{"openid":["c"]}}"#, Some("b")),
        (r#"{"total":3,"count":1,"data":{"openid":["c"]},"next_openid":"c"}"#, Some("c")),
        (r#"{"total":3,"count":1,"data":null,"next_openid":"c"}"#, Some("b")),
        (r#"{"total":3,"count":1,"data":{},"next_openid":"c"}"#, Some("b")),
    ];
    for (body, after) in ends {
        assert!(page(body, after).is_last, "{body}");
    }
    let body = r#"{"total":3,"count":1,"data":{"openid":["b"]},"next_openid":"b"}"#;
    assert!(!page(body, Some("a")).is_last, "a page with a new cursor goes on, whatever the total");
}

#[test]
fn blank_openids_are_dropped_and_others_trimmed() {
    let page = page(r#"{"total":"2","count":"3","data":{"openid":["", " oA", null, "oB"]},"next_openid":"oB "}"#, None);
    assert_eq!(page.openids.iter().collect::<Vec<_>>(), [Some("oA"), Some("oB")]);
    assert_eq!(page.next_openid, Some(OpenId::new("oB")));
    assert_eq!((page.total, page.count), (Some(2), 3));
}

#[test]
fn an_errcode_is_understood_as_number_and_as_text() {
    for body in [r#"{"errcode":40003,"errmsg":"x"}"#, r#"{"errcode":"40003","errmsg":"x"}"#] {
        let error = decode::<FollowerAnswer>(Endpoint::UserGet, &reply(body)).err().unwrap();
        assert_eq!(error.errcode(), Some(40003));
        assert_eq!(error.class(), Some(CodeClass::Recipient));
    }
    assert!(decode::<SendAnswer>(Endpoint::TemplateSend, &reply(r#"{"errcode":"0","errmsg":"ok"}"#)).is_ok());
}

#[test]
fn a_refusal_keeps_its_rid_and_explains_itself() {
    let body = r#"{"errcode":40164,"errmsg":"invalid ip 1.2.3.4 ipv6 ::ffff:1.2.3.4, not in whitelist rid: 1-2-3"}"#;
    let error = decode::<FollowerAnswer>(Endpoint::UserGet, &reply(body)).err().unwrap();
    let text = error.to_string();
    assert!(text.contains("40164") && text.contains("IP whitelist") && text.contains("[rid 1-2-3]"), "{text}");
    assert_eq!(text.matches("1-2-3").count(), 1, "{text}");
    assert!(!error.is_transient());
}

#[test]
fn control_characters_and_broken_utf8_cost_nobody_their_profile() {
    let mut body = br#"{"openid":"oA","subscribe":"1","unionid":" uA","remark":"x"#.to_vec();
    body.extend_from_slice(&[0x14, 0x07, 0xff]);
    body.extend_from_slice(br#"y","tagid_list":["2",128]}"#);
    let profile = decode::<ProfileAnswer>(Endpoint::UserInfo, &reply(body)).unwrap().into_profile().unwrap();
    assert_eq!(profile.unionid, Some(UnionId::new("uA")));
    assert!(profile.subscribe);
    assert_eq!(profile.tagid_list, [2, 128]);
    assert_eq!(profile.remark.as_deref(), Some("x\u{fffd}y"));
}

#[test]
fn somebody_who_does_not_follow_has_hardly_anything() {
    let body = r#"{"subscribe":0,"openid":"oA","tagid_list":[]}"#;
    let profile = decode::<ProfileAnswer>(Endpoint::UserInfo, &reply(body)).unwrap().into_profile().unwrap();
    assert!(!profile.subscribe);
    assert_eq!((profile.unionid, profile.subscribe_time), (None, None));
}

#[test]
fn a_page_of_a_proxy_is_not_an_answer() {
    for body in ["<html>502</html>", "", "[1]"] {
        let error = decode::<FollowerAnswer>(Endpoint::UserGet, &reply(body)).err().unwrap();
        assert!(matches!(error, WeChatError::NotJson { .. }), "{body}: {error}");
    }
    let error =
        decode::<FollowerAnswer>(Endpoint::UserGet, &Reply { status: 503, body: b"{}".to_vec() }).err().unwrap();
    assert!(error.is_transient());
    let error = decode::<TokenAnswer>(Endpoint::StableToken, &Reply { status: 412, body: vec![] }).err().unwrap();
    assert!(!error.is_transient());
}

#[test]
fn an_unreadable_answer_is_reported_without_what_it_held() {
    let body = r#"{"data":"oSECRETOPENID1234567890"}"#;
    let error = decode::<FollowerAnswer>(Endpoint::UserGet, &reply(body)).err().unwrap();
    assert!(!error.to_string().contains("oSECRET"), "{error}");
}

#[test]
fn a_msgid_keeps_all_its_bits() {
    for (written, read) in [("3264439863978712345", Some(3264439863978712345)), ("18446744073709551615", None)] {
        let body = format!(r#"{{"errcode":0,"errmsg":"ok","msgid":{written}}}"#);
        assert_eq!(decode::<SendAnswer>(Endpoint::TemplateSend, &reply(body)).unwrap().msgid, read);
    }
}

#[test]
fn fields_of_a_template_are_found_with_and_without_blanks() {
    let content = "{{result.DATA}}\n\n金额:{ {amount3.DATA} }\n时间:{{ time2.DATA }}\n{{amount3.DATA}} {{.DATA}} x.DATA {{3.DATA}}";
    assert_eq!(template_fields(content), ["result", "amount3", "time2"]);
}

#[test]
fn a_refused_field_is_named() {
    assert_eq!(named_field("argument invalid! data.thing1.value invalid").as_deref(), Some("thing1"));
    assert_eq!(named_field("argument invalid!"), None);
}

#[test]
fn a_quota_without_rates_is_enough() {
    let body = r#"{"errcode":0,"errmsg":"ok","quota":{"daily_limit":100000,"used":83,"remain":99917}}"#;
    let figure = decode::<QuotaAnswer>(Endpoint::QuotaGet, &reply(body)).unwrap().into_figure();
    assert_eq!(figure, Some(QuotaFigure { daily_limit: 100_000, used: 83, remain: 99_917 }));
}

/// What the careful reader makes of a batch.
fn carefully(body: &str) -> Option<Profiles> {
    let batch: LooseBatch = serde_json::from_str(body).ok()?;
    let mut profiles = Profiles::default();
    batch.user_info_list.0.iter().for_each(|answer| answer.push_to(&mut profiles));
    Some(profiles)
}

#[test]
fn the_usual_answer_is_read_quickly() {
    let body = r#"{"user_info_list":[{"subscribe":1,"openid":"oA","nickname":"","sex":0,"language":"zh_CN","city":"","headimgurl":"","subscribe_time":1434093047,"unionid":" uA","remark":"","groupid":0,"tagid_list":[128,2],"subscribe_scene":"ADD_SCENE_QR_CODE","qr_scene":98765,"qr_scene_str":""}, {"subscribe": 0, "openid": "oB", "tagid_list": []}]}"#;
    let read = quick::profiles(body.as_bytes()).unwrap();
    assert_eq!(read.ids().collect::<Vec<_>>(), [(Some("oA"), Some("uA")), (Some("oB"), None)]);
    assert_eq!(read.tagid_list.iter().collect::<Vec<_>>(), [Some("[128,2]"), Some("[]")]);
    assert_eq!(Some(read), carefully(body));
    for odd in [
        r#"{"errcode":40003,"errmsg":"invalid openid"}"#,
        r#"{"user_info_list":[{"openid":"oA"}],"errcode":40003}"#,
        r#"{"user_info_list":[{"openid":"oA","openid":"oB"}]}"#,
        r#"{"user_info_list":[{"openid":"oA","subscribe_time":0123}]}"#,
        r#"{"user_info_list":[{"openid":"o\u0041"}]}"#,
        r#"{"user_info_list":[{"openid":"oA","tagid_list":["2"]}]}"#,
        r#"{"user_info_list":[{"openid":"oA"},]}"#,
        r#"{"user_info_list":[{"openid":"oA"}"#,
    ] {
        assert_eq!(quick::profiles(odd.as_bytes()), None, "{odd}");
    }
}

proptest! {
    #[test]
    fn what_is_read_quickly_is_what_is_read_carefully(
        people in prop::collection::vec(
            prop::collection::vec((
                prop::sample::select(vec![
                    "openid", "unionid", "subscribe", "subscribe_time", "subscribe_scene", "qr_scene", "qr_scene_str",
                    "tagid_list", "language", "remark", "groupid", "nickname", "sex", "errcode",
                ]),
                prop::sample::select(vec![
                    "1", "0", "-7", "01", "1.5", "1e3", "\"\"", "\"12\"", "\" oA \"", "\"微信\"", "\"a\\\\b\"", "null", "true",
                    "[]", "[2,128]", "[2, 3]", "[-1]", "{}", "999999999999999999", "9223372036854775807", "18446744073709551616", "",
                ]),
            ), 0..6),
            0..4,
        ),
        blank in prop::sample::select(vec!["", " ", "\n"]),
    ) {
        let people: Vec<String> = people
            .iter()
            .map(|fields| {
                let fields: Vec<String> = fields.iter().map(|(key, value)| format!("\"{key}\":{blank}{value}")).collect();
                format!("{{{}}}", fields.join(&format!(",{blank}")))
            })
            .collect();
        let body = format!("{{\"user_info_list\":{blank}[{}]}}", people.join(","));
        if let Some(quickly) = quick::profiles(body.as_bytes()) {
            prop_assert_eq!(Some(quickly), carefully(&body));
        }
    }
}

fn page_carefully(body: &str) -> Option<FollowerPage> {
    serde_json::from_str::<FollowerAnswer>(body).ok().map(|answer| answer.into_page(None))
}

#[test]
fn the_usual_page_is_read_quickly() {
    let body = r#"{"total":23000,"count":3,"data":{"openid":["oA"," oB ",""]},"next_openid":"oB"}"#;
    let read = quick::page(body.as_bytes()).unwrap();
    assert_eq!((read.total, read.count, read.listed), (Some(23_000), Some(3), 3));
    assert_eq!(read.openids.iter().collect::<Vec<_>>(), [Some("oA"), Some("oB")]);
    for odd in [
        r#"{"errcode":40003,"errmsg":"invalid openid"}"#,
        r#"{"total":1,"count":1,"data":{"openid":["o\u0041"]},"next_openid":""}"#,
        r#"{"total":1,"total":2}"#,
        r#"{"total":1,"data":null}"#,
        r#"{"data":{"openid":["oA",]}}"#,
        r#"{"data":{"openid":["oA"]}"#,
    ] {
        assert_eq!(quick::page(odd.as_bytes()), None, "{odd}");
    }
}

proptest! {
    #[test]
    fn a_page_that_is_read_quickly_is_what_is_read_carefully(
        fields in prop::collection::vec((
            prop::sample::select(vec!["total", "count", "data", "next_openid", "errcode", "other"]),
            prop::sample::select(vec![
                "1", "0", "-7", "01", "1.5", "\"\"", "\"12\"", "\" oA \"", "\"微信\"", "null", "true", "[]", "{}",
                "{\"openid\":[]}", "{\"openid\":[\"oA\",\"\",\" oB\"]}", "{\"openid\":[\"oA\", 7]}", "{\"openid\":null}",
                "{\"openid\":[\"oA\"],\"more\":1}", "18446744073709551616",
            ]),
        ), 0..5),
        blank in prop::sample::select(vec!["", " ", "\n"]),
    ) {
        let fields: Vec<String> = fields.iter().map(|(key, value)| format!("\"{key}\":{blank}{value}")).collect();
        let body = format!("{{{}}}", fields.join(&format!(",{blank}")));
        if quick::page(body.as_bytes()).is_some() {
            let quickly = FollowerAnswer::read(body.as_bytes()).ok().map(|answer| answer.into_page(None));
            prop_assert_eq!(quickly, page_carefully(&body));
        }
    }
}

//! Batches of profiles: what an answer is worth, and what is asked next because of it.

use std::collections::VecDeque;

use super::*;

/// One profile as `user/info` gives it.
fn profile(openid: &str, unionid: &str) -> String {
    format!(r#"{{"subscribe":1,"openid":"{openid}","unionid":"{unionid}","tagid_list":[]}}"#)
}

fn openids_in(asked: &Asked) -> Vec<String> {
    asked.body.split("\"openid\":\"").skip(1).map(|rest| rest[..rest.find('"').unwrap()].to_owned()).collect()
}

fn single(asked: &Asked) -> String {
    let at = asked.target.find("&openid=").unwrap() + "&openid=".len();
    asked.target[at..].split('&').next().unwrap().to_owned()
}

fn everybody_has_their_own_unionid(batch: &ProfileBatch) {
    for (openid, unionid) in batch.profiles.ids() {
        assert_eq!(unionid.unwrap(), format!("u-{}", openid.unwrap()));
    }
}

/// Asks for everybody call by call, as an answer says what must follow it, and gives also how often a batch was split.
async fn everybody(wechat: &WeChat, openids: &[OpenId]) -> (ProfileBatch, usize) {
    let (mut all, mut splits) = (ProfileBatch::default(), 0);
    let mut waiting: VecDeque<Vec<OpenId>> = openids.chunks(100).map(<[OpenId]>::to_vec).collect();
    while let Some(asked) = waiting.pop_front() {
        let batch = match wechat.profiles(&asked).await.unwrap() {
            Answer::Whole(batch) => batch,
            Answer::Short(short) => {
                let is_true = match &short.claim {
                    Some(claim) => wechat.confirms(claim).await.unwrap(),
                    None => true,
                };
                let singly = if is_true {
                    short.missing
                } else {
                    splits += 1;
                    asked
                };
                waiting.extend(singly.into_iter().map(|openid| vec![openid]));
                if is_true { short.batch } else { ProfileBatch::default() }
            }
            Answer::Split(pieces) => {
                splits += 1;
                waiting.extend(pieces);
                continue;
            }
        };
        all.profiles.append(&batch.profiles);
        all.refused.extend(batch.refused);
        all.unreadable.extend(batch.unreadable);
    }
    (all, splits)
}

#[tokio::test]
async fn shifted_unionids_are_found_out_by_splitting() {
    let (base, log) = server(|asked| {
        if asked.target.contains("batchget") {
            let openids = openids_in(asked);
            // From the bad one on, everybody gets the unionid of the one after; the last keeps theirs, so it stands twice.
            let bad = openids.iter().position(|openid| openid == "openid003").unwrap_or(usize::MAX);
            let last = openids.len() - 1;
            let unionid = |n: usize| format!("u-{}", openids[if n >= bad { (n + 1).min(last) } else { n }]);
            let list: Vec<_> = openids.iter().enumerate().map(|(n, openid)| profile(openid, &unionid(n))).collect();
            return Say::Json(format!(r#"{{"user_info_list":[{}]}}"#, list.join(",")));
        }
        match single(asked).as_str() {
            "openid003" => json(r#"{"errcode":40003,"errmsg":"invalid openid"}"#),
            openid => Say::Json(profile(openid, &format!("u-{openid}"))),
        }
    })
    .await;
    let (batch, splits) = everybody(&client(&base, &store()), &ids(10)).await;
    assert!(splits > 0);
    assert_eq!(batch.profiles.len(), 9);
    assert_eq!(batch.refused, [(OpenId::new("openid003"), 40003)]);
    everybody_has_their_own_unionid(&batch);
    assert!(asked_for(&log, "user/info?") < 10, "sound halves are taken whole");
}

/// Answers batches without the people of `left_out`, from the first of whom on everybody has a unionid `shift` places off.
fn leaving_out(asked: &Asked, left_out: &[&str], shift: usize) -> Say {
    if !asked.target.contains("batchget") {
        let openid = single(asked);
        return Say::Json(profile(&openid, &format!("u-{openid}")));
    }
    let openids = openids_in(asked);
    let first = openids.iter().position(|openid| left_out.contains(&openid.as_str())).unwrap_or(usize::MAX);
    let unionid = |n: usize| match n > first {
        true => openids.get(n + shift).map_or_else(|| "u-of-nobody".to_owned(), |next| format!("u-{next}")),
        false => format!("u-{}", openids[n]),
    };
    let here = openids.iter().enumerate().filter(|(_, openid)| !left_out.contains(&openid.as_str()));
    let list: Vec<_> = here.map(|(n, openid)| profile(openid, &unionid(n))).collect();
    Say::Json(format!(r#"{{"user_info_list":[{}]}}"#, list.join(",")))
}

#[tokio::test]
async fn whoever_is_missing_from_an_answer_is_asked_for_singly_and_the_rest_is_taken() {
    let (base, log) = server(|asked| leaving_out(asked, &["openid003", "openid050"], 0)).await;
    let (batch, splits) = everybody(&client(&base, &store()), &ids(100)).await;
    assert_eq!((batch.profiles.len(), splits), (100, 0));
    everybody_has_their_own_unionid(&batch);
    // The two, and one of the others to see that nobody was given a neighbour's unionid.
    assert_eq!((asked_for(&log, "batchget"), asked_for(&log, "user/info?")), (1, 3));
}

#[tokio::test]
async fn a_short_answer_that_has_shifted_is_asked_for_singly() {
    let (base, log) = server(|asked| leaving_out(asked, &["openid003"], 1)).await;
    let (batch, splits) = everybody(&client(&base, &store()), &ids(10)).await;
    assert_eq!((batch.profiles.len(), splits), (10, 1));
    everybody_has_their_own_unionid(&batch);
    assert_eq!((asked_for(&log, "batchget"), asked_for(&log, "user/info?")), (1, 11));
}

#[tokio::test]
async fn a_batch_refused_for_one_openid_still_gives_everybody_else() {
    let (base, _) = server(|asked| {
        let openids = if asked.target.contains("batchget") { openids_in(asked) } else { vec![single(asked)] };
        if openids.iter().any(|openid| openid == "openid007") {
            return json(r#"{"errcode":40003,"errmsg":"invalid openid"}"#);
        }
        let list: Vec<_> = openids.iter().rev().map(|openid| profile(openid, &format!("u-{openid}"))).collect();
        match asked.target.contains("batchget") {
            true => Say::Json(format!(r#"{{"user_info_list":[{}]}}"#, list.join(","))),
            false => Say::Json(list[0].clone()),
        }
    })
    .await;
    let (batch, splits) = everybody(&client(&base, &store()), &ids(230)).await;
    assert_eq!((batch.profiles.len(), splits), (229, 7), "halved until one is left");
    assert_eq!(batch.refused, [(OpenId::new("openid007"), 40003)]);
    everybody_has_their_own_unionid(&batch);
}

#[tokio::test]
async fn one_broken_profile_spoils_neither_its_batch_nor_the_run() {
    let broken = r#"{"subscribe":1,"openid":"openid001","city":"\"}"#;
    let (base, log) = server(move |asked| {
        if asked.target.contains("batchget") {
            return Say::Json(format!(r#"{{"user_info_list":[{broken}]}}"#));
        }
        match single(asked).as_str() {
            "openid001" => json(broken),
            openid => Say::Json(profile(openid, &format!("u-{openid}"))),
        }
    })
    .await;
    let (batch, _) = everybody(&client(&base, &store()), &ids(3)).await;
    assert_eq!(batch.profiles.len(), 2);
    assert_eq!(batch.unreadable, [OpenId::new("openid001")]);
    assert_eq!(asked_for(&log, "batchget"), 1);
}

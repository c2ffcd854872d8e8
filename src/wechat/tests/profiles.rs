//! Details of many: matched by openid, split where they are shifted, asked for singly where they are broken.

use super::*;

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
    let batch = client(&base, &store()).profiles(&ids(10)).await.unwrap();
    assert!(batch.suspicious);
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
    let batch = client(&base, &store()).profiles(&ids(100)).await.unwrap();
    assert_eq!((batch.profiles.len(), batch.suspicious), (100, false));
    everybody_has_their_own_unionid(&batch);
    // The two, and one of the others to see that nobody was given a neighbour's unionid.
    assert_eq!((asked_for(&log, "batchget"), asked_for(&log, "user/info?")), (1, 3));
}

#[tokio::test]
async fn a_short_answer_that_has_shifted_is_asked_for_singly() {
    let (base, log) = server(|asked| leaving_out(asked, &["openid003"], 1)).await;
    let batch = client(&base, &store()).profiles(&ids(10)).await.unwrap();
    assert_eq!((batch.profiles.len(), batch.suspicious), (10, true));
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
    let batch = client(&base, &store()).profiles(&ids(230)).await.unwrap();
    assert_eq!((batch.profiles.len(), batch.suspicious), (229, false));
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
    let batch = client(&base, &store()).profiles(&ids(3)).await.unwrap();
    assert_eq!(batch.profiles.len(), 2);
    assert_eq!(batch.unreadable, [OpenId::new("openid001")]);
    assert_eq!(asked_for(&log, "batchget"), 1);
}

//! What openids of an account that was moved into another have become: one outcome a person, inside an answer that is none.

use serde::Deserialize;

use super::loose::{List, TrimmedId, number, text};
use crate::domain::OpenId;
use crate::redact;

/// The longest part of a reason that is kept.
const REASON_LIMIT: usize = 100;
/// How the platform says of one person that all is well.
const OK: &str = "ok";

/// What one openid has become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovedOpenid {
    pub old: OpenId,
    /// The openid towards the account of now, or why there is none.
    pub outcome: Result<OpenId, String>,
}

#[derive(Deserialize)]
pub(in super::super) struct MovedAnswer {
    #[serde(default, deserialize_with = "number")]
    pub(super) errcode: Option<i64>,
    #[serde(default, deserialize_with = "text")]
    pub(super) errmsg: Option<String>,
    #[serde(default)]
    result_list: List<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    ori_openid: TrimmedId,
    #[serde(default)]
    new_openid: TrimmedId,
    #[serde(default, deserialize_with = "text")]
    err_msg: Option<String>,
}

impl MovedAnswer {
    /// By the openid that was asked for: one that is not told is nobody's.
    pub fn into_moved(self) -> Vec<MovedOpenid> {
        self.result_list.0.into_iter().filter_map(Entry::into_moved).collect()
    }
}

impl Entry {
    fn into_moved(self) -> Option<MovedOpenid> {
        let old = OpenId::new(self.ori_openid.0?);
        let said = self.err_msg.map(|said| said.trim().to_owned()).filter(|said| !said.is_empty());
        let is_well = said.as_ref().is_none_or(|said| said.eq_ignore_ascii_case(OK));
        let outcome = match self.new_openid.0.filter(|_| is_well) {
            Some(new) => Ok(OpenId::new(new)),
            None if is_well => Err("no new openid was told".to_owned()),
            None => Err(redact::without_secrets(said.as_deref().unwrap_or_default(), REASON_LIMIT)),
        };
        Some(MovedOpenid { old, outcome })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_person_has_an_outcome_of_their_own_and_an_odd_entry_spoils_no_other() {
        let body = r#"{"errcode":0,"errmsg":"ok","result_list":[
            {"ori_openid":" oA","new_openid":"nA ","err_msg":"ok"},
            {"ori_openid":"oB","err_msg":"ori_openid error"},
            {"ori_openid":"oC","new_openid":"nC","err_msg":"ori_openid error"},
            {"ori_openid":"oD","new_openid":"","err_msg":"ok"},
            {"ori_openid":"oE","new_openid":"nE"},
            {"new_openid":"nF","err_msg":"ok"}, {}]}"#;
        let moved = serde_json::from_str::<MovedAnswer>(body).unwrap().into_moved();
        let told: Vec<(&str, Result<&str, &str>)> = moved
            .iter()
            .map(|one| (one.old.as_str(), one.outcome.as_ref().map(OpenId::as_str).map_err(String::as_str)))
            .collect();
        let wanted = [
            ("oA", Ok("nA")),
            ("oB", Err("ori_openid error")),
            ("oC", Err("ori_openid error")),
            ("oD", Err("no new openid was told")),
            ("oE", Ok("nE")),
        ];
        assert_eq!(told, wanted);
        for body in [r#"{"errcode":0}"#, r#"{"result_list":null}"#, r#"{"result_list":{}}"#] {
            assert_eq!(serde_json::from_str::<MovedAnswer>(body).unwrap().into_moved(), [], "{body}");
        }
    }
}

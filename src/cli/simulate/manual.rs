//! What `simulate --help` says of the platform's habits and of the orders that it takes.

/// Behind the flags in the long help.
pub const MANUAL: &str = r#"HABITS, by --faults JSON at the start or POST faults later; what is not named stays as it is. `…_every: N` is each
N-th call, or the N-th part of the people or messages by draw; 0 is never. All begin at 0, false or as shown.
  token        spurious_token_every (40001 to a good token)  ip_not_listed (40164)
  answers      numbers_as_text  text_plain
  followers    list_end (data_absent | empty_list | empty_cursor | same_cursor)  blank_openids  repeated_openids N
               strangers N (of nobody, on each page)  churn_per_page N  gone_cursor_refused (40003)
               churn_per_second { leave  come  come_back } (people a second, 0.05 as well; drawn from the seed and the
               second; a clock that is moved moves them, the last month of a leap)
               total_off N (also below 0)  total_wobble N  empty_page N (always; once: order "empty_page")
  details      invalid_in_batch (whole_batch | short_answer | shift)  non_follower (empty_profile | bare | with_unionid)
               broken_json_every  shift_every  control_characters_every  leading_space_every  sparse_every
               left_out_every (of a batch, without cause)  missing_unionid_every (told no longer)
               unmoved_every (changeopenid tells no new openid)
               changed_unionid_every (1: the account was bound to another Open Platform account)
  connections  idle_ends_after_milliseconds N  idle_end (close | reset | next_call)
  send         duplicate_answer (same_msgid | new_msgid | refused)  dedupe_window_seconds (600)  sixty_second_rule (40241)
               busy_every (-1)  audit_every (40252)  audit_seconds (1800)  audit_refused_every  blocked_as_object
               lost_answer_every (accepted, then no answer)  lost_request_every  refusing_every (43101)
               person_errcodes_every {"50002": N}  same_person_at_once_refused (43108)
               same_person_within_seconds N (43117)
  quota        hidden_limits {"message/template/send": N} (45009 early)  minute_limits {"NAME": N} (45011)
               quota_reset_lag_seconds N  quota_wobble_permille N (of `used` in quota/get)
  finish       { delay_milliseconds (200)  spread_milliseconds  missing_every  repeated_every (three times)  msgid_zero
               user_block_every  system_failed_every  freq_limit_every  unheard_status_every }
  follow_events  { delay_milliseconds  spread_milliseconds  missing_every  repeated_every }

ORDERS, under /_simulator/ of the address, JSON in and out:
  GET   inbox  calls  callbacks  world  received?openid=  person?index= (or openid=, unionid=)  login?index=
  POST  order {"fault": F, "endpoint": NAME, "after": N, "times": N}: F befalls the next calls and is one of
        {"errcode": N}  {"refusal": [N, TEXT]}  {"status": HTTP}  "lost_answer"  "lost_request"  {"late_answer": MS}  "not_json"  "broken_json"  "empty_page"
        orders/clear
        faults {"finish": {"missing_every": 10}}
        clock {"set": "2026-11-24T15:59:00Z", "advance_seconds": 120}
        spend {"endpoint": NAME, "calls": N}: another system of the account makes so many of the day's calls
        unfollow, follow {"openids": […]} or {"count": N}
        rebind {"openids": […]}: their unionid changes
        blacklist {"openids": […], "withdraw": false}   refuse {"openids": […], "template_id": ID, "withdraw": false}
        kill_template {"template_id": ID}   revoke_tokens   inbox/clear
        event {"openid": O, "event": "SCAN", "fields": "<EventKey>9</EventKey>", "created_at_seconds": T, "copies": 1}
        callback {"url": "http://…/callback/main", "token": T, "mode": "plain", "encoding_aes_key": K}
        callback/check: asks the callback address as when it is entered in the console

Calls that are known, each with its daily quota: token, stable_token, user/get, user/info, user/info/batchget,
user/info/updateremark, changeopenid, user/tag/get, tags/get, tags/getidlist, tags/members/getblacklist, batchblacklist and
batchunblacklist, message/template/send, template/get_all_private_template, wxa/sec/queryblocktmplmsg, openapi/quota/get and
openapi/quota/clear, clear_quota and clear_quota/v2, getcallbackip, sns/jscode2session.
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::Faults;

    #[test]
    fn every_habit_stands_in_the_manual() {
        let habits = serde_json::to_value(Faults::default()).unwrap();
        let inner = ["finish", "follow_events", "churn_per_second"]
            .into_iter()
            .flat_map(|table| habits[table].as_object().unwrap().keys());
        for habit in habits.as_object().unwrap().keys().chain(inner) {
            assert!(MANUAL.contains(habit.as_str()), "{habit}");
        }
    }
}

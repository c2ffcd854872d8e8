//! WeChat's error codes as data: what each one means, what to do, and what class of reaction it asks for.
//!
//! The table is also shown to users as `error_codes`. Not here: the reactions themselves (`retry` for reads, the push
//! for sends) and the thresholds that turn many failures of recipients into one of a push.

use super::endpoint::Endpoint;

/// What a code asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CodeClass {
    /// Try again after a growing wait.
    Retry,
    /// Renew the access token, then try once more. The call had no effect.
    Token,
    /// Nothing more on this endpoint of this account until the next quota day.
    Quota,
    /// Slow down, then try again.
    Slow,
    /// Slow down for this one recipient.
    SlowRecipient,
    /// For good, for this recipient only.
    Recipient,
    /// For good, for everybody: each further call wastes quota.
    Campaign,
    /// An operator has to act first.
    Operator,
    /// Already done before; never send again.
    Done,
    /// WeChat decides later; never send again.
    Held,
    /// Not in the table.
    Unknown,
}

impl CodeClass {
    /// As the `error_codes` table spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Token => "token",
            Self::Quota => "quota",
            Self::Slow => "slow",
            Self::SlowRecipient => "slow_recipient",
            Self::Recipient => "recipient",
            Self::Campaign => "campaign",
            Self::Operator => "operator",
            Self::Done => "done",
            Self::Held => "held",
            Self::Unknown => "unknown",
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    pub errcode: i64,
    pub class: CodeClass,
    pub meaning: &'static str,
    pub advice: &'static str,
}

/// The line of a code.
pub fn lookup(errcode: i64) -> Option<&'static Code> {
    CODES.binary_search_by_key(&errcode, |code| code.errcode).ok().map(|at| &CODES[at])
}

/// All lines, by code.
pub fn all() -> &'static [Code] {
    CODES
}

/// The class of a code on an ordinary call.
pub fn class_of(errcode: i64) -> CodeClass {
    lookup(errcode).map_or(CodeClass::Unknown, |code| code.class)
}

/// The class of a code on one endpoint: where a token is fetched, a refused token or appid is the configuration's fault.
pub(super) fn class_at(endpoint: Endpoint, errcode: i64) -> CodeClass {
    match class_of(errcode) {
        CodeClass::Token | CodeClass::Campaign | CodeClass::Recipient if endpoint.is_token_call() => {
            CodeClass::Operator
        }
        class => class,
    }
}

const fn line(errcode: i64, class: CodeClass, meaning: &'static str, advice: &'static str) -> Code {
    Code { errcode, class, meaning, advice }
}

use CodeClass::{Campaign, Done, Held, Operator, Quota, Recipient, Retry, Slow, SlowRecipient, Token};

/// Sorted by code; a test holds it to that.
#[rustfmt::skip]
const CODES: &[Code] = &[
    line(-1, Retry, "WeChat is busy", "tried again by itself; if it lasts, lower the rate"),
    line(40001, Token, "the access token is not valid or not the latest; on a token call, the AppSecret is wrong", "renewed by itself; if it comes back, another system fetches tokens of this account: use token = \"stable\", or check app_secret"),
    line(40002, Operator, "the token request names a wrong grant type", "a fault of this program or of the token centre; report it"),
    line(40003, Recipient, "the openid is not of this account, or never followed it", "when many recipients get this, the openids are of another account or of the mini program: check the query"),
    line(40013, Campaign, "the appid is wrong; on a send, the mini program is not associated with the Official Account", "associate the mini program in the account's console and check its app_id; on a token call check the account's app_id"),
    line(40014, Token, "the access token is malformed", "renewed by itself; if it comes back, look at the token centre"),
    line(40029, Recipient, "the login code is invalid or expired", "the mini program has to log the person in again"),
    line(40032, Operator, "the list of openids is empty or too long", "a fault of this program; report it"),
    line(40036, Campaign, "the template id has a wrong length", "check template_id"),
    line(40037, Campaign, "the template id is not in this account", "read the template list again (false bursts happen); a change of service category deletes templates, and subscription templates cannot be used here"),
    line(40125, Operator, "the AppSecret is wrong", "check app_secret of the account"),
    line(40163, Recipient, "the login code was used before", "the mini program has to log the person in again"),
    line(40164, Operator, "this machine's address is not in the account's IP whitelist", "add the address named in the message to the IP whitelist of the account"),
    line(40165, Campaign, "the page is not in the published version of the mini program", "check the page path; some accounts need page_key = \"path\" or \"page\""),
    line(40226, Recipient, "WeChat blocks this person's login as risky", "nothing to do for this person"),
    line(40241, Done, "the same message went to this person within the last 60 seconds", "counted as sent when the earlier try was ours"),
    line(40243, Operator, "the AppSecret is frozen", "unfreeze it in the account's console"),
    line(40246, Operator, "the keyword list of the template is missing", "add the template in the console"),
    line(40249, Campaign, "the content was blocked as illegal", "change the content; repeating it can cost the account its permission"),
    line(40252, Held, "the content went to review", "WeChat delivers it by itself if it passes, usually within half an hour; it is never sent again"),
    line(41001, Operator, "the access token is missing", "a fault of this program; report it"),
    line(41002, Operator, "the appid is missing", "check app_id of the account"),
    line(41004, Operator, "the AppSecret is missing", "check app_secret of the account"),
    line(41008, Recipient, "the login code is missing", "the mini program has to log the person in again"),
    line(41009, Recipient, "the openid is missing", "check the query that chose the recipients"),
    line(41028, Campaign, "the form id is wrong, which only a mini program's message has", "check that the template is one of the Official Account"),
    line(41030, Campaign, "the page is wrong, which only a mini program's message checks", "check that the template is one of the Official Account"),
    line(42001, Token, "the access token has expired", "renewed by itself"),
    line(43004, Recipient, "the person does not follow the account", "gone from the followers with the next sync"),
    line(43019, Recipient, "the person is in the account's blacklist", "take the person off the blacklist, or leave them out"),
    line(43100, SlowRecipient, "the template was changed too often for this person", "tried again later; after two tries left alone in this push"),
    line(43101, Recipient, "the person refuses this template", "left out of this template's pushes for a while"),
    line(43102, Campaign, "the template is of the wrong kind", "use a template of the Official Account"),
    line(43104, Operator, "the account may not send this", "ask for the permission in the account's console"),
    line(43106, Operator, "the account is punished for its messages", "look at the notices in the account's console"),
    line(43108, SlowRecipient, "two calls for this person at once", "tried again later; after two tries left alone in this push"),
    line(43116, Recipient, "not explained by WeChat", "look it up with the rid in the account's console"),
    line(43117, SlowRecipient, "too many messages to this person", "tried again later; after two tries left alone in this push"),
    line(45009, Quota, "the day's limit of this call is used up", "goes on with the next quota day (midnight in Shanghai); the console can raise or clear it"),
    line(45011, Slow, "the minute's limit of this call is used up", "goes on with the next minute"),
    line(45026, Campaign, "the account has too many templates", "delete templates in the console"),
    line(45027, Campaign, "the template does not fit the account's category", "choose a template of the account's category"),
    line(45065, Done, "this very message was accepted before", "counted as sent"),
    line(45103, Operator, "this call is retired by WeChat", "a newer version of this program is needed"),
    line(45109, Operator, "this call is retired by WeChat", "a newer version of this program is needed"),
    line(45159, Campaign, "the tag does not exist", "check the tag id"),
    line(47001, Campaign, "the request is not valid JSON", "a fault of this program; report it"),
    line(47003, Recipient, "a field of the message breaks its rule", "the message names the field: check its length and type; the same fault for everybody stops the push"),
    line(48001, Operator, "the account may not use this call", "the account must be a certified service account with this permission"),
    line(48002, Recipient, "the person switched off the account's messages", "nothing to do for this person"),
    line(48004, Operator, "the call is banned for this account", "look at the notices in the account's console"),
    line(48006, Operator, "this month's clearings of the quota are used up", "wait for the next month"),
    line(49003, Recipient, "the openid is of another account", "when many recipients get this, check the query that chose them"),
    line(50001, Operator, "the account is not authorised for this call", "ask for the permission in the account's console"),
    line(50002, Recipient, "restricted: the person is frozen or gone, or the account itself is", "several in a row mean the account: look at its console"),
    line(50005, Recipient, "the person does not follow the account", "gone from the followers with the next sync"),
    line(61004, Operator, "this machine's address is not registered", "register the address with the platform account"),
    line(61007, Operator, "the account has not authorised this call", "authorise it in the account's console"),
    line(61450, Retry, "WeChat had a fault of its own", "tried again by itself"),
    line(76001, Operator, "no such rid", "check the rid"),
    line(76002, Operator, "the rid is malformed", "check the rid"),
    line(76003, Operator, "the rid or the call is of another account", "ask with the account it belongs to"),
    line(76004, Operator, "the rid has expired after seven days", "nothing to do"),
    line(76021, Operator, "the quota of an unknown call was asked for", "a fault of this program; report it"),
    line(76022, Operator, "the account does not own the call whose quota was asked for", "check the account's permissions"),
    line(89501, Operator, "the administrator has not yet confirmed this machine's address", "have the administrator confirm in WeChat, then wait ten minutes"),
    line(89502, Operator, "waits for the administrator", "have the administrator confirm in WeChat, then wait ten minutes"),
    line(89503, Operator, "the administrator has to confirm this machine's address", "have the administrator confirm in WeChat; a refusal blocks the address for an hour"),
    line(89504, Operator, "waits for the administrator", "have the administrator confirm in WeChat, then wait ten minutes"),
    line(89505, Operator, "waits for the administrator", "have the administrator confirm in WeChat, then wait ten minutes"),
    line(89506, Operator, "the administrator refused this machine's address", "try again after 24 hours"),
    line(89507, Operator, "the administrator refused this machine's address", "try again after an hour"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_every_line_says_what_to_do() {
        assert!(CODES.is_sorted_by(|a, b| a.errcode < b.errcode));
        for code in all() {
            assert!(!code.meaning.is_empty() && !code.advice.is_empty(), "{}", code.errcode);
            assert_eq!(lookup(code.errcode), Some(code));
        }
    }

    #[test]
    fn a_refused_token_is_renewed_except_where_tokens_come_from() {
        assert_eq!(class_at(Endpoint::UserGet, 40001), CodeClass::Token);
        assert_eq!(class_at(Endpoint::StableToken, 40001), CodeClass::Operator);
        assert_eq!(class_at(Endpoint::TemplateSend, 40013), CodeClass::Campaign);
        assert_eq!(class_at(Endpoint::Token, 40013), CodeClass::Operator);
    }

    #[test]
    fn a_code_nobody_listed_is_unknown() {
        assert_eq!(class_of(99_999), CodeClass::Unknown);
    }
}

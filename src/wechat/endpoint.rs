//! The calls we make, by the names the quota and the counts use. Not here: what they carry (`wire`).

/// One call of WeChat's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    UserGet,
    UserInfo,
    UserInfoBatchget,
    TemplateSend,
    TemplateList,
    QuotaGet,
    /// Messages of a template that the review refused.
    BlockedMessages,
    /// Followers whom the account keeps out.
    Blacklist,
    /// New openids of an account that was moved into this one.
    ChangeOpenid,
    Token,
    StableToken,
    /// A token centre of the house instead of WeChat.
    TokenCentre,
}

impl Endpoint {
    pub const ALL: [Self; 12] = [
        Self::UserGet,
        Self::UserInfo,
        Self::UserInfoBatchget,
        Self::TemplateSend,
        Self::TemplateList,
        Self::QuotaGet,
        Self::BlockedMessages,
        Self::Blacklist,
        Self::ChangeOpenid,
        Self::Token,
        Self::StableToken,
        Self::TokenCentre,
    ];

    /// As configuration, tables and counts spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UserGet => "user/get",
            Self::UserInfo => "user/info",
            Self::UserInfoBatchget => "user/info/batchget",
            Self::TemplateSend => "message/template/send",
            Self::TemplateList => "template/get_all_private_template",
            Self::QuotaGet => "openapi/quota/get",
            Self::BlockedMessages => "wxa/sec/queryblocktmplmsg",
            Self::Blacklist => "tags/members/getblacklist",
            Self::ChangeOpenid => "changeopenid",
            Self::Token => "token",
            Self::StableToken => "stable_token",
            Self::TokenCentre => "token_centre",
        }
    }

    /// The reverse of [`Endpoint::as_str`]; its path is allowed as well.
    pub fn parse(text: &str) -> Option<Self> {
        let name = text.strip_prefix("/cgi-bin/").or(text.strip_prefix('/')).unwrap_or(text);
        Self::ALL.into_iter().find(|endpoint| endpoint.as_str() == name)
    }

    /// The path on WeChat's host, as `openapi/quota/get` wants it too.
    pub fn cgi_path(self) -> String {
        match self {
            Self::BlockedMessages => format!("/{}", self.as_str()),
            _ => format!("/cgi-bin/{}", self.as_str()),
        }
    }

    /// Calls a day by WeChat's documentation for an ordinary account; the account's own figure is in `quota/get`.
    /// `None`: none is documented.
    pub fn documented_daily_limit(self) -> Option<u64> {
        match self {
            Self::UserGet => Some(500),
            Self::UserInfo => Some(5_000_000),
            Self::TemplateSend => Some(100_000),
            Self::Token => Some(2_000),
            Self::StableToken => Some(500_000),
            Self::UserInfoBatchget
            | Self::TemplateList
            | Self::QuotaGet
            | Self::BlockedMessages
            | Self::Blacklist
            | Self::ChangeOpenid
            | Self::TokenCentre => None,
        }
    }

    /// Whether this call fetches a token instead of carrying one.
    pub fn is_token_call(self) -> bool {
        matches!(self, Self::Token | Self::StableToken | Self::TokenCentre)
    }

    /// Position in [`Endpoint::ALL`].
    pub(super) fn index(self) -> usize {
        Self::ALL.iter().position(|endpoint| *endpoint == self).expect("ALL lists every endpoint")
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_read_back_from_its_name_and_its_path() {
        for endpoint in Endpoint::ALL {
            assert_eq!(Endpoint::parse(endpoint.as_str()), Some(endpoint));
            assert_eq!(Endpoint::parse(&endpoint.cgi_path()), Some(endpoint));
            assert_eq!(Endpoint::ALL[endpoint.index()], endpoint);
        }
        assert_eq!(Endpoint::parse("user/delete"), None);
    }
}

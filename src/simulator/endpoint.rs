//! The endpoints the simulated platform has: path, short name, documented daily limit.

/// An endpoint of the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Token,
    StableToken,
    UserGet,
    UserInfo,
    UserInfoBatchget,
    ChangeOpenid,
    TagsGet,
    Blacklist,
    TemplateSend,
    TemplateList,
    BlockedMessages,
    QuotaGet,
    ClearQuota,
    ClearQuotaBySecret,
    Login,
    TagMembers,
    TagsOf,
    UpdateRemark,
    BlacklistAdd,
    BlacklistRemove,
    QuotaClear,
    CallbackAddresses,
}

impl Endpoint {
    pub const COUNT: usize = 22;
    pub const ALL: [Self; Self::COUNT] = [
        Self::Token,
        Self::StableToken,
        Self::UserGet,
        Self::UserInfo,
        Self::UserInfoBatchget,
        Self::ChangeOpenid,
        Self::TagsGet,
        Self::Blacklist,
        Self::TemplateSend,
        Self::TemplateList,
        Self::BlockedMessages,
        Self::QuotaGet,
        Self::ClearQuota,
        Self::ClearQuotaBySecret,
        Self::Login,
        Self::TagMembers,
        Self::TagsOf,
        Self::UpdateRemark,
        Self::BlacklistAdd,
        Self::BlacklistRemove,
        Self::QuotaClear,
        Self::CallbackAddresses,
    ];

    /// Where it is called.
    pub fn path(self) -> &'static str {
        match self {
            Self::Token => "/cgi-bin/token",
            Self::StableToken => "/cgi-bin/stable_token",
            Self::UserGet => "/cgi-bin/user/get",
            Self::UserInfo => "/cgi-bin/user/info",
            Self::UserInfoBatchget => "/cgi-bin/user/info/batchget",
            Self::ChangeOpenid => "/cgi-bin/changeopenid",
            Self::TagsGet => "/cgi-bin/tags/get",
            Self::Blacklist => "/cgi-bin/tags/members/getblacklist",
            Self::TemplateSend => "/cgi-bin/message/template/send",
            Self::TemplateList => "/cgi-bin/template/get_all_private_template",
            Self::BlockedMessages => "/wxa/sec/queryblocktmplmsg",
            Self::QuotaGet => "/cgi-bin/openapi/quota/get",
            Self::ClearQuota => "/cgi-bin/clear_quota",
            Self::ClearQuotaBySecret => "/cgi-bin/clear_quota/v2",
            Self::Login => "/sns/jscode2session",
            Self::TagMembers => "/cgi-bin/user/tag/get",
            Self::TagsOf => "/cgi-bin/tags/getidlist",
            Self::UpdateRemark => "/cgi-bin/user/info/updateremark",
            Self::BlacklistAdd => "/cgi-bin/tags/members/batchblacklist",
            Self::BlacklistRemove => "/cgi-bin/tags/members/batchunblacklist",
            Self::QuotaClear => "/cgi-bin/openapi/quota/clear",
            Self::CallbackAddresses => "/cgi-bin/getcallbackip",
        }
    }

    /// Its name in counts and orders: the path without `/cgi-bin/`, or without the first slash.
    pub fn name(self) -> &'static str {
        let path = self.path();
        path.strip_prefix("/cgi-bin/").unwrap_or(&path[1..])
    }

    pub fn by_path(path: &str) -> Option<Self> {
        // The send is asked for a thousand times more often than the rest together.
        if path == Self::TemplateSend.path() {
            return Some(Self::TemplateSend);
        }
        Self::ALL.into_iter().find(|endpoint| endpoint.path() == path)
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.name() == name)
    }

    /// Whether calls carry an access token.
    pub fn needs_token(self) -> bool {
        !matches!(self, Self::Token | Self::StableToken | Self::ClearQuotaBySecret | Self::Login)
    }

    /// Whether a call costs quota: the tools that show and clear it must work when it is spent.
    pub fn is_metered(self) -> bool {
        !matches!(self, Self::QuotaGet | Self::QuotaClear | Self::ClearQuota | Self::ClearQuotaBySecret | Self::Login)
    }

    /// Calls a day as documented; where nothing is documented, a figure like those seen in consoles.
    pub fn documented_limit(self, followers: u64) -> u64 {
        match self {
            Self::Token => 2_000,
            Self::StableToken => 500_000,
            Self::UserGet => 500,
            Self::UpdateRemark => 10_000,
            Self::UserInfo | Self::UserInfoBatchget => 5_000_000,
            Self::TemplateSend => match followers {
                0..=100_000 => 100_000,
                100_001..=1_000_000 => 1_000_000,
                1_000_001..=10_000_000 => 10_000_000,
                _ => 100_000_000,
            },
            _ => 100_000,
        }
    }

    pub(super) fn slot(self) -> usize {
        // A fieldless enum's number is its place in `ALL`, which a test holds.
        usize::from(self as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_found_by_path_and_name_and_stands_at_its_place() {
        for (place, endpoint) in Endpoint::ALL.into_iter().enumerate() {
            assert_eq!(endpoint.slot(), place);
            assert_eq!(Endpoint::by_path(endpoint.path()), Some(endpoint));
            assert_eq!(Endpoint::by_name(endpoint.name()), Some(endpoint));
        }
        assert_eq!(Endpoint::TemplateSend.name(), "message/template/send");
    }
}

//! What can go wrong on the way to WeChat and back. Tokens, secrets and addresses with a query never stand in here.

use super::code::{CodeClass, lookup};
use super::endpoint::Endpoint;
use super::ports::{Refused, StoreError};
use super::transport::TransportError;
use crate::clock::Timestamp;
use crate::domain::AccountName;

#[derive(Debug, thiserror::Error)]
pub enum WeChatError {
    #[error("setting up the client of account {account}: {reason}")]
    Setup { account: AccountName, reason: String },
    /// WeChat answered with an errcode.
    #[error("{endpoint} was refused by WeChat with {errcode}{}: {errmsg}{}", explained(*errcode, *class), rid_suffix(rid.as_deref()))]
    Refused { endpoint: Endpoint, errcode: i64, errmsg: String, rid: Option<String>, class: CodeClass },
    /// One try that got no answer.
    #[error("calling {endpoint} on {host}")]
    Transport {
        endpoint: Endpoint,
        host: String,
        #[source]
        source: TransportError,
    },
    /// All tries of a call got no answer.
    #[error(
        "WeChat does not answer account {account}: {endpoint} on {host} was tried {tries} times in {seconds} s; check \
         api_base of the account, and whether this machine reaches {host} (network, DNS, proxy)"
    )]
    Unreachable {
        account: AccountName,
        endpoint: Endpoint,
        host: String,
        tries: u32,
        seconds: u64,
        #[source]
        source: TransportError,
    },
    /// Something between WeChat and us answered, or WeChat is down.
    #[error("the answer to {endpoint} is not WeChat's (HTTP {status}, {bytes} bytes)")]
    NotJson { endpoint: Endpoint, status: u16, bytes: usize },
    /// A JSON object that cannot be read even after cleaning.
    #[error("the answer to {endpoint} cannot be read: {reason}")]
    Unreadable { endpoint: Endpoint, reason: String },
    /// HTTP 412: WeChat takes no body without a length.
    #[error(
        "{endpoint} was refused with HTTP 412: the request had no length, which is a fault of this program or of a proxy"
    )]
    LengthRequired { endpoint: Endpoint },
    #[error("the day's calls of {endpoint} are used up until {until}")]
    QuotaSpent { endpoint: Endpoint, until: Timestamp },
    #[error(
        "every call with the access token of account {account} is refused with {errcode}, and no other is to be had now: \
         does another system renew it? Find it, then `lianbo token refresh {account}`"
    )]
    TokenRejected { account: AccountName, errcode: i64 },
    #[error("no forced renewal of the token of account {account} is allowed now: at most 5 a day, 30 s apart")]
    NoForcedRenewal { account: AccountName },
    #[error("keeping the access token")]
    Store(#[source] StoreError),
    #[error("counting a call of {endpoint}")]
    Meter {
        endpoint: Endpoint,
        #[source]
        source: StoreError,
    },
}

impl WeChatError {
    /// Whether the same call may go well later without anybody's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused { class, .. } => {
                matches!(class, CodeClass::Retry | CodeClass::Slow | CodeClass::SlowRecipient | CodeClass::Token)
            }
            Self::Transport { .. } | Self::Unreachable { .. } => true,
            Self::NotJson { .. } | Self::QuotaSpent { .. } | Self::Unreadable { .. } => true,
            Self::Store(_) | Self::Meter { .. } | Self::NoForcedRenewal { .. } => true,
            Self::Setup { .. } | Self::LengthRequired { .. } | Self::TokenRejected { .. } => false,
        }
    }

    /// The code WeChat gave, if it gave one.
    pub fn errcode(&self) -> Option<i64> {
        match self {
            Self::Refused { errcode, .. } | Self::TokenRejected { errcode, .. } => Some(*errcode),
            _ => None,
        }
    }

    pub(super) fn class(&self) -> Option<CodeClass> {
        match self {
            Self::Refused { class, .. } => Some(*class),
            _ => None,
        }
    }

    /// This error again, when it is of one try that got no answer.
    pub(super) fn copy_of_silence(&self) -> Option<Self> {
        match self {
            Self::Transport { endpoint, host, source } => {
                Some(Self::Transport { endpoint: *endpoint, host: host.clone(), source: source.clone() })
            }
            _ => None,
        }
    }

    pub(super) fn metered(endpoint: Endpoint, refused: Refused) -> Self {
        match refused {
            Refused::QuotaSpent { until } => Self::QuotaSpent { endpoint, until },
            Refused::Store(source) => Self::Meter { endpoint, source },
        }
    }
}

fn explained(errcode: i64, class: CodeClass) -> String {
    let Some(code) = lookup(errcode) else { return String::new() };
    if code.class == CodeClass::Quota && class == CodeClass::Slow {
        return " (said of a day and at times of a minute; by WeChat's own figures the day has calls left: it goes on with the \
                next minute)"
            .to_owned();
    }
    format!(" ({}; {})", code.meaning, code.advice)
}

fn rid_suffix(rid: Option<&str>) -> String {
    rid.map_or_else(String::new, |rid| format!(" [rid {rid}]"))
}

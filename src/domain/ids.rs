//! Ids as types of their own, so that an openid cannot stand where a unionid belongs.
//!
//! Names from the configuration print whole; ids of people and templates print shortened in `Debug` and have no
//! `Display`, so that none reaches a log whole by accident.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::redact::shortened;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Wraps a name that was checked where it entered.
            pub fn new(name: impl Into<String>) -> Self {
                Self(name.into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

macro_rules! person_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Wraps an id as WeChat gave it, without surrounding white space (WeChat's own samples have some).
            pub fn new(id: impl Into<String>) -> Self {
                let id = id.into();
                if let [first, .., last] = id.as_bytes()
                    && first.is_ascii_graphic()
                    && last.is_ascii_graphic()
                {
                    return Self(id);
                }
                let bare = id.trim();
                if bare.len() == id.len() { Self(id) } else { Self(bare.to_owned()) }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&shortened(&self.0))
            }
        }
    };
}

name!(
    /// An Official Account as the configuration names it.
    AccountName
);
name!(
    /// A mini program as the configuration names it.
    MiniProgramName
);
name!(
    /// A pipeline: the name of its file without `.toml`.
    PipelineName
);
name!(
    /// A stage, unique in its pipeline.
    StageName
);
name!(
    /// A table of the lake or of the ledger, in lower snake case.
    TableName
);
name!(
    /// A run; sorts by its start, and any unique beginning names it.
    RunId
);
person_id!(
    /// A person towards one Official Account or one mini program. Case-sensitive.
    OpenId
);
person_id!(
    /// A person towards one WeChat Open Platform account.
    UnionId
);
person_id!(
    /// A message template of one Official Account.
    TemplateId
);

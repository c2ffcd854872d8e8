//! Followers, profiles and users as the standard kinds read them, whatever their tables are called, and blank, padded and
//! repeated ids of users as nobody else has to think of them.
//!
//! What `load_users` makes is clean: ids are trimmed, a blank unionid is NULL, an openid stands once. Where every mini
//! program has one such table its rows are read as they are. Tables that SQL made are trimmed here, and where several tables
//! know one user, the rows become one: each value of the newest row that has it.

use crate::config::settings::{JoinIdentities, Settings, StageKind};
use crate::domain::{MiniProgramName, TableName};
use crate::engine::{TableSource, quoted, text};

/// The users tables a join reads: those it names, else those of every `load_users` stage of the workspace.
pub fn users_tables(settings: &Settings, plan: &JoinIdentities) -> Vec<TableName> {
    if !plan.users.is_empty() {
        return plan.users.clone();
    }
    tables_of(settings, |kind| matches!(kind, StageKind::LoadUsers(_)))
}

/// The tables that stages of a kind make, in the whole workspace.
pub fn tables_of(settings: &Settings, is_kind: impl Fn(&StageKind) -> bool) -> Vec<TableName> {
    let stages = settings.pipelines.values().flat_map(|pipeline| &pipeline.stages);
    stages.filter(|stage| is_kind(&stage.kind)).filter_map(|stage| stage.table.clone()).collect()
}

/// The table of followers, by the kind of the stage that makes it.
pub fn followers_table(settings: &Settings) -> TableName {
    first(settings, "followers", |kind| matches!(kind, StageKind::ExtractFollowers(_)))
}

/// The table of profiles, by the kind of the stage that makes it.
pub fn profiles_table(settings: &Settings) -> TableName {
    first(settings, "profiles", |kind| matches!(kind, StageKind::EnrichUnionids(_)))
}

fn first(settings: &Settings, standard: &str, is_kind: fn(&StageKind) -> bool) -> TableName {
    tables_of(settings, is_kind).into_iter().next().unwrap_or_else(|| TableName::new(standard))
}

/// A table of users with its columns.
#[derive(Debug, Clone)]
pub struct UsersTable {
    pub source: TableSource,
    /// Of what `load_users` makes; nothing where SQL made it.
    pub miniprogram: Option<MiniProgramName>,
}

impl UsersTable {
    /// A table as the settings know it.
    pub fn new(settings: &Settings, source: TableSource) -> Self {
        let stages = settings.pipelines.values().flat_map(|pipeline| &pipeline.stages);
        let miniprogram = stages
            .filter(|stage| stage.table.as_ref().is_some_and(|table| table.as_str() == source.name))
            .find_map(|stage| match &stage.kind {
                StageKind::LoadUsers(plan) => Some(plan.miniprogram.clone()),
                _ => None,
            });
        Self { source, miniprogram }
    }

    /// The type of a column, as SQL compares names.
    pub fn column_type(&self, column: &str) -> Option<&str> {
        let own = self.source.columns.iter().find(|(name, _)| name.eq_ignore_ascii_case(column));
        own.map(|(_, ty)| ty.as_str())
    }

    fn updated_at(&self) -> &'static str {
        if self.column_type("updated_at").is_some() {
            "try_cast(updated_at as timestamp)"
        } else {
            "cast(null as timestamp)"
        }
    }
}

/// A further column of users: its name, and what it is in a table.
pub struct UserColumn<'a> {
    pub name: String,
    pub sql: Box<dyn Fn(&UsersTable) -> String + 'a>,
}

impl<'a> UserColumn<'a> {
    pub fn new(name: impl Into<String>, sql: impl Fn(&UsersTable) -> String + 'a) -> Self {
        Self { name: name.into(), sql: Box::new(sql) }
    }
}

/// A SELECT of all users: miniprogram, openid, unionid, `more`; each openid of a mini program once. Without `updated_at` in
/// `more` it is not read where nothing has to be chosen.
pub fn users_sql(tables: &[UsersTable], more: &[UserColumn<'_>]) -> String {
    if tables.is_empty() {
        let nulls = columns(more, |column| format!("cast(null as varchar) as {}", quoted(&column.name)));
        return format!(
            "select cast(null as varchar) as miniprogram, cast(null as varchar) as openid,
                    cast(null as varchar) as unionid{nulls} where false"
        );
    }
    if is_plain(tables) {
        let selects = tables.iter().map(|table| {
            let more = columns(more, |column| format!("{} as {}", (column.sql)(table), quoted(&column.name)));
            format!("select miniprogram, openid, unionid{more} from {}", quoted(&table.source.name))
        });
        return selects.collect::<Vec<_>>().join(" union all ");
    }
    let selects = tables.iter().map(|table| {
        let more = columns(more, |column| format!("{} as {}", (column.sql)(table), quoted(&column.name)));
        format!(
            "select miniprogram, nullif(trim(cast(openid as varchar)), '') as openid,
                    nullif(trim(cast(unionid as varchar)), '') as unionid, {} as _at{more} from {}",
            table.updated_at(),
            quoted(&table.source.name)
        )
    });
    format!(
        "select miniprogram, openid, arg_min(unionid, _place) as unionid{values}
         from (
             select *, row_number() over (
                 partition by miniprogram, openid order by _at desc nulls last, unionid nulls last{order}
             ) as _place
             from ({all}) where openid is not null
         )
         group by miniprogram, openid",
        values = columns(more, |column| format!("arg_min({0}, _place) as {0}", quoted(&column.name))),
        order = columns(more, |column| format!("{} nulls last", quoted(&column.name))),
        all = selects.collect::<Vec<_>>().join(" union all ")
    )
}

/// Users for whom the tables hold several unionids: miniprogram, openid, unionid (one that is not taken), chosen, rule;
/// nothing where an openid cannot stand twice.
pub fn several_unionids_sql(tables: &[UsersTable]) -> Option<String> {
    if is_plain(tables) {
        return None;
    }
    let selects = tables.iter().map(|table| {
        format!(
            "select miniprogram, nullif(trim(cast(openid as varchar)), '') as openid,
                    nullif(trim(cast(unionid as varchar)), '') as unionid, {} as _at from {}",
            table.updated_at(),
            quoted(&table.source.name)
        )
    });
    Some(format!(
        "select miniprogram, openid, unionid, chosen,
                case when _at is not distinct from chosen_at then 'smallest_id' else 'newest' end as rule
         from (
             select *, first_value(unionid) over person as chosen, first_value(_at) over person as chosen_at
             from (
                 select miniprogram, openid, unionid, max(_at) as _at from ({})
                 where openid is not null and unionid is not null group by miniprogram, openid, unionid
             )
             window person as (partition by miniprogram, openid order by _at desc nulls last, unionid)
         )
         where unionid <> chosen",
        selects.collect::<Vec<_>>().join(" union all ")
    ))
}

/// Whether each openid stands once in the tables already, so that their rows are read as they are.
pub fn is_plain(tables: &[UsersTable]) -> bool {
    let stands_once = |table: &UsersTable| {
        table
            .miniprogram
            .as_ref()
            .is_some_and(|own| tables.iter().filter(|other| other.miniprogram.as_ref() == Some(own)).count() == 1)
    };
    tables.iter().all(stands_once)
}

fn columns(of: &[UserColumn<'_>], sql: impl Fn(&UserColumn<'_>) -> String) -> String {
    of.iter().map(|column| format!(", {}", sql(column))).collect()
}

/// `updated_at` of users, where their tables have it.
pub fn updated_at() -> UserColumn<'static> {
    UserColumn::new("updated_at", |table| table.updated_at().to_owned())
}

/// A further key as both sides spell it once it was trimmed: hashes in hex are compared without regard to case.
pub fn normalised(column: &str) -> String {
    let value = format!("trim(cast({column} as varchar))");
    let hash = text("[0-9a-fA-F]{32}|[0-9a-fA-F]{40}|[0-9a-fA-F]{64}|[0-9a-fA-F]{128}");
    format!("nullif(case when regexp_full_match({value}, {hash}) then lower({value}) else {value} end, '')")
}

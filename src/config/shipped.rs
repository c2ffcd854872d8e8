//! The commented files of a new workspace: those of the repository's own, carried in the binary.

/// Path relative to the workspace, and text.
const FILES: [(&str, &str); 5] = [
    ("config/lianbo.toml", include_str!("../../config/lianbo.toml")),
    ("pipelines/nightly.toml", include_str!("../../pipelines/nightly.toml")),
    ("pipelines/campaign.toml", include_str!("../../pipelines/campaign.toml")),
    ("pipelines/campaign/audience.sql", include_str!("../../pipelines/campaign/audience.sql")),
    (".env.example", include_str!("../../.env.example")),
];

/// The files that `lianbo init` writes.
pub fn workspace_files() -> &'static [(&'static str, &'static str)] {
    &FILES
}

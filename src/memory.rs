//! Giving free memory back to the system at a moment of our choosing.
//!
//! The allocator gives back a little later what it hopes to need again; which one the process has is the binary's affair. What
//! DuckDB takes is not the allocator's: at the end of a run, when its library is opened and the catalog written, what is free is
//! given back first, so that both do not stand in memory beside each other. Amid a run it would only be needed again.

use std::sync::OnceLock;

static GIVE_BACK: OnceLock<fn()> = OnceLock::new();

/// Says by what free memory is given back; the first to say so is heard.
pub fn given_back_by(give_back: fn()) {
    GIVE_BACK.get_or_init(|| give_back);
}

/// Gives free memory back, where anybody said how.
pub fn give_back() {
    if let Some(give_back) = GIVE_BACK.get() {
        give_back();
    }
}

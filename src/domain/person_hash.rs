//! What is kept of people who were forgotten.

use sha2::{Digest, Sha256};

/// What stays of an id of a person who was forgotten: enough to know the person again by the id, not to find the id.
/// SQL says the same with `sha256(concat(salt, ':', id))`.
pub fn person_hash(salt: &str, id: &str) -> String {
    let hash = Sha256::digest(format!("{salt}:{id}").as_bytes());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

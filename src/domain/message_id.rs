//! The id under which a message goes out: the same after any restart, so that WeChat's window against duplicates holds.

use sha2::{Digest, Sha256};

use super::{RunId, StageName};

/// 32 hexadecimal characters from run, stage and seq (SQL: `substr(sha256(concat_ws('/', run_id, stage, seq)), 1, 32)`).
pub fn client_msg_id(run_id: &RunId, stage: &StageName, seq: u64) -> String {
    let hash = Sha256::digest(format!("{run_id}/{stage}/{seq}"));
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

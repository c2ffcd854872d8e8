//! How many of the reads that a process reserved it really made, known even when it was killed: then whoever reads for the
//! account next gives the others back to their day. As with the calls of a push ([`tally`](super::tally)) it stands in a file
//! beside the ledger, which costs no commit: what is reserved is noted after the transaction that reserves it, a call before
//! it is made, and what is given back before it is. So a file that breaks off anywhere makes too few of unmade calls rather
//! than too many, and the day's count is never below the calls made. After the machine has died no file is believed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::error::Doing;
use super::tally::boot;
use super::{Holder, Ledger, LedgerError, QuotaCharge, quota};
use crate::domain::{AccountName, QuotaDay};

/// More kinds of calls and days than a process meets; beyond them nothing is noted any more.
const MOST_KEYS: usize = 26;

/// Notes the reads of an account that this process reserves and makes.
#[derive(Debug)]
pub struct ReadTally {
    path: PathBuf,
    file: File,
    keys: Mutex<Vec<(String, QuotaDay)>>,
}

impl ReadTally {
    /// So many calls are reserved.
    pub fn reserved(&self, endpoint: &str, day: QuotaDay, n: u64) {
        self.note(endpoint, day, |key| format!("+{key}{n};"));
    }

    /// So many calls are about to be given back.
    pub fn given_back(&self, endpoint: &str, day: QuotaDay, n: u64) {
        self.note(endpoint, day, |key| format!("-{key}{n};"));
    }

    /// A call is about to be made.
    pub fn one(&self, endpoint: &str, day: QuotaDay) {
        self.note(endpoint, day, |key| key.to_string());
    }

    /// Nothing is reserved any more.
    pub fn end(self) {
        // One that stays says of no call that it was not made.
        let _ = fs::remove_file(&self.path);
    }

    fn note(&self, endpoint: &str, day: QuotaDay, entry: impl Fn(char) -> String) {
        if self.write(endpoint, day, entry).is_err() {
            // One that misses a call must not be believed by whoever finds it.
            let _ = self.file.set_len(0);
            let _ = fs::remove_file(&self.path);
        }
    }

    fn write(&self, endpoint: &str, day: QuotaDay, entry: impl Fn(char) -> String) -> io::Result<()> {
        let mut keys = self.keys.lock().expect("nobody panics while writing");
        let known = keys.iter().position(|(own, own_day)| own == endpoint && *own_day == day);
        let key = |place: usize| char::from(b'a' + u8::try_from(place).expect("there are few keys"));
        let text = match known {
            Some(place) => entry(key(place)),
            None if keys.len() == MOST_KEYS => return Err(io::ErrorKind::OutOfMemory.into()),
            None => {
                keys.push((endpoint.to_owned(), day));
                let own = key(keys.len() - 1);
                format!("={own}{endpoint} {day};{}", entry(own))
            }
        };
        (&self.file).write_all(text.as_bytes())
    }
}

impl Ledger {
    /// Begins to note the reads of an account; `id` is unique. Nothing where they cannot be noted: then all that is reserved
    /// stays counted when this process is killed.
    pub fn begin_reads(&self, account: &AccountName, id: &str) -> Option<ReadTally> {
        let path = self.reads_path(account, id);
        match begin_file(&path, id) {
            Ok(file) => Some(ReadTally { path, file, keys: Mutex::default() }),
            Err(error) => {
                tracing::debug!(%error, "the reads of an account are not noted beside the ledger");
                None
            }
        }
    }

    /// Gives back what processes that were killed reserved of an account's reads and did not make.
    ///
    /// # Errors
    ///
    /// [`LedgerError`]; what was not given back stays counted.
    pub async fn settle_reads_of_the_dead(&self, account: &AccountName) -> Result<(), LedgerError> {
        const DOING: &str = "give back the reads that a killed process did not make";
        for path in self.reads_of(account) {
            let Some(found) = fs::read(&path).ok().and_then(|bytes| Found::of(&bytes)) else { continue };
            // Of several who find it the one who removes it gives back.
            if !found.is_over || fs::remove_file(&path).is_err() {
                continue;
            }
            for ((endpoint, day), n) in found.unmade {
                let charge = QuotaCharge { account, endpoint: &endpoint, day, limit: None, keep: 0 };
                let mut tx = self.begin_note(DOING).await?;
                quota::subtract_calls(&mut tx, &charge, n).await?;
                tx.commit().await.doing(DOING)?;
            }
        }
        Ok(())
    }

    fn reads_path(&self, account: &AccountName, id: &str) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!("-reads-{account}-{id}"));
        self.path.with_file_name(name)
    }

    fn reads_of(&self, account: &AccountName) -> Vec<PathBuf> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let begins = self.reads_path(account, "");
        let begins = begins.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_own = |name: &str| name.strip_prefix(&begins).is_some_and(|id| !id.contains('-'));
        let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        entries.filter(|entry| is_own(&entry.file_name().to_string_lossy())).map(|entry| entry.path()).collect()
    }
}

fn begin_file(path: &Path, id: &str) -> io::Result<File> {
    let mut file = OpenOptions::new().append(true).create_new(true).open(path)?;
    let Holder { id, host, pid, started } = Holder::this_process(id.to_owned());
    file.write_all(format!("{id}\t{}\t{host}\t{pid}\t{started}\n", boot()?).as_bytes())?;
    Ok(file)
}

/// What a file tells.
struct Found {
    /// Its process makes no calls any more.
    is_over: bool,
    unmade: BTreeMap<(String, QuotaDay), u64>,
}

impl Found {
    /// Nothing where it cannot be read.
    fn of(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let (head, entries) = bytes.split_at(end);
        let mut head = std::str::from_utf8(head).ok()?.split('\t');
        let id = head.next()?.to_owned();
        // The machine died: its process is over, and what it wrote last may be lost.
        if head.next()? != boot().ok()? {
            return Some(Self { is_over: true, unmade: BTreeMap::new() });
        }
        let (host, pid, started) = (head.next()?.to_owned(), head.next()?.parse().ok()?, head.next()?.parse().ok()?);
        let is_over = Holder { id, host, pid, started }.is_dead();
        Some(Self { is_over, unmade: unmade(std::str::from_utf8(entries.get(1..)?).ok()?).unwrap_or_default() })
    }
}

/// What was reserved and neither called nor given back; nothing where an entry is cut off.
fn unmade(mut entries: &str) -> Option<BTreeMap<(String, QuotaDay), u64>> {
    let mut keys: BTreeMap<char, ((String, QuotaDay), u64, u64)> = BTreeMap::new();
    while let Some(first) = entries.chars().next() {
        if first.is_ascii_lowercase() {
            keys.get_mut(&first)?.2 += 1;
            entries = &entries[1..];
            continue;
        }
        let (entry, rest) = entries[1..].split_once(';')?;
        let key = entry.chars().next()?;
        let told = &entry[key.len_utf8()..];
        match first {
            '=' => {
                let (endpoint, day) = told.split_once(' ')?;
                let day = QuotaDay::from_date(day.parse().ok()?);
                keys.insert(key, ((endpoint.to_owned(), day), 0, 0));
            }
            '+' => keys.get_mut(&key)?.1 += told.parse::<u64>().ok()?,
            '-' => keys.get_mut(&key)?.2 += told.parse::<u64>().ok()?,
            _ => return None,
        }
        entries = rest;
    }
    Some(keys.into_values().map(|(key, reserved, gone)| (key, reserved.saturating_sub(gone))).collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    const DETAILS: &str = "user/info/batchget";

    async fn calls(house: &House) -> u64 {
        house.ledger.usage(None, None).await.unwrap().iter().map(|usage| usage.calls).sum()
    }

    /// Makes of the only file beside the ledger that of a process which is gone.
    fn dies(path: &Path) {
        let text = fs::read_to_string(path).unwrap();
        let (head, entries) = text.split_once('\n').unwrap();
        let mut head: Vec<&str> = head.split('\t').collect();
        head[4] = "1";
        fs::write(path, format!("{}\n{entries}", head.join("\t"))).unwrap();
    }

    #[tokio::test]
    async fn what_a_killed_process_reserved_and_did_not_call_is_given_back_once() {
        let house = House::new().await;
        let (ledger, main, day) = (&house.ledger, AccountName::new("main"), QuotaDay::of(at(0)));
        let charge = QuotaCharge { account: &main, endpoint: DETAILS, day, limit: None, keep: 0 };
        ledger.reserve_calls(&charge, 64).await.unwrap();
        let tally = ledger.begin_reads(&main, "one").unwrap();
        tally.reserved(DETAILS, day, 32);
        tally.reserved(DETAILS, day, 32);
        (0..40).for_each(|_| tally.one(DETAILS, day));
        tally.given_back(DETAILS, day, 4);
        ledger.give_back_calls(&main, DETAILS, day, 4).await.unwrap();
        tally.reserved("user/info", day.next(), 0);
        ledger.settle_reads_of_the_dead(&main).await.unwrap();
        assert_eq!(calls(&house).await, 60, "its process lives");
        dies(&ledger.reads_path(&main, "one"));
        ledger.settle_reads_of_the_dead(&AccountName::new("mai")).await.unwrap();
        assert_eq!(calls(&house).await, 60, "of another account");
        ledger.settle_reads_of_the_dead(&main).await.unwrap();
        ledger.settle_reads_of_the_dead(&main).await.unwrap();
        assert_eq!(calls(&house).await, 40);
        let tally = ledger.begin_reads(&main, "two").unwrap();
        tally.end();
        assert!(ledger.reads_of(&main).is_empty());
    }

    #[tokio::test]
    async fn what_cannot_be_known_stays_counted() {
        let house = House::new().await;
        let (ledger, main, day) = (&house.ledger, AccountName::new("main"), QuotaDay::of(at(0)));
        let charge = QuotaCharge { account: &main, endpoint: DETAILS, day, limit: None, keep: 0 };
        for (id, spoil) in [("boot", 1_u8), ("cut", 2)] {
            ledger.reserve_calls(&charge, 32).await.unwrap();
            let tally = ledger.begin_reads(&main, id).unwrap();
            tally.reserved(DETAILS, day, 32);
            tally.one(DETAILS, day);
            let path = ledger.reads_path(&main, id);
            dies(&path);
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, if spoil == 1 { text.replace(&boot().unwrap(), "another") } else { text + "-a3" })
                .unwrap();
        }
        ledger.settle_reads_of_the_dead(&main).await.unwrap();
        assert_eq!(calls(&house).await, 64);
        assert!(ledger.reads_of(&main).is_empty(), "nobody looks at them again");
    }
}

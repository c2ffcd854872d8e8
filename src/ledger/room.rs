//! Room on the ledger's disk, set aside before anything is sent, so that what becomes of the sends can be written down
//! even when the disk fills up meanwhile. It is a file beside the ledger, given up when it is needed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Ledger, LedgerError};

/// Bytes that must be free beside the room: a push that could not claim anybody need not begin.
const FREE_BESIDE: u64 = 2 << 20;

/// Disk space that is ours until it is given up or dropped.
#[derive(Debug)]
#[must_use]
pub struct Room {
    path: PathBuf,
}

impl Room {
    /// Makes the space free for the ledger. It is not taken again.
    pub fn give_up(&self) {
        // A file that cannot be removed is space that stays taken: the write that needed it says so.
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl Ledger {
    /// Sets so many bytes aside for a push, beside the ledger. What a killed process left under that name is taken over.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NoRoom`] when the disk does not hold that much more: then nothing should be sent.
    pub async fn set_room_aside(&self, push_key: i64, bytes: u64) -> Result<Room, LedgerError> {
        let room = self.room_of(push_key);
        let path = room.path.clone();
        let filled = tokio::task::spawn_blocking(move || fill(&path, bytes)).await;
        let filled = filled.unwrap_or_else(|error| Err(io::Error::other(error)));
        filled.map_err(|source| LedgerError::NoRoom { path: room.path.clone(), bytes, source })?;
        Ok(room)
    }

    /// Gives up what a process that was killed had set aside for a push that is over.
    pub fn give_up_room(&self, push_key: i64) {
        drop(self.room_of(push_key));
    }

    fn room_of(&self, push_key: i64) -> Room {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!("-room-{push_key}"));
        Room { path: self.path.with_file_name(name) }
    }
}

/// A file whose bytes are really on the disk: a hole would take no space.
fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let wanted = bytes + FREE_BESIDE;
    match allocate(&file, wanted) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => write_zeros(&mut file, wanted)?,
        done => done?,
    }
    // Only now is it known to be there, where space is given out late.
    file.sync_all()?;
    file.set_len(bytes)
}

/// Asks the file system for the blocks, which takes no time and writes nothing; not every one can.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "std has no call for it")]
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let length = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open for the whole call; the other arguments are plain numbers.
    if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } == 0 || bytes == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

#[cfg(not(target_os = "linux"))]
fn allocate(_: &File, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn write_zeros(file: &mut File, bytes: u64) -> io::Result<()> {
    static PIECE: [u8; 1 << 16] = [0; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let piece = usize::try_from(left).unwrap_or(PIECE.len()).min(PIECE.len());
        file.write_all(&PIECE[..piece])?;
        left -= u64::try_from(piece).unwrap_or(left);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;

    #[tokio::test]
    async fn room_is_taken_until_it_is_given_up_or_dropped() {
        let house = House::new().await;
        let place = house.path.with_file_name("ledger.db-room-7");
        std::fs::write(&place, "left by a process that was killed").unwrap();
        let room = house.ledger.set_room_aside(7, 200_000).await.unwrap();
        assert_eq!(std::fs::metadata(&place).unwrap().len(), 200_000);
        room.give_up();
        assert!(!place.exists());
        drop(room);
        drop(house.ledger.set_room_aside(7, 10).await.unwrap());
        assert!(!place.exists());
        std::fs::write(&place, "left by a process that was killed").unwrap();
        house.ledger.give_up_room(7);
        assert!(!place.exists());
    }

    #[tokio::test]
    async fn where_there_is_no_room_nothing_is_set_aside() {
        let house = House::new().await;
        std::fs::remove_dir_all(house.path.parent().unwrap()).unwrap();
        let error = house.ledger.set_room_aside(7, 10).await.unwrap_err();
        assert!(error.to_string().contains("ledger.db-room-7"), "{error}");
    }
}

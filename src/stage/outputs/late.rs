//! A file that tells what went wrong at its end. Whoever puts a zip together tries to end it even after a failure, and prints
//! a line of its own when that fails too; nothing fails here before the end is asked for.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};

/// Takes everything; from the first failure on it only counts where it would be.
pub struct Late<W: Write + Seek> {
    inner: BufWriter<W>,
    failed: Option<io::Error>,
    position: u64,
    length: u64,
}

impl<W: Write + Seek> Late<W> {
    pub fn new(inner: W) -> Self {
        Self { inner: BufWriter::with_capacity(1 << 16, inner), failed: None, position: 0, length: 0 }
    }

    fn try_it(&mut self, work: impl FnOnce(&mut BufWriter<W>) -> io::Result<()>) {
        if self.failed.is_none() {
            self.failed = work(&mut self.inner).err();
        }
    }

    /// Hands everything down.
    ///
    /// # Errors
    ///
    /// What went wrong first.
    pub fn finish(mut self) -> io::Result<()> {
        self.try_it(Write::flush);
        self.failed.map_or(Ok(()), Err)
    }
}

impl Late<&File> {
    /// The same, and onto the disk.
    ///
    /// # Errors
    ///
    /// What went wrong first.
    pub fn finish_on_disk(self) -> io::Result<()> {
        let file = *self.inner.get_ref();
        self.finish()?;
        file.sync_all()
    }
}

impl<W: Write + Seek> Write for Late<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.try_it(|inner| inner.write_all(bytes));
        self.position += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.length = self.length.max(self.position);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.try_it(Write::flush);
        Ok(())
    }
}

impl<W: Write + Seek> Seek for Late<W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        let target = target.ok_or(io::ErrorKind::InvalidInput)?;
        self.try_it(|inner| inner.seek(SeekFrom::Start(target)).map(drop));
        self.position = target;
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that is full after so many bytes.
    struct Disk {
        bytes: io::Cursor<Vec<u8>>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.bytes.get_ref().len() + bytes.len() > self.room {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.bytes.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Disk {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.bytes.seek(to)
        }
    }

    fn zipped(room: usize) -> io::Result<()> {
        let mut late = Late::new(Disk { bytes: io::Cursor::default(), room });
        let mut zip = zip::ZipWriter::new(&mut late);
        let noise = (0..400_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes());
        zip.start_file("a", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(&noise.collect::<Vec<u8>>()).unwrap();
        zip.finish().expect("what writes the zip sees no failure, and prints none");
        late.finish()
    }

    #[test]
    fn a_full_disk_is_told_once_and_at_the_end() {
        zipped(usize::MAX).unwrap();
        for room in [0, 100, 300_000] {
            assert_eq!(zipped(room).unwrap_err().kind(), io::ErrorKind::StorageFull, "{room}");
        }
    }

    #[test]
    fn what_was_written_over_stands_there() {
        let mut bytes = io::Cursor::new(Vec::new());
        let mut late = Late::new(&mut bytes);
        late.write_all(b"abcdef").unwrap();
        assert_eq!(late.seek(SeekFrom::Current(-4)).unwrap(), 2);
        late.write_all(b"X").unwrap();
        assert_eq!(late.seek(SeekFrom::End(0)).unwrap(), 6);
        late.write_all(b"g").unwrap();
        late.finish().unwrap();
        assert_eq!(bytes.into_inner(), b"abXdefg");
    }
}

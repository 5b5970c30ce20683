//! Role: appends lines to a descriptor, each whole or not at all.
//! Invariants: in a file of ours, what is left of a line that found no room becomes blanks, so that the next line
//! still parses and nobody else's byte is touched · anywhere else the next line begins on a line of its own.
//! See: open(2) `O_APPEND`; RFC 8259 section 2 (blanks in front of a JSON text mean nothing).

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{OFlags, SeekFrom, fcntl_getfl, fcntl_setfl, fstat, ftruncate, seek},
    io::{Errno, pwrite, write},
};

/// Writes whole lines.
pub struct Appender<F> {
    file: F,
    /// Opened for us alone, with `O_APPEND`: what we wrote may be taken back.
    ours: bool,
    /// The last thing there is half a line.
    torn: bool,
}

/// Why not all lines were appended.
#[derive(Debug)]
pub struct Torn {
    /// So many were, before the one that could not be.
    pub written: usize,
    /// What the system says.
    pub why: io::Error,
}

impl<F: AsFd> Appender<F> {
    /// For a descriptor that others may have, too: standard error.
    pub fn shared(file: F) -> Self {
        Self { file, ours: false, torn: false }
    }

    /// For a file that was opened for this, with `O_APPEND`; `torn` when it doesn't end with a newline.
    pub fn owned(file: F, torn: bool) -> Self {
        Self { file, ours: true, torn }
    }

    /// What it writes to.
    pub fn file(&self) -> &F {
        &self.file
    }

    /// Appends a line, which ends with its newline. May block as long as its reader does.
    ///
    /// # Errors
    /// The system's. Nothing of the line is to be seen then, as far as that can be had.
    pub fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.append_all(line).map_err(|torn| torn.why)
    }

    /// Appends lines, in one call where the file takes them so. Each ends with a newline, and in a file of ours has none
    /// within.
    ///
    /// # Errors
    /// The system's, and how many lines are written. Nothing of the others is to be seen then, as far as that can be had.
    pub fn append_all(&mut self, lines: &[u8]) -> Result<(), Torn> {
        let mut done = 0;
        self.append_from(lines, &mut done).map_err(|why| Torn { written: count(&lines[..done]), why })
    }

    /// `done` is where the first line begins that isn't written.
    fn append_from(&mut self, lines: &[u8], done: &mut usize) -> io::Result<()> {
        if self.torn {
            self.put(b"\n")?;
            self.torn = false;
        }
        let mut is_again = false;
        while *done < lines.len() {
            let written = self.put(&lines[*done..])?;
            let whole = end_of_last(&lines[*done..*done + written]);
            let part = written - whole;
            *done += whole;
            if *done == lines.len() {
                break;
            }
            // A file takes less than it is given where its room ends. The line may be had as a whole all the same (a
            // signal came); it is never in two pieces, which another process could come between.
            if self.ours && self.blank(part).is_ok() {
                if is_again && whole == 0 {
                    return Err(Errno::NOSPC.into());
                }
                is_again = true;
            } else {
                let end = end_of_first(&lines[*done..]);
                self.finish(&lines[*done + part..*done + end])?;
                *done += end;
            }
        }
        Ok(())
    }

    /// The rest of a line, for pipes, sockets and terminals.
    fn finish(&mut self, mut rest: &[u8]) -> io::Result<()> {
        while !rest.is_empty() {
            match self.put(rest) {
                Ok(written) if written > 0 => rest = &rest[written..],
                failed => {
                    self.torn = true;
                    return Err(failed.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into()));
                }
            }
        }
        Ok(())
    }

    /// One call that writes something.
    fn put(&self, bytes: &[u8]) -> io::Result<usize> {
        let file = self.file.as_fd();
        loop {
            match write(file, bytes) {
                Err(Errno::INTR) => {}
                // Another process that shares it has set it so.
                Err(Errno::AGAIN) => wait(file)?,
                written => return Ok(written?),
            }
        }
    }

    /// Writes blanks over the last `bytes` that were appended: their room is there, and what another process has
    /// appended behind them stays. Where even that needs room, they are cut off, if nothing is behind them.
    fn blank(&self, bytes: usize) -> io::Result<()> {
        let file = self.file.as_fd();
        // After a write that appends, the offset is where it ended.
        let end = seek(file, SeekFrom::Current(0))?;
        let begin = end.checked_sub(bytes as u64).ok_or(Errno::INVAL)?;
        self.overwrite(&vec![b' '; bytes], begin).or_else(|e| {
            let is_last = u64::try_from(fstat(file)?.st_size) == Ok(end);
            if is_last { Ok(ftruncate(file, begin)?) } else { Err(e) }
        })
    }

    fn overwrite(&self, bytes: &[u8], begin: u64) -> io::Result<()> {
        let file = self.file.as_fd();
        let flags = fcntl_getfl(file)?;
        // With O_APPEND Linux appends, whatever place is asked for.
        fcntl_setfl(file, flags - OFlags::APPEND)?;
        let written = pwrite(file, bytes, begin);
        fcntl_setfl(file, flags)?;
        if written? == bytes.len() { Ok(()) } else { Err(Errno::NOSPC.into()) }
    }
}

/// How many lines end here.
fn count(lines: &[u8]) -> usize {
    lines.iter().filter(|byte| **byte == b'\n').count()
}

fn end_of_first(lines: &[u8]) -> usize {
    lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |at| at + 1)
}

fn end_of_last(lines: &[u8]) -> usize {
    lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

fn wait(file: BorrowedFd<'_>) -> io::Result<()> {
    match poll(&mut [PollFd::from_borrowed_fd(file, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs::{File, OpenOptions},
        io::{Read as _, Write as _},
        path::Path,
    };

    fn open(path: &Path) -> File {
        OpenOptions::new().append(true).create(true).open(path).unwrap()
    }

    #[test]
    fn half_a_line_is_taken_back_and_the_line_of_another_process_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut ours = Appender::owned(open(&path), false);
        ours.append(b"{\"n\":1}\n").unwrap();
        // What a full disk leaves of a line, and another process's line behind it.
        assert_eq!(ours.put(b"{\"n\":").unwrap(), 5);
        open(&path).write_all(b"{\"n\":3}\n").unwrap();
        ours.blank(5).unwrap();
        ours.append(b"{\"n\":4}\n").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"n\":1}\n     {\"n\":3}\n{\"n\":4}\n");
        let numbers = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        assert_eq!(numbers.map(|line| line["n"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 3, 4]);
    }

    #[test]
    fn behind_half_a_line_that_can_not_be_taken_back_a_new_line_begins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "{\"half\":").unwrap();
        let mut appender = Appender::owned(open(&path), true);
        appender.append(b"one\n").unwrap();
        appender.append(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"half\":\none\ntwo\n");
    }

    #[test]
    fn lines_are_appended_in_one_call_and_a_full_disk_takes_none_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut appender = Appender::owned(open(&path), false);
        appender.append_all(b"{\"n\":1}\n{\"n\":2}\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"n\":1}\n{\"n\":2}\n");
        let mut full = Appender::owned(OpenOptions::new().write(true).open("/dev/full").unwrap(), false);
        let torn = full.append_all(b"1\n2\n").unwrap_err();
        assert_eq!((torn.written, torn.why.kind()), (0, io::ErrorKind::StorageFull));
    }

    #[test]
    fn a_pipe_that_is_full_and_must_not_block_gets_whole_lines() {
        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let lines = [vec![b'x'; 1_000_000], vec![b'y'; 500_000], Vec::new()].join(&b'\n');
        let sent = lines.clone();
        let thread = std::thread::spawn(move || Appender::owned(writer, false).append_all(&sent));
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert!(got == lines, "{} bytes", got.len());
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn a_full_disk_and_a_reader_that_left_are_errors() {
        let mut full = Appender::shared(OpenOptions::new().write(true).open("/dev/full").unwrap());
        assert_eq!(full.append(b"line\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(Appender::shared(writer).append(b"line\n").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}

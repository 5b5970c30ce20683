//! Role: the file of the audit log, on the journal's thread: how lines are written.
//! Invariants: every line of the file is JSON, whatever the disk does · lines that wait together are one write · a pipe may
//! find its reader later, and lose it: lines between are counted.
//! See: `dataplane::run::journal`; `gate`, whose counts are written here.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    sync::Arc,
};

use narrowlink_dataplane::run::{
    file::{open_regular, open_to_append},
    journal::{Appender, Sink, Torn},
};

use super::{Line, gate::Gate};

/// A line is shorter.
const TAIL_BYTES: u64 = 128 * 1024;
/// Why nothing can be written to a pipe.
const UNREAD: &str = "nobody reads this pipe";

/// Where the lines go.
pub(super) struct AuditFile {
    /// `None` while it is a pipe that nobody reads.
    file: Option<Appender<File>>,
    path: PathBuf,
    /// Has counts that are to be written.
    gate: Arc<Gate>,
}

impl AuditFile {
    /// Appends to `path`, which is made, for its owner alone, if it isn't there.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        if file.is_none() {
            tracing::warn!(
                "{}: {}; lines of the audit log are lost until somebody does",
                path.display(),
                UNREAD
            );
        }
        Ok(Self { file, path: path.to_owned(), gate: Arc::default() })
    }

    fn append_all(&mut self, lines: &[u8]) -> Result<(), Torn> {
        if self.file.is_none() {
            self.file = open(&self.path).map_err(|why| Torn { written: 0, why })?;
        }
        match &mut self.file {
            Some(file) => file.append_all(lines),
            None => Err(Torn { written: 0, why: io::Error::new(io::ErrorKind::BrokenPipe, UNREAD) }),
        }
    }

    /// What decides, on the workers, which refusals come here as lines.
    pub(super) fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }
}

impl Sink<Box<Line>> for AuditFile {
    fn write(&mut self, line: &Box<Line>) -> io::Result<()> {
        self.write_all(std::slice::from_ref(line)).map_err(|torn| torn.why)
    }

    fn write_all(&mut self, lines: &[Box<Line>]) -> Result<(), Torn> {
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, line).map_err(|e| Torn { written: 0, why: e.into() })?;
            text.push(b'\n');
        }
        self.append_all(&text)
    }

    fn lost(&mut self, lines: u64, why: &str) -> Box<Line> {
        Box::new(Line { lines: Some(lines), reason: Some(why.to_owned()), ..Line::new("lost") })
    }

    fn tick(&mut self) -> Vec<Box<Line>> {
        self.gate.handle_tick().into_iter().map(Box::new).collect()
    }

    fn last(&mut self) -> Vec<Box<Line>> {
        self.tick()
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        match file.file().sync_data() {
            // A pipe has no disk.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
            synced => synced,
        }
    }

    fn failed(&mut self, why: &io::Error) {
        tracing::error!(
            "{}: {why}; lines of the audit log are lost until it can be written",
            self.path.display()
        );
    }
}

fn open(path: &Path) -> io::Result<Option<Appender<File>>> {
    let Some(file) = open_to_append(path)? else { return Ok(None) };
    let torn = ends_within_a_line(path, &file).unwrap_or(false);
    Ok(Some(Appender::owned(file, torn)))
}

/// As after a machine that lost its power: the next line must not become a part of that one. Blanks are what is left of
/// a line that found no room; they may stand in front of the next.
fn ends_within_a_line(path: &Path, file: &File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(false);
    }
    let begin = metadata.len().saturating_sub(TAIL_BYTES);
    let mut tail = Vec::new();
    let mut file = open_regular(path)?;
    file.seek(SeekFrom::Start(begin))?;
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    Ok(tail.iter().rfind(|byte| **byte != b' ').is_some_and(|last| *last != b'\n'))
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, io::Write as _, process::Command};

    use super::*;

    #[test]
    fn a_pipe_takes_lines_as_soon_as_somebody_reads_it_and_again_when_the_next_one_does() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.pipe");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut file = AuditFile::open(&path).unwrap();
        let line = Box::new(Line::new("login"));
        for _ in 0..2 {
            let error = file.write(&line).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{error}");
            file.sync().unwrap();
            // Opened by the test for both, for it would wait for a writer.
            let mut reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
            file.write(&line).unwrap();
            let mut read = [0; 4096];
            let bytes = reader.read(&mut read).unwrap();
            assert!(read.starts_with(b"{") && read[..bytes].ends_with(b"\n"));
            drop(reader);
        }
        file.reopen().unwrap();
        assert!(file.file.is_none());
    }

    #[test]
    fn a_line_is_never_written_behind_half_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        std::fs::write(&path, "{\"time\":\"2026-11-2").unwrap();
        let mut file = AuditFile::open(&path).unwrap();
        file.write(&Box::new(Line::new("login"))).unwrap();
        file.reopen().unwrap();
        file.write(&Box::new(Line::new("login"))).unwrap();
        // And blanks are no half line.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"   ").unwrap();
        file.reopen().unwrap();
        file.write(&Box::new(Line::new("login"))).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let whole = text.lines().skip(1).map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        assert_eq!(whole.filter(|line| line["event"] == "login").count(), 3, "{text}");
    }
}

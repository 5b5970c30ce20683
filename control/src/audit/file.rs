//! Role: the file of the audit log, on the journal's thread: which lines are written, and how.
//! Invariants: every line of the file is JSON, whatever the disk does · a source that is refused again and again
//! fills neither the disk nor the log, and the rest of its lines is counted · a pipe may find its reader later, and lose it:
//! lines between are counted.
//! See: `dataplane::journal`.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    net::IpAddr,
    path::{Path, PathBuf},
};

use narrowlink_dataplane::{
    file::{open_regular, open_to_append},
    journal::{Appender, Sink},
};

use super::Line;

/// Refusals of one source that are written in one second; the rest is counted.
const REFUSALS_PER_S: u32 = 10;
/// Sources that are watched at a time; beyond that all others share one count.
const SOURCES_MAX: usize = 4_096;
/// A line is shorter.
const TAIL_BYTES: u64 = 128 * 1024;
/// Why nothing can be written to a pipe.
const UNREAD: &str = "nobody reads this pipe";

/// Where the lines go.
pub(super) struct AuditFile {
    /// `None` while it is a pipe that nobody reads.
    file: Option<Appender<File>>,
    path: PathBuf,
    /// Refusals in this second, by source; `None` are those of too many sources.
    refusals: HashMap<Option<IpAddr>, u32>,
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
        Ok(Self { file, path: path.to_owned(), refusals: HashMap::new() })
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.file = open(&self.path)?;
        }
        match &mut self.file {
            Some(file) => file.append(line),
            None => Err(io::Error::new(io::ErrorKind::BrokenPipe, UNREAD)),
        }
    }

    /// Whether a refusal of this source is one that is written.
    fn counts(&mut self, source: IpAddr) -> bool {
        let known = self.refusals.len() < SOURCES_MAX || self.refusals.contains_key(&Some(source));
        let refusals = self.refusals.entry(known.then_some(source)).or_default();
        *refusals = refusals.saturating_add(1);
        *refusals <= REFUSALS_PER_S
    }
}

impl Sink<Box<Line>> for AuditFile {
    fn write(&mut self, line: &Box<Line>) -> io::Result<()> {
        if let Some(source) = line.source
            && !self.counts(source)
        {
            return Ok(());
        }
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.append(&text)
    }

    fn lost(&mut self, lines: u64, why: &str) -> Box<Line> {
        Box::new(Line { lines: Some(lines), reason: Some(why.to_owned()), ..Line::new("lost") })
    }

    fn tick(&mut self) -> Vec<Box<Line>> {
        let refused_more = |(source, refusals): (Option<IpAddr>, u32)| {
            let left_out = refusals.checked_sub(REFUSALS_PER_S).filter(|n| *n > 0)?;
            let peer = source.map(|ip| ip.to_string());
            Some(Box::new(Line { peer, lines: Some(left_out.into()), ..Line::new("refused_more") }))
        };
        self.refusals.drain().filter_map(refused_more).collect()
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

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn refusals_of_one_source_are_counted_and_of_another_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut file = AuditFile::open(&path).unwrap();
        let line = |ip: &str| Box::new(Line { source: Some(ip.parse().unwrap()), ..Line::new("refused") });
        for _ in 0..100 {
            file.write(&line("192.0.2.1")).unwrap();
        }
        file.write(&line("192.0.2.2")).unwrap();
        for more in file.tick() {
            file.write(&more).unwrap();
        }
        file.write(&line("192.0.2.1")).unwrap();
        let lines = lines(&path);
        let count = |event: &str| lines.iter().filter(|line| line["event"] == event).count();
        assert_eq!((count("refused"), count("refused_more")), (12, 1));
        let more = lines.iter().find(|line| line["event"] == "refused_more").unwrap();
        assert_eq!((&more["peer"], &more["lines"]), (&"192.0.2.1".into(), &90.into()));
    }

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

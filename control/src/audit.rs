//! Role: the audit log: who came, what was refused, opened and closed; one line of JSON each.
//! Invariants: no token, no secret and no payload in any line · nobody waits for the disk: a full queue loses lines
//! and says how many · a source that is refused again and again fills neither the disk nor the log.
//! See: docs/audit.md.

use std::{
    collections::{BTreeSet, HashMap},
    fs::{File, OpenOptions},
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    time::{Duration, Instant},
};

use narrowlink_dataplane::door::{Event, Principal};
use narrowlink_proto::{id::SessionId, message::Speaker, when};
use serde::Serialize;

use crate::{
    auth::signer,
    clock,
    revocations::{Entry, Revocations},
};

/// Lines that may wait for the disk.
const QUEUE: usize = 16 * 1024;
/// Refusals of one source that are written in one second; the rest is counted.
const REFUSALS_PER_S: u32 = 10;
/// Sources that are watched at a time; beyond that all others share one count.
const SOURCES_MAX: usize = 4_096;
/// How often what was left out is said.
const TICK: Duration = Duration::from_secs(1);

/// Where lines are left to be written.
#[derive(Clone)]
pub struct Audit {
    lines: Option<SyncSender<Word>>,
    lost: Arc<AtomicU64>,
}

/// Something for the thread that writes.
enum Word {
    Line(Box<Line>),
    /// The file may have been moved away: begin a new one.
    Reopen,
    /// Everything before this is written when the channel closes.
    Flush(mpsc::Sender<()>),
}

/// One line. What isn't known, or doesn't belong to the event, isn't there.
#[derive(Debug, Default, Serialize)]
struct Line {
    /// UTC, with milliseconds.
    time: String,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    issued_before: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Of a login that was refused; its peer was only told the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    up_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    down_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lines: Option<u64>,
    /// For the limit; a refusal's alone.
    #[serde(skip)]
    source: Option<IpAddr>,
}

impl Audit {
    /// One that writes nothing.
    pub fn none() -> Self {
        Self { lines: None, lost: Arc::default() }
    }

    /// Appends to `path`, which is made, for its owner alone, if it isn't there.
    ///
    /// # Errors
    /// The system's: the file can't be written, or no thread started.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (lines, entries) = mpsc::sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let writer =
            Writer { file: open(path)?, path: path.to_owned(), lost: lost.clone(), refusals: HashMap::new() };
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || writer.work(&entries))?;
        Ok(Self { lines: Some(lines), lost })
    }

    /// Leaves a line for an event, without waiting.
    pub fn note(&self, event: &Event<'_>) {
        if self.lines.is_some() {
            self.leave(Line::of(event));
        }
    }

    /// Leaves a line for each entry that the list of revocations has now and had not before, or the other way round.
    pub fn note_revocations(&self, before: &Revocations, now: &Revocations) {
        if self.lines.is_some() && before != now {
            let lines = |event, entries: BTreeSet<Entry>| {
                entries.into_iter().for_each(|entry| self.leave(Line::about(event, entry)));
            };
            lines("revoked", now.beyond(before));
            lines("unrevoked", before.beyond(now));
        }
    }

    fn leave(&self, line: Line) {
        let Some(lines) = &self.lines else { return };
        if let Err(TrySendError::Full(_)) = lines.try_send(Word::Line(Box::new(line))) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The file may have been moved away by whoever keeps logs: the next line begins a new one.
    pub fn reopen(&self) {
        if let Some(lines) = &self.lines {
            let _ = lines.send(Word::Reopen);
        }
    }

    /// Waits until what was left so far is written. Not to be called on a worker.
    pub fn flush(&self, patience: Duration) {
        let Some(lines) = &self.lines else { return };
        let (written, watch) = mpsc::channel();
        if lines.send(Word::Flush(written)).is_ok() {
            // Nothing is ever sent: the end of the channel is the news.
            let _ = watch.recv_timeout(patience);
        }
    }
}

impl Line {
    fn new(event: &'static str) -> Self {
        let now = clock::since_1970();
        let mut time = when::show(now.as_secs());
        time.truncate("2026-11-21 10:00:00".len());
        let time = format!("{}.{:03}Z", time.replace(' ', "T"), now.subsec_millis());
        Self { time, event, ..Self::default() }
    }

    fn of(event: &Event<'_>) -> Self {
        match *event {
            Event::LoggedIn { who, peer_addr } => {
                let key = signer(who).map(|id| id.to_string());
                Self { key, ..Self::new("login").by(who).from(peer_addr) }
            }
            Event::Refused { who, peer_addr, session, refused, cause } => {
                let mut line = Self::new("refused").from(peer_addr);
                line.source = Some(peer_addr.ip());
                line.session = session.map(short);
                line.code = serde_json::to_value(refused.code).ok();
                line.reason = Some(refused.reason.clone());
                line.cause = cause.map(str::to_owned);
                match who {
                    Some(who) => line.by(who),
                    None => line,
                }
            }
            Event::Opened { who, peer_addr, session, agent, target } => Self {
                session: Some(short(session)),
                agent: Some(agent.to_owned()),
                target: Some(target.to_string()),
                ..Self::new("open").by(who).from(peer_addr)
            },
            Event::Closed { who, peer_addr, session, agent, up_bytes, down_bytes, lasted, ended } => Self {
                session: Some(short(session)),
                agent: Some(agent.to_owned()),
                up_bytes: Some(up_bytes),
                down_bytes: Some(down_bytes),
                ms: Some(u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX)),
                code: serde_json::to_value(ended.why).ok(),
                reason: Some(ended.to_string()),
                ..Self::new("close").by(who).from(peer_addr)
            },
        }
    }

    fn about(event: &'static str, Entry { jti, uid, name, issued_before }: Entry) -> Self {
        Self { jti, uid: uid.map(|uid| uid.to_string()), name, issued_before, ..Self::new(event) }
    }

    fn by(mut self, who: &Principal) -> Self {
        self.role = Some(if who.speaker == Speaker::Agent { "agent" } else { "client" });
        self.uid = Some(who.uid.to_string());
        self.name = Some(who.name.clone());
        self.jti = Some(who.token_id.clone());
        self
    }

    fn from(mut self, peer_addr: SocketAddr) -> Self {
        self.peer = Some(peer_addr.to_string());
        self
    }
}

/// Enough of a session's id to find its other lines; all of it is between its two ends.
fn short(session: SessionId) -> String {
    session.as_bytes()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

struct Writer {
    file: File,
    path: PathBuf,
    lost: Arc<AtomicU64>,
    /// Refusals in this tick, by source; `None` are those of too many sources.
    refusals: HashMap<Option<IpAddr>, u32>,
}

impl Writer {
    fn work(mut self, entries: &Receiver<Word>) {
        let mut tick_at = Instant::now() + TICK;
        let mut failed = false;
        loop {
            let written = match entries.recv_timeout(tick_at.saturating_duration_since(Instant::now())) {
                Ok(Word::Line(line)) => self.write_line(&line),
                Ok(Word::Reopen) => open(&self.path).map(|file| self.file = file),
                Ok(Word::Flush(done)) => self.file.sync_data().map(|()| drop(done)),
                Err(RecvTimeoutError::Timeout) => {
                    tick_at = Instant::now() + TICK;
                    self.handle_tick()
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            match written {
                Ok(()) => failed = false,
                // Said once; a disk that is full is found full at every line.
                Err(_) if failed => {}
                Err(e) => {
                    failed = true;
                    tracing::error!("{}: {e}; lines of the audit log are lost", self.path.display());
                }
            }
        }
    }

    fn write_line(&mut self, line: &Line) -> io::Result<()> {
        if let Some(source) = line.source
            && !self.counts(source)
        {
            return Ok(());
        }
        self.append(line)
    }

    /// Whether a refusal of this source is one that is written.
    fn counts(&mut self, source: IpAddr) -> bool {
        let known = self.refusals.len() < SOURCES_MAX || self.refusals.contains_key(&Some(source));
        let refusals = self.refusals.entry(known.then_some(source)).or_default();
        *refusals = refusals.saturating_add(1);
        *refusals <= REFUSALS_PER_S
    }

    /// Says what was left out.
    fn handle_tick(&mut self) -> io::Result<()> {
        for (source, refusals) in std::mem::take(&mut self.refusals) {
            let Some(left_out) = refusals.checked_sub(REFUSALS_PER_S).filter(|n| *n > 0) else { continue };
            let peer = source.map(|ip| ip.to_string());
            self.append(&Line { peer, lines: Some(left_out.into()), ..Line::new("refused_more") })?;
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.append(&Line { lines: Some(lost), ..Line::new("lost") })?;
        }
        Ok(())
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        // One call a line: whoever reads along, and another process that appends, sees whole lines.
        self.file.write_all(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narrowlink_proto::{
        ended::{Ended, RefusalCode, Refused, Side, Why},
        id::Uid,
        target::Target,
    };

    const PATIENCE: Duration = Duration::from_secs(10);

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn peer() -> SocketAddr {
        "192.0.2.1:1000".parse().unwrap()
    }

    #[test]
    fn each_event_is_a_line_with_what_belongs_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let audit = Audit::open(&path).unwrap();
        let who = Principal {
            token_id: "t1".to_owned(),
            ..Principal::new(Speaker::Client, Uid::nil(), "lap\ntop")
        };
        let session = SessionId::from_bytes([0xab; 32]);
        let target = Target::Tcp { host: "db".to_owned(), port: 5432 };
        let refused = Refused::new(RefusalCode::Policy, "no");
        audit.note(&Event::LoggedIn { who: &who, peer_addr: peer() });
        audit.note(&Event::Refused {
            who: Some(&who),
            peer_addr: peer(),
            session: Some(session),
            refused: &refused,
            cause: Some("why"),
        });
        audit.note(&Event::Opened { who: &who, peer_addr: peer(), session, agent: "home", target: &target });
        audit.note(&Event::Closed {
            who: &who,
            peer_addr: peer(),
            session,
            agent: "home",
            up_bytes: 1,
            down_bytes: 2,
            lasted: Duration::from_millis(1500),
            ended: Ended { by: Side::Here, why: Why::Revoked },
        });
        audit.flush(PATIENCE);
        let lines = lines(&path);
        let events: Vec<_> = lines.iter().map(|line| line["event"].as_str().unwrap()).collect();
        assert_eq!(events, ["login", "refused", "open", "close"]);
        for line in &lines {
            assert_eq!((&line["name"], &line["jti"]), (&"lap\ntop".into(), &"t1".into()), "{line}");
            let time = line["time"].as_str().unwrap();
            assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
        }
        assert_eq!((&lines[1]["code"], &lines[1]["session"]), (&"policy".into(), &"abababababababab".into()));
        assert_eq!(lines[1]["cause"], "why");
        assert_eq!(lines[2]["target"], "tcp://db:5432");
        let close = &lines[3];
        assert_eq!(
            (&close["up_bytes"], &close["down_bytes"], &close["ms"]),
            (&1.into(), &2.into(), &1500.into())
        );
        assert_eq!(
            (&close["code"], &close["reason"]),
            (&"revoked".into(), &"this program was revoked".into())
        );
    }

    #[test]
    fn refusals_of_one_source_are_counted_and_of_another_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let mut writer = Writer {
            file: open(&path).unwrap(),
            path: path.clone(),
            lost: Arc::default(),
            refusals: HashMap::new(),
        };
        let line = |ip: &str| Line { source: Some(ip.parse().unwrap()), ..Line::new("refused") };
        for _ in 0..100 {
            writer.write_line(&line("192.0.2.1")).unwrap();
        }
        writer.write_line(&line("192.0.2.2")).unwrap();
        writer.lost.store(7, Ordering::Relaxed);
        writer.handle_tick().unwrap();
        writer.write_line(&line("192.0.2.1")).unwrap();
        let lines = lines(&path);
        let count = |event: &str| lines.iter().filter(|line| line["event"] == event).count();
        assert_eq!((count("refused"), count("refused_more"), count("lost")), (12, 1, 1));
        let more = lines.iter().find(|line| line["event"] == "refused_more").unwrap();
        assert_eq!((&more["peer"], &more["lines"]), (&"192.0.2.1".into(), &90.into()));
    }

    #[test]
    fn a_file_that_was_moved_away_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("audit.log"), dir.path().join("audit.log.1"));
        let audit = Audit::open(&path).unwrap();
        let none = Revocations::default();
        audit.note_revocations(&none, &revoking(dir.path(), &["a"]));
        audit.flush(PATIENCE);
        std::fs::rename(&path, &old).unwrap();
        audit.note_revocations(&none, &revoking(dir.path(), &["b"]));
        audit.reopen();
        audit.note_revocations(&none, &revoking(dir.path(), &["c"]));
        audit.flush(PATIENCE);
        let entries = |path| lines(path).iter().map(|line| line["jti"].to_string()).collect::<Vec<_>>();
        assert_eq!(
            (entries(&old), entries(&path)),
            (vec!["\"a\"".into(), "\"b\"".into()], vec!["\"c\"".into()])
        );
        Audit::none().note_revocations(&none, &revoking(dir.path(), &["a"]));
    }

    /// A list that revokes the tokens of these ids.
    fn revoking(dir: &Path, jtis: &[&str]) -> Revocations {
        let path = dir.join("revoked.yaml");
        let yaml: String = jtis.iter().map(|jti| format!("- jti: {jti}\n")).collect();
        std::fs::write(&path, yaml).unwrap();
        Revocations::load(&path).unwrap().unwrap()
    }

    #[test]
    fn each_entry_that_is_new_to_the_list_or_gone_from_it_has_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let audit = Audit::open(&path).unwrap();
        let (first, then) = (revoking(dir.path(), &["a", "b"]), revoking(dir.path(), &["b", "c", "d"]));
        audit.note_revocations(&first, &then);
        audit.note_revocations(&then, &then);
        audit.flush(PATIENCE);
        let said: Vec<_> =
            lines(&path).iter().map(|line| format!("{} {}", line["event"], line["jti"])).collect();
        assert_eq!(said, [r#""revoked" "c""#, r#""revoked" "d""#, r#""unrevoked" "a""#]);
    }
}

//! Role: the audit log: who came, what was refused, opened and closed; one line of JSON each.
//! Invariants: no token, no secret and no payload in any line · nobody waits for the disk: lines that it
//! can't take are lost, and counted · every line of the file is JSON · a refusal that is only counted is never a line.
//! See: docs/audit.md; `gate`, which counts; `file`, which writes.

mod file;
mod gate;

use std::{collections::BTreeSet, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use narrowlink_dataplane::{
    gateway::{door::Event, principal::Principal},
    run::{
        journal::{Bounds, Journal},
        source::Source,
    },
};
use narrowlink_proto::{ended::RefusalCode, hex, id::SessionId, message::Speaker, when};
use serde::Serialize;

use self::{file::AuditFile, gate::Gate};
use crate::{
    clock,
    credentials::signer,
    revocations::{Entry, Revocations},
};

/// What may wait for the disk.
const BOUNDS: Bounds = Bounds { lines_max: 16 * 1024, bytes_max: 16 * 1024 * 1024 };
/// What a line takes besides its words.
const LINE_BYTES: usize = 512;

/// Where lines are left to be written.
#[derive(Clone)]
pub struct Audit(Option<Lines>);

#[derive(Clone)]
struct Lines {
    journal: Journal<Box<Line>>,
    gate: Arc<Gate>,
}

/// One line. What isn't known, or doesn't belong to the event, isn't there.
#[derive(Debug, Clone, Default, Serialize)]
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
    code: Option<&'static str>,
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
}

impl Audit {
    /// One that writes nothing.
    pub fn none() -> Self {
        Self(None)
    }

    /// Appends to `path`, which is made, for its owner alone, if it isn't there.
    ///
    /// # Errors
    /// The system's: the file can't be written, or no thread started.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = AuditFile::open(path)?;
        let gate = file.gate();
        Ok(Self(Some(Lines { journal: Journal::start("audit", BOUNDS, file)?, gate })))
    }

    /// Leaves a line for an event, or counts it, without waiting.
    pub fn note(&self, event: &Event<'_>) {
        let Some(Lines { gate, .. }) = &self.0 else { return };
        if let Event::Refused { who, peer_addr, refused, .. } = *event
            && !gate.admit(peer_addr, who, refused.code)
        {
            return;
        }
        self.leave(Line::of(event));
    }

    /// Leaves a line for each entry that the list of revocations has now and had not before, or the other way round.
    pub(crate) fn note_revocations(&self, before: &Revocations, now: &Revocations) {
        if self.0.is_some() && before != now {
            let lines = |event, entries: BTreeSet<Entry>| {
                entries.into_iter().for_each(|entry| self.leave(Line::about(event, entry)));
            };
            lines("revoked", now.beyond(before));
            lines("unrevoked", before.beyond(now));
        }
    }

    fn leave(&self, line: Line) {
        if let Some(Lines { journal, .. }) = &self.0 {
            let bytes = line.bytes();
            journal.leave(Box::new(line), bytes);
        }
    }

    /// The file may have been moved away by whoever keeps logs: the next line begins a new one.
    pub fn reopen(&self) {
        if let Some(Lines { journal, .. }) = &self.0 {
            journal.reopen();
        }
    }

    /// Waits until what was left so far is on the disk, or lost, but not longer than `patience`. Not to be called on
    /// a worker.
    pub fn flush(&self, patience: Duration) {
        if let Some(Lines { journal, .. }) = &self.0 {
            journal.flush(patience);
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

    /// What it takes while it waits, about.
    fn bytes(&self) -> usize {
        let words = [&self.name, &self.jti, &self.agent, &self.target, &self.reason];
        LINE_BYTES + words.into_iter().flatten().map(String::len).sum::<usize>()
    }

    fn of(event: &Event<'_>) -> Self {
        match *event {
            Event::LoggedIn { who, peer_addr } => {
                let key = signer(who).map(|id| id.to_string());
                Self { key, ..Self::new("login").by(who).from(peer_addr) }
            }
            Event::Refused { who, peer_addr, session, refused, cause } => {
                let mut line = Self::new("refused").from(peer_addr);
                line.session = session.map(short);
                line.code = Some(refused.code.name());
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
                code: Some(ended.why.name()),
                reason: Some(ended.by_name("this gateway")),
                ..Self::new("close").by(who).from(peer_addr)
            },
        }
    }

    /// What counts refusals of one kind, but for the count.
    fn refused_more(source: Source, who: Option<&Principal>, code: RefusalCode) -> Self {
        let line =
            Self { peer: Some(source.to_string()), code: Some(code.name()), ..Self::new("refused_more") };
        match who {
            Some(who) => line.by(who),
            None => line,
        }
    }

    /// The same, said now of so many lines.
    fn counting(&self, lines: u64) -> Self {
        let Self { time, .. } = Self::new(self.event);
        Self { time, lines: Some(lines), ..self.clone() }
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
    hex::encode(&session.as_bytes()[..8])
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
        assert_eq!((&close["code"], &close["reason"]), (&"revoked".into(), &"the token was revoked".into()));
    }

    #[test]
    fn refusals_that_are_only_counted_are_said_before_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let audit = Audit::open(&path).unwrap();
        let refused = Refused::new(RefusalCode::AgentNotFound, "no");
        let who = Principal::new(Speaker::Client, Uid::nil(), "laptop");
        let event = Event::Refused {
            who: Some(&who),
            peer_addr: peer(),
            session: None,
            refused: &refused,
            cause: None,
        };
        (0..1000).for_each(|_| audit.note(&event));
        audit.note(&Event::LoggedIn { who: &who, peer_addr: peer() });
        audit.flush(PATIENCE);
        let lines = lines(&path);
        let of = |event: &str| lines.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
        let more = of("refused_more");
        let counted: u64 = more.iter().filter_map(|line| line["lines"].as_u64()).sum();
        assert_eq!((of("login").len(), of("refused").len() as u64 + counted), (1, 1000), "{lines:?}");
        for (field, value) in [("peer", "192.0.2.1"), ("name", "laptop"), ("code", "agent_not_found")] {
            assert!(more.iter().all(|line| line[field] == value), "{more:?}");
        }
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

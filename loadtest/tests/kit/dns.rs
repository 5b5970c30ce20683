//! Role: a name server whose answers change from question to question.
//! Invariants: nothing it says may be kept (TTL 0) · each question is counted · a name that it doesn't know does
//! not exist; one that is silent is asked, counted, and not answered.
//! See: RFC 1035 section 4.1.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

const HEADER_BYTES: usize = 12;
const A: u16 = 1;
const AAAA: u16 = 28;
const NO_SUCH_NAME: u8 = 3;

/// What is answered, and how often it was asked.
#[derive(Default)]
struct Entry {
    /// To the first question and those after it; the last one goes on.
    answers: Vec<Vec<IpAddr>>,
    silent: bool,
    asked: Asked,
}

/// How often a name was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Its IPv4 addresses.
    pub(crate) a: usize,
    /// Its IPv6 addresses.
    pub(crate) aaaa: usize,
}

/// The name server.
#[derive(Clone, Default)]
pub(crate) struct NameServer(Arc<Mutex<HashMap<String, Entry>>>);

impl NameServer {
    /// Starts one.
    pub(crate) fn start(addr: SocketAddr) -> Self {
        let socket = UdpSocket::bind(addr).unwrap_or_else(|e| panic!("{addr}: {e}"));
        let this = Self::default();
        let served = this.clone();
        thread::spawn(move || {
            let mut buf = [0; 1500];
            while let Ok((bytes, asker)) = socket.recv_from(&mut buf) {
                if let Some(answer) = served.answer(&buf[..bytes]) {
                    let _ = socket.send_to(&answer, asker);
                }
            }
        });
        this
    }

    /// From now on, `name` has these addresses at the first question, those at the second, and so on. A question
    /// for A and one for AAAA are one look-up.
    pub(crate) fn set(&self, name: &str, answers: Vec<Vec<IpAddr>>) {
        self.lock().insert(name.to_owned(), Entry { answers, ..Entry::default() });
    }

    /// From now on, nobody who asks for `name` hears anything.
    pub(crate) fn silence(&self, name: &str) {
        self.lock()
            .insert(name.to_owned(), Entry { answers: vec![Vec::new()], silent: true, ..Entry::default() });
    }

    /// How often a name was asked for since it was set.
    pub(crate) fn asked(&self, name: &str) -> Asked {
        self.lock().get(name).map_or_else(Asked::default, |entry| entry.asked)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let (name, kind, end) = read_question(question)?;
        let mut entries = self.lock();
        let addrs = entries.get_mut(&name).map(|entry| entry.next(kind));
        if entries.get(&name).is_some_and(|entry| entry.silent) {
            return None;
        }
        let rcode = if addrs.is_some() { 0 } else { NO_SUCH_NAME };
        let addrs = addrs.unwrap_or_default();
        let mut out = question[..end].to_vec();
        // An answer, of one who knows, to who wanted recursion and gets it.
        out[2..4].copy_from_slice(&[0x85, 0x80 | rcode]);
        out[4..HEADER_BYTES].copy_from_slice(&[0, 1, 0, addrs.len() as u8, 0, 0, 0, 0]);
        for addr in addrs {
            // The name of the question, IN, TTL 0.
            out.extend([0xc0, HEADER_BYTES as u8]);
            out.extend(kind.to_be_bytes());
            out.extend([0, 1, 0, 0, 0, 0]);
            match addr {
                IpAddr::V4(v4) => {
                    out.extend([0, 4]);
                    out.extend(v4.octets());
                }
                IpAddr::V6(v6) => {
                    out.extend([0, 16]);
                    out.extend(v6.octets());
                }
            }
        }
        Some(out)
    }
}

impl Entry {
    fn next(&mut self, kind: u16) -> Vec<IpAddr> {
        let count = match kind {
            A => &mut self.asked.a,
            AAAA => &mut self.asked.aaaa,
            _ => return Vec::new(),
        };
        let at = (*count).min(self.answers.len() - 1);
        *count += 1;
        self.answers[at].iter().copied().filter(|ip| ip.is_ipv4() == (kind == A)).collect()
    }
}

/// Its name, its type, and where it ends.
fn read_question(message: &[u8]) -> Option<(String, u16, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER_BYTES;
    loop {
        let len = usize::from(*message.get(at)?);
        let label = message.get(at + 1..at + 1 + len)?;
        at += 1 + len;
        if len == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(label).into_owned());
    }
    let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
    (message.len() >= at + 4).then(|| (labels.join("."), kind, at + 4))
}

//! Role: whom a line of the log is about: the value of its event's field `peer`, else `gateway`, else `name`; a line
//! about nobody is told from others by its words.
//! Invariants: nothing is allocated, and of a line about a source nothing else is formatted: this is looked at for
//! lines that are left out, too · peers can't choose words that count as another's: their hash is keyed.

use std::{
    fmt::{self, Debug, Write as _},
    hash::{BuildHasher as _, DefaultHasher, Hasher as _, RandomState},
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
};

use tracing::{
    Event,
    field::{Field, Visit},
};

use crate::run::source;

/// What is kept of a name; names that differ behind that share a limit.
const NAME_BYTES: usize = 62;
/// What is kept of the words of a line.
const WORDS_MAX: usize = 160;

static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Whom a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// Nobody in particular: the hash of its words.
    Words(u64),
    /// Where a peer comes from.
    Peer(source::Source),
    /// An agent, a gateway.
    Name(Name),
}

/// The first bytes of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Name {
    bytes: [u8; NAME_BYTES],
    len: u8,
}

impl Name {
    const EMPTY: Self = Self { bytes: [0; NAME_BYTES], len: 0 };

    fn as_str(&self) -> &str {
        // It may end within a character.
        let bytes = &self.bytes[..usize::from(self.len)];
        match str::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default(),
        }
    }
}

impl fmt::Write for Name {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let begin = usize::from(self.len);
        let taken = text.len().min(NAME_BYTES - begin);
        self.bytes[begin..begin + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.len += taken as u8;
        Ok(())
    }
}

impl Source {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let mut found = Found { rank: 0, name: Name::EMPTY };
        event.record(&mut found);
        let text = found.name.as_str();
        match found.rank {
            0 => Self::of_words(event),
            PEER => text
                .parse::<SocketAddr>()
                .map(|addr| addr.ip())
                .or_else(|_| text.parse::<IpAddr>())
                .map_or(Self::Name(found.name), |ip| Self::Peer(ip.into())),
            _ => Self::Name(found.name),
        }
    }

    fn of_words(event: &Event<'_>) -> Self {
        let mut hashed = Hashed(KEY.build_hasher());
        event.record(&mut hashed);
        Self::Words(hashed.0.finish())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Words(_) => Ok(()),
            Self::Peer(source) => write!(f, " from {source}"),
            Self::Name(name) => write!(f, " from {}", name.as_str()),
        }
    }
}

const PEER: u8 = 3;
/// The field that holds an event's words.
const MESSAGE: &str = "message";

/// How well a field says whom a line is about.
fn rank(field: &Field) -> u8 {
    match field.name() {
        "peer" => PEER,
        "gateway" => 2,
        "name" => 1,
        _ => 0,
    }
}

struct Found {
    rank: u8,
    name: Name,
}

impl Visit for Found {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let rank = rank(field);
        if rank > self.rank {
            (self.rank, self.name) = (rank, Name::EMPTY);
            // A name takes whatever comes.
            let _ = write!(self.name, "{value:?}");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// Hashes the words as they are formatted.
struct Hashed(DefaultHasher);

impl fmt::Write for Hashed {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

impl Visit for Hashed {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == MESSAGE {
            // A hash takes whatever comes.
            let _ = write!(self, "{value:?}");
        }
    }
}

/// The words of an event, or their beginning.
pub(super) fn words(event: &Event<'_>) -> String {
    let mut words = Words(String::new());
    event.record(&mut words);
    match words.0.char_indices().nth(WORDS_MAX) {
        Some((end, _)) => format!("{}..", &words.0[..end]),
        None => words.0,
    }
}

struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == MESSAGE {
            self.0 = format!("{value:?}");
        }
    }
}

//! Role: host names to addresses, off the workers' threads.
//! Invariants: a slow name server delays only those who ask for names · the queue is bounded ·
//! every look-up is new: nothing is cached here, a changed record counts at the next dial.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::OnceLock,
    time::Duration,
};

use async_channel::{Receiver, Sender, TrySendError};

use crate::timer::timeout;

/// Look-ups that may block at the same time (the system's resolver blocks).
const THREADS: usize = 4;
/// Look-ups that may wait for a thread.
const WAITING_MAX: usize = 256;

struct Question {
    host: String,
    port: u16,
    answer: Sender<io::Result<Vec<SocketAddr>>>,
}

/// Why a name gave no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolver said no.
    #[error("{host} does not resolve: {source}")]
    Failed {
        /// The name.
        host: String,
        /// The resolver's words.
        source: io::Error,
    },
    /// The resolver did not answer.
    #[error("{host} was not resolved within {} s", patience.as_secs())]
    TimedOut {
        /// The name.
        host: String,
        /// How long we waited.
        patience: Duration,
    },
    /// Too many look-ups wait already.
    #[error("too many names wait to be resolved")]
    Busy,
}

/// The addresses of `host` in the resolver's order, as the system's own programs see them
/// (`/etc/hosts`, search domains). A literal address answers at once.
///
/// # Errors
/// See [`ResolveError`].
pub async fn resolve(host: &str, port: u16, patience: Duration) -> Result<Vec<SocketAddr>, ResolveError> {
    let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = literal.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let (answer, answered) = async_channel::bounded(1);
    match queue().try_send(Question { host: host.to_owned(), port, answer }) {
        Ok(()) => {}
        Err(TrySendError::Full(_) | TrySendError::Closed(_)) => return Err(ResolveError::Busy),
    }
    match timeout(patience, answered.recv()).await {
        Err(_) => Err(ResolveError::TimedOut { host: host.to_owned(), patience }),
        Ok(Err(_)) => Err(ResolveError::Busy),
        Ok(Ok(Ok(addrs))) => Ok(addrs),
        Ok(Ok(Err(source))) => Err(ResolveError::Failed { host: host.to_owned(), source }),
    }
}

fn queue() -> &'static Sender<Question> {
    static QUEUE: OnceLock<Sender<Question>> = OnceLock::new();
    QUEUE.get_or_init(|| {
        let (questions, asked) = async_channel::bounded(WAITING_MAX);
        for n in 0..THREADS {
            let asked: Receiver<Question> = asked.clone();
            // Without the thread the queue is shorter by one; with none at all, look-ups time out.
            let _ = std::thread::Builder::new().name(format!("resolve-{n}")).spawn(move || {
                while let Ok(question) = asked.recv_blocking() {
                    // Nobody waits any more: spare the name server.
                    if question.answer.is_closed() {
                        continue;
                    }
                    let found =
                        (question.host.as_str(), question.port).to_socket_addrs().map(Iterator::collect);
                    let _ = question.answer.try_send(match found {
                        Ok(addrs) if Vec::is_empty(&addrs) => {
                            Err(io::Error::new(io::ErrorKind::NotFound, "no address"))
                        }
                        other => other,
                    });
                }
            });
        }
        questions
    })
}

//! Role: host names to addresses, off the workers' threads.
//! Invariants: a silent name server delays only who asks it: each asker has a bounded share of the threads, and a
//! gateway's name has its own · queue and threads are bounded, idle threads end · every look-up is new: nothing is
//! cached here, a changed record counts at the next dial.
//! See: `resolve::queue` for whose turn it is.

mod queue;

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use async_channel::Sender;

pub use self::queue::Asker;
use self::queue::{Question, Queue};
use crate::run::{lock::lock, timer::timeout};

/// A thread that has had nothing to look up for so long ends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

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
    #[error("{host} was not resolved within {} s: no name server answers", patience.as_secs())]
    TimedOut {
        /// The name.
        host: String,
        /// How long we waited.
        patience: Duration,
    },
    /// Too many look-ups of this asker wait already.
    #[error("too many names wait to be resolved, and their name servers are slow; try again later")]
    Busy,
}

/// The addresses of `host` in the resolver's order, as the system's own programs see them
/// (`/etc/hosts`, search domains). A literal address answers at once.
///
/// # Errors
/// See [`ResolveError`].
pub async fn resolve(
    asker: Asker,
    host: &str,
    port: u16,
    patience: Duration,
) -> Result<Vec<SocketAddr>, ResolveError> {
    static RESOLVER: OnceLock<Arc<Resolver>> = OnceLock::new();
    let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = literal.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let resolver = RESOLVER.get_or_init(|| Resolver::new(ask_the_system));
    resolver.resolve(asker, host, port, patience).await
}

fn ask_the_system(host: &str, port: u16) -> Answer {
    let addrs: Vec<_> = (host, port).to_socket_addrs()?.collect();
    if addrs.is_empty() { Err(io::Error::new(io::ErrorKind::NotFound, "no address")) } else { Ok(addrs) }
}

type Answer = io::Result<Vec<SocketAddr>>;

struct LookUp {
    host: String,
    port: u16,
    answer: Sender<Answer>,
}

impl Question for LookUp {
    fn is_over(&self) -> bool {
        self.answer.is_closed()
    }
}

/// Look-ups and the threads that make them. What blocks can't be cancelled: a look-up that nobody waits for any more
/// keeps its thread, and its asker's place, until the system gives it up.
struct Resolver {
    state: Mutex<State>,
    handed_over: Condvar,
    ask: fn(&str, u16) -> Answer,
}

#[derive(Default)]
struct State {
    queue: Queue<LookUp>,
    /// Threads that wait for a look-up and have not been given one.
    idle: usize,
    /// Given to idle threads that have not woken yet.
    handed_over: VecDeque<(Asker, LookUp)>,
}

impl Resolver {
    fn new(ask: fn(&str, u16) -> Answer) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), handed_over: Condvar::new(), ask })
    }

    async fn resolve(
        self: &Arc<Self>,
        asker: Asker,
        host: &str,
        port: u16,
        patience: Duration,
    ) -> Result<Vec<SocketAddr>, ResolveError> {
        let (answer, answered) = async_channel::bounded(1);
        self.push(asker, LookUp { host: host.to_owned(), port, answer })?;
        match timeout(patience, answered.recv()).await {
            Err(_) => Err(ResolveError::TimedOut { host: host.to_owned(), patience }),
            // It gave way to who has fewer, or there is no thread to be had.
            Ok(Err(_)) => Err(ResolveError::Busy),
            Ok(Ok(Ok(addrs))) => Ok(addrs),
            Ok(Ok(Err(source))) => Err(ResolveError::Failed { host: host.to_owned(), source }),
        }
    }

    fn push(self: &Arc<Self>, asker: Asker, look_up: LookUp) -> Result<(), ResolveError> {
        let mut state = self.lock();
        state.queue.push(asker, look_up).map_err(|_| ResolveError::Busy)?;
        self.start_what_may_run(&mut state);
        Ok(())
    }

    fn start_what_may_run(self: &Arc<Self>, state: &mut State) {
        while let Some((asker, look_up)) = state.queue.next() {
            if state.idle > 0 {
                state.idle -= 1;
                state.handed_over.push_back((asker, look_up));
                self.handed_over.notify_one();
                continue;
            }
            let (this, its) = (self.clone(), asker.clone());
            let thread = std::thread::Builder::new().name("resolve".to_owned());
            if thread.spawn(move || this.work(its, look_up)).is_err() {
                // The system has no thread: who asked hears that we are busy.
                state.queue.done(&asker);
            }
        }
    }

    /// A thread's life: one look-up after the other, until there has been none for a while.
    fn work(self: &Arc<Self>, mut asker: Asker, mut look_up: LookUp) {
        loop {
            let LookUp { host, port, answer } = look_up;
            let _ = answer.try_send((self.ask)(&host, port));
            let mut state = self.lock();
            state.queue.done(&asker);
            let next = state.queue.next();
            self.start_what_may_run(&mut state);
            let Some(next) = next.or_else(|| self.wait(state)) else { return };
            (asker, look_up) = next;
        }
    }

    fn wait(&self, mut state: MutexGuard<'_, State>) -> Option<(Asker, LookUp)> {
        state.idle += 1;
        loop {
            let waited = self.handed_over.wait_timeout(state, IDLE_TIMEOUT);
            let (woken, timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            if let Some(next) = state.handed_over.pop_front() {
                return Some(next);
            }
            if timed_out.timed_out() {
                // Nothing was handed over that is not taken: so this thread counts as idle still.
                state.idle -= 1;
                return None;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::worker::run_alone;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Closed when silent names may be answered.
    static SILENCE: Mutex<()> = Mutex::new(());

    /// A resolver of which names that begin with `silent` hear nothing while the test holds the silence.
    fn deaf_to_some(host: &str, port: u16) -> Answer {
        if host.starts_with("silent") {
            drop(lock(&SILENCE));
        }
        Ok(vec![SocketAddr::new([192, 0, 2, 1].into(), port)])
    }

    fn client(name: &str) -> Asker {
        Asker::Client(name.into())
    }

    #[test]
    fn silent_names_of_one_client_delay_neither_another_client_nor_the_way_to_the_gateway() {
        let silence = lock(&SILENCE);
        let asked = Resolver::new(deaf_to_some);
        run_alone(false, |_| async move {
            let hung: Vec<_> = (0..100)
                .map(|n| {
                    let (answer, answered) = async_channel::bounded(1);
                    let host = format!("silent-{n}.test");
                    asked.push(client("slow"), LookUp { host, port: 1, answer }).unwrap();
                    answered
                })
                .collect();
            for asker in [client("quick"), Asker::Gateway("gw".into()), client("quick")] {
                let addrs = asked.resolve(asker, "good.test", 7, PATIENCE).await.unwrap();
                assert_eq!(addrs, ["192.0.2.1:7".parse().unwrap()]);
            }
            let own = asked.resolve(client("slow"), "good.test", 7, Duration::from_millis(30)).await;
            assert!(matches!(own, Err(ResolveError::TimedOut { .. })), "it waits behind its own: {own:?}");
            assert!(hung.iter().all(async_channel::Receiver::is_empty));
            drop(silence);
            // In their order, as threads become free.
            for answered in hung {
                answered.recv().await.unwrap().unwrap();
            }
        })
        .unwrap();
    }

    #[test]
    fn a_literal_address_asks_nobody_and_a_name_that_is_none_says_so() {
        run_alone(false, |_| async {
            for (host, ip) in [("192.0.2.7", "192.0.2.7"), ("[2001:db8::1]", "2001:db8::1"), ("::1", "::1")] {
                let addrs = resolve(client("c"), host, 9, PATIENCE).await.unwrap();
                assert_eq!(addrs, [SocketAddr::new(ip.parse().unwrap(), 9)]);
            }
            let none = resolve(client("c"), "no-such-host.invalid", 9, PATIENCE).await.unwrap_err();
            assert!(none.to_string().contains("no-such-host.invalid"), "{none}");
            let here = resolve(Asker::Gateway("localhost".into()), "localhost", 9, PATIENCE).await.unwrap();
            assert!(here.iter().all(|addr| addr.ip().is_loopback()), "{here:?}");
        })
        .unwrap();
    }
}

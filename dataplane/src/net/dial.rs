//! Role: outgoing TCP connections: to one address, or to the quickest of several.
//! Invariants: never blocks the worker · SO_LINGER is {1, 0} from the socket's creation · a dropped future closes its
//! socket · of several attempts one wins, and the others' sockets are closed before it is handed on.
//! See: RFC 8305; `dial::race` for which address is tried when, `dial::family` for what is remembered.

mod family;
mod race;

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_lite::future;
use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, Type};

use self::{family::Family, race::Race};
use crate::{
    net::{plain::Plain, socket::Socket},
    run::{
        descriptors,
        timer::{sleep_until, timeout},
    },
};

/// For the TCP connection to one address of a gateway: what was lost while a cable was out is repeated by the kernel
/// after 1, 3, 7 and 15 s, by us after 3, so that we are back soon after the cable is.
pub(crate) const ADDRESS_TIMEOUT: Duration = Duration::from_secs(3);

/// Connects to one address.
///
/// # Errors
/// The system's; `TimedOut` after `patience`.
pub async fn connect(addr: SocketAddr, patience: Duration) -> io::Result<Plain> {
    timeout(patience, attempt(addr)).await.unwrap_or_else(|_| Err(no_answer()))
}

async fn attempt(addr: SocketAddr) -> io::Result<Plain> {
    let raw = RawSocket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    raw.set_linger(Some(Duration::ZERO))?;
    let pending = match raw.connect(&addr.into()) {
        Ok(()) => false,
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => true,
        Err(e) => return Err(e),
    };
    let socket = Socket::adopt(OwnedFd::from(raw))?;
    if pending {
        socket.writable().await?;
        if let Some(error) = SockRef::from(&socket).take_error()? {
            return Err(error);
        }
    }
    Ok(socket.into())
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer")
}

/// Connects to the quickest of a host's addresses: they are tried by turns of their families, the next one as soon as
/// one has failed or has not answered for 250 ms. `patience` is for all of them together. The family that won is
/// tried first for the next ten minutes. No address but those is ever dialled.
///
/// # Errors
/// Every address, and why it failed.
pub async fn connect_first(
    host: &str,
    addrs: &[SocketAddr],
    patience: Duration,
) -> Result<Plain, Unconnected> {
    let Some(first) = addrs.first() else { return Err(Unconnected { tried: Vec::new() }) };
    let began = Instant::now();
    let several = addrs.iter().any(|addr| Family::of(*addr) != Family::of(*first));
    let remembered = if several { family::remembered(host, first.port(), began) } else { None };
    let order = race::interleaved(addrs, remembered.unwrap_or(Family::of(*first)));
    let mut attempts = Attempts { race: Race::new(order, patience), under_way: Vec::new(), began };
    let won = attempts.run(attempt).await;
    if let Ok((addr, _)) = &won
        && several
    {
        family::remember(host, addr.port(), Family::of(*addr), Instant::now());
    }
    won.map(|(_, socket)| socket)
}

/// How long the addresses of a gateway may take in all.
pub(crate) fn patience_for(addrs: usize) -> Duration {
    race::patience_for(addrs, ADDRESS_TIMEOUT)
}

/// No address of a host could be connected to.
#[derive(Debug)]
pub struct Unconnected {
    tried: Vec<(SocketAddr, io::Error)>,
}

impl FromIterator<(SocketAddr, io::Error)> for Unconnected {
    fn from_iter<T: IntoIterator<Item = (SocketAddr, io::Error)>>(tried: T) -> Self {
        Self { tried: tried.into_iter().collect() }
    }
}

impl Unconnected {
    /// The error that says most: our own want of descriptors, then what the host itself said, then silence.
    pub fn telling(&self) -> Option<&io::Error> {
        self.tried.iter().map(|(_, error)| error).min_by_key(|error| vagueness(error))
    }

    /// The addresses that were tried.
    pub fn addrs(&self) -> impl Iterator<Item = SocketAddr> {
        self.tried.iter().map(|(addr, _)| *addr)
    }
}

fn vagueness(error: &io::Error) -> u8 {
    use io::ErrorKind as Kind;
    match error.kind() {
        _ if descriptors::ran_out(error) => 0,
        Kind::ConnectionRefused => 1,
        Kind::ConnectionReset | Kind::PermissionDenied => 2,
        Kind::HostUnreachable => 3,
        Kind::TimedOut => 4,
        // This machine has no such net: mostly IPv6 where there is none.
        Kind::NetworkUnreachable | Kind::AddrNotAvailable => 6,
        _ => 5,
    }
}

impl fmt::Display for Unconnected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tried[..] {
            [] => f.write_str("no address to connect to"),
            [(_, error)] => f.write_str(&in_words(error)),
            several => {
                for (n, (addr, error)) in several.iter().enumerate() {
                    let comma = if n == 0 { "" } else { ", " };
                    write!(f, "{comma}{addr}: {}", in_words(error))?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Unconnected {}

/// Why an address was not reached.
pub(crate) fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::TimedOut => "no answer".to_owned(),
        io::ErrorKind::HostUnreachable => "no route to the host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "this machine has no way to that network".to_owned(),
        _ => error.to_string(),
    }
}

/// The attempts of one race that are under way.
struct Attempts<F> {
    race: Race,
    under_way: Vec<(SocketAddr, Pin<Box<F>>)>,
    began: Instant,
}

impl<T, F: Future<Output = io::Result<T>>> Attempts<F> {
    /// Runs the race with these attempts to its end.
    async fn run(&mut self, attempt: impl Fn(SocketAddr) -> F) -> Result<(SocketAddr, T), Unconnected> {
        loop {
            let now = self.began.elapsed();
            for late in self.race.overdue(now) {
                self.under_way.retain(|(addr, _)| *addr != late);
                self.race.failed(late, no_answer(), now);
            }
            while let Some(addr) = self.race.start(now) {
                self.under_way.push((addr, Box::pin(attempt(addr))));
            }
            let Some(wakes_at) = self.race.wakes_at(now) else { return Err(self.lost()) };
            let due = async {
                sleep_until(self.began + wakes_at).await;
                None
            };
            let answered = poll_fn(|cx| poll_any(&mut self.under_way, cx));
            match future::or(async { Some(answered.await) }, due).await {
                Some((addr, Ok(won))) => {
                    self.under_way.clear();
                    return Ok((addr, won));
                }
                Some((addr, Err(e))) => self.race.failed(addr, e, self.began.elapsed()),
                None => {}
            }
        }
    }

    fn lost(&mut self) -> Unconnected {
        Unconnected { tried: self.race.take_failed() }
    }
}

/// The first attempt that is done is taken out.
fn poll_any<T, F: Future<Output = T>>(
    attempts: &mut Vec<(SocketAddr, Pin<Box<F>>)>,
    cx: &mut Context<'_>,
) -> Poll<(SocketAddr, T)> {
    for n in 0..attempts.len() {
        if let Poll::Ready(done) = attempts[n].1.as_mut().poll(cx) {
            return Poll::Ready((attempts.remove(n).0, done));
        }
    }
    Poll::Pending
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::run::worker::run_alone;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// An address, and after how many milliseconds it answers what; `None` is never.
    type Runner = (&'static str, Option<(u64, Result<(), i32>)>);

    /// Runs a race whose addresses answer after so many milliseconds, or never.
    fn race(answers: &'static [Runner], patience: Duration) -> (String, Duration) {
        run_alone(false, |_| async move {
            let addrs: Vec<_> = answers.iter().map(|(text, _)| addr(text)).collect();
            let began = Instant::now();
            let mut attempts = Attempts { race: Race::new(addrs, patience), under_way: Vec::new(), began };
            let attempt = |one: SocketAddr| async move {
                let answer = answers.iter().find(|(text, _)| addr(text) == one).unwrap().1;
                let Some((ms, answer)) = answer else { return future::pending().await };
                sleep_until(Instant::now() + Duration::from_millis(ms)).await;
                answer.map_err(io::Error::from_raw_os_error)
            };
            let won = attempts.run(attempt).await;
            assert!(won.is_err() || attempts.under_way.is_empty(), "a loser lives on");
            (won.map_or_else(|e| e.to_string(), |(addr, ())| addr.to_string()), began.elapsed())
        })
        .unwrap()
    }

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn a_silent_address_costs_250_ms_and_one_that_fails_nothing() {
        const SILENT: &[Runner] = &[("[fd00::1]:1", None), ("10.0.0.1:1", Some((1, Ok(()))))];
        let (won, took) = race(SILENT, LONG);
        assert_eq!(won, "10.0.0.1:1");
        assert!(took >= race::NEXT_AFTER && took < LONG / 4, "{took:?}");
        const FAILS: &[Runner] =
            &[("[fd00::1]:1", Some((1, Err(libc::ENETUNREACH)))), ("10.0.0.1:1", Some((1, Ok(()))))];
        let (won, took) = race(FAILS, LONG);
        assert_eq!(won, "10.0.0.1:1");
        // The machine may be busy: what counts is that nobody waited for the clock. See also `dial::race`.
        assert!(took < LONG / 4, "{took:?}");
    }

    #[test]
    fn the_slower_first_address_still_wins_over_a_second_that_never_answers() {
        const SLOW: &[Runner] = &[("10.0.0.1:1", Some((600, Ok(())))), ("10.0.0.2:1", None)];
        assert_eq!(race(SLOW, LONG).0, "10.0.0.1:1");
    }

    #[test]
    fn when_all_fail_each_is_named_with_its_reason() {
        const DEAD: &[Runner] = &[
            ("[fd00::1]:1", None),
            ("10.0.0.1:1", Some((1, Err(libc::ECONNREFUSED)))),
            ("10.0.0.2:1", Some((1, Err(libc::EHOSTUNREACH)))),
        ];
        let (said, took) = race(DEAD, Duration::from_millis(600));
        for words in ["[fd00::1]:1: no answer", "10.0.0.1:1: connection refused", "10.0.0.2:1: no route"] {
            assert!(said.contains(words), "{said}");
        }
        assert!(took >= Duration::from_millis(600), "{took:?}");
    }

    #[test]
    fn the_most_telling_error_is_the_one_that_the_host_itself_gave() {
        let unconnected = |codes: &[i32]| {
            let tried = codes.iter().map(|code| (addr("10.0.0.1:1"), io::Error::from_raw_os_error(*code)));
            tried.collect::<Unconnected>()
        };
        let telling = |codes: &[i32]| unconnected(codes).telling().and_then(io::Error::raw_os_error);
        assert_eq!(
            telling(&[libc::ETIMEDOUT, libc::ECONNREFUSED, libc::ENETUNREACH]),
            Some(libc::ECONNREFUSED)
        );
        assert_eq!(telling(&[libc::ENETUNREACH, libc::ETIMEDOUT]), Some(libc::ETIMEDOUT));
        assert_eq!(telling(&[libc::ECONNREFUSED, libc::EMFILE]), Some(libc::EMFILE));
        assert_eq!(telling(&[]), None);
        assert_eq!(unconnected(&[libc::ECONNREFUSED]).to_string(), "connection refused");
    }

    #[test]
    fn a_host_of_two_families_is_reached_by_the_one_that_listens_and_that_one_is_remembered() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let here =
            [SocketAddr::new("::1".parse().unwrap(), port), SocketAddr::new([127, 0, 0, 1].into(), port)];
        run_alone(false, |_| async {
            let socket = connect_first("two.test", &here, LONG).await.unwrap();
            assert_eq!(socket.peer_addr().unwrap(), here[1]);
            assert_eq!(family::remembered("two.test", port, Instant::now()), Some(Family::V4));
            let nobody = connect_first("two.test", &[], LONG).await.unwrap_err();
            assert_eq!(nobody.to_string(), "no address to connect to");
        })
        .unwrap();
    }
}

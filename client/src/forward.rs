//! Role: a local port whose connections become sessions, spread among the workers of a forward.
//! Invariants: never gives up · the first worker accepts, so connections have one order of arrival, and no other program
//! shares the port · a connection is accepted only when there is a descriptor for its way to the gateway, too · it stays
//! on the worker that carries it · the first carries what another has no room for, and a worker that fails ends all.
//! See: `carry`, which each connection then has; ARCHITECTURE.md "Threads".

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_lite::future;
use narrowlink_dataplane::{
    net::{
        listen::{self, Listener, accept_all_with, bind_alone},
        plain::{Plain, PlainParts},
    },
    run::{
        crew::{Crew, Inbox},
        descriptors::{self, Place},
        timer::sleep,
        worker::spawn,
    },
};
use narrowlink_proto::code::Code;

use crate::{
    carry::{Arrival, Carrier, Shared},
    exit::{Exit, Failure},
    renewal::Renewal,
};

/// Descriptors for a link that is made anew while connections have all others: its own, and those of a look-up; and one
/// for a token's file.
const KEPT_FREE: usize = 5;
/// The worker that accepts.
pub(crate) const FIRST: usize = 0;
/// How often a worker that stops looks whether its connections are gone, ..
const CUT_TICK: Duration = Duration::from_millis(5);
/// .. and how often at the most.
const CUT_TICKS_MAX: usize = 200;

/// One worker of a forward.
pub(crate) struct Forwarder {
    carrier: Rc<Carrier>,
    crew: Arc<Crew<Carrier>>,
}

/// Takes the local port.
///
/// # Errors
/// It is in use, or not ours to take.
pub(crate) fn bind(addr: SocketAddr) -> Result<TcpListener, Failure> {
    bind_alone(addr).map_err(|e| {
        let message = match e.kind() {
            io::ErrorKind::AddrInUse if listen::is_taken_by_both_families(addr) => {
                let port = addr.port();
                format!("{addr} is in use: [::]:{port} is listened on, and takes IPv4 connections as well; start the one at 0.0.0.0 first, or choose another with -l")
            }
            io::ErrorKind::AddrInUse => {
                format!("{addr} is in use by another program; choose another with -l")
            }
            _ => format!("{addr} can't be listened on: {e}; choose another with -l"),
        };
        Failure::new(Exit::Unreachable, message).of_kind(Code::Listen)
    })
}

impl Forwarder {
    pub(crate) fn new(shared: Arc<Shared>, crew: Arc<Crew<Carrier>>) -> Self {
        Self { carrier: Carrier::new(shared), crew }
    }

    /// The first worker, until the forward is stopped: asks by the newest token that `renewal` finds.
    pub(crate) async fn accept(&self, listener: Listener, renewal: Renewal) {
        descriptors::keep_free(KEPT_FREE);
        let Carrier { shared, warm } = &*self.carrier;
        // Streams that are kept ready take descriptors, too.
        let room = || descriptors::place().inspect_err(|_| self.shed());
        let accepting = accept_all_with(&listener, room, |fd, place| self.take(fd, place));
        let present = async {
            shared.presence.hold(&shared.opener.routes, &renewal).await;
        };
        let ready = warm.tend(&shared.presence);
        future::or(shared.stop.wait(), future::or(accepting, future::or(present, ready))).await;
        warm.clear();
    }

    /// Another worker, until the forward is stopped: carries what comes to its inbox.
    pub(crate) async fn help(&self, inbox: Inbox<Carrier>) {
        let Carrier { shared, warm } = &*self.carrier;
        let stopping = async {
            shared.stop.wait().await;
            // What waits in the inbox begins, hears of the end and is reset.
            self.crew.dismiss();
        };
        let helping = async {
            future::zip(stopping, inbox.run(self.carrier.clone())).await;
        };
        future::or(helping, warm.tend(&shared.presence)).await;
        warm.clear();
    }

    /// Waits, not for long, until what this worker carried is gone.
    pub(crate) async fn wind_up(self) {
        for _ in 0..CUT_TICKS_MAX {
            if Rc::strong_count(&self.carrier) == 1 {
                break;
            }
            sleep(CUT_TICK).await;
        }
    }

    /// A connection that was just accepted goes to the next worker in turn.
    fn take(&self, fd: OwnedFd, place: Place) -> io::Result<()> {
        let shared = &self.carrier.shared;
        let next = self.crew.next_worker();
        if next == FIRST || !self.crew.has_room(next) {
            let local = Plain::adopt(fd)?;
            let (carrier, arrival) =
                (self.carrier.clone(), Arrival::new(local.into(), shared.enter(), place));
            spawn(async move { carrier.carry(arrival).await });
        } else {
            let (parts, ticket) = (PlainParts::from(fd), shared.enter());
            self.crew.spawn_on(next, move |carrier| {
                let adopted = Plain::from_parts(parts).map(|local| Arrival::new(local.into(), ticket, place));
                async move {
                    match adopted {
                        Ok(arrival) => carrier.carry(arrival).await,
                        Err(e) => carrier.shared.say(&Failure::new(Exit::Internal, e)),
                    }
                }
            });
        }
        Ok(())
    }

    /// Descriptors are short: each worker keeps a stream less.
    fn shed(&self) {
        self.carrier.warm.shed();
        for other in FIRST + 1..self.crew.count() {
            self.crew.spawn_on(other, |carrier| async move { carrier.warm.shed() });
        }
    }
}

/// Takes a bound port into this thread's runtime.
///
/// # Errors
/// The system's.
pub(crate) fn adopt(listener: TcpListener) -> Result<Listener, Failure> {
    Listener::adopt(listener).map_err(|e| Failure::new(Exit::Internal, e))
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, net::TcpStream};

    use async_channel::Sender;
    use narrowlink_dataplane::{transport::wire::Wire, tunnel::conn::Conn};

    use super::*;
    use crate::{
        fixture::{accept, asked, exchange, opener, read_all, run, stream, tcp},
        plan::Plan,
        stop::Stop,
    };

    /// The worker that accepts, and what another one has.
    struct Fixture {
        first: Forwarder,
        other: Forwarder,
        inbox: Inbox<Carrier>,
        held: Sender<Infallible>,
    }

    impl Fixture {
        fn new() -> Self {
            let plan = Plan {
                agent: "home".to_owned(),
                target: tcp("db", 1),
                listen: "127.0.0.1:0".parse().unwrap(),
            };
            let (held, stop) = Stop::new();
            let shared = Shared::new(plan, opener(&["127.0.0.1:1"]), stop);
            let (crew, mut inboxes) = Crew::new(2);
            let [first, other] = [(); 2].map(|()| Forwarder::new(shared.clone(), crew.clone()));
            Self { first, other, inbox: inboxes.remove(1), held }
        }

        /// A program connects; its end.
        fn connect(&self) -> Wire {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let program = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let local = listener.accept().unwrap().0;
            self.first.take(local.into(), descriptors::place().unwrap()).unwrap();
            Plain::adopt(program.into()).unwrap().into()
        }
    }

    /// Keeps a stream ready on this worker; the gateway's end of it.
    fn keep(worker: &Forwarder) -> Conn {
        let Carrier { shared, warm } = &*worker.carrier;
        let (stream, gateway) = stream(&shared.opener, 0);
        warm.keep(stream);
        gateway
    }

    /// The next session on this stream is this program's.
    async fn serve(gateway: &Conn, program: &Wire) {
        let session = asked(gateway).await;
        accept(gateway, session).await;
        program.finish_write().await.unwrap();
        let (heard, answer) = future::zip(exchange(gateway, session, b"answer"), read_all(program)).await;
        assert_eq!((heard.unwrap().as_slice(), answer.unwrap().as_slice()), (&b""[..], &b"answer"[..]));
    }

    #[test]
    fn connections_go_round_among_the_workers() {
        run(async || {
            let at = Fixture::new();
            spawn(at.inbox.clone().run(at.other.carrier.clone()));
            for worker in [&at.first, &at.other, &at.first, &at.other] {
                let gateway = keep(worker);
                serve(&gateway, &at.connect()).await;
            }
        });
    }

    #[test]
    fn a_worker_without_room_is_passed_over() {
        run(async || {
            let at = Fixture::new();
            while at.first.crew.has_room(1) {
                at.first.crew.spawn_on(1, |_| async {});
            }
            for _ in 0..3 {
                let gateway = keep(&at.first);
                serve(&gateway, &at.connect()).await;
            }
        });
    }

    #[test]
    fn what_waits_for_a_worker_when_the_forward_stops_is_reset_and_asks_for_no_session() {
        run(async || {
            let at = Fixture::new();
            let gateway = keep(&at.other);
            let _here = at.connect();
            let program = at.connect();
            drop(at.held);
            at.other.help(at.inbox).await;
            at.other.wind_up().await;
            let heard = read_all(&program).await;
            assert_eq!(heard.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
            assert_eq!(read_all(gateway.wire()).await.unwrap_or_default(), b"", "a session was asked for");
        });
    }
}

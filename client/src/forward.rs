//! Role: a local port whose connections become sessions.
//! Invariants: never gives up · a connection is accepted only when there is a descriptor for its way to the gateway, too.
//! See: `carry`, which each connection then has.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_lite::future;
use narrowlink_dataplane::{
    net::{
        listen::{self, Listener, accept_all_with, bind_alone},
        plain::Plain,
    },
    run::{descriptors, timer::sleep, worker::spawn},
};

use crate::{
    carry::{Arrival, Carrier, Shared},
    exit::{Exit, Failure},
    renewal::Renewal,
};

/// Descriptors for a link that is made anew while connections have all others: its own, and those of a look-up; and one
/// for a token's file.
const KEPT_FREE: usize = 5;
/// How often a forward that stops looks whether its connections are gone, ..
const CUT_TICK: Duration = Duration::from_millis(5);
/// .. and how often at the most.
const CUT_TICKS_MAX: usize = 200;

/// A forward at work.
pub(crate) struct Forwarder {
    carrier: Rc<Carrier>,
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
        Failure::new(Exit::Unreachable, message)
    })
}

impl Forwarder {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { carrier: Carrier::new(shared) }
    }

    /// Forwards until it is stopped: asks by the newest token that `renewal` finds.
    pub(crate) async fn accept(&self, listener: Listener, renewal: Renewal) {
        descriptors::keep_free(KEPT_FREE);
        let Carrier { shared, warm } = &*self.carrier;
        // Streams that are kept ready take descriptors, too.
        let room = || descriptors::place().inspect_err(|_| warm.shed());
        let accepting = accept_all_with(&listener, room, |fd, place| {
            let local = Plain::adopt(fd)?;
            let (carrier, arrival) =
                (self.carrier.clone(), Arrival::new(local.into(), shared.enter(), place));
            spawn(async move { carrier.carry(arrival).await });
            Ok(())
        });
        let present = async {
            shared.presence.hold(&shared.opener.routes, &renewal).await;
        };
        let ready = warm.tend(&shared.presence);
        future::or(shared.stop.wait(), future::or(accepting, future::or(present, ready))).await;
        warm.clear();
    }

    /// Waits, not for long, until what was carried is gone.
    pub(crate) async fn wind_up(self) {
        for _ in 0..CUT_TICKS_MAX {
            if Rc::strong_count(&self.carrier) == 1 {
                break;
            }
            sleep(CUT_TICK).await;
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

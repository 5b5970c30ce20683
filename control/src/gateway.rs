//! Role: wires listeners, workers, warden and registry into a running gateway. Decides nothing.
//! Invariants: every address is bound before the first worker runs · a runtime is never dropped: a gateway
//! is stopped, and the process ends by exiting.
//! See: ARCHITECTURE.md "Threads".

use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use narrowlink_dataplane::{
    directory::Directory,
    handover::{Local, Note, Shared},
    listen::{self, Listener},
    serve::Service,
    worker::{self, Driver, Options, Workers},
};

use crate::{
    auth::{Rules, Warden},
    clerk::{self, Counter},
    config::Config,
    registry::Registry,
};

/// How long links may take to say goodbye before accepting stops, which is to happen within 50 ms.
const GOODBYE_PATIENCE: Duration = Duration::from_millis(30);
/// How often a stop looks whether the workers have ended.
const TICK: Duration = Duration::from_millis(5);

/// A running gateway. Dropping it leaves it running.
pub struct Gateway {
    addresses: Vec<SocketAddr>,
    workers: Workers,
    control: JoinHandle<()>,
    ended: Arc<AtomicUsize>,
    shared: Arc<Shared>,
    counter: Counter,
}

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A config made by hand, with nothing to sign or to serve.
    #[error("{0}")]
    Incomplete(&'static str),
    /// An address can't be listened on.
    #[error("can't listen on {addr} (services[{service}]): {source}")]
    Listen {
        /// Which service.
        service: usize,
        /// Where.
        addr: SocketAddr,
        /// Why: in use, not ours, not permitted.
        source: io::Error,
    },
    /// The control thread did not start.
    #[error("the control thread can't be started: {0}")]
    Control(io::Error),
    /// The workers did not start.
    #[error(transparent)]
    Workers(#[from] worker::StartError),
}

/// What one worker listens on, until it has started.
type Seats = Vec<Mutex<Vec<(Service, TcpListener)>>>;

/// Starts a gateway; when this returns, every address is bound and connections are served.
///
/// # Errors
/// See [`StartError`].
pub fn start(config: Config) -> Result<Gateway, StartError> {
    let Config { secrets, services, limits, .. } = config;
    if services.is_empty() {
        return Err(StartError::Incomplete("no service to serve"));
    }
    let count = config.workers.unwrap_or_else(cores).max(1);
    let mut addresses = Vec::with_capacity(services.len());
    let mut seats: Seats = (0..count).map(|_| Mutex::default()).collect();
    for (index, service) in services.iter().enumerate() {
        let listen = |source| StartError::Listen { service: index, addr: service.listen_addr, source };
        let (bound, sockets) = bind(service.listen_addr, count).map_err(listen)?;
        addresses.push(bound);
        for (seat, socket) in seats.iter_mut().zip(sockets) {
            let service = Service { index, tls: service.tls.is_some() };
            seat.get_mut().unwrap_or_else(PoisonError::into_inner).push((service, socket));
        }
    }

    let (counter, inbox) = clerk::counter();
    let directory = Arc::new(Directory::default());
    let rules =
        Rules::new(&secrets, services).ok_or(StartError::Incomplete("no secret to check tokens with"))?;
    let warden = Arc::new(Warden::new(rules, directory.clone(), counter.clone()));
    let shared = Arc::new(Shared::new(warden, directory, limits.clone(), count));
    let ended = Arc::new(AtomicUsize::new(0));
    let options = Options { count, pin: config.pin, require_io_uring: config.require_io_uring };
    let workers = Workers::start("worker", &options, &worker_main(seats, shared.clone(), ended.clone()))?;
    let control = inbox.serve(Registry::new(count, limits), shared.clone()).map_err(|e| {
        shared.tell_all(|| Note::Stop);
        StartError::Control(e)
    })?;
    Ok(Gateway { addresses, workers, control, ended, shared, counter })
}

/// Workers when the config names no number: one per core.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Listening sockets, one per worker.
fn bind(addr: SocketAddr, workers: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    if addr.port() != 0 {
        // The workers' sockets share their address, and would share it with a second gateway of the same
        // user as well, each getting some of the connections. A socket that does not share finds out.
        drop(listen::bind_alone(addr)?);
    }
    listen::bind(addr, workers)
}

fn worker_main(seats: Seats, shared: Arc<Shared>, ended: Arc<AtomicUsize>) -> worker::Main {
    Arc::new(move |index| -> Pin<Box<dyn Future<Output = ()>>> {
        let listeners = match seats.get(index) {
            Some(seat) => std::mem::take(&mut *seat.lock().unwrap_or_else(PoisonError::into_inner)),
            None => Vec::new(),
        };
        let (shared, ended) = (shared.clone(), CountEnd(ended.clone()));
        Box::pin(async move {
            let _ended = ended;
            let local = Local::new(index, shared);
            for (service, socket) in listeners {
                match Listener::adopt(socket) {
                    Ok(listener) => worker::spawn(listen::run(local.clone(), Rc::new(service), listener)),
                    // Its socket is closed: the other workers get its share of the connections.
                    Err(e) => {
                        tracing::error!("worker {index} can't listen for services[{}]: {e}", service.index);
                    }
                }
            }
            local.attend_mailbox().await;
        })
    })
}

/// Counts a worker as ended, however it ends.
struct CountEnd(Arc<AtomicUsize>);

impl Drop for CountEnd {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Gateway {
    /// Where it listens, in the order of the config's services.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// How many workers it has.
    pub fn workers(&self) -> usize {
        self.shared.workers()
    }

    /// What its workers wait for events with.
    pub fn driver(&self) -> Driver {
        self.workers.driver
    }

    /// How long the slowest worker has not shown that it makes progress; each does once a second.
    pub fn longest_silence(&self) -> Duration {
        self.workers.longest_silence()
    }

    /// Whether a worker or the control thread has ended, which before a stop is our own fault.
    pub fn has_lost_a_thread(&self) -> bool {
        self.ended.load(Ordering::Relaxed) > 0 || self.control.is_finished()
    }

    /// Ends what is idle: links are told and end, nothing new is accepted. Sessions go on.
    pub fn begin_stop(&self) {
        self.counter.drain(GOODBYE_PATIENCE);
        self.shared.tell_all(|| Note::Stop);
    }

    /// Whether every session has ended after [`begin_stop`](Self::begin_stop).
    pub fn is_stopped(&self) -> bool {
        self.workers.finished()
    }

    /// Stops it for good; true when every session has ended within `patience`. What goes on after that
    /// ends with the process.
    pub fn stop(self, patience: Duration) -> bool {
        self.begin_stop();
        let deadline = Instant::now() + patience;
        while !self.is_stopped() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(TICK);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use narrowlink_proto::{limits::Limits, target::Destination, token::Secret};
    use std::{
        io::{Read as _, Write as _},
        net::TcpStream,
    };

    fn config(listen_addr: SocketAddr) -> Config {
        Config {
            name: "test".to_owned(),
            secrets: vec![Secret::from_bytes(vec![7; 32]).unwrap()],
            services: vec![config::Service {
                domains: vec![Destination::Ip([127, 0, 0, 1].into())],
                listen_addr,
                tls: None,
            }],
            workers: Some(2),
            pin: false,
            require_io_uring: false,
            limits: Limits::default(),
        }
    }

    fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    fn ask(addr: SocketAddr) -> io::Result<String> {
        let mut stream = TcpStream::connect(addr)?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    #[test]
    fn a_gateway_serves_until_it_is_stopped() {
        let gateway = start(config(any())).unwrap();
        let addr = gateway.addresses()[0];
        assert_eq!(gateway.workers(), 2);
        for _ in 0..8 {
            assert!(ask(addr).unwrap().starts_with("HTTP/1.1 404"));
        }
        assert!(!gateway.has_lost_a_thread());
        assert!(gateway.longest_silence() < Duration::from_secs(5));
        assert!(gateway.stop(Duration::from_secs(10)));
        assert!(TcpStream::connect(addr).is_err());
    }

    #[test]
    fn an_address_that_another_gateway_uses_is_refused() {
        let first = start(config(any())).unwrap();
        let Err(error) = start(config(first.addresses()[0])) else { panic!("both listen") };
        assert!(
            matches!(&error, StartError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
        );
        assert!(error.to_string().contains("(services[0])"), "{error}");
        assert!(first.stop(Duration::from_secs(10)));
    }

    #[test]
    fn an_incomplete_config_is_refused() {
        let no_service = Config { services: Vec::new(), ..config(any()) };
        let no_secret = Config { secrets: Vec::new(), ..config(any()) };
        for incomplete in [no_service, no_secret] {
            assert!(matches!(start(incomplete), Err(StartError::Incomplete(_))));
        }
    }
}

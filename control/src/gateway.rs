//! Role: wires listeners, workers, warden and registry into a running gateway, and stops it. Decides nothing.
//! Invariants: every address is bound before the first worker runs · a runtime is never dropped: a gateway
//! is stopped, and the process ends by exiting.
//! See: ARCHITECTURE.md "Threads".

mod holder;
mod open;
mod prepare;
mod reload;

use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::BorrowedFd,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use narrowlink_dataplane::{
    gateway::{
        attend::attend, directory::Directory, local::Local, mailbox::Note, service::Service, shared::Shared,
    },
    net::inherited::Inherited,
    run::{
        lock::lock,
        notify::Notifier,
        worker::{self, Driver, Options, Workers},
    },
};

use narrowlink_proto::unread::hint;

pub(crate) use self::open::{claim, socket_name};
use self::{
    open::{Open, Seated},
    prepare::Purpose,
    reload::Fixed,
};
pub use self::{prepare::check, reload::Changes};
use crate::{
    accounts::Accounts,
    audit::Audit,
    auth::{Rules, Warden},
    certificate::{Watch, served::Served},
    clerk::{self, Counter},
    clock::{self, Clock},
    config::{Config, Places},
    hosts::Own,
    registry::Registry,
};

/// How long links may take to say goodbye before accepting stops, which is to happen within 50 ms.
const GOODBYE_PATIENCE: Duration = Duration::from_millis(30);
/// How long a gateway that ends waits for its disk: for the last lines of the audit log and what was counted.
const DISK_PATIENCE: Duration = Duration::from_secs(2);
/// Sessions that were cut are given so long to tell both sides.
const CUT_PATIENCE: Duration = Duration::from_secs(1);
/// How long agents may take to come over from the gateway in whose place this one goes on. An agent that hears of its end
/// comes at once; one whose link broke, when it has noticed.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(3);
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
    warden: Arc<Warden>,
    accounts: Arc<Accounts>,
    audit: Audit,
    open: Mutex<Open>,
    certificates: Mutex<Watch>,
    fixed: Fixed,
    /// Nothing new is accepted any more.
    stopping: AtomicBool,
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
    /// The state directory is not there and can't be made.
    #[error("state_dir: can't be written: {source}{}", hint(source))]
    StateDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The audit log can't be written.
    #[error("audit: can't be written: {source}{}", if source.kind() == io::ErrorKind::NotFound { "; its directory must be there" } else { hint(source) })]
    Audit {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The control thread did not start.
    #[error("the control thread can't be started: {0}")]
    Control(io::Error),
    /// The workers did not start.
    #[error(transparent)]
    Workers(#[from] worker::StartError),
}

impl StartError {
    /// What it says, and in front of it where in the config stands what it is about.
    pub fn located(&self, places: &Places) -> String {
        let at = match self {
            Self::Listen { service, .. } => places.listen_addr(*service),
            Self::Audit { .. } => places.audit(),
            Self::StateDir { .. } => places.state_dir(),
            // About nothing that stands in a file.
            Self::Incomplete(_) | Self::Control(_) | Self::Workers(_) => "",
        };
        format!("{at}{self}")
    }
}

/// What one worker listens on, until it has started.
type Seats = Vec<Mutex<Vec<(Service, TcpListener)>>>;

/// Starts a gateway; when this returns, every address is bound and connections are served.
///
/// # Errors
/// See [`StartError`].
pub fn start(config: Config) -> Result<Gateway, StartError> {
    start_with(config, &mut Inherited::default())
}

/// As [`start`], on sockets that others have opened, where there are such for its addresses. They are taken out.
///
/// # Errors
/// As there.
pub fn start_with(config: Config, inherited: &mut Inherited) -> Result<Gateway, StartError> {
    start_all(config, clock::since_1970, inherited)
}

/// As [`start`], by another clock: tokens hold as long as it says.
///
/// # Errors
/// As there.
pub fn start_by(config: Config, clock: Clock) -> Result<Gateway, StartError> {
    start_all(config, clock, &mut Inherited::default())
}

fn start_all(config: Config, clock: Clock, inherited: &mut Inherited) -> Result<Gateway, StartError> {
    prepare::look(&config, Purpose::Start)?;
    let count = config.workers.unwrap_or_else(cores).max(1);
    let goes_on = !inherited.left().is_empty();
    let mut addresses = Vec::with_capacity(config.services.len());
    let mut open = Open::default();
    let mut seats: Seats = (0..count).map(|_| Mutex::default()).collect();
    for index in 0..config.services.len() {
        let (seated, shares) = open.seat(index, &config, count, (inherited, true))?;
        addresses.push(seated.bound);
        for (seat, share) in seats.iter_mut().zip(shares) {
            let own = share.into_iter().map(|socket| (seated.for_workers(), socket));
            seat.get_mut().unwrap_or_else(PoisonError::into_inner).extend(own);
        }
        open.services.push(seated);
    }

    let audit = match &config.audit {
        Some(path) => Audit::open(path).map_err(|source| StartError::Audit { path: path.clone(), source })?,
        None => Audit::none(),
    };
    let (counter, inbox) = clerk::counter();
    let directory = Arc::new(Directory::default());
    let (rules, served) = (rules(&config)?, served(&open.services));
    let limits = config.limits.clone();
    let accounts = Arc::new(Accounts::open(config.allowances(), config.state_dir.clone(), clock().as_secs()));
    let warden = Arc::new(
        Warden::new(rules, served, directory.clone(), counter.clone(), accounts.clone(), audit.clone())
            .by(clock),
    );
    let shared = Arc::new(Shared::new(warden.clone(), directory, limits.clone(), count));
    if goes_on {
        shared.await_agents(ARRIVAL_TIMEOUT);
    }
    let ended = Arc::new(AtomicUsize::new(0));
    let options = Options { count, pin: config.pin, require_io_uring: config.require_io_uring };
    let workers = Workers::start("worker", &options, &worker_main(seats, shared.clone(), ended.clone()))?;
    let control =
        inbox.serve(Registry::new(count, limits), shared.clone(), accounts.clone(), clock).map_err(|e| {
            shared.mailboxes.tell_all(|| Note::Stop);
            StartError::Control(e)
        })?;
    counter.set_own(own(&open.services));
    let (open, fixed) = (Mutex::new(open), Fixed::of(&config));
    let certificates = Mutex::default();
    Ok(Gateway {
        addresses,
        workers,
        control,
        ended,
        shared,
        counter,
        warden,
        accounts,
        audit,
        open,
        certificates,
        fixed,
        stopping: AtomicBool::new(false),
    })
}

/// Whether there is anything to check tokens with.
fn rules_of(config: &Config) -> Result<(), StartError> {
    rules(config).map(|_| ())
}

fn rules(config: &Config) -> Result<Rules, StartError> {
    Rules::new(&config.secrets, config.revocations.clone())
        .ok_or(StartError::Incomplete("no secret to check tokens with"))
}

/// What is shown at these services.
fn served(services: &[Seated]) -> Served {
    Served::of(services.iter().map(|seated| (seated.number, &seated.service)))
}

/// What nobody can publish because these services have it.
fn own(services: &[Seated]) -> Own {
    // Only where TLS ends is a name ours.
    let with_tls = services.iter().filter(|seated| seated.service.tls.is_some());
    let names = with_tls.flat_map(|seated| &seated.service.domains);
    Own::new(names, services.iter().map(|seated| seated.bound.port()).collect())
}

/// Workers when the config names no number: one per core.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn worker_main(seats: Seats, shared: Arc<Shared>, ended: Arc<AtomicUsize>) -> worker::Main {
    Arc::new(move |index| -> Pin<Box<dyn Future<Output = ()>>> {
        let listeners = match seats.get(index) {
            Some(seat) => std::mem::take(&mut *lock(seat)),
            None => Vec::new(),
        };
        let (shared, ended) = (shared.clone(), CountEnd(ended.clone()));
        Box::pin(async move {
            let _ended = ended;
            attend(Local::new(index, shared), listeners).await;
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

    /// How long sessions may take to end after it was told to stop.
    pub fn drain_timeout(&self) -> Duration {
        self.shared.limits().drain_timeout
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
    pub(crate) fn has_lost_a_thread(&self) -> bool {
        self.ended.load(Ordering::Relaxed) > 0 || self.control.is_finished()
    }

    /// Another process goes on with its sockets, now or soon: what waits in them is left to it.
    pub fn set_succeeded(&self) {
        self.shared.set_succeeded();
    }

    /// Ends what is idle: links are told and end, nothing new is accepted. Sessions go on.
    pub(crate) fn begin_stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.counter.drain(GOODBYE_PATIENCE);
        self.shared.mailboxes.tell_all(|| Note::Stop);
        lock(&self.open).let_go();
    }

    /// Where it listens now, in words.
    pub fn describe(&self) -> String {
        let open = lock(&self.open);
        let services =
            open.services.iter().map(|seated| format!("{}://{}", seated.service.kind(), seated.bound));
        format!("listening on {}", services.collect::<Vec<_>>().join(", "))
    }

    /// Has the service manager keep its sockets for the gateway after it.
    pub fn store_sockets(&self, notifier: &Notifier) {
        self.with_sockets(|sockets| sockets.iter().for_each(|(name, fds)| notifier.store(name, fds)));
    }

    /// Does something with every socket that is listened on; each has the name under which a service manager keeps it.
    pub fn with_sockets<T>(&self, each: impl FnOnce(Vec<(String, Vec<BorrowedFd<'_>>)>) -> T) -> T {
        each(lock(&self.open).sockets())
    }

    /// Ends the sessions that are left: each side is told, and their ends are noted.
    pub(crate) fn cut(&self) {
        // A worker that hangs, with a full mailbox, keeps nobody waiting here.
        self.shared.mailboxes.tell_all_now(|| Note::Cut);
        let deadline = Instant::now() + CUT_PATIENCE;
        while !self.is_stopped() && Instant::now() < deadline {
            std::thread::sleep(TICK);
        }
    }

    /// Says what is wrong with certificates, at first and then once a day; to be asked every now and then, at `now`
    /// (seconds since 1970).
    pub(crate) fn watch_certificates(&self, now: u64) {
        let open = lock(&self.open);
        let held = open.services.iter().filter_map(|seated| seated.held.as_ref());
        let said = lock(&self.certificates).handle_tick(now, held);
        for words in said.errors {
            tracing::error!("{words}");
        }
        for words in said.warnings {
            tracing::warn!("{words}");
        }
        for words in said.notes {
            tracing::info!("{words}");
        }
    }

    /// Writes what was counted and noted, where there is a place for it; to be called before the process ends. A disk
    /// that stalls keeps it for so long and no longer.
    pub fn save(&self) {
        let (saved, done) = mpsc::channel::<()>();
        let accounts = self.accounts.clone();
        let saving = std::thread::Builder::new().name("save".to_owned()).spawn(move || {
            accounts.save();
            drop(saved);
        });
        if saving.is_err() {
            self.accounts.save();
        }
        let deadline = Instant::now() + DISK_PATIENCE;
        self.audit.flush(DISK_PATIENCE);
        // Nothing is ever sent: the end of the channel is the news.
        let _ = done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }

    /// Whether every session has ended after [`begin_stop`](Self::begin_stop).
    pub(crate) fn is_stopped(&self) -> bool {
        self.workers.finished()
    }

    /// Stops it for good; true when every session has ended within `patience`. Those that have not are cut.
    pub fn stop(self, patience: Duration) -> bool {
        self.begin_stop();
        let deadline = Instant::now() + patience;
        while !self.is_stopped() {
            if Instant::now() >= deadline {
                self.cut();
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
    use narrowlink_proto::{target::Destination, token::Secret};
    use std::{
        io::{Read as _, Write as _},
        net::TcpStream,
    };

    pub(super) fn config(listen_addr: SocketAddr) -> Config {
        let secrets = vec![Secret::from_bytes(vec![7; 32]).unwrap()];
        Config { workers: Some(2), pin: false, ..Config::new("test", secrets, vec![service(listen_addr)]) }
    }

    pub(super) fn service(listen_addr: SocketAddr) -> config::Service {
        config::Service { domains: vec![Destination::Ip([127, 0, 0, 1].into())], listen_addr, tls: None }
    }

    pub(super) fn any() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    pub(super) fn ask(addr: SocketAddr) -> io::Result<String> {
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

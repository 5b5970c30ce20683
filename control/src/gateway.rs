//! Role: wires listeners, workers, warden and registry into a running gateway. Decides nothing.
//! Invariants: every address is bound before the first worker runs · a runtime is never dropped: a gateway
//! is stopped, and the process ends by exiting.
//! See: ARCHITECTURE.md "Threads".

use std::{
    fs,
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    pin::Pin,
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
    listen,
    serve::Service,
    worker::{self, Driver, Options, Workers},
};

use crate::{
    accounts::Accounts,
    audit::Audit,
    auth::{Rules, Warden},
    clerk::{self, Counter},
    clock,
    config::{self, Config},
    registry::Registry,
};

/// How long links may take to say goodbye before accepting stops, which is to happen within 50 ms.
const GOODBYE_PATIENCE: Duration = Duration::from_millis(30);
/// How long the last lines of the audit log may take to be written.
const AUDIT_PATIENCE: Duration = Duration::from_secs(2);
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
}

/// What a gateway listens for, and what can't change while it runs.
struct Open {
    services: Vec<Seated>,
    next_number: usize,
    name: String,
    workers: Option<usize>,
    pin: bool,
    audit: Option<PathBuf>,
    state_dir: Option<PathBuf>,
}

/// A service and its number, which it keeps as long as its address is listened on.
struct Seated {
    number: usize,
    service: config::Service,
    bound: SocketAddr,
}

/// What a reload has changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// Addresses that are listened on now.
    pub opened: Vec<SocketAddr>,
    /// Addresses that are not any more.
    pub closed: Vec<SocketAddr>,
    /// Keys that differ, and need a restart.
    pub after_restart: Vec<&'static str>,
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
    #[error("state_dir: {}: {source}", path.display())]
    StateDir {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The audit log can't be written.
    #[error("audit: {}: {source}", path.display())]
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

/// What one worker listens on, until it has started.
type Seats = Vec<Mutex<Vec<(Service, TcpListener)>>>;

/// Starts a gateway; when this returns, every address is bound and connections are served.
///
/// # Errors
/// See [`StartError`].
pub fn start(config: Config) -> Result<Gateway, StartError> {
    if config.services.is_empty() {
        return Err(StartError::Incomplete("no service to serve"));
    }
    let count = config.workers.unwrap_or_else(cores).max(1);
    let mut addresses = Vec::with_capacity(config.services.len());
    let mut open = Open {
        services: Vec::new(),
        next_number: 0,
        name: config.name.clone(),
        workers: config.workers,
        pin: config.pin,
        audit: config.audit.clone(),
        state_dir: config.state_dir.clone(),
    };
    let mut seats: Seats = (0..count).map(|_| Mutex::default()).collect();
    for (index, service) in config.services.iter().enumerate() {
        let (seated, sockets) = open.seat(index, service, count, true)?;
        addresses.push(seated.bound);
        for (seat, socket) in seats.iter_mut().zip(sockets) {
            seat.get_mut().unwrap_or_else(PoisonError::into_inner).push((seated.for_workers(), socket));
        }
        open.services.push(seated);
    }

    if let Some(path) = &config.state_dir {
        // For nobody else to look into.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| StartError::StateDir { path: path.clone(), source })?;
    }
    let audit = match &config.audit {
        Some(path) => Audit::open(path).map_err(|source| StartError::Audit { path: path.clone(), source })?,
        None => Audit::none(),
    };
    let (counter, inbox) = clerk::counter();
    let directory = Arc::new(Directory::default());
    let rules = rules(&config, &open.services)?;
    let limits = config.limits.clone();
    let accounts =
        Arc::new(Accounts::open(config.allowances(), config.state_dir.clone(), clock::seconds_since_1970()));
    let warden =
        Arc::new(Warden::new(rules, directory.clone(), counter.clone(), accounts.clone(), audit.clone()));
    let shared = Arc::new(Shared::new(warden.clone(), directory, limits.clone(), count));
    let ended = Arc::new(AtomicUsize::new(0));
    let options = Options { count, pin: config.pin, require_io_uring: config.require_io_uring };
    let workers = Workers::start("worker", &options, &worker_main(seats, shared.clone(), ended.clone()))?;
    let control =
        inbox.serve(Registry::new(count, limits), shared.clone(), accounts.clone()).map_err(|e| {
            shared.tell_all(|| Note::Stop);
            StartError::Control(e)
        })?;
    let open = Mutex::new(open);
    Ok(Gateway { addresses, workers, control, ended, shared, counter, warden, accounts, audit, open })
}

fn rules(config: &Config, services: &[Seated]) -> Result<Rules, StartError> {
    let services = services.iter().map(|seated| (seated.number, seated.service.clone())).collect();
    Rules::new(&config.secrets, services, config.revocations.clone())
        .ok_or(StartError::Incomplete("no secret to check tokens with"))
}

impl Open {
    /// Binds a service's address, for every worker; `index` is its place in the config. `alone`: nobody else
    /// may listen there, be it this process.
    fn seat(
        &mut self,
        index: usize,
        service: &config::Service,
        workers: usize,
        alone: bool,
    ) -> Result<(Seated, Vec<TcpListener>), StartError> {
        let addr = service.listen_addr;
        let listen = |source| StartError::Listen { service: index, addr, source };
        let (bound, sockets) = bind(addr, workers, alone).map_err(listen)?;
        let number = self.next_number;
        self.next_number += 1;
        Ok((Seated { number, service: service.clone(), bound }, sockets))
    }
}

impl Seated {
    fn for_workers(&self) -> Service {
        Service { index: self.number, tls: self.service.tls.is_some() }
    }

    /// Whether it can go on as `service` without listening anew.
    fn can_become(&self, service: &config::Service) -> bool {
        // An address whose port the system chose may be written down by now.
        let same = self.service.listen_addr == service.listen_addr || self.bound == service.listen_addr;
        same && self.service.kind() == service.kind()
    }
}

/// Workers when the config names no number: one per core.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Listening sockets, one per worker.
fn bind(addr: SocketAddr, workers: usize, alone: bool) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    if alone && addr.port() != 0 {
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
                local.listen(service, socket);
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

    /// Makes it what `config` says, without touching what runs: sockets whose address stays are kept, and
    /// whoever may not be here any more is dismissed. If anything can't be had, nothing is changed.
    ///
    /// # Errors
    /// A new address can't be listened on, or the config is incomplete.
    pub fn reload(&self, config: &Config) -> Result<Changes, StartError> {
        let mut guard = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = &mut *guard;
        let mut changes = Changes::default();
        if config.services.is_empty() {
            return Err(StartError::Incomplete("no service to serve"));
        }
        // First everything that can fail.
        let mut kept: Vec<_> = open.services.iter().map(|_| false).collect();
        let mut services = Vec::with_capacity(config.services.len());
        let mut new_sockets = Vec::new();
        for (index, service) in config.services.iter().enumerate() {
            let same = |(at, seated): &(usize, &Seated)| !kept[*at] && seated.can_become(service);
            if let Some((at, seated)) = open.services.iter().enumerate().find(same) {
                services.push(Seated {
                    number: seated.number,
                    service: service.clone(),
                    bound: seated.bound,
                });
                kept[at] = true;
            } else {
                let ours = open.services.iter().any(|seated| seated.bound == service.listen_addr);
                let (seated, sockets) = open.seat(index, service, self.workers(), !ours)?;
                changes.opened.push(seated.bound);
                new_sockets.push((seated.for_workers(), sockets));
                services.push(seated);
            }
        }
        let rules = rules(config, &services)?;
        // From here on nothing fails.
        self.warden.replace(rules);
        self.shared.set_limits(config.limits.clone());
        self.counter.set_limits(config.limits.clone());
        self.accounts.set(config.allowances());
        self.audit.reopen();
        self.audit.note_reload(config.revocations.len());
        for (service, sockets) in new_sockets {
            self.shared.tell_each(sockets.into_iter().map(|socket| Note::Listen(service.clone(), socket)));
        }
        let closed = open.services.iter().zip(&kept).filter(|(_, kept)| !**kept);
        for (seated, _) in closed {
            changes.closed.push(seated.bound);
            self.shared.tell_all(|| Note::Unlisten(seated.number));
        }
        self.shared.tell_all(|| Note::Judge);
        let differ = [
            ("name", open.name != config.name),
            ("workers", open.workers != config.workers),
            ("pin", open.pin != config.pin),
            ("audit", open.audit != config.audit),
            ("state_dir", open.state_dir != config.state_dir),
        ];
        changes.after_restart =
            differ.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect();
        open.services = services;
        Ok(changes)
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
    pub fn has_lost_a_thread(&self) -> bool {
        self.ended.load(Ordering::Relaxed) > 0 || self.control.is_finished()
    }

    /// Ends what is idle: links are told and end, nothing new is accepted. Sessions go on.
    pub fn begin_stop(&self) {
        self.counter.drain(GOODBYE_PATIENCE);
        self.shared.tell_all(|| Note::Stop);
    }

    /// Writes what was counted and noted, where there is a place for it; to be called before the process ends.
    pub fn save(&self) {
        self.accounts.save();
        self.audit.flush(AUDIT_PATIENCE);
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
    use narrowlink_proto::{target::Destination, token::Secret};
    use std::{
        io::{Read as _, Write as _},
        net::TcpStream,
    };

    fn config(listen_addr: SocketAddr) -> Config {
        let secrets = vec![Secret::from_bytes(vec![7; 32]).unwrap()];
        Config { workers: Some(2), pin: false, ..Config::new("test", secrets, vec![service(listen_addr)]) }
    }

    fn service(listen_addr: SocketAddr) -> config::Service {
        config::Service { domains: vec![Destination::Ip([127, 0, 0, 1].into())], listen_addr, tls: None }
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
    fn a_reload_opens_and_closes_addresses_and_leaves_the_others_alone() {
        let config = config(any());
        let gateway = start(config.clone()).unwrap();
        let stays = gateway.addresses()[0];
        let other = |ip: [u8; 4]| SocketAddr::from((ip, 0));
        let two = Config { services: vec![service(any()), service(other([127, 0, 0, 3]))], ..config.clone() };
        let Changes { opened, closed, after_restart } = gateway.reload(&two).unwrap();
        assert!(closed.is_empty() && after_restart.is_empty());
        let [new] = opened[..] else { panic!("{opened:?}") };
        for addr in [stays, new] {
            assert!(ask(addr).unwrap().starts_with("HTTP/1.1 404"), "{addr}");
        }
        assert_eq!(gateway.reload(&two).unwrap(), Changes::default());
        let one = Config { workers: Some(3), ..config };
        let changes = gateway.reload(&one).unwrap();
        assert_eq!(changes, Changes { opened: vec![], closed: vec![new], after_restart: vec!["workers"] });
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(new).is_ok() {
            assert!(Instant::now() < deadline, "it still listens");
        }
        assert!(ask(stays).unwrap().starts_with("HTTP/1.1 404"));
        assert!(gateway.stop(Duration::from_secs(10)));
    }

    #[test]
    fn a_reload_that_can_not_be_done_changes_nothing() {
        let config = config(any());
        let gateway = start(config.clone()).unwrap();
        let taken = TcpListener::bind("127.0.0.4:0").unwrap();
        let addr = taken.local_addr().unwrap();
        let more = [service(other_host()), service(addr)];
        let bad = Config { services: more.into(), secrets: vec![], ..config.clone() };
        let error = gateway.reload(&bad).unwrap_err();
        assert!(error.to_string().contains("(services[1])"), "{error}");
        assert!(ask(gateway.addresses()[0]).unwrap().starts_with("HTTP/1.1 404"));
        assert_eq!(gateway.reload(&config).unwrap(), Changes::default());
        assert!(gateway.stop(Duration::from_secs(10)));
    }

    fn other_host() -> SocketAddr {
        "127.0.0.5:0".parse().unwrap()
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

//! Role: the threads that bytes are moved on, and their runtimes.
//! Invariants: all workers of a process use the same driver: io_uring everywhere, or epoll
//! everywhere when the kernel refuses a ring to any · a panic in a task costs that task only · a
//! runtime is never dropped while operations may be in flight: it is forgotten, and the process
//! ends by exiting · every worker beats once a second while it makes progress.
//! See: ARCHITECTURE.md "Threads".

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    task::{Poll, Waker},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use futures_lite::future;
use monoio::{IoUringDriver, LegacyDriver, Runtime, RuntimeBuilder, time::TimeDriver};
use rustix::event::EventfdFlags;

use crate::run::{caught::Caught, descriptors, pollable::Pollable, timer};

/// Submission entries of each ring.
const RING_ENTRIES: u32 = 4096;
/// For a last turn of the ring. It ends its descriptors only then; a process that exits would, too.
const LAST_TURN: Duration = Duration::from_millis(1);
/// How often a worker shows that it makes progress.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// What a process's workers wait for events with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// One ring a worker.
    IoUring,
    /// Where io_uring is refused: an old kernel, a container's seccomp profile, a memory limit.
    Epoll,
}

impl std::fmt::Display for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

/// How workers are to be started.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many.
    pub count: usize,
    /// Pin each to a core of its own, as far as there are cores.
    pub pin: bool,
    /// Refuse to start on epoll.
    pub require_io_uring: bool,
}

/// Why workers did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel refuses io_uring, and the operator insists on it.
    #[error(
        "io_uring is required but refused here ({0}); allow io_uring_setup, or run without --require-io-uring"
    )]
    NoIoUring(io::Error),
    /// Not even epoll.
    #[error("no event queue could be made: {0}")]
    NoDriver(io::Error),
    /// No thread could be started.
    #[error("no worker thread could be started: {0}")]
    NoThread(io::Error),
}

/// Running workers.
pub struct Workers {
    /// What they wait with.
    pub driver: Driver,
    beats: Arc<[AtomicU64]>,
    started: Instant,
    threads: Vec<JoinHandle<()>>,
}

/// What one worker runs: made on its thread, so it need not be `Send`.
pub type Main = Arc<dyn Fn(usize) -> Pin<Box<dyn Future<Output = ()>>> + Send + Sync>;

enum AnyRuntime {
    IoUring(Runtime<TimeDriver<IoUringDriver>>),
    Epoll(Runtime<TimeDriver<LegacyDriver>>),
}

impl AnyRuntime {
    fn io_uring() -> io::Result<Self> {
        // Completions are handled when this thread asks for them, and never interrupt it.
        let mut lean = io_uring::IoUring::builder();
        lean.setup_coop_taskrun().setup_single_issuer().setup_defer_taskrun();
        // Before Linux 6.1 a ring with these flags is refused: then a ring without.
        Self::ring(lean).or_else(|_| Self::ring(io_uring::IoUring::builder()))
    }

    fn ring(builder: io_uring::Builder) -> io::Result<Self> {
        RuntimeBuilder::<IoUringDriver>::new()
            .uring_builder(builder)
            .with_entries(RING_ENTRIES)
            .enable_timer()
            .build()
            .map(Self::IoUring)
    }

    fn epoll() -> io::Result<Self> {
        RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().map(Self::Epoll)
    }

    fn block_on<F: Future>(&mut self, future: F) -> F::Output {
        match self {
            Self::IoUring(runtime) => runtime.block_on(future),
            Self::Epoll(runtime) => runtime.block_on(future),
        }
    }
}

impl Workers {
    /// Starts `options.count` threads; each makes its runtime, and when all have one, each runs
    /// what `main` gives it.
    ///
    /// # Errors
    /// See [`StartError`]; no thread is left behind then.
    pub fn start(name: &str, options: &Options, main: &Main) -> Result<Self, StartError> {
        let beats: Arc<[AtomicU64]> = (0..options.count).map(|_| AtomicU64::new(0)).collect();
        let cores = if options.pin { core_affinity::get_core_ids().unwrap_or_default() } else { Vec::new() };
        let (made, results) = mpsc::channel();
        let mut threads = Vec::new();
        let mut go = Vec::new();
        let started = Instant::now();
        let reserve = descriptors::Shared::of_this_thread();
        for index in 0..options.count {
            let (decide, decision) = mpsc::channel::<Driver>();
            let (made, main, beats) = (made.clone(), main.clone(), beats.clone());
            let (core, reserve) = (cores.get(index).copied(), reserve.clone());
            let thread = std::thread::Builder::new().name(format!("{name}-{index}")).spawn(move || {
                if let Some(core) = core {
                    core_affinity::set_for_current(core);
                }
                reserve.adopt();
                if let Some(runtime) = agree(&made, &decision) {
                    run(runtime, beat(beats, index, started), main(index));
                }
            });
            threads.push(thread.map_err(StartError::NoThread)?);
            go.push(decide);
        }
        drop(made);
        let driver = decide(&results, &go, options)?;
        Ok(Self { driver, beats, started, threads })
    }

    /// The longest silence among the workers that still run: how long the slowest has not beaten.
    pub fn longest_silence(&self) -> Duration {
        let now = self.started.elapsed();
        let running = self.beats.iter().zip(&self.threads).filter(|(_, thread)| !thread.is_finished());
        let oldest = running.map(|(beat, _)| Duration::from_millis(beat.load(Ordering::Relaxed))).min();
        oldest.map_or(Duration::ZERO, |beat| now.saturating_sub(beat))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.beats.len()
    }

    /// Waits until every worker has come to its end; whether all did in good order.
    pub fn join(self) -> bool {
        // All of them, whatever became of the first.
        self.threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count() == 0
    }

    /// Whether every worker has come to its end.
    pub fn finished(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }
}

type Made = io::Result<()>;

/// A worker's side of the agreement on one driver.
fn agree(made: &mpsc::Sender<Made>, decision: &mpsc::Receiver<Driver>) -> Option<AnyRuntime> {
    let ring = AnyRuntime::io_uring();
    let (ring, report) = match ring {
        Ok(ring) => (Some(ring), Ok(())),
        Err(e) => (None, Err(e)),
    };
    made.send(report).ok()?;
    match decision.recv().ok()? {
        Driver::IoUring => ring,
        Driver::Epoll => {
            drop(ring);
            match AnyRuntime::epoll() {
                Ok(epoll) => {
                    made.send(Ok(())).ok()?;
                    Some(epoll)
                }
                Err(e) => {
                    let _ = made.send(Err(e));
                    None
                }
            }
        }
    }
}

fn decide(
    results: &mpsc::Receiver<Made>,
    go: &[mpsc::Sender<Driver>],
    options: &Options,
) -> Result<Driver, StartError> {
    let gather = || -> io::Result<()> {
        let gone = || io::Error::other("a worker ended while starting");
        go.iter()
            .map(|_| results.recv().unwrap_or_else(|_| Err(gone())))
            .collect::<Vec<_>>()
            .into_iter()
            .collect()
    };
    let tell = |driver| {
        for worker in go {
            // A worker that has ended shows as an error in its result.
            let _ = worker.send(driver);
        }
    };
    match gather() {
        Ok(()) => {
            tell(Driver::IoUring);
            Ok(Driver::IoUring)
        }
        Err(e) if options.require_io_uring => Err(StartError::NoIoUring(e)),
        Err(_) => {
            tell(Driver::Epoll);
            gather().map_err(StartError::NoDriver)?;
            Ok(Driver::Epoll)
        }
    }
}

fn run(runtime: AnyRuntime, beat: impl Future<Output = ()> + 'static, main: impl Future<Output = ()>) {
    run_to_end(runtime, async {
        spawn(beat);
        main.await;
    });
}

async fn beat(beats: Arc<[AtomicU64]>, index: usize, started: Instant) {
    loop {
        #[expect(clippy::cast_possible_truncation, reason = "584 million years of milliseconds")]
        beats[index].store(started.elapsed().as_millis() as u64, Ordering::Relaxed);
        timer::sleep(BEAT_EVERY).await;
    }
}

/// Whether the kernel grants a ring as workers have it.
///
/// # Errors
/// Why it does not.
pub fn try_io_uring() -> io::Result<()> {
    AnyRuntime::io_uring().map(drop)
}

/// Runs `make`'s future on this thread, for programs with one worker; the second value says what
/// the thread waits with.
///
/// # Errors
/// See [`StartError`].
pub fn run_alone<F: Future>(
    require_io_uring: bool,
    make: impl FnOnce(Driver) -> F,
) -> Result<F::Output, StartError> {
    match AnyRuntime::io_uring() {
        Ok(ring) => Ok(run_to_end(ring, make(Driver::IoUring))),
        Err(e) if require_io_uring => Err(StartError::NoIoUring(e)),
        Err(_) => run_on_epoll(make),
    }
}

/// As [`run_alone`], on epoll even where io_uring is to be had.
///
/// # Errors
/// Not even epoll.
pub fn run_on_epoll<F: Future>(make: impl FnOnce(Driver) -> F) -> Result<F::Output, StartError> {
    let runtime = AnyRuntime::epoll().map_err(StartError::NoDriver)?;
    Ok(run_to_end(runtime, make(Driver::Epoll)))
}

fn run_to_end<F: Future>(mut runtime: AnyRuntime, future: F) -> F::Output {
    timer::start_anew();
    RUNTIME.set(RUNTIME.get() + 1);
    ON_RING.set(matches!(runtime, AnyRuntime::IoUring(_)));
    let _running = Running::begin();
    let output = runtime.block_on(async {
        let output = future.await;
        // What was given up last is still in the ring, and holds its descriptor open until the ring hears of that.
        timer::sleep(LAST_TURN).await;
        // Belong to this runtime: the thread's next one makes its own.
        READY.take();
        BELL.take();
        output
    });
    // Operations may be in flight: their buffers and descriptors stay until the process exits.
    std::mem::forget(runtime);
    output
}

thread_local! {
    /// Something that is always ready.
    static READY: RefCell<Option<Rc<Pollable>>> = const { RefCell::new(None) };
    static BELL: RefCell<Option<Rc<Bell>>> = const { RefCell::new(None) };
    static RUNTIME: Cell<u64> = const { Cell::new(0) };
    static IS_RUNNING: Cell<bool> = const { Cell::new(false) };
    static ON_RING: Cell<bool> = const { Cell::new(false) };
}

/// Which of this thread's runtimes this is: tasks of an earlier one run no more.
pub(crate) fn runtime() -> u64 {
    RUNTIME.get()
}

/// The runtime that runs on this thread now, in which tasks can be spawned.
pub(crate) fn running() -> Option<u64> {
    IS_RUNNING.get().then(runtime)
}

/// A runtime runs until this is dropped.
struct Running;

impl Running {
    fn begin() -> Self {
        IS_RUNNING.set(true);
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        IS_RUNNING.set(false);
    }
}

fn ready() -> io::Result<Rc<Pollable>> {
    READY.with_borrow_mut(|ready| match ready {
        Some(ready) => Ok(ready.clone()),
        None => Ok(ready.insert(Rc::new(event()?)).clone()),
    })
}

/// Always writable, and readable once it was written to.
fn event() -> io::Result<Pollable> {
    Pollable::adopt(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Lets everything else on this worker have its turn: ready tasks, timers, and whoever waits for what the
/// kernel has ready. Waking oneself does not: on io_uring completions of others may wait while tasks are ready
/// (IORING_SETUP_DEFER_TASKRUN), on epoll no timer fires then, and a task that wakes itself is the next to run.
/// So what is waited for comes from the kernel.
pub async fn turn() {
    if ON_RING.get() {
        if let Ok(ready) = ready() {
            // Nothing can be done about an error here, and nothing depends on it.
            let _ = ready.writable().await;
        }
        return;
    }
    match Bell::current() {
        Ok(bell) => bell.heard().await,
        // Out of descriptors.
        Err(_) => future::yield_now().await,
    }
}

/// The turns of a runtime on epoll, where the readiness of a descriptor is news only once: all who wait hear the
/// same bell. A turn allocates nothing.
struct Bell {
    /// Rung by writing to it.
    event: Pollable,
    rounds: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
    /// As `waiting`; the two take turns.
    woken: RefCell<Vec<Waker>>,
    /// Waits for somebody who waits.
    ringer: Cell<Option<Waker>>,
}

impl Bell {
    fn current() -> io::Result<Rc<Self>> {
        BELL.with_borrow_mut(|bell| match bell {
            Some(bell) => Ok(bell.clone()),
            None => {
                let event = event()?;
                let (rounds, waiting, woken, ringer) = Default::default();
                let new = Rc::new(Self { event, rounds, waiting, woken, ringer });
                monoio::spawn(new.clone().ring());
                Ok(bell.insert(new).clone())
            }
        })
    }

    async fn heard(&self) {
        let since = self.rounds.get();
        poll_fn(|cx| {
            if self.rounds.get() != since {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(cx.waker().clone());
            if let Some(ringer) = self.ringer.take() {
                ringer.wake();
            }
            Poll::Pending
        })
        .await;
    }

    /// As long as the runtime runs.
    async fn ring(self: Rc<Self>) {
        loop {
            self.somebody().await;
            // Nothing depends on an error.
            let _ = self.ring_once().await;
            self.rounds.set(self.rounds.get() + 1);
            let mut woken = self.woken.borrow_mut();
            std::mem::swap(&mut *woken, &mut *self.waiting.borrow_mut());
            woken.drain(..).for_each(Waker::wake);
        }
    }

    async fn somebody(&self) {
        poll_fn(|cx| {
            if !self.waiting.borrow().is_empty() {
                return Poll::Ready(());
            }
            self.ringer.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    async fn ring_once(&self) -> io::Result<()> {
        let mut heard = pin!(self.event.readable());
        // The event of the last time is old now.
        if future::poll_once(&mut heard).await.is_none() {
            rustix::io::write(&self.event, &1u64.to_ne_bytes())?;
            heard.await?;
        }
        rustix::io::read(&self.event, &mut [0; 8])?;
        Ok(())
    }
}

/// Panics caught since the process started.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// How many tasks have panicked in this process.
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Starts a task on this worker. A panic in it is logged and costs nothing else; its sockets are
/// reset as it unwinds.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    monoio::spawn(Caught::new(task, || {
        PANICS.fetch_add(1, Ordering::Relaxed);
        tracing::error!("a task panicked; its connection is reset, the worker goes on");
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(count: usize) -> Options {
        Options { count, pin: false, require_io_uring: false }
    }

    #[test]
    fn every_worker_runs_its_main_and_ends() {
        let (done, ended) = mpsc::channel();
        let main: Main = Arc::new(move |index| {
            let done = done.clone();
            Box::pin(async move { done.send(index).unwrap() })
        });
        let workers = Workers::start("t", &options(3), &main).unwrap();
        let mut seen: Vec<_> = (0..3).map(|_| ended.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2]);
        assert!(workers.longest_silence() < Duration::from_secs(5));
    }

    #[test]
    fn a_panicking_task_leaves_its_worker_running() {
        let before = panics();
        let answer = run_alone(false, |_| async {
            let (sent, got) = async_channel::bounded::<()>(1);
            spawn(async move {
                let _held = sent;
                panic!("this panic belongs to the test");
            });
            // The task's values are dropped as it unwinds, so the channel closes.
            let closed = got.recv().await.is_err();
            monoio::time::sleep(Duration::from_millis(1)).await;
            closed
        });
        assert!(answer.unwrap());
        assert!(panics() > before);
    }

    /// Whether everybody else gets theirs while some take turn after turn.
    async fn turns_are_fair() -> bool {
        let (over, starved) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        for _ in 0..3 {
            let (over, starved) = (over.clone(), starved.clone());
            spawn(async move {
                let deadline = Instant::now() + Duration::from_secs(10);
                while !over.get() && !starved.get() {
                    starved.set(Instant::now() > deadline);
                    turn().await;
                }
            });
        }
        for _ in 0..5 {
            // Ready tasks, timers of both kinds, and what another thread wakes.
            let (sent, got) = async_channel::bounded::<u8>(2);
            let here = sent.clone();
            spawn(async move { here.send(1).await.unwrap() });
            assert_eq!(got.recv().await, Ok(1));
            timer::sleep(Duration::from_millis(2)).await;
            monoio::time::sleep(Duration::from_millis(2)).await;
            let thread = std::thread::spawn(move || sent.send_blocking(2));
            assert_eq!(got.recv().await, Ok(2));
            thread.join().unwrap().unwrap();
        }
        over.set(true);
        !starved.get()
    }

    #[test]
    fn who_takes_turn_after_turn_leaves_one_for_everybody_else() {
        assert!(run_alone(false, |_| turns_are_fair()).unwrap());
        assert!(run_on_epoll(|_| turns_are_fair()).unwrap());
    }

    #[test]
    fn a_wake_from_another_thread_arrives() {
        let (sent, got) = async_channel::bounded::<u8>(1);
        let thread = std::thread::spawn(move || sent.send_blocking(7));
        assert_eq!(run_alone(false, |_| async move { got.recv().await }).unwrap(), Ok(7));
        thread.join().unwrap().unwrap();
    }
}

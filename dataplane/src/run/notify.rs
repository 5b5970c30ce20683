//! Role: what a service manager hears of this program: that it is ready, reads its files anew, ends, and is alive.
//! Invariants: without a service manager nothing is said · that it can't be reached changes nothing here · after its end is said
//! nothing more is: another process may speak for the service by then.
//! See: sd_notify(3); sd_watchdog_enabled(3).

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType, connect, sendmsg, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use sd_notify::NotifyState;

use crate::run::lock::lock;

/// How long a service manager may take to read.
const PATIENCE: Duration = Duration::from_millis(200);
/// One that does not read is told nothing for so long: whoever speaks has better to do than to wait.
const DEAF: Duration = Duration::from_secs(5);
/// Descriptors of one message; the kernel takes 253.
pub(crate) const FDS_MAX: usize = 64;

/// Who passes on what is said.
pub trait Speaker: Send + Sync {
    /// Says it, with these descriptors.
    ///
    /// # Errors
    /// Nobody hears it any more.
    fn say(&self, words: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()>;
}

/// The service manager itself, if this program has one.
#[derive(Debug, Clone, Copy)]
pub struct Manager;

impl Speaker for Manager {
    fn say(&self, words: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let Some(place) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
        let addr = match place.as_bytes().split_first() {
            Some((b'@', name)) => SocketAddrUnix::new_abstract_name(name)?,
            _ => SocketAddrUnix::new(&*place)?,
        };
        // sd_notify of libraries waits for as long as nobody reads.
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
        connect(&socket, &addr)?;
        send_with_fds(&socket, words.as_bytes(), fds)
    }
}

/// How long this process's service manager waits for a sign that it is alive, if it does.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Speaks to the service manager.
#[derive(Clone)]
pub struct Notifier {
    speaker: Arc<dyn Speaker>,
    is_silent: Arc<AtomicBool>,
    /// Nobody reads what is said until then.
    deaf_until: Arc<Mutex<Option<Instant>>>,
    /// How often it wants to hear that this program is alive.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// To this process's service manager, if it has one.
    pub fn new() -> Self {
        Self::through(Arc::new(Manager))
    }

    /// To whoever passes it on.
    pub fn through(speaker: Arc<dyn Speaker>) -> Self {
        Self { speaker, is_silent: Arc::default(), deaf_until: Arc::default(), watchdog: watchdog_interval() }
    }

    /// It does what it is there for; `status` says so in words.
    pub fn ready(&self, status: &str) {
        self.say(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// It reads its files anew; [`ready`](Self::ready) follows.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.say(&[NotifyState::Reloading, now]),
            Err(_) => self.say(&[NotifyState::Reloading]),
        }
    }

    /// What it does just now.
    pub fn status(&self, status: &str) {
        self.say(&[NotifyState::Status(status)]);
    }

    /// It ends, and says nothing more.
    pub fn stopping(&self, status: &str) {
        self.say(&[NotifyState::Stopping, NotifyState::Status(status)]);
        self.hush();
    }

    /// Another process is the service from now on.
    pub fn succeeded_by(&self, pid: u32) {
        self.say(&[NotifyState::MainPid(pid), NotifyState::Ready]);
        self.hush();
    }

    /// Says nothing more.
    pub fn hush(&self) {
        self.is_silent.store(true, Ordering::Relaxed);
    }

    /// Has the service manager keep these for the next process of this service.
    pub fn store(&self, name: &str, fds: &[BorrowedFd<'_>]) {
        for fd in fds {
            // One by one: a message has room for a limited number.
            self.say_with(&[NotifyState::FdStore, NotifyState::FdName(name)], &[*fd]);
        }
    }

    /// Has it close what it kept under this name.
    pub fn unstore(&self, name: &str) {
        self.say(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    }

    /// A watchdog to be fed while this program is alive, if there is one.
    pub fn watchdog(&self) -> Option<Watchdog> {
        let every = self.watchdog?;
        // As sd_watchdog_enabled(3) has it: twice in that time, and once more for a machine that is slow.
        Some(Watchdog { notifier: self.clone(), every: every / 3, fed_at: None })
    }

    fn say(&self, states: &[NotifyState<'_>]) {
        self.say_with(states, &[]);
    }

    fn say_with(&self, states: &[NotifyState<'_>], fds: &[BorrowedFd<'_>]) {
        let is_deaf = lock(&self.deaf_until).is_some_and(|until| Instant::now() < until);
        if self.is_silent.load(Ordering::Relaxed) || is_deaf {
            return;
        }
        let words: Vec<_> = states.iter().map(ToString::to_string).collect();
        if let Err(e) = self.speaker.say(&words.join("\n"), fds) {
            tracing::debug!("the service manager can't be told: {e}");
            if e.kind() == io::ErrorKind::WouldBlock {
                *lock(&self.deaf_until) = Some(Instant::now() + DEAF);
            }
        }
    }
}

/// One message, with these descriptors.
pub(crate) fn send_with_fds(socket: &OwnedFd, words: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors at once"));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(words)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return sent.map(|_| ()).map_err(Into::into),
        }
    }
}

impl Default for Notifier {
    fn default() -> Self {
        Self::new()
    }
}

/// Ends this program when it is not fed.
pub struct Watchdog {
    notifier: Notifier,
    every: Duration,
    fed_at: Option<Instant>,
}

impl Watchdog {
    /// The program is alive at `now`; to be called often.
    pub fn feed(&mut self, now: Instant) {
        if self.fed_at.is_none_or(|at| now.saturating_duration_since(at) >= self.every) {
            self.fed_at = Some(now);
            self.notifier.say(&[NotifyState::Watchdog]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Heard(Mutex<Vec<(String, usize)>>);

    impl Speaker for Heard {
        fn say(&self, words: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
            lock(&self.0).push((words.to_owned(), fds.len()));
            Ok(())
        }
    }

    fn notifier(watchdog: Option<Duration>) -> (Notifier, Arc<Heard>) {
        let heard = Arc::new(Heard::default());
        (Notifier { watchdog, ..Notifier::through(heard.clone()) }, heard)
    }

    #[test]
    fn what_is_said_has_the_form_of_sd_notify_and_ends_with_the_end() {
        let (notifier, heard) = notifier(None);
        notifier.ready("listening");
        let file = std::fs::File::open("/dev/null").unwrap();
        notifier.store("wss", &[std::os::fd::AsFd::as_fd(&file); 2]);
        notifier.unstore("wss");
        notifier.stopping("2 sessions");
        notifier.ready("again");
        let said = std::mem::take(&mut *lock(&heard.0));
        let said: Vec<_> = said.iter().map(|(words, fds)| (words.as_str(), *fds)).collect();
        assert_eq!(
            said,
            [
                ("READY=1\nSTATUS=listening", 0),
                ("FDSTORE=1\nFDNAME=wss", 1),
                ("FDSTORE=1\nFDNAME=wss", 1),
                ("FDSTOREREMOVE=1\nFDNAME=wss", 0),
                ("STOPPING=1\nSTATUS=2 sessions", 0),
            ]
        );
    }

    /// Takes nothing.
    struct Full;

    impl Speaker for Full {
        fn say(&self, _: &str, _: &[BorrowedFd<'_>]) -> io::Result<()> {
            std::thread::sleep(PATIENCE);
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    #[test]
    fn who_does_not_read_is_waited_for_once() {
        let notifier = Notifier::through(Arc::new(Full));
        let began = Instant::now();
        (0..50).for_each(|_| notifier.status("still here"));
        assert!(began.elapsed() < PATIENCE * 10, "{:?}", began.elapsed());
    }

    #[test]
    fn a_watchdog_is_fed_three_times_in_its_time_and_no_more() {
        let (notifier, heard) = notifier(Some(Duration::from_secs(9)));
        let mut watchdog = notifier.watchdog().unwrap();
        let start = Instant::now();
        for tick in 0..36u32 {
            watchdog.feed(start + Duration::from_millis(250) * tick);
        }
        assert_eq!(lock(&heard.0).len(), 3);
        assert!(Notifier { watchdog: None, ..notifier }.watchdog().is_none());
    }
}

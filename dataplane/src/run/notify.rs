//! Role: what a service manager hears of this program: that it is ready, reads its files anew, ends, and is alive.
//! Invariants: without a service manager nothing is said · that it can't be reached changes nothing here · after its end is said
//! nothing more is: another process may speak for the service by then.
//! See: sd_notify(3); sd_watchdog_enabled(3).

use std::{
    io,
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sd_notify::NotifyState;

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
        let state = [NotifyState::Custom(words)];
        if fds.is_empty() { sd_notify::notify(&state) } else { sd_notify::notify_with_fds(&state, fds) }
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
        Self { speaker, is_silent: Arc::default(), watchdog: watchdog_interval() }
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
        if self.is_silent.load(Ordering::Relaxed) {
            return;
        }
        let words: Vec<_> = states.iter().map(ToString::to_string).collect();
        if let Err(e) = self.speaker.say(&words.join("\n"), fds) {
            tracing::debug!("the service manager can't be told: {e}");
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
    use std::sync::Mutex;

    use super::*;
    use crate::run::lock::lock;

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

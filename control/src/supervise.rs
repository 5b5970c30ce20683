//! Role: watches a running gateway until it is told to stop or breaks, and has it end in good order.
//! Invariants: a worker that makes no progress is noticed within 6 s · the second word to stop is obeyed at
//! once · what is revoked is so for sessions that a stopping gateway waits for, too · a process that was stopped as a whole (SIGSTOP, a paused machine) is not broken.
//! See: signal-hook; `main`, which exits with what comes out here.

use std::{
    io,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{clock, gateway::Gateway, reload::Reloader};

/// A worker beats every second; this much silence is no delay.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// How often it is looked at.
const TICK: Duration = Duration::from_millis(250);
/// A tick that comes this late shows that the whole process stood still.
const LATE: Duration = Duration::from_secs(2);
/// How often a stopping gateway is looked at.
const STOP_TICK: Duration = Duration::from_millis(10);

/// How a gateway ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was told to stop, and every session had ended by itself.
    Drained,
    /// It was told to stop, and sessions were cut: the time was up, or it was told again.
    Cut,
    /// It broke.
    Broken(Fault),
}

/// Our own fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A worker hangs.
    #[error("a worker has made no progress for {} s", .0.as_secs())]
    Hangs(Duration),
    /// A worker or the control thread has ended.
    #[error("a thread has ended that never should")]
    Ended,
}

/// What the gateway's process is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// End in good order; the second time, at once.
    Stop,
    /// Read the configuration anew.
    Reload,
}

/// SIGTERM and SIGINT, one word to stop each; SIGHUP, a word to reload.
///
/// # Errors
/// The system's: the handlers can't be set, or no thread started.
pub fn signals() -> io::Result<Receiver<Word>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let (say, heard) = mpsc::channel();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if say.send(if signal == SIGHUP { Word::Reload } else { Word::Stop }).is_err() {
                return;
            }
        }
    })?;
    Ok(heard)
}

/// Returns when the gateway has ended: each word to stop tells it to, and sessions have its drain timeout after
/// the first. Until then it follows its files, if it has a `reloader`.
pub fn supervise(gateway: &Gateway, words: &Receiver<Word>, reloader: Option<Reloader>) -> Outcome {
    let mut watch = Watch::new(Instant::now());
    let mut files = Files { reloader, looked_at: Instant::now() };
    loop {
        let heard = words.recv_timeout(TICK);
        match heard {
            Ok(Word::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            Ok(Word::Reload) | Err(RecvTimeoutError::Timeout) => files.follow(gateway, heard.is_ok()),
        }
        gateway.watch_certificates(clock::seconds_since_1970());
        let lost = gateway.has_lost_a_thread();
        if let Some(fault) = watch.handle_tick(Instant::now(), gateway.longest_silence(), lost) {
            return Outcome::Broken(fault);
        }
    }
    let drain_timeout = gateway.drain_timeout();
    tracing::info!("stopping: nothing new is accepted; sessions have {} s to end", drain_timeout.as_secs());
    let deadline = Instant::now() + drain_timeout;
    gateway.begin_stop();
    let outcome = drain(words, deadline, |asked| {
        files.follow(gateway, asked);
        match watch.handle_tick(Instant::now(), gateway.longest_silence(), false) {
            Some(fault) => Some(Outcome::Broken(fault)),
            None => gateway.is_stopped().then_some(Outcome::Drained),
        }
    });
    if outcome == Outcome::Cut {
        gateway.cut();
    }
    outcome
}

/// Waits for `outcome`, the deadline or a further word to stop, whichever is first. It hears whether it was asked to
/// reload.
fn drain(
    words: &Receiver<Word>,
    deadline: Instant,
    mut outcome: impl FnMut(bool) -> Option<Outcome>,
) -> Outcome {
    let mut is_to_reload = false;
    loop {
        if let Some(outcome) = outcome(is_to_reload) {
            return outcome;
        }
        let heard = words.recv_timeout(STOP_TICK);
        is_to_reload = heard == Ok(Word::Reload);
        if heard == Ok(Word::Stop) || Instant::now() >= deadline {
            return Outcome::Cut;
        }
    }
}

/// The files that a gateway follows, if it follows any.
struct Files {
    reloader: Option<Reloader>,
    looked_at: Instant,
}

impl Files {
    /// Takes what has changed, if they are due for a look, or at once if that was `asked` for.
    fn follow(&mut self, gateway: &Gateway, asked: bool) {
        let Some(reloader) = &mut self.reloader else { return };
        let is_due = self.looked_at.elapsed() >= TICK;
        if is_due {
            self.looked_at = Instant::now();
        }
        if asked || (is_due && reloader.handle_tick()) {
            reloader.reload(gateway);
        }
    }
}

/// Tells a worker that hangs from a process that was not running.
struct Watch {
    ticked_at: Instant,
    /// Silence from before this moment counts for nothing.
    awake_since: Instant,
}

impl Watch {
    const fn new(now: Instant) -> Self {
        Self { ticked_at: now, awake_since: now }
    }

    fn handle_tick(&mut self, now: Instant, silence: Duration, lost_a_thread: bool) -> Option<Fault> {
        if now.saturating_duration_since(self.ticked_at) > LATE {
            self.awake_since = now;
        }
        self.ticked_at = now;
        if lost_a_thread {
            return Some(Fault::Ended);
        }
        let silence = silence.min(now.saturating_duration_since(self.awake_since));
        (silence > SILENCE_MAX).then_some(Fault::Hangs(silence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Service};
    use narrowlink_proto::{target::Destination, token::Secret};

    #[test]
    fn a_worker_that_hangs_is_noticed_within_six_seconds() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        // The worker's last beat is at 1 s.
        for tick in 1u32.. {
            let now = start + TICK * tick;
            let silence = now.saturating_duration_since(start + Duration::from_secs(1));
            if let Some(fault) = watch.handle_tick(now, silence, false) {
                assert_eq!(fault, Fault::Hangs(silence));
                assert!(silence > SILENCE_MAX && silence <= Duration::from_secs(6), "{silence:?}");
                return;
            }
        }
    }

    #[test]
    fn a_process_that_stood_still_is_not_broken() {
        let start = Instant::now();
        let mut watch = Watch::new(start);
        let paused = Duration::from_secs(60);
        assert_eq!(watch.handle_tick(start + paused, paused, false), None);
        // The workers beat again, each when its timer comes.
        let soon = start + paused + TICK;
        assert_eq!(watch.handle_tick(soon, paused + TICK, false), None);
        assert_eq!(watch.handle_tick(soon + TICK, TICK, false), None);
    }

    #[test]
    fn a_lost_thread_is_a_fault_at_once() {
        let start = Instant::now();
        assert_eq!(Watch::new(start).handle_tick(start, Duration::ZERO, true), Some(Fault::Ended));
    }

    #[test]
    fn a_second_word_or_the_deadline_cuts_what_does_not_end() {
        let (say, heard) = mpsc::channel();
        let far = Instant::now() + Duration::from_secs(3600);
        say.send(Word::Reload).unwrap();
        say.send(Word::Stop).unwrap();
        let mut asked = Vec::new();
        let cut = drain(&heard, far, |is_to_reload| {
            asked.push(is_to_reload);
            None
        });
        assert_eq!((cut, asked), (Outcome::Cut, vec![false, true]));
        assert_eq!(drain(&heard, Instant::now(), |_| None), Outcome::Cut);
        let mut ticks = 0;
        let drained = drain(&heard, far, |_| {
            ticks += 1;
            (ticks == 3).then_some(Outcome::Drained)
        });
        assert_eq!(drained, Outcome::Drained);
    }

    #[test]
    fn an_idle_gateway_drains_at_the_first_word() {
        let service = Service {
            domains: vec![Destination::Ip([127, 0, 0, 1].into())],
            listen_addr: "127.0.0.1:0".parse().unwrap(),
            tls: None,
        };
        let secrets = vec![Secret::from_bytes(vec![7; 32]).unwrap()];
        let config = Config { workers: Some(1), pin: false, ..Config::new("test", secrets, vec![service]) };
        let gateway = crate::gateway::start(config).unwrap();
        let (say, heard) = mpsc::channel();
        say.send(Word::Stop).unwrap();
        assert_eq!(supervise(&gateway, &heard, None), Outcome::Drained);
    }
}

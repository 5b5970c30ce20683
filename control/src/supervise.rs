//! Role: watches a running gateway until it is told to stop or breaks, and has it end in good order.
//! Invariants: a worker that makes no progress is noticed within 6 s · the second word to stop is obeyed at
//! once · what is revoked is so for sessions that a stopping gateway waits for, too · a process that was stopped as a whole (SIGSTOP, a paused machine) is not broken.
//! See: signal-hook; `main`, which exits with what comes out here.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use narrowlink_dataplane::run::{
    notify::Notifier,
    watch::{Fault, TICK, Watch},
};

use crate::{
    clock,
    gateway::{Gateway, socket_name},
    reload::Reloader,
    succession::Succession,
    word::Word,
};

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

/// What a gateway has around it.
pub struct Surroundings {
    /// Its files, if it follows any.
    pub reloader: Option<Reloader>,
    /// Its service manager, if it has one.
    pub notifier: Notifier,
    /// What begins the one after it, if it can.
    pub succession: Option<Succession>,
}

/// Returns when the gateway has ended: each word to stop tells it to, and sessions have its drain timeout after
/// the first. Until then it follows its files.
pub fn supervise(gateway: &Gateway, words: &Receiver<Word>, around: Surroundings) -> Outcome {
    let Surroundings { reloader, notifier, succession } = around;
    let mut watch = Watch::new(Instant::now());
    let mut watchdog = notifier.watchdog();
    let mut files = Files { reloader, notifier: notifier.clone(), looked_at: Instant::now() };
    let is_succeeded = loop {
        let heard = words.recv_timeout(TICK);
        match heard {
            Ok(Word::Stop) | Err(RecvTimeoutError::Disconnected) => break false,
            Ok(Word::Leave) => break true,
            Ok(Word::Succeed) => match &succession {
                Some(succession) => succession.begin(gateway),
                None => {
                    tracing::warn!(
                        "this gateway is a service: `systemctl restart` replaces it without a gap"
                    );
                }
            },
            Ok(Word::Reload) | Err(RecvTimeoutError::Timeout) => files.follow(gateway, heard.is_ok()),
        }
        gateway.watch_certificates(clock::seconds_since_1970());
        let lost = gateway.has_lost_a_thread();
        if let Some(fault) = watch.handle_tick(Instant::now(), gateway.longest_silence(), lost) {
            return Outcome::Broken(fault);
        }
        if let Some(watchdog) = &mut watchdog {
            watchdog.feed(Instant::now());
        }
    };
    if let Some(succession) = &succession
        && !is_succeeded
    {
        succession.cancel();
    }
    let drain_timeout = gateway.drain_timeout();
    let words_of_it = format!("sessions have {} s to end", drain_timeout.as_secs());
    if is_succeeded {
        notifier.hush();
        gateway.set_succeeded();
        tracing::info!("leaving: another gateway goes on; {words_of_it}");
    } else {
        notifier.stopping(&words_of_it);
        tracing::info!("stopping: nothing new is accepted; {words_of_it}");
    }
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
    notifier: Notifier,
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
            self.notifier.reloading();
            let status = match reloader.reload(gateway) {
                Ok(changes) => {
                    changes.closed.iter().for_each(|addr| self.notifier.unstore(&socket_name(*addr)));
                    gateway.store_sockets(&self.notifier);
                    gateway.describe()
                }
                Err(why) => why,
            };
            self.notifier.ready(&status);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::config::{Config, Service};
    use narrowlink_proto::{target::Destination, token::Secret};

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
        let around = Surroundings { reloader: None, notifier: Notifier::new(), succession: None };
        assert_eq!(supervise(&gateway, &heard, around), Outcome::Drained);
    }
}

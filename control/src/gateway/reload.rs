//! Role: a running gateway becomes what another config says.
//! Invariants: everything that can fail comes before the first change · an address that stays is listened on all the
//! time, by the same sockets.
//! See: ARCHITECTURE.md "Reload and dismissal"; the crate's `reload`, which says when, and reads the files first.

use std::{net::SocketAddr, path::PathBuf, sync::atomic::Ordering};

use narrowlink_dataplane::{gateway::mailbox::Note, net::inherited::Inherited, run::lock::lock};

use super::{Gateway, StartError, open::Seated, own, rules, served};
use crate::{auth::Rules, clock, config::Config};

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

/// What a gateway was started with and can't change.
pub(super) struct Fixed {
    name: String,
    workers: Option<usize>,
    pin: bool,
    audit: Option<PathBuf>,
    state_dir: Option<PathBuf>,
}

impl Fixed {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            name: config.name.clone(),
            workers: config.workers,
            pin: config.pin,
            audit: config.audit.clone(),
            state_dir: config.state_dir.clone(),
        }
    }

    /// The keys of `config` that say something else.
    fn differences(&self, config: &Config) -> Vec<&'static str> {
        let differ = [
            ("name", self.name != config.name),
            ("workers", self.workers != config.workers),
            ("pin", self.pin != config.pin),
            ("audit", self.audit != config.audit),
            ("state_dir", self.state_dir != config.state_dir),
        ];
        differ.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

impl Gateway {
    /// Makes it what `config` says, without touching what runs: sockets whose address stays are kept, and
    /// whoever may not be here any more is dismissed. If anything can't be had, nothing is changed. Who stops
    /// takes rules and limits alone.
    ///
    /// # Errors
    /// A new address can't be listened on, or the config is incomplete.
    pub fn reload(&self, config: &Config) -> Result<Changes, StartError> {
        if self.stopping.load(Ordering::Relaxed) {
            self.take_rules(rules(config)?, config);
            return Ok(Changes::default());
        }
        let mut guard = lock(&self.open);
        let open = &mut *guard;
        let mut changes = Changes::default();
        let now = clock::seconds_since_1970();
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
                services.push(seated.become_service(config, index, now));
                kept[at] = true;
            } else {
                let ours = open.services.iter().any(|seated| seated.bound == service.listen_addr);
                let (seated, sockets) =
                    open.seat(index, config, self.workers(), (&mut Inherited::default(), !ours))?;
                changes.opened.push(seated.bound);
                new_sockets.push((seated.for_workers(), sockets));
                services.push(seated);
            }
        }
        let rules = rules(config)?;
        // From here on nothing fails.
        self.take_rules(rules, config);
        self.warden.show(served(&services));
        for (service, shares) in new_sockets {
            // Its own sockets are one a worker.
            let notes = shares.into_iter().flatten().map(|socket| Note::Listen(service.clone(), socket));
            self.shared.mailboxes.tell_each(notes);
        }
        let closed = open.services.iter().zip(&kept).filter(|(_, kept)| !**kept);
        for (seated, _) in closed {
            changes.closed.push(seated.bound);
            self.shared.mailboxes.tell_all(|| Note::Unlisten(seated.number));
        }
        changes.after_restart = self.fixed.differences(config);
        self.counter.set_own(own(&services));
        open.services = services;
        lock(&self.certificates).reload();
        Ok(changes)
    }

    /// From now on these hold, for who is there as well.
    fn take_rules(&self, rules: Rules, config: &Config) {
        self.warden.replace(rules);
        self.shared.set_limits(config.limits.clone());
        self.counter.set_limits(config.limits.clone());
        self.accounts.set(config.allowances());
        self.audit.reopen();
        self.shared.mailboxes.tell_all(|| Note::Judge);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        time::{Duration, Instant},
    };

    use super::*;
    use crate::gateway::{
        start,
        tests::{any, ask, config, service},
    };

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
}

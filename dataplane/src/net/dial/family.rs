//! Role: which family of addresses a host was reached by last, so that a dead one costs its delay once.
//! Invariants: bounded · one for all threads, held for a look when a dial begins or ends · it is a hint about the order only: which addresses may be dialled
//! is decided elsewhere.
//! See: RFC 8305 section 8.1.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{LazyLock, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use crate::run::lock::lock;

/// How long a family that won is tried first. (RFC 8305: on the order of 10 minutes.)
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// Hosts that are remembered at the most: 100 bytes each.
const HOSTS_MAX: usize = 1024;

/// The two kinds of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// What carries packets to it: an IPv4 address in IPv6 clothes is IPv4.
    pub(super) fn of(addr: SocketAddr) -> Self {
        if addr.ip().to_canonical().is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

#[derive(Default)]
struct Winners(HashMap<(Box<str>, u16), (Family, Instant)>);

static WINNERS: LazyLock<Mutex<Winners>> = LazyLock::new(Mutex::default);

fn winners() -> MutexGuard<'static, Winners> {
    lock(&WINNERS)
}

/// The family that connected to `host` first the last time, if that is not long ago.
pub(super) fn remembered(host: &str, port: u16, now: Instant) -> Option<Family> {
    winners().get(host, port, now)
}

/// This family connected first.
pub(super) fn remember(host: &str, port: u16, family: Family, now: Instant) {
    winners().insert(host, port, family, now);
}

impl Winners {
    fn get(&self, host: &str, port: u16, now: Instant) -> Option<Family> {
        let (family, at) = self.0.get(&(host.into(), port))?;
        (now.saturating_duration_since(*at) < REMEMBERED_FOR).then_some(*family)
    }

    fn insert(&mut self, host: &str, port: u16, family: Family, now: Instant) {
        let key = (Box::from(host), port);
        if self.0.len() >= HOSTS_MAX && !self.0.contains_key(&key) {
            self.0.retain(|_, (_, at)| now.saturating_duration_since(*at) < REMEMBERED_FOR);
        }
        if self.0.len() >= HOSTS_MAX && !self.0.contains_key(&key) {
            let oldest = self.0.iter().min_by_key(|(_, (_, at))| *at).map(|(key, _)| key.clone());
            oldest.map(|oldest| self.0.remove(&oldest));
        }
        self.0.insert(key, (family, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_winner_is_remembered_for_ten_minutes_by_host_and_port() {
        let (mut winners, now) = (Winners::default(), Instant::now());
        winners.insert("h", 1, Family::V4, now);
        assert_eq!(winners.get("h", 1, now + REMEMBERED_FOR / 2), Some(Family::V4));
        assert_eq!(winners.get("h", 1, now + REMEMBERED_FOR), None);
        assert_eq!((winners.get("h", 2, now), winners.get("i", 1, now)), (None, None));
        winners.insert("h", 1, Family::V6, now + REMEMBERED_FOR);
        assert_eq!(winners.get("h", 1, now + REMEMBERED_FOR), Some(Family::V6));
    }

    #[test]
    fn the_table_is_bounded_and_the_oldest_gives_way() {
        let (mut winners, start) = (Winners::default(), Instant::now());
        for n in 0..2 * HOSTS_MAX as u64 {
            let now = start + Duration::from_millis(n);
            winners.insert(&n.to_string(), 1, Family::V6, now);
            assert_eq!(winners.get(&n.to_string(), 1, now), Some(Family::V6));
        }
        assert_eq!(winners.0.len(), HOSTS_MAX);
        let now = start + Duration::from_secs(3);
        assert_eq!(winners.get("0", 1, now), None);
        assert_eq!(winners.get(&HOSTS_MAX.to_string(), 1, now), Some(Family::V6));
        winners.insert("late", 1, Family::V4, start + 2 * REMEMBERED_FOR);
        assert_eq!(winners.0.len(), 1, "what nobody would believe makes room first");
    }

    #[test]
    fn an_ipv4_address_in_ipv6_clothes_is_ipv4() {
        for (text, family) in
            [("10.0.0.1:1", Family::V4), ("[::ffff:10.0.0.1]:1", Family::V4), ("[fd00::1]:1", Family::V6)]
        {
            assert_eq!(Family::of(text.parse().unwrap()), family, "{text}");
        }
    }
}

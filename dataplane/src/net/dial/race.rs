//! Role: which of a host's addresses is tried when.
//! Invariants: each address at most once, and no other · at most [`UNDER_WAY_MAX`] attempts at a time · each address
//! gets its try before the patience is over, even when all before it are silent · no clock here: the time, since the
//! race began, is a parameter.
//! See: RFC 8305 sections 4 and 5.

use std::{collections::VecDeque, io, net::SocketAddr, time::Duration};

use super::family::Family;

/// An address that has not answered for so long gets company. (RFC 8305: Connection Attempt Delay.)
pub(super) const NEXT_AFTER: Duration = Duration::from_millis(250);
/// Attempts at the same time at the most.
const UNDER_WAY_MAX: usize = 4;
/// Addresses of one host that are tried: a zone may hold thousands.
const ADDRS_MAX: usize = 32;

/// The state of a race.
pub(super) struct Race {
    untried: VecDeque<SocketAddr>,
    /// And when each began.
    under_way: Vec<(SocketAddr, Duration)>,
    failed: Vec<(SocketAddr, io::Error)>,
    /// When the next may begin, whatever the others do.
    next_at: Duration,
    /// How long an attempt may take.
    attempt: Duration,
    patience: Duration,
}

/// A host's addresses by turns of their families, `first` first; within a family in the order they had, each once.
pub(super) fn interleaved(addrs: &[SocketAddr], first: Family) -> Vec<SocketAddr> {
    let (mut ours, mut theirs): (VecDeque<_>, VecDeque<_>) =
        addrs.iter().partition(|addr| Family::of(**addr) == first);
    let mut order = Vec::with_capacity(addrs.len().min(ADDRS_MAX));
    while order.len() < ADDRS_MAX
        && let Some(addr) = ours.pop_front().or_else(|| theirs.pop_front())
    {
        if !order.contains(&addr) {
            order.push(addr);
            std::mem::swap(&mut ours, &mut theirs);
        }
    }
    order
}

/// For so many addresses, of which each may take so long.
pub(super) fn patience_for(addrs: usize, each: Duration) -> Duration {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let rounds = count(addrs.div_ceil(UNDER_WAY_MAX).max(1));
    each.saturating_mul(rounds).saturating_add(NEXT_AFTER.saturating_mul(count(addrs.saturating_sub(1))))
}

impl Race {
    pub(super) fn new(order: Vec<SocketAddr>, patience: Duration) -> Self {
        let count = u32::try_from(order.len()).unwrap_or(u32::MAX);
        // All of it where all can be under way together; else so much that the last is tried in time though every
        // one before it is silent: with n places, each n-th of the time starts another.
        let attempt = match order.len() {
            ..=UNDER_WAY_MAX => patience,
            _ => patience / count * UNDER_WAY_MAX as u32,
        };
        Self {
            untried: order.into(),
            under_way: Vec::new(),
            failed: Vec::new(),
            next_at: Duration::ZERO,
            attempt,
            patience,
        }
    }

    /// The address that is to be tried now, if one is.
    pub(super) fn start(&mut self, now: Duration) -> Option<SocketAddr> {
        if now < self.next_at || now >= self.patience || self.under_way.len() >= UNDER_WAY_MAX {
            return None;
        }
        let addr = self.untried.pop_front()?;
        self.under_way.push((addr, now));
        self.next_at = now + NEXT_AFTER;
        Some(addr)
    }

    /// An attempt is over, and was none: then the next need not wait.
    pub(super) fn failed(&mut self, addr: SocketAddr, error: io::Error, now: Duration) {
        self.under_way.retain(|(one, _)| *one != addr);
        self.next_at = now;
        if crate::run::descriptors::ran_out(&error) {
            // Another address would fare no better.
            self.untried.clear();
        }
        self.failed.push((addr, error));
    }

    /// Attempts whose time is over.
    pub(super) fn overdue(&self, now: Duration) -> Vec<SocketAddr> {
        let late = self.under_way.iter().filter(|(_, since)| now >= self.ends_at(*since));
        late.map(|(addr, _)| *addr).collect()
    }

    /// When there is something to do, if no attempt ends before; `None` when the race is over.
    pub(super) fn wakes_at(&self, now: Duration) -> Option<Duration> {
        let ends = self.under_way.iter().map(|(_, since)| self.ends_at(*since)).min();
        let may_start = !self.untried.is_empty() && self.under_way.len() < UNDER_WAY_MAX;
        let starts = (may_start && self.next_at.max(now) < self.patience).then_some(self.next_at);
        starts.into_iter().chain(ends).min()
    }

    /// What has failed, in the order of its failing.
    pub(super) fn take_failed(&mut self) -> Vec<(SocketAddr, io::Error)> {
        std::mem::take(&mut self.failed)
    }

    fn ends_at(&self, since: Duration) -> Duration {
        (since + self.attempt).min(self.patience)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn addrs(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 1)).collect()
    }

    fn refused() -> io::Error {
        io::Error::from_raw_os_error(libc::ECONNREFUSED)
    }

    #[test]
    fn families_take_turns_and_the_first_one_begins() {
        let all = addrs(&["fd00::1", "fd00::2", "fd00::3", "10.0.0.1", "10.0.0.2"]);
        let order = addrs(&["fd00::1", "10.0.0.1", "fd00::2", "10.0.0.2", "fd00::3"]);
        assert_eq!(interleaved(&all, Family::V6), order);
        let order = addrs(&["10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2", "fd00::3"]);
        assert_eq!(interleaved(&all, Family::V4), order);
        let one_family = addrs(&["10.0.0.2", "10.0.0.1"]);
        assert_eq!(
            interleaved(&one_family, Family::V6),
            one_family,
            "a family that is not there changes nothing"
        );
        let twice = addrs(&["10.0.0.1", "10.0.0.1", "fd00::1", "10.0.0.1"]);
        assert_eq!(interleaved(&twice, Family::V4), addrs(&["10.0.0.1", "fd00::1"]));
        let many: Vec<_> = (0..999).map(|port| SocketAddr::new([10, 0, 0, 1].into(), port)).collect();
        assert_eq!(interleaved(&many, Family::V4), many[..ADDRS_MAX]);
    }

    #[test]
    fn a_race_that_begins_too_late_is_over_at_once() {
        let mut race = Race::new(addrs(&["10.0.0.1"]), 5 * MS);
        assert_eq!((race.start(9 * MS), race.wakes_at(9 * MS)), (None, None));
    }

    #[test]
    fn the_next_begins_after_250_ms_or_at_once_when_one_has_failed() {
        let all = addrs(&["fd00::1", "10.0.0.1", "fd00::2"]);
        let mut race = Race::new(all.clone(), 8000 * MS);
        assert_eq!((race.start(Duration::ZERO), race.start(Duration::ZERO)), (Some(all[0]), None));
        assert_eq!(race.wakes_at(Duration::ZERO), Some(NEXT_AFTER));
        assert_eq!(race.start(249 * MS), None);
        assert_eq!(race.start(250 * MS), Some(all[1]));
        race.failed(all[1], refused(), 260 * MS);
        assert_eq!(race.start(260 * MS), Some(all[2]));
        race.failed(all[2], refused(), 261 * MS);
        assert_eq!(race.wakes_at(261 * MS), Some(8000 * MS), "the first may still answer");
        assert_eq!(race.overdue(8000 * MS), [all[0]]);
        race.failed(all[0], refused(), 8000 * MS);
        assert_eq!(race.wakes_at(8000 * MS), None);
        let order: Vec<_> = race.take_failed().iter().map(|(addr, _)| *addr).collect();
        assert_eq!(order, [all[1], all[2], all[0]]);
    }

    #[test]
    fn out_of_descriptors_no_other_address_is_tried() {
        let mut race = Race::new(addrs(&["10.0.0.1", "10.0.0.2"]), 8000 * MS);
        let first = race.start(Duration::ZERO).unwrap();
        race.failed(first, io::Error::from_raw_os_error(libc::EMFILE), MS);
        assert_eq!((race.start(MS), race.wakes_at(MS)), (None, None));
    }

    #[test]
    fn a_gateway_with_more_addresses_than_places_has_time_for_them_all() {
        let three_s = 3000 * MS;
        assert_eq!(patience_for(1, three_s), three_s);
        assert_eq!(patience_for(2, three_s), 3250 * MS);
        assert_eq!(patience_for(8, three_s), 7750 * MS);
        assert_eq!(patience_for(usize::MAX, Duration::MAX), Duration::MAX);
    }

    proptest! {
        /// By a clock that jumps to where the race wants to be woken.
        #[test]
        fn every_address_is_tried_once_and_in_time_though_all_are_silent(
            count in 1usize..20, patience_ms in 100u32..20_000, fails in prop::collection::vec(any::<bool>(), 20),
        ) {
            let all: Vec<_> = (0..count).map(|n| SocketAddr::new([10, 0, 0, n as u8].into(), 1)).collect();
            let patience = patience_ms * MS;
            let mut race = Race::new(all.clone(), patience);
            let (mut now, mut tried) = (Duration::ZERO, Vec::new());
            loop {
                for late in race.overdue(now) {
                    race.failed(late, refused(), now);
                }
                while let Some(addr) = race.start(now) {
                    tried.push(addr);
                    if fails[tried.len() - 1] {
                        race.failed(addr, refused(), now);
                    }
                }
                prop_assert!(race.under_way.len() <= UNDER_WAY_MAX);
                let Some(at) = race.wakes_at(now) else { break };
                prop_assert!(at > now && at <= patience, "{:?} after {:?}", at, now);
                now = at;
            }
            let enough = patience >= NEXT_AFTER * count as u32;
            prop_assert!(tried == all || (!enough && all.starts_with(&tried)), "{:?}", tried);
            prop_assert_eq!(race.take_failed().len(), tried.len());
        }
    }
}

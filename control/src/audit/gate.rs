//! Role: which refusals get a line of the audit log: so many a second of one source, token and code.
//! Invariants: a refusal that gets none takes no lock, allocates nothing and formats nothing · each refusal is written
//! or counted: the count that a worker adds to decides which, and only the tick takes it away.
//! See: docs/audit.md, `refused_more`.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use narrowlink_dataplane::{gateway::principal::Principal, run::source::Source};
use narrowlink_proto::ended::RefusalCode;

use super::Line;

/// Refusals of one kind that are written in one second; the rest is counted.
const REFUSALS_PER_S: u32 = 10;
/// Kinds that are told apart at a time; beyond that all others share one count.
const SLOTS: usize = 4_096;
/// A kind takes one of so many slots in a row: with half of all slots taken, about one of 2^8 kinds finds none.
const PROBES: usize = 8;
/// The key of a slot that nobody has.
const NOBODY: u64 = 0;

/// Counts refusals, on the workers; says once a second, on the thread that writes, which were only counted.
pub(super) struct Gate {
    slots: Box<[Slot]>,
    /// Of kinds that found no slot.
    others: AtomicU32,
    /// Peers can't choose kinds that share a slot.
    hasher: RandomState,
}

/// Refusals of one kind.
#[derive(Default)]
struct Slot {
    key: AtomicU64,
    /// Since the last tick.
    refusals: AtomicU32,
    /// The line that counts them, but for its time and count.
    more: ArcSwapOption<Line>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            slots: std::iter::repeat_with(Slot::default).take(SLOTS).collect(),
            others: AtomicU32::new(0),
            hasher: RandomState::new(),
        }
    }
}

impl Gate {
    /// Whether a refusal is one that is written; else it is counted.
    pub(super) fn admit(&self, peer_addr: SocketAddr, who: Option<&Principal>, code: RefusalCode) -> bool {
        let source = Source::from(peer_addr);
        let who_is = who.map(|who| (who.uid.as_bytes(), who.token_id.as_str(), who.name.as_str()));
        let key = self.hasher.hash_one((source, who_is, code)).max(NOBODY + 1);
        let refusals = match self.slot(key) {
            Some((slot, is_new)) => {
                if is_new {
                    slot.more.store(Some(Arc::new(Line::refused_more(source, who, code))));
                }
                &slot.refusals
            }
            None => &self.others,
        };
        refusals.fetch_add(1, Ordering::Relaxed) < REFUSALS_PER_S
    }

    /// The slot of a kind, and whether it has it since now.
    fn slot(&self, key: u64) -> Option<(&Slot, bool)> {
        let first = key as usize % SLOTS;
        let probes = || (first..first + PROBES).map(|at| &self.slots[at % SLOTS]);
        if let Some(slot) = probes().find(|slot| slot.key.load(Ordering::Acquire) == key) {
            return Some((slot, false));
        }
        probes().find_map(|slot| {
            match slot.key.compare_exchange(NOBODY, key, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => Some((slot, true)),
                Err(now) => (now == key).then_some((slot, false)),
            }
        })
    }

    /// The counts of what was not written since the last call. A kind that was not refused since then is forgotten.
    pub(super) fn handle_tick(&self) -> Vec<Line> {
        let mut others = left_out(&self.others);
        let mut lines = Vec::new();
        for slot in &self.slots {
            let refusals = slot.refusals.load(Ordering::Relaxed);
            if refusals == 0 {
                if slot.key.load(Ordering::Acquire) != NOBODY {
                    slot.more.store(None);
                    // Whoever counts there even so is counted: below, under whoever has the slot then.
                    slot.key.store(NOBODY, Ordering::Release);
                }
                continue;
            }
            match (left_out(&slot.refusals), slot.more.load_full()) {
                (0, _) => {}
                (more, Some(line)) => lines.push(line.counting(more)),
                (more, None) => others += more,
            }
        }
        if others > 0 {
            lines.push(Line::new("refused_more").counting(others));
        }
        lines
    }
}

/// How many were counted and not written, of which the next count begins at 0.
fn left_out(refusals: &AtomicU32) -> u64 {
    refusals.swap(0, Ordering::Relaxed).saturating_sub(REFUSALS_PER_S).into()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use narrowlink_proto::{id::Uid, message::Speaker};

    use super::*;

    fn who(token_id: &str) -> Principal {
        Principal { token_id: token_id.to_owned(), ..Principal::new(Speaker::Client, Uid::nil(), "laptop") }
    }

    fn peer(last: u16) -> SocketAddr {
        let [high, low] = last.to_be_bytes();
        ([192, 0, high, low], last).into()
    }

    #[test]
    fn refusals_of_one_kind_are_written_and_then_counted_and_of_another_written() {
        let gate = Gate::default();
        let (one, other) = (who("t1"), who("t2"));
        let admitted = |last, who, code| (0..100).filter(|_| gate.admit(peer(last), who, code)).count();
        assert_eq!(admitted(1, Some(&one), RefusalCode::Policy), 10);
        assert_eq!(admitted(1, Some(&one), RefusalCode::Limited), 10, "another code");
        assert_eq!(admitted(1, Some(&other), RefusalCode::Policy), 10, "another token");
        assert_eq!(admitted(2, Some(&one), RefusalCode::Policy), 10, "another source");
        assert_eq!(admitted(1, None, RefusalCode::Unauthenticated), 10, "no token");
        let lines = gate.handle_tick();
        assert!(lines.iter().all(|line| line.lines == Some(90) && line.event == "refused_more"), "{lines:?}");
        let said =
            |line: &&Line| line.jti.as_deref() == Some("t2") && line.peer.as_deref() == Some("192.0.0.1");
        assert_eq!((lines.len(), lines.iter().filter(said).count()), (5, 1), "{lines:?}");
        assert_eq!(admitted(1, Some(&one), RefusalCode::Policy), 10, "a second later");
        assert_eq!(gate.handle_tick()[0].jti.as_deref(), Some("t1"));
        assert!(gate.handle_tick().is_empty(), "nothing was left out");
        assert!(
            gate.slots.iter().all(|slot| slot.key.load(Ordering::Relaxed) == NOBODY),
            "all are forgotten"
        );
    }

    #[test]
    fn the_addresses_of_one_network_are_one_source() {
        let gate = Gate::default();
        let admit = |low: &u16| {
            let peer = ([0x2001, 0xdb8, 1, 2, 0, 0, 0, *low], 1).into();
            gate.admit(peer, None, RefusalCode::Unauthenticated)
        };
        let admitted = (0..1_000).filter(admit).count();
        let lines = gate.handle_tick();
        let said: Vec<_> = lines.iter().map(|line| (line.peer.as_deref(), line.lines)).collect();
        assert_eq!((admitted, said), (10, vec![(Some("2001:db8:1:2::/64"), Some(990))]));
    }

    #[test]
    fn many_sources_share_a_count_and_none_is_missing() {
        let gate = Gate::default();
        let admit = |last: &u16| gate.admit(peer(*last), None, RefusalCode::Unauthenticated);
        let admitted = (0..=u16::MAX).filter(admit).count() as u64;
        let lines = gate.handle_tick();
        assert!(admitted <= SLOTS as u64 + u64::from(REFUSALS_PER_S), "{admitted}");
        assert_eq!((lines.len(), lines[0].peer.as_deref()), (1, None));
        assert_eq!(admitted + lines[0].lines.unwrap(), 65_536);
    }

    #[test]
    fn each_refusal_is_written_or_counted_while_the_tick_comes_at_any_time() {
        const REFUSALS: u64 = 50_000;
        let gate = Gate::default();
        let workers = |n: u16| {
            let gate = &gate;
            // Kinds come, are forgotten and come again.
            let admit = move |n: &u64| gate.admit(peer((*n / 100 % 7) as u16), None, RefusalCode::Limited);
            move || (0..REFUSALS).map(|at| at + u64::from(n)).filter(admit).count() as u64
        };
        let counted = |lines: Vec<Line>| lines.iter().filter_map(|line| line.lines).sum::<u64>();
        let (mut written, mut left_out) = (0, 0);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..3).map(|n| scope.spawn(workers(n))).collect();
            while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
                left_out += counted(gate.handle_tick());
            }
            written = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        });
        assert_eq!(written + left_out + counted(gate.handle_tick()), 3 * REFUSALS);
    }
}

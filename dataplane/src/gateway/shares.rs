//! Role: how this process's descriptors are shared out among its connections.
//! Invariants: whoever logs in finds one: strangers have a share of their own, lanes never have more than half, and no
//! user has more than four times what is left for others.
//! See: docs/configuration.md "Limits"; getrlimit(2).

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Resource, getrlimit};

/// For listeners, rings, logs and files: a gateway with two workers and two services has 20 of its own.
const OWN: u64 = 48;
/// The parts of sixteen of the others. What is left is for pipes.
const CONNECTIONS_PART: u64 = 13;
const LANES_PART: u64 = 8;
const STRANGERS_PART: u64 = 2;
const PARTS: u64 = 16;
/// A user has no more than so many times what is free: one alone four fifths of all, two four ninths each, and there
/// is always something for the next.
const SHARE: u64 = 4;

/// The descriptors that connections may have, and those that they do.
#[derive(Debug)]
pub struct Descriptors {
    connections: Share,
    lanes: Share,
    strangers_max: usize,
}

#[derive(Debug)]
struct Share {
    max: u32,
    taken: AtomicU32,
}

/// What one user has of them.
#[derive(Debug, Default)]
pub(crate) struct Held {
    connections: AtomicU32,
    lanes: AtomicU32,
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Short {
    /// Nobody gets one.
    Everybody,
    /// Others would.
    User,
}

impl Share {
    fn new(max: u64) -> Self {
        Self { max: u32::try_from(max).unwrap_or(u32::MAX).max(1), taken: AtomicU32::new(0) }
    }

    fn take(&self, held: &AtomicU32) -> Result<(), Short> {
        let mine = held.fetch_add(1, Ordering::Relaxed);
        let taken = self.taken.fetch_add(1, Ordering::Relaxed);
        let free = self.max.saturating_sub(taken);
        let short = match free {
            0 => Short::Everybody,
            free if u64::from(mine) >= u64::from(free) * SHARE => Short::User,
            _ => return Ok(()),
        };
        self.give_back(held);
        Err(short)
    }

    fn give_back(&self, held: &AtomicU32) {
        held.fetch_sub(1, Ordering::Relaxed);
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Descriptors {
    /// Those of this process, as many as it may open now.
    pub fn of_this_process() -> Self {
        Self::of(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
    }

    /// Those of a process that may open so many.
    pub fn of(allowed: u64) -> Self {
        let allowed = allowed.saturating_sub(OWN);
        let part = |part| {
            u64::try_from(u128::from(allowed) * u128::from(part) / u128::from(PARTS)).unwrap_or(u64::MAX)
        };
        Self {
            connections: Share::new(part(CONNECTIONS_PART)),
            lanes: Share::new(part(LANES_PART)),
            strangers_max: usize::try_from(part(STRANGERS_PART)).unwrap_or(usize::MAX).max(1),
        }
    }

    /// Strangers at the most.
    pub fn strangers_max(&self) -> usize {
        self.strangers_max
    }

    pub(crate) fn take(&self, is_lane: bool, held: &Held) -> Result<(), Short> {
        self.connections.take(&held.connections)?;
        if is_lane && let Err(short) = self.lanes.take(&held.lanes) {
            self.connections.give_back(&held.connections);
            return Err(short);
        }
        Ok(())
    }

    pub(crate) fn give_back(&self, is_lane: bool, held: &Held) {
        self.connections.give_back(&held.connections);
        if is_lane {
            self.lanes.give_back(&held.lanes);
        }
    }
}

/// What is wrong with how many descriptors this process may have, if it is so few that hardly anybody can be served.
pub fn scarcity() -> Option<String> {
    scarcity_of(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
}

fn scarcity_of(allowed: u64) -> Option<String> {
    let few = allowed < OWN + PARTS;
    few.then(|| {
        format!(
            "no more than {allowed} open files are allowed, of which the gateway keeps {OWN} for itself, so hardly anybody \
             is served: allow it 1024 at least (LimitNOFILE= of systemd, `ulimit -n`)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(all: &Descriptors, is_lane: bool, user: &Held) -> usize {
        (0..10_000).take_while(|_| all.take(is_lane, user).is_ok()).count()
    }

    #[test]
    fn lanes_get_half_and_a_user_never_all() {
        let all = Descriptors::of(1_600 + OWN);
        assert_eq!(all.strangers_max(), 200);
        let users: [Held; 3] = Default::default();
        let lanes = take_all(&all, true, &users[0]);
        assert_eq!(lanes, 640, "four fifths of half of them");
        assert_eq!(all.take(true, &users[0]), Err(Short::User));
        assert!(take_all(&all, true, &users[1]) > 100);
        // Whoever holds lanes has fewer other connections, too; a third user finds some in any case.
        take_all(&all, false, &users[0]);
        take_all(&all, false, &users[1]);
        assert!(take_all(&all, false, &users[2]) > 10);
        let taken = |share: &Share| share.taken.load(Ordering::Relaxed);
        assert!(taken(&all.connections) <= 1_300 && taken(&all.lanes) <= 800);
        for _ in 0..lanes {
            all.give_back(true, &users[0]);
        }
        assert_eq!(users[0].lanes.load(Ordering::Relaxed), 0);
        assert!(all.take(true, &users[0]).is_ok());
    }

    #[test]
    fn a_lane_for_which_there_is_none_takes_nothing_from_other_connections() {
        let all = Descriptors::of(160 + OWN);
        let user = Held::default();
        let lanes = take_all(&all, true, &user);
        for _ in 0..1_000 {
            assert_eq!(all.take(true, &user), Err(Short::User));
        }
        let taken = [&user.connections, &user.lanes, &all.connections.taken, &all.lanes.taken];
        assert_eq!(taken.map(|taken| taken.load(Ordering::Relaxed) as usize), [lanes; 4]);
    }

    #[test]
    fn so_few_descriptors_that_hardly_anybody_is_served_are_warned_of() {
        let words = scarcity_of(40).unwrap();
        assert!(words.contains("than 40 open files") && words.contains("LimitNOFILE="), "{words}");
        assert!(scarcity_of(OWN + PARTS).is_none() && scarcity_of(u64::MAX).is_none());
    }

    #[test]
    fn few_descriptors_are_shared_out_too_and_none_leaves_one() {
        for allowed in [0, 1, 16, 64] {
            let all = Descriptors::of(allowed);
            let user = Held::default();
            assert!(all.strangers_max() >= 1);
            assert_eq!(all.take(true, &user), Ok(()), "{allowed}");
        }
        assert_eq!(Descriptors::of(u64::MAX).connections.max, u32::MAX, "as good as none");
    }
}

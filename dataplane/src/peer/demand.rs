//! Role: how many idle connections are kept ready: an agent's lanes, a client's streams.
//! Invariants: never more than `ready_max` idle ones are wanted, never fewer than the minimum; all
//! together stay within the maximum. Pure: no clock, no sockets.
//! See: ARCHITECTURE.md "Lanes".

use std::time::Duration;

/// How often [`Demand::on_tick`] is due.
pub const TICK: Duration = Duration::from_secs(10);

/// Between what a number of connections may move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Kept idle in any case.
    pub min: u32,
    /// In all, whatever they do.
    pub max: u32,
    /// Wanted idle at the most, whatever happens.
    pub ready_max: u32,
    /// Being opened at the same time at the most.
    pub opening_max: u32,
}

/// The connections there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// Waiting for a session.
    pub idle: u32,
    /// On their way to that.
    pub opening: u32,
    /// In a session.
    pub busy: u32,
}

/// How many idle connections are wanted: grows with use, and shrinks when they lie unused.
#[derive(Debug)]
pub struct Demand {
    bounds: Bounds,
    wanted: u32,
    /// A doubling whose connections have not all come yet: a burst counts once.
    rising: bool,
    /// Whether any was taken since the last tick.
    used: bool,
    /// The fewest idle ones since the last tick: so many were never needed.
    lowest_idle: u32,
}

impl Demand {
    /// Begins with the minimum.
    pub fn new(bounds: Bounds) -> Self {
        let wanted = bounds.min.min(bounds.ready_max);
        Self { bounds, wanted, rising: false, used: false, lowest_idle: 0 }
    }

    /// One was taken, or looked for in vain; `idle_left` others are ready.
    pub fn on_take(&mut self, idle_left: u32) {
        self.used = true;
        self.lowest_idle = self.lowest_idle.min(idle_left);
        if idle_left == 0 && !self.rising {
            self.raise_to(self.wanted * 2);
            self.rising = true;
        }
    }

    /// So many sessions wait for connections.
    pub fn on_need(&mut self, waiting: u32) {
        self.used = true;
        self.lowest_idle = 0;
        self.raise_to(waiting);
    }

    /// One has become idle, so that there are `idle` now.
    pub fn on_idle(&mut self, idle: u32) {
        if idle >= self.wanted {
            self.rising = false;
        }
    }

    fn raise_to(&mut self, wanted: u32) {
        self.wanted = self.wanted.max(wanted.clamp(1, self.bounds.ready_max));
    }

    /// Another [`TICK`] has passed: halves what lay unused. How many of the `idle` ones are to go.
    pub fn on_tick(&mut self, idle: u32) -> u32 {
        // In use, two is the least: one that is taken, one for the next before that comes back.
        let unused = if self.used { self.wanted > 2 && self.lowest_idle * 2 >= self.wanted } else { true };
        if unused {
            self.wanted = (self.wanted / 2).max(self.bounds.min.min(self.bounds.ready_max));
        }
        // In use, what has just come back is about to be taken again.
        let kept = if self.used { self.wanted * 2 } else { self.wanted };
        let surplus = idle.saturating_sub(kept);
        (self.used, self.rising, self.lowest_idle) = (false, false, idle - surplus);
        surplus
    }

    /// How many are to be opened now.
    pub fn missing(&self, now: Census) -> u32 {
        let coming = now.idle + now.opening;
        let wanted = self.wanted.saturating_sub(coming);
        let room = self.bounds.max.saturating_sub(coming + now.busy);
        wanted.min(room).min(self.bounds.opening_max.saturating_sub(now.opening))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY_MAX: u32 = 64;
    const OPENING_MAX: u32 = 8;

    fn demand(min: u32, max: u32) -> Demand {
        Demand::new(Bounds { min, max, ready_max: READY_MAX, opening_max: OPENING_MAX })
    }

    fn census(idle: u32, opening: u32, busy: u32) -> Census {
        Census { idle, opening, busy }
    }

    #[test]
    fn who_is_not_used_keeps_the_minimum() {
        for (min, missing) in [(0, 0), (1, 1), (3, 3), (1000, 8)] {
            let mut demand = demand(min, 2000);
            assert_eq!(demand.missing(Census::default()), missing);
            for _ in 0..100 {
                assert_eq!(demand.on_tick(min.min(READY_MAX)), 0);
            }
            assert_eq!(demand.wanted, min.min(READY_MAX));
        }
    }

    #[test]
    fn the_last_one_that_is_taken_doubles_the_target_once_a_burst() {
        let mut demand = demand(1, 100);
        demand.on_take(0);
        assert_eq!(demand.missing(census(0, 0, 1)), 2);
        demand.on_take(0);
        assert_eq!(demand.wanted, 2, "the lanes of the first doubling are still on their way");
        demand.on_idle(2);
        demand.on_take(1);
        assert_eq!(demand.wanted, 2, "one is left");
        demand.on_take(0);
        assert_eq!(demand.wanted, 4);
        for _ in 0..10 {
            demand.on_idle(READY_MAX);
            demand.on_take(0);
        }
        assert_eq!(demand.wanted, READY_MAX);
    }

    #[test]
    fn who_waits_gets_one_even_without_a_minimum() {
        let mut demand = demand(0, 100);
        demand.on_need(1);
        assert_eq!(demand.missing(Census::default()), 1);
        demand.on_need(30);
        assert_eq!(demand.missing(census(0, 1, 0)), OPENING_MAX - 1, "bounded at a time");
        assert_eq!(demand.missing(census(25, 0, 0)), 5);
        demand.on_need(u32::MAX);
        assert_eq!(demand.wanted, READY_MAX);
        demand.on_need(0);
        assert_eq!(demand.wanted, READY_MAX);
    }

    #[test]
    fn all_together_stay_within_the_maximum() {
        let mut demand = demand(4, 6);
        demand.on_need(50);
        for (idle, opening, busy, missing) in
            [(0, 0, 0, 6), (2, 2, 0, 2), (2, 2, 2, 0), (0, 0, 6, 0), (0, 0, 9, 0), (1, 0, 4, 1)]
        {
            assert_eq!(demand.missing(census(idle, opening, busy)), missing, "{idle} {opening} {busy}");
        }
    }

    #[test]
    fn an_unused_target_halves_to_the_minimum_and_the_surplus_goes() {
        let mut demand = demand(1, 100);
        demand.on_need(40);
        demand.on_idle(40);
        assert_eq!(demand.on_tick(40), 0, "they were needed a moment ago");
        let mut idle = 40;
        let mut seen = Vec::new();
        for _ in 0..7 {
            idle -= demand.on_tick(idle);
            seen.push(idle);
        }
        assert_eq!(seen, [20, 10, 5, 2, 1, 1, 1]);
    }

    #[test]
    fn one_session_after_the_other_opens_none_each() {
        let mut demand = demand(1, 100);
        demand.on_take(0);
        // The one that was taken and the two that were opened for it.
        demand.on_idle(3);
        for _ in 0..10 {
            for _ in 0..5 {
                demand.on_take(2);
                assert_eq!(demand.missing(census(2, 0, 1)), 0);
                demand.on_idle(3);
            }
            assert_eq!(demand.on_tick(3), 0);
        }
    }

    #[test]
    fn a_target_that_is_half_used_stays_and_one_that_is_hardly_used_shrinks() {
        let mut demand = demand(1, 100);
        demand.on_need(16);
        demand.on_tick(16);
        demand.on_take(7);
        demand.on_tick(16);
        assert_eq!(demand.wanted, 16);
        demand.on_take(15);
        demand.on_tick(16);
        assert_eq!(demand.wanted, 8);
    }
}

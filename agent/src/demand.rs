//! Role: how many idle lanes an agent keeps ready for one gateway.
//! Invariants: never more than [`READY_MAX`] idle lanes are wanted, never fewer than the configured
//! minimum; lanes in all stay within the configured maximum. Pure: no clock, no sockets.
//! See: ARCHITECTURE.md "Lanes".

use std::time::Duration;

use crate::config::LaneRange;

/// Idle lanes that are wanted at the most, whatever happens.
const READY_MAX: u32 = 64;
/// Lanes that are being opened at the same time at the most.
const OPENING_MAX: u32 = 8;
/// How often [`Demand::on_tick`] is due.
pub(crate) const TICK: Duration = Duration::from_secs(10);

/// The lanes there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Census {
    /// Waiting for a dial.
    pub(crate) idle: u32,
    /// On their way to that.
    pub(crate) opening: u32,
    /// In a session.
    pub(crate) busy: u32,
}

/// How many idle lanes are wanted: grows with use, and shrinks when they lie unused.
#[derive(Debug)]
pub(crate) struct Demand {
    range: LaneRange,
    wanted: u32,
    /// A doubling whose lanes have not all come yet: a burst counts once.
    rising: bool,
    /// Whether anything was dialled since the last tick.
    used: bool,
    /// The fewest idle lanes since the last tick: so many were never needed.
    lowest_idle: u32,
}

impl Demand {
    pub(crate) fn new(range: LaneRange) -> Self {
        let wanted = range.min.min(READY_MAX);
        Self { range, wanted, rising: false, used: false, lowest_idle: 0 }
    }

    /// A lane has been dialled; `idle_left` others are ready.
    pub(crate) fn on_dial(&mut self, idle_left: u32) {
        self.used = true;
        self.lowest_idle = self.lowest_idle.min(idle_left);
        if idle_left == 0 && !self.rising {
            self.raise_to(self.wanted * 2);
            self.rising = true;
        }
    }

    /// The gateway says that `waiting` sessions wait for lanes.
    pub(crate) fn on_need(&mut self, waiting: u32) {
        self.used = true;
        self.lowest_idle = 0;
        self.raise_to(waiting);
    }

    /// A lane has become idle, so that there are `idle` now.
    pub(crate) fn on_idle(&mut self, idle: u32) {
        if idle >= self.wanted {
            self.rising = false;
        }
    }

    fn raise_to(&mut self, wanted: u32) {
        self.wanted = self.wanted.max(wanted.clamp(1, READY_MAX));
    }

    /// Another [`TICK`] has passed: halves what lay unused. How many of the `idle` lanes are to go.
    pub(crate) fn on_tick(&mut self, idle: u32) -> u32 {
        // In use, two is the least: one that is dialled, one for the next before that comes back.
        let unused = if self.used { self.wanted > 2 && self.lowest_idle * 2 >= self.wanted } else { true };
        if unused {
            self.wanted = (self.wanted / 2).max(self.range.min.min(READY_MAX));
        }
        // In use, what has just come back is about to be dialled again.
        let kept = if self.used { self.wanted * 2 } else { self.wanted };
        let surplus = idle.saturating_sub(kept);
        (self.used, self.rising, self.lowest_idle) = (false, false, idle - surplus);
        surplus
    }

    /// How many lanes are to be opened now.
    pub(crate) fn missing(&self, now: Census) -> u32 {
        let coming = now.idle + now.opening;
        let wanted = self.wanted.saturating_sub(coming);
        let room = self.range.max.saturating_sub(coming + now.busy);
        wanted.min(room).min(OPENING_MAX.saturating_sub(now.opening))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(min: u32, max: u32) -> Demand {
        Demand::new(LaneRange { min, max })
    }

    fn census(idle: u32, opening: u32, busy: u32) -> Census {
        Census { idle, opening, busy }
    }

    #[test]
    fn an_agent_that_nobody_uses_keeps_its_minimum() {
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
    fn the_last_lane_that_is_dialled_doubles_the_target_once_a_burst() {
        let mut demand = demand(1, 100);
        demand.on_dial(0);
        assert_eq!(demand.missing(census(0, 0, 1)), 2);
        demand.on_dial(0);
        assert_eq!(demand.wanted, 2, "the lanes of the first doubling are still on their way");
        demand.on_idle(2);
        demand.on_dial(1);
        assert_eq!(demand.wanted, 2, "one is left");
        demand.on_dial(0);
        assert_eq!(demand.wanted, 4);
        for _ in 0..10 {
            demand.on_idle(READY_MAX);
            demand.on_dial(0);
        }
        assert_eq!(demand.wanted, READY_MAX);
    }

    #[test]
    fn who_waits_gets_a_lane_even_without_a_minimum() {
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
    fn lanes_in_all_stay_within_the_maximum() {
        let mut demand = demand(4, 6);
        demand.on_need(50);
        for (idle, opening, busy, missing) in
            [(0, 0, 0, 6), (2, 2, 0, 2), (2, 2, 2, 0), (0, 0, 6, 0), (0, 0, 9, 0), (1, 0, 4, 1)]
        {
            assert_eq!(demand.missing(census(idle, opening, busy)), missing, "{idle} {opening} {busy}");
        }
    }

    #[test]
    fn an_unused_target_halves_to_the_minimum_and_its_lanes_go() {
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
    fn one_session_after_the_other_opens_no_lane_each() {
        let mut demand = demand(1, 100);
        demand.on_dial(0);
        // The one that was dialled and the two that were opened for it.
        demand.on_idle(3);
        for _ in 0..10 {
            for _ in 0..5 {
                demand.on_dial(2);
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
        demand.on_dial(7);
        demand.on_tick(16);
        assert_eq!(demand.wanted, 16);
        demand.on_dial(15);
        demand.on_tick(16);
        assert_eq!(demand.wanted, 8);
    }
}

//! Role: what can be measured, and what each load process has to send for it.
//! Invariants: no load process takes more sockets than it may have.

use super::plan::{Direction, Traffic};

/// Sockets that a load process takes at the most: below the limit of any system that is meant for such loads.
const DESCRIPTORS: usize = 9_000;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// As much as goes through.
    Throughput {
        /// Which way.
        direction: Direction,
    },
    /// One message in flight on each connection.
    Pingpong {
        /// Its length.
        bytes: usize,
        /// Which way it goes first.
        direction: Direction,
    },
    /// New sessions.
    Churn,
    /// Connections that stand and say nothing.
    Idle,
    /// Control links that stand; to others TLS connections behind which there is nobody either.
    Links,
    /// One interactive connection beside bulk ones.
    Mixed {
        /// Which way the bulk goes.
        direction: Direction,
    },
}

impl Scenario {
    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Throughput { .. } => "throughput",
            Self::Pingpong { .. } => "pingpong",
            Self::Churn => "churn",
            Self::Idle => "idle",
            Self::Links => "links",
            Self::Mixed { .. } => "mixed",
        }
    }

    /// Which way it goes, where that is a question.
    pub const fn direction(self) -> Option<Direction> {
        match self {
            Self::Throughput { direction } | Self::Pingpong { direction, .. } | Self::Mixed { direction } => {
                Some(direction)
            }
            Self::Churn | Self::Idle | Self::Links => None,
        }
    }

    /// The same, for titles.
    pub fn title(self) -> String {
        match self.direction() {
            Some(direction) => format!("{} {}", self.name(), direction.name()),
            None => self.name().to_owned(),
        }
    }

    /// Whether each round needs a new process: memory that was once taken is seldom given back.
    pub const fn needs_a_fresh_subject(self) -> bool {
        matches!(self, Self::Idle | Self::Links)
    }

    /// What each load process sends, and over how many connections.
    pub fn parts(self, connections: usize) -> Vec<(Traffic, usize)> {
        let split = |traffic, most: usize| {
            let count = connections.div_ceil(most).max(1);
            let share = |n| connections / count + usize::from(n < connections % count);
            (0..count).map(|n| (traffic, share(n))).collect()
        };
        match self {
            Self::Throughput { direction } => vec![(Traffic::Bulk { direction }, connections)],
            Self::Pingpong { bytes, direction } => {
                vec![(Traffic::Pingpong { bytes, direction }, connections)]
            }
            Self::Churn => vec![(Traffic::Churn, connections)],
            // Both ends of each are ours.
            Self::Idle => split(Traffic::Idle, DESCRIPTORS / 2),
            Self::Links => split(Traffic::Links, DESCRIPTORS),
            Self::Mixed { direction } => {
                // A user types at the client, whichever way the bulk goes.
                let keystrokes = Traffic::Pingpong { bytes: 1, direction: Direction::Up };
                vec![(Traffic::Bulk { direction }, connections), (keystrokes, 1)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_process_takes_more_sockets_than_it_may_have() {
        let parts = |scenario: Scenario, connections| {
            scenario.parts(connections).into_iter().map(|(_, n)| n).collect::<Vec<_>>()
        };
        assert_eq!(parts(Scenario::Idle, 9_000), [4_500, 4_500]);
        assert_eq!(parts(Scenario::Idle, 9_001), [3_001, 3_000, 3_000]);
        assert_eq!(parts(Scenario::Idle, 64), [64]);
        assert_eq!(parts(Scenario::Links, 10_000), [5_000, 5_000]);
        assert_eq!(parts(Scenario::Mixed { direction: Direction::Down }, 8), [8, 1]);
    }
}

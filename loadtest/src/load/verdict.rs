//! Role: what may be said of the ratio of two subjects' figures.
//! Invariants: what one build differs from itself by (A/A) is called no difference between two builds.

use super::{figures::Better, spread::Spread};

/// Of fewer rounds nobody knows by how much a build differs from itself.
const ROUNDS_MIN: usize = 3;

/// What may be said of a ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The first subject is the better one.
    Better,
    /// It is the worse one.
    Worse,
    /// The same build differs as much from itself.
    WithinNoise,
    /// Nothing.
    TooFewRounds,
}

impl Verdict {
    /// `noise` is the ratio of a build to itself. Which of the two stands above is chance, so it counts both ways.
    pub fn of(better: Better, ratio: Spread, noise: Spread, rounds: usize) -> Self {
        if rounds < ROUNDS_MIN {
            return Self::TooFewRounds;
        }
        let least = noise.min.min(1.0 / noise.max);
        if (least..=1.0 / least).contains(&ratio.median) {
            return Self::WithinNoise;
        }
        if (ratio.median < 1.0) == (better == Better::Less) { Self::Better } else { Self::Worse }
    }

    /// For tables.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::WithinNoise => "within A/A",
            Self::TooFewRounds => "too few rounds",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_more_than_a_build_differs_from_itself_by_is_a_difference() {
        let spread = |median, min, max| Spread { median, min, max };
        let verdict =
            |better, median| Verdict::of(better, spread(median, 0.1, 9.0), spread(1.0, 0.95, 1.25), 5);
        // Up to a quarter more was seen, so that a fifth less is none either.
        for none in [0.8, 0.9, 1.0, 1.25] {
            assert_eq!(verdict(Better::Less, none), Verdict::WithinNoise, "{none}");
        }
        assert_eq!(
            [verdict(Better::Less, 0.79), verdict(Better::Less, 1.26)],
            [Verdict::Better, Verdict::Worse]
        );
        assert_eq!(
            [verdict(Better::More, 0.79), verdict(Better::More, 1.26)],
            [Verdict::Worse, Verdict::Better]
        );
        let two = Verdict::of(Better::Less, spread(0.1, 0.1, 0.1), spread(1.0, 1.0, 1.0), 2);
        assert_eq!(two, Verdict::TooFewRounds);
    }
}

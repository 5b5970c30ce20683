//! Role: the figures of one round, out of what was counted at both edges of its window.
//! Invariants: bytes and events are divided by the receivers' own time · what can't be known is left out.

use anyhow::{Result, ensure};

use super::{
    gauge,
    plan::Mark,
    sample::{Memory, Used},
    scenario::Scenario,
};

/// What a figure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// In tables.
    pub title: &'static str,
    /// In JSON.
    pub key: &'static str,
    /// Digits after the point.
    pub digits: usize,
    /// Which of two subjects' is the better one; none: it is held against nobody's.
    pub better: Option<Better>,
}

/// Which of two figures is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// The greater.
    More,
    /// The smaller.
    Less,
}

macro_rules! metrics {
    ($($name:ident = $title:literal, $key:literal, $digits:literal $(, $better:ident)?;)*) => {
        $(pub(super) const $name: Metric = Metric {
            title: $title,
            key: $key,
            digits: $digits,
            better: metrics!(@better $($better)?),
        };)*
    };
    (@better) => { None };
    (@better $better:ident) => { Some(Better::$better) };
}

metrics! {
    RATE = "GB/s", "gb_per_s", 2, More;
    CPU_PER_GIB = "CPU-s/GiB", "cpu_s_per_gib", 3, Less;
    MESSAGES = "messages/s", "messages_per_s", 0, More;
    CPU_PER_MESSAGE = "CPU-us/message", "cpu_us_per_message", 2, Less;
    SESSIONS = "sessions/s", "sessions_per_s", 0, More;
    CPU_PER_SESSION = "CPU-us/session", "cpu_us_per_session", 1, Less;
    P50 = "p50 us", "p50_us", 0, Less;
    P99 = "p99 us", "p99_us", 0, Less;
    USER_KIB = "KiB user", "user_kib_per_connection", 2, Less;
    RSS_KIB = "KiB RSS", "rss_kib_per_connection", 2, Less;
    BUSY = "busy %", "busy_percent", 0;
    LOAD_BUSY = "load %", "load_percent", 0;
    OTHERS = "others %", "others_percent", 0;
}

/// With more of a core spent by others, a figure is theirs as well.
const OTHERS_PERCENT_MAX: f64 = 10.0;

impl Metric {
    /// Whether so much of this one says that a row is not to be believed.
    pub fn is_a_disturbance(self, value: f64) -> bool {
        self == OTHERS && value > OTHERS_PERCENT_MAX
    }
}

/// The figures of one round.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Each with its value.
    pub values: Vec<(Metric, f64)>,
    /// What each thread of the subject used, as a share of them all.
    pub threads: Vec<(String, f64)>,
}

/// What happened between two marks.
pub struct Window {
    seconds: f64,
    bytes: f64,
    /// Of the process that counts them.
    events: f64,
    load_cpu_s: f64,
    used: Used,
    /// Of the machine, whoever kept them so.
    busy_cores: f64,
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
impl Window {
    /// From the marks of all load processes, what the subject used and how many cores of the machine were
    /// busy, whoever kept them so.
    pub fn new(from: &[Mark], to: &[Mark], used: Used, busy_cores: f64) -> Self {
        let sum = |of: fn(&Mark) -> u64| -> f64 {
            to.iter().zip(from).map(|(to, from)| of(to).saturating_sub(of(from)) as f64).sum()
        };
        let processes = to.len().max(1) as f64;
        Self {
            seconds: sum(|mark| mark.at_ns) / processes / 1e9,
            bytes: sum(|mark| mark.bytes),
            events: sum(|mark| mark.events),
            load_cpu_s: sum(|mark| mark.cpu_ns) / 1e9,
            used,
            busy_cores,
        }
    }

    fn cpu_s(&self) -> f64 {
        self.used.ns as f64 / 1e9
    }

    /// Of a scenario in which something flows; `unseen` if the subject's process is not known.
    ///
    /// # Errors
    /// Nothing did.
    pub fn flowing(self, scenario: Scenario, times: &[Vec<(u64, u64)>], unseen: bool) -> Result<Figures> {
        let mut values = Vec::new();
        let bulk = matches!(scenario, Scenario::Throughput { .. } | Scenario::Mixed { .. });
        let timed = !matches!(scenario, Scenario::Throughput { .. });
        ensure!(!bulk || self.bytes > 0.0, "nothing arrived within the window");
        ensure!(!timed || self.events > 0.0, "nothing was completed within the window");
        if timed {
            let times = gauge::merge(times);
            let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
            values.extend([(P50, at(0.5)), (P99, at(0.99))]);
        }
        let rate = self.events / self.seconds;
        let per_event = self.cpu_s() * 1e6 / self.events;
        match scenario {
            Scenario::Pingpong { .. } => values.extend([(MESSAGES, rate), (CPU_PER_MESSAGE, per_event)]),
            Scenario::Churn => values.extend([(SESSIONS, rate), (CPU_PER_SESSION, per_event)]),
            _ => values.extend([
                (RATE, self.bytes / self.seconds / 1e9),
                (CPU_PER_GIB, self.cpu_s() / (self.bytes / f64::from(1 << 30))),
            ]),
        }
        Ok(self.finish(values, unseen))
    }

    /// Of connections that stand.
    pub fn idle(self, before: Memory, after: Memory, connections: usize, unseen: bool) -> Figures {
        let each =
            |before: u64, after: u64| after.saturating_sub(before) as f64 / 1024.0 / connections as f64;
        let values = vec![
            (USER_KIB, each(before.user_bytes, after.user_bytes)),
            (RSS_KIB, each(before.rss_bytes, after.rss_bytes)),
        ];
        self.finish(values, unseen)
    }

    /// With what is of interest everywhere, and without what can't be known.
    fn finish(self, mut values: Vec<(Metric, f64)>, unseen: bool) -> Figures {
        let (busy, load) = (self.cpu_s() / self.seconds, self.load_cpu_s / self.seconds);
        let others = (self.busy_cores - busy - load).max(0.0);
        values.extend([(BUSY, 100.0 * busy), (LOAD_BUSY, 100.0 * load), (OTHERS, 100.0 * others)]);
        if unseen {
            let of_the_process =
                [CPU_PER_GIB, CPU_PER_MESSAGE, CPU_PER_SESSION, USER_KIB, RSS_KIB, BUSY, OTHERS];
            values.retain(|(metric, _)| !of_the_process.contains(metric));
        }
        let all = self.used.threads.iter().map(|(_, ns)| *ns as f64).sum::<f64>().max(1.0);
        let threads = self.used.threads.into_iter().map(|(name, ns)| (name, ns as f64 / all)).collect();
        Figures { values, threads }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::plan::Direction;

    fn window() -> Window {
        let from = Mark { at_ns: 0, bytes: 7, events: 10, cpu_ns: 0 };
        let to = Mark { at_ns: 2_000_000_000, bytes: 7 + (4 << 30), events: 20_010, cpu_ns: 1_000_000_000 };
        Window::new(&[from], &[to], Used { ns: 500_000_000, softirq_ns: 0, threads: Vec::new() }, 1.5)
    }

    fn value(figures: &Figures, metric: Metric) -> Option<f64> {
        figures.values.iter().find(|(found, _)| *found == metric).map(|(_, value)| *value)
    }

    #[test]
    fn cpu_time_is_divided_by_what_arrived() {
        let figures =
            window().flowing(Scenario::Throughput { direction: Direction::Up }, &[], false).unwrap();
        assert_eq!(value(&figures, CPU_PER_GIB), Some(0.125));
        assert_eq!(value(&figures, RATE).map(|rate| (rate * 100.0).round()), Some(215.0));
        let busy = [BUSY, LOAD_BUSY, OTHERS].map(|metric| value(&figures, metric));
        assert_eq!(busy, [Some(25.0), Some(50.0), Some(75.0)]);
        assert_eq!(value(&figures, P99), None);
        let times = [vec![(1_000_000, 99), (9_000_000, 1)]];
        let figures = window()
            .flowing(Scenario::Pingpong { bytes: 1, direction: Direction::Up }, &times, false)
            .unwrap();
        assert_eq!(
            (value(&figures, MESSAGES), value(&figures, CPU_PER_MESSAGE)),
            (Some(10_000.0), Some(25.0))
        );
        assert_eq!(value(&figures, P50).map(f64::round), Some(1_000.0));
    }

    #[test]
    fn memory_is_what_came_with_the_connections() {
        let before = Memory { user_bytes: 1 << 20, rss_bytes: 4 << 20 };
        let after = Memory { user_bytes: 5 << 20, rss_bytes: 10 << 20 };
        let figures = window().idle(before, after, 1024, false);
        assert_eq!((value(&figures, USER_KIB), value(&figures, RSS_KIB)), (Some(4.0), Some(6.0)));
        let unseen = window().idle(before, after, 1024, true);
        assert_eq!(value(&unseen, USER_KIB), None);
    }

    #[test]
    fn an_empty_window_is_an_error() {
        let still =
            Window::new(&[Mark::default()], &[Mark { at_ns: 1, ..Mark::default() }], Used::default(), 0.0);
        assert!(still.flowing(Scenario::Throughput { direction: Direction::Up }, &[], false).is_err());
    }
}

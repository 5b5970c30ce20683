//! Role: what was measured, as a table for people.
//! Invariants: foreign text is escaped, and stays in its line.

use std::time::Duration;

use narrowlink_proto::{printable::printable, target::Target};

use super::{Bench, Course, Ping, Times};

/// Of an agent's name, or a target's.
const NAME_CHARS_MAX: usize = 128;
/// Part of what the first hop takes: from here on the second one is not known to be slower.
const NEARLY_ALL: f64 = 0.8;

impl Ping {
    /// For people.
    pub fn text(&self) -> String {
        let agent = name(&self.course.agent);
        let row = |from: &str, to: &str, times: Times| {
            let Times { least_us, median_us, most_us } = times;
            let times = [least_us, median_us, most_us].map(milliseconds);
            [format!("{from} → {to}")].into_iter().chain(times).collect()
        };
        let mut rows = vec![
            ["round trip", "least", "median", "most"].map(str::to_owned).to_vec(),
            row("here", &self.gateway, self.to_gateway),
            row(&self.gateway, &agent, self.to_agent),
            row("here", &agent, self.all),
        ];
        rows.extend(connected(&self.course, self.connect.as_ref().ok().copied().flatten()));
        table(&rows)
    }
}

impl Bench {
    /// For people.
    pub fn text(&self) -> String {
        let agent = name(&self.course.agent);
        let (near, all) = (&self.to_gateway, &self.to_agent);
        let row = |to: &str, way: &super::bench::Way| {
            let times = [way.idle, way.loaded_up, way.loaded_down];
            let times = times.map(|times| milliseconds(times.median_us));
            let [idle, loaded_up, loaded_down] = times;
            let (up, down) = (rate(way.up_bytes_per_s), rate(way.down_bytes_per_s));
            vec![format!("here → {to}"), idle, up, loaded_up, down, loaded_down]
        };
        let between = |near: f64, all: f64| {
            if all >= near * NEARLY_ALL { format!("at least {}", rate(all)) } else { rate(all) }
        };
        let heading = ["medians", "round trip", "up", "while sending", "down", "while receiving"];
        let mut rows = vec![
            heading.map(str::to_owned).to_vec(),
            row(&self.gateway, near),
            row(&agent, all),
            vec![
                format!("{} → {agent}", self.gateway),
                milliseconds(all.idle.median_us.saturating_sub(near.idle.median_us)),
                between(near.up_bytes_per_s, all.up_bytes_per_s),
                String::new(),
                between(near.down_bytes_per_s, all.down_bytes_per_s),
                String::new(),
            ],
        ];
        rows.extend(connected(&self.course, self.connect.as_ref().ok().copied().flatten()));
        table(&rows)
    }
}

/// The last hop, if it was asked for and is there.
fn connected(course: &Course, took: Option<Duration>) -> Option<Vec<String>> {
    let target = course.target.as_ref().map(Target::to_string)?;
    let took = u64::try_from(took?.as_micros()).unwrap_or(u64::MAX);
    let words = format!("{} → {}", name(&course.agent), name(&target));
    Some(vec![words, milliseconds(took), "to connect".to_owned()])
}

fn name(words: &str) -> String {
    printable(words, NAME_CHARS_MAX)
}

/// Columns that are aligned, with nothing behind the last word of a line.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &[String], column: usize| row.get(column).cloned().unwrap_or_default();
    let widths: Vec<_> = (0..columns)
        .map(|column| rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = widths.iter().enumerate().map(|(column, width)| format!("{:width$}", cell(row, column)));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// A time as people read it: `1.23 ms`, `45 ms`.
pub(crate) fn milliseconds(us: u64) -> String {
    match us {
        ..10_000 => format!("{}.{:02} ms", us / 1000, us % 1000 / 10),
        _ => format!("{} ms", us / 1000),
    }
}

/// Bytes a second as networks are sold: `94.1 Mbit/s`.
fn rate(bytes_per_s: f64) -> String {
    let bits = bytes_per_s * 8.0;
    match bits {
        1e9.. => format!("{:.2} Gbit/s", bits / 1e9),
        1e6.. => format!("{:.1} Mbit/s", bits / 1e6),
        _ => format!("{:.1} kbit/s", bits / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::bench::Way;

    fn times(us: u64) -> Times {
        Times { least_us: us / 2, median_us: us, most_us: us * 2 }
    }

    fn course() -> Course {
        Course { agent: "home".to_owned(), target: Some("127.0.0.1:22".parse().unwrap()) }
    }

    #[test]
    fn a_ping_is_a_line_for_each_hop() {
        let ping = Ping {
            course: course(),
            gateway: "gw.example:443".to_owned(),
            to_gateway: times(12_300),
            to_agent: times(5_120),
            all: times(17_420),
            connect: Ok(Some(Duration::from_micros(430))),
        };
        let expected = "\
round trip                least    median     most
here → gw.example:443     6.15 ms  12 ms      24 ms
gw.example:443 → home     2.56 ms  5.12 ms    10 ms
here → home               8.71 ms  17 ms      34 ms
home → tcp://127.0.0.1:22  0.43 ms  to connect
";
        let shown = ping.text();
        let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeeze(&shown), squeeze(expected), "{shown}");
        let widths: Vec<_> = shown.lines().map(|line| line.chars().take(25).collect::<String>()).collect();
        assert_eq!(widths.len(), 5, "{shown}");
        let parsed: serde_json::Value = serde_json::from_str(&ping.json()).unwrap();
        assert_eq!(parsed["client_gateway"]["median_us"], 12_300);
        assert_eq!(parsed["target"]["connect_us"], 430);
    }

    #[test]
    fn of_a_hop_that_is_not_the_slow_one_only_a_bound_is_known() {
        let way = |us, rate| Way {
            idle: times(us),
            loaded_up: times(us * 3),
            loaded_down: times(us * 2),
            up_bytes_per_s: rate,
            down_bytes_per_s: rate * 2.0,
        };
        let mut bench = Bench {
            course: Course { target: None, ..course() },
            gateway: "gw".to_owned(),
            to_gateway: way(10_000, 12.5e6),
            to_agent: way(30_000, 12e6),
            connect: Ok(None),
        };
        let last = |bench: &Bench| bench.text().lines().last().unwrap().to_owned();
        assert_eq!(
            last(&bench).split_whitespace().collect::<Vec<_>>().join(" "),
            "gw → home 20 ms at least 96.0 Mbit/s at least 192.0 Mbit/s"
        );
        bench.to_agent = way(30_000, 1e6);
        assert!(last(&bench).contains("  8.0 Mbit/s"), "{}", bench.text());
    }

    #[test]
    fn rates_are_shown_in_the_unit_that_fits() {
        assert_eq!([1e3, 1e6, 2.5e8].map(rate), ["8.0 kbit/s", "8.0 Mbit/s", "2.00 Gbit/s"]);
    }
}

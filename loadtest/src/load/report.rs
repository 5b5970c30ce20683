//! Role: the figures of all rounds together: medians, ratios, a table and a line of JSON.
//! Invariants: what is compared was measured in the same round · a ratio is that of the medians; beside it
//! stand the least and the greatest ratio of any one round.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::figures::{Figures, Metric};

/// All rounds of one subject.
#[derive(Debug, Clone)]
pub struct Series {
    /// The subject.
    pub name: String,
    /// What each round gave.
    pub rounds: Vec<Figures>,
}

/// Figures of several rounds of the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Half of them lie below.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of some figures; `None` of none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), min, max })
    }

    fn print(&self, digits: usize) -> String {
        let Self { median, min, max } = self;
        format!("{median:.digits$} ({min:.digits$}-{max:.digits$})")
    }

    fn json(&self) -> Value {
        json!({ "median": rounded(self.median), "min": rounded(self.min), "max": rounded(self.max) })
    }
}

/// To the six digits that mean something.
fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

impl Series {
    fn metrics(&self) -> Vec<Metric> {
        self.rounds
            .first()
            .map(|round| round.values.iter().map(|(metric, _)| *metric).collect())
            .unwrap_or_default()
    }

    fn values(&self, metric: Metric) -> Vec<f64> {
        let of = |round: &Figures| round.values.iter().find(|(m, _)| *m == metric).map(|(_, value)| *value);
        self.rounds.iter().filter_map(of).collect()
    }

    /// The shares of its threads, over all rounds.
    fn threads(&self) -> Vec<(String, f64)> {
        let mut all: Vec<(String, Vec<f64>)> = Vec::new();
        for (name, share) in self.rounds.iter().flat_map(|round| &round.threads) {
            match all.iter_mut().find(|(known, _)| known == name) {
                Some((_, shares)) => shares.push(*share),
                None => all.push((name.clone(), vec![*share])),
            }
        }
        let rounds = self.rounds.len();
        #[expect(clippy::cast_precision_loss, reason = "a handful of rounds")]
        let mut shares: Vec<_> =
            all.into_iter().map(|(name, s)| (name, s.iter().sum::<f64>() / rounds as f64)).collect();
        shares.retain(|(_, share)| *share >= 0.01);
        shares
    }
}

/// The ratio of two subjects' figures: of the medians, and the extremes of all rounds.
fn ratio(of: &[f64], to: &[f64]) -> Option<Spread> {
    let rounds: Vec<_> = of.iter().zip(to).filter(|(_, to)| **to != 0.0).map(|(of, to)| of / to).collect();
    let Spread { min, max, .. } = Spread::of(&rounds)?;
    Some(Spread { median: Spread::of(of)?.median / Spread::of(to)?.median, min, max })
}

/// A table for people: each subject's figures, then the first subject's against each other's.
pub fn table(title: &str, series: &[Series]) -> String {
    let Some(first) = series.first() else { return String::new() };
    let metrics = first.metrics();
    let mut rows = vec![vec![String::new()]];
    rows[0].extend(metrics.iter().map(|metric| metric.title.to_owned()));
    for one in series {
        let figure = |metric: &Metric| {
            Spread::of(&one.values(*metric)).map_or("-".to_owned(), |spread| spread.print(metric.digits))
        };
        rows.push([one.name.clone()].into_iter().chain(metrics.iter().map(figure)).collect());
    }
    for other in &series[1..] {
        let figure = |metric: &Metric| {
            if !metric.compared {
                return String::new();
            }
            ratio(&first.values(*metric), &other.values(*metric))
                .map_or("-".to_owned(), |spread| spread.print(2))
        };
        let name = format!("{} / {}", first.name, other.name);
        rows.push([name].into_iter().chain(metrics.iter().map(figure)).collect());
    }
    let mut text = format!("{title}\n{}", columns(&rows));
    for one in series.iter().filter(|one| one.threads().len() > 1) {
        let shares = one.threads().into_iter().map(|(name, share)| format!("{name} {:.0} %", share * 100.0));
        let _ = writeln!(text, "{}: {}", one.name, shares.collect::<Vec<_>>().join(", "));
    }
    text
}

fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |n: usize| rows.iter().filter_map(|row| row.get(n)).map(String::len).max().unwrap_or(0);
    let widths: Vec<_> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (n, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let _ = if n == 0 { write!(line, "{cell:<width$}") } else { write!(line, "  {cell:>width$}") };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// The same for programs, with every round.
pub fn json(series: &[Series]) -> Value {
    let Some(first) = series.first() else { return Value::Null };
    let subjects = series.iter().map(|one| {
        let mut figures = Map::new();
        for metric in one.metrics() {
            let values = one.values(metric);
            let Some(spread) = Spread::of(&values) else { continue };
            let mut figure = spread.json();
            figure["rounds"] = values.into_iter().map(rounded).collect();
            figures.insert(metric.key.to_owned(), figure);
        }
        let threads: Map<_, _> =
            one.threads().into_iter().map(|(name, share)| (name, json!(rounded(share)))).collect();
        json!({ "name": one.name, "figures": figures, "threads": threads })
    });
    let ratios = series[1..].iter().map(|other| {
        let mut figures = Map::new();
        for metric in first.metrics().into_iter().filter(|metric| metric.compared) {
            if let Some(spread) = ratio(&first.values(metric), &other.values(metric)) {
                figures.insert(metric.key.to_owned(), spread.json());
            }
        }
        json!({ "of": first.name, "to": other.name, "figures": figures })
    });
    json!({ "subjects": subjects.collect::<Vec<_>>(), "ratios": ratios.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Metric = Metric { title: "CPU-s/GiB", key: "cpu_s_per_gib", digits: 2, compared: true };

    fn series(name: &str, costs: &[f64]) -> Series {
        let round = |cost: &f64| Figures {
            values: vec![(COST, *cost)],
            threads: vec![("worker-0".to_owned(), 0.75), ("worker-1".to_owned(), 0.25)],
        };
        Series { name: name.to_owned(), rounds: costs.iter().map(round).collect() }
    }

    #[test]
    fn the_median_is_the_middle_or_between_the_two_in_the_middle() {
        let spread = |values: &[f64]| Spread::of(values).map(|s| (s.median, s.min, s.max));
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some((2.5, 1.0, 4.0)));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn a_ratio_is_of_the_medians_with_the_extremes_of_the_rounds() {
        let spread = ratio(&[1.0, 2.0, 6.0], &[2.0, 4.0, 4.0]).unwrap();
        assert_eq!((spread.median, spread.min, spread.max), (0.5, 0.5, 1.5));
        assert_eq!(ratio(&[1.0], &[0.0]), None);
    }

    #[test]
    fn the_table_lines_up_and_the_json_reads_back() {
        let all = [series("gateway", &[0.2, 0.1, 0.3]), series("haproxy", &[0.4, 0.4, 0.5])];
        let text = table("throughput", &all);
        let right = "throughput
                          CPU-s/GiB
gateway            0.20 (0.10-0.30)
haproxy            0.40 (0.40-0.50)
gateway / haproxy  0.50 (0.25-0.60)
gateway: worker-0 75 %, worker-1 25 %
haproxy: worker-0 75 %, worker-1 25 %
";
        assert_eq!(text, right);
        let value = json(&all);
        assert_eq!(value["subjects"][0]["figures"]["cpu_s_per_gib"]["rounds"][1], 0.1);
        assert_eq!(value["ratios"][0]["figures"]["cpu_s_per_gib"]["max"], 0.6);
    }
}

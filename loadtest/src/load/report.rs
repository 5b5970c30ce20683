//! Role: the figures of all rounds together: medians, ratios, a table and a line of JSON.
//! Invariants: what is compared was measured in the same round · a ratio is that of the medians; beside it
//! stand the least and the greatest ratio of any one round · a row that others disturbed is marked.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{
    figures::{Figures, Metric},
    spread::{Spread, rounded},
    verdict::Verdict,
};

/// All rounds of one subject.
#[derive(Debug, Clone)]
pub struct Series {
    /// The subject.
    pub name: String,
    /// Whether it is the first subject's own build once more (A/A), which differs from it by noise alone.
    pub twin: bool,
    /// What each round gave.
    pub rounds: Vec<Figures>,
}

impl Series {
    fn metrics(&self) -> Vec<Metric> {
        self.rounds
            .first()
            .map(|round| round.values.iter().map(|(metric, _)| *metric).collect())
            .unwrap_or_default()
    }

    /// Whether others took too much of the machine for it to be believed.
    fn is_disturbed(&self) -> bool {
        let too_much = |metric: Metric| {
            Spread::of(&self.values(metric)).is_some_and(|spread| metric.is_a_disturbance(spread.median))
        };
        self.metrics().into_iter().any(too_much)
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

/// The first subject held against another one.
struct Pair<'a> {
    first: &'a Series,
    other: &'a Series,
    /// The first one's own build once more.
    twin: Option<&'a Series>,
}

impl<'a> Pair<'a> {
    /// The twin comes first.
    fn all(series: &'a [Series]) -> Vec<Self> {
        let Some((first, others)) = series.split_first() else { return Vec::new() };
        let twin = others.iter().find(|one| one.twin);
        others.iter().map(|other| Pair { first, other, twin }).collect()
    }

    fn ratio(&self, metric: Metric) -> Option<Spread> {
        metric.better?;
        ratio(&self.first.values(metric), &self.other.values(metric))
    }

    /// What may be said of the ratio; nothing of the twin's, by which the others' are judged.
    fn verdict(&self, metric: Metric) -> Option<Verdict> {
        let twin = self.twin.filter(|_| !self.other.twin)?;
        let noise = ratio(&self.first.values(metric), &twin.values(metric))?;
        Some(Verdict::of(metric.better?, self.ratio(metric)?, noise, self.first.rounds.len()))
    }

    fn cell(&self, metric: Metric) -> String {
        if metric.better.is_none() {
            return String::new();
        }
        let ratio = self.ratio(metric).map_or("-".to_owned(), |spread| spread.print(2));
        self.verdict(metric).map_or(ratio.clone(), |verdict| format!("{ratio} {}", verdict.words()))
    }

    fn json(&self) -> Value {
        let mut figures = Map::new();
        for metric in self.first.metrics() {
            let Some(spread) = self.ratio(metric) else { continue };
            let mut figure = spread.json();
            if let Some(verdict) = self.verdict(metric) {
                figure["verdict"] = json!(verdict.words());
            }
            figures.insert(metric.key.to_owned(), figure);
        }
        json!({ "of": self.first.name, "to": self.other.name, "a_a": self.other.twin, "figures": figures })
    }
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
        let name = if one.is_disturbed() { format!("{} !", one.name) } else { one.name.clone() };
        rows.push([name].into_iter().chain(metrics.iter().map(figure)).collect());
    }
    for pair in Pair::all(series) {
        let name = format!("{} / {}", first.name, pair.other.name);
        rows.push([name].into_iter().chain(metrics.iter().map(|metric| pair.cell(*metric))).collect());
    }
    let mut text = format!("{title}\n{}", columns(&rows));
    for one in series.iter().filter(|one| one.threads().len() > 1) {
        let shares = one.threads().into_iter().map(|(name, share)| format!("{name} {:.0} %", share * 100.0));
        let _ = writeln!(text, "{}: {}", one.name, shares.collect::<Vec<_>>().join(", "));
    }
    if series.iter().any(Series::is_disturbed) {
        text += "!: others took more than 10 % of a core meanwhile; measure this row again, with --urgent or alone\n";
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
    if series.is_empty() {
        return Value::Null;
    }
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
        json!({ "name": one.name, "disturbed": one.is_disturbed(), "figures": figures, "threads": threads })
    });
    let ratios = Pair::all(series).iter().map(Pair::json).collect::<Vec<_>>();
    json!({ "subjects": subjects.collect::<Vec<_>>(), "ratios": ratios })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::figures::{Better, OTHERS};

    const COST: Metric =
        Metric { title: "CPU-s/GiB", key: "cpu_s_per_gib", digits: 2, better: Some(Better::Less) };

    fn series(name: &str, costs: &[f64]) -> Series {
        let round = |cost: &f64| Figures {
            values: vec![(COST, *cost)],
            threads: vec![("worker-0".to_owned(), 0.75), ("worker-1".to_owned(), 0.25)],
        };
        Series {
            name: name.to_owned(),
            twin: name.ends_with("(A/A)"),
            rounds: costs.iter().map(round).collect(),
        }
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
    #[test]
    fn what_the_same_build_differs_by_from_itself_is_called_no_difference() {
        let all = [
            series("gateway", &[1.0, 1.1, 1.0]),
            series("gateway (A/A)", &[1.0, 1.0, 1.05]),
            series("before", &[1.06, 1.05, 1.04]),
            series("haproxy", &[2.0, 2.2, 2.1]),
        ];
        let text = table("throughput", &all);
        let lines: Vec<_> = text.lines().filter(|line| line.contains(" / ")).collect();
        assert_eq!(
            lines,
            [
                "gateway / gateway (A/A)             1.00 (0.95-1.10)",
                "gateway / before         0.95 (0.94-1.05) within A/A",
                "gateway / haproxy            0.48 (0.48-0.50) better",
            ]
        );
        let value = json(&all);
        let verdict = |n: usize| value["ratios"][n]["figures"]["cpu_s_per_gib"]["verdict"].clone();
        assert_eq!([verdict(0), verdict(1), verdict(2)], [Value::Null, "within A/A".into(), "better".into()]);
        assert_eq!(value["ratios"][0]["a_a"], true);
    }

    #[test]
    fn a_row_that_others_disturbed_is_marked() {
        let with = |name: &str, others: f64| {
            let mut one = series(name, &[0.2]);
            one.rounds[0].values.push((OTHERS, others));
            one
        };
        let text = table("throughput", &[with("gateway", 10.0), with("haproxy", 10.5)]);
        assert!(text.contains("\ngateway  ") && text.contains("\nhaproxy !  "), "{text}");
        assert!(text.ends_with("--urgent or alone\n"), "{text}");
        let value = json(&[with("gateway", 10.0), with("haproxy", 10.5)]);
        assert_eq!([&value["subjects"][0]["disturbed"], &value["subjects"][1]["disturbed"]], [false, true]);
    }
}

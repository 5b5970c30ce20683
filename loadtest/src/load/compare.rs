//! Role: subjects against each other, A B C B C A .., and one subject by itself.
//! Invariants: every subject has its turn in every round, under the same conditions, and none is always the first · what
//! is held against others is there twice (A/A), as two processes of the same build · a subject that can't be had is an error, never left out.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    conditions::Conditions,
    figures::Figures,
    network::{self, Network},
    report::{self, Series},
    round::{interrupted, measure},
    scenario::Scenario,
    subject::{Setup, Spec, Subject},
};

/// What is compared.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// What is measured, one after the other.
    pub scenarios: Vec<Scenario>,
    /// The first is held against each other.
    pub subjects: Vec<Spec>,
    /// How each is started.
    pub setup: Setup,
    /// Over how many connections, one table each.
    pub connections: Vec<usize>,
    /// How often each has its turn.
    pub rounds: usize,
    /// Where.
    pub network: Network,
    /// With which congestion controls, one after the other.
    pub congestions: Vec<String>,
}

/// A subject that stands, and what it is called.
struct Standing<'a> {
    spec: &'a Spec,
    twin: bool,
    subject: Subject,
}

impl Comparison {
    /// Runs it: prints a table for each congestion control, scenario and number of connections, and hands back the
    /// JSON.
    ///
    /// # Errors
    /// A subject can't be had, or something broke.
    pub fn run(&self, conditions: &Conditions) -> Result<Value> {
        interrupted();
        if cfg!(debug_assertions) {
            eprintln!("this is a debug build, and so is the gateway beside it: its figures say little");
        }
        if self.network == Network::Own {
            eprintln!("congestion controls that can be had here: {}", network::allowed().join(", "));
        }
        let mut runs = Vec::new();
        for congestion in &self.congestions {
            self.network.set(congestion)?;
            // Even those that are started anew each time: who is not installed shows at once.
            let standing = self.start_all()?;
            for &scenario in &self.scenarios {
                for &connections in &self.connections {
                    let series = self.measure_all(&standing, scenario, connections, conditions)?;
                    runs.push(self.finish(congestion, scenario, connections, &series));
                }
            }
        }
        let scenario = self.scenarios.first().map(|scenario| scenario.name());
        Ok(json!({ "command": "compare", "scenario": scenario, "transport": self.setup.transport.to_string(),
            "unprivileged": self.setup.unprivileged, "rounds": self.rounds,
            "window_s": conditions.window.as_secs_f64(), "network": self.network.to_string(),
            "congestion_allowed": network::allowed(), "runs": runs }))
    }

    /// Each once, and the first twice where it is held against others.
    fn start_all(&self) -> Result<Vec<Standing<'_>>> {
        let mut all: Vec<_> = self.subjects.iter().map(|spec| (spec, false)).collect();
        if let [first, _, ..] = self.subjects[..].as_ref() {
            all.insert(1, (first, true));
        }
        let start = |(spec, twin)| Ok(Standing { spec, twin, subject: Subject::start(spec, &self.setup)? });
        all.into_iter().map(start).collect()
    }

    fn measure_all(
        &self,
        standing: &[Standing<'_>],
        scenario: Scenario,
        connections: usize,
        conditions: &Conditions,
    ) -> Result<Vec<Series>> {
        let mut series: Vec<_> = standing.iter().map(Standing::series).collect();
        for round in 0..self.rounds {
            for at in order(round, standing.len()) {
                let (one, series) = (&standing[at], &mut series[at]);
                let fresh = scenario.needs_a_fresh_subject();
                let anew = if fresh { Some(Subject::start(one.spec, &self.setup)?) } else { None };
                let subject = anew.as_ref().unwrap_or(&one.subject);
                let progress = format!("{} round {} of {}", scenario.title(), round + 1, self.rounds);
                let figures = measure(subject, scenario, connections, conditions)
                    .with_context(|| series.name.clone())?;
                show(&figures, &series.name, connections, &progress);
                series.rounds.push(figures);
            }
        }
        Ok(series)
    }

    fn finish(&self, congestion: &str, scenario: Scenario, connections: usize, series: &[Series]) -> Value {
        let user = if self.setup.unprivileged { ", as nobody" } else { "" };
        let title = format!(
            "{}, {}, {connections} connections{user}, {congestion} {}: median (min-max) of {} rounds",
            scenario.title(),
            self.setup.transport,
            self.network,
            self.rounds
        );
        println!("{}", report::table(&title, series));
        let mut run = report::json(series);
        run["connections"] = json!(connections);
        run["congestion"] = json!(congestion);
        run["direction"] = json!(scenario.direction().map(|direction| direction.name()));
        run
    }
}

impl Standing<'_> {
    fn series(&self) -> Series {
        let again = if self.twin { " (A/A)" } else { "" };
        Series { name: format!("{}{again}", self.spec.name), twin: self.twin, rounds: Vec::new() }
    }
}

/// Measures one subject by itself; prints a table and hands back the JSON.
///
/// # Errors
/// Something broke.
pub fn alone(
    subject: &Subject,
    scenario: Scenario,
    connections: usize,
    rounds: usize,
    conditions: &Conditions,
) -> Result<Value> {
    ensure!(
        !scenario.needs_a_fresh_subject() || !subject.pids().is_empty(),
        "memory is that of a process: name it with --pid"
    );
    let mut series = Series { name: subject.name.clone(), twin: false, rounds: Vec::new() };
    for round in 0..rounds {
        let progress = format!("{} round {} of {rounds}", scenario.title(), round + 1);
        let figures =
            measure(subject, scenario, connections, conditions).with_context(|| subject.name.clone())?;
        show(&figures, &subject.name, connections, &progress);
        series.rounds.push(figures);
    }
    let congestion = network::in_use()?;
    let title = format!(
        "{}, {connections} connections, {congestion} {}: median (min-max) of {rounds} rounds",
        scenario.title(),
        Network::Host
    );
    println!("{}", report::table(&title, std::slice::from_ref(&series)));
    let mut all = report::json(&[series]);
    all["scenario"] = json!(scenario.name());
    all["connections"] = json!(connections);
    all["congestion"] = json!(congestion);
    all["direction"] = json!(scenario.direction().map(|direction| direction.name()));
    Ok(all)
}

/// The order in which a round measures so many subjects. Whoever comes first finds another machine than the others (clock,
/// caches, what was going on before), so that the first of all would differ from itself.
fn order(round: usize, subjects: usize) -> impl Iterator<Item = usize> {
    (0..subjects).map(move |turn| (round + turn) % subjects)
}

/// Says what a round gave.
fn show(figures: &Figures, name: &str, connections: usize, progress: &str) {
    let shown =
        figures.values.iter().map(|(metric, value)| format!("{value:.*} {}", metric.digits, metric.title));
    let shown: Vec<_> = shown.collect();
    eprintln!("{progress}, {connections} connections: {name}: {}", shown.join(", "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subject_has_its_turn_in_each_round_and_each_place_in_as_many_rounds_as_there_are() {
        let rounds: Vec<Vec<_>> = (0..3).map(|round| order(round, 3).collect()).collect();
        assert_eq!(rounds, [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
    }
}

//! Role: subjects against each other, A B A B .., and one subject by itself.
//! Invariants: every subject has its turn in every round, under the same conditions · a subject that can't
//! be had is an error, never left out.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    figures::Figures,
    report::{self, Series},
    round::{Conditions, interrupted, measure},
    scenario::Scenario,
    subject::{Setup, Spec, Subject},
};

/// What is compared.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// What is measured.
    pub scenario: Scenario,
    /// The first is held against each other.
    pub subjects: Vec<Spec>,
    /// How each is started.
    pub setup: Setup,
    /// Over how many connections, one table each.
    pub connections: Vec<usize>,
    /// How often each has its turn.
    pub rounds: usize,
}

/// Runs a comparison: prints a table for each number of connections, and hands back the JSON.
///
/// # Errors
/// A subject can't be had, or something broke.
pub fn compare(comparison: &Comparison, conditions: &Conditions) -> Result<Value> {
    let Comparison { scenario, subjects, setup, connections, rounds } = comparison;
    let fresh = scenario.needs_a_fresh_subject();
    interrupted();
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build, and so is the gateway beside it: its figures say little");
    }
    let start = |spec| Subject::start(spec, setup);
    // Even those that are started anew each time: who is not installed shows at once.
    let standing: Vec<_> = subjects.iter().map(start).collect::<Result<_>>()?;
    let mut runs = Vec::new();
    for &connections in connections {
        let mut series = empty(subjects.iter().map(|spec| spec.name.clone()));
        for round in 0..*rounds {
            for ((spec, standing), series) in subjects.iter().zip(&standing).zip(&mut series) {
                let anew = if fresh { Some(start(spec)?) } else { None };
                let subject = anew.as_ref().unwrap_or(standing);
                let progress = format!("{} round {} of {rounds}", scenario.name(), round + 1);
                series.rounds.push(one_round(subject, *scenario, connections, conditions, &progress)?);
            }
        }
        runs.push(finish(comparison, connections, &series));
    }
    Ok(json!({ "command": "compare", "scenario": scenario.name(), "transport": setup.transport.to_string(),
        "unprivileged": setup.unprivileged, "rounds": rounds, "window_s": conditions.window.as_secs_f64(), "runs": runs }))
}

fn finish(comparison: &Comparison, connections: usize, series: &[Series]) -> Value {
    let Comparison { scenario, setup, rounds, .. } = comparison;
    let user = if setup.unprivileged { ", as nobody" } else { "" };
    let title = format!(
        "{}, {}, {connections} connections{user}: median (min-max) of {rounds} rounds",
        scenario.name(),
        setup.transport
    );
    println!("{}", report::table(&title, series));
    let mut run = report::json(series);
    run["connections"] = json!(connections);
    run
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
    let mut series = empty([subject.name.clone()].into_iter());
    for round in 0..rounds {
        let progress = format!("{} round {} of {rounds}", scenario.name(), round + 1);
        series[0].rounds.push(one_round(subject, scenario, connections, conditions, &progress)?);
    }
    let title =
        format!("{}, {connections} connections: median (min-max) of {rounds} rounds", scenario.name());
    println!("{}", report::table(&title, &series));
    let mut all = report::json(&series);
    all["scenario"] = json!(scenario.name());
    all["connections"] = json!(connections);
    Ok(all)
}

fn empty(names: impl Iterator<Item = String>) -> Vec<Series> {
    names.map(|name| Series { name, rounds: Vec::new() }).collect()
}

fn one_round(
    subject: &Subject,
    scenario: Scenario,
    connections: usize,
    conditions: &Conditions,
    progress: &str,
) -> Result<Figures> {
    let figures =
        measure(subject, scenario, connections, conditions).with_context(|| subject.name.clone())?;
    let shown =
        figures.values.iter().map(|(metric, value)| format!("{value:.*} {}", metric.digits, metric.title));
    let shown: Vec<_> = shown.collect();
    eprintln!("{progress}, {connections} connections: {}: {}", subject.name, shown.join(", "));
    Ok(figures)
}

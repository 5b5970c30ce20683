//! Role: one measurement of one subject: connections, warm-up, window, figures.
//! Invariants: bytes are counted at the receiver, within the window; what the subject used is read at the
//! same edges · connections are new in every round · a signal ends the round, and with it all processes.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{
    conditions::Conditions,
    crew::Crew,
    figures::{Figures, Window},
    plan::Plan,
    sample::{Cpu, Machine, Memory},
    scenario::Scenario,
    subject::Subject,
};

/// Measures a subject once.
///
/// # Errors
/// The subject or the load does not do its part.
pub fn measure(
    subject: &Subject,
    scenario: Scenario,
    connections: usize,
    conditions: &Conditions,
) -> Result<Figures> {
    let parts = scenario.parts(connections);
    let mut plans = Vec::new();
    for (n, (traffic, connections)) in parts.into_iter().enumerate() {
        let urgent = matches!(scenario, Scenario::Mixed { .. }) && n > 0;
        plans.push(Plan { traffic, way: subject.way(n)?, connections, urgent });
    }
    let pids = subject.pids();
    let memory = Memory::sample(&pids)?;
    let mut crew = Crew::start(conditions, &plans)?;
    crew.let_flow()?;
    pause(conditions.warmup)?;
    let (cpu, machine) = (Cpu::sample(&pids, &subject.softirqs)?, Machine::sample()?);
    let from = crew.marks()?;
    pause(conditions.window)?;
    let used = Cpu::sample(&pids, &subject.softirqs)?.since(&cpu);
    let busy_cores = Machine::sample()?.busy_cores_since(&machine);
    let to = crew.marks()?;
    let window = Window::new(&from, &to, used, busy_cores);
    if scenario.needs_a_fresh_subject() {
        return Ok(window.idle(memory, Memory::sample(&pids)?, connections, pids.is_empty()));
    }
    let times = crew.times()?;
    window.flowing(scenario, &times, pids.is_empty())
}

/// Sleeps, unless a signal came; then everything is taken down on the way out.
fn pause(time: Duration) -> Result<()> {
    const STEP: Duration = Duration::from_millis(50);
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::thread::sleep(STEP.min(until.saturating_duration_since(Instant::now())));
        ensure!(!interrupted().load(Ordering::Relaxed), "interrupted");
    }
    Ok(())
}

/// Whether a signal has come. Asked before the first subject is started: until then a signal ends this
/// process at once.
pub(super) fn interrupted() -> &'static AtomicBool {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    FLAG.get_or_init(|| {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // Should it fail, a signal leaves the subjects running; nothing else is lost.
            let _ = signal_hook::flag::register(signal, flag.clone());
        }
        flag
    })
}

//! Role: a load process: reads its plan, moves bytes, says how far it is.
//! Invariants: it lives no longer than whoever started it: the end of its input is its end · it never goes
//! on after something has failed.

use std::{io, sync::Arc, time::Instant};

use anyhow::{Context as _, Result, anyhow};
use narrowlink_dataplane::run::worker::run_alone;

use super::{
    gauge::Gauge,
    plan::{Ask, Mark, Plan, Word},
    traffic,
    urgency::MOST_URGENT_NICE,
    word::{fail, say},
};

/// Runs a load process to its end.
///
/// # Errors
/// What it is told makes no sense.
pub fn main() -> Result<()> {
    let mut lines = io::stdin().lines();
    let plan: Plan = serde_json::from_str(&lines.next().context("no plan")??)?;
    if plan.urgent {
        // Best effort: an operator's figure is then a little less sharp.
        let _ = rustix::process::setpriority_process(None, MOST_URGENT_NICE);
    }
    let gauge = Arc::new(Gauge::new());
    let (start, ready) = move_bytes(plan, gauge.clone())?;
    if ready.recv_blocking().is_err() {
        // The other thread has said why, and ends the process.
        loop {
            std::thread::park();
        }
    }
    say(&Word::Ready)?;
    let mut began = Instant::now();
    let mut marks = 0;
    for line in lines {
        match serde_json::from_str(&line?)? {
            Ask::Start => {
                began = Instant::now();
                start.send_blocking(())?;
                say(&Word::Started)?;
            }
            Ask::Mark => {
                marks += 1;
                gauge.measure(marks == 1);
                say(&Word::Mark(mark(&gauge, began)?))?;
            }
            Ask::Report => say(&Word::Report(gauge.times()))?,
        }
    }
    Ok(())
}

type Start = async_channel::Sender<()>;
type Ready = async_channel::Receiver<()>;

/// Starts the thread that moves bytes.
fn move_bytes(plan: Plan, gauge: Arc<Gauge>) -> Result<(Start, Ready)> {
    let (start, started) = async_channel::bounded(1);
    let (stand, ready) = async_channel::bounded(1);
    std::thread::Builder::new().name("load".to_owned()).spawn(move || {
        let run = run_alone(false, |_| async move { traffic::run(&plan, gauge, &stand, &started).await });
        match run {
            Ok(Ok(())) => fail(&anyhow!("the load came to an end by itself")),
            Ok(Err(e)) => fail(&e),
            Err(e) => fail(&e.into()),
        }
    })?;
    Ok((start, ready))
}

fn mark(gauge: &Gauge, began: Instant) -> Result<Mark> {
    let (bytes, events) = gauge.read();
    let at_ns = u64::try_from(began.elapsed().as_nanos())?;
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let cpu_ns = u64::try_from(cpu.tv_sec)? * 1_000_000_000 + u64::try_from(cpu.tv_nsec)?;
    Ok(Mark { at_ns, bytes, events, cpu_ns })
}

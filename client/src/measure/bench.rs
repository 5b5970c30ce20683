//! Role: how much goes through to the gateway and to an agent, and how far it is meanwhile.

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_lite::future;
use narrowlink_dataplane::run::{timer::sleep, worker::spawn};
use narrowlink_proto::measure::{How, Station};
use serde::Serialize;
use serde_json::json;

use super::{Connect, Course, Ends, Times, probe::Probe};
use crate::{exit::Failure, open::Opener};

/// Round trips before there is any load.
const IDLE_ROUND_TRIPS: usize = 20;
/// Between two of them while there is.
const LOADED_PAUSE: Duration = Duration::from_millis(20);

/// How much goes through, hop by hop.
#[derive(Debug, Clone, PartialEq)]
pub struct Bench {
    /// What was measured.
    pub course: Course,
    /// Host and port of the gateway.
    pub gateway: String,
    /// Between here and the gateway.
    pub to_gateway: Way,
    /// All the way to the agent.
    pub to_agent: Way,
    /// The last hop.
    pub connect: Connect,
}

/// How good a way is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Way {
    /// Round trips while nothing else is under way.
    pub idle: Times,
    /// Round trips beside what was sent.
    pub loaded_up: Times,
    /// Round trips beside what was received.
    pub loaded_down: Times,
    /// Payload sent, in bytes a second.
    pub up_bytes_per_s: f64,
    /// Payload received, in bytes a second.
    pub down_bytes_per_s: f64,
}

impl Bench {
    /// Measures for so long in each direction of each way, over so many streams at once.
    pub(crate) async fn measure(
        opener: Arc<Opener>,
        course: Course,
        time: Duration,
        streams: usize,
    ) -> Result<Self, Failure> {
        let ends = Ends::find(opener, course).await?;
        let to_gateway = way(&ends, Station::Gateway, time, streams).await?;
        let to_agent = way(&ends, Station::Agent, time, streams).await?;
        Ok(Self {
            to_gateway,
            to_agent,
            connect: ends.connect_time().await,
            gateway: ends.gateway(),
            course: ends.course,
        })
    }

    /// For programs: one object, in one line.
    pub fn json(&self) -> String {
        let target = self.course.connect_json(&self.connect);
        let answer = json!({
            "gateway": self.gateway, "agent": self.course.agent,
            "client_gateway": self.to_gateway, "client_agent": self.to_agent, "target": target,
        });
        format!("{answer}\n")
    }
}

async fn way(ends: &Ends, at: Station, time: Duration, streams: usize) -> Result<Way, Failure> {
    let echo = ends.probe(at, How::Echo).await?;
    let mut idle = Vec::new();
    for _ in 0..IDLE_ROUND_TRIPS {
        idle.push(echo.round_trip().await?);
    }
    let (up_bytes_per_s, loaded_up) = load(ends, &echo, (at, How::Discard), time, streams).await?;
    let (down_bytes_per_s, loaded_down) = load(ends, &echo, (at, How::Generate), time, streams).await?;
    echo.finish().await?;
    Ok(Way { idle: Times::of(idle), loaded_up, loaded_down, up_bytes_per_s, down_bytes_per_s })
}

/// Fills a way for so long; how much went through, and how far it was meanwhile.
async fn load(
    ends: &Ends,
    echo: &Probe,
    (at, how): (Station, How),
    time: Duration,
    streams: usize,
) -> Result<(f64, Times), Failure> {
    let mut probes = Vec::new();
    for _ in 0..streams {
        probes.push(ends.probe(at, how).await?);
    }
    let (done, results) = async_channel::bounded(streams);
    for probe in probes {
        let done = done.clone();
        spawn(async move {
            let rate = match how {
                How::Generate => probe.read_for(time).await,
                How::Discard | How::Echo => probe.send_for(time).await,
            };
            let _ = done.try_send(rate);
        });
    }
    drop(done);
    let over = Cell::new(false);
    let sum = async {
        let mut sum: Result<f64, Failure> = Ok(0.0);
        while let Ok(rate) = results.recv().await {
            sum = sum.and_then(|sum| Ok(sum + rate?));
        }
        over.set(true);
        sum
    };
    let began = Instant::now();
    // It ends by itself: an echo that nobody waited for would answer the next one.
    let pinging = async {
        let mut times = Vec::new();
        while times.is_empty() || !over.get() {
            let took = echo.round_trip().await?;
            // Behind the end only the rest of the load is under way.
            if times.is_empty() || began.elapsed() < time {
                times.push(took);
            }
            sleep(LOADED_PAUSE).await;
        }
        Ok::<_, Failure>(times)
    };
    let (sum, times) = future::zip(sum, pinging).await;
    Ok((sum?, Times::of(times?)))
}

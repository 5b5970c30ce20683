//! Role: measures the way to an agent and to what it dials.
//! See: [`Ping`] and [`Bench`], what its commands find; `probe`, a session that measures; `words`, for people.

mod bench;
mod ping;
mod probe;
mod words;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use narrowlink_proto::{
    ended::{RefusalCode, Refused},
    feature::Feature,
    measure::{How, Measure, Station},
    target::Target,
};
use serde::Serialize;
use serde_json::{Value, json};

pub(crate) use self::words::milliseconds;
pub use self::{
    bench::{Bench, Way},
    ping::Ping,
};
use crate::{
    exit::Failure,
    open::Opener,
    routes::{JoinError, Route},
};

/// How often a connection to a target is timed.
const CONNECTIONS: usize = 3;

/// What is measured of what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Course {
    /// The agent.
    pub agent: String,
    /// What it dials besides, and how long that takes.
    pub target: Option<Target>,
}

/// Times of one kind, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Times {
    /// The least.
    pub least_us: u64,
    /// The median.
    pub median_us: u64,
    /// The most.
    pub most_us: u64,
}

/// How long an agent took to connect to a target that was asked for; or why it did not.
pub type Connect = Result<Option<Duration>, Failure>;

impl Course {
    /// The last hop, for programs; nothing where none was asked for.
    fn connect_json(&self, connect: &Connect) -> Option<Value> {
        let target = self.target.as_ref()?.to_string();
        let took_us = connect.as_ref().ok().copied().flatten().map(|took| took.as_micros());
        let error = connect.as_ref().err().map(|failure| &failure.message);
        Some(json!({ "target": target, "connect_us": took_us, "error": error }))
    }
}

/// Where the ways lead.
struct Ends {
    opener: Arc<Opener>,
    route: Arc<Route>,
    course: Course,
}

impl Times {
    /// Of at least one time.
    fn of(mut times: Vec<Duration>) -> Self {
        assert!(!times.is_empty(), "what was measured has a time");
        times.sort_unstable();
        let at = |index: usize| u64::try_from(times[index].as_micros()).unwrap_or(u64::MAX);
        Self { least_us: at(0), median_us: at(times.len() / 2), most_us: at(times.len() - 1) }
    }
}

impl Ends {
    /// Finds the gateway, which must know measurements.
    async fn find(opener: Arc<Opener>, course: Course) -> Result<Self, Failure> {
        let (route, link) = opener.routes.join().await.map_err(JoinError::explain)?;
        let knows = link.features.has(Feature::Measure);
        link.close();
        if !knows {
            let reason =
                format!("the gateway {} answers no measurements; update it", route.gateway.describe());
            return Err(Failure::refused(&Refused::new(RefusalCode::Unsupported, reason), ""));
        }
        opener.routes.prefer(&route);
        Ok(Self { opener, route, course })
    }

    /// The gateway, as the configuration has it.
    fn gateway(&self) -> String {
        self.route.gateway.describe().to_owned()
    }

    async fn probe(&self, at: Station, how: How) -> Result<probe::Probe, Failure> {
        probe::Probe::open(&self.opener, &self.course.agent, Measure { at, how }).await
    }

    /// How long the agent takes to connect to the target: a session to it, less one to the agent itself.
    async fn connect_time(&self) -> Result<Option<Duration>, Failure> {
        let Some(target) = &self.course.target else { return Ok(None) };
        let agent = Target::Measure(Measure { at: Station::Agent, how: How::Echo });
        let (mut there, mut beyond) = (Duration::MAX, Duration::MAX);
        for _ in 0..CONNECTIONS {
            there = there.min(self.open_time(&agent).await?);
            beyond = beyond.min(self.open_time(target).await?);
        }
        Ok(Some(beyond.saturating_sub(there)))
    }

    /// How long a session takes to open on a stream that stands.
    async fn open_time(&self, target: &Target) -> Result<Duration, Failure> {
        let conn = self.opener.stream(&self.route).await?;
        let began = Instant::now();
        let opened = self.opener.open_on(conn, &self.route, &self.course.agent, target).await;
        let took = began.elapsed();
        probe::leave(opened.map_err(|e| self.route.explain_failed(e))?).await;
        Ok(took)
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::zip;
    use narrowlink_proto::{id::LinkSecret, message::Speaker};

    use super::*;
    use crate::{
        exit::Exit,
        fixture::{Port, opener, run},
    };

    #[test]
    fn a_gateway_of_an_older_version_is_said_to_be_one_and_asked_nothing_more() {
        run(async || {
            let port = Port::listen();
            let course = Course { agent: "home".to_owned(), target: None };
            let finding = Ends::find(opener(&[&port.addr.to_string()]), course);
            let (found, _link) =
                zip(finding, port.link(Speaker::Client, LinkSecret::from_bytes([7; 32]))).await;
            let failure = found.err().unwrap();
            assert_eq!(failure.exit, Exit::Unreachable);
            let words = format!("the gateway {} answers no measurements; update it", port.addr);
            assert_eq!(failure.message, words);
        });
    }

    #[test]
    fn of_several_times_the_one_in_the_middle_counts() {
        let times = [5, 1, 9, 3, 7].map(Duration::from_micros).to_vec();
        assert_eq!(Times::of(times), Times { least_us: 1, median_us: 5, most_us: 9 });
        let one = Times::of(vec![Duration::from_millis(2)]);
        assert_eq!((one.least_us, one.median_us, one.most_us), (2_000, 2_000, 2_000));
    }
}

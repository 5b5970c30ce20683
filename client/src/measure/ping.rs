//! Role: how far it is to the gateway, to an agent, and to what the agent dials.

use std::{sync::Arc, time::Duration};

use futures_lite::future::zip;
use narrowlink_dataplane::run::timer::sleep;
use narrowlink_proto::measure::{How, Station};
use serde_json::json;

use super::{Connect, Course, Ends, Times};
use crate::{exit::Failure, open::Opener};

/// How far it is, hop by hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ping {
    /// What was measured.
    pub course: Course,
    /// Host and port of the gateway.
    pub gateway: String,
    /// Round trips between here and the gateway.
    pub to_gateway: Times,
    /// Between the gateway and the agent: each round trip to the agent, less one to the gateway at the same time.
    pub to_agent: Times,
    /// All the way.
    pub all: Times,
    /// The last hop.
    pub connect: Connect,
}

impl Ping {
    /// Measures so often, with pauses between.
    pub(crate) async fn measure(
        opener: Arc<Opener>,
        course: Course,
        count: u32,
        pause: Duration,
    ) -> Result<Self, Failure> {
        let ends = Ends::find(opener, course).await?;
        let gateway = ends.probe(Station::Gateway, How::Echo).await?;
        let agent = ends.probe(Station::Agent, How::Echo).await?;
        let (mut near, mut between, mut all) = (Vec::new(), Vec::new(), Vec::new());
        // The first ones find caches cold, and windows small.
        gateway.round_trip().await?;
        agent.round_trip().await?;
        for index in 0..count.max(1) {
            if index > 0 {
                sleep(pause).await;
            }
            let (to_gateway, to_agent) = (gateway.round_trip().await?, agent.round_trip().await?);
            near.push(to_gateway);
            between.push(to_agent.saturating_sub(to_gateway));
            all.push(to_agent);
        }
        let (gateway_left, agent_left) = zip(gateway.finish(), agent.finish()).await;
        gateway_left.and(agent_left)?;
        Ok(Self {
            connect: ends.connect_time().await,
            gateway: ends.gateway(),
            to_gateway: Times::of(near),
            to_agent: Times::of(between),
            all: Times::of(all),
            course: ends.course,
        })
    }

    /// For programs: one object, in one line.
    pub fn json(&self) -> String {
        let target = self.course.connect_json(&self.connect);
        let answer = json!({
            "gateway": self.gateway, "agent": self.course.agent,
            "client_gateway": self.to_gateway, "gateway_agent": self.to_agent, "client_agent": self.all,
            "target": target,
        });
        format!("{answer}\n")
    }
}

//! Role: the agents that are connected, as a table or as JSON.

use std::{fmt::Write as _, time::Duration};

use narrowlink_dataplane::{peer::PeerLink, run::timer::timeout, tunnel::LinkError};
use narrowlink_proto::{
    feature::Feature,
    message::{AgentInfo, Message, Used},
    printable::printable,
};

use crate::{
    exit::Failure,
    measure::milliseconds,
    routes::{JoinError, Routes},
};

/// For the gateway's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Far more than one user has.
const AGENTS_MAX: usize = 100_000;
/// As long as a token may make a name.
const NAME_CHARS_MAX: usize = 128;

/// What a gateway shows of itself to a token's bearer.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) agents: Vec<AgentInfo>,
    /// What the token's bearers use, and all of the user; a gateway of an older version does not say.
    pub(crate) used: Option<[Used; 2]>,
}

/// The agents that the first gateway shows that answers.
pub(crate) async fn agents(routes: &Routes) -> Result<Vec<AgentInfo>, Failure> {
    ask(routes, ask_for_agents).await
}

/// All that it shows.
pub(crate) async fn all(routes: &Routes) -> Result<Shown, Failure> {
    ask(routes, async |link: &mut PeerLink| {
        let agents = ask_for_agents(link).await?;
        let used = match link.features.has(Feature::Measure) {
            true => Some(ask_what_is_used(link).await?),
            false => None,
        };
        Ok(Shown { agents, used })
    })
    .await
}

async fn ask<T>(
    routes: &Routes,
    question: impl AsyncFnOnce(&mut PeerLink) -> Result<T, LinkError>,
) -> Result<T, Failure> {
    let (_, mut link) = routes.join().await.map_err(JoinError::explain)?;
    let answer = timeout(ANSWER_TIMEOUT, question(&mut link)).await;
    let answer = answer.unwrap_or(Err(LinkError::Silent(ANSWER_TIMEOUT)))?;
    link.close();
    Ok(answer)
}

async fn ask_for_agents(link: &mut PeerLink) -> Result<Vec<AgentInfo>, LinkError> {
    link.send(&Message::List)?;
    let mut all = Vec::new();
    loop {
        if let Message::Agents { agents, more } = link.next().await? {
            all.extend(agents);
            if all.len() > AGENTS_MAX {
                return Err(LinkError::Unexpected("a list without an end"));
            }
            if !more {
                return Ok(all);
            }
        }
    }
}

async fn ask_what_is_used(link: &mut PeerLink) -> Result<[Used; 2], LinkError> {
    link.send(&Message::Usage)?;
    loop {
        if let Message::Used { token, user } = link.next().await? {
            return Ok([token, user]);
        }
    }
}

/// For people.
pub fn table(agents: &[AgentInfo]) -> String {
    let heading = ["NAME", "ADDRESS", "PING"].map(str::to_owned);
    let rows = agents.iter().map(|agent| {
        let name = printable(&agent.name, NAME_CHARS_MAX);
        [name, agent.address.to_string(), agent.ping_us.map_or_else(|| "-".to_owned(), milliseconds)]
    });
    let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let (name, address) = (width(0), width(1));
    let mut out = String::new();
    for row in &rows {
        let _ = writeln!(out, "{:name$}  {:address$}  {}", row[0], row[1], row[2]);
    }
    out
}

/// For programs: an array, in one line.
///
/// # Errors
/// None that a list of agents can have.
pub fn json(agents: &[AgentInfo]) -> serde_json::Result<String> {
    serde_json::to_string(agents).map(|text| text + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str, address: &str, ping_us: Option<u64>) -> AgentInfo {
        let address = address.parse().unwrap();
        AgentInfo { name: name.to_owned(), address, ping_us, connected_s: 7 }
    }

    #[test]
    fn a_table_is_aligned_and_a_ping_that_was_not_measured_is_a_dash() {
        let agents = [
            agent("home", "192.0.2.1:50000", Some(1_234)),
            agent("büro-berlin", "[2001:db8::1]:1", Some(45_678)),
            agent("new", "192.0.2.2:1", None),
        ];
        let expected = "\
NAME         ADDRESS          PING
home         192.0.2.1:50000  1.23 ms
büro-berlin  [2001:db8::1]:1  45 ms
new          192.0.2.2:1      -
";
        assert_eq!(table(&agents), expected);
        assert_eq!(table(&[]), "NAME  ADDRESS  PING\n");
    }

    #[test]
    fn json_is_an_array_also_when_nobody_is_there() {
        assert_eq!(json(&[]).unwrap(), "[]\n");
        let text = json(&[agent("home", "192.0.2.1:5", None)]).unwrap();
        let back: Vec<AgentInfo> = serde_json::from_str(&text).unwrap();
        assert_eq!((back[0].name.as_str(), back[0].ping_us), ("home", None));
    }
}

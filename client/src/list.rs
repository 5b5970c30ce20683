//! Role: the agents that are connected, as a table or as JSON.

use std::{fmt::Write as _, time::Duration};

use narrowlink_dataplane::{run::timer::timeout, tunnel::LinkError};
use narrowlink_proto::{
    message::{AgentInfo, Message},
    printable::printable,
};

use crate::{
    exit::Failure,
    routes::{JoinError, Routes},
};

/// For the gateway's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// As long as a token may make a name.
const NAME_CHARS_MAX: usize = 128;

/// Asks the first gateway that answers.
pub(crate) async fn ask(routes: &Routes) -> Result<Vec<AgentInfo>, Failure> {
    let (_, mut link) = routes.join().await.map_err(JoinError::explain)?;
    let answered = async {
        link.send(&Message::List)?;
        let mut all = Vec::new();
        loop {
            if let Message::Agents { agents, more } = link.next().await? {
                all.extend(agents);
                if !more {
                    return Ok::<_, LinkError>(all);
                }
            }
        }
    };
    let agents = timeout(ANSWER_TIMEOUT, answered).await.unwrap_or(Err(LinkError::Silent(ANSWER_TIMEOUT)))?;
    link.close();
    Ok(agents)
}

/// For people.
pub fn table(agents: &[AgentInfo]) -> String {
    let heading = ["NAME", "ADDRESS", "PING"].map(str::to_owned);
    let rows = agents.iter().map(|agent| {
        let name = printable(&agent.name, NAME_CHARS_MAX);
        [name, agent.address.to_string(), ping(agent.ping_us)]
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

fn ping(ping_us: Option<u64>) -> String {
    match ping_us {
        None => "-".to_owned(),
        Some(us @ ..10_000) => format!("{}.{:02} ms", us / 1000, us % 1000 / 10),
        Some(us) => format!("{} ms", us / 1000),
    }
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

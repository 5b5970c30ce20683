//! Role: from a file's entries to the claims to sign: policy ids become the lists that they stand for.
//! Invariants: a token never outlives one of its restrictions, and holds no sooner than all of them do;
//! an id reaches no other uid's policy.

use std::collections::{HashMap, HashSet};

use narrowlink_proto::{
    id::Uid,
    policy::Grant,
    token::{Claims, Kind},
    when::{When, show},
};

use crate::{
    input::{AgentPublishToken, AgentToken, ClientPolicy, ClientToken, Entry, Input, Spot},
    name::Name,
    oddities,
    policies::{List, Pid, Restriction},
    tagged::Mapping,
};

/// A token, not signed yet.
#[derive(Debug)]
pub struct Draft {
    /// Where it stands in the file.
    pub spot: Spot,
    /// What it will say.
    pub claims: Claims,
}

/// What a file asks for.
#[derive(Debug)]
pub struct Drafts {
    /// In the order of the file.
    pub drafts: Vec<Draft>,
    /// What the operator may not have meant.
    pub warnings: Vec<String>,
}

/// An entry that names what isn't there, or is in another's way. The operator's fault.
#[derive(Debug, thiserror::Error)]
#[error("{spot}: {why}")]
pub struct Misfit {
    /// Which.
    pub spot: Spot,
    /// What is wrong with it.
    pub why: MisfitCause,
}

/// What is wrong with a policy id.
#[derive(Debug, thiserror::Error)]
pub enum MisfitCause {
    /// Nobody's.
    #[error("policies: no !ClientPolicy has pid {pid}; uid {uid} has {}", list(known))]
    Unknown {
        /// The id.
        pid: u32,
        /// Whose.
        uid: Uid,
        /// The ids that there are in this uid.
        known: Vec<u32>,
    },
    /// Another uid's.
    #[error("policies: pid {pid} is that of {holder}, whose uid is {uid}: a policy serves its own uid alone")]
    Foreign {
        /// The id.
        pid: u32,
        /// The policy.
        holder: Box<Spot>,
        /// The policy's uid.
        uid: Uid,
    },
    /// Two policies' of one uid.
    #[error("pid {pid} is that of {holder}, too: within a uid every policy has an id of its own")]
    Taken {
        /// The id.
        pid: u32,
        /// The other policy.
        holder: Box<Spot>,
    },
}

fn list(known: &[u32]) -> String {
    match known {
        [] => "none".to_owned(),
        known => known.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
    }
}

impl Input {
    /// What its tokens will say. `now` is in seconds since 1970; `fresh_jti` names a token if the file does
    /// not.
    ///
    /// # Errors
    /// The writer's: the first entry that does not fit the others.
    pub fn drafts(&self, now: u64, mut fresh_jti: impl FnMut() -> String) -> Result<Drafts, Misfit> {
        let mut shelf = Shelf::fill(self)?;
        let (mut drafts, mut warnings) = (Vec::new(), Vec::new());
        for (spot, entry) in self.entries() {
            let mut odd = Vec::new();
            let claims = match entry {
                Entry::Client(client) => {
                    let mut claims = client.claims(now, &mut fresh_jti);
                    let misfit = |why| Misfit { spot: spot.clone(), why };
                    claims.policies = match &client.policies {
                        None => Grant::default(),
                        Some(Restriction::List(list)) => {
                            odd.extend(oddities::of_list(list));
                            Grant::new(vec![list.clone()])
                        }
                        Some(Restriction::Ids(ids)) => {
                            shelf.restrict(&mut claims, ids, now, &mut odd).map_err(misfit)?
                        }
                    };
                    Some(claims)
                }
                Entry::ClientPolicy(policy) => {
                    odd.extend(oddities::of_list(&policy.policy.0));
                    None
                }
                Entry::Agent(agent) => Some(agent.claims(now, &mut fresh_jti)),
                Entry::AgentPublish(publish) => Some(publish.claims(now, &mut fresh_jti)),
            };
            if let Some(claims) = &claims {
                odd.extend(oddities::of_claims(claims, now));
            }
            warnings.extend(odd.iter().map(|odd| format!("{spot}: {odd}")));
            drafts.extend(claims.map(|claims| Draft { spot, claims }));
        }
        warnings.extend(shelf.unused());
        warnings.extend(self.strange_agents());
        Ok(Drafts { drafts, warnings })
    }
}

impl Input {
    /// Agents that a policy names and no !Agent of its uid has, where the file has agents of that uid at all.
    fn strange_agents(&self) -> Vec<String> {
        let mut agents = HashMap::<Uid, HashSet<&str>>::new();
        for (_, entry) in self.entries() {
            if let Entry::Agent(AgentToken { uid, name: Name(name), .. }) = entry {
                agents.entry(*uid).or_default().insert(name);
            }
        }
        let mut said = Vec::new();
        for (spot, entry) in self.entries() {
            let (uid, list) = match entry {
                Entry::Client(ClientToken { uid, policies: Some(Restriction::List(list)), .. }) => {
                    (uid, list)
                }
                Entry::ClientPolicy(ClientPolicy { uid, policy: List(list), .. }) => (uid, list),
                Entry::Client(_) | Entry::Agent(_) | Entry::AgentPublish(_) => continue,
            };
            let Some(known) = agents.get(uid) else { continue };
            for (item, agent) in list.policies.iter().enumerate() {
                if let Some(agent) = agent.agent().filter(|agent| !known.contains(agent)) {
                    said.push(format!(
                        "{spot}: policies[{item}]: no !Agent of this uid in this file is named {agent}"
                    ));
                }
            }
        }
        said
    }
}

/// The policies of a file, by uid and id.
struct Shelf<'a>(HashMap<(Uid, u32), Filed<'a>>);

struct Filed<'a> {
    spot: Spot,
    policy: &'a ClientPolicy,
    used: bool,
}

impl<'a> Shelf<'a> {
    fn fill(input: &'a Input) -> Result<Self, Misfit> {
        let mut shelf = HashMap::<_, Filed<'_>>::new();
        for (spot, entry) in input.entries() {
            let Entry::ClientPolicy(policy) = entry else { continue };
            let Pid(pid) = policy.pid;
            let filed = Filed { spot: spot.clone(), policy, used: false };
            if let Some(other) = shelf.insert((policy.uid, pid), filed) {
                return Err(Misfit { spot, why: MisfitCause::Taken { pid, holder: Box::new(other.spot) } });
            }
        }
        Ok(Self(shelf))
    }

    /// The lists that `ids` stand for; the claims are cut to the time in which all of them hold.
    fn restrict(
        &mut self,
        claims: &mut Claims,
        ids: &[u32],
        now: u64,
        odd: &mut Vec<String>,
    ) -> Result<Grant, MisfitCause> {
        let mut lists = Vec::with_capacity(ids.len());
        for &pid in ids {
            let Some(filed) = self.0.get_mut(&(claims.uid, pid)) else {
                return Err(self.missing(claims.uid, pid));
            };
            filed.used = true;
            let holder = &filed.spot;
            let (exp, nbf) = (filed.policy.exp.seconds(now), filed.policy.nbf.map(|nbf| nbf.seconds(now)));
            if exp < claims.exp {
                odd.push(format!(
                    "exp is brought forward to {}, when policy {pid}, {holder}, ends: a restriction that ran out \
                     must not become a freedom",
                    show(exp)
                ));
                claims.exp = exp;
            }
            if nbf > claims.nbf {
                let begins = show(nbf.unwrap_or_default());
                odd.push(format!("nbf is put off to {begins}, when policy {pid}, {holder}, begins"));
                claims.nbf = nbf;
            }
            let List(list) = &filed.policy.policy;
            lists.push(list.clone());
        }
        Ok(Grant::new(lists))
    }

    fn missing(&self, uid: Uid, pid: u32) -> MisfitCause {
        let foreign = self.0.iter().filter(|((_, other), _)| *other == pid).min_by_key(|(_, f)| f.spot.index);
        if let Some(((uid, _), filed)) = foreign {
            return MisfitCause::Foreign { pid, holder: Box::new(filed.spot.clone()), uid: *uid };
        }
        let mut known: Vec<_> = self.0.keys().filter(|(own, _)| *own == uid).map(|(_, pid)| *pid).collect();
        known.sort_unstable();
        MisfitCause::Unknown { pid, uid, known }
    }

    fn unused(self) -> Vec<String> {
        let mut unused: Vec<_> = self.0.into_iter().filter(|(_, filed)| !filed.used).collect();
        unused.sort_unstable_by_key(|(_, filed)| filed.spot.index);
        let say = |((_, pid), filed): &((Uid, u32), Filed<'_>)| {
            format!("{}: no !Client names policy {pid}: it restricts nobody", filed.spot)
        };
        unused.iter().map(say).collect()
    }
}

/// What all tokens have.
fn claims(
    (kind, uid, Name(name)): (Kind, Uid, &Name),
    (exp, nbf): (When, Option<When>),
    jti: Option<&Name>,
    now: u64,
    fresh_jti: &mut impl FnMut() -> String,
) -> Claims {
    let jti = jti.map_or_else(fresh_jti, |Name(jti)| jti.clone());
    let mut claims = Claims::new(kind, uid, name, exp.seconds(now), &jti);
    claims.nbf = nbf.map(|nbf| nbf.seconds(now));
    claims.iat = Some(now);
    claims
}

impl ClientToken {
    /// Without its policies.
    fn claims(&self, now: u64, fresh_jti: &mut impl FnMut() -> String) -> Claims {
        let mut claims = claims(
            (Kind::Client, self.uid, &self.name),
            (self.exp, self.nbf),
            self.jti.as_ref(),
            now,
            fresh_jti,
        );
        claims.limits = self.limits.as_ref().map(|Mapping(limits)| *limits).unwrap_or_default();
        claims
    }
}

impl AgentToken {
    fn claims(&self, now: u64, fresh_jti: &mut impl FnMut() -> String) -> Claims {
        claims((Kind::Agent, self.uid, &self.name), (self.exp, self.nbf), self.jti.as_ref(), now, fresh_jti)
    }
}

impl AgentPublishToken {
    fn claims(&self, now: u64, fresh_jti: &mut impl FnMut() -> String) -> Claims {
        let who = (Kind::AgentPublish, self.uid, &self.name);
        let mut claims = claims(who, (self.exp, self.nbf), self.jti.as_ref(), now, fresh_jti);
        claims.connect = Some(self.hosts.clone());
        claims
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const DAY: u64 = 24 * 60 * 60;

    fn entry(tag: &str, uid: u128, name: &str, rest: &str) -> String {
        format!("  - !{tag} {{uid: {}, name: {name}, {rest}}}\n", Uid::from_u128(uid))
    }

    fn client(uid: u128, rest: &str) -> String {
        entry("Client", uid, "laptop", rest)
    }

    fn policy(uid: u128, name: &str, rest: &str) -> String {
        entry("ClientPolicy", uid, name, &format!("policy: !WhiteList [!Any [{name}, true]], {rest}"))
    }

    fn drafts(entries: &[String]) -> Result<Drafts, String> {
        let yaml = format!("secret: [1]\ntokens:\n{}", entries.concat());
        let input = Input::parse(&yaml).unwrap_or_else(|e| panic!("{yaml}: {e}"));
        input.drafts(NOW, || "fresh".to_owned()).map_err(|e| e.to_string())
    }

    #[test]
    fn ids_become_the_lists_they_stand_for_in_their_own_order() {
        let Drafts { drafts, warnings } = drafts(&[
            policy(1, "one", "exp: 30d, pid: 1"),
            client(1, "exp: 30d, policies: [2, 1]"),
            policy(1, "two", "exp: 30d, pid: 2"),
            policy(2, "other", "exp: 1d, pid: 1"),
            client(2, "exp: 1d, policies: [1]"),
        ])
        .unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(
            drafts.iter().map(|d| (d.spot.index, d.claims.kind)).collect::<Vec<_>>(),
            [(1, Kind::Client), (4, Kind::Client)]
        );
        let agents = |draft: &Draft| -> Vec<String> {
            let lists = draft.claims.policies.lists().iter();
            lists.map(|list| list.policies[0].agent().unwrap().to_owned()).collect()
        };
        assert_eq!(
            (agents(&drafts[0]), agents(&drafts[1])),
            (vec!["two".into(), "one".into()], vec!["other".into()])
        );
    }

    #[test]
    fn a_policy_s_agent_that_is_none_of_the_file_s_is_pointed_out() {
        let list = |agent: &str| client(1, &format!("exp: 1d, policies: !WhiteList [!Any [{agent}, true]]"));
        let agent = |uid| entry("Agent", uid, "home", "exp: 1d");
        let said = |entries: &[String]| drafts(entries).unwrap().warnings;
        assert_eq!(
            said(&[list("hoem"), agent(1)]),
            [
                "tokens[0] (Client laptop, line 3): policies[0]: no !Agent of this uid in this file is named hoem"
            ]
        );
        assert!(said(&[list("home"), agent(1)]).is_empty() && said(&[list("null"), agent(1)]).is_empty());
        assert!(said(&[list("hoem"), agent(2)]).is_empty(), "its agents may be in another file");
    }

    #[test]
    fn a_token_holds_while_all_its_policies_do() {
        for (own, policies, exp, nbf, warnings) in [
            ("exp: 30d", ["exp: 30d", "exp: 40d"], 30, None, 0),
            ("exp: 30d", ["exp: 20d", "exp: 10d"], 10, None, 2),
            ("exp: 30d", ["exp: 10d", "exp: 20d"], 10, None, 1),
            ("exp: 30d, nbf: 2d", ["exp: 30d, nbf: 1d", "exp: 30d"], 30, Some(2), 0),
            ("exp: 30d", ["exp: 30d, nbf: 1d", "exp: 30d, nbf: 3d"], 30, Some(3), 2),
        ] {
            let Drafts { drafts, warnings: said } = drafts(&[
                client(1, &format!("{own}, policies: [1, 2]")),
                policy(1, "one", &format!("{}, pid: 1", policies[0])),
                policy(1, "two", &format!("{}, pid: 2", policies[1])),
            ])
            .unwrap();
            let claims = &drafts[0].claims;
            assert_eq!(
                (claims.exp, claims.nbf),
                (NOW + exp * DAY, nbf.map(|nbf| NOW + nbf * DAY)),
                "{policies:?}"
            );
            assert_eq!(said.len(), warnings, "{said:?}");
        }
        let said =
            drafts(&[client(1, "exp: 30d, policies: [7]"), policy(1, "one", "exp: 2027-01-31, pid: 7")])
                .unwrap()
                .warnings;
        assert_eq!(
            said,
            [
                "tokens[0] (Client laptop, line 3): exp is brought forward to 2027-01-31 00:00:00 UTC, when policy 7, \
              tokens[1] (ClientPolicy one, line 4), ends: a restriction that ran out must not become a freedom"
            ]
        );
    }

    #[test]
    fn ids_that_lead_nowhere_elsewhere_or_to_two_are_refused() {
        for (entries, says) in [
            (
                vec![
                    client(1, "exp: 1d, policies: [3]"),
                    policy(1, "b", "exp: 1d, pid: 2"),
                    policy(1, "a", "exp: 1d, pid: 1"),
                ],
                "tokens[0] (Client laptop, line 3): policies: no !ClientPolicy has pid 3; uid \
                 00000000-0000-0000-0000-000000000001 has 1, 2",
            ),
            (
                vec![client(1, "exp: 1d, policies: [3]")],
                "tokens[0] (Client laptop, line 3): policies: no !ClientPolicy has pid 3; uid \
                 00000000-0000-0000-0000-000000000001 has none",
            ),
            (
                vec![policy(2, "theirs", "exp: 1d, pid: 3"), client(1, "exp: 1d, policies: [3]")],
                "tokens[1] (Client laptop, line 4): policies: pid 3 is that of tokens[0] (ClientPolicy theirs, line 3), whose uid is \
                 00000000-0000-0000-0000-000000000002: a policy serves its own uid alone",
            ),
            (
                vec![
                    policy(1, "a", "exp: 1d, pid: 3"),
                    policy(2, "c", "exp: 1d, pid: 3"),
                    policy(1, "b", "exp: 1d, pid: 3"),
                ],
                "tokens[2] (ClientPolicy b, line 5): pid 3 is that of tokens[0] (ClientPolicy a, line 3), too: within a uid every \
                 policy has an id of its own",
            ),
        ] {
            assert_eq!(drafts(&entries).unwrap_err(), says);
        }
    }

    #[test]
    fn a_policy_that_nobody_names_is_pointed_out() {
        let Drafts { drafts, warnings } = drafts(&[
            client(1, "exp: 1d"),
            policy(1, "b", "exp: 1d, pid: 2"),
            policy(1, "a", "exp: 1d, pid: 1"),
        ])
        .unwrap();
        assert_eq!(drafts.len(), 1);
        assert!(drafts[0].claims.policies.is_unrestricted());
        assert_eq!(
            warnings,
            [
                "tokens[1] (ClientPolicy b, line 4): no !Client names policy 2: it restricts nobody",
                "tokens[2] (ClientPolicy a, line 5): no !Client names policy 1: it restricts nobody",
            ]
        );
    }

    #[test]
    fn limits_and_hosts_reach_their_tokens() {
        let Drafts { drafts, .. } = drafts(&[
            client(1, "exp: 1d, limits: {sessions: 3, bytes_per_s: 10MB}"),
            entry(
                "AgentPublish",
                1,
                "home",
                "exp: 1d, publish_hosts: [{host: a.b, connect: {host: x, port: 1, protocol: TCP}}]",
            ),
        ])
        .unwrap();
        let limits = drafts[0].claims.limits;
        assert_eq!(
            (limits.sessions.map(Into::into), limits.bytes_per_s.map(Into::into)),
            (Some(3u32), Some(10_000_000u64))
        );
        assert_eq!(drafts[1].claims.connect.iter().flat_map(|hosts| hosts.iter()).count(), 1);
    }
}

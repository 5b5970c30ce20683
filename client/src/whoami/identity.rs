//! Role: who one is to each gateway: what the token says, and whether the gateway agrees.
//! Invariants: what a token says by itself proves nothing, and is shown as such; the token is never shown.

use std::path::PathBuf;

use narrowlink_proto::{
    token::{Claims, read_unverified},
    when::show,
};
use serde_json::json;

use crate::{
    exit::{Exit, Failure},
    list::{self, Shown},
    routes::Routes,
};

/// Who one is to one gateway.
pub struct Identity {
    routes: Routes,
    pub(super) token_place: PathBuf,
    /// What the token says, or why it says nothing.
    pub(super) claims: Result<Claims, String>,
    pub(super) answer: Answer,
}

/// What a gateway said about a token.
#[derive(Debug)]
pub(super) enum Answer {
    NotAsked,
    /// It accepts it, and shows this.
    Accepted(Shown),
    /// It does not, or can't be reached.
    Failed(Failure),
}

impl Identity {
    /// By the token alone, which lies in `token_place`; `routes` is one gateway.
    pub(crate) fn read(routes: Routes, token_place: PathBuf) -> Self {
        let claims = read_unverified(routes.at(0).gateway.token()).map_err(|e| e.to_string());
        Self { routes, token_place, claims, answer: Answer::NotAsked }
    }

    /// An agent that its bearer may use, as far as the gateway was asked and one is there.
    pub fn an_agent(&self) -> Option<&str> {
        match &self.answer {
            Answer::Accepted(shown) => shown.agents.first().map(|agent| agent.name.as_str()),
            Answer::NotAsked | Answer::Failed(_) => None,
        }
    }

    /// Asks the gateway, too.
    pub(crate) async fn ask(&mut self) {
        self.answer = match list::all(&self.routes).await {
            Ok(shown) => Answer::Accepted(shown),
            Err(failure) => Answer::Failed(failure),
        };
    }

    /// Host and port, as the configuration has them.
    pub(super) fn gateway(&self) -> String {
        self.routes.at(0).gateway.describe().to_owned()
    }

    fn exit(&self, now: u64) -> Exit {
        match (&self.answer, &self.claims) {
            (Answer::Accepted(_), _) => Exit::Done,
            (Answer::Failed(failure), _) => failure.exit,
            (Answer::NotAsked, Ok(claims)) if claims.hold_at(now).is_ok() => Exit::Done,
            (Answer::NotAsked, _) => Exit::Authentication,
        }
    }

    fn json(&self) -> serde_json::Value {
        let claims = self.claims.as_ref();
        let policies =
            |claims: &Claims| (!claims.policies.is_unrestricted()).then(|| json!(claims.policies.lists()));
        let token = claims.map(|claims| {
            json!({
                "name": claims.name, "uid": claims.uid, "jti": claims.jti,
                "exp": claims.exp, "expires_at": show(claims.exp), "nbf": claims.nbf,
                "policies": policies(claims), "limits": claims.limits,
            })
        });
        let (accepted, shown, error) = match &self.answer {
            Answer::NotAsked => (None, None, None),
            Answer::Accepted(shown) => (Some(true), Some(shown), None),
            Answer::Failed(failure) => {
                let refused = (failure.exit == Exit::Authentication).then_some(false);
                (refused, None, Some(&failure.message))
            }
        };
        json!({
            "gateway": self.gateway(), "token": token.ok(), "unreadable": claims.err(),
            "accepted": accepted, "agents": shown.map(|shown| &shown.agents),
            "used": shown.and_then(|shown| shown.used).map(|[token, user]| json!({ "token": token, "user": user })),
            "error": error,
        })
    }
}

/// For programs: an array, in one line.
pub fn json(identities: &[Identity]) -> String {
    let all: Vec<_> = identities.iter().map(Identity::json).collect();
    format!("{}\n", json!(all))
}

/// How the command ends: of several troubles, that of the highest code.
pub fn exit(identities: &[Identity], now: u64) -> Exit {
    let exits = identities.iter().map(|identity| identity.exit(now));
    exits.max_by_key(|exit| exit.code()).unwrap_or(Exit::Done)
}

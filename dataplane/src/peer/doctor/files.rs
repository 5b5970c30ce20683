//! Role: what stands in files: the configuration, an endpoint's token, its authority.
//! Invariants: nothing is waited for: where a file is expected a pipe is refused · a token of another kind is sent to nobody,
//! and no token is shown.
//! See: docs/tokens.md.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use narrowlink_proto::{
    endpoint::{SecretText, SelfHosted},
    finding::{Finding, Trouble},
    token::{Claims, Kind, read_unverified},
};

use super::Subject;
use crate::{
    peer::open::{Gateway, read_token_again},
    tunnel::error::cause_and_step,
};

/// A token that may be sent.
pub(super) struct Held {
    pub(super) text: SecretText,
    pub(super) claims: Claims,
}

/// The configuration, and who else may read what is secret in it.
pub(super) fn look(subject: &Subject<'_>) -> Vec<Finding> {
    let how = if subject.named { "named with -c" } else { "found where it is looked for" };
    let count = subject.endpoints.len();
    let plural = if count == 1 { "" } else { "s" };
    let found = format!("{} ({how}): {count} gateway{plural}", subject.config.display());
    let mut holders: Vec<_> =
        subject.endpoints.iter().map(|endpoint| token_place(subject, endpoint)).collect();
    holders.sort();
    holders.dedup();
    let readable = holders.iter().filter(|path| is_readable_by_others(path)).map(|path| {
        let found = format!("{} holds a token and can be read by every user of this machine", path.display());
        Finding::warn("config", found, format!("chmod 600 {}", path.display()))
    });
    std::iter::once(Finding::ok("config", found)).chain(readable).collect()
}

/// The file that holds an endpoint's token.
fn token_place(subject: &Subject<'_>, endpoint: &SelfHosted) -> PathBuf {
    endpoint.token_file.as_ref().map_or_else(|| subject.config.to_owned(), |file| subject.base().join(file))
}

fn is_readable_by_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0)
}

/// An endpoint without its token, which is looked at by itself.
pub(super) fn way(subject: &Subject<'_>, endpoint: &SelfHosted) -> Result<Gateway, Finding> {
    let bare =
        SelfHosted { token: Some(SecretText::new("none".to_owned())), token_file: None, ..endpoint.clone() };
    Gateway::load_again(&bare, subject.base()).map_err(|e| unusable("tls", &e.to_string()))
}

/// An endpoint's token, if it is one that this program may use.
pub(super) fn hold(subject: &Subject<'_>, endpoint: &SelfHosted) -> Result<Held, Finding> {
    let text = read_token_again(endpoint, subject.base()).map_err(|e| unusable("token", &e.to_string()))?;
    judge(text, subject)
}

fn judge(text: SecretText, subject: &Subject<'_>) -> Result<Held, Finding> {
    let program = subject.program();
    let unfit = |found: String| {
        let next = format!("ask for {program}'s token, and write it there, whole", program = a(program));
        Finding::fail("token", Trouble::Token, found, next)
    };
    let claims = read_unverified(text.expose()).map_err(|e| unfit(format!("it can't be read: {e}")))?;
    let is_right = match subject.kind {
        Kind::Client => claims.kind == Kind::Client,
        Kind::Agent | Kind::AgentPublish => claims.kind == Kind::Agent,
    };
    match is_right {
        true => Ok(Held { text, claims }),
        false => Err(unfit(format!("it is of kind {}, and this is {}", claims.kind.name(), a(program)))),
    }
}

fn a(program: &str) -> String {
    let article = if program.starts_with('a') { "an" } else { "a" };
    format!("{article} {program}")
}

fn unusable(check: &'static str, why: &str) -> Finding {
    let (found, next) = cause_and_step(why);
    let next = next.unwrap_or("mend it there");
    Finding::fail(check, Trouble::Configuration, found, next)
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::{finding::State, id::Uid, token::Keys};

    use super::*;

    fn subject(config: &Path, kind: Kind) -> Subject<'_> {
        Subject { kind, config, named: true, endpoints: &[], require_io_uring: false, now: || 0 }
    }

    fn token(kind: Kind) -> SecretText {
        let claims = Claims::new(kind, Uid::nil(), "home", 2_000_000_000, "1");
        SecretText::new(Keys::new(&[7; 32]).sign(&claims).unwrap())
    }

    #[test]
    fn only_a_token_of_the_right_kind_may_be_sent_and_none_is_shown() {
        for (kind, right, wrong) in
            [(Kind::Client, Kind::Client, Kind::Agent), (Kind::Agent, Kind::Agent, Kind::Client)]
        {
            let subject = subject(Path::new("x.yaml"), kind);
            assert!(judge(token(right), &subject).is_ok());
            let cut = SecretText::new(token(right).expose()[..60].to_owned());
            for (bad, words) in [(token(wrong), wrong.name()), (cut, "can't be read")] {
                let Err(said) = judge(bad.clone(), &subject) else { panic!("{words} was taken") };
                assert_eq!((said.state, said.trouble), (State::Fail, Some(Trouble::Token)));
                assert!(said.found.contains(words), "{}", said.found);
                assert!(!said.line().contains(&bad.expose()[..20]), "{}", said.line());
            }
        }
    }

    #[test]
    fn a_file_with_a_token_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (config, own) = (dir.path().join("client.yaml"), dir.path().join("own.token"));
        for path in [&config, &own] {
            fs::write(path, "").unwrap();
        }
        let endpoint = SelfHosted { token_file: Some("own.token".into()), ..SelfHosted::default() };
        let endpoints = [endpoint];
        let looked = |mode| {
            fs::set_permissions(&own, fs::Permissions::from_mode(mode)).unwrap();
            let base = subject(&config, Kind::Client);
            look(&Subject { endpoints: &endpoints, ..base })
        };
        assert_eq!(looked(0o600).len(), 1, "the configuration itself holds none");
        let said = looked(0o644);
        assert_eq!(said[1].state, State::Warn);
        assert!(said[1].next.as_ref().is_some_and(|next| next.starts_with("chmod 600 ")));
    }

    #[test]
    fn a_missing_authority_is_tls_s_and_a_missing_token_is_the_token_s() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("client.yaml");
        let subject = subject(&config, Kind::Client);
        let endpoint = SelfHosted {
            gateway: "gw.test:443".to_owned(),
            token_file: Some("absent.token".into()),
            ca_file: Some("absent.pem".into()),
            ..SelfHosted::default()
        };
        let said = [way(&subject, &endpoint).err(), hold(&subject, &endpoint).err()].map(Option::unwrap);
        for (said, (check, key)) in said.iter().zip([("tls", "ca_file"), ("token", "token_file")]) {
            assert_eq!((said.check, said.trouble), (check, Some(Trouble::Configuration)));
            assert!(said.found.contains(key) && said.found.contains("can't be read"), "{}", said.found);
        }
    }
}

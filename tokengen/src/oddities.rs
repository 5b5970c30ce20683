//! Role: what is allowed, but probably not meant.
//! Invariants: a warning changes nothing about the token; a list that several clients name is looked at once.

use narrowlink_proto::{
    policy::{Item, Policies},
    token::{Claims, SECRET_BYTES_MIN, Secret},
    when::show,
};

/// Of the secret.
pub(crate) fn of_secret(secret: &Secret) -> Vec<String> {
    if !secret.is_weak() {
        return vec![];
    }
    let bytes = secret.as_bytes().len();
    vec![format!(
        "secret: {bytes} bytes are short enough to be guessed by whoever has a token; use {SECRET_BYTES_MIN} random \
         ones, or the gateway needs allow_weak_secret: true"
    )]
}

/// Of one token, its lists apart.
pub(crate) fn of_claims(claims: &Claims, now: u64) -> Vec<String> {
    let mut odd = Vec::new();
    if claims.exp <= now {
        odd.push(format!("exp is in the past ({}): no gateway will take this token", show(claims.exp)));
    }
    match claims.nbf {
        Some(nbf) if nbf >= claims.exp => {
            odd.push(format!("nbf ({}) is not before exp: it will never be valid", show(nbf)));
        }
        _ => {}
    }
    if claims.connect.as_ref().is_some_and(|hosts| hosts.iter().next().is_none()) {
        odd.push("no host: this token publishes nothing".to_owned());
    }
    odd
}

/// Of one list, wherever it stands.
pub(crate) fn of_list(list: &Policies) -> Vec<String> {
    let mut odd = Vec::new();
    if list.policies.is_empty() {
        odd.push(if list.permit {
            "policies: an empty whitelist (permit: true) allows nothing".to_owned()
        } else {
            "policies: an empty blacklist (permit: false) refuses nothing".to_owned()
        });
    }
    for (index, item) in list.policies.iter().enumerate() {
        let at = |text: &str| format!("policies[{index}]: {text}");
        match item {
            Item::Any(_, true) if !list.permit => {
                odd.push(at(
                    "!Any [.., true] in a blacklist (permit: false) refuses everything on that agent",
                ));
            }
            Item::Any(None, false) => odd.push(at("!Any [null, false] refuses every agent")),
            Item::Domain(..) if !list.permit => {
                odd.push(at("a refused !Domain does not refuse its addresses: add !Ip items for those"));
            }
            Item::Any(..) | Item::Domain(..) | Item::Ip(..) => {}
        }
        if list.policies[..index].contains(item) {
            odd.push(at("comes twice"));
        }
    }
    odd
}

#[cfg(test)]
mod tests {
    use super::*;

    fn odd(permit: bool, items: &str) -> Vec<String> {
        of_list(&Policies { permit, policies: narrowlink_proto::yaml::read(items).unwrap() })
    }

    #[test]
    fn policies_that_do_something_else_than_they_seem_to_are_pointed_out() {
        for (permit, items, says) in [
            (true, "[]", "allows nothing"),
            (false, "[]", "refuses nothing"),
            (
                false,
                "[!Any [a, true]]",
                "policies[0]: !Any [.., true] in a blacklist (permit: false) refuses everything",
            ),
            (true, "[!Any [null, false]]", "refuses every agent"),
            (false, "[!Domain [null, a.example, 0, ANY]]", "does not refuse its addresses"),
            (true, "[!Any [a, true], !Any [a, true]]", "policies[1]: comes twice"),
        ] {
            let odd = odd(permit, items);
            assert!(odd.len() == 1 && odd[0].contains(says), "{permit} {items}: {odd:?}");
        }
    }

    #[test]
    fn plain_policies_are_not_talked_about() {
        let items = "[!Ip [null, 10.0.0.0/8, 22, TCP], !Domain [a, a.example, 0, ANY], !Any [b, true], !Any [c, false]]";
        assert_eq!(odd(true, items), Vec::<String>::new());
        let items = "[!Ip [null, 10.0.0.0/8, 0, ANY], !Any [c, false]]";
        assert_eq!(odd(false, items), Vec::<String>::new());
    }
}

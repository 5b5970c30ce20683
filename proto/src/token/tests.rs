//! Role: what tokens must withstand, as tables and properties.
//! See: RFC 8725.

use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE};
use proptest::prelude::*;

use super::*;
use crate::{
    id::Uid,
    policy::{Grant, Item, Policies},
};

const NOW: u64 = 1_800_000_000;
const HEADER: &str = r#"{"typ":"JWT","alg":"HS256"}"#;

fn claims(kind: Kind) -> Claims {
    let service = Published {
        host: "narrow.host".into(),
        port: 0,
        path: String::new(),
        addr: ("127.0.0.1".into(), 80),
        protocol: PublishProtocol::Http,
    };
    Claims {
        kind,
        uid: Uid::from_u128(7),
        name: "home".into(),
        exp: NOW + 60,
        nbf: None,
        iat: Some(NOW),
        jti: "00112233445566778899aabbccddeeff".into(),
        policies: if kind == Kind::Client { whitelist(vec![]) } else { Grant::default() },
        limits: Allowance::default(),
        connect: (kind == Kind::AgentPublish).then(|| Services::new(vec![service]).unwrap()),
    }
}

fn whitelist(policies: Vec<Item>) -> Grant {
    Grant::new(vec![Policies { permit: true, policies }])
}

fn keys() -> Keys {
    Keys::new(&[1; 32])
}

/// Signs whatever it is given, as only somebody with the secret can.
fn sign_raw(header: &str, claims: &str, kind: Kind) -> String {
    let message = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part)).join(".");
    let signature = crypto::sign(message.as_bytes(), &keys().key(kind).sign, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

fn json(claims: &Claims) -> String {
    serde_json::to_string(claims).unwrap()
}

#[test]
fn a_token_works_in_its_own_role_and_no_other_with_any_secret() {
    // [2, 0, 2, 3, ..] is the seed's; the others read the same from both ends, or are all alike.
    let secrets: [&[u8]; 5] = [&[2, 0, 2, 3, 0, 8, 1, 8], b"abccba", &[0; 64], &[7], &[1, 2, 3, 2, 1]];
    for secret in secrets {
        let keys = Keys::new(secret);
        for signed in Kind::ALL {
            let token = keys.sign(&claims(signed)).unwrap();
            for role in Kind::ALL {
                let got = keys.verify(&token, role, NOW);
                if role == signed {
                    assert_eq!(got.unwrap(), claims(signed));
                } else {
                    assert!(matches!(got, Err(TokenError::Signature)), "{signed:?} as {role:?}: {got:?}");
                }
            }
            let reversed: Vec<_> = secret.iter().rev().copied().chain([0]).collect();
            assert!(Keys::new(&reversed).verify(&token, signed, NOW).is_err());
        }
    }
}

#[test]
fn a_kind_that_is_not_its_keys_is_refused() {
    let token = sign_raw(HEADER, &json(&claims(Kind::Agent)), Kind::Client);
    let got = keys().verify(&token, Kind::Client, NOW);
    assert!(matches!(got, Err(TokenError::Claims(ClaimsError::Kind))), "{got:?}");
}

#[test]
fn the_keys_of_a_secret_never_change() {
    // Whoever changes the derivation makes every token out there worthless.
    let claims = Claims { policies: Grant::default(), ..claims(Kind::Client) };
    let token = keys().sign(&claims).unwrap();
    // Made with another HKDF and another HMAC (Python's).
    let golden = concat!(
        "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.",
        "eyJraW5kIjoiY2xpZW50IiwidWlkIjoiMDAwMDAwMDAtMDAwMC0wMDAwLTAwMDAtMDAwMDAwMDAwMDA3IiwibmFtZSI6ImhvbWUi",
        "LCJleHAiOjE4MDAwMDAwNjAsImlhdCI6MTgwMDAwMDAwMCwianRpIjoiMDAxMTIyMzM0NDU1NjY3Nzg4OTlhYWJiY2NkZGVlZmYifQ",
        ".nVbtrSqTg2hVGW6iyzdadXRWEg7d1hiadFa2DElwvTo"
    );
    assert_eq!(token, golden);
}

#[test]
fn a_header_that_asks_for_anything_else_is_refused() {
    for header in [
        r#"{"alg":"none"}"#,
        r#"{"alg":"None","typ":"JWT"}"#,
        r#"{"alg":"hs256"}"#,
        r#"{"alg":"HS384"}"#,
        r#"{"alg":"RS256"}"#,
        r#"{"alg":"EdDSA"}"#,
        r#"{"alg":["HS256"]}"#,
        r#"{"alg":null}"#,
        r#"{"typ":"JWT"}"#,
        r#"{}"#,
        r#"[]"#,
        r#"{"alg":"HS256","typ":"at+jwt"}"#,
        r#"{"alg":"HS256","alg":"HS256"}"#,
        r#"{"alg":"none","alg":"HS256"}"#,
        r#"{"alg":"HS256","kid":"1"}"#,
        r#"{"alg":"HS256","jku":"https://evil.example/"}"#,
        r#"{"alg":"HS256","jwk":{"kty":"oct","k":"AA"}}"#,
        r#"{"alg":"HS256","x5u":"https://evil.example/"}"#,
        r#"{"alg":"HS256","crit":["exp"]}"#,
        r#"{"alg":"HS256","cty":"JWT"}"#,
        r#"{"alg":"HS256","b64":false}"#,
        r#"{"alg":"HS256"} x"#,
        &format!(r#"{{"alg":"HS256"{}}}"#, " ".repeat(200)),
        &"[".repeat(90),
    ] {
        let token = sign_raw(header, &json(&claims(Kind::Agent)), Kind::Agent);
        let got = keys().verify(&token, Kind::Agent, NOW);
        assert!(matches!(got, Err(TokenError::Header)), "{header}: {got:?}");
    }
    for header in [HEADER, r#"{"alg":"HS256"}"#, r#"{ "alg" : "HS256" }"#] {
        let token = sign_raw(header, &json(&claims(Kind::Agent)), Kind::Agent);
        assert!(keys().verify(&token, Kind::Agent, NOW).is_ok(), "{header}");
    }
}

#[test]
fn a_token_has_one_spelling() {
    let token = keys().sign(&claims(Kind::Agent)).unwrap();
    let (message, signature) = token.rsplit_once('.').unwrap();
    let (header, body) = message.split_once('.').unwrap();
    let signature_bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    // 32 bytes leave two bits over in the last of 43 characters: flip one of them.
    let last = signature.bytes().last().unwrap() + 1;
    let trailing_bits = format!("{}{}", &signature[..42], char::from(last));
    let other_alphabet = STANDARD_NO_PAD.encode(&signature_bytes);
    for bad in [
        String::new(),
        ".".into(),
        "..".into(),
        "...".into(),
        message.into(),
        format!("{message}."),
        format!(".{body}.{signature}"),
        format!("{header}..{signature}"),
        format!("{token}."),
        format!(".{token}"),
        format!("{token}.{signature}"),
        format!("{token}="),
        format!("{token} "),
        format!(" {token}"),
        format!("{token}\n"),
        format!("{token}\0"),
        format!("Bearer {token}"),
        format!("{message}.{}", URL_SAFE.encode(&signature_bytes)),
        format!("{message}.{trailing_bits}"),
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(&signature_bytes[..31])),
        format!("{message}.{signature}AAAA"),
        format!("{header}=.{body}.{signature}"),
        format!("{header}.{body}==.{signature}"),
        format!("{header}.{}\n{}.{signature}", &body[..8], &body[8..]),
    ] {
        assert!(keys().verify(&bad, Kind::Agent, NOW).is_err(), "{bad:?}");
    }
    if other_alphabet != signature {
        assert!(keys().verify(&format!("{message}.{other_alphabet}"), Kind::Agent, NOW).is_err());
    }
    assert!(keys().verify(&token, Kind::Agent, NOW).is_ok());
}

#[test]
fn sizes_are_refused_before_any_signature_is_looked_at() {
    let long = format!("{}.{}.{}", "a".repeat(8), "b".repeat(TOKEN_BYTES_MAX), "c".repeat(43));
    assert!(matches!(keys().verify(&long, Kind::Agent, NOW), Err(TokenError::TooLong)));
    let just_over = " ".repeat(CLAIMS_BYTES_MAX + 1);
    let token = sign_raw(HEADER, &just_over, Kind::Agent);
    assert!(token.len() < TOKEN_BYTES_MAX);
    assert!(matches!(keys().verify(&token, Kind::Agent, NOW), Err(TokenError::TooLong)));
    let padded = |bytes: usize| {
        let text = json(&claims(Kind::Agent));
        sign_raw(HEADER, &format!("{text}{}", " ".repeat(bytes - text.len())), Kind::Agent)
    };
    assert!(keys().verify(&padded(CLAIMS_BYTES_MAX), Kind::Agent, NOW).is_ok());
    assert!(keys().verify(&padded(CLAIMS_BYTES_MAX + 1), Kind::Agent, NOW).is_err());
}

#[test]
fn time_is_kept_to_the_second() {
    let (exp, nbf) = (NOW + 60, NOW - 60);
    let token = keys().sign(&Claims { exp, nbf: Some(nbf), ..claims(Kind::Agent) }).unwrap();
    let at = |now| keys().verify(&token, Kind::Agent, now);
    assert!(matches!(at(0), Err(TokenError::NotYet { .. })));
    assert!(matches!(at(nbf - LEEWAY_S - 1), Err(TokenError::NotYet { .. })));
    assert!(at(nbf - LEEWAY_S).is_ok());
    assert!(at(exp + LEEWAY_S - 1).is_ok());
    assert!(matches!(at(exp + LEEWAY_S), Err(TokenError::Expired { .. })));
    assert!(matches!(at(u64::MAX), Err(TokenError::Expired { .. })));
    const { assert!(LEEWAY_S <= 5) };
}

#[test]
fn an_absurd_or_missing_exp_is_refused_even_when_signed() {
    let text = json(&claims(Kind::Agent));
    let exp = format!(r#""exp":{}"#, NOW + 60);
    assert!(text.contains(&exp));
    for bent in ["253402300800", "18446744073709551615", "1e12", "-1", "true", "null", "\"9\""] {
        let token = sign_raw(HEADER, &text.replace(&exp, &format!(r#""exp":{bent}"#)), Kind::Agent);
        assert!(matches!(keys().verify(&token, Kind::Agent, NOW), Err(TokenError::Claims(_))), "{bent}");
    }
    for without in [text.replace(&format!("{exp},"), ""), text.replace(&exp, &format!("{exp},{exp}"))] {
        let token = sign_raw(HEADER, &without, Kind::Agent);
        assert!(matches!(keys().verify(&token, Kind::Agent, NOW), Err(TokenError::Claims(_))), "{without}");
    }
}

#[test]
fn what_would_not_verify_is_not_signed() {
    let nameless = Claims { name: String::new(), ..claims(Kind::Agent) };
    assert!(matches!(keys().sign(&nameless), Err(TokenError::Claims(ClaimsError::Name { .. }))));
    let item: Item = serde_json::from_str(r#"{"Any":["a",true]}"#).unwrap();
    let policies = |count| whitelist(vec![item.clone(); count]);
    let long = Claims { policies: policies(250), ..claims(Kind::Client) };
    assert!(matches!(keys().sign(&long), Err(TokenError::Claims(ClaimsError::TooLong { .. }))));
    let many = Claims { policies: policies(257), ..claims(Kind::Client) };
    assert!(matches!(keys().sign(&many), Err(TokenError::Claims(ClaimsError::TooManyItems { count: 257 }))));
}

#[test]
fn two_secrets_allow_rotation() {
    let (old, new, other) = (Keys::new(&[1; 32]), Keys::new(&[2; 32]), Keys::new(&[3; 32]));
    let ring = KeyRing::new(new.clone(), vec![old.clone()]);
    let token = |keys: &Keys| keys.sign(&claims(Kind::Client)).unwrap();
    assert!(ring.verify(&token(&old), Kind::Client, NOW).is_ok());
    assert!(ring.verify(&token(&new), Kind::Client, NOW).is_ok());
    assert!(matches!(ring.verify(&token(&other), Kind::Client, NOW), Err(TokenError::Signature)));
    assert!(matches!(ring.verify(&token(&old), Kind::Agent, NOW), Err(TokenError::Signature)));
    assert!(matches!(ring.verify(&token(&old), Kind::Client, NOW + 99), Err(TokenError::Expired { .. })));
    let (_, id) = ring.verify_and_name(&token(&old), Kind::Client, NOW).unwrap();
    assert!(id == old.id() && id != new.id());
    assert!(ring.knows(id) && ring.knows(new.id()) && !ring.knows(other.id()));
    assert_eq!(ring.sign(&claims(Kind::Client)).unwrap(), token(&new));
    assert_eq!(format!("{ring:?}"), "KeyRing { first: Keys(..), rest: [Keys(..)] }");
}

#[test]
fn a_bearer_can_read_its_own_expiry() {
    let token = keys().sign(&claims(Kind::Agent)).unwrap();
    let peek = peek_unverified(&token).unwrap();
    assert_eq!((peek.kind, peek.exp, peek.name.as_str()), (Kind::Agent, NOW + 60, "home"));
    let newer = json(&claims(Kind::Agent)).replace(r#""kind""#, r#""replicas":3,"kind""#);
    assert!(peek_unverified(&sign_raw(HEADER, &newer, Kind::Agent)).is_some());
    assert!(peek_unverified("eyJ.eyJ.x").is_none());
    assert_eq!(read_unverified(&token).unwrap(), claims(Kind::Agent));
    assert!(matches!(read_unverified(&sign_raw(HEADER, &newer, Kind::Agent)), Err(TokenError::Claims(_))));
    assert!(matches!(read_unverified("eyJ.eyJ.x"), Err(TokenError::Header | TokenError::Malformed(_))));
}

#[test]
fn whoever_looks_at_a_token_learns_what_it_says_and_which_key_signed_it() {
    for kind in Kind::ALL {
        let long_ago = Claims { exp: 1, ..claims(kind) };
        let token = keys().sign(&long_ago).unwrap();
        assert_eq!(read_unverified(&token).unwrap(), long_ago);
        assert_eq!(keys().signer(&token).unwrap(), Some(kind));
        assert_eq!(Keys::new(b"another").signer(&token).unwrap(), None);
    }
    let pretender = sign_raw(HEADER, &json(&claims(Kind::Agent)), Kind::Client);
    assert_eq!(keys().signer(&pretender).unwrap(), Some(Kind::Client));
    assert_eq!(read_unverified(&pretender).unwrap().kind, Kind::Agent);
}

#[test]
fn what_is_no_token_is_told_apart() {
    let token = keys().sign(&claims(Kind::Agent)).unwrap();
    let (message, signature) = token.rsplit_once('.').unwrap();
    let (header, body) = message.split_once('.').unwrap();
    for (bad, says) in [
        (String::new(), "fewer than three parts"),
        (message.to_owned(), "fewer than three parts"),
        (format!("{token}.{signature}"), "more than three parts"),
        (format!("{header}!.{body}.{signature}"), "its header is not base64url"),
        (format!("{header}.{body}!.{signature}"), "its claims are not base64url"),
        (format!("{message}.{signature}="), "its signature is not 32 bytes in base64url"),
        (format!("{message}.{}", &signature[..40]), "its signature is not 32 bytes in base64url"),
        (sign_raw("{}", "{}", Kind::Agent), "the token's header asks for something else than plain HS256"),
        (sign_raw(HEADER, "{", Kind::Agent), "the token's claims can't be taken: EOF while parsing"),
        (sign_raw(HEADER, "{}", Kind::Agent), "the token's claims can't be taken: missing field `kind`"),
    ] {
        let why = read_unverified(&bad).unwrap_err().to_string();
        assert!(why.contains(says), "{bad}: {why}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_flipped_bit_of_the_text_is_accepted(kind in 0usize..3, at: prop::sample::Index, bit in 0u32..7) {
        let kind = Kind::ALL[kind];
        let mut text = keys().sign(&claims(kind)).unwrap().into_bytes();
        let at = at.index(text.len());
        text[at] ^= 1 << bit;
        let text = String::from_utf8(text).unwrap();
        for role in Kind::ALL {
            prop_assert!(keys().verify(&text, role, NOW).is_err());
        }
    }

    #[test]
    fn no_altered_byte_of_a_part_is_accepted(part in 0usize..3, at: prop::sample::Index, mask in 1u8..) {
        let token = keys().sign(&claims(Kind::Client)).unwrap();
        let mut parts: Vec<_> = token.split('.').map(|p| URL_SAFE_NO_PAD.decode(p).unwrap()).collect();
        let at = at.index(parts[part].len());
        parts[part][at] ^= mask;
        let bent = parts.iter().map(|p| URL_SAFE_NO_PAD.encode(p)).collect::<Vec<_>>().join(".");
        prop_assert!(keys().verify(&bent, Kind::Client, NOW).is_err());
    }

    #[test]
    fn bent_bytes_never_panic(text in "[A-Za-z0-9_=. -]{0,200}|.{0,60}", body in ".{0,60}") {
        let token = sign_raw(HEADER, &body, Kind::Client);
        for text in [text, token] {
            prop_assert!(keys().verify(&text, Kind::Client, NOW).is_err());
            let _ = peek_unverified(&text);
            let _ = read_unverified(&text);
        }
    }
}

//! A client asks who it is: every gateway of its configuration says whether it takes the token.

use narrowlink_client::{config::Config, exit::Exit, identities, whoami};
use narrowlink_loadtest::{
    lab::Lab,
    site::{Transport, now},
};
use narrowlink_proto::{id::Uid, token::Kind};
use serde_json::Value;

use crate::alone;

fn ask(config: &Config) -> (Exit, String, Value) {
    let identities = identities(config, false).unwrap();
    let json = serde_json::from_str(&whoami::json(&identities)).unwrap();
    (whoami::exit(&identities, now()), whoami::text(&identities, now(), false), json)
}

#[test]
fn a_gateway_says_whether_it_takes_a_token_and_whom_it_shows() {
    let _turn = alone();
    let lab = Lab::start(1).unwrap();
    for transport in [Transport { tls: false, raw: false }, Transport { tls: true, raw: false }] {
        let agents = ["home", "office"].map(|name| lab.agent(name, transport).unwrap());
        let policies = only_home();
        let config = lab.client(lab.uid, "laptop", transport, Some(policies)).unwrap();
        let (exit, text, json) = ask(&config);
        let entry = lab.entry(transport);
        assert_eq!(exit, Exit::Done, "{text}");
        assert!(text.contains(&format!("gateway {entry} accepts it; agents: home\n")), "{text}");
        assert_eq!((&json[0]["accepted"], &json[0]["agents"][0]["name"]), (&true.into(), &"home".into()));
        // Another user's agents are nobody's business.
        let config = lab.client(Uid::from_u128(8), "other", transport, None).unwrap();
        let (exit, text, _) = ask(&config);
        assert!(exit == Exit::Done && text.contains("accepts it; no agents are connected"), "{text}");
        drop(agents);
    }
}

/// Only the agent home.
fn only_home() -> narrowlink_proto::policy::Policies {
    serde_json::from_str(r#"{"permit":true,"policies":[{"Ip":["home","10.0.0.0/8",22,"TCP"]}]}"#).unwrap()
}

#[test]
fn each_gateway_is_asked_and_the_worst_answer_is_the_exit_code() {
    let _turn = alone();
    let plain = Transport { tls: false, raw: false };
    let lab = Lab::start(1).unwrap();
    let stranger = Lab::start(1).unwrap();
    let here = lab.client(lab.uid, "laptop", plain, None).unwrap();
    let elsewhere = lab.site.token(Kind::Client, lab.uid, "laptop", None).unwrap();
    let path =
        lab.site.endpoint_yaml("elsewhere.yaml", stranger.entry(plain), plain, &elsewhere, "").unwrap();
    let mut both = here.clone();
    both.endpoints.extend(Config::load(&path).unwrap().endpoints);
    let (exit, text, json) = ask(&both);
    assert_eq!(exit, Exit::Authentication, "{text}");
    assert!(text.contains("accepts it; no agents are connected"), "{text}");
    assert!(text.contains("does not accept the token in "), "{text}");
    assert_eq!((&json[0]["accepted"], &json[1]["accepted"]), (&true.into(), &false.into()));

    let expired = lab.site.token_until(Kind::Client, lab.uid, "laptop", None, now() - 60).unwrap();
    let path = lab.site.endpoint_yaml("expired.yaml", lab.entry(plain), plain, &expired, "").unwrap();
    let (exit, text, _) = ask(&Config::load(&path).unwrap());
    assert!(exit == Exit::Authentication && text.contains(" expired on "), "{text}");

    // A port that was just bound and is bound no more: nobody listens there.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let path = lab.site.endpoint_yaml("gone.yaml", gone, plain, &elsewhere, "").unwrap();
    let (exit, text, json) = ask(&Config::load(&path).unwrap());
    assert!(exit == Exit::Unreachable && text.contains("can't be reached"), "{text}");
    assert_eq!(json[0]["accepted"], Value::Null);
}

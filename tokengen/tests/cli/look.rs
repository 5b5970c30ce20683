//! Role: `inspect` and `keygen`.

use narrowlink_proto::{
    id::Uid,
    token::{Claims, Keys, Kind, Secret},
};

use crate::kit::{Ended, SECRET, Site, UID, file, keys, mode, now, tokens};

/// An agent's token, signed with `secret` (of the site) and expiring then.
fn token(exp: u64) -> String {
    keys().sign(&Claims::new(Kind::Agent, Uid::nil(), "home", exp, "j")).unwrap()
}

#[test]
fn a_token_is_shown_in_words_and_called_unverified() {
    let site = Site::new();
    let client = format!(
        "  - !Client
    uid: {UID}
    name: laptop
    exp: 721h
    limits: {{ sessions: 5 }}
    policies: {{ permit: true, policies: [!Ip [home, 192.168.0.1/24, [22, 8000-8100], TCP], !Any [lab, false]] }}
"
    );
    site.write("tokens.yaml", &file(&client));
    let printed = site.run(&["tokens.yaml"]).stdout;
    site.write("laptop.token", &printed);
    let Ended { stdout, stderr, code } = site.run(&["inspect", "laptop.token"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    for says in [
        "kind       Client\n",
        &format!("uid        {UID}\n"),
        "name       laptop\n",
        " UTC (in 30 days)",
        "reaches    only these\n             !Ip [home, 192.168.0.0/24, [22, 8000-8100], TCP]\n             !Any [lab, false]\n",
        "limits     5 sessions at a time\n",
        "signature  NOT VERIFIED: anybody could have written all this; --secret tells\n",
    ] {
        assert!(stdout.contains(says), "{says}\n{stdout}");
    }
    // The same from the command line and through standard input.
    let token = tokens(&printed)[0];
    assert_eq!(site.run(&["inspect", token]).code, 0);
    assert_eq!(site.run_with(&printed, &["inspect", "-"]).code, 0);
}

#[test]
fn the_right_secret_is_found_wherever_it_stands_and_a_wrong_one_is_told() {
    let site = Site::new();
    site.write("t", &token(now() + 60));
    let hex = format!("hex:{}", "09".repeat(32));
    let new = format!("hex:{}", "08".repeat(32));
    site.write(
        "gateway.yaml",
        &format!("name: g\nservices: [!Ws {{ listen_addr: x }}]\nsecret: \"{hex}\"\n"),
    );
    site.write("rotated.yaml", &format!("secret: \"{new}\"\nold_secrets: [\"{new}\", !File secret]\n"));
    site.write("rolled-out.yaml", &format!("secret: \"{new}\"\nold_secrets: []\n"));
    site.write("other", &new);
    let good = |by: &str| format!("good: by the {by} (id {})\n", keys().id());
    let bad = |by: &str| format!("BAD: not by the {by}\n");
    for (spec, code, says) in [
        ("secret", 0, good("secret in secret")),
        (&hex, 0, good("secret given")),
        ("gateway.yaml", 0, good("secret in gateway.yaml")),
        ("rotated.yaml", 0, good("old_secrets[1] in rotated.yaml")),
        ("other", 1, bad("secret in other")),
        (&new, 1, bad("secret given")),
        ("rolled-out.yaml", 1, bad("secret in rolled-out.yaml")),
    ] {
        let ended = site.run(&["inspect", "t", "--secret", spec]);
        assert_eq!((ended.code, ended.stderr.as_str()), (code, ""), "{spec}");
        assert!(ended.stdout.ends_with(&format!("signature  {says}")), "{spec}: {}", ended.stdout);
    }
    for (spec, says) in [
        ("nowhere", "--secret: no file that can be read: No such file"),
        ("hex:0", "--secret: not hexadecimal"),
        ("t.yaml", "t.yaml: line 1 column 1: `secret` is missing"),
    ] {
        site.write("t.yaml", "tokens: []\n");
        let ended = site.run(&["inspect", "t", "--secret", spec]);
        assert_eq!((ended.code, ended.stdout.as_str()), (78, ""), "{spec}");
        assert!(ended.stderr.starts_with(&format!("narrowlink-tokengen: {says}")), "{}", ended.stderr);
    }
}

#[test]
fn a_token_that_ran_out_still_shows_who_signed_it() {
    let site = Site::new();
    site.write("t", &token(now() - 2 * 3600 - 5));
    let ended = site.run(&["inspect", "t", "--secret", "secret"]);
    assert_eq!(ended.code, 0);
    assert!(ended.stdout.contains(" UTC (2 hours ago)"), "{}", ended.stdout);
    assert!(ended.stdout.contains("): no gateway takes it\n"), "{}", ended.stdout);
}

#[test]
fn json_has_the_claims_and_who_signed_them() {
    let site = Site::new();
    site.write("t", &token(2_000_000_000));
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&site.run(&[&["inspect", "t", "--json"], arguments].concat()).stdout).unwrap()
    };
    let shown = json(&["--secret", "secret"]);
    assert_eq!(shown["verified_by"], "secret in secret");
    assert_eq!(shown["key"], keys().id().to_string());
    assert_eq!((&shown["kind"], &shown["exp"]), (&"agent".into(), &2_000_000_000.into()));
    assert!(json(&[])["verified_by"].is_null());
    assert!(json(&["--secret", "hex:00"])["verified_by"].is_null());
}

#[test]
fn a_broken_token_says_what_is_broken() {
    let site = Site::new();
    let good = token(now() + 60);
    let (message, _) = good.rsplit_once('.').unwrap();
    for (text, code, says) in [
        (message, 1, "not a token: it has fewer than three parts, joined by dots"),
        (&format!("{good}.x"), 1, "not a token: it has more than three parts"),
        (&format!("{good}="), 1, "not a token: its signature is not 32 bytes in base64url: was it cut off?"),
        (
            &good[..good.len() - 2],
            1,
            "not a token: its signature is not 32 bytes in base64url: was it cut off?",
        ),
        // {"alg":"none"}
        (
            &good.replacen(good.split('.').next().unwrap(), "eyJhbGciOiJub25lIn0", 1),
            1,
            "the token's header asks for something else than plain HS256",
        ),
        // {"a\u001b[2J":1}
        (
            &good.replacen(good.split('.').nth(1).unwrap(), "eyJhXHUwMDFiWzJKIjoxfQ", 1),
            1,
            "the token's claims can't be taken: unknown field `a\\u{1b}[2J`",
        ),
        // {
        (
            &good.replacen(good.split('.').nth(1).unwrap(), "ew", 1),
            1,
            "the token's claims can't be taken: EOF while parsing",
        ),
        (&format!("{good}\n{good}"), 1, "standard input: 2 tokens in it, where one is expected"),
        ("", 1, "standard input: no token in it"),
    ] {
        let ended = site.run_with(text, &["inspect", "-", "--secret", "secret"]);
        assert_eq!((ended.code, ended.stdout.as_str()), (code, ""), "{text}");
        let says = format!("narrowlink-tokengen: {says}");
        assert!(
            ended.stderr.starts_with(&says) && ended.stderr.lines().count() == 1,
            "{}{says}",
            ended.stderr
        );
    }
    let ended = site.run(&["inspect", "nowhere.token"]);
    assert_eq!(ended.code, 78);
    assert!(
        ended.stderr.contains("the argument names no file that can be read: No such file"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_new_secret_is_32_random_bytes_and_nobodys_is_written_over() {
    let site = Site::new();
    let printed = [site.run(&["keygen"]).stdout, site.run(&["keygen"]).stdout];
    assert_ne!(printed[0], printed[1]);
    for line in &printed {
        assert_eq!(Secret::parse(line.trim_end()).unwrap().as_bytes().len(), 32, "{line}");
    }
    let made = site.run(&["keygen", "-o", "new"]);
    assert_eq!((made.code, made.stdout.as_str(), made.stderr.as_str()), (0, "", ""));
    assert_eq!(mode(&site.path("new")), 0o600);
    let secret = site.read("new");
    assert_eq!(Secret::from_file(secret.as_bytes()).unwrap().as_bytes().len(), 32);
    for name in ["new", "secret"] {
        let before = site.read(name);
        let refused = site.run(&["keygen", "-o", name]);
        assert_eq!((refused.code, refused.stdout.as_str()), (74, ""));
        let says = format!("narrowlink-tokengen: {name}: it exists already and is left as it is: ");
        assert!(refused.stderr.starts_with(&says), "{}", refused.stderr);
        assert_eq!(site.read(name), before);
    }
    // What it makes, signs.
    site.write(
        "tokens.yaml",
        &file("").replace("!File secret", "!File new").replace("tokens:", "tokens: []"),
    );
    assert!(!site.run(&["tokens.yaml"]).stderr.contains("short"));
    assert_ne!(Keys::new(&SECRET).sign(&Claims::new(Kind::Agent, Uid::nil(), "a", 1, "j")).unwrap(), secret);
}

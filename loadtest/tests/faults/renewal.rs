//! Role: a forward whose token's file gets another token, or something that is none, while it runs.
//! Invariants: the newer token is taken up without a restart and without a connection that fails · what an older token
//! began goes on until that one is revoked · what does not work is said once, and the one before stays.
//! See: docs/configuration.md, `token_file`; `narrowlink_client`'s `renewal`.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    alone,
    kit::{
        PATIENCE, net,
        process::Running,
        site::{Forward, Site, Transport, Tunnel, UID},
        timing::slowness,
        wait_for,
    },
};

/// What the forward's token is read from.
const FILE: &str = "Free.token";
const ANEW: &str = "logged in anew";
const CONNECTED: &str = "INFO connected";
const NOT_ACCEPTED: &str = "does not accept the token in";

/// Tokens of a client with these ids.
fn tokens<const N: usize>(site: &Site, jtis: [&str; N]) -> [String; N] {
    let item = |jti| format!("  - !Client {{ uid: {UID}, name: free, exp: 30d, jti: {jti} }}\n");
    site.tokens(&jtis.map(item).concat()).try_into().expect("one for each item")
}

fn read(site: &Site, file: &str) -> String {
    fs::read_to_string(site.path(file)).expect("the file is ours")
}

/// Puts a file with this text in the place of the token's, which is never gone.
fn replace(site: &Site, text: &str) {
    let beside = site.write_secret("next.token", text);
    fs::rename(beside, site.path(FILE)).expect("the directory is ours");
}

fn wait_until_said(program: &Running, words: &str, times: usize) {
    wait_for(words, PATIENCE, || (program.said_times(words) >= times).then_some(()));
}

fn start_forward(site: &Site, transport: Transport) -> Forward {
    site.start_forward(transport, net::start_echo())
}

/// Whether a session that stands still echoes.
fn echoes(session: &mut TcpStream) -> bool {
    let mut answer = [0; 5];
    let echoed = session.write_all(b"still").and_then(|()| session.read_exact(&mut answer));
    echoed.is_ok() && answer == *b"still"
}

fn write_list(site: &Site, jtis: &[&str]) {
    let list: String = jtis.iter().map(|jti| format!("- jti: {jti}\n")).collect();
    site.write_secret("revoked.yaml", if jtis.is_empty() { "[]\n" } else { &list });
}

/// Starts a gateway that takes no tokens with these ids.
fn start_revoking_gateway(site: &mut Site, jtis: &[&str]) -> Running {
    write_list(site, jtis);
    site.configure_gateway("revocations: revoked.yaml\n");
    let gateway = site.start_gateway();
    // Written again by the start, with the ports it got.
    wait_until_said(&gateway, "gateway.yaml: taken", 1);
    gateway
}

/// Writes the list of revoked tokens, and waits until the gateway has taken it.
fn revoke(site: &Site, gateway: &Running, jtis: &[&str]) {
    let taken = gateway.said_times("gateway.yaml: taken");
    write_list(site, jtis);
    wait_until_said(gateway, "gateway.yaml: taken", taken + 1);
}

fn assert_reset(mut session: TcpStream) {
    let ended = session.read(&mut [0]).expect_err("a revoked token's session is no clean end");
    assert_eq!(ended.kind(), ErrorKind::ConnectionReset, "{ended}");
}

fn a_forward_takes_a_newer_token_up_and_no_connection_fails_when_the_one_before_is_revoked(
    transport: Transport,
) {
    let _alone = alone();
    let mut site = Site::new();
    let [first, second, third] = tokens(&site, ["first", "second", "third"]);
    site.write_secret(FILE, &first);
    let mut gateway = start_revoking_gateway(&mut site, &[]);
    let _agent = site.start_agent(transport);
    let mut forward = start_forward(&site, transport);
    let mut by_first = net::try_echo(forward.local).expect("a session");
    let (over, local) = (AtomicBool::new(false), forward.local);
    thread::scope(|scope| {
        let asker = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                net::echo(local);
            }
        });
        // By a file that takes the place of the other.
        replace(&site, &second);
        wait_until_said(&forward.running, ANEW, 1);
        assert!(echoes(&mut by_first), "what stands goes on");
        let mut by_second = net::try_echo(local).expect("a session");
        revoke(&site, &gateway, &["first"]);
        assert_reset(by_first);
        assert!(echoes(&mut by_second), "it was begun by the new token");
        // By writing into the same file.
        site.write_secret(FILE, &third);
        wait_until_said(&forward.running, ANEW, 2);
        assert!(echoes(&mut by_second), "what stands goes on");
        let mut by_third = net::try_echo(local).expect("a session");
        revoke(&site, &gateway, &["first", "second"]);
        assert_reset(by_second);
        assert!(echoes(&mut by_third), "it was begun by the new token");
        over.store(true, Ordering::Relaxed);
        asker.join().expect("no connection fails");
    });
    net::echo(local);
    assert_eq!(forward.running.said_times("WARN"), 0, "there is nothing to warn of");
    assert_eq!(forward.running.said_times(CONNECTED), 1, "no link is lost");
    forward.running.assert_running();
    gateway.assert_running();
}

over_ws_and_wss!(a_forward_takes_a_newer_token_up_and_no_connection_fails_when_the_one_before_is_revoked);

#[test]
fn what_is_no_good_token_is_said_once_and_the_one_before_stays() {
    let mut tunnel = Tunnel::start(Transport::Wss);
    let forward = tunnel.forward(net::start_echo());
    net::echo(forward.local);
    let good = read(&tunnel.site, FILE);
    let refused = "the new token does not work: ";
    let cases = [
        (Some(read(&tunnel.site, "Stranger.token")), "ask for a new one; going on with the one before"),
        (Some(read(&tunnel.site, "Expired.token")), "Free.token expired on 2001-09-09 01:46:40 UTC ("),
        (
            Some(good[..good.len() / 2].to_owned()),
            "or a part of one; it is sent to nobody: write the new token there, whole; going on",
        ),
        (
            Some(read(&tunnel.site, "agent.token")),
            "is not a client's; ask for a token of kind !Client; going on",
        ),
        (Some(String::new()), "Free.token should hold one token and nothing else; going on"),
        (
            None,
            "Free.token is gone: write the token there again; going on with the token that was read before",
        ),
    ];
    for (n, (text, says)) in cases.iter().enumerate() {
        match text {
            Some(text) => replace(&tunnel.site, text),
            None => fs::remove_file(tunnel.site.path(FILE)).expect("the file is ours"),
        }
        wait_until_said(&forward.running, says, 1);
        net::echo(forward.local);
        // Before each try for a link the file is looked at again.
        tunnel.gateway.kill_9();
        tunnel.gateway = tunnel.site.start_gateway();
        wait_until_said(&forward.running, CONNECTED, n + 2);
        net::echo(forward.local);
        assert_eq!(forward.running.said_times(says), 1, "{says}");
    }
    assert_eq!(forward.running.said_times(refused), 2, "two were good enough to be tried");
    assert_eq!(forward.running.said_times(NOT_ACCEPTED), 1, "the old one was never refused");
    let [newer] = tokens(&tunnel.site, ["newer"]);
    replace(&tunnel.site, &newer);
    wait_until_said(&forward.running, ANEW, 1);
    net::echo(forward.local);
}

#[test]
fn who_is_locked_out_gets_in_as_soon_as_the_file_has_a_token_that_holds() {
    let _alone = alone();
    let tunnel = Tunnel::start(Transport::Wss);
    let good = read(&tunnel.site, FILE);
    replace(&tunnel.site, &read(&tunnel.site, "Stranger.token"));
    let forward = start_forward(&tunnel.site, tunnel.transport);
    wait_until_said(&forward.running, NOT_ACCEPTED, 1);
    assert!(net::try_echo(forward.local).is_err(), "there is no point in waiting");
    let replaced = Instant::now();
    replace(&tunnel.site, &good);
    wait_for("a session", PATIENCE, || net::try_echo(forward.local).ok());
    let took = replaced.elapsed();
    println!("locked out, and in again {took:?} after the file was replaced");
    // Without a look at the file it would be 8 s.
    assert!(took < Duration::from_secs(6) * slowness(), "{took:?}");
}

#[test]
fn a_token_that_came_while_the_gateway_was_away_is_the_one_that_is_tried_when_it_is_back() {
    let mut tunnel = Tunnel::start(Transport::Wss);
    let good = read(&tunnel.site, FILE);
    let stranger = read(&tunnel.site, "Stranger.token");
    tunnel.gateway.kill_9();
    replace(&tunnel.site, &stranger);
    let forward = start_forward(&tunnel.site, tunnel.transport);
    wait_until_said(&forward.running, "not connected: ", 1);
    replace(&tunnel.site, &good);
    wait_until_said(&forward.running, "Free.token is new", 1);
    tunnel.gateway = tunnel.site.start_gateway();
    wait_until_said(&forward.running, CONNECTED, 1);
    net::echo(forward.local);
    assert_eq!(forward.running.said_times(NOT_ACCEPTED), 0, "the one before was not tried any more");
    // And one that is no good gives its place back.
    tunnel.gateway.kill_9();
    replace(&tunnel.site, &stranger);
    wait_until_said(&forward.running, "Free.token is new", 2);
    tunnel.gateway = tunnel.site.start_gateway();
    wait_until_said(&forward.running, CONNECTED, 2);
    net::echo(forward.local);
    let refused = "the new token does not work: the gateway";
    assert_eq!(forward.running.said_times(refused), 1, "it was tried, and the one before then");
}

#[test]
fn a_new_token_that_was_refused_is_tried_again_when_the_one_before_is_revoked() {
    let mut site = Site::new();
    let [older, newer] = tokens(&site, ["older", "newer"]);
    site.write_secret(FILE, &older);
    let gateway = start_revoking_gateway(&mut site, &["newer"]);
    let _agent = site.start_agent(Transport::Wss);
    let forward = start_forward(&site, Transport::Wss);
    net::echo(forward.local);
    replace(&site, &newer);
    wait_until_said(&forward.running, NOT_ACCEPTED, 1);
    net::echo(forward.local);
    // The file stays as it is.
    revoke(&site, &gateway, &["older"]);
    wait_until_said(&forward.running, CONNECTED, 2);
    net::echo(forward.local);
    assert_eq!(forward.running.said_times("not connected: "), 0, "nobody was locked out");
}

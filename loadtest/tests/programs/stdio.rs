//! Role: `narrowlink connect` in a pipe, and `narrowlink list`.
//! Invariants: the end of the input is a half-close and not the end of the answer; nothing but data on
//! standard output.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    process::Stdio,
    thread,
    time::Duration,
};

use crate::kit::{
    PATIENCE,
    data::{self, Pattern},
    net,
    process::run,
    site::{AGENT, Holder, Transport, Tunnel, UID},
    wait_for,
};

const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Reads until its user has finished, then answers: what it heard, and many bytes more.
fn start_late_answerer() -> SocketAddr {
    let (listener, addr) = net::listen();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard);
            let _ = stream.write_all(&heard);
            let _ = stream.write_all(&answer());
        }
    });
    addr
}

fn answer() -> Vec<u8> {
    let mut bytes = vec![0; ANSWER_BYTES];
    Pattern::new(7).read_exact(&mut bytes).expect("a pattern never ends");
    bytes
}

fn a_pipe_into_connect_gets_the_whole_answer(transport: Transport) {
    let tunnel = Tunnel::start(transport);
    let target = start_late_answerer().to_string();
    let mut long = vec![0; 1_000_000];
    Pattern::new(8).read_exact(&mut long).expect("a pattern never ends");
    for input in [b"x".to_vec(), Vec::new(), long] {
        let mut command = tunnel.site.client(transport, Holder::Free);
        command.args(["connect", "-n", AGENT, &target]);
        let got = run(command, &input, Duration::from_secs(60)).succeeded();
        let expected = [input, answer()].concat();
        let same = data::hash(&got) == data::hash(&expected);
        assert!(same, "{} bytes came, {} were sent", got.len(), expected.len());
    }
}

fn list_shows_the_agent(transport: Transport) {
    let tunnel = Tunnel::start(transport);
    let mut command = tunnel.site.client(transport, Holder::Free);
    command.args(["list", "--json"]);
    let printed = run(command, b"", PATIENCE).succeeded();
    let list: serde_json::Value = serde_json::from_slice(&printed).expect("--json prints JSON");
    assert!(list.to_string().contains(&format!("\"{AGENT}\"")), "{list}");
    let mut command = tunnel.site.client(transport, Holder::Free);
    command.arg("list");
    let table = run(command, b"", PATIENCE).succeeded_with_text();
    let mut rows = table.lines();
    let heading: Vec<&str> = rows.next().unwrap_or_default().split_whitespace().collect();
    assert_eq!(heading, ["NAME", "ADDRESS", "PING"], "{table}");
    assert!(rows.next().is_some_and(|row| row.starts_with(AGENT)), "{table}");
}

const LAST_WORDS: usize = 60_000;

/// Reads eight bytes, says something, and closes with the rest unread: a reset.
fn start_resetter() -> SocketAddr {
    let (listener, addr) = net::listen();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read_exact(&mut [0; 8]).and_then(|()| stream.peek(&mut [0; 1]).map(drop));
            let _ = stream.write_all(&answer()[..LAST_WORDS]);
            net::wait_until_delivered(&stream);
        }
    });
    addr
}

fn what_comes_before_a_reset_is_written_and_the_end_is_no_good_one(transport: Transport) {
    const TIMES: usize = 10;
    let mut whole = 0;
    for tunnel in [Tunnel::start(transport), Tunnel::start_raw(transport)] {
        let target = start_resetter().to_string();
        for _ in 0..TIMES {
            let mut command = tunnel.site.client(transport, Holder::Free);
            command.args(["connect", "-n", AGENT, &target]);
            let finished = run(command, b"0123456789", PATIENCE);
            assert!(!finished.status.success(), "a cut that looks like an end");
            whole += usize::from(finished.stdout == answer()[..LAST_WORDS]);
        }
    }
    assert_eq!(whole, 2 * TIMES);
}

/// What `connect` says of a session that `end` ends while it stands.
fn last_words(transport: Transport, end: impl FnOnce(&mut Tunnel)) -> String {
    let mut tunnel = Tunnel::start(transport);
    let mut command = tunnel.site.client(transport, Holder::Free);
    command.args(["connect", "-n", AGENT, &net::start_echo().to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut connect = command.spawn().expect("connect can be started");
    let mut input = connect.stdin.take().expect("it has an input");
    let output = connect.stdout.as_mut().expect("it has an output");
    input.write_all(b"x").expect("it takes a byte");
    output.read_exact(&mut [0]).expect("the byte comes back");
    end(&mut tunnel);
    let ended = connect.wait_with_output().expect("it ends");
    drop(input);
    assert_eq!(ended.status.code(), Some(74));
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

fn revoke(tunnel: &mut Tunnel) {
    let Tunnel { site, gateway, .. } = tunnel;
    let list = site.write_secret("revoked.yaml", "[]\n");
    site.configure_gateway(&format!("revocations: {}\n", list.display()));
    wait_for("the list", PATIENCE, || (gateway.said_times("gateway.yaml: taken") > 0).then_some(()));
    site.write_secret("revoked.yaml", &format!("- {{ uid: {UID}, name: free }}\n"));
}

fn connect_says_what_has_ended_its_session(transport: Transport) {
    let says = |words: &str| format!("narrowlink: the session was reset: {words} (NL-E0701)\n");
    assert_eq!(last_words(transport, revoke), says("the token was revoked"));
    let killed = last_words(transport, |tunnel| tunnel.gateway.kill_9());
    assert_eq!(killed, says("the connection to the gateway broke"));
}

over_ws_and_wss!(connect_says_what_has_ended_its_session);

over_ws_and_wss!(what_comes_before_a_reset_is_written_and_the_end_is_no_good_one);

over_ws_and_wss!(a_pipe_into_connect_gets_the_whole_answer, list_shows_the_agent);

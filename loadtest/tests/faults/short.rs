//! Role: each program with fewer descriptors than it is asked for: those who wait are served as soon as others end.
//! Invariants: nobody is cut off from the gateway · one line a second says it · no test depends on how many
//! descriptors a program needs for itself.
//! See: `dataplane::run::descriptors`.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    alone,
    kit::{
        PATIENCE, net,
        process::{Lines, Running, run},
        site::{AGENT, Holder, Site, Transport, UID},
        wait_for,
    },
};

/// Relief comes at once; what is beyond is a busy machine's.
const RECOVERY: Duration = Duration::from_secs(3);

/// The same command with so many descriptors at the most.
fn limited(command: &Command, descriptors: usize) -> Command {
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""));
    limited.arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        limited.current_dir(dir);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("the listener's queue has room");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket can be set so");
    stream
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"there?")?;
    let mut answer = [0; 6];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"there?");
    Ok(())
}

/// Asks until it is answered; how long that took.
fn served_within(addr: SocketAddr) -> Duration {
    let since = Instant::now();
    wait_for("a connection that is served", PATIENCE, || ask(&mut connect(addr)).ok());
    since.elapsed()
}

/// How many of so many connections are answered that are all there before the first has gone.
fn served_of(all: usize, local: SocketAddr) -> usize {
    let waiting: Vec<_> = (0..all).map(|_| connect(local)).collect();
    let asking = waiting.into_iter().map(|mut one| thread::spawn(move || ask(&mut one).is_ok()));
    let asking: Vec<_> = asking.collect();
    asking.into_iter().map(|one| one.join().expect("no panic")).filter(|served| *served).count()
}

/// No more lines than seconds, and one for each beginning.
fn assert_quiet(program: &Running, words: &str, since: Instant) {
    let said = program.said_times(words);
    let allowed = usize::try_from(since.elapsed().as_secs()).unwrap_or(usize::MAX) + 2;
    assert!(said <= allowed, "{said} lines of {words:?} in {:?}", since.elapsed());
}

fn start_forward(
    site: &Site,
    transport: Transport,
    target: SocketAddr,
    descriptors: usize,
) -> (Running, SocketAddr) {
    let (lines, said) = Lines::channel();
    let mut command = site.client(transport, Holder::Free);
    let local = SocketAddr::new(net::private_ip(), 0);
    command.args(["forward", "-n", AGENT, "-l", &local.to_string(), &target.to_string()]);
    let mut forward = Running::start("forward", site.dir(), limited(&command, descriptors), Some(lines));
    let line = forward.wait_for("the forward's local address", PATIENCE, || said.try_recv().ok());
    (forward, line.parse().expect("its first line is its address"))
}

fn a_forward_of_thirty_descriptors_serves_a_hundred_connections_one_after_the_other(transport: Transport) {
    let _alone = alone();
    let mut site = Site::new();
    let _gateway = site.start_gateway();
    let _agent = site.start_agent(transport);
    let (mut forward, local) = start_forward(&site, transport, net::start_echo(), 30);
    served_within(local);
    let since = Instant::now();
    let served = served_of(100, local);
    println!("{transport:?}: {served} of 100 in {:?}", since.elapsed());
    assert_eq!(served, 100);
    // A hundred that say nothing and leave: the next one doesn't wait for their sake.
    let silent: Vec<_> = (0..100).map(|_| connect(local)).collect();
    thread::sleep(Duration::from_millis(300));
    drop(silent);
    let recovered = served_within(local);
    println!("{transport:?}: served again after {recovered:?}");
    assert!(recovered < RECOVERY, "{recovered:?}");
    assert_quiet(&forward, "can be accepted", since);
    forward.assert_running();
}

fn an_agent_of_forty_descriptors_serves_as_soon_as_sessions_end(transport: Transport) {
    let _alone = alone();
    let mut site = Site::new();
    let _gateway = site.start_gateway();
    let (command, ready_file) = site.ready_agent_command(transport);
    let mut agent = Running::start("agent", site.dir(), limited(&command, 40), None);
    agent.wait_for("the agent's ready file", PATIENCE, || ready_file.exists().then_some(()));
    let forward = site.start_forward(transport, net::start_echo());
    let since = Instant::now();
    let mut held: Vec<_> = (0..60).map(|_| connect(forward.local)).collect();
    for one in &mut held {
        one.write_all(b"there?").expect("the forward listens");
    }
    // Whichever those are: all came at once.
    held.iter().for_each(|one| one.set_nonblocking(true).expect("it is open"));
    let is_served = |one: &TcpStream| matches!(one.peek(&mut [0; 6]), Ok(6));
    wait_for("those that fit to be served", PATIENCE, || held.iter().any(is_served).then_some(()));
    wait_for("the agent to be short", PATIENCE, || {
        (agent.said_times("out of descriptors") > 0).then_some(())
    });
    // Shortness is no reason to miss the token of tomorrow.
    let item = format!("  - !Agent {{ uid: {UID}, name: {AGENT}, exp: 30d, jti: another }}\n");
    let [token] = site.tokens(&item).try_into().expect("one for each item");
    let beside = site.write_secret("next.token", &token);
    fs::rename(beside, site.path("agent.token")).expect("the directory is ours");
    wait_for("the agent to log in anew", PATIENCE, || (agent.said_times("logged in anew") > 0).then_some(()));
    assert_eq!(agent.said_times("can't be read"), 0);
    drop(held);
    let recovered = served_within(forward.local);
    println!("{transport:?}: an agent serves again after {recovered:?}");
    assert!(recovered < RECOVERY, "{recovered:?}");
    // Short sessions, one right behind the other: each lane has a descriptor for its next target, or is not dialled.
    let served = served_of(100, forward.local);
    assert_eq!(served, 100, "{transport:?}: an agent that is short of descriptors delays sessions");
    assert_quiet(&agent, "out of descriptors", since);
    agent.assert_running();
}

fn a_gateway_of_ninety_descriptors_cuts_silent_connections_off_and_is_never_short(transport: Transport) {
    let _alone = alone();
    let mut site = Site::new();
    let mut gateway = site.start_gateway_by(|command| limited(&command, 90));
    let _agent = site.start_agent(transport);
    let since = Instant::now();
    // Strangers have a share of their own, whatever else is free.
    let mut held: Vec<_> = (0..100).map(|_| connect(site.gateway_addr(transport))).collect();
    let cut = held.iter_mut().rev().map(|one| one.read(&mut [0])).filter(|read| !matches!(read, Ok(1..)));
    assert!(cut.take(80).count() == 80, "those that have no place are told so");
    drop(held);
    let relief = Instant::now();
    wait_for("a login", PATIENCE, || {
        let mut list = site.client(transport, Holder::Free);
        list.arg("list");
        run(list, b"", PATIENCE).status.success().then_some(())
    });
    let recovered = relief.elapsed();
    println!("{transport:?}: a gateway serves again after {recovered:?}, {:?} in all", since.elapsed());
    assert!(recovered < RECOVERY, "{recovered:?}");
    assert_eq!(gateway.said_times("can be accepted"), 0, "it was short of descriptors");
    gateway.assert_running();
}

#[test]
fn a_gateway_of_forty_descriptors_says_that_it_can_hardly_serve_anybody() {
    const WORDS: &str = "no more than 40 open files are allowed";
    let mut site = Site::new();
    let mut command = site.command("narrowlink-gateway");
    command.arg("--check").arg("-c").arg(site.path("gateway.yaml"));
    let checked = run(limited(&command, 40), b"", PATIENCE);
    assert!(checked.status.success() && checked.stderr.contains(WORDS), "{}", checked.stderr);
    let gateway = site.start_gateway_by(|command| limited(&command, 40));
    assert_eq!(gateway.said_times(WORDS), 1);
}

over_ws_and_wss!(
    a_forward_of_thirty_descriptors_serves_a_hundred_connections_one_after_the_other,
    an_agent_of_forty_descriptors_serves_as_soon_as_sessions_end,
    a_gateway_of_ninety_descriptors_cuts_silent_connections_off_and_is_never_short,
);

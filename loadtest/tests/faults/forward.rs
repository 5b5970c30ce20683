//! Role: `narrowlink forward` and its sisters as their users meet them: bursts, the first words, signals, pipes that
//! break, readers that stall.
//! Invariants: what a user is told is true · nothing is reset that could have been served.
//! See: README.md, docs/errors.md.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::{
    alone,
    kit::{
        PATIENCE,
        data::Pattern,
        net, number_from_env,
        process::{Finished, Lines, Running, foreign, run},
        site::{AGENT, Holder, Site, Transport, Tunnel, UID},
        wait_for, wait_for_at_most,
    },
};

/// A target that sends so many bytes to whoever says something.
fn start_source(bytes: u64) -> SocketAddr {
    let (listener, addr) = net::listen();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.read(&mut [0; 1]);
                std::io::copy(&mut Pattern::new(5).take(bytes), &mut stream)
            });
        }
    });
    addr
}

/// A target that never stops sending, at no cost.
fn start_endless_source() -> SocketAddr {
    let (listener, addr) = net::listen();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || while stream.write_all(&[7; 64 * 1024]).is_ok() {});
        }
    });
    addr
}

fn connections_that_come_at_once_are_all_served_whole(transport: Transport) {
    let _alone = alone();
    for workers in [1, 3] {
        serve_at_once(transport, workers);
    }
}

/// More connections than the agent may have lanes, which end in the order in which they were made.
fn serve_at_once(transport: Transport, workers: usize) {
    // Two sockets each here, as many in the forward.
    narrowlink_dataplane::run::process::prepare();
    let all = number_from_env("NARROWLINK_SIMULTANEOUS", 1500) as usize;
    let bytes = number_from_env("NARROWLINK_SIMULTANEOUS_KIB", 32) * 1024;
    let mut site = Site::new();
    site.workers = workers;
    let _gateway = site.start_gateway();
    let (command, ready_file) = site.ready_agent_command(transport);
    let mut config = File::options().append(true).open(site.path("agent.yaml")).expect("just written");
    writeln!(config, "lanes: {{ max: 10000 }}").expect("the disk has room");
    let mut agent = Running::start("agent", site.dir(), command, None);
    agent.wait_for("the agent's ready file", PATIENCE, || ready_file.exists().then_some(()));
    let mut forward = site.start_forward(transport, start_source(bytes));
    // While the forward is stopped, the kernel's queue must hold those that come.
    let queue = std::fs::read_to_string("/proc/sys/net/core/somaxconn").expect("this is Linux");
    let at_once = all.min(queue.trim().parse().expect("a number")).min(4096);
    forward.running.signal(Signal::STOP);
    let connect = || {
        let mut stream = TcpStream::connect(forward.local).expect("the queue has room");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket can be set so");
        stream.write_all(b"?").expect("it is connected");
        stream
    };
    let mut streams: Vec<_> = (0..at_once).map(|_| connect()).collect();
    forward.running.signal(Signal::CONT);
    streams.extend((at_once..all).map(|_| connect()));
    let mut right = vec![0; bytes as usize];
    Pattern::new(5).read_exact(&mut right).expect("a pattern never ends");
    let mut got = Vec::new();
    let whole = streams.into_iter().filter_map(|mut stream| {
        got.clear();
        stream.read_to_end(&mut got).ok()?;
        (got == right).then_some(())
    });
    let whole = whole.count();
    println!(
        "{transport:?}, {workers} workers: {whole} of {all} connections at once got their {bytes} bytes whole"
    );
    assert_eq!(whole, all);
}

/// Starts a forward and waits until it has said `words`.
fn assert_says(site: &Site, transport: Transport, holder: Holder, agent: &str, words: &[&str]) {
    let (lines, said) = Lines::channel();
    let mut command = site.client(transport, holder);
    command.args(["forward", "-n", agent, "-l", "localhost:0", "127.0.0.1:22"]);
    let mut forward = Running::start("forward", site.dir(), command, Some(lines));
    let line = forward.wait_for("the forward's local address", PATIENCE, || said.try_recv().ok());
    // Each may be on its way to the log still.
    let sentence = format!("{line} → {agent} → 127.0.0.1:22 · Ctrl-C ends");
    for words in [sentence.as_str()].iter().chain(words) {
        wait_for(words, PATIENCE, || (forward.said_times(words) > 0).then_some(()));
    }
    assert_eq!(forward.said_times(&sentence), 1, "{sentence}");
    assert_eq!(forward.said_times("WARN"), words.len() - 1, "and nothing that is not so");
}

fn a_forward_says_at_once_what_it_is_and_whether_it_will_work(transport: Transport) {
    let tunnel = Tunnel::start(transport);
    let site = &tunnel.site;
    assert_says(site, transport, Holder::Free, AGENT, &["the agent home is connected"]);
    let missing = ["connected", "no agent named nobody is connected now"];
    assert_says(site, transport, Holder::Free, "nobody", &missing);
    let barred = ["connected", "the policy of your token does not allow tcp://127.0.0.1:22 on agent home"];
    assert_says(site, transport, Holder::Barred, AGENT, &barred);
}

over_ws_and_wss!(
    connections_that_come_at_once_are_all_served_whole,
    a_forward_says_at_once_what_it_is_and_whether_it_will_work,
);

#[test]
fn connect_waits_until_its_token_may_open_another_session() {
    let tunnel = Tunnel::start(Transport::Ws);
    let site = &tunnel.site;
    // Ten may come at once, and then one a second.
    let item = format!("  - !Client {{ uid: {UID}, name: slow, exp: 30d, limits: {{ dials_per_s: 1 }} }}\n");
    site.write_secret("Barred.token", &site.tokens(&item)[0]);
    let echo = net::start_echo().to_string();
    let since = Instant::now();
    for n in 0..12 {
        let mut command = site.client(Transport::Ws, Holder::Barred);
        command.args(["connect", "-n", AGENT, &echo]);
        assert_eq!(run(command, b"there?", PATIENCE).succeeded(), b"there?", "session {n}");
    }
    assert!(since.elapsed() > Duration::from_millis(1500), "the limit did not hold");
}

/// The process that `parent` has started.
fn child_of(parent: u32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

#[test]
fn process_1_of_a_container_ends_when_it_is_told_to() {
    let tunnel = Tunnel::start(Transport::Ws);
    let (silent, target) = net::listen();
    let forward = ["forward", "-n", AGENT, "-l", "127.0.0.1:0"];
    let connect = ["connect", "-n", AGENT];
    for args in [&forward[..], &connect[..]] {
        for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
            let client = tunnel.site.client(Transport::Ws, Holder::Free);
            let mut command = Command::new(foreign("unshare", "util-linux"));
            if !rustix::process::geteuid().is_root() {
                command.arg("--map-root-user");
            }
            command.args(["--pid", "--fork", "--"]).arg(client.get_program()).args(client.get_args());
            command.args(args).arg(target.to_string());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut outside = command.spawn().expect("unshare runs");
            // It is itself, and not unshare any more, when it has a socket of its own.
            let inside = wait_for("process 1", PATIENCE, || {
                let pid = child_of(outside.id())?;
                let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
                let sockets = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
                let targets = sockets.filter_map(|fd| std::fs::read_link(fd.path()).ok());
                let busy = targets.filter(|to| to.to_string_lossy().starts_with("socket:")).count() > 0;
                (name.trim() == "narrowlink" && busy).then_some(pid)
            });
            let pid = rustix::process::Pid::from_raw(inside).expect("a pid");
            rustix::process::kill_process(pid, signal).expect("our own child takes signals");
            let status = wait_for("its end", PATIENCE, || outside.try_wait().expect("our own child"));
            assert_eq!(status.code(), Some(code), "{args:?} by {signal:?}");
        }
    }
    drop(silent);
}

/// Runs a command whose standard output is this.
fn run_into(mut command: Command, stdout: Stdio) -> (Option<i32>, String) {
    let child = command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).spawn().expect("it runs");
    let done = child.wait_with_output().expect("our own child");
    (done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned())
}

#[test]
fn words_for_a_reader_that_left_are_no_error_and_words_for_a_full_disk_are_one() {
    let tunnel = Tunnel::start(Transport::Ws);
    let commands: [&[&str]; 6] =
        [&["--help"], &["--version"], &["list"], &["list", "--json"], &["whoami"], &["forward", "--help"]];
    let client = |args| {
        let mut command = tunnel.site.client(Transport::Ws, Holder::Free);
        command.args(args);
        command
    };
    let other = |line: &str| {
        let mut words = line.split(' ');
        let mut command = tunnel.site.command(words.next().expect("a program"));
        command.args(words).current_dir(tunnel.site.dir());
        command
    };
    let others = [
        "narrowlink-gateway --help",
        "narrowlink-gateway --version",
        "narrowlink-gateway -c gateway.yaml --check -qq",
        "narrowlink-gateway explain -c gateway.yaml --token Free.token --agent home --target 127.0.0.1:22",
        "narrowlink-tokengen --help",
        "narrowlink-tokengen keygen",
        "narrowlink-tokengen inspect Free.token",
    ];
    let clients =
        commands.map(|args| (args.join(" "), Box::new(move || client(args)) as Box<dyn Fn() -> Command>));
    let others =
        others.map(|line| (line.to_owned(), Box::new(move || other(line)) as Box<dyn Fn() -> Command>));
    for (args, command) in clients.into_iter().chain(others) {
        let (reader, writer) = std::io::pipe().expect("a descriptor is free");
        drop(reader);
        assert_eq!(
            run_into(command(), writer.into()),
            (Some(0), String::new()),
            "{args:?} into a closed pipe"
        );
        let full = File::options().write(true).open("/dev/full").expect("this is Linux");
        let (code, said) = run_into(command(), full.into());
        assert_eq!(code, Some(74), "{args:?} onto a full disk");
        assert!(said.contains("standard output could not be written: No space left"), "{args:?}: {said}");
    }
}

#[test]
fn a_session_whose_output_breaks_says_that_and_nothing_where_the_reader_has_left() {
    let tunnel = Tunnel::start(Transport::Ws);
    let target = start_endless_source().to_string();
    let connect = || {
        let mut command = tunnel.site.client(Transport::Ws, Holder::Free);
        command.args(["connect", "-n", AGENT, &target]);
        command
    };
    let (reader, writer) = std::io::pipe().expect("a descriptor is free");
    drop(reader);
    assert_eq!(run_into(connect(), writer.into()), (Some(74), String::new()));
    let full = File::options().write(true).open("/dev/full").expect("this is Linux");
    let (code, said) = run_into(connect(), full.into());
    assert_eq!(code, Some(74), "{said}");
    assert!(said.starts_with("narrowlink: standard output could not be written: No space left"), "{said}");
}

#[test]
fn all_addresses_of_both_families_are_listened_on_together_or_the_error_says_why_not() {
    let site = Site::with_known_ports();
    let forward = |listen: String| {
        let mut command = site.client(Transport::Ws, Holder::Free);
        command.args(["forward", "-n", AGENT, "-l", &listen, "127.0.0.1:22"]);
        command
    };
    let start = |listen: String| {
        let (lines, said) = Lines::channel();
        let mut running = Running::start("forward", site.dir(), forward(listen), Some(lines));
        let line = running.wait_for("its local address", PATIENCE, || said.try_recv().ok());
        (running, line.parse::<SocketAddr>().expect("an address").port())
    };
    if TcpListener::bind("[::]:0").is_err() {
        // A machine without IPv6 says so: there is nothing for the two to share.
        let Finished { status, stderr, .. } = run(forward("[::]:0".to_owned()), b"", PATIENCE);
        return assert!(status.code() == Some(69) && stderr.contains("can't be listened on"), "{stderr}");
    }
    let (_v4, port) = start("0.0.0.0:0".to_owned());
    let (_v6, same) = start(format!("[::]:{port}"));
    assert_eq!(port, same);
    let (_both, port) = start("[::]:0".to_owned());
    let Finished { status, stderr, .. } = run(forward(format!("0.0.0.0:{port}")), b"", PATIENCE);
    assert_eq!(status.code(), Some(69));
    assert!(stderr.contains("takes IPv4 connections as well"), "{stderr}");
}

/// Memory of a process that is its own, in KiB.
fn anonymous_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux says so");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn what_stalled_readers_have_taken_is_given_back_when_they_have_left() {
    let _alone = alone();
    narrowlink_dataplane::run::process::prepare();
    let tunnel = Tunnel::start(Transport::Wss);
    let forward = tunnel.forward(start_endless_source());
    let used = || anonymous_kib(forward.running.id());
    let mut one = TcpStream::connect(forward.local).expect("it listens");
    one.write_all(b"?").and_then(|()| one.read_exact(&mut [0; 1024])).expect("a session");
    drop(one);
    let before = used();
    let readers = number_from_env("NARROWLINK_STALLED", 100);
    let stalled: Vec<_> = (0..readers)
        .map(|_| {
            let mut stream = TcpStream::connect(forward.local).expect("it listens");
            stream.write_all(b"?").expect("it is connected");
            stream
        })
        .collect();
    for mut stream in &stalled {
        stream.read_exact(&mut [0; 1024]).expect("a session");
    }
    // Full is what has not grown for a while.
    let (mut most, mut same) = (used(), 0);
    wait_for("all of them to stall", PATIENCE, || {
        thread::sleep(Duration::from_millis(250));
        let now = used();
        same = if now > most { 0 } else { same + 1 };
        most = most.max(now);
        (same >= 6).then_some(())
    });
    drop(stalled);
    // The worker's buffers go back within two seconds; the allocator keeps some of what it had.
    let left = wait_for_at_most("KiB of memory", before + 16 * 1024, PATIENCE, used);
    println!("{readers} stalled readers: {before} KiB before, {most} KiB at the most, {left} KiB after");
}

#[test]
fn a_taken_port_is_waited_for_with_a_word_about_it() {
    let tunnel = Tunnel::start(Transport::Ws);
    let (_occupied, addr) = net::listen();
    let mut command = tunnel.site.client(Transport::Ws, Holder::Free);
    command.args(["forward", "-n", AGENT, "-l", &addr.to_string(), "127.0.0.1:1"]);
    let Finished { status, stderr, .. } = run(command, b"", PATIENCE);
    assert_eq!(status.code(), Some(69), "{stderr}");
    let said: Vec<_> = stderr.lines().filter(|line| line.contains(&addr.to_string())).collect();
    assert!(said.len() == 2 && said[0].contains("is in use: tried again for 1 s"), "{stderr}");
    assert!(said[1].ends_with("is in use by another program; choose another with -l (NL-E0006)"), "{stderr}");
}

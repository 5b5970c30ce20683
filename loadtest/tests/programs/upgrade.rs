//! Role: a gateway that is replaced while it serves: nobody is refused, what stands goes on, and one that can't begin changes
//! nothing.
//! See: docs/service.md "Without systemd".

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::kit::{
    PATIENCE,
    deployment::{Machines, printed},
    net,
    process::{Finished, Running, ours, run},
    wait_for,
};

/// `NARROWLINK_UPGRADES` says how often the gateway is replaced (3; in the long form 20, under 100,000 visits).
fn upgrades() -> u32 {
    std::env::var("NARROWLINK_UPGRADES").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

/// A gateway of a program that is the test's own, an agent and a forward to an echo.
struct Deployment {
    machines: Machines,
    gateway: Running,
    _agent: Running,
    _forward: Running,
    local: std::net::SocketAddr,
}

impl Deployment {
    fn start() -> Self {
        let machines = Machines::new();
        let said = machines.init();
        // What stands is to outlive all of them.
        let config = machines.path("public/gw/gateway.yaml");
        let text = fs::read_to_string(&config).expect("init made it");
        fs::write(&config, text + "drain_s: 600\n").expect("it can be written");
        let program = machines.path("bin/narrowlink-gateway");
        fs::create_dir_all(machines.path("bin")).expect("it can be made");
        // By another process: one that a test begins meanwhile would have it open to write, and then it can't be begun.
        let mut copy = Command::new("cp");
        copy.args([&ours("narrowlink-gateway"), &program]);
        run(copy, b"", PATIENCE).succeeded();
        let mut command = Command::new(&program);
        command.current_dir(machines.path("public")).args(["-c", "gw/gateway.yaml"]);
        let gateway = Running::start("gateway", &machines.path(""), command, None);
        net::wait_for_server("the gateway", machines.addr, PATIENCE);
        machines.join(printed(&said, "sudo narrowlink-agent join "), "nl").succeeded_with_text();
        machines.login(printed(&said, "narrowlink login "), "nl").succeeded_with_text();
        let agent = machines.start_agent("nl");
        let (forward, local) = machines.start_forward("nl", net::start_echo());
        wait_for("the agent", PATIENCE, || net::try_echo(local).ok());
        Self { machines, gateway, _agent: agent, _forward: forward, local }
    }

    /// The process that serves, as its state directory says.
    fn pid(&self) -> u32 {
        let path = self.machines.path("public/gw/state/gateway.pid");
        let text = fs::read_to_string(path).expect("it has noted its process");
        text.lines().next().and_then(|line| line.parse().ok()).expect("a number")
    }

    fn upgrade(&self, program: Option<&str>) -> Finished {
        self.machines.operate(&[&["upgrade"], program.as_slice()].concat())
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        // The one that goes on was begun for this test, too.
        if let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

#[test]
fn upgrades_under_load_refuse_nobody_and_break_nothing_that_stands() {
    let mut deployment = Deployment::start();
    let n = upgrades();
    let (per_s, each) =
        if n >= 20 { (1000, Duration::from_secs(5)) } else { (300, Duration::from_millis(2500)) };
    let visits = u128::from(n) * per_s * each.as_millis() / 1000;
    let mut command = Command::new(ours("narrowlink-visits"));
    command.arg(deployment.local.to_string());
    command.args(["--per-s", &per_s.to_string(), "--visits", &visits.to_string(), "--standing", "20"]);
    let visiting = thread::spawn(move || run(command, b"", PATIENCE * 20));
    let began = Instant::now();
    for round in 0..n {
        thread::sleep((each * round + each / 2).saturating_sub(began.elapsed()));
        // By turns a new program, and what lies there.
        let new = ours("narrowlink-gateway").display().to_string();
        let before = deployment.pid();
        let said = deployment.upgrade((round % 2 == 0).then_some(&new)).succeeded_with_text();
        let now = deployment.pid();
        assert!(said.contains(&format!("process {now} serves in place of {before}")), "{said}");
    }
    let said = visiting.join().expect("it ends").succeeded_with_text();
    println!("{n} upgrades: {said}");
    // What stood at the first one has ended.
    deployment.gateway.wait_for_end(PATIENCE * 2);
}

#[test]
fn a_gateway_that_was_begun_by_a_link_goes_on_as_what_the_link_leads_to_by_then() {
    let machines = Machines::new();
    machines.init();
    let bin = machines.path("bin");
    fs::create_dir_all(&bin).expect("it can be made");
    let link = bin.join("narrowlink-gateway");
    let versions = ["1.0", "2.0"].map(|version| bin.join(version));
    for version in &versions {
        let mut copy = Command::new("cp");
        copy.args([&ours("narrowlink-gateway"), version]);
        run(copy, b"", PATIENCE).succeeded();
    }
    let lead = |to: &Path| {
        let _ = fs::remove_file(&link);
        symlink(to, &link).expect("it can be made");
    };
    lead(&versions[0]);
    let mut command = Command::new(&link);
    command.current_dir(machines.path("public")).args(["-c", "gw/gateway.yaml"]);
    let mut gateway = Running::start("gateway", &machines.path(""), command, None);
    net::wait_for_server("the gateway", machines.addr, PATIENCE);
    let noted = || {
        let text = fs::read_to_string(machines.path("public/gw/state/gateway.pid")).expect("it is noted");
        text.lines().next().and_then(|line| line.parse::<i32>().ok()).expect("a number")
    };
    lead(&versions[1]);
    machines.operate(&["upgrade"]).succeeded();
    let second = noted();
    let runs = |pid: i32| fs::read_link(format!("/proc/{pid}/exe")).expect("it runs");
    let now = runs(second);
    gateway.wait_for_end(PATIENCE);
    // What is put into place goes where the link leads, and the link stays.
    let said = machines.operate(&["upgrade", &ours("narrowlink-gateway").display().to_string()]);
    let (third, is_link) = (noted(), link.is_symlink());
    for pid in [second, third] {
        let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
    }
    said.succeeded();
    assert_eq!(now, fs::canonicalize(&versions[1]).expect("it is there"));
    assert!(third != second && is_link);
}

#[test]
fn a_keeper_that_is_told_to_upgrade_stays_and_says_what_to_do() {
    let machines = Machines::new();
    machines.init();
    let mut command = machines.program("narrowlink-gateway", "public");
    command.args(["--keeper", "-c", "gw/gateway.yaml"]);
    let mut keeper = Running::start("keeper", machines.dir.path(), command, None);
    net::wait_for_server("the gateway", machines.addr, PATIENCE);
    keeper.signal(Signal::USR2);
    wait_for("its word", PATIENCE, || (keeper.said_times("SIGUSR2 replaces no service") == 1).then_some(()));
    keeper.assert_running();
    net::wait_for_server("the gateway", machines.addr, PATIENCE);
    keeper.end(Signal::TERM, PATIENCE);
}

#[test]
fn a_gateway_that_can_not_begin_leaves_the_one_that_runs_alone() {
    let mut deployment = Deployment::start();
    let before = deployment.pid();
    let broken = deployment.machines.path("broken");
    let broken_path = broken.display().to_string();
    let place = deployment.machines.path("bin/narrowlink-gateway");
    let program = fs::read(&place).expect("it can be read");
    let liar = "#!/bin/sh\n[ \"$1\" = --version ] && exec echo narrowlink-gateway 9\nexit 3\n";
    for (text, code, says) in [
        ("not a program", 73, "broken: "),
        ("#!/bin/sh\nexit 3\n", 73, "it is no narrowlink-gateway; nothing was changed"),
        (liar, 69, &*format!("process {before} goes on")),
    ] {
        fs::write(&broken, text).expect("it can be written");
        let Finished { status, stderr, .. } = deployment.upgrade(Some(&broken_path));
        assert_eq!(status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
        assert!(fs::read(&place).is_ok_and(|there| there == program), "the old one lies there");
        net::echo(deployment.local);
        assert_eq!(deployment.pid(), before);
    }
    // And with the right one.
    let good = ours("narrowlink-gateway").display().to_string();
    deployment.upgrade(Some(&good)).succeeded_with_text();
    assert_ne!(deployment.pid(), before);
    // Agents come over: who asks at once is told of them.
    let list = run(deployment.machines.client("nl", &["list"]), b"", PATIENCE);
    assert!(String::from_utf8_lossy(&list.stdout).contains("home"), "{}", list.stderr);
    deployment.gateway.wait_for_end(PATIENCE);
    net::echo(deployment.local);
}

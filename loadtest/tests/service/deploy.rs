//! Role: a deployment on three machines, by what the programs print alone.

use std::fs;

use narrowlink_dataplane::run::worker::try_io_uring;

use crate::kit::{PATIENCE, machine::Network};

/// From the first command to the first byte, machines that boot beside each other among it.
const FIRST_BYTE_S: f64 = 30.0;

/// Has the programs where people have them.
const PROGRAMS: &str = "install -m 755 /run/shared/narrowlink* /usr/local/bin/\n";

/// Waits for what another machine left in the shared directory.
fn wait_for(file: &str) -> String {
    format!("while [ ! -s /run/shared/{file} ]; do sleep 0.02; done\n")
}

/// Types what `file` says behind some blanks and this word, up to the line's end.
fn typed(word: &str, file: &str) -> String {
    format!(
        "line=$(sed -n 's/^ *\\(sudo \\)\\?\\({word} .*\\)/\\2/p' {file} | head -1); echo \"\\$ $line\"; eval \"$line\"\n"
    )
}

#[test]
fn three_commands_on_three_machines_make_a_deployment() {
    let network = Network::of_ours();
    let public = [
        PROGRAMS,
        "date +%s.%N >/run/shared/began\n",
        "narrowlink-gateway init 127.0.0.1 --yes >/tmp/printed || exit 1\n",
        "cp /tmp/printed /run/shared/printed.new; mv /run/shared/printed.new /run/shared/printed\n",
        "narrowlink-gateway service status || exit 2\n",
        &wait_for("done"),
        "ls -l /etc/narrowlink; ls -ld /etc/narrowlink\n",
        "systemctl show narrowlink-gateway -p DynamicUser -p User -p NRestarts\n",
        "systemd-analyze security narrowlink-gateway.service | tail -1\n",
        "journalctl --no-pager -o cat -u narrowlink-gateway\n",
    ]
    .concat();
    let behind = [
        PROGRAMS,
        &wait_for("printed"),
        &typed("narrowlink-agent join", "/run/shared/printed"),
        "echo joined >/run/shared/joined\n",
        "narrowlink-agent service status || exit 3\n",
        &wait_for("done"),
        "systemd-analyze security narrowlink-agent.service | tail -1\n",
        "journalctl --no-pager -o cat -u narrowlink-agent\n",
        "narrowlink-agent service uninstall || exit 4\n",
        "narrowlink-agent service status; [ $? = 4 ] || exit 5\n",
        "ls /etc/narrowlink\n",
    ]
    .concat();
    let laptop = [
        PROGRAMS,
        &wait_for("joined"),
        &typed("narrowlink login", "/run/shared/printed"),
        "narrowlink forward -n home -l 2222 127.0.0.1:443 >/dev/null 2>/tmp/forward &\n",
        "until answer=$(curl -sk -o /dev/null -w '%{http_code}' --max-time 5 https://127.0.0.1:2222/); do sleep 0.02; done\n",
        "date +%s.%N >/run/shared/first-byte\n",
        "echo \"answer $answer\"; narrowlink list; kill %1; echo done >/run/shared/done\n",
    ]
    .concat();
    let machines =
        [network.boot("public", &public), network.boot("behind", &behind), network.boot("laptop", &laptop)];
    let [public, behind, laptop] = machines.map(|machine| machine.finish(PATIENCE));
    println!("{public}\n{behind}\n{laptop}");
    assert!(laptop.contains("answer 404") && laptop.contains("home"), "{laptop}");
    let seconds = |file: &str| -> f64 {
        let text = fs::read_to_string(network.shared().join(file)).unwrap_or_default();
        text.trim().parse().unwrap_or_else(|_| panic!("{file}: {text}"))
    };
    let took = seconds("first-byte") - seconds("began");
    println!("first command to first byte: {took:.1} s");
    assert!(took < FIRST_BYTE_S, "{took}");
    // Nothing that runs is root's, and secrets stay root's.
    assert!(public.contains("DynamicUser=yes") && public.contains("NRestarts=0"), "{public}");
    assert!(
        public.contains("-rw------- 1 root root") && public.contains("drwxr-xr-x 2 root root"),
        "{public}"
    );
    for (text, most) in [(&public, 1.5), (&behind, 1.2)] {
        let level = text.split_once("exposure level for").and_then(|(_, rest)| rest.split_once(": "));
        let level = level.and_then(|(_, rest)| rest.split(' ').next()?.parse::<f64>().ok());
        assert!(level.is_some_and(|level| level <= most), "{level:?}: {text}");
    }
    // A sandbox refuses no ring that is to be had.
    let driver = if try_io_uring().is_ok() { "driver=io_uring" } else { "driver=epoll" };
    assert!(public.contains("listening on wss://") && public.contains(driver), "{public}");
    // One time in each line of the journal: journald's own.
    assert!(!public.lines().any(|line| line.contains("Z  INFO")), "{public}");
    assert!(behind.contains("runs no more") && behind.contains("agent.token"), "{behind}");
}

#[test]
fn what_keeps_a_service_from_running_is_said_where_it_was_begun() {
    let network = Network::of_ours();
    let script = [
        PROGRAMS,
        "narrowlink-gateway service status; echo \"code $?\"\n",
        "mkdir -p /root/gw; narrowlink-gateway init 127.0.0.1 --yes --dir /root/gw >/dev/null\n",
        "narrowlink-gateway service install -c /root/gw/gateway.yaml; echo \"hidden $?\"\n",
        "mkdir -p /srv/gw; narrowlink-gateway init 127.0.0.1 --yes --dir /srv/gw/x >/dev/null\n",
        "narrowlink-gateway service install -c /srv/gw/x/gateway.yaml; echo \"unwritable $?\"\n",
        "narrowlink-gateway init 127.0.0.1 --yes --no-service >/dev/null\n",
        "su -s /bin/bash nobody -c '/usr/local/bin/narrowlink-gateway service uninstall'; echo \"not root $?\"\n",
        // Its port is taken.
        "narrowlink-visits --echo 127.0.0.1:443 & sleep 0.2\n",
        "narrowlink-gateway service install; echo \"down $?\"; kill %1\n",
        "for n in $(seq 100); do narrowlink-gateway service status >/dev/null && break; sleep 0.1; done\n",
        "narrowlink-gateway service status --json; echo \"up $?\"\n",
    ]
    .concat();
    let said = network.boot("public", &script).finish(PATIENCE);
    for part in [
        "narrowlink-gateway is not installed: narrowlink-gateway service install\ncode 4",
        ": a service can't see /root; move it to /etc/narrowlink",
        "hidden 78",
        "state_dir: /srv/gw/x/state: this service may write below /var/lib/narrowlink and /var/log/narrowlink alone",
        "unwritable 78",
        "sudo narrowlink-gateway service uninstall",
        "not root 2",
        "journalctl -u narrowlink-gateway -n 20 says why",
        "down 3",
        "\"state\":\"active\"",
        "up 0",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

//! Role: a restart of the service leaves no gap: nobody is refused, and what stands goes on until it ends by itself: echoes and
//! real ssh.

use crate::kit::{
    PATIENCE,
    machine::{DEPLOYMENT, Network},
};

/// `NARROWLINK_RESTARTS` says how often the gateway is begun anew (3; in the long form 20).
fn restarts() -> u32 {
    std::env::var("NARROWLINK_RESTARTS").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

const VISITS_PER_S: u32 = 200;
/// Sessions of ssh that stand meanwhile: half by `narrowlink connect`, half through a forward.
const SSH_SESSIONS: u32 = 20;

#[test]
fn a_machine_whose_nspawn_is_killed_leaves_no_process_behind() {
    let network = Network::of_ours();
    let machine = network.boot("all", "echo up; sleep 1000");
    network.wait_until(|processes| processes > 2);
    drop(machine);
    network.wait_until(|processes| processes == 0);
}

/// Time for what stands, and a forward to an echo at 127.0.0.1:2222.
const SITE: &str = "\
echo 'drain_s: 600' >>/etc/narrowlink/gateway.yaml
narrowlink-visits --echo 127.0.0.1:7 &
narrowlink forward -n home -l 2222 127.0.0.1:7 >/dev/null 2>/tmp/forward &
until narrowlink-visits 127.0.0.1:2222 --visits 1 --standing 0 >/dev/null 2>&1; do sleep 0.05; done
";

/// An sshd beside the agent, a forward to it at 127.0.0.1:2200, and `session N LINES`, which leaves in /tmp/ssh.N what ssh brought.
const SSH: &str = r#"
mkdir -p /run/sshd /root/.ssh; chmod 700 /root/.ssh
ssh-keygen -q -t ed25519 -N '' -f /tmp/host; ssh-keygen -q -t ed25519 -N '' -f /tmp/user
cp /tmp/user.pub /root/.ssh/authorized_keys
cat >/tmp/sshd_config <<'END'
ListenAddress 127.0.0.1:22
HostKey /tmp/host
PidFile none
AuthorizedKeysFile /root/.ssh/authorized_keys
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
MaxStartups 100
END
/usr/sbin/sshd -f /tmp/sshd_config -E /tmp/sshd.log || exit 6
narrowlink forward -n home -l 2200 127.0.0.1:22 >/dev/null 2>/tmp/forward-ssh &
until (: </dev/tcp/127.0.0.1/2200) 2>/dev/null; do sleep 0.05; done
session() {
    local way=(-p 2200)
    [ $(($1 % 2)) = 0 ] || way=(-o 'ProxyCommand=narrowlink connect -n home %h:%p')
    ssh -F none -i /tmp/user -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "${way[@]}" \
        root@127.0.0.1 "for line in \$(seq $2); do echo \$line; sleep 0.25; done; echo whole" >/tmp/ssh.$1 2>/tmp/ssh.$1.err
    echo $? >/tmp/ssh.$1.code
}
"#;

#[test]
fn a_restart_under_load_refuses_nobody_and_breaks_nothing_that_stands() {
    let network = Network::of_ours();
    let n = restarts();
    // What stands outlives all of them: SITE gives it the time.
    let seconds = 2 + 3 * n;
    let script = format!(
        "{DEPLOYMENT}{SITE}{SSH}
sessions=''
for n in $(seq {SSH_SESSIONS}); do session $n {lines} & sessions=\"$sessions $!\"; done
for n in $(seq {SSH_SESSIONS}); do
    until [ -s /tmp/ssh.$n ]; do [ -e /tmp/ssh.$n.code ] && cat /tmp/ssh.$n.err && exit 7; sleep 0.05; done
done
narrowlink-visits 127.0.0.1:2222 --per-s {VISITS_PER_S} --visits {visits} --standing 20 >/tmp/visits 2>&1 &
visits=$!
sleep 1
for n in $(seq {n}); do /usr/bin/time -f 'restart took %e s' systemctl restart narrowlink-gateway || exit 5; sleep 2.5; done
grep -L whole /tmp/ssh.{{1..{SSH_SESSIONS}}} | wc -l | sed 's/^/ssh that stood through all restarts: /'
wait $visits; echo \"visits $?\"
cat /tmp/visits
wait $sessions
(seq {lines}; echo whole) >/tmp/ssh.all
for n in $(seq {SSH_SESSIONS}); do
    if cmp /tmp/ssh.all /tmp/ssh.$n && [ $(cat /tmp/ssh.$n.code) = 0 ]; then echo ssh is whole; else tail -n 3 /tmp/ssh.$n /tmp/ssh.$n.err; fi
done
systemctl show narrowlink-gateway -p NRestarts -p ActiveState -p NFileDescriptorStore
cat /tmp/forward | tail -5
journalctl --no-pager -o cat -u narrowlink-gateway | grep -v 'link up\\|link down' | tail -60
",
        visits = VISITS_PER_S * seconds,
        // Four a second, and some more: each of them outlives the last restart.
        lines = 4 * (seconds + 4),
    );
    let said = network.boot("all", &script).finish(PATIENCE * 4 * n.max(1));
    println!("{said}");
    assert!(
        said.contains("visits 0") && said.contains("\"refused\":0") && said.contains("\"broken\":0"),
        "{said}"
    );
    assert!(said.contains("\"standing_broken\":0"), "{said}");
    // Each said all its lines and ended with 0, and none was at its end before the last restart was over.
    assert_eq!(said.matches("ssh is whole").count(), SSH_SESSIONS as usize, "{said}");
    assert!(said.contains(&format!("through all restarts: {SSH_SESSIONS}\n")), "{said}");
    assert!(said.contains("ActiveState=active") && said.contains("NRestarts=0"), "{said}");
}

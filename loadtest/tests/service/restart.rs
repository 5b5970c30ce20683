//! Role: a restart of the service leaves no gap: nobody is refused, and what stands goes on until it ends by itself.

use crate::kit::{
    PATIENCE,
    machine::{DEPLOYMENT, Network},
};

/// `NARROWLINK_RESTARTS` says how often the gateway is begun anew (3; in the long form 20).
fn restarts() -> u32 {
    std::env::var("NARROWLINK_RESTARTS").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

const VISITS_PER_S: u32 = 200;

/// Time for what stands, and a forward to an echo at 127.0.0.1:2222.
const SITE: &str = "\
echo 'drain_s: 600' >>/etc/narrowlink/gateway.yaml
narrowlink-visits --echo 127.0.0.1:7 &
narrowlink forward -n home -l 2222 127.0.0.1:7 >/dev/null 2>/tmp/forward &
until narrowlink-visits 127.0.0.1:2222 --visits 1 --standing 0 >/dev/null 2>&1; do sleep 0.05; done
";

#[test]
fn a_restart_under_load_refuses_nobody_and_breaks_nothing_that_stands() {
    let network = Network::of_ours();
    let n = restarts();
    // What stands outlives all of them: SITE gives it the time.
    let seconds = 2 + 3 * n;
    let script = format!(
        "{DEPLOYMENT}{SITE}
narrowlink-visits 127.0.0.1:2222 --per-s {VISITS_PER_S} --visits {visits} --standing 20 >/tmp/visits 2>&1 &
visits=$!
sleep 1
for n in $(seq {n}); do /usr/bin/time -f 'restart took %e s' systemctl restart narrowlink-gateway || exit 5; sleep 2.5; done
wait $visits; echo \"visits $?\"
cat /tmp/visits
systemctl show narrowlink-gateway -p NRestarts -p ActiveState -p NFileDescriptorStore
cat /tmp/forward | tail -5
journalctl --no-pager -o cat -u narrowlink-gateway | grep -v 'link up\\|link down' | tail -60
",
        visits = VISITS_PER_S * seconds,
    );
    let said = network.boot("all", &script).finish(PATIENCE * 4 * n.max(1));
    println!("{said}");
    assert!(
        said.contains("visits 0") && said.contains("\"refused\":0") && said.contains("\"broken\":0"),
        "{said}"
    );
    assert!(said.contains("\"standing_broken\":0"), "{said}");
    assert!(said.contains("ActiveState=active") && said.contains("NRestarts=0"), "{said}");
}

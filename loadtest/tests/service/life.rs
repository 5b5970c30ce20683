//! Role: what a service manager does to a service: kills what is not alive any more, reloads, opens its sockets.

use crate::kit::{
    PATIENCE,
    machine::{DEPLOYMENT, Network},
};

/// A service with this drop-in, and what is done to it; what was printed.
fn machine(drop_in: &str, script: &str) -> String {
    let network = Network::of_ours();
    let begin = format!(
        "for name in gateway agent; do
mkdir -p /etc/systemd/system/narrowlink-$name.service.d
printf '[Service]\\n{drop_in}\\n' >/etc/systemd/system/narrowlink-$name.service.d/test.conf
done
{DEPLOYMENT}wait_until() {{ for n in $(seq 300); do eval \"$1\" >/dev/null 2>&1 && return; sleep 0.1; done; echo \"in vain: $1\"; exit 4; }}
pid() {{ systemctl show -P MainPID narrowlink-$1; }}
"
    );
    let said = network.boot("all", &(begin + script)).finish(PATIENCE * 3);
    println!("{said}");
    said
}

#[test]
fn what_is_not_alive_any_more_is_killed_and_begun_anew() {
    let said = machine(
        "WatchdogSec=2",
        "\
# The gateway behind its keeper stands still: the keeper kills it, and systemd begins both anew.
keeper=$(pid gateway); gateway=$(pgrep -P $keeper); kill -STOP $gateway
wait_until '[ ! -e /proc/'$gateway' ] && narrowlink-gateway service status'
wait_until 'narrowlink list | grep -q home'
[ $(pid gateway) != $keeper ] && echo 'the gateway is another one'
# The keeper is killed: the gateway does not go on by itself.
keeper=$(pid gateway); gateway=$(pgrep -P $keeper); kill -KILL $keeper
wait_until '[ ! -e /proc/'$gateway' ] && narrowlink-gateway service status'
wait_until 'narrowlink list | grep -q home'
echo 'the keeper is another one'
# The gateway is killed: so is its keeper's time.
keeper=$(pid gateway); kill -KILL $(pgrep -P $keeper)
wait_until '[ ! -e /proc/'$keeper' ] && narrowlink-gateway service status'
wait_until 'narrowlink list | grep -q home'
echo 'both are others'
# The agent stands still.
agent=$(pid agent); kill -STOP $agent
wait_until '[ ! -e /proc/'$agent' ] && narrowlink-agent service status'
wait_until 'narrowlink list | grep -q home'
echo 'the agent is another one'
journalctl --no-pager -o cat -u narrowlink-gateway -u narrowlink-agent | grep -i 'watchdog\\|alive\\|killed'
pgrep -c narrowlink-gate
",
    );
    for words in [
        "the gateway is another one",
        "the keeper is another one",
        "both are others",
        "the agent is another one",
        "the gateway is not alive any more",
        "Watchdog timeout",
    ] {
        assert!(said.contains(words), "{words:?}: {said}");
    }
    assert!(said.trim_end().ends_with('2'), "a keeper and a gateway: {said}");
}

#[test]
fn a_reload_is_heard_of_and_sockets_of_systemd_are_taken() {
    let said = machine(
        "",
        "\
systemctl reload narrowlink-gateway && systemctl show -P ActiveState narrowlink-gateway
# What can't be taken is in the status, and changes nothing.
sed -i 's/^name:/nome:/' /etc/narrowlink/gateway.yaml
wait_until 'systemctl show -P StatusText narrowlink-gateway | grep -q \"was not taken\"'
systemctl show -P StatusText narrowlink-gateway; narrowlink list | grep -c home
sed -i 's/^nome:/name:/' /etc/narrowlink/gateway.yaml
wait_until 'systemctl show -P StatusText narrowlink-gateway | grep -q \"^listening\"'
# A socket of systemd's: whoever comes begins the gateway, and no right to low ports is needed.
systemctl stop narrowlink-gateway; wait_until '! pgrep narrowlink-gate'
printf '[Socket]\\nListenStream=443\\n' >/etc/systemd/system/narrowlink-gateway.socket
printf '[Service]\\nAmbientCapabilities=\\nCapabilityBoundingSet=\\n' >/etc/systemd/system/narrowlink-gateway.service.d/test.conf
systemctl daemon-reload; systemctl start narrowlink-gateway.socket || exit 5
pgrep -c narrowlink-gate
wait_until 'narrowlink list | grep -q home'; echo 'begun by who came'
systemctl show -P NRestarts narrowlink-gateway
for n in 1 2 3; do systemctl restart narrowlink-gateway || exit 6; wait_until 'narrowlink list | grep -q home'; done
echo \"stored: $(systemctl show -P NFileDescriptorStore narrowlink-gateway)\"
grep -c . /etc/passwd >/dev/null; getent passwd narrowlink >/dev/null && echo 'its user is there'
",
    );
    let after = |mark: &str| said.split_once(mark).map_or("", |(_, after)| after);
    assert!(said.contains("the configuration was not taken, the old one stays"), "{said}");
    assert!(after("was not taken").contains("\n1\n"), "the agent is still there: {said}");
    assert!(after("the old one stays").contains("\n0\n"), "nothing ran before somebody came: {said}");
    assert!(said.contains("begun by who came") && said.contains("its user is there"), "{said}");
    assert!(said.contains("stored: 1"), "one socket, however often it is begun anew: {said}");
}

//! Role: the user unit of docs/commands.md: a forward that systemd runs for one who is not root.
//! See: docs/commands.md "A forward that is always there".

use std::fs;

use crate::kit::{
    PATIENCE,
    machine::{DEPLOYMENT, Network},
};

const PAGE: &str = include_str!("../../../docs/commands.md");

#[test]
fn a_forward_is_a_service_of_its_user() {
    let (_, unit) = PAGE.split_once("```ini\n").expect("the page has a unit");
    let unit = unit.split_once("```").expect("it ends").0;
    let network = Network::of_ours();
    fs::write(network.shared().join("unit"), unit).expect("it is ours");
    let script = format!(
        "{DEPLOYMENT}
narrowlink-visits --echo 127.0.0.1:22 &
useradd -m -s /bin/bash me
su - me -c \"$(sed -n 's/^ *\\(narrowlink login .*\\)/\\1/p' /tmp/printed)\" || exit 4
su - me -c 'mkdir -p ~/.config/systemd/user; cp /run/shared/unit ~/.config/systemd/user/narrowlink-ssh.service'
systemctl start user@$(id -u me) || exit 5
me() {{ su - me -c \"XDG_RUNTIME_DIR=/run/user/$(id -u me) $1\"; }}
me 'systemctl --user enable --now narrowlink-ssh' || exit 6
until narrowlink-visits 127.0.0.1:2222 --visits 1 --standing 0 >/dev/null 2>&1; do sleep 0.05; done
me 'systemctl --user kill -s KILL narrowlink-ssh'
until narrowlink-visits 127.0.0.1:2222 --visits 1 --standing 0 >/dev/null 2>&1; do sleep 0.05; done
me 'systemctl --user show narrowlink-ssh -p ActiveState -p NRestarts -p UnitFileState'
"
    );
    let said = network.boot("all", &script).finish(PATIENCE * 2);
    println!("{said}");
    for part in ["ActiveState=active", "NRestarts=1", "UnitFileState=enabled"] {
        assert!(said.contains(part), "{said}");
    }
}

//! Role: docs/a-real-host.md, what it says of backups and upgrades, on a machine of its own.
//! See: docs/a-real-host.md "Files, and a backup of them", "Upgrade".

use crate::kit::{
    PATIENCE,
    machine::{DEPLOYMENT, Network},
};

const PAGE: &str = include_str!("../../../docs/a-real-host.md");

/// The block of the page that has this in it.
fn block(part: &str) -> &'static str {
    let blocks = PAGE.split("```sh\n").skip(1).filter_map(|rest| rest.split_once("```"));
    blocks.map(|(block, _)| block).find(|block| block.contains(part)).unwrap_or_else(|| panic!("no {part}"))
}

#[test]
fn a_gateway_that_was_restored_from_its_backup_is_the_same_and_is_upgraded() {
    let network = Network::of_ours();
    let script = format!(
        "{DEPLOYMENT}
narrowlink-visits --echo 127.0.0.1:22 &
narrowlink forward -n home -l 2222 127.0.0.1:22 >/dev/null 2>&1 &
works() {{ until narrowlink-visits 127.0.0.1:2222 --visits 1 --standing 0 >/dev/null 2>&1; do sleep 0.05; done; echo \"works $1\"; }}
works 'before'
set -e
{backup}
narrowlink-gateway service uninstall
systemctl kill -s KILL narrowlink-gateway 2>/dev/null || true
rm -rf /etc/narrowlink/gateway* /etc/narrowlink/*.yaml /etc/narrowlink/authority* /var/lib/narrowlink
{restore}
works 'after a restore'
narrowlink-gateway ticket list
cd /run/shared
{upgrade}
works 'after an upgrade'
narrowlink-gateway service status
",
        backup = block("-czf narrowlink.tar.gz"),
        restore = block("-xzf narrowlink.tar.gz"),
        upgrade = block("install -m 755 narrowlink-gateway"),
    );
    let said = network.boot("all", &script).finish(PATIENCE * 2);
    println!("{said}");
    for part in ["works before", "works after a restore", "works after an upgrade", "laptop main holds"] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
}

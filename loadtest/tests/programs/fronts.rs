//! Role: docs/a-real-host.md "Something in front": nginx and HAProxy before a gateway, by the page's own configurations.
//! Invariants: namespaces of its own, so that the page's name and ports can be had · what goes through is an agent's and a
//! client's as their tickets set them up.
//! See: docs/a-real-host.md.

use std::{fs, net::SocketAddr, path::Path, process::Command, time::Duration};

use crate::kit::{
    PATIENCE,
    deployment::{Machines, printed},
    inside::{inside, put_in_place_of},
    net,
    process::{Running, foreign, run},
};

const PAGE: &str = include_str!("../../../docs/a-real-host.md");
/// What the test adds in front of nginx's own: Debian has the module in a file of its own, and here is no other user.
const NGINX: &str = "daemon off; master_process off; pid nginx.pid; error_log stderr; events {}\n";
const STREAM: &str = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n";
const PLACES: &str = "http {\naccess_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;\n";

/// The block of the page in this language with this name.
fn block(language: &str, name: &str) -> &'static str {
    let begin = format!("```{language}\n# {name}\n");
    let (_, rest) = PAGE.split_once(&begin).unwrap_or_else(|| panic!("no {begin}"));
    rest.split_once("```").expect("it ends").0
}

#[test]
fn nginx_passes_tls_on_by_its_name() {
    inside("fronts::nginx_passes_tls_on_by_its_name", PATIENCE * 3, || {
        let text = format!("{STREAM}{NGINX}{}", block("nginx", "passthrough"));
        behind("passthrough.yaml", |dir| nginx(dir, &text));
    });
}

#[test]
fn haproxy_passes_tls_on_by_its_name() {
    inside("fronts::haproxy_passes_tls_on_by_its_name", PATIENCE * 3, || {
        behind("passthrough.yaml", |dir| haproxy(dir, block("haproxy", "passthrough")));
    });
}

#[test]
fn nginx_ends_tls() {
    inside("fronts::nginx_ends_tls", PATIENCE * 3, || {
        let text = format!("{NGINX}{}", block("nginx", "ended").replace("http {\n", PLACES));
        behind("ended.yaml", |dir| nginx(dir, &text));
    });
}

#[test]
fn haproxy_ends_tls() {
    inside("fronts::haproxy_ends_tls", PATIENCE * 3, || {
        behind("ended.yaml", |dir| haproxy(dir, block("haproxy", "ended")));
    });
}

fn nginx(dir: &Path, text: &str) -> Command {
    fs::write(dir.join("nginx.conf"), text).expect("it is ours");
    let mut command = Command::new(foreign("nginx", "nginx-light libnginx-mod-stream"));
    command.arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf")).args(["-e", "stderr"]);
    command
}

fn haproxy(dir: &Path, text: &str) -> Command {
    fs::write(dir.join("haproxy.cfg"), text).expect("it is ours");
    let both =
        ["gateway.pem", "gateway.key"].map(|name| fs::read_to_string(dir.join(name)).expect("it was made"));
    fs::write(dir.join("gateway-and-key.pem"), both.concat()).expect("it is ours");
    let mut command = Command::new(foreign("haproxy", "haproxy"));
    command.current_dir(dir).args(["-db", "-f", "haproxy.cfg"]);
    command
}

/// A gateway of the page's configuration, this in front, and bytes of a client that go to the agent and back.
fn behind(config: &str, front: impl FnOnce(&Path) -> Command) {
    let machines = Machines::new();
    let hosts = machines.dir.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost gw.example\n").expect("it is ours");
    put_in_place_of("/etc/hosts", &hosts);
    let said = machines.gateway(&["init", "gw.example", "--yes", "--dir", "gw"]).succeeded_with_text();
    let dir = machines.path("public/gw");
    let text = block("yaml", config);
    fs::write(dir.join("gateway.yaml"), text).expect("it is ours");
    let addr = text.split('"').nth(1).expect("listen_addr");
    let mut command = machines.program("narrowlink-gateway", "public");
    command.args(["-c", "gw/gateway.yaml"]);
    let _gateway = Running::start("gateway", machines.dir.path(), command, None);
    net::wait_for_server("the gateway", addr.parse().expect("an address"), PATIENCE);
    let _front = Running::start("front", machines.dir.path(), front(&dir), None);
    let front: SocketAddr = "127.0.0.1:443".parse().expect("an address");
    net::wait_for_server("what stands in front", front, PATIENCE);
    let joined = machines.join(printed(&said, "sudo narrowlink-agent join "), "nl").succeeded_with_text();
    assert!(joined.contains("takes this machine for the agent home"), "{joined}");
    let _agent = machines.start_agent("nl");
    machines.login(printed(&said, "narrowlink login "), "nl").succeeded();
    let (_forward, local) = machines.start_forward("nl", net::start_echo());
    net::try_echo(local).expect("bytes come back");
    let list = run(machines.client("nl", &["list"]), b"", Duration::from_secs(20)).succeeded_with_text();
    assert!(list.contains("home"), "{list}");
}

//! Role: nginx's stream module as a TCP forwarder with one worker.
//! Invariants: as for HAProxy, a person's configuration.
//! See: <https://nginx.org/en/docs/stream/ngx_stream_core_module.html>

use std::{fmt::Write as _, fs, path::Path, process::Command};

use anyhow::Result;

use super::{Running, Setup, Ways, directory, forwarder_ways, installed};
use crate::load::plan::Way;

/// Where Debian puts what is not built in.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// A forwarder.
const STREAM: &str = "stream {\n    proxy_timeout 1h;\n";
/// A web server that waits for requests.
const HTTP: &str = "http {\n    access_log off;\n    client_header_timeout 1h;\n";

pub(super) fn start(setup: &Setup) -> Result<(Running, Ways)> {
    let program = installed("nginx", "apt-get install nginx libnginx-mod-stream")?;
    let (dir, _) = directory()?;
    let ways = forwarder_ways(dir.path(), setup)?;
    let file = dir.path().join("nginx.conf");
    fs::write(&file, config(&ways, setup, &dir.path().display().to_string(), Path::new(MODULE).exists()))?;
    let mut command = Command::new(program);
    command.arg("-p").arg(dir.path()).arg("-e").arg("stderr").arg("-c").arg(&file);
    let mut running = Running::start(dir, command, setup, &setup.cores(1))?;
    running.wait_listening(&ways)?;
    Ok((running, Ways::Fixed(ways)))
}

fn config(ways: &[Way], setup: &Setup, dir: &str, as_module: bool) -> String {
    let mut text = if as_module { format!("load_module {MODULE};\n") } else { String::new() };
    let _ = write!(
        text,
        "daemon off;\nworker_processes 1;\nworker_rlimit_nofile 20000;\npid {dir}/nginx.pid;\n\
         error_log stderr error;\nevents {{ worker_connections 19800; }}\n"
    );
    text += if setup.front_only { HTTP } else { STREAM };
    for way in ways {
        let Way::Forwarder { listen, target, near_tls, far_tls } = way else { continue };
        let near = if near_tls.is_some() { " ssl" } else { "" };
        let _ = write!(text, "    server {{\n        listen {listen}{near};\n");
        if !setup.front_only {
            let _ = writeln!(text, "        proxy_pass {target};");
        }
        if near_tls.is_some() {
            let _ = write!(
                text,
                "        ssl_protocols TLSv1.3;\n        \
                 ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;\n        \
                 ssl_certificate {dir}/gateway.pem;\n        ssl_certificate_key {dir}/gateway.pem;\n"
            );
        }
        if far_tls.is_some() {
            let _ = write!(
                text,
                "        proxy_ssl on;\n        proxy_ssl_protocols TLSv1.3;\n        \
                 proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;\n        \
                 proxy_ssl_verify on;\n        proxy_ssl_trusted_certificate {dir}/ca.pem;\n        \
                 proxy_ssl_name localhost;\n        proxy_ssl_server_name on;\n"
            );
        }
        text += "    }\n";
    }
    text + "}\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::subject::fixture::{SETUP, way};

    #[test]
    fn tls_is_written_where_it_is_wanted() {
        let plain = config(&[way(0, false)], &SETUP, "/d", true);
        assert!(plain.starts_with("load_module /usr/lib/nginx/modules/ngx_stream_module.so;\n"));
        assert!(
            plain.contains("        listen 127.0.0.1:1000;\n        proxy_pass 127.0.0.2:2000;\n    }\n}\n")
        );
        let tls = config(&[way(0, true)], &SETUP, "/d", false);
        assert!(tls.contains("listen 127.0.0.1:1000 ssl;") && tls.contains("proxy_ssl on;"), "{tls}");
        let front = config(&[way(0, true)], &Setup { front_only: true, ..SETUP }, "/d", false);
        assert!(front.contains("http {") && !front.contains("proxy_pass"), "{front}");
        assert_eq!(tls.matches('{').count(), tls.matches('}').count());
    }
}

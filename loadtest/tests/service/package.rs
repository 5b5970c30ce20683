//! Role: the Debian packages: what is in them, and what becomes of a machine that they are installed on, upgraded, removed and purged.
//! Invariants: they are made by `.ci/package`, of the programs beside this test.
//! See: docs/install.md "Debian packages".

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use tempfile::TempDir;

use crate::kit::{
    PATIENCE,
    machine::{DEPLOYMENT, Network},
    process::{foreign, ours},
};

const PROGRAMS: [&str; 4] = ["narrowlink-gateway", "narrowlink-agent", "narrowlink", "narrowlink-tokengen"];

fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
    output.stdout
}

/// The packages, made once.
fn packages() -> &'static [PathBuf] {
    static MADE: OnceLock<Vec<PathBuf>> = OnceLock::new();
    MADE.get_or_init(|| {
        // What is static is never dropped: the next run takes the place of this one.
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("the target directory can be written");
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it stands in the workspace");
        let programs = PROGRAMS.map(ours);
        let beside = programs[0].parent().expect("a directory");
        let made = output(
            Command::new(root.join(".ci/package"))
                .args(["--debs", "--programs"])
                .arg(beside)
                .arg("-o")
                .arg(&dir)
                .env_remove("CARGO_TARGET_DIR"),
        );
        println!("{}", String::from_utf8_lossy(&made));
        output(Command::new("sha256sum").args(["--check", "--strict", "SHA256SUMS"]).current_dir(&dir));
        let files = fs::read_dir(&dir).expect("it can be listed").flatten().map(|file| file.path());
        let mut packages: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|end| end == "deb")).collect();
        packages.sort();
        assert_eq!(packages.len(), PROGRAMS.len(), "{packages:?}");
        packages
    })
}

fn package(name: &str) -> &'static Path {
    let is_it = |path: &&PathBuf| {
        path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("{name}_")))
    };
    packages().iter().find(is_it).unwrap_or_else(|| panic!("no package of {name}"))
}

/// What a package puts where; compressed files as they were before.
fn files_of(name: &str) -> BTreeMap<String, String> {
    let dir = TempDir::new().expect("a temporary directory can be made");
    output(Command::new("dpkg-deb").arg("-x").arg(package(name)).arg(dir.path()));
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.path().to_owned()];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(&at).expect("it can be listed").flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let is_compressed = path.extension().is_some_and(|end| end == "gz");
            let bytes = match is_compressed {
                true => output(Command::new("gzip").arg("-dc").arg(&path)),
                false => fs::read(&path).expect("it can be read"),
            };
            let within = path.strip_prefix(dir.path()).expect("within it").display().to_string();
            found.insert(within, String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    found
}

#[test]
fn a_package_has_every_page_and_completion_that_its_program_makes() {
    for name in PROGRAMS {
        let files = files_of(name);
        let says =
            |words: &[&str]| String::from_utf8(output(Command::new(ours(name)).args(words))).expect("UTF-8");
        let dir = TempDir::new().expect("a temporary directory can be made");
        says(&["man", dir.path().to_str().expect("UTF-8")]);
        let pages: BTreeMap<_, _> = fs::read_dir(dir.path())
            .expect("it can be listed")
            .flatten()
            .map(|page| {
                let text = fs::read_to_string(page.path()).expect("it can be read");
                (format!("usr/share/man/man1/{}.gz", page.file_name().display()), text)
            })
            .collect();
        let packed = files.iter().filter(|(path, _)| path.starts_with("usr/share/man/"));
        let packed: BTreeMap<_, _> = packed.map(|(path, text)| (path.clone(), text.clone())).collect();
        assert!(pages.len() > 1, "{name}: {pages:?}");
        assert_eq!(pages.keys().collect::<Vec<_>>(), packed.keys().collect::<Vec<_>>(), "{name}");
        assert!(pages == packed, "{name}: a page says something else in the package");

        let help = says(&["completions", "--help"]);
        let shells = help.split_once("[possible values: ").and_then(|(_, rest)| rest.split_once(']'));
        let shells = shells.unwrap_or_else(|| panic!("{help}")).0;
        for shell in shells.split(", ") {
            let script = says(&["completions", shell]);
            // Help says where they belong.
            let place = files.iter().find(|(_, text)| **text == script).map(|(path, _)| path);
            let place =
                place.unwrap_or_else(|| panic!("{name}: no completions of {shell} in {:?}", files.keys()));
            assert!(help.contains(&format!("\n  /{place}\n")), "{name}: {place}: {help}");
        }
        assert!(files.contains_key(&format!("usr/bin/{name}")), "{:?}", files.keys());
        for document in ["copyright", "changelog.gz", "changelog.Debian.gz", "third-party.gz", "README.md"] {
            let path = format!("usr/share/doc/{name}/{document}");
            assert!(files.get(&path).is_some_and(|text| !text.is_empty()), "{name}: no {document}");
        }
    }
}

/// A machine that takes packages as Debian's own do, whatever the image of the host holds back.
const MACHINE: &str = "\
export DEBIAN_FRONTEND=noninteractive
rm -f /usr/sbin/policy-rc.d /etc/dpkg/dpkg.cfg.d/* /var/lib/man-db/auto-update
wait_until() { for n in $(seq 300); do eval \"$1\" >/dev/null 2>&1 && return; sleep 0.1; done; echo \"in vain: $1\"; exit 4; }
pid() { systemctl show -P MainPID narrowlink-$1; }
install() { dpkg -i \"$@\" || exit 5; }
";

/// What an administrator does with packages, and what is then to be seen.
fn machine(script: &str) -> String {
    foreign("systemd-nspawn", "systemd-container");
    let network = Network::new(&[ours("narrowlink-visits")]);
    for package in packages() {
        fs::copy(package, network.shared().join(package.file_name().expect("a file"))).expect("it is ours");
    }
    // Programs come from packages alone.
    let deployment = DEPLOYMENT.lines().skip(1).collect::<Vec<_>>().join("\n");
    let begin = format!(
        "{MACHINE}install /run/shared/*.deb\n{deployment}\nwait_until 'narrowlink list | grep -q home'\n"
    );
    let said = network.boot("all", &(begin + script)).finish(PATIENCE * 4);
    println!("{said}");
    said
}

/// The part of what was said behind a line.
fn behind<'a>(said: &'a str, line: &str) -> &'a str {
    let (_, rest) = said.split_once(&format!("\n{line}\n")).unwrap_or_else(|| panic!("no {line:?}: {said}"));
    rest.split("\n== ").next().unwrap_or_default()
}

#[test]
fn packages_are_installed_used_removed_and_purged() {
    let said = machine(
        "\
echo '== installed'
command -v narrowlink-gateway narrowlink-agent narrowlink narrowlink-tokengen
systemctl show -P FragmentPath narrowlink-gateway narrowlink-agent
ls /etc/systemd/system/narrowlink-*
grep '^ExecStart=/' /etc/systemd/system/narrowlink-*.service.d/local.conf
dpkg -V narrowlink-gateway narrowlink-agent narrowlink narrowlink-tokengen && echo 'every file is as it was packed'
cd /usr/share/man/man1 && gzip -t narrowlink*.1.gz && cd /
visits() { /run/shared/narrowlink-visits \"$@\"; }
visits --echo 127.0.0.1:7 &
narrowlink forward -n home -l 2222 127.0.0.1:7 >/dev/null 2>/tmp/forward &
wait_until 'visits 127.0.0.1:2222 --visits 1 --standing 0' && echo 'bytes through'
kill %1 %2
echo '== removed'
gateway=$(pgrep -P $(pid gateway)) agent=$(pid agent)
dpkg -r narrowlink-gateway narrowlink-agent narrowlink narrowlink-tokengen || exit 6
wait_until '[ ! -e /proc/'$gateway' ] && [ ! -e /proc/'$agent' ]' && echo 'nothing runs'
find /usr -name '*narrowlink*'
systemctl show -P LoadState narrowlink-gateway narrowlink-agent
echo '== stays'
ls /etc/narrowlink /var/lib/private/narrowlink-agent; ls -d /var/lib/private/narrowlink
echo '== installed again'
install /run/shared/*.deb
wait_until 'narrowlink list | grep -q home' && echo 'as it was'
echo '== purged'
touch /etc/narrowlink/mine
# What can't be taken away keeps nothing else, least of all a secret.
rm /etc/narrowlink/gateway.yaml && mkdir /etc/narrowlink/gateway.yaml
mkdir /etc/narrowlink/.init && touch /etc/narrowlink/.init/gateway.secret /etc/narrowlink/agent.token.77
dpkg -P narrowlink-gateway narrowlink-agent narrowlink narrowlink-tokengen >/dev/null 2>&1 || exit 7
pgrep -f '^/usr/bin/narrowlink-'
find /etc /usr /var /run -path /run/shared -prune -o -path '*narrowlink*' -print
echo '== from nothing'
rm -r /etc/narrowlink; install /run/shared/*.deb >/dev/null
systemctl is-enabled narrowlink-gateway narrowlink-agent; pgrep -f '^/usr/bin/narrowlink-'
echo '== done'
",
    );
    let installed = behind(&said, "== installed");
    for name in PROGRAMS {
        assert!(installed.contains(&format!("/usr/bin/{name}\n")), "{installed}");
    }
    for name in ["gateway", "agent"] {
        assert!(
            installed
                .contains(&format!("ExecStart=/usr/bin/narrowlink-{name} -c /etc/narrowlink/{name}.yaml"))
        );
    }
    assert!(
        installed.matches("/lib/systemd/system/narrowlink-").count() == 2,
        "the unit is the package's: {installed}"
    );
    assert!(
        installed.contains("every file is as it was packed") && installed.contains("bytes through"),
        "{installed}"
    );
    let removed = behind(&said, "== removed");
    assert!(removed.contains("nothing runs") && removed.contains("not-found\n\nnot-found"), "{removed}");
    assert!(!removed.contains("/usr/"), "{removed}");
    let stays = behind(&said, "== stays");
    for file in [
        "gateway.yaml",
        "gateway.secret",
        "authority.key",
        "agent.token",
        "instance.key",
        "/private/narrowlink",
    ] {
        assert!(stays.contains(file), "{file}: {stays}");
    }
    assert!(behind(&said, "== installed again").contains("as it was"), "{said}");
    // What is somebody else's stays. What comes then begins nothing.
    let mut left: Vec<_> = behind(&said, "== purged").lines().collect();
    left.sort_unstable();
    let theirs = ["/etc/narrowlink", "/etc/narrowlink/gateway.yaml", "/etc/narrowlink/mine"];
    assert_eq!(left, theirs, "{said}");
    assert!(behind(&said, "== from nothing").ends_with("disabled\ndisabled"), "{said}");
}

#[test]
fn an_upgrade_of_the_packages_leaves_no_gap() {
    let said = machine(
        "\
echo 'drain_s: 600' >>/etc/narrowlink/gateway.yaml
visits() { /run/shared/narrowlink-visits \"$@\"; }
visits --echo 127.0.0.1:7 &
narrowlink forward -n home -l 2222 127.0.0.1:7 >/dev/null 2>/tmp/forward &
wait_until 'visits 127.0.0.1:2222 --visits 1 --standing 0'
echo '== gateway'
before=$(pid gateway)
visits 127.0.0.1:2222 --per-s 100 --visits 1500 --standing 20 >/tmp/visits 2>&1 & visiting=$!
sleep 1; install /run/shared/narrowlink-gateway_*.deb
[ -e /proc/$visiting ] && echo 'in the midst of visits'
wait $visiting; echo \"visits $?\"; cat /tmp/visits
[ $(pid gateway) != $before ] && echo 'another one'
systemctl show -P NRestarts narrowlink-gateway
echo '== refused'
before=$(pid gateway)
sed -i 's/^name:/nome:/' /etc/narrowlink/gateway.yaml
install /run/shared/narrowlink-gateway_*.deb
[ $(pid gateway) = $before ] && narrowlink list | grep -q home && echo 'it goes on'
sed -i 's/^nome:/name:/' /etc/narrowlink/gateway.yaml
echo '== agent'
before=$(pid agent)
install /run/shared/narrowlink-agent_*.deb
wait_until '[ $(pid agent) != '$before' ] && narrowlink list | grep -q home' && echo 'another one'
echo '== agent without a gateway'
systemctl stop narrowlink-gateway; systemctl kill -s KILL narrowlink-gateway
timeout 60 dpkg -i /run/shared/narrowlink-agent_*.deb && echo 'nobody waits'
echo '== stopped'
systemctl disable -q narrowlink-gateway
install /run/shared/narrowlink-gateway_*.deb; systemctl is-active narrowlink-gateway
echo '== done'
",
    );
    let gateway = behind(&said, "== gateway");
    for words in [
        "in the midst of visits",
        "visits 0",
        "\"refused\":0",
        "\"broken\":0",
        "\"standing_broken\":0",
        "another one\n0",
    ] {
        assert!(gateway.contains(words), "{words:?}: {gateway}");
    }
    let refused = behind(&said, "== refused");
    assert!(refused.contains("it goes on") && refused.contains("NL-E0102"), "{refused}");
    assert!(behind(&said, "== agent").contains("another one"), "{said}");
    assert!(behind(&said, "== agent without a gateway").contains("nobody waits"), "{said}");
    assert!(behind(&said, "== stopped").contains("inactive"), "{said}");
}

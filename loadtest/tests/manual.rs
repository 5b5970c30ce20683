//! Role: what the four programs say of themselves, held against their command lines.
//! Invariants: every command and every option that is not hidden stands in each kind of completions and in a manual page.
//! See: `narrowlink-manual`.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use clap::Parser;
use narrowlink_proto::{
    code::Code,
    id::Uid,
    token::{Claims, Keys, Kind},
};

/// The four programs, and all that each takes.
fn programs() -> [(&'static str, clap::Command); 4] {
    fn built<A: Parser>() -> clap::Command {
        let mut command = narrowlink_manual::command::<A>();
        command.build();
        command
    }
    [
        ("narrowlink-gateway", built::<narrowlink_control::args::Args>()),
        ("narrowlink-agent", built::<narrowlink_agent::args::Args>()),
        ("narrowlink", built::<narrowlink_client::args::Args>()),
        ("narrowlink-tokengen", built::<narrowlink_tokengen::args::Args>()),
    ]
}

/// A program as it was built beside this test, in an environment of its own.
fn program(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(path.is_file(), "{} is missing: run `cargo build --workspace`", path.display());
    let mut command = Command::new(path);
    command.env_clear().env("HOME", "/nonexistent").current_dir("/").stdin(Stdio::null());
    command
}

fn answer(name: &str, words: &[&str]) -> String {
    let Output { status, stdout, stderr } = program(name).args(words).output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success() && stderr.is_empty(), "{name} {words:?}: {status}: {stderr}");
    String::from_utf8(stdout).unwrap()
}

/// Each command that is not hidden, with those above it: `ticket`, `ticket agent`.
fn walk<'a>(
    command: &'a clap::Command,
    above: &[&'a str],
    visit: &mut dyn FnMut(&[&str], &'a clap::Command),
) {
    visit(above, command);
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let path: Vec<_> = above.iter().copied().chain([sub.get_name()]).collect();
        walk(sub, &path, visit);
    }
}

/// Every way to write an option of `command` that is not hidden.
fn options(command: &clap::Command) -> Vec<String> {
    let shown = command.get_arguments().filter(|option| !option.is_hide_set());
    let spelt = shown.flat_map(|option| {
        let long = option.get_long_and_visible_aliases().unwrap_or_default();
        let short = option.get_short_and_visible_aliases().unwrap_or_default();
        let long = long.into_iter().map(|name| format!("--{name}"));
        long.chain(short.into_iter().map(|name| format!("-{name}"))).collect::<Vec<_>>()
    });
    spelt.collect()
}

#[test]
fn completions_have_every_command_and_option_of_every_program() {
    for (name, command) in programs() {
        for shell in ["bash", "zsh", "fish"] {
            let script = answer(name, &["completions", shell]);
            walk(&command, &[], &mut |path, at| {
                let known = path.last().is_none_or(|word| script.contains(word));
                assert!(known, "{name}, {shell}: no {path:?}");
                for option in options(at) {
                    let bare = option.trim_start_matches('-');
                    // How fish writes both forms.
                    let (long, short) = (format!("-l {bare}"), format!("-s {bare}"));
                    let known = script.contains(&option) || script.contains(&long) || script.contains(&short);
                    assert!(known, "{name}, {shell}: {path:?} without {option}");
                }
            });
        }
    }
}

#[test]
fn bash_reads_the_completions_of_every_program_and_completes_by_them() {
    for (name, _) in programs() {
        let script = answer(name, &["completions", "bash"]);
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &script).unwrap();
        let read = Command::new("bash").arg("-n").arg(file.path()).output().unwrap();
        assert!(read.status.success() && read.stderr.is_empty(), "{name}: {read:?}");
        let ask = format!(
            "set -- ; source {}; COMP_WORDS=({name} com); COMP_CWORD=1; \
             $(complete -p {name} | sed -E 's/.*-F ([^ ]+).*/\\1/') {name} com {name}; echo \"${{COMPREPLY[@]}}\"",
            file.path().display()
        );
        let asked = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&asked.stdout), "completions\n", "{name}: {asked:?}");
        let within = match name {
            "narrowlink-gateway" => ("ticket", "rev", "revoke"),
            "narrowlink-agent" => ("service", "inst", "install"),
            _ => continue,
        };
        let (command, begun, whole) = within;
        let ask = format!(
            "set -- ; source {}; COMP_WORDS=({name} {command} {begun}); COMP_CWORD=2; \
             $(complete -p {name} | sed -E 's/.*-F ([^ ]+).*/\\1/') {name} {begun} {command}; echo \"${{COMPREPLY[@]}}\"",
            file.path().display()
        );
        let asked = Command::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&asked.stdout), format!("{whole}\n"), "{name}: {asked:?}");
    }
}

#[test]
fn every_command_has_a_page_with_all_its_options() {
    for (name, command) in programs() {
        let dir = tempfile::tempdir().unwrap();
        let written = answer(name, &["man", dir.path().to_str().unwrap()]);
        let mut pages = Vec::new();
        walk(&command, &[], &mut |path, at| {
            let words: Vec<_> = [name].iter().chain(path).copied().collect();
            let page = dir.path().join(format!("{}.1", words.join("-")));
            let text = fs::read_to_string(&page).unwrap_or_default().replace("\\-", "-");
            assert!(text.starts_with(".ie") && text.contains(".SH NAME"), "{}: {text}", page.display());
            for option in options(at) {
                assert!(text.contains(&option), "{} without {option}", page.display());
            }
            for sub in at.get_subcommands().filter(|sub| !sub.is_hide_set()) {
                let named = format!("{}-{}(1)", words.join("-"), sub.get_name());
                assert!(text.contains(&named), "{} without {named}", page.display());
            }
            pages.push(page);
        });
        assert_eq!(written.lines().map(PathBuf::from).collect::<Vec<_>>(), pages, "{name}");
    }
}

#[test]
fn the_page_of_commands_names_each_that_there_is_and_no_other() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/commands.md");
    let page = fs::read_to_string(page).unwrap();
    let named = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let mut named: Vec<_> = named.map(|(command, _)| command.to_owned()).collect();
    let mut there = Vec::new();
    for (name, command) in programs() {
        walk(&command, &[], &mut |path, _| {
            if !path.is_empty() {
                there.push([&[name], path].concat().join(" "));
            }
        });
    }
    named.sort_unstable();
    there.sort_unstable();
    assert_eq!(named, there, "docs/commands.md");
}

#[test]
fn help_of_completions_says_where_they_go_in_each_shell() {
    for (name, _) in programs() {
        let help = answer(name, &["completions", "--help"]);
        for place in [
            format!("~/.local/share/bash-completion/completions/{name}\n"),
            format!("~/.zfunc/_{name}\n"),
            format!("~/.config/fish/completions/{name}.fish\n"),
        ] {
            assert!(help.contains(&place), "{name}: {help}");
        }
    }
}

#[test]
fn pages_that_can_t_be_written_end_a_program_with_73() {
    for (name, _) in programs() {
        let output = program(name).args(["man", "/dev/null/man1"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(73), "{name}: {said}");
        assert!(said.starts_with(&format!("{name}: /dev/null/man1: ")), "{said}");
    }
}

#[test]
fn every_program_explains_every_code_and_its_own_commands() {
    for (name, command) in programs() {
        for code in Code::ALL {
            assert_eq!(answer(name, &["help", &code.to_string()]), code.page(), "{name}");
        }
        walk(&command, &[], &mut |path, _| {
            let words: Vec<_> = ["help"].iter().chain(path).copied().collect();
            let usage = format!("Usage: {}", [&[name], path].concat().join(" "));
            assert!(answer(name, &words).contains(&usage), "{words:?} without {usage}");
        });
        let refused = program(name).args(["help", "NL-E9999"]).output().unwrap();
        assert_eq!(refused.status.code(), Some(2), "{name}");
    }
}

/// All that stands in front of the tests in the sources below a folder.
fn sources(dir: &Path, found: &mut String) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push_str(text.split("#[cfg(test)]").next().unwrap_or_default());
        }
    }
}

#[test]
fn every_code_is_said_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut text = String::new();
    for name in ["proto", "proto/manual", "dataplane", "control", "agent", "client", "tokengen"] {
        sources(&root.join(name).join("src"), &mut text);
    }
    // In the table's own file a code is `Self`; its table has no arrows to a code alone.
    let said = |code: &&Code| {
        let end = |c: char| !c.is_alphanumeric();
        let ways = [format!("Code::{code:?}"), format!("=> Self::{code:?}")];
        ways.iter().any(|way| text.match_indices(way).any(|(at, _)| text[at + way.len()..].starts_with(end)))
    };
    let unsaid: Vec<_> = Code::ALL.iter().filter(|code| !said(code)).collect();
    assert!(unsaid.is_empty(), "no error has these: {unsaid:?}");
}

#[test]
fn no_program_paints_where_nobody_wants_colours() {
    let dir = tempfile::tempdir().unwrap();
    let secret = "00".repeat(32);
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let endpoint = |kind| {
        let claims = Claims::new(kind, Uid::nil(), "n", 1_000_000_000, "j");
        let token = Keys::new(&[7; 32]).sign(&claims).unwrap();
        format!("endpoints: [!SelfHosted {{ gateway: '127.0.0.1:1', protocol: Ws, token: {token} }}]\n")
    };
    let services = "services: [!Ws { domains: [a], listen_addr: \"127.0.0.1:0\" }]";
    let gateway = write("gateway.yaml", &format!("name: g\nsecret: \"hex:{secret}\"\n{services}\n"));
    let client = write("client.yaml", &endpoint(Kind::Client));
    let agent = write("agent.yaml", &endpoint(Kind::Agent));
    let tokens = write("tokens.yaml", &format!("secret: \"hex:{secret}\"\ntokens: []\n"));
    let own = [
        ("narrowlink-gateway", vec!["-c", &gateway, "--check"]),
        ("narrowlink-agent", vec!["-c", &agent, "--check"]),
        ("narrowlink", vec!["-c", &client, "list"]),
        ("narrowlink-tokengen", vec!["-c", &tokens]),
    ];
    for (name, words) in own {
        for words in
            [vec!["--help"], vec!["help", "completions"], vec!["--bogus"], vec!["completions"], words]
        {
            for no_color in [None, Some("1")] {
                let mut command = program(name);
                command.args(&words).env("RUST_LOG", "trace").env("CLICOLOR_FORCE", "1").env("TERM", "xterm");
                no_color.map(|value| command.env("NO_COLOR", value));
                let Output { stdout, stderr, .. } = command.output().unwrap();
                assert!(!stdout.is_empty() || !stderr.is_empty(), "{name} {words:?} says nothing");
                for said in [stdout, stderr] {
                    assert!(!said.contains(&0x1b), "{name} {words:?}: {}", String::from_utf8_lossy(&said));
                }
            }
        }
    }
}

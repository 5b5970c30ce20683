//! Role: docs/quick-start.md, as its reader does it: on three machines, by what the programs print alone.
//! Invariants: what a block of the page shows is what the command prints, but for tickets, times and numbers · each command succeeds.
//! See: docs/quick-start.md; `NARROWLINK_BLESS=1` writes what the commands print into the page.

use std::{fmt::Write as _, fs, path::Path};

use crate::kit::{PATIENCE, machine::Network};

const PAGE: &str = "docs/quick-start.md";
const BLOCK: &str = "```console\n$ ";
/// Where a command is typed.
const MACHINES: [(&str, &str); 3] =
    [("narrowlink-gateway ", "public"), ("narrowlink-agent ", "behind"), ("narrowlink ", "laptop")];

/// A command of the page, and what the page says that it prints.
struct Step<'a> {
    command: &'a str,
    shown: &'a str,
}

fn steps(page: &str) -> Vec<Step<'_>> {
    let blocks = page.split(BLOCK).skip(1).filter_map(|rest| rest.split_once("```\n"));
    blocks
        .map(|(block, _)| block.split_once('\n').expect("a line"))
        .map(|(command, shown)| Step { command, shown })
        .collect()
}

impl Step<'_> {
    /// The command, without `sudo`: on the machines of the test root types all but what is typed on the laptop.
    fn bare(&self) -> &str {
        self.command.strip_prefix("sudo ").unwrap_or(self.command)
    }

    fn machine(&self) -> &'static str {
        let on = MACHINES.iter().find(|(program, _)| self.bare().starts_with(program));
        on.unwrap_or_else(|| panic!("{} is typed nowhere", self.command)).1
    }

    /// Waits for the step before, types this one, and leaves what it prints to be seen by all.
    fn script(&self, at: usize) -> String {
        let mut text = String::new();
        if at > 0 {
            writeln!(text, "while [ ! -e /run/shared/{}.done ]; do sleep 0.02; done", at - 1)
                .expect("memory");
        }
        let bare = self.bare();
        let command = match bare.strip_suffix(" nl1..") {
            Some(command) => {
                writeln!(
                    text,
                    "ticket=$(sed -n 's/^ *\\(sudo \\)\\?{command} \\(nl1.*\\)/\\2/p' /run/shared/0.out)"
                )
                .expect("memory");
                format!("{command} $ticket")
            }
            None => bare.to_owned(),
        };
        let out = format!("/run/shared/{at}.out");
        let typed = match self.machine() {
            // As a user's shell would.
            "laptop" => format!("su - me -c \"stdbuf -oL {command}\""),
            _ => command,
        };
        if bare.contains(" forward ") {
            // Until as much is there as the page has, and a little longer for what it has not.
            let many = self.shown.lines().count().max(1);
            let until = format!(
                "for n in $(seq 200); do [ $(wc -l <{out}.live) -ge {many} ] && break; sleep 0.05; done; sleep 0.5"
            );
            writeln!(text, "{typed} >{out}.live 2>&1 &\n{until}; cp {out}.live {out}; kill %1")
                .expect("memory");
        } else {
            writeln!(text, "{typed} >{out} 2>&1 || echo \"code $?\" >>{out}").expect("memory");
        }
        writeln!(text, "touch /run/shared/{at}.done").expect("memory");
        text
    }
}

/// As `systemctl` writes them in front of a date.
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// What each ticket is on the page: `nl1..`. The digits of a ticket may have the same three letters once more.
fn without_tickets(text: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let words = text.split_inclusive(|c: char| !is_part(c)).map(|word| match word.starts_with("nl1") {
        true => format!("nl1..{}", word.trim_start_matches(is_part)),
        false => word.to_owned(),
    });
    words.collect()
}

/// What is not the same each time is made so: tickets, days of the week, numbers, and how wide a number is.
fn alike(text: &str) -> String {
    let plain = without_tickets(text);
    let mut same = String::new();
    for word in plain.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
        let (bare, end) = match word.char_indices().next_back() {
            Some((at, c)) if !c.is_ascii_alphanumeric() => word.split_at(at),
            _ => (word, ""),
        };
        // A number, a time, or a part of an id.
        let is_hex = bare.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
        let is_number = bare.starts_with(|c: char| c.is_ascii_digit());
        let varies = is_number
            || DAYS.contains(&bare)
            || is_hex && (bare.len() >= 4 || bare.contains(|c: char| c.is_ascii_digit()));
        same.push_str(if varies { "0" } else { bare });
        same.push_str(if end == " " && same.ends_with(' ') { "" } else { end });
    }
    same.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// The same in any order: standard output and standard error are written by two threads.
fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = alike(text).lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn the_quick_start_prints_what_it_shows() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").join(PAGE);
    let page = fs::read_to_string(&path).expect("the page is there");
    let steps = steps(&page);
    let network = Network::of_ours();
    let machines = MACHINES.map(|(_, machine)| {
        let mut script = "install -m 755 /run/shared/narrowlink* /usr/local/bin/\necho 127.0.0.1 localhost gw.example >/etc/hosts\n\
                          useradd -m -s /bin/bash me\n"
            .to_owned();
        for (at, step) in steps.iter().enumerate().filter(|(_, step)| step.machine() == machine) {
            script.push_str(&step.script(at));
        }
        // The agent goes with its machine.
        script.push_str(&format!("while [ ! -e /run/shared/{}.done ]; do sleep 0.05; done\n", steps.len() - 1));
        network.boot(machine, &script)
    });
    let said = machines.map(|machine| machine.finish(PATIENCE * 2)).concat();
    let mut new = page.clone();
    let mut differ = String::new();
    for (at, step) in steps.iter().enumerate() {
        let printed = fs::read_to_string(network.shared().join(format!("{at}.out"))).unwrap_or_default();
        assert!(!printed.lines().any(|line| line.starts_with("code ")), "$ {}\n{printed}", step.command);
        if lines(&printed) != lines(step.shown) {
            differ.push_str(&format!(
                "$ {}\n{}\nbut the page has\n{}\n",
                step.command,
                without_tickets(&printed),
                step.shown
            ));
        }
        let [old, fresh] =
            [step.shown, &without_tickets(&printed)].map(|text| format!("$ {}\n{text}```\n", step.command));
        new = new.replace(&old, &fresh);
    }
    if std::env::var_os("NARROWLINK_BLESS").is_some() {
        fs::write(&path, new).expect("the page can be written");
        return;
    }
    assert!(
        differ.is_empty(),
        "{PAGE} differs from what the programs print (NARROWLINK_BLESS=1 mends it):\n{differ}\n{said}"
    );
    assert!(steps.len() > 8, "{} commands", steps.len());
}

#[test]
fn what_differs_each_time_is_alike_and_nothing_else() {
    assert_eq!(alike("join nl1abc-_9 2026-01-31\n"), alike("join nl1.. 2027-12-01\n"));
    assert_eq!(alike("since Mon 2026-11-30 22:51:45 UTC"), alike("since Tue 2026-12-01 02:10:20 UTC"));
    assert_eq!(alike("until 6f1c0b7e (in 364 days)"), alike("until 12345678 (in 365 days)"));
    assert_ne!(alike("taken back: 1 of the client"), alike("taken back: 1 of the agent"));
    assert_eq!(without_tickets("x nl1abc\ny"), "x nl1..\ny");
    assert_eq!(without_tickets("join nl1abnl1c-nl1_ nl1.. (nl1x)"), "join nl1.. nl1.. (nl1..)");
}

//! Role: docs/policy-examples.md: its commands make tickets, its entries are signed, and both get the verdicts that stand there.
//! See: docs/policy-examples.md.

use std::{collections::BTreeMap, fs, process::Command};

use crate::kit::{
    PATIENCE,
    deployment::Machines,
    process::{foreign, ours, run},
};

const PAGE: &str = include_str!("../../../docs/policy-examples.md");

/// The gateway of the page, and the token files of whoever got one.
struct Desk {
    machines: Machines,
    tickets: BTreeMap<String, String>,
}

impl Desk {
    fn shell(&self, line: &str) -> String {
        let bin = ours("narrowlink-gateway");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(foreign("bash", "bash"));
        command.args(["-euc", line]).current_dir(self.machines.path("public/gw"));
        command
            .env("PATH", format!("{}:{path}", bin.parent().expect("a directory").display()))
            .env_remove("RUST_LOG");
        run(command, b"", PATIENCE).succeeded_with_text()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.machines.path("public/gw").join(name), text).expect("it is ours");
    }

    /// A command of the page; a ticket's token is kept.
    fn command(&mut self, line: &str) {
        let printed = self.shell(&format!("{line} -c gateway.yaml"));
        let Some(rest) = line.strip_prefix("narrowlink-gateway ticket client ") else { return };
        let name = rest.split(' ').next().expect("a name").to_owned();
        // No gateway runs: what the ticket said is written all the same.
        assert_eq!(self.machines.login(&printed, &name).status.code(), Some(69));
        let token = fs::read_to_string(self.machines.path(&format!("laptop/{name}/client.token")))
            .expect("it was written");
        self.write(&format!("{name}.token"), &token);
        self.tickets.insert(name.clone(), format!("{name}.token"));
    }

    /// An entry of tokens.yaml, signed.
    fn sign(&mut self, entry: &str) {
        let name = entry.lines().find_map(|line| line.trim().strip_prefix("name: ")).expect("a name");
        let indented: String = entry.lines().map(|line| format!("  {line}\n")).collect();
        self.write("tokens.yaml", &format!("secret: !File gateway.secret\ntokens:\n{indented}"));
        self.shell("narrowlink-tokengen tokens.yaml -o tokens");
        self.shell(&format!("cp tokens/*/client-{name}.token signed-{name}.token"));
    }

    /// Holds these lines against this file.
    fn expect(&self, lines: &str, name: &str, file: &str) {
        self.write("expected.yaml", &format!("tokens: {{ {name}: !File {file} }}\nexpect:\n{lines}"));
        self.shell("narrowlink-gateway policy test expected.yaml -c gateway.yaml");
    }
}

#[test]
fn each_example_of_a_policy_has_the_verdicts_that_stand_there() {
    let machines = Machines::new();
    machines.init();
    let mut desk = Desk { machines, tickets: BTreeMap::new() };
    let (mut entries, mut held) = (0, 0);
    let mut signed: Option<&str> = None;
    for section in PAGE.split("\n## ").skip(1) {
        for block in section.split("```").skip(1).step_by(2) {
            match block.split_once('\n').expect("a line") {
                ("sh", lines) => lines.lines().for_each(|line| desk.command(line)),
                ("yaml", entry) if entry.starts_with("- !Client") => {
                    desk.sign(entry);
                    signed = entry.lines().find_map(|line| line.trim().strip_prefix("name: "));
                    entries += 1;
                }
                ("yaml", lines) => {
                    let first = lines.trim_start_matches(['-', ' ', '[', '{']).trim_start_matches("token: ");
                    let name = first.split(',').next().expect("a token");
                    let mut files = Vec::from_iter(desk.tickets.get(name).cloned());
                    files.extend(signed.filter(|of| *of == name).map(|_| format!("signed-{name}.token")));
                    assert!(!files.is_empty(), "nobody is {name}");
                    for file in files {
                        desk.expect(lines, name, &file);
                        held += 1;
                    }
                }
                (language, _) => panic!("a block of {language}"),
            }
        }
    }
    // Nine of ten have an entry, one of them two; eight of them a ticket beside it, and the last has that alone.
    assert_eq!((entries, held), (10, 10 + 8 + 1));
}

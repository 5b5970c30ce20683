//! The command lines that the documents show, as `narrowlink` reads them.

use narrowlink_client::args::{Args, Command};
use narrowlink_manual::Line;

const PAGES: [&str; 4] = [
    include_str!("../../README.md"),
    include_str!("../../docs/certificates.md"),
    include_str!("../../docs/configuration.md"),
    include_str!("../../docs/policy.md"),
];

fn read(line: &str) -> Line<Args> {
    narrowlink_manual::parse(line.split_whitespace().map(Into::into))
        .unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn parse(line: &str) -> Args {
    match read(line) {
        Line::Run(args) => args,
        Line::Ask(_) => panic!("{line}: a question about the program"),
    }
}

#[test]
fn every_command_of_the_documents_is_understood() {
    let blocks = PAGES.iter().flat_map(|page| page.split("```sh\n").skip(1));
    let lines = blocks.flat_map(|block| block.split("```").next().unwrap().lines());
    let commands: Vec<_> = lines.filter(|line| line.starts_with("narrowlink ")).collect();
    for line in &commands {
        // What the shell does with the answer, and what comes behind it, is not the program's.
        let own = [" #", " >", " &&", " |"].iter().fold(*line, |line, end| line.split(end).next().unwrap());
        read(own);
    }
    assert!(commands.len() >= 8, "{commands:?}");
}

#[test]
fn every_form_of_a_local_address_means_what_the_table_says() {
    let (_, table) = PAGES[2].split_once("| written | listens on |\n").unwrap();
    let rows =
        table.lines().take_while(|line| line.starts_with('|')).filter_map(|row| row.strip_prefix("| `-l "));
    let mut tried = 0;
    for row in rows {
        let (form, means) = row.split_once("` | ").unwrap();
        let addr = means.trim_end_matches(" |").split([' ', ';', ',']).next().unwrap().trim_end_matches(':');
        let Command::Forward { listen, .. } =
            parse(&format!("narrowlink forward -n home -l {form} a:1")).command
        else {
            panic!("another command")
        };
        assert_eq!(listen, addr.parse().unwrap(), "{row}");
        tried += 1;
    }
    assert_eq!(tried, 8);
}

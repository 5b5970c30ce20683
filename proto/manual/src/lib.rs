//! Role: the commands that all four programs have: `help`, `completions` and `man`.
//! Invariants: all are made of clap's own description of the program, so they can't differ from what it takes · no
//! program lists these commands itself: [`parse`] adds them.
//! See: ARCHITECTURE.md "Crates and arrows"; README.md "Completions and manual pages".

mod page;

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Arg, ArgMatches, Command, Parser, ValueEnum,
    builder::{EnumValueParser, PathBufValueParser, StyledStr},
    error::ErrorKind,
};
use narrowlink_proto::code::Code;

pub use self::page::PageError;

const HELP: &str = "help";
const WORD: &str = "COMMAND|CODE";
const COMPLETIONS: &str = "completions";
const MAN: &str = "man";
const SHELL: &str = "SHELL";
const DIR: &str = "DIR";

/// The shells that completions are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// A command line that was understood.
#[derive(Debug)]
pub enum Line<A> {
    /// The program's own to do.
    Run(A),
    /// A question about the program itself.
    Ask(Box<Question>),
}

/// A question about a program, which needs no configuration and no network.
#[derive(Debug)]
pub struct Question {
    command: Command,
    what: What,
}

#[derive(Debug)]
enum What {
    /// Found already.
    Help(String),
    Completions(Shell),
    Man(PathBuf),
}

impl Question {
    /// The answer, which belongs on standard output.
    ///
    /// # Errors
    /// A manual page can't be written.
    pub fn answer(self) -> Result<String, PageError> {
        match self.what {
            What::Help(text) => Ok(text),
            What::Completions(shell) => Ok(completions(for_people(&self.command), shell)),
            What::Man(dir) => page::write_all(for_people(&self.command), &dir),
        }
    }
}

/// The command line of a program, with the commands that all programs have.
pub fn command<A: Parser>() -> Command {
    let command = A::command().disable_help_subcommand(true);
    let name = command.get_name().to_owned();
    let command = command.mut_subcommands(with_help).subcommand(help_command(&name));
    command.subcommand(completions_command(&name)).subcommand(man_command(&name))
}

/// Clap's `help` knows no codes; in its place commands of commands have one of ours, too.
fn with_help(command: Command) -> Command {
    if !command.has_subcommands() {
        return command;
    }
    let help = help_command("").hide(true);
    command.mut_subcommands(with_help).subcommand(help)
}

/// The same without what is hidden: an option by which our programs speak to each other is in nobody's help, and clap hides it
/// there alone.
fn for_people(command: &Command) -> Command {
    if command.get_arguments().all(|arg| !arg.is_hide_set()) {
        return command.clone();
    }
    let mut shown = Command::new(command.get_name().to_owned())
        .disable_help_subcommand(true)
        .args(command.get_arguments().filter(|arg| !arg.is_hide_set()))
        .subcommands(command.get_subcommands());
    for (given, set) in [
        (command.get_version(), Command::version as fn(Command, String) -> Command),
        (command.get_long_version(), Command::long_version),
    ] {
        if let Some(text) = given {
            shown = set(shown, text.to_owned());
        }
    }
    for (given, set) in [
        (command.get_about(), Command::about as fn(Command, StyledStr) -> Command),
        (command.get_long_about(), Command::long_about),
        (command.get_after_help(), Command::after_help),
        (command.get_after_long_help(), Command::after_long_help),
    ] {
        if let Some(text) = given {
            shown = set(shown, text.clone());
        }
    }
    shown
}

/// Understands the arguments of a program; the first one is its name.
///
/// # Errors
/// What clap refuses; help and version, too.
pub fn parse<A: Parser>(arguments: impl IntoIterator<Item = OsString>) -> Result<Line<A>, clap::Error> {
    let mut command = command::<A>();
    let mut matches = command.try_get_matches_from_mut(arguments)?;
    let what = match (matches.subcommand(), help_asked(&matches)) {
        (_, Some(words)) => Some(What::Help(help(&mut command, &words)?)),
        (Some((COMPLETIONS, given)), _) => given.get_one(SHELL).copied().map(What::Completions),
        (Some((MAN, given)), _) => given.get_one(DIR).cloned().map(What::Man),
        _ => None,
    };
    match what {
        Some(what) => Ok(Line::Ask(Box::new(Question { command: self::command::<A>(), what }))),
        None => A::from_arg_matches_mut(&mut matches).map(Line::Run).map_err(|e| e.format(&mut command)),
    }
}

/// What clap says of a command line that it refuses, with its code.
pub fn refusal(error: &clap::Error) -> String {
    let text = error.to_string();
    // Without a command some programs show their help, which is nothing that could have a code.
    if !text.starts_with("error:") {
        return text;
    }
    match text.split_once("\n\n") {
        Some((said, rest)) => format!("{}\n\n{rest}", Code::Usage.mark(said)),
        None => Code::Usage.mark(text.trim_end()) + "\n",
    }
}

/// What `help` is asked for: `ticket help agent` is `help ticket agent`.
fn help_asked(mut matches: &ArgMatches) -> Option<Vec<String>> {
    let mut words = Vec::new();
    while let Some((name, given)) = matches.subcommand() {
        if name == HELP {
            words.extend(given.get_many::<String>(WORD).into_iter().flatten().cloned());
            return Some(words);
        }
        words.push(name.to_owned());
        matches = given;
    }
    None
}

/// The help of a command, or what there is to say of a code.
fn help(command: &mut Command, words: &[String]) -> Result<String, clap::Error> {
    if let [word] = words
        && let Some(code) = Code::parse(word)
    {
        return Ok(code.page());
    }
    // Usage lines begin with the program's name from here on.
    command.build();
    let mut at = &mut *command;
    for word in words {
        if at.find_subcommand(word).is_none() {
            let why = "there is no command and no code of this name; help alone shows the commands, and a code is \
                       written as messages have it, such as NL-E0401";
            return Err(at.error(ErrorKind::InvalidSubcommand, why));
        }
        let Some(sub) = at.find_subcommand_mut(word) else { unreachable!("it was found before") };
        at = sub;
    }
    Ok(at.render_long_help().to_string())
}

fn completions(mut command: Command, shell: Shell) -> String {
    let name = command.get_name().to_owned();
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, &*name, &mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    // clap_complete takes a hyphen in a program's name for the border of a command in one place, and not in the other.
    text.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__"))
}

fn help_command(program: &str) -> Command {
    let examples = format!(
        "\
Examples:
  {program} help
  {program} help completions
  {program} help NL-E0401                  what the code at the end of a message means, and what to do

Codes are explained without a network. All of them: docs/errors.md.

Exit codes: 0 done, 2 there is no such command or code, 74 the answer can't be written."
    );
    let words = Arg::new(WORD).help("A command, or the code of a message").num_args(0..);
    Command::new(HELP).about("Explain a command, or the code of a message").after_help(examples).arg(words)
}

fn completions_command(program: &str) -> Command {
    let examples = format!(
        "\
Examples:
  {program} completions bash > ~/.local/share/bash-completion/completions/{program}
  {program} completions zsh > ~/.zfunc/_{program}
  {program} completions fish > ~/.config/fish/completions/{program}.fish

zsh looks into ~/.zfunc when ~/.zshrc says fpath+=~/.zfunc before compinit. The next shell knows them.

For all users:
  /usr/share/bash-completion/completions/{program}
  /usr/share/zsh/vendor-completions/_{program}
  /usr/share/fish/vendor_completions.d/{program}.fish

Exit codes: 0 done, 2 usage, 74 the answer can't be written."
    );
    let shell = Arg::new(SHELL)
        .help("The shell they are for")
        .required(true)
        .value_parser(EnumValueParser::<Shell>::new());
    Command::new(COMPLETIONS).about("Print completions for a shell").after_help(examples).arg(shell)
}

/// Hidden: it is for who packs the programs.
fn man_command(program: &str) -> Command {
    let examples = format!(
        "\
Examples:
  {program} man /usr/local/share/man/man1

A page for the program and one for each of its commands. It prints their paths.

Exit codes: 0 done, 2 usage, 73 a page can't be written, 74 the answer can't."
    );
    let dir = Arg::new(DIR)
        .help("Where they go; it is made if it is not there")
        .required(true)
        .value_parser(PathBufValueParser::new());
    Command::new(MAN).about("Write the manual pages").after_help(examples).hide(true).arg(dir)
}

#[cfg(test)]
mod tests {
    use clap::Subcommand;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "kettle", version, after_help = "Examples:\n  kettle boil '1 l'\n.dots stay")]
    struct Args {
        /// How hot
        #[arg(long, visible_alias = "celsius")]
        degrees: Option<u8>,
        /// How kettles speak to each other
        #[arg(long, hide = true)]
        whistle: bool,
        #[command(subcommand)]
        command: Option<Own>,
    }

    #[derive(Debug, Subcommand)]
    enum Own {
        /// Boil water
        Boil { amount: String },
        /// What water is in
        #[command(subcommand)]
        Pots(Pots),
    }

    #[derive(Debug, Subcommand)]
    enum Pots {
        /// Clean one
        Wash,
    }

    fn line(words: &str) -> Result<Line<Args>, clap::Error> {
        parse(words.split(' ').map(OsString::from))
    }

    fn answer(words: &str) -> String {
        match line(words) {
            Ok(Line::Ask(question)) => question.answer().unwrap(),
            other => panic!("{words}: {other:?}"),
        }
    }

    #[test]
    fn a_program_keeps_its_own_command_line() {
        command::<Args>().debug_assert();
        let Ok(Line::Run(args)) = line("kettle --degrees 90") else { panic!("not the program's") };
        assert_eq!((args.degrees, args.command.is_none()), (Some(90), true));
        assert!(matches!(
            line("kettle boil 1l"),
            Ok(Line::Run(Args { command: Some(Own::Boil { .. }), .. }))
        ));
        let refused = line("kettle --degrees 900").unwrap_err();
        assert_eq!((refused.kind(), refused.exit_code()), (ErrorKind::ValueValidation, 2));
        assert_eq!(line("kettle completions tcsh").unwrap_err().kind(), ErrorKind::InvalidValue);
        assert_eq!(line("kettle man").unwrap_err().kind(), ErrorKind::MissingRequiredArgument);
    }

    #[test]
    fn help_explains_the_program_its_commands_and_every_code() {
        assert!(answer("kettle help").contains("Usage: kettle [OPTIONS] [COMMAND]"));
        assert!(answer("kettle help boil").contains("Usage: kettle boil <AMOUNT>"));
        assert!(answer("kettle help pots wash").contains("Usage: kettle pots wash"));
        assert_eq!(answer("kettle pots help wash"), answer("kettle help pots wash"));
        for code in Code::ALL {
            let page = answer(&format!("kettle help {code}"));
            assert!(page.starts_with(&format!("{code}: ")) && page.contains("What to do: "), "{page}");
            assert_eq!(answer(&format!("kettle help {:04}", code.number())), page);
        }
        for words in
            ["kettle help fry", "kettle help NL-E9999", "kettle help boil fry", "kettle help E0401 boil"]
        {
            let refused = line(words).unwrap_err();
            assert!(
                refused.exit_code() == 2 && refused.to_string().contains("NL-E0401"),
                "{words}: {refused}"
            );
        }
    }

    #[test]
    fn what_is_refused_has_its_code_behind_its_words() {
        let said = |words| refusal(&line(words).unwrap_err());
        assert!(
            said("kettle --cold").starts_with("error: unexpected argument '--cold' found (NL-E0001)\n\n")
        );
        assert!(said("kettle boil").contains("<AMOUNT> (NL-E0001)\n\nUsage: "), "{}", said("kettle boil"));
        assert!(said("kettle help fry").contains("NL-E0401 (NL-E0001)\n"), "{}", said("kettle help fry"));
    }

    #[test]
    fn what_is_hidden_is_taken_and_stands_nowhere() {
        assert!(matches!(line("kettle --whistle"), Ok(Line::Run(Args { whistle: true, .. }))));
        let dir = tempfile::tempdir().unwrap();
        answer(&format!("kettle man {}", dir.path().display()));
        let page = std::fs::read_to_string(dir.path().join("kettle.1")).unwrap();
        let shells = ["bash", "zsh", "fish"].map(|shell| answer(&format!("kettle completions {shell}")));
        for text in shells.iter().chain([&page, &answer("kettle help")]) {
            assert!(!text.contains("whistle") && text.contains("degrees"), "{text}");
        }
        assert!(page.contains(env!("CARGO_PKG_VERSION")), "{page}");
    }

    #[test]
    fn completions_name_every_command_and_option() {
        for shell in ["bash", "zsh", "fish"] {
            let text = answer(&format!("kettle completions {shell}"));
            for word in ["boil", "completions", "degrees"] {
                assert!(text.contains(word), "{shell} without {word}: {text}");
            }
        }
    }

    #[test]
    fn each_command_has_a_page_and_examples_keep_their_lines() {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("share/man1");
        let written = answer(&format!("kettle man {}", into.display()));
        let names = [
            "kettle.1",
            "kettle-boil.1",
            "kettle-pots.1",
            "kettle-pots-wash.1",
            "kettle-help.1",
            "kettle-completions.1",
        ];
        assert_eq!(written, names.map(|name| format!("{}\n", into.join(name).display())).concat());
        let page = std::fs::read_to_string(into.join("kettle.1")).unwrap();
        assert!(page.contains("degrees") && page.contains("kettle\\-boil(1)"), "{page}");
        assert!(page.replace("\\-", "-").contains("How hot [also: --celsius]"), "{page}");
        assert!(page.contains(".nf\nExamples:\n  kettle boil"), "{page}");
        assert!(
            page.contains("\n\\&.dots stay\n"),
            "a line that begins with a dot is none of roff's: {page}"
        );
    }

    #[test]
    fn a_page_that_can_t_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let Ok(Line::Ask(question)) = line(&format!("kettle man {}", file.display())) else {
            panic!("no question")
        };
        let why = question.answer().unwrap_err().to_string();
        assert!(why.starts_with(&file.display().to_string()), "{why}");
    }
}

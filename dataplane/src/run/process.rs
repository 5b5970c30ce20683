//! Role: what every program does around its work: find its configuration, prepare its process, say why
//! it ends.

use std::{
    error::Error,
    ffi::OsString,
    fmt,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

use narrowlink_proto::{
    code::Code,
    endpoint::SecretText,
    secrecy::{self, Form},
};
use rustix::{
    process::{DumpableBehavior, Resource, getrlimit, set_dumpable_behavior, setrlimit},
    thread::disable_transparent_huge_pages,
};

use super::program::own_path;

/// What makes no sense on a command line; clap's code.
const USAGE: i32 = 2;
/// Where the configurations of a machine are.
pub const SYSTEM_DIR: &str = "/etc/narrowlink";

/// As many descriptors as the system allows (a session takes two, and the usual limit of 1,024 is
/// for programs that use select), no core dumps: they would hold tokens and keys; and no huge pages, which
/// the allocator would ask for: idle sessions cost 4.0 KiB instead of 5.7 without. Best effort: what can't
/// be had is logged.
pub fn prepare() {
    // Before anybody puts another one into its place; who needs it says why there is none.
    let _ = own_path();
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("the descriptor limit stays as it is: {e}");
    }
    if let Err(e) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::debug!("core dumps stay possible: {e}");
    }
    if let Err(e) = disable_transparent_huge_pages(true) {
        tracing::debug!("memory stays in huge pages: {e}");
    }
}

/// An error and its causes in one line; a cause that the words before it contain already is not
/// said again.
pub fn explain(error: &dyn Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !said.contains(&words) {
            said = format!("{said}: {words}");
        }
        cause = error.source();
    }
    said
}

/// Ends this process if a token or secret stands among its arguments where none is taken: it would be part of a message,
/// as a path that isn't there, and everybody on this machine sees it. `takers` may stand in front of one.
pub fn refuse_secrets(program: &str, takers: &[&str]) {
    let arguments: Vec<_> = arguments().collect();
    if let Some((at, form)) = secrecy::misplaced_argument(&arguments, takers) {
        let (code, next) = match form {
            Form::Ticket => (
                Code::Ticket,
                "`narrowlink login` takes a client's, `narrowlink-agent join` an agent's, and - in its place reads it from \
                 standard input",
            ),
            Form::Token | Form::Secret => (Code::Usage, "give the path of a file"),
        };
        let words = format!("{program}: argument {at} is {form}, which has no place there; {next}");
        refuse_arguments(&(code.mark(&words) + "\n"), USAGE);
    }
}

/// Ends this process with what is wrong with its arguments, of which only options, short words and addresses are shown.
pub fn refuse_arguments(message: &str, code: i32) -> ! {
    let message = secrecy::mask_arguments(&with_tip(message, arguments().skip(1)), arguments().skip(1));
    // Whether anybody reads it changes nothing.
    let _ = io::stderr().write_all(message.as_bytes());
    std::process::exit(code)
}

/// `message` with a tip, if it is that the name of a configuration file stands by itself among `arguments`.
fn with_tip(message: &str, arguments: impl Iterator<Item = String>) -> String {
    let is_file = |word: &String| [".yaml", ".yml"].iter().any(|ending| word.ends_with(ending));
    let is_unknown = |word: String| {
        let starts = ["unexpected argument", "unrecognized subcommand", "the subcommand"];
        starts.iter().any(|start| message.contains(&format!("{start} '{word}'")))
    };
    match message.split_once("\n\nUsage:") {
        Some((said, rest)) if arguments.filter(is_file).any(is_unknown) => {
            format!(
                "{said}\n\n  tip: the name of a configuration file stands behind -c: -c FILE\n\nUsage:{rest}"
            )
        }
        _ => message.to_owned(),
    }
}

fn arguments() -> impl Iterator<Item = String> {
    std::env::args_os().map(|argument| argument.to_string_lossy().into_owned())
}

/// What an argument says, or standard input where it is `-`, of which no more than `bytes_max` are read.
///
/// # Errors
/// Standard input can't be read.
pub fn argument_or_input(argument: &str, bytes_max: u64) -> io::Result<SecretText> {
    if argument != "-" {
        return Ok(SecretText::new(argument.to_owned()));
    }
    let mut text = String::new();
    io::stdin().lock().take(bytes_max).read_to_string(&mut text)?;
    Ok(SecretText::new(text))
}

/// No configuration in any of the usual places. The user's to mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoConfig {
    file_name: String,
    dirs: Vec<PathBuf>,
}

impl Error for NoConfig {}

impl fmt::Display for NoConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dirs: Vec<_> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
        let made_by = match &*self.file_name {
            "client.yaml" => "narrowlink login TICKET",
            "agent.yaml" => "narrowlink-agent join TICKET",
            _ => "narrowlink-gateway init",
        };
        write!(f, "no {} in {}; {made_by} makes one, or name it with -c", self.file_name, dirs.join(", "))
    }
}

/// The first `file_name` in `./`, `$XDG_CONFIG_HOME/narrowlink/`, `~/.narrowlink/` and
/// `/etc/narrowlink/`; `env` reads the environment.
///
/// # Errors
/// There is none.
pub fn find_config(file_name: &str, env: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, NoConfig> {
    let dirs = config_dirs(env);
    let found = dirs.iter().map(|dir| dir.join(file_name)).find(|path| path.exists());
    found.ok_or_else(|| NoConfig { file_name: file_name.to_owned(), dirs })
}

/// Where configurations of this user's own go: root's are the machine's. `None` without a home.
pub fn own_config_dir(env: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(Path::new(SYSTEM_DIR).to_owned());
    }
    config_home(&env).map(|dir| dir.join("narrowlink"))
}

/// The mode of a directory of configurations that is made: root's is for its services, which are other users, to look into.
/// Secrets are files of a mode of their own.
pub fn dir_mode() -> u32 {
    if rustix::process::geteuid().is_root() { 0o755 } else { 0o700 }
}

fn config_home(env: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))
}

fn config_dirs(env: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let set = |name| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = set("HOME");
    let dirs = [
        Some(PathBuf::from(".")),
        config_home(&env).map(|dir| dir.join("narrowlink")),
        home.map(|dir| dir.join(".narrowlink")),
        Some(Path::new(SYSTEM_DIR).to_owned()),
    ];
    dirs.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_looked_for_in_the_documented_order() {
        let env = |name: &str| match name {
            "HOME" => Some(OsString::from("/h")),
            "XDG_CONFIG_HOME" => Some(OsString::new()),
            _ => None,
        };
        let dirs = config_dirs(env);
        let right = [".", "/h/.config/narrowlink", "/h/.narrowlink", "/etc/narrowlink"].map(PathBuf::from);
        assert_eq!(dirs, right);
        let absent = find_config("no-such.yaml", env).unwrap_err().to_string();
        assert_eq!(
            absent,
            "no no-such.yaml in ., /h/.config/narrowlink, /h/.narrowlink, /etc/narrowlink; narrowlink-gateway init makes one, or name it with -c"
        );
        let dir = std::env::temp_dir().join(format!("narrowlink-find-{}", std::process::id()));
        std::fs::create_dir_all(dir.join(".narrowlink")).unwrap();
        std::fs::write(dir.join(".narrowlink/here.yaml"), "").unwrap();
        let home = |name: &str| (name == "HOME").then(|| dir.clone().into_os_string());
        assert_eq!(find_config("here.yaml", home), Ok(dir.join(".narrowlink/here.yaml")));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_configuration_file_by_itself_is_told_of_its_option() {
        let tip = |what: &str, line: &str| {
            let message = format!("error: {what} found\n\nUsage: x\n");
            with_tip(&message, line.split(' ').map(str::to_owned))
        };
        assert_eq!(
            tip("unexpected argument 'agent.yaml'", "--check agent.yaml"),
            "error: unexpected argument 'agent.yaml' found\n\n  tip: the name of a configuration file stands behind -c: \
             -c FILE\n\nUsage: x\n"
        );
        assert!(tip("unrecognized subcommand 'client.yml'", "client.yml list").contains("tip: "));
        assert!(tip("the subcommand 'g.yaml' cannot be used", "--check g.yaml").contains("tip: "));
        for (what, line) in [
            ("unexpected argument '--chek'", "-c agent.yaml --chek"),
            ("unexpected argument 'other'", "other"),
            ("invalid value 'agent.yaml'", "agent.yaml"),
        ] {
            assert!(!tip(what, line).contains("tip: "), "{what} {line}");
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(&'static str, #[source] Option<Box<Said>>);

    #[test]
    fn a_cause_is_said_once() {
        let inner = || Some(Box::new(Said("no such file", None)));
        assert_eq!(explain(&Said("a.yaml", inner())), "a.yaml: no such file");
        assert_eq!(explain(&Said("a.yaml: no such file", inner())), "a.yaml: no such file");
    }
}

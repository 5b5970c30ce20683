//! Role: manual pages: one for a program, one for each of its commands.
//! Invariants: examples keep their lines and spaces, as --help shows them.
//! See: man-pages(7).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Arg, Command, builder::Resettable};
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};

/// A page that can't be written. The world's fault.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}", path = path.display())]
pub struct PageError {
    path: PathBuf,
    why: io::Error,
}

impl PageError {
    /// The exit code: sysexits.h `EX_CANTCREAT`.
    pub const EXIT: u8 = 73;
}

/// Writes the pages of `program` and of its commands into `dir`; their paths, a line each.
///
/// # Errors
/// The file system's.
pub(crate) fn write_all(program: Command, dir: &Path) -> Result<String, PageError> {
    let write =
        |path: &Path, done: io::Result<()>| done.map_err(|why| PageError { path: path.to_owned(), why });
    write(dir, fs::create_dir_all(dir))?;
    let mut said = String::new();
    for (name, page) in pages(program) {
        let path = dir.join(name);
        write(&path, fs::write(&path, page))?;
        said.push_str(&format!("{}\n", path.display()));
    }
    Ok(said)
}

/// File names, and what stands there.
fn pages(mut program: Command) -> Vec<(String, Vec<u8>)> {
    program.build();
    let source = format!("{} {}", program.get_name(), program.get_version().unwrap_or_default());
    let mut pages = Vec::new();
    add(&program, source.trim_end(), &mut pages);
    pages
}

/// An option with its other spellings, which clap's pages leave out.
fn name_aliases(option: Arg) -> Arg {
    let aliases = option.get_visible_aliases().unwrap_or_default();
    let aliases: Vec<_> = aliases.iter().map(|name| format!("--{name}")).collect();
    if aliases.is_empty() {
        return option;
    }
    let help = option.get_long_help().or_else(|| option.get_help()).map(ToString::to_string);
    let help = format!("{} [also: {}]", help.unwrap_or_default(), aliases.join(", "));
    option.help(help.clone()).long_help(help)
}

fn add(command: &Command, source: &str, pages: &mut Vec<(String, Vec<u8>)>) {
    let notes = command.get_after_long_help().or_else(|| command.get_after_help()).map(ToString::to_string);
    // Clap's would fill the lines of the examples.
    let bare = command.clone().after_help(Resettable::Reset).after_long_help(Resettable::Reset);
    let man = Man::new(bare.mut_args(name_aliases)).source(source).manual("Narrowlink");
    let mut page = Vec::new();
    // In memory nothing can fail.
    let _ = man.render(&mut page);
    if let Some(notes) = notes {
        let mut roff = Roff::new();
        roff.control("SH", ["EXAMPLES AND NOTES"]).control("nf", []);
        for line in notes.lines() {
            roff.text([roman(line)]);
        }
        page.extend_from_slice(roff.control("fi", []).to_roff().as_bytes());
    }
    pages.push((man.get_filename(), page));
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        add(sub, source, pages);
    }
}

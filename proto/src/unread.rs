//! Role: what to do about a file that the system refuses to read, or a directory that it refuses to write into.
//! Invariants: nothing of the path or of what stands in the file is said.

use std::io;

/// The next step, as words that stand behind the system's; none where those say it.
pub fn hint(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::IsADirectory => "; it is a directory: name a file in it",
        io::ErrorKind::NotADirectory => "; a part of its path is a file: name a directory",
        io::ErrorKind::PermissionDenied => {
            "; give it to the user who runs this program (chown), or let them (chmod)"
        }
        io::ErrorKind::InvalidData => "; save it as UTF-8",
        _ => "",
    }
}

/// The same for one that a file names, as words about `base`, from where paths lead that don't begin with /.
pub fn hint_named(e: &io::Error, base: &str) -> String {
    match e.kind() {
        io::ErrorKind::NotFound => format!("; a path that does not begin with / is relative to {base}"),
        _ => hint(e).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_followed_by_what_to_do() {
        let hint = |kind: io::ErrorKind| hint_named(&kind.into(), "home");
        assert_eq!(hint(io::ErrorKind::NotFound), "; a path that does not begin with / is relative to home");
        assert_eq!(hint(io::ErrorKind::IsADirectory), "; it is a directory: name a file in it");
        assert_eq!(hint(io::ErrorKind::Interrupted), "");
    }
}

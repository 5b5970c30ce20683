//! An answer of HTTP, as it is compared with others.

/// Without the time at which it was given.
pub(crate) fn undated(answer: &str) -> String {
    answer.split_inclusive("\r\n").filter(|line| !line.starts_with("Date: ")).collect()
}

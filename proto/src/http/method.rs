//! Role: what a method promises, as far as it decides about a second try.
//! Invariants: a method that is not known promises nothing.
//! See: RFC 9110 section 9.2.

/// Whether a request by this method changes nothing at its origin (RFC 9110 section 9.2.1). Methods are written in
/// capitals; others are unknown.
pub fn is_safe(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE")
}

/// Whether two such requests do what one does (RFC 9110 section 9.2.2).
pub fn is_idempotent(method: &str) -> bool {
    is_safe(method) || matches!(method, "PUT" | "DELETE")
}

/// Whether a request by this method is expected to say that its body is empty (RFC 9110 section 8.6).
pub(crate) fn names_its_length(method: &str) -> bool {
    matches!(method, "POST" | "PUT" | "PATCH")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_safe_is_idempotent_and_what_is_unknown_is_neither() {
        for (method, safe, idempotent) in [
            ("GET", true, true),
            ("HEAD", true, true),
            ("OPTIONS", true, true),
            ("PUT", false, true),
            ("DELETE", false, true),
            ("POST", false, false),
            ("PATCH", false, false),
            ("get", false, false),
            ("PROPFIND", false, false),
        ] {
            assert_eq!((is_safe(method), is_idempotent(method)), (safe, idempotent), "{method}");
        }
    }
}

//! Role: a peer's words as they may be shown on a terminal, in a log or in a table.
//! Invariants: what comes out is one line; nothing in it moves the cursor, changes a colour, turns the direction of the
//! text around it, or hides. Every text of a peer that people read passes here.
//! See: Unicode's `Default_Ignorable_Code_Point`; UAX #9 for what turns text; CVE-2021-42574 for what that is good for.

use serde::{Deserialize, Deserializer};

/// A text without what can't be printed, and no longer than so many characters.
pub fn printable(text: &str, chars_max: usize) -> String {
    text.chars().filter(|&c| is_printable(c)).take(chars_max).collect()
}

/// A text with what can't be printed escaped, for whoever looks at it closely.
pub fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        // Quotes do no harm, and `escape_debug` alone would take the vowels out of many scripts.
        if matches!(c, '"' | '\'' | '\\') || c.is_alphanumeric() {
            shown.push(c);
        } else {
            shown.extend(c.escape_debug());
        }
        shown
    })
}

/// Whether a character shows, and shows in its place.
pub(crate) fn is_printable(c: char) -> bool {
    !c.is_control() && !is_invisible(c)
}

/// Characters that turn, break or hide the text around them. Variation selectors (U+FE00 to U+FE0F) are none: they
/// choose between two pictures of the character before.
const fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// What a message carries for people, as it is decoded: so no reader of the message can forget.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    String::deserialize(d).map(|text| printable(&text, usize::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_turns_hides_or_paints_is_left_out_and_writing_stays() {
        for (text, shown) in [
            ("no\u{1b}[31m\r\nroot#\u{9b}2J\0", "no[31mroot#2J"),
            ("user\u{202e}gpj.exe\u{202c}\u{2066}\u{2069}\u{61c}\u{200f}", "usergpj.exe"),
            ("two\u{2028}lines\u{2029}\u{85}", "twolines"),
            ("a\u{200b}\u{2060}\u{feff}\u{ad}\u{e0041}\u{3164}b", "ab"),
            (
                "b\u{fc}ro \u{421}\u{435}\u{440}\u{432}\u{435}\u{440} \u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{2764}\u{fe0f}",
                "b\u{fc}ro \u{421}\u{435}\u{440}\u{432}\u{435}\u{440} \u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{2764}\u{fe0f}",
            ),
        ] {
            assert_eq!(printable(text, 99), shown);
        }
        assert_eq!(printable("\u{202e}abc\u{202e}def", 4), "abcd", "what is left out does not count");
    }

    #[test]
    fn what_is_escaped_steers_no_terminal_and_writing_stays() {
        assert_eq!(escaped("a\u{1b}[2J\u{202e}\n\"'\\ äß家कि"), "a\\u{1b}[2J\\u{202e}\\n\"'\\ äß家कि");
    }

    proptest! {
        #[test]
        fn what_was_printable_stays_as_it_is(text: String) {
            let once = printable(&text, usize::MAX);
            prop_assert!(once.chars().all(is_printable));
            prop_assert_eq!(printable(&once, usize::MAX), once);
        }
    }
}

//! Role: what time it is here, for who reads an answer: the header `Date`, as a web server has it.
//! Invariants: it is spelt once a second on each worker, whoever asks · it stands in no head that its receiver vouches for: an
//! older one takes each foreign header there for a proxy's.
//! See: RFC 9110, 6.6.1; `proto::upgrade::Way`; `peer/doctor/clock`, which reads it.

use std::{
    cell::RefCell,
    time::{SystemTime, UNIX_EPOCH},
};

use narrowlink_proto::upgrade::http_date;

thread_local! {
    /// The second, and its line.
    static LINE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

/// The same answer, with the date behind its first line.
pub(super) fn dated(answer: Vec<u8>) -> Vec<u8> {
    // A clock from before 1970 says nothing.
    let Ok(now) = SystemTime::now().duration_since(UNIX_EPOCH) else { return answer };
    dated_at(answer, now.as_secs())
}

fn dated_at(mut answer: Vec<u8>, now: u64) -> Vec<u8> {
    const LINE_END: &[u8] = b"\r\n";
    let Some(first) = answer.windows(LINE_END.len()).position(|pair| pair == LINE_END) else { return answer };
    let behind = first + LINE_END.len();
    LINE.with_borrow_mut(|(second, line)| {
        if *second != now {
            (*second, *line) = (now, format!("Date: {}\r\n", http_date(now)));
        }
        answer.splice(behind..behind, line.bytes());
    });
    answer
}

#[cfg(test)]
mod tests {
    use narrowlink_proto::upgrade::{Trace, encode_page};

    use super::*;

    #[test]
    fn an_answer_says_when_it_was_given() {
        for now in [784_111_777, 784_111_777, 784_111_778] {
            assert_eq!(Trace::of(&dated_at(encode_page(404, "GET"), now)).date, Some(now));
        }
        let page = String::from_utf8(dated_at(encode_page(404, "GET"), 784_111_777)).unwrap();
        assert!(
            page.starts_with("HTTP/1.1 404 Not Found\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
            "{page}"
        );
        assert_eq!(dated_at(b"no head".to_vec(), 1), b"no head");
    }
}

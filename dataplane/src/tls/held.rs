//! Role: the memory that TLS needs in passing: one scratch per worker for what was just received,
//! and a place for the one record that a connection can't finish yet.
//! Invariants: nothing is lent across an await · a connection with nothing on hold has no memory
//! here · in steady state nothing is allocated: what is given back serves the next.

use std::{
    cell::{Cell, RefCell},
    mem,
};

use super::record::RECORD_BYTES_MAX;
use crate::net::{buffer::BULK_BYTES, pages::Pages, stock::Stock};

/// What is received at once: for a bulk buffer, or the longest record.
pub(super) const SCRATCH_BYTES: usize = BULK_BYTES;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static PLACES: RefCell<Stock<Pages>> = const { RefCell::new(Stock::new(4, 64)) };
}

/// Lends the worker's scratch.
pub(super) fn with_scratch<R>(user: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut scratch = SCRATCH.take();
    scratch.resize(SCRATCH_BYTES, 0);
    let result = user(&mut scratch);
    SCRATCH.set(scratch);
    result
}

/// Bytes on hold: a record that is not whole yet, or the rest of one that was opened.
#[derive(Default)]
pub(super) struct Held {
    /// Empty while nothing is on hold.
    place: Pages,
    from: usize,
    to: usize,
}

impl Held {
    /// Whether nothing is on hold.
    pub(super) fn is_empty(&self) -> bool {
        self.from == self.to
    }

    /// What is on hold.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.place[self.from..self.to]
    }

    /// Holds these instead.
    pub(super) fn hold(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.give_back();
        } else {
            self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
            self.put(bytes.len());
        }
    }

    /// Room for at least so many bytes; what is written there is held after [`Held::put`].
    pub(super) fn room(&mut self, bytes: usize) -> &mut [u8] {
        (self.from, self.to) = (0, 0);
        if self.place.len() < bytes {
            self.give_back();
            // More than a record is held once at most: what came behind a handshake.
            self.place = match bytes {
                ..=RECORD_BYTES_MAX => PLACES.with_borrow_mut(|places| places.take(new_place)),
                more => Pages::map(more),
            };
        }
        &mut self.place
    }

    /// Holds the first so many bytes of the room.
    pub(super) fn put(&mut self, bytes: usize) {
        (self.from, self.to) = (0, bytes);
        if bytes == 0 {
            self.give_back();
        }
    }

    /// Takes bytes off the front.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.from += bytes;
        if self.is_empty() {
            self.give_back();
        }
    }

    /// Hands out as much as fits.
    pub(super) fn take(&mut self, buf: &mut [u8]) -> usize {
        let bytes = buf.len().min(self.to - self.from);
        buf[..bytes].copy_from_slice(&self.bytes()[..bytes]);
        self.consume(bytes);
        bytes
    }

    fn give_back(&mut self) {
        (self.from, self.to) = (0, 0);
        let place = mem::take(&mut self.place);
        if place.len() == RECORD_BYTES_MAX {
            Stock::give(&PLACES, place);
        }
    }
}

fn new_place() -> Pages {
    Pages::map(RECORD_BYTES_MAX)
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_comes_out_in_parts_and_its_place_serves_the_next() {
        let mut held = Held::default();
        held.hold(b"hello");
        let place = held.bytes().as_ptr();
        let mut buf = [0; 3];
        assert_eq!((held.take(&mut buf), &buf), (3, b"hel"));
        assert_eq!((held.take(&mut buf), &buf[..2]), (2, &b"lo"[..]));
        assert!(held.is_empty() && held.place.is_empty());
        let mut next = Held::default();
        next.hold(b"again");
        assert_eq!(next.bytes().as_ptr(), place);
        next.hold(b"");
        assert!(next.place.is_empty());
    }

    #[test]
    fn more_than_a_record_is_held_too_and_its_place_is_not_kept() {
        let mut held = Held::default();
        held.hold(&vec![7; RECORD_BYTES_MAX + 1]);
        assert_eq!(held.bytes().len(), RECORD_BYTES_MAX + 1);
        held.consume(RECORD_BYTES_MAX + 1);
        assert!(held.place.is_empty());
        assert_eq!(PLACES.with_borrow(Stock::lent), 0);
    }
}

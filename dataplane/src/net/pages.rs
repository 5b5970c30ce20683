//! Role: memory straight from the kernel, for what is needed in passing.
//! Invariants: it is the system's again the moment it is dropped, whatever lies beside it: an allocator keeps back a
//! page in which anything is left (25 MB after 800 readers that had stalled).
//! See: mmap(2).
#![expect(unsafe_code, reason = "maps memory")]

use std::{
    alloc::{Layout, handle_alloc_error},
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
    slice,
};

/// So many bytes, of whole pages.
pub(crate) struct Pages {
    at: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory as a box does, and the kernel takes it back on any thread.
unsafe impl Send for Pages {}

impl Pages {
    /// Zeroed; those that nobody touches take no memory.
    pub(crate) fn map(len: usize) -> Self {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new pages at a place of the kernel's choice; nothing that is there is touched.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, access, kind, -1, 0) };
        match NonNull::new(at.cast()) {
            Some(at) if at.as_ptr() != libc::MAP_FAILED.cast() => Self { at, len },
            // As the allocator has it.
            _ => handle_alloc_error(Layout::array::<u8>(len).unwrap_or(Layout::new::<u8>())),
        }
    }

    /// None at all.
    pub(crate) const fn none() -> Self {
        Self { at: NonNull::dangling(), len: 0 }
    }
}

impl Default for Pages {
    fn default() -> Self {
        Self::none()
    }
}

impl Deref for Pages {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `map` made `len` bytes at `at`, zeroed, which are this value's alone until it is dropped.
        unsafe { slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; and `self` is borrowed for as long.
        unsafe { slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: `map` mapped these pages, and nothing borrows them any more.
            let unmapped = unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
            debug_assert_eq!(unmapped, 0, "what was mapped can be unmapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zeroed_take_any_length_and_may_go_to_another_thread() {
        let mut pages = Pages::map(16 * 1024 + 7);
        assert_eq!(pages.len(), 16 * 1024 + 7);
        assert!(pages.iter().all(|byte| *byte == 0));
        pages.fill(7);
        std::thread::spawn(move || assert!(pages.iter().all(|byte| *byte == 7))).join().unwrap();
        assert!(Pages::none().is_empty());
    }
}

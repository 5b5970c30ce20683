//! Role: what makes no sense in a value that has the right form, and on which way down from the root it stands.
//! Invariants: values need not carry their places around: the document knows them.

use std::borrow::Cow;

use narrowlink_proto::yaml::{Document, Fault, Step};

/// What is wrong where. The words don't repeat what was written.
#[derive(Debug)]
pub(super) struct Complaint {
    path: Vec<Step>,
    what: Cow<'static, str>,
}

impl Complaint {
    pub(super) fn new(path: &[Step], what: impl Into<Cow<'static, str>>) -> Self {
        Self { path: path.to_vec(), what: what.into() }
    }

    /// The same complaint, seen from further up.
    pub(super) fn within(mut self, parent: &[Step]) -> Self {
        self.path.splice(0..0, parent.iter().cloned());
        self
    }

    /// The same as an error with its line and column.
    pub(super) fn locate(self, document: &Document) -> Fault {
        document.fault(&self.path, self.what)
    }
}

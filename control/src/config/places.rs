//! Role: where in its file stands what only the system can refuse, or only time: addresses, paths, certificates.
//! Invariants: nothing of what was written is kept, only where it stands.

use std::path::Path;

use narrowlink_proto::yaml::{Document, Step};

/// The places of one config, as words that stand in front of an error. Of one that was read from no file they are empty.
#[derive(Debug, Clone, Default)]
pub struct Places {
    listen_addrs: Vec<String>,
    tls_configs: Vec<String>,
    audit: String,
    state_dir: String,
}

impl Places {
    pub(super) fn of(path: &Path, document: &Document, services: usize) -> Self {
        let at = |steps: &[Step]| {
            let place = document.place(steps);
            format!("{}: line {} column {}: ", path.display(), place.line, place.column)
        };
        let of_each = |key: &'static str| {
            let place = |index: usize| at(&["services".into(), index.into(), key.into()]);
            (0..services).map(place).collect()
        };
        Self {
            listen_addrs: of_each("listen_addr"),
            tls_configs: of_each("tls_config"),
            audit: at(&["audit".into()]),
            state_dir: at(&["state_dir".into()]),
        }
    }

    /// Where the certificate of this service is named.
    pub(super) fn tls_config(&self, service: usize) -> &str {
        self.tls_configs.get(service).map_or("", String::as_str)
    }

    /// Where the address of this service stands.
    pub(crate) fn listen_addr(&self, service: usize) -> &str {
        self.listen_addrs.get(service).map_or("", String::as_str)
    }

    /// Where the audit log is named.
    pub(crate) fn audit(&self) -> &str {
        &self.audit
    }

    /// Where the state directory is named.
    pub(crate) fn state_dir(&self) -> &str {
        &self.state_dir
    }
}

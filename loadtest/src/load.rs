//! Load: what goes through a forwarder, what it costs, and against whom.
//!
//! The process that a person starts sends nothing. It enters a [`network`] of its own, starts *subjects* ([`subject`]: our gateway, HAProxy,
//! nginx, rathole) on one core and *load processes* ([`crew`]) on another, tells those what to do ([`scenario`], [`plan`]), reads
//! what the subjects have used ([`sample`]) at both edges of a window ([`round`]), makes [`figures`] of it,
//! and puts those of all rounds together ([`report`]). A load process is both ends of every connection ([`peer`]) and moves
//! bytes ([`traffic`]), told by lines on its standard input ([`hand`]).

pub mod compare;
pub mod conditions;
pub mod crew;
pub mod figures;
pub mod gauge;
pub mod hand;
pub mod network;
pub mod peer;
pub mod plan;
pub mod report;
pub mod round;
pub mod sample;
pub mod scenario;
pub mod spread;
pub mod subject;
pub mod traffic;
pub mod urgency;
pub mod verdict;
pub mod word;

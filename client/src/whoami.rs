//! Role: `narrowlink whoami`: who one is to each gateway, and how that is said.

mod identity;
mod words;

pub use self::{
    identity::{Identity, exit, json},
    words::text,
};

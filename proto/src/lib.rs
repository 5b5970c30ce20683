//! What two Narrowlink programs must agree on, and nothing else.
//!
//! Pure: no socket, clock, task, thread or `unsafe`; the time and random bytes are parameters.
//!
//! # Vocabulary
//!
//! | word | means |
//! |---|---|
//! | *gateway* | the public host: authenticates, decides, joins streams |
//! | *agent* | the program behind NAT that dials targets |
//! | *client* | the program on the user's laptop that opens sessions |
//! | *visitor* | somebody without a token who meets a published host |
//! | *edge* | the part of a gateway that serves published hosts by HTTP |
//! | *origin* | the HTTP server behind a published host; an agent reaches it |
//! | *target* | what a session ends at: a host and port beyond the agent |
//! | *link* | a control connection: presence, list, "I need lanes" |
//! | *stream* | a client's connection that carries payload |
//! | *lane* | an agent's connection that carries payload, parked at the gateway until somebody needs it |
//! | *session* | a stream and a lane joined: one client, one target |
//! | *owner* | the client whose session it is |
//! | *principal* | who somebody is, as their token says: user, name, rights |
//! | *stranger* | a connection that has shown no good token yet |
//! | *seat* | a connection's place in its worker's table |
//! | *door* | what the data plane asks of those who decide; the *warden* answers |
//! | *turn* | as much work as a connection may cause before others have theirs |
//! | *share* | those who wait for turns as one: a user, or all strangers |
//! | *ticket* | all that an agent or a client needs to reach its gateway, in one line |
//! | *keeper* | the process of a service in front of its gateway, which ends at once when it is told to |
//! | *successor* | the gateway that goes on in another one's place, with its listening sockets |
//! | *snapshot* | an immutable view that workers decide from |
//! | *verdict* | the answer to "may it?" |
//! | *early* | bytes read before anyone knew whose they are |
#![forbid(unsafe_code)]

pub mod answer;
pub mod code;
pub mod ended;
pub mod endpoint;
pub mod feature;
pub mod finding;
pub mod frame;
pub mod hex;
pub mod http;
pub mod id;
pub mod limits;
pub mod measure;
pub mod message;
pub mod pin;
pub mod policy;
pub mod printable;
pub mod secrecy;
pub mod sniff;
pub mod target;
pub mod ticket;
pub mod token;
pub mod unread;
pub mod upgrade;
pub mod when;
pub mod yaml;

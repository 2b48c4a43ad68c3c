//! The supervised actors of a node, its membership in the cluster, its links to the other nodes, and what they say to each other.
//!
//! [`node::start`] starts them all; [`args::NodeArgs`] is what they are told. What decides is pure and apart: [`router::policy`],
//! [`router::place`],
//! [`router::home`], [`streams::core`], [`evictor::core`], [`evictor::plan`], [`model::sequence`].

pub mod address;
pub mod args;
pub mod catalogue;
pub mod device;
pub mod dispatch;
pub mod evictor;
pub mod gateway;
pub mod http_front;
pub mod inbound;
pub mod inference;
pub mod inspect;
pub mod link;
pub mod membership;
pub mod messages;
pub mod metrics;
pub mod model;
pub mod node;
pub mod nodes;
pub mod peers;
pub mod prefix;
pub mod router;
pub mod secret;
pub mod shelf;
pub mod streams;
pub mod trace;
pub mod wire;

//! The harness of the suites that run real processes: it starts nodes, asks them over HTTP, hurts them, and shows their logs when a test fails.
//!
//! Every wait has a deadline and looks at a predicate; no test asserts how long something took. Measured times are printed.

pub mod binary;
pub mod client;
pub mod lab;
pub mod memory;
pub mod placement;
pub mod ports;
pub mod process;
pub mod sim;
pub mod sse;
pub mod view;
pub mod wait;

pub use client::{Client, Reply};
pub use memory::Memory;
pub use process::{Addresses, Home, Node, NodeBuilder, Signal};
pub use sse::{ChatAnswer, EventStream, SseEvent};
pub use view::ActorView;
pub use wait::{DEADLINE, eventually, measured};

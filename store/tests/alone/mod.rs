//! A node that speaks to nobody.

use std::io;

use futures::future::BoxFuture;
use plexus_store::{Connect, Io};
use plexus_types::NodeName;

/// There are no other nodes.
pub(crate) struct Alone(NodeName);

impl Default for Alone {
    fn default() -> Self {
        Self("alone".parse().unwrap())
    }
}

impl Connect for Alone {
    fn me(&self) -> &NodeName {
        &self.0
    }

    fn connect<'a>(&'a self, _: &'a NodeName) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(async { Err(io::Error::other("no other nodes")) })
    }
}

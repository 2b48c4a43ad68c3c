//! A model's files: found on this node, downloaded from a hub, or taken from the other nodes of the cluster.
//!
//! [`Store::locate`] says whether a model is here, [`Store::fetch`] gets it here, [`Store::serve`] gives it to another node, and [`found()`] lists
//! what lies in a folder. Nothing incomplete is ever seen as a model: bytes are written beside, checked against the hash that they were
//! announced with, made durable, and only then given their name.
//!
//! # From a hub
//!
//! A `hf:` source comes from the Hugging Face hub or from a mirror that speaks its language, into the cache that Python's `huggingface_hub`
//! uses, in the same layout and under the same lock files: either finds what the other has fetched.
//!
//! The crate `hf-hub` was weighed for this. Version 1.0 adds over a hundred packages to the build. Version 0.4.3 needs a second `reqwest` and a
//! terminal's progress bar, reads the environment by itself, gives up on a locked file after five seconds, and checks neither hash nor free
//! space, so a damaged file would be taken for a model. What is used of it are its conventions.
//!
//! # From other nodes
//!
//! A model is described by its [`Manifest`]: names, sizes, and the BLAKE3 hash of each 8 MiB of each file. Chunks come from several nodes at
//! once, each is checked before it counts, and a node that sends a wrong one is not asked again. The connections are those of the caller
//! ([`Connect`]): this crate knows nothing of certificates.

mod cache;
mod config;
mod digest;
mod disk;
mod error;
mod found;
mod hub;
mod local;
mod manifest;
mod names;
mod peers;
mod progress;
mod select;
mod serve;
mod store;

pub use config::{DEFAULT_ENDPOINT, StoreConfig, Token};
pub use error::FetchError;
pub use found::found;
pub use manifest::{CHUNK_LEN, ChunkHash, Manifest, ManifestFile};
pub use progress::{Fetch, Origin, Progress};
pub use store::{Connect, Io, Located, Store};

//! A model's files: found on this node, downloaded from a hub, or taken from the other nodes of the cluster.
//!
//! [`Store::locate`] says whether a model is here, [`Store::fetch`] gets it here, [`Store::serve`] gives it to another node, and [`found()`] lists
//! what lies in folders. Nothing incomplete is ever seen as a model: bytes are written beside, checked against the hash that they were
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
//! ([`Connect`]): this crate knows nothing of certificates. If all nodes fail, what they gave is kept, and the hub is asked for the rest. Nodes
//! that want what none has agree which of them asks the hub, and the others wait for it.
//!
//! # What is checked against what
//!
//! | bytes | before they become a model |
//! |---|---|
//! | of the hub | the size, and the hash that the hub's list names: SHA-256 of large files, git's SHA-1 of small ones. A mirror that names neither: the size alone |
//! | of other nodes | the manifest's names (none can lead out of the folder), sizes and counts; each chunk against its BLAKE3; then each whole file against the hub's hash of it, if the manifest names one |
//! | of other nodes, and the rest from the hub | as those of the hub, over the whole file; not taken at all where a mirror names no hash |
//! | found in a cache or a folder | names and links only: the file is that of whoever put it there. At a download, a blob of the right size is not read again |
//!
//! A manifest is the word of the node that sent it, which is of this cluster: the caller has authenticated it. It is believed for which files a
//! model has, and for which commit of a repository they are of, as the hub is not asked. The hub's hash in it is what that node's cache has the
//! file under, or what it was told itself. It does not protect from a member that lies, but from one whose disk does: a file that was damaged
//! before its chunks were hashed would otherwise go through the whole cluster. A file without such a hash (at a path, or of a mirror that names
//! none) is believed to be what its first node had. What was received is never trusted after an interruption: chunks are hashed again.

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
mod sample;
mod select;
mod serve;
mod stamp;
mod store;
mod tidy;

pub use config::{DEFAULT_ENDPOINT, StoreConfig, Token};
pub use disk::write_whole;
pub use error::FetchError;
pub use found::{Found, Names, NamesFile, Unread, found};
pub use hub::Size;
pub use manifest::{CHUNK_LEN, ChunkHash, Manifest, ManifestFile};
pub use progress::{Fetch, Origin, Progress, UnderWay};
pub use stamp::Stamp;
pub use store::{Connect, Io, Located, Store};
pub use tidy::KEPT_FOR;

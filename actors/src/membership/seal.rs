//! Gossip under seal: a transport for chitchat that encrypts and authenticates every datagram with the cluster's key.
//!
//! ```text
//! version u8 | key id u8 | epoch u64 | counter u64 | chance u64 | ciphertext and tag        (XChaCha20-Poly1305)
//!                          `-------- nonce, 24 bytes --------'    length u8 | the cluster's name | gossip
//! ```
//! Nothing is parsed before it is authenticated, and whoever lacks the key is not answered: it learns nothing and reaches nothing. Each opening
//! of a socket draws an epoch and counts its datagrams, so that a datagram is taken once. What this does not stop: datagrams recorded before a
//! node started can be played to it afterwards; gossip's own versions and heartbeats make most of them stale, and they carry hints only.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use chitchat::transport::{Socket, Transport};
use chitchat::{ChitchatMessage, Deserializable, Serializable};
use tracing::{debug, warn};

use crate::secret::ClusterSecret;

const VERSION: u8 = 2;
const HEADER: usize = 26;
const TAG: usize = 16;
/// What UDP over IPv4 can carry.
const DATAGRAM_MAX: usize = 65_507;
/// Senders whose counters are remembered; beyond it the one not heard for longest is forgotten. Only holders of the key get in here.
const EPOCHS_MAX: usize = 1024;
/// How often a datagram under another seal is worth a line of the log.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(60);

/// Datagrams, by what became of them.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    /// Sent.
    pub(super) sent: AtomicU64,
    /// Taken.
    pub(super) taken: AtomicU64,
    /// Not sealed with our key, of a cluster of another name, or damaged.
    pub(super) rejected: AtomicU64,
    /// Taken before, or too old to tell.
    pub(super) replayed: AtomicU64,
    /// Sealed with our key, and yet not gossip.
    pub(super) malformed: AtomicU64,
}

/// Opens sealed sockets on one UDP socket that was bound before.
pub(super) struct SealedTransport {
    socket: Arc<UdpSocket>,
    cipher: XChaCha20Poly1305,
    key_id: u8,
    cluster: String,
    datagrams: Arc<Datagrams>,
}

impl SealedTransport {
    pub(super) fn new(socket: Arc<UdpSocket>, secret: &ClusterSecret, cluster: &str, datagrams: Arc<Datagrams>) -> Self {
        let cipher = XChaCha20Poly1305::new(&secret.gossip_key().into());
        Self { socket, cipher, key_id: secret.gossip_key_id(), cluster: cluster.to_owned(), datagrams }
    }
}

#[async_trait]
impl Transport for SealedTransport {
    async fn open(&self, _bound_before: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let socket = self.socket.try_clone()?;
        socket.set_nonblocking(true)?;
        let seal = Seal::new(self.cipher.clone(), self.key_id, &self.cluster);
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        Ok(Box::new(SealedSocket {
            socket,
            seal,
            complained: None,
            datagrams: Arc::clone(&self.datagrams),
            buffer: vec![0; DATAGRAM_MAX].into(),
        }))
    }
}

struct SealedSocket {
    socket: tokio::net::UdpSocket,
    seal: Seal,
    /// When it was last said that somebody has another secret, or another name for the cluster.
    complained: Option<Instant>,
    datagrams: Arc<Datagrams>,
    buffer: Box<[u8]>,
}

impl SealedSocket {
    /// The usual reasons why nodes do not find each other. Strangers can cause it too, so it is said now and then only. A node of another cluster
    /// that has our key is told our name as often, so that it can say so too: it may be the one that was changed.
    async fn complain(&mut self, from: SocketAddr, refusal: &Refusal) {
        if self.complained.is_some_and(|at| at.elapsed() <= COMPLAINT_PERIOD) {
            return;
        }
        self.complained = Some(Instant::now());
        if matches!(refusal, Refusal::OtherCluster(_)) {
            let our_name = self.seal.seal(&[]);
            if let Err(error) = self.socket.send_to(&our_name, from).await {
                debug!(%from, %error, "a node of another cluster was not told so");
            }
        }
        match refusal {
            Refusal::OtherCluster(theirs) => warn!(%from, theirs, ours = self.seal.cluster,
                "a node of another cluster gossips here: if it is to be in this one, give both the same cluster.name, else take this node out of its cluster.seeds"),
            _ => {
                warn!(%from, "somebody gossips with another secret or version: if it is a node of this cluster, give all the same secret_file and binary");
            }
        }
    }
}

#[async_trait]
impl Socket for SealedSocket {
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let datagram = self.seal.seal(&message.serialize_to_vec());
        match self.socket.send_to(&datagram, to).await {
            Ok(_) => {
                self.datagrams.sent.fetch_add(1, Ordering::Relaxed);
            }
            // A node that is gone, or a network that is down: gossip goes on with the others.
            Err(error) => debug!(%to, %error, len = datagram.len(), "a datagram was not sent"),
        }
        Ok(())
    }

    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            let (len, from) = match self.socket.recv_from(&mut self.buffer).await {
                Ok(received) => received,
                Err(error) => {
                    // Errors of former sends are reported here; none of them ends the socket.
                    debug!(%error, "the gossip socket reports an error");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
            };
            let counter = match self.seal.open(&self.buffer[..len]) {
                Ok(plain) => match parse(&plain) {
                    Some(message) => {
                        self.datagrams.taken.fetch_add(1, Ordering::Relaxed);
                        return Ok((from, message));
                    }
                    None => &self.datagrams.malformed,
                },
                Err(refusal @ (Refusal::Rejected | Refusal::OtherCluster(_))) => {
                    self.complain(from, &refusal).await;
                    &self.datagrams.rejected
                }
                Err(Refusal::Replayed) => &self.datagrams.replayed,
                Err(Refusal::Own) => continue,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Chitchat's decoder asserts where it should refuse; a panic must not end gossip.
fn parse(mut plain: &[u8]) -> Option<ChitchatMessage> {
    catch_unwind(AssertUnwindSafe(|| ChitchatMessage::deserialize(&mut plain).ok())).ok().flatten()
}

#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Rejected,
    /// Sealed with our key, by a node whose cluster has this name.
    OtherCluster(String),
    Replayed,
    /// Sent by this very socket, to an address of this very node.
    Own,
}

struct Seal {
    cipher: XChaCha20Poly1305,
    key_id: u8,
    cluster: String,
    epoch: u64,
    counter: u64,
    windows: Windows,
}

impl Seal {
    fn new(cipher: XChaCha20Poly1305, key_id: u8, cluster: &str) -> Self {
        Self { cipher, key_id, cluster: cluster.to_owned(), epoch: rand::random(), counter: 0, windows: Windows::default() }
    }

    fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
        self.counter += 1;
        let mut datagram = vec![VERSION, self.key_id];
        for part in [self.epoch, self.counter, rand::random()] {
            datagram.extend_from_slice(&part.to_be_bytes());
        }
        let name = &self.cluster.as_bytes()[..self.cluster.len().min(usize::from(u8::MAX))];
        let named = [&[name.len() as u8], name, plain].concat();
        let payload = Payload { msg: &named, aad: &datagram[..2] };
        let sealed =
            self.cipher.encrypt(XNonce::from_slice(&datagram[2..]), payload).expect("a datagram is shorter than the cipher's limit");
        datagram.extend_from_slice(&sealed);
        datagram
    }

    fn open(&mut self, datagram: &[u8]) -> Result<Vec<u8>, Refusal> {
        if datagram.len() < HEADER + TAG || datagram[..2] != [VERSION, self.key_id] {
            return Err(Refusal::Rejected);
        }
        let (header, sealed) = datagram.split_at(HEADER);
        let payload = Payload { msg: sealed, aad: &header[..2] };
        let plain = self.cipher.decrypt(XNonce::from_slice(&header[2..]), payload).map_err(|_| Refusal::Rejected)?;
        let field = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("eight bytes are eight bytes"));
        let (epoch, counter) = (field(2), field(10));
        if epoch == self.epoch {
            return Err(Refusal::Own);
        }
        if !self.windows.is_first(epoch, counter) {
            return Err(Refusal::Replayed);
        }
        let (len, rest) = plain.split_first().ok_or(Refusal::Rejected)?;
        let (name, gossip) = rest.split_at_checked(usize::from(*len)).ok_or(Refusal::Rejected)?;
        let ours = &self.cluster.as_bytes()[..self.cluster.len().min(usize::from(u8::MAX))];
        if name == ours { Ok(gossip.to_vec()) } else { Err(Refusal::OtherCluster(String::from_utf8_lossy(name).into_owned())) }
    }
}

/// For each sender's epoch, which of its last 128 datagrams were taken.
#[derive(Default)]
struct Windows {
    windows: HashMap<u64, Window>,
    heard: u64,
}

struct Window {
    newest: u64,
    /// Bit `n`: the datagram `n` before the newest was taken.
    taken: u128,
    heard: u64,
}

impl Windows {
    /// Is this datagram seen for the first time? To be asked once, of authenticated datagrams only.
    fn is_first(&mut self, epoch: u64, counter: u64) -> bool {
        self.heard += 1;
        if !self.windows.contains_key(&epoch) && self.windows.len() >= EPOCHS_MAX {
            let silent = self.windows.iter().min_by_key(|(_, window)| window.heard).map(|(epoch, _)| *epoch);
            silent.and_then(|epoch| self.windows.remove(&epoch));
        }
        let heard = self.heard;
        let window = self.windows.entry(epoch).or_insert(Window { newest: 0, taken: 0, heard });
        window.heard = heard;
        if counter > window.newest {
            let ahead = counter - window.newest;
            window.taken = if ahead < 128 { window.taken << ahead | 1 } else { 1 };
            window.newest = counter;
            return true;
        }
        let behind = window.newest - counter;
        if behind >= 128 || window.taken >> behind & 1 == 1 {
            return false;
        }
        window.taken |= 1 << behind;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use chitchat::transport::{Socket, Transport};
    use chitchat::{ChitchatMessage, Serializable};
    use proptest::prelude::*;

    use super::{Datagrams, EPOCHS_MAX, Refusal, Seal, SealedTransport, Windows, parse};
    use crate::secret::ClusterSecret;
    use chacha20poly1305::{KeyInit, XChaCha20Poly1305};

    fn seal(secret: &ClusterSecret) -> Seal {
        of_cluster(secret, "plexus")
    }

    fn of_cluster(secret: &ClusterSecret, name: &str) -> Seal {
        Seal::new(XChaCha20Poly1305::new(&secret.gossip_key().into()), secret.gossip_key_id(), name)
    }

    #[test]
    fn a_cluster_of_another_name_is_not_heard_and_told_by_its_name() {
        let secret = ClusterSecret::generate();
        let (mut other, mut ours) = (of_cluster(&secret, "other"), seal(&secret));
        assert_eq!(ours.open(&other.seal(b"hello")), Err(Refusal::OtherCluster("other".into())));
        assert_eq!(other.open(&ours.seal(b"hello")), Err(Refusal::OtherCluster("plexus".into())));
        let (long, longer) = ("x".repeat(255), "x".repeat(256));
        assert_eq!(of_cluster(&secret, &longer).open(&of_cluster(&secret, &long).seal(b"")), Ok(vec![]), "names count up to 255 bytes");
    }

    #[test]
    fn a_datagram_is_taken_once_in_any_order() {
        let secret = ClusterSecret::generate();
        let (mut sender, mut receiver) = (seal(&secret), seal(&secret));
        let mut datagrams: Vec<_> = (0..100u8).map(|n| sender.seal(&[n])).collect();
        datagrams.reverse();
        for (datagram, n) in datagrams.iter().zip((0..100u8).rev()) {
            assert_eq!(receiver.open(datagram), Ok(vec![n]));
        }
        for datagram in &datagrams {
            assert_eq!(receiver.open(datagram), Err(Refusal::Replayed));
        }
        assert_eq!(sender.open(&datagrams[0]), Err(Refusal::Own));
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let secret = ClusterSecret::generate();
        let (mut sender, mut receiver) = (seal(&secret), seal(&secret));
        let datagram = sender.seal(b"hello");
        for at in 0..datagram.len() {
            let mut damaged = datagram.clone();
            damaged[at] ^= 1;
            assert_eq!(receiver.open(&damaged), Err(Refusal::Rejected), "byte {at}");
            assert_eq!(receiver.open(&datagram[..at]), Err(Refusal::Rejected), "{at} bytes");
        }
        assert_eq!(receiver.open(&datagram), Ok(b"hello".to_vec()));
        assert_eq!(seal(&ClusterSecret::generate()).open(&datagram), Err(Refusal::Rejected));
    }

    #[test]
    fn strangers_to_the_window_do_not_push_out_those_who_speak() {
        let mut windows = Windows::default();
        assert!(windows.is_first(7, 1));
        for epoch in 100..100 + 3 * EPOCHS_MAX as u64 {
            assert!(windows.is_first(epoch, 1));
            if epoch % 100 == 0 {
                assert!(windows.is_first(7, epoch));
            }
        }
        assert_eq!(windows.windows.len(), EPOCHS_MAX);
        assert!(!windows.is_first(7, 200));
    }

    proptest! {
        #[test]
        fn no_datagram_is_taken_twice(counters in prop::collection::vec(0u64..300, 0..400)) {
            let mut windows = Windows::default();
            let mut taken = std::collections::BTreeSet::new();
            for counter in counters {
                if windows.is_first(1, counter) {
                    prop_assert!(taken.insert(counter));
                }
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }
    }

    async fn sealed(secret: &ClusterSecret) -> (std::net::SocketAddr, Box<dyn Socket>, Arc<Datagrams>) {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").expect("a free port"));
        let address = socket.local_addr().expect("a bound socket has an address");
        let datagrams = Arc::new(Datagrams::default());
        let transport = SealedTransport::new(socket, secret, "plexus", Arc::clone(&datagrams));
        (address, transport.open(address).await.expect("the socket opens"), datagrams)
    }

    #[tokio::test]
    async fn a_node_of_another_cluster_is_told_the_name_once_a_minute_and_nothing_goes_to_and_fro() {
        let secret = ClusterSecret::generate();
        let (to, mut receiver, datagrams) = sealed(&secret).await;
        let wire = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        wire.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout can be set");
        let mut other = of_cluster(&secret, "other");
        for _ in 0..3 {
            wire.send_to(&other.seal(b"gossip"), to).expect("loopback takes it");
        }
        let heard = tokio::time::timeout(Duration::from_millis(200), receiver.recv()).await;
        assert!(heard.is_err(), "it is not heard");
        assert_eq!(datagrams.rejected.load(Ordering::Relaxed), 3);
        let mut buffer = [0; 512];
        let len = wire.recv(&mut buffer).expect("it is told the name");
        assert_eq!(other.open(&buffer[..len]), Err(Refusal::OtherCluster("plexus".into())));
        assert!(wire.recv(&mut buffer).is_err(), "once");
    }

    #[tokio::test]
    async fn over_real_udp_strangers_garbage_and_replays_reach_nothing_and_are_counted() {
        let secret = ClusterSecret::generate();
        let (to, mut receiver, datagrams) = sealed(&secret).await;
        let (_, mut stranger, _) = sealed(&ClusterSecret::generate()).await;
        let wire = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let mut friend = seal(&secret);

        let honest = friend.seal(&ChitchatMessage::BadCluster.serialize_to_vec());
        wire.send_to(&honest, to).expect("loopback takes it");
        let (_, message) = receiver.recv().await.expect("a message");
        assert_eq!(message, ChitchatMessage::BadCluster);

        stranger.send(to, ChitchatMessage::BadCluster).await.expect("loopback takes it");
        wire.send_to(b"junk", to).expect("loopback takes it");
        wire.send_to(&ChitchatMessage::BadCluster.serialize_to_vec(), to).expect("loopback takes it");
        for _ in 0..20 {
            wire.send_to(&honest, to).expect("loopback takes it");
        }
        wire.send_to(&friend.seal(b"sealed, but not gossip"), to).expect("loopback takes it");
        wire.send_to(&friend.seal(&ChitchatMessage::BadCluster.serialize_to_vec()), to).expect("loopback takes it");

        // Only the last one is taken, and nobody is answered.
        let taken = tokio::time::timeout(Duration::from_secs(10), receiver.recv()).await.expect("in time").expect("a message");
        assert_eq!(taken.1, ChitchatMessage::BadCluster);
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!((count(&datagrams.taken), count(&datagrams.rejected)), (2, 3));
        assert_eq!((count(&datagrams.replayed), count(&datagrams.malformed)), (20, 1));
        wire.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout can be set");
        assert!(wire.recv(&mut [0; 64]).is_err(), "a refused datagram was answered");
    }
}

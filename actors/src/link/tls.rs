//! Who is at the other end: TLS 1.3 with certificates on both sides, from a certificate authority that the cluster's secret is the key of.
//!
//! Whoever has the secret has the authority, and each node signs its own certificate at its start. So there is nothing to hand out and
//! nothing to renew. Certificates are valid from 2020 to 2100, because a wrong clock must not keep a node out. A name is `NAME.plexus`:
//! a node may be called `1`, which alone is not a DNS name.
//!
//! One port takes both links and connections to the node's store; which it is, ALPN tells (RFC 7301). Whoever says nothing wants a link.

use std::sync::Arc;

use plexus_types::NodeName;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, CommonState, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::secret::ClusterSecret;

/// An Ed25519 private key in PKCS #8 (RFC 8410) is this, then the 32 bytes of its seed.
const ED25519_PKCS8: [u8; 16] = [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Why TLS cannot be set up. None of these depends on anything but this program.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("no certificate can be made")]
    Certificate(#[from] rcgen::Error),
    #[error("TLS refuses its settings")]
    Settings(#[from] rustls::Error),
    #[error("TLS refuses the certificate authority")]
    Authority(#[from] rustls::server::VerifierBuilderError),
}

/// What a connection is for: links between actors.
const LINK: &[u8] = b"plexus-link";
/// What a connection is for: files of models, over HTTP.
const STORE: &[u8] = b"plexus-store";

/// Both ends of TLS for this node.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) acceptor: TlsAcceptor,
    /// For links.
    pub(super) connector: TlsConnector,
    /// For stores.
    pub(super) to_stores: TlsConnector,
}

impl Tls {
    /// Signs this node's certificate and trusts the cluster's authority, and nobody else.
    pub(super) fn new(secret: &ClusterSecret, me: &NodeName) -> Result<Self, TlsError> {
        let authority = authority(secret)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority_certificate(&authority)?)?;
        let roots = Arc::new(roots);

        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        let certificate = leaf(me)?.signed_by(&key, &authority)?;
        let chain = vec![certificate.der().clone()];
        let key_der = || PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));

        let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build()?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key_der())?;
        server.send_tls13_tickets = 0; // each link is verified anew
        server.alpn_protocols = vec![LINK.to_vec(), STORE.to_vec()];
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key_der())?;
        client.resumption = rustls::client::Resumption::disabled();
        let connector = |protocol: &[u8]| {
            let mut client = client.clone();
            client.alpn_protocols = vec![protocol.to_vec()];
            TlsConnector::from(Arc::new(client))
        };
        Ok(Self { acceptor: Arc::new(server).into(), connector: connector(LINK), to_stores: connector(STORE) })
    }
}

/// Did both ends agree that this connection is one to a store?
pub(super) fn is_to_store(session: &CommonState) -> bool {
    session.alpn_protocol() == Some(STORE)
}

/// The name in the certificate of a node.
pub(super) fn name_in_certificate(name: &NodeName) -> ServerName<'static> {
    ServerName::try_from(dns_name(name)).expect("a node name and a suffix are a DNS name")
}

/// Which of these nodes a certificate, which is verified already, belongs to.
pub(super) fn owner<'a>(certificate: &CertificateDer<'_>, names: impl Iterator<Item = &'a NodeName>) -> Option<NodeName> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    names.into_iter().find(|name| certificate.verify_is_valid_for_subject_name(&name_in_certificate(name)).is_ok()).cloned()
}

fn dns_name(name: &NodeName) -> String {
    format!("{name}.plexus")
}

fn authority(secret: &ClusterSecret) -> Result<Issuer<'static, KeyPair>, TlsError> {
    let mut pkcs8 = ED25519_PKCS8.to_vec();
    pkcs8.extend_from_slice(&secret.link_ca_seed());
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &rcgen::PKCS_ED25519)?;
    Ok(Issuer::new(authority_params(), key))
}

/// Differs from node to node in nothing that counts: name and key are the same.
fn authority_certificate(authority: &Issuer<'static, KeyPair>) -> Result<CertificateDer<'static>, TlsError> {
    Ok(authority_params().self_signed(authority.key())?.der().clone())
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Plexus cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2100, 1, 1);
    params
}

fn leaf(me: &NodeName) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(vec![dns_name(me)])?;
    params.distinguished_name.push(DnType::CommonName, "Plexus node");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2100, 1, 1);
    Ok(params)
}

#[cfg(test)]
mod tests {
    use plexus_types::NodeName;

    use super::{Tls, is_to_store, name_in_certificate, owner};
    use crate::secret::ClusterSecret;

    fn name(text: &str) -> NodeName {
        text.parse().expect("a node name")
    }

    /// Does `client`, who wants to speak to `wanted`, get through to `server`, and whom does the server take it for?
    async fn handshake(client: &Tls, wanted: &str, server: &Tls, known: &[&str]) -> (bool, Option<NodeName>) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let wanted = name_in_certificate(&name(wanted));
        let (near, far) = tokio::join!(client.connector.connect(wanted, near), server.acceptor.accept(far));
        let known: Vec<NodeName> = known.iter().map(|text| name(text)).collect();
        let caller = far.ok().and_then(|far| owner(far.get_ref().1.peer_certificates()?.first()?, known.iter()));
        (near.is_ok(), caller)
    }

    #[tokio::test]
    async fn nodes_of_one_secret_know_each_other_by_name() {
        let secret = ClusterSecret::generate();
        let one = Tls::new(&secret, &name("one")).expect("TLS");
        let two = Tls::new(&secret, &name("2")).expect("TLS");
        assert_eq!(handshake(&one, "2", &two, &["2", "one"]).await, (true, Some(name("one"))));
        assert_eq!(handshake(&two, "one", &one, &["one", "2"]).await, (true, Some(name("2"))));
    }

    #[tokio::test]
    async fn both_ends_agree_on_what_a_connection_is_for() {
        let secret = ClusterSecret::generate();
        let one = Tls::new(&secret, &name("one")).expect("TLS");
        let two = Tls::new(&secret, &name("two")).expect("TLS");
        for (connector, to_store) in [(&one.connector, false), (&one.to_stores, true)] {
            let (near, far) = tokio::io::duplex(1 << 16);
            let (near, far) = tokio::join!(connector.connect(name_in_certificate(&name("two")), near), two.acceptor.accept(far));
            assert_eq!(is_to_store(near.expect("a session").get_ref().1), to_store);
            assert_eq!(is_to_store(far.expect("a session").get_ref().1), to_store);
        }
    }

    #[tokio::test]
    async fn a_node_is_neither_taken_for_another_nor_for_a_stranger() {
        let secret = ClusterSecret::generate();
        let one = Tls::new(&secret, &name("one")).expect("TLS");
        let two = Tls::new(&secret, &name("two")).expect("TLS");
        assert!(!handshake(&one, "three", &two, &["one"]).await.0);
        assert_eq!(handshake(&one, "two", &two, &["three"]).await.1, None);
    }

    #[tokio::test]
    async fn another_secret_is_another_cluster() {
        let ours = Tls::new(&ClusterSecret::generate(), &name("one")).expect("TLS");
        let theirs = Tls::new(&ClusterSecret::generate(), &name("two")).expect("TLS");
        assert_eq!(handshake(&ours, "two", &theirs, &["one"]).await, (false, None));
    }
}

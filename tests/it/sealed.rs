//! A port that speaks TLS before a server that does not, with an authority of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::house::{House, Outcome, outcome};

/// A port that speaks TLS and passes on what is said to `behind`.
pub struct Sealed {
    pub base: String,
    /// Whoever trusts this trusts the port.
    pub authority: PathBuf,
    _task: tokio::task::JoinHandle<()>,
}

impl Sealed {
    pub async fn before(behind: SocketAddr, folder: &Path) -> Self {
        let mut of_authority = CertificateParams::default();
        of_authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(of_authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let named = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = named.signed_by(&key, &authority).unwrap();
        let private = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        let path = folder.join("authority.pem");
        std::fs::write(&path, authority.pem()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let task = tokio::spawn(pass_on(listener, TlsAcceptor::from(Arc::new(config)), behind));
        Self { base, authority: path, _task: task }
    }
}

async fn pass_on(listener: TcpListener, acceptor: TlsAcceptor, behind: SocketAddr) {
    let mut open = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        open.spawn(async move {
            // Whoever does not trust the certificate breaks off here.
            let Ok(mut front) = acceptor.accept(stream).await else { return };
            let mut back = TcpStream::connect(behind).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut front, &mut back).await;
        });
    }
}

pub async fn trusting(house: &House, authority: &Path, arguments: &[&str]) -> Outcome {
    outcome(house.command(arguments).env("SSL_CERT_FILE", authority).output().await.unwrap())
}

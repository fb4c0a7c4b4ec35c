//! TLS to the control plane: 1.3 only, the usual validation, and pins on top where they are configured.

use std::sync::Arc;

use ring::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::LinkError;
use crate::config::TlsSettings;
use crate::net;

/// The client's side of TLS. Built for every dial, so that a changed CA file or root store is seen.
///
/// # Errors
/// When the extra trust root cannot be used.
pub(super) fn client_config(settings: &TlsSettings) -> Result<Arc<ClientConfig>, LinkError> {
    let roots = Arc::new(net::root_store(settings.ca_file.as_deref())?);
    let provider = net::provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(LinkError::Tls)?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider)
        .build()
        .map_err(|error| LinkError::Tls(Error::General(error.to_string())))?;
    let config = if settings.server_pins.is_empty() {
        builder.with_webpki_verifier(verifier).with_no_client_auth()
    } else {
        let pinned = Pinned { inner: verifier, pins: settings.server_pins.clone() };
        builder.dangerous().with_custom_certificate_verifier(Arc::new(pinned)).with_no_client_auth()
    };
    Ok(Arc::new(config))
}

/// What the verifier says when only the pin is wrong; the usual validation never says it.
pub(super) const WRONG_PIN: CertificateError = CertificateError::ApplicationVerificationFailure;

/// The usual validation, and then the leaf's public key must be one of the pins.
#[derive(Debug)]
struct Pinned {
    inner: Arc<WebPkiServerVerifier>,
    pins: Vec<[u8; 32]>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        let key = ParsedCertificate::try_from(end_entity)?.subject_public_key_info();
        let found = digest(&SHA256, key.as_ref());
        if self.pins.iter().any(|pin| pin == found.as_ref()) {
            Ok(verified)
        } else {
            Err(WRONG_PIN.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

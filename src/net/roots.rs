//! Whom TLS trusts: the system's roots, Mozilla's where the system has none, and one extra file.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::NetError;

/// The one crypto provider. It is always passed explicitly: no process-wide default is installed.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The trust roots, with the certificates of `extra` (PEM) among them.
///
/// # Errors
/// When `extra` cannot be read or holds no certificate.
pub fn root_store(extra: Option<&Path>) -> Result<RootCertStore, NetError> {
    let mut roots = RootCertStore::empty();
    // Single unreadable files and odd certificates are normal on real hosts and no reason to trust nobody.
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        log::debug!("failed to read a trust root of the system: {error}");
    }
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        log::info!("the system has no trust roots, using the bundled ones");
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(path) = extra {
        add_file(&mut roots, path)?;
    }
    Ok(roots)
}

/// The certificates of this file (PEM) and no others.
///
/// # Errors
/// When it cannot be read or holds no certificate.
pub fn only_root(file: &Path) -> Result<RootCertStore, NetError> {
    let mut roots = RootCertStore::empty();
    add_file(&mut roots, file)?;
    Ok(roots)
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), NetError> {
    let fail = |reason: String| NetError::CaFile { path: path.to_owned(), reason };
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| fail(e.to_string()))?;
    let mut any = false;
    for certificate in certificates {
        let certificate = certificate.map_err(|e| fail(e.to_string()))?;
        roots.add(certificate).map_err(|e| fail(e.to_string()))?;
        any = true;
    }
    if any { Ok(()) } else { Err(fail("there is no certificate in it".to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extra_root_is_added() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let before = root_store(None).unwrap().len();
        assert!(before > 0);
        let ca = rcgen::generate_simple_self_signed(["ca.example".to_owned()]).unwrap();
        std::fs::write(&path, ca.cert.pem()).unwrap();
        assert_eq!(root_store(Some(&path)).unwrap().len(), before + 1);
    }

    #[test]
    fn a_file_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        for content in
            [&b"hello"[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
        {
            std::fs::write(&path, content).unwrap();
            let error = root_store(Some(&path)).unwrap_err();
            assert!(error.to_string().contains("ca.pem"), "{error}");
            assert!(!error.retry());
        }
        assert!(root_store(Some(&dir.path().join("none.pem"))).is_err());
    }
}

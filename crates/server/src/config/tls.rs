//! TLS as the flags say it.

use std::path::{Path, PathBuf};

use tailwater_tls::{CipherSuites, ClientTls, TlsConfig, TlsError, TlsVersions, self_signed};

use super::urls::Listen;
use crate::flags::TlsFlags;

/// TLS of this process.
#[derive(Clone, Debug)]
pub(crate) struct TlsSides {
    pub(crate) client: TlsConfig,
    pub(crate) peer: TlsConfig,
    /// How client URLs of other nodes are reached.
    pub(crate) client_dialer: ClientTls,
    /// How peer URLs are reached.
    pub(crate) peer_dialer: ClientTls,
    /// Suites that were asked for and are not served.
    unserved_suites: Vec<String>,
    validity_years: u32,
    /// Whether other nodes are reached with TLS for sure.
    dials_peers: bool,
    /// Client and peer URLs without TLS, where there is a certificate.
    ignoring: (Vec<String>, Vec<String>),
    /// Whose files are made at the first start, and for which hosts.
    made: Vec<(PathBuf, Vec<String>)>,
}

impl TlsSides {
    /// Reads the flags; no file is looked at.
    ///
    /// # Errors
    /// etcd's sentence.
    pub(crate) fn from_flags(
        flags: &TlsFlags,
        data_dir: &Path,
        upstream: &[String],
        (clients, peers, metrics): (&[Listen], &[Listen], &[Listen]),
    ) -> Result<Self, String> {
        let (cipher_suites, unserved_suites) = CipherSuites::parse(&list(&flags.cipher_suites))?;
        let versions = TlsVersions::parse(&flags.tls_min_version, &flags.tls_max_version, &cipher_suites)?;
        let mut client = TlsConfig {
            cert_file: path(&flags.cert_file),
            key_file: path(&flags.key_file),
            client_cert_file: path(&flags.client_cert_file),
            client_key_file: path(&flags.client_key_file),
            trusted_ca_file: path(&flags.trusted_ca_file),
            client_cert_auth: flags.client_cert_auth,
            crl_file: path(&flags.client_crl_file),
            allowed_hostnames: list(&flags.client_cert_allowed_hostname),
            cipher_suites: cipher_suites.clone(),
            versions,
            ..TlsConfig::default()
        };
        let mut peer = TlsConfig {
            cert_file: path(&flags.peer_cert_file),
            key_file: path(&flags.peer_key_file),
            client_cert_file: path(&flags.peer_client_cert_file),
            client_key_file: path(&flags.peer_client_key_file),
            trusted_ca_file: path(&flags.peer_trusted_ca_file),
            client_cert_auth: flags.peer_client_cert_auth,
            crl_file: path(&flags.peer_crl_file),
            allowed_cns: list(&flags.peer_cert_allowed_cn),
            allowed_hostnames: list(&flags.peer_cert_allowed_hostname),
            check_remote_address: !flags.peer_skip_client_san_verification,
            cipher_suites,
            versions,
            ..TlsConfig::default()
        };
        let mut made = Vec::new();
        let is_plain = |listen: &&Listen| !listen.is_secure;
        let plain_of = |side: &TlsConfig, listens: &[Listen]| -> Vec<String> {
            let plain = listens.iter().filter(is_plain).filter(|_| side.has_certificate());
            plain.map(|listen| format!("http://{}", listen.authority)).collect()
        };
        let ignoring = (plain_of(&client, clients), plain_of(&peer, peers));
        for (is_auto, side, name, listens) in
            [(flags.auto_tls, &mut client, "client", clients), (flags.peer_auto_tls, &mut peer, "peer", peers)]
        {
            if is_auto && !side.has_certificate() {
                let dir = data_dir.join("fixtures").join(name);
                (side.cert_file, side.key_file) = (Some(dir.join("cert.pem")), Some(dir.join("key.pem")));
                side.is_self_signed = true;
                made.push((dir, listens.iter().map(|listen| listen.host.clone()).collect()));
            }
        }
        check_certificates(&client, &peer, (clients, peers, metrics))?;
        let (client_dialer, peer_dialer) = (ClientTls::new(client.clone()), ClientTls::new(peer.clone()));
        let validity_years = flags.self_signed_cert_validity;
        let dials_peers =
            peers.iter().any(|listen| listen.is_secure) || upstream.iter().any(|url| url.starts_with("https://"));
        Ok(Self {
            client,
            peer,
            client_dialer,
            peer_dialer,
            unserved_suites,
            validity_years,
            dials_peers,
            ignoring,
            made,
        })
    }

    /// Makes the certificates that are to be made, and says what was asked for in vain.
    ///
    /// # Errors
    /// They can't be written.
    pub(crate) fn prepare(&self) -> anyhow::Result<()> {
        if !self.unserved_suites.is_empty() {
            tracing::warn!(
                cipher_suites = self.unserved_suites.join(","),
                "cipher suites that are not served here are left out"
            );
        }
        self.warn_of_plain_urls();
        for (dir, hosts) in &self.made {
            self_signed(dir, hosts, self.validity_years)?;
            tracing::info!(dir = %dir.display(), hosts = hosts.join(","), "using a certificate that was made here");
        }
        // What is shown to others is read now, so that a missing file is known before anybody waits for a link.
        let checked = if self.dials_peers { self.peer_dialer.check() } else { Ok(()) };
        match checked {
            Ok(()) => {}
            // As etcd: a member alone needs nobody to trust.
            Err(error @ TlsError::NoRoots) => tracing::warn!(%error, "peer URLs of other nodes can't be trusted"),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl TlsSides {
    /// In etcd's words.
    fn warn_of_plain_urls(&self) {
        let (clients, peers) = &self.ignoring;
        for peer_url in peers {
            tracing::warn!(
                peer_url,
                "scheme is HTTP while key and cert files are present; ignoring key and cert files"
            );
        }
        for client_url in clients {
            tracing::warn!(
                client_url,
                "scheme is http or unix while key and cert files are present; ignoring key and cert files"
            );
            if self.client.client_cert_auth {
                tracing::warn!(
                    client_url,
                    "scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth for this URL"
                );
            }
        }
    }
}

/// A secure URL needs a certificate.
fn check_certificates(
    client: &TlsConfig,
    peer: &TlsConfig,
    (clients, peers, metrics): (&[Listen], &[Listen], &[Listen]),
) -> Result<(), String> {
    let secure = |listens: &[Listen]| listens.iter().find(|listen| listen.is_secure).cloned();
    let has_none = |side: &TlsConfig| side.cert_file.is_none() && side.key_file.is_none();
    if let Some(listen) = secure(clients).filter(|_| has_none(client)) {
        let url = format!("https://{}", listen.authority);
        return Err(format!(
            "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
        ));
    }
    if secure(metrics).is_some() && has_none(client) {
        return Err("client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url".into());
    }
    if let Some(listen) = secure(peers).filter(|_| has_none(peer)) {
        return Err(format!("cannot listen on TLS for {}: KeyFile and CertFile are not presented", listen.authority));
    }
    Ok(())
}

fn path(text: &str) -> Option<PathBuf> {
    (!text.is_empty()).then(|| PathBuf::from(text))
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

//! The flags of TLS: etcd's.

use clap::{ArgAction, Args};

/// TLS of the client and the peer URLs.
#[derive(Clone, Debug, Args)]
pub(crate) struct TlsFlags {
    /// Certificate that clients are served with
    #[arg(long, default_value = "")]
    pub(crate) cert_file: String,
    /// Key of --cert-file
    #[arg(long, default_value = "")]
    pub(crate) key_file: String,
    /// Certificate shown to client URLs of other nodes, instead of --cert-file
    #[arg(long, default_value = "")]
    pub(crate) client_cert_file: String,
    /// Key of --client-cert-file
    #[arg(long, default_value = "")]
    pub(crate) client_key_file: String,
    /// Ask clients for a certificate, whose common name is then the user
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub(crate) client_cert_auth: bool,
    /// Who signs the certificates of clients; when set, clients must have one
    #[arg(long, default_value = "")]
    pub(crate) trusted_ca_file: String,
    /// Revocation list of clients' certificates
    #[arg(long, default_value = "")]
    pub(crate) client_crl_file: String,
    /// Host names, separated by commas, one of which a client's certificate must be valid for
    #[arg(long, default_value = "")]
    pub(crate) client_cert_allowed_hostname: String,
    /// Serve clients with a certificate that is made at the first start
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub(crate) auto_tls: bool,
    /// Certificate for other nodes, served and shown
    #[arg(long, default_value = "")]
    pub(crate) peer_cert_file: String,
    /// Key of --peer-cert-file
    #[arg(long, default_value = "")]
    pub(crate) peer_key_file: String,
    /// Certificate shown to peer URLs of other nodes, instead of --peer-cert-file
    #[arg(long, default_value = "")]
    pub(crate) peer_client_cert_file: String,
    /// Key of --peer-client-cert-file
    #[arg(long, default_value = "")]
    pub(crate) peer_client_key_file: String,
    /// Ask other nodes for a certificate
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub(crate) peer_client_cert_auth: bool,
    /// Who signs the certificates of other nodes; when set, they must have one
    #[arg(long, default_value = "")]
    pub(crate) peer_trusted_ca_file: String,
    /// Revocation list of other nodes' certificates
    #[arg(long, default_value = "")]
    pub(crate) peer_crl_file: String,
    /// Common names, separated by commas, that other nodes' certificates may have
    #[arg(long, default_value = "")]
    pub(crate) peer_cert_allowed_cn: String,
    /// Host names, separated by commas, one of which another node's certificate must be valid for
    #[arg(long, default_value = "")]
    pub(crate) peer_cert_allowed_hostname: String,
    /// Let other nodes connect from addresses that their certificates don't name
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub(crate) peer_skip_client_san_verification: bool,
    /// Serve other nodes with a certificate that is made at the first start, and trust theirs
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set)]
    pub(crate) peer_auto_tls: bool,
    /// Years that certificates made here are valid for
    #[arg(long, default_value_t = 1)]
    pub(crate) self_signed_cert_validity: u32,
    /// Cipher suites of TLS 1.2 by Go's names, separated by commas [default: all that are served]
    #[arg(long, default_value = "")]
    pub(crate) cipher_suites: String,
    /// "TLS1.2" or "TLS1.3"
    #[arg(long, default_value = "TLS1.2")]
    pub(crate) tls_min_version: String,
    /// "TLS1.2" or "TLS1.3" [default: the newest]
    #[arg(long, default_value = "")]
    pub(crate) tls_max_version: String,
}

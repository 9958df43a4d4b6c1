//! How servers are reached.

use std::path::PathBuf;
use std::time::Duration;

use tailwater_tls::TlsConfig;

use crate::{Client, Error};

/// Settings of a [`Client`].
#[derive(Clone)]
pub struct Builder {
    pub(crate) endpoints: Vec<String>,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) user: Option<User>,
    pub(crate) request_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) keepalive_interval: Duration,
    pub(crate) keepalive_timeout: Duration,
    pub(crate) backoff_max: Duration,
}

/// Files of TLS, as PEM. They are read again when they change, so certificates may be renewed under a running client.
///
/// Keys on the curve P-521, like those of etcd's `--auto-tls`, are not understood.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// Who may have signed the servers' certificates. Default: those that the machine trusts.
    pub ca_file: Option<PathBuf>,
    /// What is shown to the servers, with its chain. Default none.
    pub cert_file: Option<PathBuf>,
    /// The key of `cert_file`.
    pub key_file: Option<PathBuf>,
}

impl From<TlsFiles> for TlsConfig {
    fn from(files: TlsFiles) -> Self {
        let TlsFiles { ca_file, cert_file, key_file } = files;
        Self { trusted_ca_file: ca_file, cert_file, key_file, ..Self::default() }
    }
}

#[derive(Clone)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) password: String,
}

// By hand, without the password.
impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = self.user.as_ref().map(|user| &user.name);
        f.debug_struct("Builder")
            .field("endpoints", &self.endpoints)
            .field("tls", &self.tls)
            .field("user", &user)
            .finish_non_exhaustive()
    }
}

impl Builder {
    pub(crate) fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            tls: None,
            user: None,
            request_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(2),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(5),
            backoff_max: Duration::from_secs(5),
        }
    }

    /// Speaks TLS with `https://` endpoints, and with those that name no scheme.
    #[must_use]
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self
    }

    /// Logs in, and again whenever the token is no longer good.
    #[must_use]
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.user = Some(User { name: name.into(), password: password.into() });
        self
    }

    /// A call at one endpoint, a page or piece of a list, the beginning of a watch, and a wait for the cache may take so
    /// long. Default 5 s.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// A connection may take so long. Default 2 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// A server is asked each `interval` whether it lives, and left when it does not answer within `timeout`. Default 10 s
    /// and 5 s. Servers refuse clients that ask more often than their `--grpc-keepalive-min-time` (5 s) allows.
    #[must_use]
    pub fn keepalive(mut self, interval: Duration, timeout: Duration) -> Self {
        (self.keepalive_interval, self.keepalive_timeout) = (interval, timeout);
        self
    }

    /// The longest pause between attempts, once each endpoint has failed. Default 5 s.
    #[must_use]
    pub fn backoff_max(mut self, pause: Duration) -> Self {
        self.backoff_max = pause;
        self
    }

    /// The client. It connects when it is used first.
    ///
    /// # Errors
    /// There are no endpoints, one is not a URL, or the TLS files can't be used.
    pub fn build(self) -> Result<Client, Error> {
        Client::new(self)
    }
}

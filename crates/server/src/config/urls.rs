//! URLs of flags: where this process listens, and what it tells others of that.

use std::net::{SocketAddr, ToSocketAddrs};

use super::{CLIENT_URL_DEFAULT, PEER_URL_DEFAULT};
use crate::flags::Flags;
use crate::roles::Roles;

/// A port, and how it is entered: one that is named by an http: and by an https: URL serves both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) address: SocketAddr,
    /// The host and port as given.
    pub(crate) authority: String,
    /// The host as given.
    pub(crate) host: String,
    pub(crate) is_plain: bool,
    pub(crate) is_secure: bool,
}

/// Where this node serves, and what it tells others of that.
pub(crate) struct Urls {
    /// Lists as flags hold them; empty: nowhere.
    pub(crate) listen_clients: String,
    pub(crate) client_urls: Vec<String>,
    pub(crate) listen_peers: String,
    pub(crate) peer_urls: Vec<String>,
}

impl Urls {
    /// # Errors
    /// One sentence that names the flag.
    pub(crate) fn from_flags(roles: Roles, flags: &Flags) -> Result<Self, String> {
        let or = |given: &Option<String>, default: &str| given.clone().unwrap_or_else(|| default.to_owned());
        let listen_clients =
            or(&flags.listen_client_urls, if roles.serves_clients() { CLIENT_URL_DEFAULT } else { "" });
        let client_urls = match &flags.advertise_client_urls {
            Some(text) => parse("advertise-client-urls", text)?,
            None if !roles.serves_clients() => Vec::new(),
            None if listen_clients == CLIENT_URL_DEFAULT => vec![listen_clients.clone()],
            None => {
                return Err("--advertise-client-urls is required when --listen-client-urls is set explicitly".into());
            }
        };
        let peer_default = if roles.is_member() { PEER_URL_DEFAULT } else { "" };
        let listen_peers = or(&flags.listen_peer_urls, peer_default);
        if !roles.is_member() && listen_peers.is_empty() && flags.initial_advertise_peer_urls.is_some() {
            return Err("--initial-advertise-peer-urls is of no use without --listen-peer-urls on a fanout".into());
        }
        let advertised = match roles.is_member() {
            true => or(&flags.initial_advertise_peer_urls, PEER_URL_DEFAULT),
            false => or(&flags.initial_advertise_peer_urls, &listen_peers),
        };
        let peer_urls =
            if advertised.is_empty() { Vec::new() } else { parse("initial-advertise-peer-urls", &advertised)? };
        Ok(Self { listen_clients, client_urls, listen_peers, peer_urls })
    }
}

/// The host and port of an http: or https: URL without a path.
pub(crate) fn authority(url: &str) -> Option<(bool, &str)> {
    let (is_secure, authority) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(authority), _) => (false, authority),
        (None, Some(authority)) => (true, authority),
        (None, None) => return None,
    };
    let (host, port) = authority.rsplit_once(':')?;
    (!host.is_empty() && port.parse::<u16>().is_ok()).then_some((is_secure, authority))
}

/// The URLs of a list flag, sorted.
///
/// # Errors
/// One sentence that names the flag.
pub(crate) fn parse(flag: &str, text: &str) -> Result<Vec<String>, String> {
    let mut urls: Vec<String> = text.split(',').map(|url| url.trim().to_owned()).collect();
    for url in &urls {
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(format!("--{flag}: {url:?} must begin with http:// or https://"));
        }
        if authority(url).is_none() {
            return Err(format!(
                "--{flag}: {url:?} must name a host and a port and no path, as in http://10.0.0.1:2379"
            ));
        }
    }
    urls.sort();
    Ok(urls)
}

/// Where to listen; a host name is resolved. Nothing given: nowhere.
///
/// # Errors
/// One sentence that names the flag.
pub(crate) fn listens(flag: &str, text: &str) -> Result<Vec<Listen>, String> {
    let mut found = Vec::<Listen>::new();
    if text.is_empty() {
        return Ok(found);
    }
    for url in parse(flag, text)? {
        let (is_secure, authority) = authority(&url).expect("just checked");
        let resolved = authority.to_socket_addrs();
        let mut resolved: Vec<SocketAddr> =
            resolved.map_err(|error| format!("--{flag}: {url:?}: {error}; give an address of this machine"))?.collect();
        // A name may stand for IPv4 and IPv6; the first family is enough, as with etcd.
        resolved.sort_by_key(SocketAddr::is_ipv6);
        let Some(address) = resolved.first().copied() else { continue };
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        match found.iter_mut().find(|listen| listen.address == address) {
            Some(listen) if is_secure => listen.is_secure = true,
            Some(listen) => listen.is_plain = true,
            None => {
                found.push(Listen { address, authority: authority.to_owned(), host, is_plain: !is_secure, is_secure })
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_with_two_schemes_serves_both() {
        let listens = listens("f", "https://127.0.0.1:1,http://127.0.0.1:1,https://127.0.0.1:2").expect("valid");
        let seen: Vec<_> =
            listens.iter().map(|listen| (listen.address.port(), listen.is_plain, listen.is_secure)).collect();
        assert_eq!(seen, [(1, true, true), (2, false, true)]);
        assert_eq!(listens[0].host, "127.0.0.1");
    }

    #[test]
    fn other_urls_are_refused() {
        for bad in ["", "127.0.0.1:1", "ftp://h:1", "http://h", "http://:1", "https://h:1/x", "http://h:1,"] {
            assert!(parse("f", bad).is_err(), "{bad:?}");
        }
    }
}

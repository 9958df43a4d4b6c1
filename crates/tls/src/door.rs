//! What a listener does with a new connection before anything is served on it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::rejection::{Cause, Refusal, Rejected};
use crate::{PeerCertificate, ServerTls, Stream};

/// A handshake that takes longer is given up: who doesn't finish one holds no place for long.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// The first byte of a TLS connection: a record of a handshake.
const HANDSHAKE_RECORD: u8 = 22;

/// How a port is entered: without TLS, with it, or either, told apart by the first byte.
#[derive(Clone, Debug)]
pub struct Door {
    is_plain: bool,
    tls: Option<ServerTls>,
}

/// A connection that was let in.
#[derive(Debug)]
pub struct Accepted {
    /// What is served on.
    pub stream: Stream,
    /// What the other side has shown, verified; none where it was not asked.
    pub peer: Option<PeerCertificate>,
}

impl Door {
    /// Without TLS.
    #[must_use]
    pub fn plain() -> Self {
        Self { is_plain: true, tls: None }
    }

    /// With TLS.
    #[must_use]
    pub fn secure(tls: ServerTls) -> Self {
        Self { is_plain: false, tls: Some(tls) }
    }

    /// With TLS and without.
    #[must_use]
    pub fn either(tls: ServerTls) -> Self {
        Self { is_plain: true, tls: Some(tls) }
    }

    /// Whether somebody may come in without TLS.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Whether somebody may come in with TLS.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Lets a connection in, or not.
    ///
    /// # Errors
    /// Why not; the connection is closed. [`Rejected::log_client`] and [`Rejected::log_peer`] say so in etcd's words.
    pub async fn accept(&self, stream: TcpStream, remote: SocketAddr) -> Result<Accepted, Rejected> {
        let Some(tls) = &self.tls else { return Ok(Accepted { stream: Stream::Plain(stream), peer: None }) };
        let entering = async {
            if self.is_plain && !begins_with_tls(&stream).await.map_err(|error| Refusal::early(Cause::Io(error)))? {
                return Ok(Accepted { stream: Stream::Plain(stream), peer: None });
            }
            // Boxed: the handshake's state would stay with the connection for as long as it lives.
            let (stream, peer) = Box::pin(tls.accept(stream)).await?;
            Ok(Accepted { stream, peer })
        };
        let entered = tokio::time::timeout(HANDSHAKE_MAX, entering).await;
        let entered = entered.unwrap_or_else(|_| Err(Refusal::early(Cause::Slow)));
        entered.map_err(|refusal| Rejected::new(remote, refusal))
    }
}

/// Waits for the first byte and leaves it where it is.
async fn begins_with_tls(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    Ok(stream.peek(&mut first).await? == 1 && first[0] == HANDSHAKE_RECORD)
}

//! `tailwater snapshot save`: `Maintenance.Snapshot` into a file.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};
use tailwater_api::etcdserverpb as pb;
use tailwater_api::etcdserverpb::auth_client::AuthClient;
use tailwater_api::etcdserverpb::maintenance_client::MaintenanceClient;
use tailwater_tls::{ClientTls, TlsConfig};
use tailwater_transport::{LinkConfig, connect};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::flags::SaveFlags;

/// Bytes of the checksum behind the database.
const TRAILER_BYTES: usize = 32;

/// Asks the first endpoint that answers. The file has its name only once it is whole and durable.
///
/// # Errors
/// No endpoint answers, the stream breaks or does not fit its checksum, or the file can't be written.
#[expect(clippy::print_stdout, reason = "a command for a terminal")]
pub(super) fn run(flags: &SaveFlags) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let part = flags.file.with_added_extension("part");
    let version = runtime.block_on(fetch(flags, &part)).inspect_err(|_| {
        // What there is of it is of no use.
        fs::remove_file(&part).ok();
    })?;
    fs::rename(&part, &flags.file).with_context(|| flags.file.display().to_string())?;
    let directory = flags.file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()?;
    println!("Snapshot saved at {}", flags.file.display());
    println!("Server version {version}");
    Ok(())
}

/// Stores what the server sends; returns the version that it names.
async fn fetch(flags: &SaveFlags, part: &Path) -> anyhow::Result<String> {
    let mut messages = open(flags).await?;
    let mut file = BufWriter::new(File::create(part).with_context(|| part.display().to_string())?);
    let (mut digest, mut version) = (Sha256::new(), String::new());
    // The last bytes are the checksum of those before.
    let mut held = Vec::new();
    while let Some(message) = messages.message().await.map_err(|status| refused(&status))? {
        version = message.version;
        file.write_all(&message.blob)?;
        held.extend_from_slice(&message.blob);
        let database = held.len().saturating_sub(TRAILER_BYTES);
        digest.update(&held[..database]);
        held.drain(..database);
    }
    if held != digest.finalize()[..] {
        bail!("the snapshot does not fit its checksum: it was cut off or changed on its way");
    }
    file.into_inner()?.sync_all()?;
    Ok(version)
}

/// The stream of the first endpoint that begins one.
async fn open(flags: &SaveFlags) -> anyhow::Result<tonic::Streaming<pb::SnapshotResponse>> {
    let is_secure = flags.cacert.is_some() || flags.cert.is_some();
    let tls = TlsConfig {
        trusted_ca_file: flags.cacert.clone(),
        client_cert_file: flags.cert.clone(),
        client_key_file: flags.key.clone(),
        ..TlsConfig::default()
    };
    let link = LinkConfig { tls: Some(ClientTls::new(tls)), ..LinkConfig::default() };
    let scheme = if is_secure { "https" } else { "http" };
    let mut failed = anyhow::anyhow!("--endpoints names none");
    for endpoint in flags.endpoints.split(',').map(str::trim) {
        let url = if endpoint.contains("://") { endpoint.to_owned() } else { format!("{scheme}://{endpoint}") };
        let opened = async {
            let channel = connect(&url, &link).await?;
            let mut request = tonic::Request::new(pb::SnapshotRequest::default());
            if let Some(user) = &flags.user {
                request.metadata_mut().insert("token", log_in(channel.clone(), user, flags.password.as_deref()).await?);
            }
            let answer = MaintenanceClient::new(channel).snapshot(request).await;
            answer.map(tonic::Response::into_inner).map_err(|status| refused(&status))
        };
        match opened.await {
            Ok(messages) => return Ok(messages),
            Err(error) => failed = error.context(url.clone()),
        }
    }
    Err(failed)
}

/// The token of a user, whose password may stand behind the name.
async fn log_in(channel: Channel, user: &str, password: Option<&str>) -> anyhow::Result<MetadataValue<Ascii>> {
    let (name, password) = match (user.split_once(':'), password) {
        (_, Some(password)) => (user, password),
        (Some((name, password)), None) => (name, password),
        (None, None) => bail!("--user {user:?} needs a password: --user={user}:PASSWORD, or --password"),
    };
    let request = pb::AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
    let answer = AuthClient::new(channel).authenticate(request).await.map_err(|status| refused(&status))?;
    Ok(answer.into_inner().token.parse()?)
}

fn refused(status: &tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

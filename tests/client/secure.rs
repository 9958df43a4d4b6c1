//! TLS, with certificates on both sides.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tailwater_client::{Client, Phase, TlsFiles};
use tailwater_tests::{Kind, free_port, program};
use tempfile::TempDir;

use crate::kinds;
use crate::support::{ALLOW_PINGS, builder, cached, put, texts, until};

/// An authority and one certificate of it, for both sides of a connection on this machine.
fn certificates(dir: &Path, name: &str) -> anyhow::Result<TlsFiles> {
    let write = |part: &str, text: String| -> anyhow::Result<Option<PathBuf>> {
        let file = dir.join(format!("{name}-{part}.pem"));
        std::fs::write(&file, text)?;
        Ok(Some(file))
    };
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_key = KeyPair::generate()?;
    let ca_file = write("ca", ca.self_signed(&ca_key)?.pem())?;
    let mut own = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    own.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let cert = own.signed_by(&key, &Issuer::new(ca, ca_key))?;
    Ok(TlsFiles { ca_file, cert_file: write("cert", cert.pem())?, key_file: write("key", key.serialize_pem())? })
}

/// A server that asks clients for certificates; killed when dropped.
struct Secure {
    child: Child,
    url: String,
    _data: TempDir,
}

impl Drop for Secure {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Secure {
    fn start(kind: Kind, files: &TlsFiles) -> anyhow::Result<Self> {
        let url = format!("https://127.0.0.1:{}", free_port());
        let peer = format!("http://127.0.0.1:{}", free_port());
        let data = tempfile::tempdir()?;
        let mut command = Command::new(program(kind)?);
        if kind == Kind::Tailwater {
            command.arg("serve");
        }
        command.args(["--name=default", "--client-cert-auth", ALLOW_PINGS, "--data-dir"]).arg(data.path().join("data"));
        for (flag, file) in
            [("trusted-ca-file", &files.ca_file), ("cert-file", &files.cert_file), ("key-file", &files.key_file)]
        {
            command.arg(format!("--{flag}={}", file.as_ref().expect("all are there").display()));
        }
        for (flag, url) in [
            ("listen-client-urls", &url),
            ("advertise-client-urls", &url),
            ("listen-peer-urls", &peer),
            ("initial-advertise-peer-urls", &peer),
            ("initial-cluster", &format!("default={peer}")),
        ] {
            command.arg(format!("--{flag}={url}"));
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Self { child, url, _data: data })
    }
}

#[tokio::test]
async fn an_informer_speaks_tls_with_those_that_it_trusts_and_that_trust_it() {
    let dir = tempfile::tempdir().unwrap();
    let [ours, others] = ["ours", "others"].map(|name| certificates(dir.path(), name).unwrap());
    for kind in kinds("TLS of the client on etcd") {
        let server = Secure::start(kind, &ours).unwrap();
        // Without a scheme: with TLS files it is https.
        let address = server.url.trim_start_matches("https://").to_owned();
        let client = builder([address]).tls(ours.clone()).build().unwrap();
        let informer = texts(&client);
        until(&informer, |status| status.phase == Phase::Watching).await;
        put(&client, "/c/1", "one").await;
        assert_eq!(cached(&informer.consistent().await.unwrap()), [("/c/1".to_owned(), "one".to_owned())]);
        let distrustful = TlsFiles { ca_file: others.ca_file.clone(), ..ours.clone() };
        let distrusted = TlsFiles { ca_file: ours.ca_file.clone(), ..others.clone() };
        let nobody = TlsFiles { ca_file: ours.ca_file.clone(), ..TlsFiles::default() };
        for files in [distrustful, distrusted, nobody] {
            let informer = texts(&builder([server.url.clone()]).tls(files.clone()).build().unwrap());
            until(&informer, |status| status.failure.is_some()).await;
            assert!(!informer.is_synced(), "{kind:?}: {files:?}");
        }
        assert!(Client::builder([server.url.clone()]).build().is_err(), "TLS is to be configured");
    }
    let missing = TlsFiles { ca_file: Some("/nowhere".into()), ..TlsFiles::default() };
    assert!(Client::builder(["https://127.0.0.1:1"]).tls(missing).build().is_err());
}

//! Texts: headers and tokens of clients, flags and files of operators.

use tailwater_gateway::fuzzing as gateway;
use tailwater_server::fuzzing as server;

/// Values of headers.
pub(crate) fn headers(data: &[u8]) -> bool {
    gateway::header(data)
}

pub(crate) fn header_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "250m",
        "99999999H",
        "17/42",
        "3.5",
        "3.10.7-rc.1",
        "exclude=NOSPACE&serializable=true",
        "/etcdserverpb.KV/Put",
    ];
    texts.map(|text| text.as_bytes().to_vec()).into()
}

/// The first byte says whether the rest is a token or the claims of one that is signed.
pub(crate) fn tokens(data: &[u8]) -> bool {
    match data.split_first() {
        Some((kind, rest)) if kind & 1 == 0 => gateway::token(rest),
        Some((_, rest)) => gateway::claims(rest),
        None => false,
    }
}

pub(crate) fn token_seeds() -> Vec<Vec<u8>> {
    let claims = [r#"{"exp":5300,"revision":3,"username":"u"}"#, r#"{"nbf":1.5,"revision":1e3,"username":"\u00e9"}"#];
    let mut seeds: Vec<Vec<u8>> = claims.iter().map(|text| [&[1][..], text.as_bytes()].concat()).collect();
    seeds.push([&[0, 9, b'Z', 0][..], b"tw1.AAAAAABMS0AAAAAAAAAAAHU.AAAA"].concat());
    seeds.push([&[0, 200, b'.', 1][..], b"eyJhbGciOiJub25lIn0.e30."].concat());
    seeds
}

/// The first byte says what the rest is: a flag's value, a configuration file, a command line.
pub(crate) fn config(data: &[u8]) -> bool {
    let Some((&kind, rest)) = data.split_first() else { return false };
    let Ok(text) = std::str::from_utf8(rest) else { return false };
    match kind % 3 {
        0 => server::value(text),
        1 => server::config_file(text),
        _ => server::command_line(text),
    }
}

pub(crate) fn config_seeds() -> Vec<Vec<u8>> {
    let file = "# comment\nname: 'a'\nsnapshot-count: 10000\nstrict-reconfig-check: false\n\
                watch-progress-notify-interval: 5000000000\nlog-outputs: [stderr, 'file']\n\
                client-transport-security:\n  cert-file: c.pem\n  client-cert-auth: true\n\
                peer-transport-security:\n  allowed-cn:\n    - x\n    - y\ndiscovery:\nwhatever: 5\n";
    let line = "--name\na\n--auto-tls\n-heartbeat-interval=50\n\nETCD_MAX_TXN_OPS=64\nETCD_NOPE=1\n\n";
    let with_file = format!("--config-file=f\n\nETCD_NAME=b\n\n{file}");
    let json = "{\"name\": \"j\", \"roles\": \"all\"}";
    let texts = [
        (0, "1h30m1.5s"),
        (0, "300us"),
        (0, "https://[::1]:2379"),
        (1, file),
        (1, json),
        (2, line),
        (2, with_file.as_str()),
    ];
    texts.map(|(kind, text)| [&[kind][..], text.as_bytes()].concat()).into()
}

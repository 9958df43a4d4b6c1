//! Connections that no library would make: HTTP/2 frames in any order with any content, garbage, and silence.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::guard::is_harmless;
use crate::messages;
use crate::random::Random;
use crate::run::World;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Half-open connections and slow readers stay so long.
const HELD_MAX_MS: usize = 1500;
const CONNECT_MAX: Duration = Duration::from_secs(20);
/// What a gateway takes at most, about.
const OVERSIZE: u32 = 64 << 20;
const FRAME_BYTES_MAX: usize = 16 << 10;

/// One connection, from its beginning to its end.
///
/// # Errors
/// It can't be made: the server does not accept.
pub(crate) async fn any(world: &World, random: &mut Random) -> anyhow::Result<()> {
    let connected = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(world.address)).await;
    let mut stream = connected.map_err(|_| anyhow::anyhow!("no connection within {CONNECT_MAX:?}"))??;
    stream.set_nodelay(true)?;
    // The server may close at any moment; that is its right.
    let _closed = match random.below(8) {
        0 => silence(random, &mut stream).await,
        1 => garbage(random, &mut stream).await,
        2 => slow_reader(world, random, &mut stream).await,
        _ => frames(world, random, &mut stream).await,
    };
    if random.one_in(3) {
        // A reset instead of an end.
        let _reset = stream.set_zero_linger();
    }
    Ok(())
}

/// Nothing, or the beginning of something.
async fn silence(random: &mut Random, stream: &mut TcpStream) -> std::io::Result<()> {
    let beginnings: [&[u8]; 5] = [
        b"",
        PREFACE,
        b"POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",
        b"GET /hea",
        b"\x16\x03\x01",
    ];
    let beginning = random.pick(&beginnings);
    let len = random.below(beginning.len() + 1);
    stream.write_all(&beginning[..len]).await?;
    if random.one_in(2) {
        stream.shutdown().await?;
    }
    hold(random).await;
    Ok(())
}

async fn garbage(random: &mut Random, stream: &mut TcpStream) -> std::io::Result<()> {
    let begins_well = random.one_in(2);
    if begins_well {
        stream.write_all(PREFACE).await?;
    }
    for _ in 0..random.below(6) {
        let noise = random.noise(2000);
        stream.write_all(&noise).await?;
        drain(stream).await?;
    }
    Ok(())
}

/// Asks for much and reads nothing of it.
async fn slow_reader(world: &World, random: &mut Random, stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(PREFACE).await?;
    // Initial window of streams.
    let window = *random.pick(&[0_u32, 1, 100, 65_535]);
    let settings = [&4_u16.to_be_bytes()[..], &window.to_be_bytes()].concat();
    stream.write_all(&frame(SETTINGS, 0, 0, &settings)).await?;
    let everything = b"\x0a\x01\0\x12\x01\0";
    let watch = [&[0x0a, 10, 0x0a, 1, 0, 0x12, 1, 0, 0x18, 1, 0x38, 1][..]].concat();
    for nth in 0..=random.below(6) {
        let id = u32::try_from(nth).expect("few") * 2 + 1;
        let (path, body): (&str, &[u8]) = match random.below(4) {
            0 => ("/etcdserverpb.KV/Range", everything),
            1 => ("/etcdserverpb.Watch/Watch", &watch),
            2 => ("/etcdserverpb.Maintenance/Snapshot", b""),
            _ => ("/etcdserverpb.KV/RangeStream", everything),
        };
        let token = random.pick(&world.tokens).clone();
        let block = block(&call_headers(path, token.as_deref()));
        stream.write_all(&frame(HEADERS, END_HEADERS, id, &block)).await?;
        let end = if path.ends_with("Watch") { 0 } else { END_STREAM };
        stream.write_all(&frame(DATA, end, id, &prefixed(0, body))).await?;
    }
    hold(random).await;
    // Some read on then.
    if random.one_in(2) {
        stream.write_all(&frame(WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes())).await?;
        stream.write_all(&frame(WINDOW_UPDATE, 0, 1, &(1_u32 << 20).to_be_bytes())).await?;
        drain(stream).await?;
    }
    Ok(())
}

/// Frames as they come to mind, some of calls that are well-formed.
async fn frames(world: &World, random: &mut Random, stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(PREFACE).await?;
    if !random.one_in(8) {
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    }
    let mut next_id = 1;
    for _ in 0..=random.below(16) {
        let out = match random.below(12) {
            0..6 => call(world, random, &mut next_id),
            6 => control(random, next_id),
            7 => {
                let id = id(random, next_id);
                frame(RST_STREAM, 0, id, &[0, 0, 0, 8])
            }
            8 => {
                let (kind, flags, id) = (random.byte(), random.byte(), id(random, next_id));
                let payload = random.noise(100);
                frame(kind, flags, id, &payload)
            }
            9 => {
                let id = id(random, next_id);
                let payload = random.noise(200);
                frame(DATA, random.byte() & END_STREAM, id, &payload)
            }
            10 => {
                // A length that the frame does not have.
                let mut out = frame(DATA, 0, id(random, next_id), &[0; 20]);
                let at = random.below(3);
                out[at] = random.byte();
                out
            }
            _ => {
                let whole = call(world, random, &mut next_id);
                random.changed(whole)
            }
        };
        stream.write_all(&out).await?;
        if !random.one_in(3) {
            drain(stream).await?;
        }
    }
    if random.one_in(6) {
        hold(random).await;
    }
    Ok(())
}

/// One call, with headers and a body that may be wrong in one place.
fn call(world: &World, random: &mut Random, next_id: &mut u32) -> Vec<u8> {
    let mut method = random.pick(&world.methods).clone();
    let mut body = messages::bytes(random, &method.input);
    // Not the same with an empty body: to turn auth off, none is needed.
    while !is_harmless(&method.path, &body, world.with_auth, world.member) {
        method = random.pick(&world.methods).clone();
        body = messages::bytes(random, &method.input);
    }
    let token = random.pick(&world.tokens).clone();
    let mut headers = call_headers(&method.path, token.as_deref());
    if random.one_in(2) {
        spoil(random, &mut headers);
    }
    let id = *next_id;
    *next_id += 2;
    let block = block(&headers);
    let mut out = if random.one_in(8) && block.len() > 2 {
        // In two pieces, and sometimes without the second.
        let cut = block.len() / 2;
        let mut out = frame(HEADERS, 0, id, &block[..cut]);
        if !random.one_in(4) {
            out.extend(frame(CONTINUATION, END_HEADERS, id, &block[cut..]));
        }
        out
    } else {
        let end = if random.one_in(12) { END_STREAM } else { 0 };
        frame(HEADERS, END_HEADERS | end, id, &block)
    };
    let mut data = match random.below(12) {
        0 => prefixed(1, &body),
        1 => prefixed(random.byte(), &body),
        2 => [&[0][..], &OVERSIZE.to_be_bytes(), &body].concat(),
        3 => {
            let mut cut = prefixed(0, &body);
            let len = random.below(cut.len() + 1);
            cut.truncate(len);
            cut
        }
        4 => [prefixed(0, &body), prefixed(0, &body)].concat(),
        _ => prefixed(0, &body),
    };
    let end = if random.one_in(5) { 0 } else { END_STREAM };
    while data.len() > FRAME_BYTES_MAX {
        let rest = data.split_off(FRAME_BYTES_MAX);
        out.extend(frame(DATA, 0, id, &std::mem::replace(&mut data, rest)));
    }
    if random.one_in(10) && data.len() > 1 {
        let rest = data.split_off(1);
        out.extend(frame(DATA, 0, id, &std::mem::replace(&mut data, rest)));
    }
    out.extend(frame(DATA, end, id, &data));
    out
}

type Headers = Vec<(Vec<u8>, Vec<u8>)>;

fn call_headers(path: &str, token: Option<&str>) -> Headers {
    let mut headers: Vec<(&str, &str)> = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ];
    headers.extend(token.map(|token| ("token", token)));
    headers.into_iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}

/// Makes one header wrong.
fn spoil(random: &mut Random, headers: &mut Headers) {
    let paths: [&[u8]; 9] =
        [b"", b"/", b"/x", b"*", b"/etcdserverpb.KV/", b"/etcdserverpb.KV/Range?x=1", b"//", b"/a/b/c/d", b"/\xff"];
    let types: [&[u8]; 6] = [
        b"application/grpc+proto",
        b"application/grpc-web",
        b"application/json",
        b"",
        b"text/html",
        b"application/grpc;x",
    ];
    let at = random.below(headers.len());
    match random.below(9) {
        0 => drop(headers.remove(at)),
        1 => headers.push(headers[at].clone()),
        2 => headers[2].1 = random.pick(&paths).to_vec(),
        3 => headers[5].1 = random.pick(&types).to_vec(),
        4 => headers[0].1 = random.pick(&[&b"GET"[..], b"PUT", b"post", b"", b"CONNECT", b"OPTIONS"]).to_vec(),
        5 => {
            let value = random.noise(60);
            headers[at].1 = value;
        }
        6 => {
            let name = random.noise(20);
            headers.push((name, b"x".to_vec()));
        }
        7 => headers.push((b"x-long".to_vec(), vec![b'x'; random.below(12_000)])),
        _ => {
            let encodings: [&[u8]; 3] = [b"gzip", b"", b"identity"];
            let encoding = random.pick(&encodings).to_vec();
            headers.push((b"grpc-encoding".to_vec(), encoding));
        }
    }
}

/// Frames that are about the connection.
fn control(random: &mut Random, next_id: u32) -> Vec<u8> {
    match random.below(7) {
        0 => frame(PING, 0, 0, &[7; 8]),
        1 => frame(PING, 0, 0, &[7; 8]).repeat(1 + random.below(40)),
        2 => {
            let (name, value) = (random.below(9), random.number());
            let name = u16::try_from(name).expect("below nine").to_be_bytes();
            let value = value.to_be_bytes();
            frame(SETTINGS, 0, 0, &[&name[..], &value[4..]].concat())
        }
        3 => frame(GOAWAY, 0, 0, &[0; 8]),
        4 => frame(PRIORITY, 0, id(random, next_id), &[0, 0, 0, 1, 16]),
        5 => {
            let size = *random.pick(&[0_u32, 1, 1000, 0x7fff_ffff]);
            frame(WINDOW_UPDATE, 0, id(random, next_id), &size.to_be_bytes())
        }
        _ => frame(SETTINGS, 1, 0, &[]),
    }
}

/// A stream that there was, will be, or can't be.
fn id(random: &mut Random, next_id: u32) -> u32 {
    match random.below(6) {
        0 => 0,
        1 => next_id + 100,
        2 => 2,
        _ => u32::try_from(random.below(8)).expect("small") * 2 + 1,
    }
}

fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("payloads are short").to_be_bytes();
    [&len[1..], &[kind, flags], &id.to_be_bytes(), payload].concat()
}

/// A message in gRPC's framing.
fn prefixed(flag: u8, message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).expect("messages are short").to_be_bytes();
    [&[flag][..], &len[..], message].concat()
}

/// Headers as literals, without the tables that compress them.
fn block(headers: &Headers) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in headers {
        out.push(0);
        for text in [name, value] {
            put_len(&mut out, text.len());
            out.extend_from_slice(text);
        }
    }
    out
}

/// HPACK's integer with a prefix of seven bits.
fn put_len(out: &mut Vec<u8>, len: usize) {
    const PREFIX: usize = 127;
    if len < PREFIX {
        out.push(u8::try_from(len).expect("below 127"));
        return;
    }
    out.push(0x7f);
    let mut rest = len - PREFIX;
    while rest >= 128 {
        out.push(u8::try_from(rest % 128).expect("below 128") | 0x80);
        rest /= 128;
    }
    out.push(u8::try_from(rest).expect("below 128"));
}

async fn hold(random: &mut Random) {
    tokio::time::sleep(Duration::from_millis(random.below(HELD_MAX_MS) as u64)).await;
}

/// Reads what is there.
async fn drain(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read) = tokio::time::timeout(Duration::from_millis(3), stream.read(&mut buffer)).await {
        if read? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

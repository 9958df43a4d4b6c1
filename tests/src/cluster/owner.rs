//! Who holds a socket of this machine, out of /proc.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

/// Two ends of a connection, as the kernel prints them.
type Ends = (String, String);

/// Finds sockets in the kernel's table of connections. The kernel walks over all of its table for each reader, which
/// takes milliseconds; so whoever asks while it is read shares the next reading, and nobody waits on a thread that
/// moves bytes. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Resolver {
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    asked: Vec<(Ends, oneshot::Sender<Option<u64>>)>,
    /// Whether somebody reads the table, and will read it again for those who ask meanwhile.
    is_read: bool,
}

impl Resolver {
    /// The inode of the TCP socket at `local` that is connected to `remote`; both IPv4.
    pub(super) async fn socket_of(&self, local: SocketAddr, remote: SocketAddr) -> Option<u64> {
        let ends = (in_proc(local)?, in_proc(remote)?);
        let (answer, answered) = oneshot::channel();
        let is_first = {
            let mut waiting = self.waiting.lock().expect("nobody panics with the lock");
            waiting.asked.push((ends, answer));
            !std::mem::replace(&mut waiting.is_read, true)
        };
        if is_first {
            let waiting = Arc::clone(&self.waiting);
            tokio::task::spawn_blocking(move || answer_all(&waiting));
        }
        answered.await.ok()?
    }
}

/// Reads the table until nobody asks any more.
fn answer_all(waiting: &Mutex<Waiting>) {
    loop {
        let asked = {
            let mut waiting = waiting.lock().expect("nobody panics with the lock");
            waiting.is_read = !waiting.asked.is_empty();
            std::mem::take(&mut waiting.asked)
        };
        if asked.is_empty() {
            return;
        }
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let sockets: HashMap<(&str, &str), u64> = table.lines().skip(1).filter_map(row).collect();
        for ((local, remote), answer) in asked {
            // Who asked may have gone.
            answer.send(sockets.get(&(&*local, &*remote)).copied()).ok();
        }
    }
}

/// The two ends and the inode of a line of the table.
fn row(line: &str) -> Option<((&str, &str), u64)> {
    let mut fields = line.split_whitespace().skip(1);
    let ends = (fields.next()?, fields.next()?);
    // After the two addresses: state, queues, timer, retransmits, uid, timeout, inode.
    Some((ends, fields.nth(6)?.parse().ok()?))
}

/// Whether `process` has the socket open.
pub(super) fn holds(process: u32, socket: u64) -> bool {
    let Ok(files) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    let wanted = format!("socket:[{socket}]");
    files
        .flatten()
        .any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str()))
}

/// The kernel prints the four bytes as one number in the machine's byte order.
fn in_proc(address: SocketAddr) -> Option<String> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port()))
}

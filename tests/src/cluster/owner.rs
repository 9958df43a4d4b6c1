//! Who holds a socket of this machine, out of /proc.

use std::net::{IpAddr, SocketAddr};

/// The inode of the TCP socket at `local` that is connected to `remote`; both IPv4.
pub(super) fn socket_of(local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let (local, remote) = (in_proc(local)?, in_proc(remote)?);
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let matches = fields.next() == Some(&local) && fields.next() == Some(&remote);
        // After the two addresses: state, queues, timer, retransmits, uid, timeout, inode.
        if matches { fields.nth(6)?.parse().ok() } else { None }
    })
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

//! Ports for nodes under test.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

/// First port tried. The range ends below the kernel's ephemeral ports, so no outgoing connection takes a port between the check and its use.
const FIRST: u32 = 10_240;
/// Ports in the range; it ends before the default ports of a node, which tests of the defaults use.
const COUNT: u32 = 20_000;

/// A port of the loopback address that is free for TCP and UDP, and that this process has not handed out before.
///
/// Panics if the whole range is taken.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        // Processes start at different places, so that suites running side by side rarely try the same port.
        let offset = std::process::id().wrapping_mul(211).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + offset % COUNT).expect("the range lies below 65536");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if free {
            return port;
        }
    }
    panic!("no port between {FIRST} and {} is free", FIRST + COUNT);
}

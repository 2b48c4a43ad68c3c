//! The addresses under which other nodes reach this one.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};

/// What to tell others about a socket bound to `bound`.
///
/// A socket on loopback or on one address is told as it is; one on every address is told by `configured`, else by the address
/// that `detect` finds, else by loopback.
pub(crate) fn advertised(bound: SocketAddr, configured: Option<IpAddr>, detect: impl FnOnce() -> Option<IpAddr>) -> SocketAddr {
    if bound.ip().is_loopback() {
        return bound;
    }
    let ip = match configured {
        Some(ip) => Some(ip),
        None if bound.ip().is_unspecified() => detect(),
        None => Some(bound.ip()),
    };
    match ip {
        Some(ip) => SocketAddr::new(ip, bound.port()),
        None => super::neighbours::from_here(bound),
    }
}

/// This machine's address on the way to the first seed that resolves, else on the way out. No packet is sent.
pub(crate) fn towards(seeds: &[String]) -> Option<IpAddr> {
    let outside = SocketAddr::from(([192, 0, 2, 1], 9)); // TEST-NET-1: routed like any address, answered by none
    let seed = seeds.iter().filter_map(|seed| seed.to_socket_addrs().ok()?.find(|seed| !seed.ip().is_loopback())).next();
    let target = seed.unwrap_or(outside);
    let any: SocketAddr = if target.is_ipv6() { ([0u16; 8], 0).into() } else { ([0, 0, 0, 0], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(target).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(bound: &str, configured: Option<&str>, detected: Option<&str>) -> String {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        advertised(bound.parse().unwrap(), configured.map(ip), || detected.map(ip)).to_string()
    }

    #[test]
    fn one_address_is_told_as_it_is_and_every_address_as_the_best_that_is_known() {
        assert_eq!(told("127.0.0.1:1", Some("10.0.0.9"), Some("10.0.0.2")), "127.0.0.1:1");
        assert_eq!(told("10.0.0.3:1", None, Some("10.0.0.2")), "10.0.0.3:1");
        assert_eq!(told("10.0.0.3:1", Some("10.0.0.9"), None), "10.0.0.9:1");
        assert_eq!(told("0.0.0.0:1", Some("10.0.0.9"), Some("10.0.0.2")), "10.0.0.9:1");
        assert_eq!(told("0.0.0.0:1", None, Some("10.0.0.2")), "10.0.0.2:1");
        assert_eq!(told("0.0.0.0:1", None, None), "127.0.0.1:1");
        assert_eq!(told("[::]:1", None, None), "[::1]:1");
    }
}

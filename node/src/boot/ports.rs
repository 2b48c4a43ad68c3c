//! The node's sockets: an address that was asked for must be free; defaults move on together until all of them are.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use crate::config::{ConfigError, ValidConfig, clash};

/// How far apart the defaults of two nodes of one machine are.
const STRIDE: u16 = 10;
/// Most nodes of one machine on default addresses; further ones take any free port.
const NODES_MAX: u16 = 50;

/// Every socket of a node, bound.
#[derive(Debug)]
pub(crate) struct Ports {
    pub(crate) http: TcpListener,
    pub(crate) metrics: Option<TcpListener>,
    pub(crate) link: TcpListener,
    pub(crate) gossip: UdpSocket,
}

/// A socket that could not be bound.
struct Refused {
    key: &'static str,
    address: SocketAddr,
    error: io::Error,
}

/// Binds every socket.
pub(crate) fn bind(valid: &ValidConfig) -> Result<Ports, ConfigError> {
    let mut refused = None;
    for place in (0..NODES_MAX).map(Some).chain([None]) {
        match bind_at(valid, place) {
            Ok(ports) => return Ok(ports),
            Err(error) if error.error.kind() == io::ErrorKind::AddrInUse && !valid.is_explicit(error.key) => refused = Some(error),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let Refused { key, address, error } = refused.expect("each round that bound nothing says why");
    let problem = match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there".to_owned(),
        _ => format!("it cannot be bound: {error}"),
    };
    let remedy = "stop that program, or give this node another address (port 0 takes any free one)";
    Err(valid.refuse(key, format!("\"{address}\""), problem, remedy))
}

/// Binds explicit addresses as they are, and defaults as the node at `place` of this machine has them; `None`: on any port.
fn bind_at(valid: &ValidConfig, place: Option<u16>) -> Result<Ports, Refused> {
    let config = valid.get();
    let metrics = config.metrics.enabled.then_some(("metrics.listen", config.metrics.listen));
    let tcp = [Some(("http.listen", config.http.listen)), metrics, Some(("link.listen", config.link.listen))];
    let explicit: Vec<SocketAddr> =
        tcp.into_iter().flatten().filter(|(key, _)| valid.is_explicit(key)).map(|(_, address)| address).collect();
    let wanted = |key: &'static str, mut address: SocketAddr| {
        if !valid.is_explicit(key) {
            address.set_port(place.map_or(0, |place| address.port() + STRIDE * place));
            if explicit.iter().any(|taken| clash(*taken, address)) {
                return Err(Refused { key, address, error: io::ErrorKind::AddrInUse.into() });
            }
        }
        Ok(address)
    };
    let listen = |(key, address): (&'static str, SocketAddr)| {
        let address = wanted(key, address)?;
        let bound = TcpListener::bind(address).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        bound.map_err(|error| Refused { key, address, error })
    };
    let datagrams = |(key, address): (&'static str, SocketAddr)| {
        let address = if valid.is_explicit(key) { address } else { wanted(key, address)? };
        let bound = UdpSocket::bind(address).and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        bound.map_err(|error| Refused { key, address, error })
    };
    Ok(Ports {
        http: listen(("http.listen", config.http.listen))?,
        metrics: metrics.map(listen).transpose()?,
        link: listen(("link.listen", config.link.listen))?,
        gossip: datagrams(("gossip.listen", config.gossip.listen))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    fn configured(variables: &[(&str, String)]) -> ValidConfig {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        load(Sources { variables, ..Sources::default() }).unwrap()
    }

    #[test]
    fn defaults_that_are_taken_move_on_together() {
        let valid = configured(&[]);
        let one = bind(&valid).unwrap();
        let two = bind(&valid).unwrap();
        let (one, two) = (
            one.http.local_addr().unwrap().port(),
            [
                two.http.local_addr().unwrap().port(),
                two.metrics.as_ref().unwrap().local_addr().unwrap().port(),
                two.gossip.local_addr().unwrap().port(),
                two.link.local_addr().unwrap().port(),
            ],
        );
        assert!(two[0] != one && (two[0] - 31313).is_multiple_of(STRIDE), "{one} {two:?}");
        assert_eq!(two.map(|port| port - two[0]), [0, 1, 2, 3]);
    }

    #[test]
    fn an_address_that_was_asked_for_and_is_taken_is_refused_with_its_key() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let error = bind(&configured(&[("PLEXUS_HTTP__LISTEN", address.clone())])).unwrap_err().to_string();
        for part in ["http.listen", &address, "PLEXUS_HTTP__LISTEN", "another program listens there", "port 0"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn port_zero_takes_any_free_port_and_metrics_can_be_switched_off() {
        let any = || "127.0.0.1:0".to_owned();
        let valid = configured(&[
            ("PLEXUS_HTTP__LISTEN", any()),
            ("PLEXUS_LINK__LISTEN", any()),
            ("PLEXUS_GOSSIP__LISTEN", any()),
            ("PLEXUS_METRICS__ENABLED", "false".to_owned()),
        ]);
        let ports = bind(&valid).unwrap();
        assert_ne!(ports.http.local_addr().unwrap().port(), 0);
        assert!(ports.metrics.is_none());
    }

    #[test]
    fn a_default_gives_way_to_an_address_that_was_asked_for() {
        // What metrics.listen would be at some place of this machine, and no other program has, taken for HTTP.
        let default = |place: u16| format!("127.0.0.1:{}", 31314 + STRIDE * place);
        let place = (0..NODES_MAX).find(|place| TcpListener::bind(default(*place)).is_ok()).expect("one of fifty ports is free");
        let valid = configured(&[("PLEXUS_HTTP__LISTEN", default(place))]);
        let Err(Refused { key, error, .. }) = bind_at(&valid, Some(place)) else { panic!("both were given one port") };
        assert_eq!((key, error.kind()), ("metrics.listen", io::ErrorKind::AddrInUse));
        let ports = bind(&valid).unwrap();
        assert_eq!(ports.http.local_addr().unwrap().to_string(), default(place));
        assert_ne!(ports.metrics.unwrap().local_addr().unwrap().to_string(), default(place));
    }
}

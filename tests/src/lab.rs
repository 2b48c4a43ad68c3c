//! Hosts in network namespaces, whose links can be cut: a wrapper of `lab/netns.sh`.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

/// A few hosts on one network. Removed when dropped.
#[derive(Debug)]
pub struct Lab {
    name: String,
    subnet: u8,
}

impl Lab {
    /// Builds `hosts` hosts, or says why this machine cannot: it takes root, network namespaces, iproute2 and nftables.
    pub fn build(hosts: u8) -> Result<Self, String> {
        let id = std::process::id();
        // A name and a subnet of its own, so that two runs on one machine do not meet. Interface names have at most 15 characters.
        let lab = Self { name: format!("plx{}", id % 100_000), subnet: u8::try_from(id % 200).expect("below 200") + 20 };
        lab.run(&["up", &hosts.to_string()])?;
        Ok(lab)
    }

    /// The address of host `host`, counted from 1.
    pub fn address(&self, host: u8) -> IpAddr {
        Ipv4Addr::new(10, 77, self.subnet, host).into()
    }

    /// The command that runs what follows it inside host `host`.
    pub fn inside(&self, host: u8) -> [String; 4] {
        ["ip".into(), "netns".into(), "exec".into(), format!("{}-h{host}", self.name)]
    }

    /// Drops everything between two hosts.
    pub fn cut(&self, a: u8, b: u8) {
        self.must(&["cut", &a.to_string(), &b.to_string()]);
    }

    /// Drops everything between a host and all others.
    pub fn isolate(&self, host: u8) {
        self.must(&["isolate", &host.to_string()]);
    }

    /// Undoes all cuts.
    pub fn heal(&self) {
        self.must(&["heal"]);
    }

    fn must(&self, arguments: &[&str]) {
        if let Err(error) = self.run(arguments) {
            panic!("netns.sh {arguments:?}: {error}");
        }
    }

    fn run(&self, arguments: &[&str]) -> Result<(), String> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/lab/netns.sh");
        let mut command = Command::new("bash");
        command.arg(script).args(arguments).env("LAB", &self.name).env("SUBNET", format!("10.77.{}", self.subnet));
        let output = command.output().map_err(|error| error.to_string())?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.run(&["down"]) {
            eprintln!("the lab {} was not removed: {error}", self.name);
        }
    }
}

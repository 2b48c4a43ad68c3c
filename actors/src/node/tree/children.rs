//! The children of a node's root, each with what it is told.

use std::sync::Arc;

use super::parts::Parts;
use crate::address::Address;
use crate::args::NodeArgs;
use crate::catalogue::{CatalogueActor, CatalogueArgs, CatalogueMsg};
use crate::device::{self, DeviceActor, DeviceArgs, DeviceMsg};
use crate::evictor::{EvictorActor, EvictorArgs, EvictorMsg};
use crate::gateway::{GatewayActor, GatewayArgs, TokenSinkActor, TokenSinkArgs, Traffic};
use crate::http_front::{HttpFrontActor, HttpFrontArgs, HttpFrontMsg};
use crate::inference::ClusterInference;
use crate::link::{LinkActor, LinkArgs, LinkMsg};
use crate::membership::{MembershipActor, MembershipArgs, MembershipMsg};
use crate::node::child::{Ask, Child, Kind};
use crate::node::{NodeMsg, Role, Slot};
use crate::router::{RouterActor, RouterArgs, RouterMsg};
use crate::streams::{StreamsActor, StreamsArgs, StreamsMsg};

/// The children, in the order of their start.
#[derive(Default)]
pub(super) struct Children(Vec<Slot>);

impl Children {
    /// What other nodes speak to, and the links over which they do.
    pub(super) fn add_links(&mut self, parts: &Parts, args: &NodeArgs) {
        let (peers, inbound) = (&parts.peers, &parts.inbound);
        let (traffic, address) = (Traffic::default(), Address::new());
        let counted = traffic.clone();
        self.add(
            "gateway",
            Role::Other,
            Kind {
                actor: || GatewayActor,
                address: address.clone(),
                args: GatewayArgs { address, peers: peers.clone(), inbound: inbound.clone(), traffic },
                ask: Ask::Shared(Box::new(move || counted.inspection())),
            },
        );
        let (traffic, address) = (Traffic::default(), Address::new());
        let counted = traffic.clone();
        self.add(
            "tokens",
            Role::Other,
            Kind {
                actor: || TokenSinkActor,
                address: address.clone(),
                args: TokenSinkArgs { address, peers: peers.clone(), inbound: inbound.clone(), traffic },
                ask: Ask::Shared(Box::new(move || counted.inspection())),
            },
        );
        self.add(
            "link",
            Role::Other,
            Kind {
                actor: || LinkActor,
                address: parts.link.clone(),
                args: LinkArgs {
                    address: parts.link.clone(),
                    me: parts.me.clone(),
                    secret: args.secret.clone(),
                    listener: args.sockets.link.clone(),
                    timing: args.timing.clone(),
                    peers: peers.clone(),
                    known: parts.known.clone(),
                    inbound: inbound.clone(),
                    store: Some(parts.store.clone()),
                },
                ask: Ask::Message(LinkMsg::Inspect),
            },
        );
    }

    /// What decides of memory, of places, and of the way of each stream.
    pub(super) fn add_deciders(&mut self, parts: &Parts, args: &NodeArgs) {
        let evictor = EvictorArgs {
            address: parts.evictor.clone(),
            config: args.eviction,
            node: parts.node.clone(),
            router: parts.router.clone(),
            models: parts.models.clone(),
            pins: args.pins.clone(),
            me: parts.me.name.clone(),
        };
        let ask = Ask::Message(EvictorMsg::Inspect);
        self.add("evictor", Role::Evictor, Kind { actor: || EvictorActor, address: parts.evictor.clone(), args: evictor, ask });
        let router = RouterArgs {
            address: parts.router.clone(),
            view: parts.view.clone(),
            nodes: parts.nodes.clone(),
            streams: parts.streams.clone(),
            models: parts.models.clone(),
            known: parts.known.clone(),
            policy: args.eviction.policy,
            n_devices: args.devices.len(),
            has_seeds: !args.seeds.is_empty(),
        };
        let ask = Ask::Message(RouterMsg::Inspect);
        self.add("router", Role::Router, Kind { actor: || RouterActor, address: parts.router.clone(), args: router, ask });
        let streams = StreamsArgs {
            address: parts.streams.clone(),
            me: parts.me.clone(),
            config: args.streams.clone(),
            router: parts.router.clone(),
            models: parts.models.clone(),
            peers: parts.peers.clone(),
            ingresses: parts.ingresses.clone(),
        };
        let ask = Ask::Message(StreamsMsg::Inspect);
        self.add("streams", Role::Other, Kind { actor: || StreamsActor, address: parts.streams.clone(), args: streams, ask });
    }

    /// The devices.
    pub(super) fn add_devices(&mut self, parts: &Parts, args: &NodeArgs) {
        for spec in &args.devices {
            let address = parts.devices.get(spec.id).expect("each of them has an address");
            let device = DeviceArgs { address: address.clone(), spec: spec.clone(), evictor: parts.evictor.clone() };
            let ask = Ask::Message(DeviceMsg::Inspect);
            self.add_path(device::path(spec.id), Role::Device(spec.id), Kind { actor: || DeviceActor, address, args: device, ask });
        }
    }

    /// What is listed, and the files of it.
    pub(super) fn add_catalogue(&mut self, parts: &Parts, args: &NodeArgs) {
        let catalogue = CatalogueArgs {
            address: parts.catalogue.clone(),
            listing: args.catalogue.clone(),
            router: parts.router.clone(),
            evictor: parts.evictor.clone(),
            shelf: parts.shelf.clone(),
            view: parts.view.clone(),
        };
        let ask = Ask::Message(CatalogueMsg::Inspect);
        self.add("catalogue", Role::Other, Kind { actor: || CatalogueActor, address: parts.catalogue.clone(), args: catalogue, ask });
    }

    /// What clients speak to.
    pub(super) fn add_http(&mut self, parts: &Parts, args: &NodeArgs, inference: Arc<ClusterInference>) {
        let answers = plexus_api::router(inference, args.http.api.clone());
        let (listener, client_timeout) = (args.sockets.http.clone(), args.streams.client_timeout);
        let front = HttpFrontArgs::new(parts.http.clone(), listener, answers, args.http.clone(), client_timeout);
        let ask = Ask::Message(HttpFrontMsg::Inspect);
        self.add("http", Role::Other, Kind { actor: || HttpFrontActor, address: parts.http.clone(), args: front, ask });
    }

    /// What makes this node known.
    pub(super) fn add_membership(&mut self, parts: &Parts, args: &NodeArgs) {
        let replaced = parts.node.clone();
        let membership = MembershipArgs {
            address: parts.membership.clone(),
            facts: args.facts.clone(),
            cluster: args.cluster.clone(),
            secret: args.secret.clone(),
            socket: args.sockets.gossip.clone(),
            seeds: args.seeds.clone(),
            timing: args.timing.clone(),
            known: parts.known.clone(),
            inbound: parts.inbound.clone(),
            on_replaced: Arc::new(move |by| replaced.tell(NodeMsg::Replaced(by))),
        };
        let ask = Ask::Message(MembershipMsg::Inspect);
        self.add("membership", Role::Other, Kind { actor: || MembershipActor, address: parts.membership.clone(), args: membership, ask });
    }

    /// All of them.
    pub(super) fn into_slots(self) -> Vec<Slot> {
        self.0
    }

    fn add(&mut self, name: &str, role: Role, child: impl Child + 'static) {
        self.add_path(format!("node/{name}"), role, child);
    }

    fn add_path(&mut self, path: String, role: Role, child: impl Child + 'static) {
        self.0.push(Slot::new(path, role, child));
    }
}

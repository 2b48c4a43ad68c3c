//! The tree: every actor of a node, what it is told, and the order in which they start.

use std::sync::Arc;

use plexus_store::Store;
use plexus_types::NodeName;
use ractor::Actor;
use tokio::time::Instant;

use super::child::{Ask, Child, Kind};
use super::replica::ReplicaKit;
use super::running::RunningNode;
use super::{Addresses, End, NodeActor, NodeActorArgs, NodeMsg, Role, Slot, StartError};
use crate::address::Address;
use crate::args::NodeArgs;
use crate::catalogue::{CatalogueActor, CatalogueArgs, CatalogueMsg};
use crate::device::{self, DeviceActor, DeviceArgs, DeviceMsg};
use crate::dispatch::Dispatch;
use crate::evictor::{EvictorActor, EvictorArgs, EvictorMsg};
use crate::gateway::{GatewayActor, GatewayArgs, TokenSinkActor, TokenSinkArgs, Traffic};
use crate::http_front::{HttpFrontActor, HttpFrontArgs, HttpFrontMsg};
use crate::inbound::Inbound;
use crate::inference::ClusterInference;
use crate::link::{LinkActor, LinkArgs, LinkMsg, StoreLinks};
use crate::membership::{KnownNodes, MembershipActor, MembershipArgs, MembershipMsg};
use crate::model::sink::Ingresses;
use crate::model::{Devices, LocalModels};
use crate::nodes::Nodes;
use crate::peers::Peers;
use crate::router::view::{ClusterView, SharedView};
use crate::router::{RouterActor, RouterArgs, RouterMsg};
use crate::shelf::{Gathering, Shelf};
use crate::streams::{StreamsActor, StreamsArgs, StreamsMsg};

/// Starts a node. It serves as soon as its models are loaded, which this does not wait for.
pub async fn start(args: NodeArgs) -> Result<RunningNode, StartError> {
    let me = args.facts.id.clone();
    let peers = Peers::new(me.clone());
    let view = SharedView::new(ClusterView::new(args.cluster.clone(), args.facts.clone()));
    let models = LocalModels::default();
    let node: Address<NodeMsg> = Address::new();
    let (link, membership) = (Address::new(), Address::new());
    let (evictor, router, streams, http) = (Address::new(), Address::new(), Address::new(), Address::new());
    let catalogue: Address<CatalogueMsg> = Address::new();
    let ingresses = Ingresses { me: me.clone(), streams: streams.clone(), peers: peers.clone() };
    let here = Arc::new(Dispatch {
        node: node.clone(),
        link: link.clone(),
        router: router.clone(),
        evictor: evictor.clone(),
        catalogue: catalogue.clone(),
        streams: streams.clone(),
        models: models.clone(),
        ingresses: ingresses.clone(),
    });
    let inbound: Arc<dyn Inbound> = here.clone();
    let nodes = Nodes::new(peers.clone(), here);

    let known = KnownNodes::default();
    let living = known.clone();
    let find = move |name: &NodeName| living.list().into_iter().find(|facts| facts.id.name == *name);
    let links = StoreLinks::new(args.secret.clone(), me.name.clone(), args.timing.clone(), find);
    let store = Store::new(args.store, Arc::new(links));
    tokio::spawn(store.clone().keep_tidy());
    let gathering = (!args.seeds.is_empty()).then(|| Gathering::new(known.clone()));
    let shelf = Shelf::new(store.clone(), peers.clone(), gathering);

    let mut children = Children::default();
    let traffic = Traffic::default();
    let counted = traffic.clone();
    let address = Address::new();
    children.add(
        "gateway",
        Role::Other,
        Kind {
            actor: || GatewayActor,
            address: address.clone(),
            args: GatewayArgs { address, peers: peers.clone(), inbound: inbound.clone(), traffic },
            ask: Ask::Shared(Box::new(move || counted.inspection())),
        },
    );
    let traffic = Traffic::default();
    let counted = traffic.clone();
    let address = Address::new();
    children.add(
        "tokens",
        Role::Other,
        Kind {
            actor: || TokenSinkActor,
            address: address.clone(),
            args: TokenSinkArgs { address, peers: peers.clone(), inbound: inbound.clone(), traffic },
            ask: Ask::Shared(Box::new(move || counted.inspection())),
        },
    );
    children.add(
        "link",
        Role::Other,
        Kind {
            actor: || LinkActor,
            address: link.clone(),
            args: LinkArgs {
                address: link,
                me: me.clone(),
                secret: args.secret.clone(),
                listener: args.sockets.link.clone(),
                timing: args.timing.clone(),
                peers: peers.clone(),
                known: known.clone(),
                inbound: inbound.clone(),
                store: Some(store.clone()),
            },
            ask: Ask::Message(LinkMsg::Inspect),
        },
    );
    children.add(
        "evictor",
        Role::Evictor,
        Kind {
            actor: || EvictorActor,
            address: evictor.clone(),
            args: EvictorArgs {
                address: evictor.clone(),
                config: args.eviction,
                node: node.clone(),
                router: router.clone(),
                models: models.clone(),
                pins: args.pins.clone(),
                me: me.name.clone(),
            },
            ask: Ask::Message(EvictorMsg::Inspect),
        },
    );
    children.add(
        "router",
        Role::Router,
        Kind {
            actor: || RouterActor,
            address: router.clone(),
            args: RouterArgs {
                address: router.clone(),
                view: view.clone(),
                nodes: nodes.clone(),
                streams: streams.clone(),
                models: models.clone(),
                known: known.clone(),
                policy: args.eviction.policy,
                n_devices: args.devices.len(),
            },
            ask: Ask::Message(RouterMsg::Inspect),
        },
    );
    children.add(
        "streams",
        Role::Other,
        Kind {
            actor: || StreamsActor,
            address: streams.clone(),
            args: StreamsArgs {
                address: streams.clone(),
                me: me.clone(),
                config: args.streams.clone(),
                router: router.clone(),
                models: models.clone(),
                peers: peers.clone(),
                ingresses: ingresses.clone(),
            },
            ask: Ask::Message(StreamsMsg::Inspect),
        },
    );
    let devices = Devices::new(args.devices.iter().map(|spec| (spec.id, Address::new())).collect());
    for spec in args.devices {
        let id = spec.id;
        let address = devices.get(id).expect("each of them has an address");
        children.add_path(
            device::path(id),
            Role::Device(id),
            Kind {
                actor: || DeviceActor,
                address: address.clone(),
                args: DeviceArgs { address, spec, evictor: evictor.clone() },
                ask: Ask::Message(DeviceMsg::Inspect),
            },
        );
    }
    children.add(
        "catalogue",
        Role::Other,
        Kind {
            actor: || CatalogueActor,
            address: catalogue.clone(),
            args: CatalogueArgs {
                address: catalogue.clone(),
                listing: args.catalogue,
                router: router.clone(),
                evictor: evictor.clone(),
                shelf: shelf.clone(),
                view: view.clone(),
            },
            ask: Ask::Message(CatalogueMsg::Inspect),
        },
    );
    let (client_timeout, prompt_time_max) = (args.streams.client_timeout, args.streams.prompt_time_max);
    let inference = Arc::new(ClusterInference {
        node: node.clone(),
        streams: streams.clone(),
        router: router.clone(),
        view: view.clone(),
        nodes,
        clients: Arc::default(),
        devices: devices.clone(),
        models: models.clone(),
        config: args.streams,
        test_hooks: args.test_hooks,
        started: Instant::now(),
    });
    let answers = plexus_api::router(inference.clone(), args.http.api.clone());
    children.add(
        "http",
        Role::Other,
        Kind {
            actor: || HttpFrontActor,
            address: http.clone(),
            args: HttpFrontArgs::new(http.clone(), args.sockets.http.clone(), answers, args.http, client_timeout),
            ask: Ask::Message(HttpFrontMsg::Inspect),
        },
    );
    let replaced = node.clone();
    children.add(
        "membership",
        Role::Other,
        Kind {
            actor: || MembershipActor,
            address: membership.clone(),
            args: MembershipArgs {
                address: membership.clone(),
                facts: args.facts,
                cluster: args.cluster,
                secret: args.secret,
                socket: args.sockets.gossip.clone(),
                seeds: args.seeds,
                timing: args.timing,
                known,
                inbound,
                on_replaced: Arc::new(move |by| replaced.tell(NodeMsg::Replaced(by))),
            },
            ask: Ask::Message(MembershipMsg::Inspect),
        },
    );

    let end = End::default();
    let replica = ReplicaKit {
        devices: devices.clone(),
        models: models.clone(),
        evictor: evictor.clone(),
        router: router.clone(),
        ingresses,
        shelf,
        view: view.clone(),
        catalogue: catalogue.clone(),
        prompt_time_max,
    };
    let addresses = Addresses { evictor, router, catalogue, streams, membership, http, devices: devices.addresses(), models };
    let root_args = NodeActorArgs {
        address: node,
        budget: args.restarts,
        children: children.0,
        addresses: addresses.clone(),
        replica,
        end: Arc::clone(&end),
    };
    let (root, task) = Actor::spawn(None, NodeActor, root_args).await.map_err(|error| StartError::Root(error.to_string()))?;
    Ok(RunningNode { root, task, addresses, view, peers, inference, end, drain_timeout: args.drain_timeout })
}

/// The children, in the order of their start.
#[derive(Default)]
struct Children(Vec<Slot>);

impl Children {
    fn add(&mut self, name: &str, role: Role, child: impl Child + 'static) {
        self.add_path(format!("node/{name}"), role, child);
    }

    fn add_path(&mut self, path: String, role: Role, child: impl Child + 'static) {
        self.0.push(Slot::new(path, role, child));
    }
}

//! What the actors of a node share, and the addresses by which they know each other: made before any of them starts.

use std::sync::Arc;

use plexus_store::Store;
use plexus_types::{NodeId, NodeName};
use tokio::time::Instant;

use crate::address::Address;
use crate::args::NodeArgs;
use crate::catalogue::CatalogueMsg;
use crate::dispatch::Dispatch;
use crate::evictor::EvictorMsg;
use crate::http_front::HttpFrontMsg;
use crate::inbound::Inbound;
use crate::inference::ClusterInference;
use crate::link::{LinkMsg, StoreLinks};
use crate::membership::{KnownNodes, MembershipMsg};
use crate::model::sink::Ingresses;
use crate::model::{Devices, LocalModels};
use crate::node::replica::ReplicaKit;
use crate::node::{Addresses, NodeMsg};
use crate::nodes::Nodes;
use crate::peers::Peers;
use crate::router::RouterMsg;
use crate::router::view::{ClusterView, SharedView};
use crate::shelf::{Gathering, Shelf};
use crate::streams::StreamsMsg;

/// What the actors of a node share.
pub(super) struct Parts {
    // Who is who.
    pub(super) me: NodeId,
    pub(super) peers: Peers,
    pub(super) known: KnownNodes,
    pub(super) view: SharedView,
    pub(super) models: LocalModels,
    pub(super) devices: Devices,
    // Where the actors are that there is one of.
    pub(super) node: Address<NodeMsg>,
    pub(super) link: Address<LinkMsg>,
    pub(super) membership: Address<MembershipMsg>,
    pub(super) evictor: Address<EvictorMsg>,
    pub(super) router: Address<RouterMsg>,
    pub(super) streams: Address<StreamsMsg>,
    pub(super) catalogue: Address<CatalogueMsg>,
    pub(super) http: Address<HttpFrontMsg>,
    // What speaks for them.
    pub(super) ingresses: Ingresses,
    pub(super) inbound: Arc<dyn Inbound>,
    pub(super) nodes: Nodes,
    // Models' files.
    pub(super) store: Store,
    pub(super) shelf: Shelf,
}

impl Parts {
    /// Those of a node that nobody has begun yet.
    pub(super) fn of(args: &NodeArgs) -> Self {
        let me = args.facts.id.clone();
        let peers = Peers::new(me.clone());
        let models = LocalModels::default();
        let (node, link, membership) = (Address::new(), Address::new(), Address::new());
        let (evictor, router, streams) = (Address::new(), Address::new(), Address::new());
        let (catalogue, http) = (Address::new(), Address::new());
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
        let known = KnownNodes::default();
        let store = Store::new(args.store.clone(), Arc::new(store_links(args, &known)));
        let gathering = (!args.seeds.is_empty()).then(|| Gathering::new(known.clone()));
        Self {
            view: SharedView::new(ClusterView::new(args.cluster.clone(), args.facts.clone())),
            devices: Devices::new(args.devices.iter().map(|spec| (spec.id, Address::new())).collect()),
            nodes: Nodes::new(peers.clone(), here),
            shelf: Shelf::new(store.clone(), peers.clone(), gathering),
            me,
            peers,
            known,
            models,
            node,
            link,
            membership,
            evictor,
            router,
            streams,
            catalogue,
            http,
            ingresses,
            inbound,
            store,
        }
    }

    /// What answers clients.
    pub(super) fn inference(&self, args: &NodeArgs) -> Arc<ClusterInference> {
        Arc::new(ClusterInference {
            node: self.node.clone(),
            streams: self.streams.clone(),
            router: self.router.clone(),
            view: self.view.clone(),
            nodes: self.nodes.clone(),
            clients: Arc::default(),
            devices: self.devices.clone(),
            models: self.models.clone(),
            config: args.streams.clone(),
            test_hooks: args.test_hooks,
            started: Instant::now(),
        })
    }

    /// What each replica is told.
    pub(super) fn replica_kit(&self, args: &NodeArgs) -> ReplicaKit {
        ReplicaKit {
            devices: self.devices.clone(),
            models: self.models.clone(),
            evictor: self.evictor.clone(),
            router: self.router.clone(),
            ingresses: self.ingresses.clone(),
            shelf: self.shelf.clone(),
            view: self.view.clone(),
            catalogue: self.catalogue.clone(),
            prompt_time_max: args.streams.prompt_time_max,
        }
    }

    /// The actors to which the root speaks.
    pub(super) fn addresses(&self) -> Addresses {
        Addresses {
            evictor: self.evictor.clone(),
            router: self.router.clone(),
            catalogue: self.catalogue.clone(),
            streams: self.streams.clone(),
            membership: self.membership.clone(),
            http: self.http.clone(),
            devices: self.devices.addresses(),
            models: self.models.clone(),
        }
    }
}

/// How the store reaches the stores of other nodes.
fn store_links(args: &NodeArgs, known: &KnownNodes) -> StoreLinks {
    let living = known.clone();
    let find = move |name: &NodeName| living.list().into_iter().find(|facts| facts.id.name == *name);
    StoreLinks::new(args.secret.clone(), args.facts.id.name.clone(), args.timing.clone(), find)
}

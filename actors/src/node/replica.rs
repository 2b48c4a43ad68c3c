//! Makes the children that are not there from the start: replicas.

use std::time::Duration;

use plexus_types::{DeviceId, ModelProfile};

use super::child::{Ask, Kind};
use super::{Role, Slot};
use crate::address::Address;
use crate::catalogue::CatalogueMsg;
use crate::evictor::EvictorMsg;
use crate::evictor::core;
use crate::model::sink::Ingresses;
use crate::model::{Devices, LocalModels, ModelActor, ModelArgs, ModelMsg};
use crate::router::RouterMsg;
use crate::router::view::SharedView;
use crate::shelf::Shelf;

/// What replicas need beside their profile and device.
#[derive(Debug, Clone)]
pub(super) struct ReplicaKit {
    pub(super) devices: Devices,
    pub(super) models: LocalModels,
    pub(super) evictor: Address<EvictorMsg>,
    pub(super) router: Address<RouterMsg>,
    pub(super) ingresses: Ingresses,
    pub(super) shelf: Shelf,
    pub(super) view: SharedView,
    pub(super) catalogue: Address<CatalogueMsg>,
    /// Longest time that a prompt may take to be read; absent: any.
    pub(super) prompt_time_max: Option<Duration>,
}

impl ReplicaKit {
    /// A replica that is not started yet. From here on it is found under its model and device.
    pub(super) fn slot(&self, profile: ModelProfile, device: DeviceId, since: core::Ask) -> Slot {
        let address: Address<ModelMsg> = Address::new();
        self.models.insert(profile.id.clone(), device, address.clone());
        let place = (profile.id.clone(), device);
        let args = ModelArgs {
            address: address.clone(),
            profile,
            device,
            since,
            devices: self.devices.clone(),
            evictor: self.evictor.clone(),
            router: self.router.clone(),
            ingresses: self.ingresses.clone(),
            shelf: self.shelf.clone(),
            view: self.view.clone(),
            catalogue: self.catalogue.clone(),
            prompt_time_max: self.prompt_time_max,
        };
        let child = Kind { actor: || ModelActor, address, args, ask: Ask::Message(ModelMsg::Inspect) };
        Slot::new(format!("node/model/{}@{}", place.0, place.1), Role::Model(place, since), child)
    }
}

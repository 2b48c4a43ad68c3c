//! The devices and replicas of this node, to be found by whoever speaks to them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use plexus_types::{DeviceId, ModelId, NodeId, RequestError};

use super::ModelMsg;
use super::sink::{Ingresses, Sink};
use crate::address::Address;
use crate::device::DeviceMsg;
use crate::evictor::core::Place;
use crate::messages::Notice;

/// The devices of this node, by id.
#[derive(Debug, Clone, Default)]
pub struct Devices(Arc<BTreeMap<DeviceId, Address<DeviceMsg>>>);

impl Devices {
    /// The devices that the node was started with.
    pub fn new(devices: BTreeMap<DeviceId, Address<DeviceMsg>>) -> Self {
        Self(Arc::new(devices))
    }

    /// Which there are.
    pub fn ids(&self) -> impl Iterator<Item = DeviceId> {
        self.0.keys().copied()
    }

    /// All of them.
    pub fn addresses(&self) -> Vec<Address<DeviceMsg>> {
        self.0.values().cloned().collect()
    }

    /// One of them.
    pub fn get(&self, id: DeviceId) -> Option<Address<DeviceMsg>> {
        self.0.get(&id).cloned()
    }
}

/// The replicas of this node, by model and device.
#[derive(Debug, Clone, Default)]
pub struct LocalModels(Arc<RwLock<HashMap<ModelId, OnDevices>>>);

/// The replicas of one model.
type OnDevices = BTreeMap<DeviceId, Address<ModelMsg>>;

impl LocalModels {
    /// The replica on this device.
    pub fn get(&self, id: &ModelId, device: DeviceId) -> Option<Address<ModelMsg>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(id)?.get(&device).cloned()
    }

    /// Some replica of a model.
    pub fn any(&self, id: &ModelId) -> Option<Address<ModelMsg>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(id)?.values().next().cloned()
    }

    /// All of them.
    pub fn list(&self) -> Vec<Address<ModelMsg>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Where they are.
    pub fn places(&self) -> Vec<Place> {
        let models = self.0.read().unwrap_or_else(PoisonError::into_inner);
        models.iter().flat_map(|(id, replicas)| replicas.keys().map(|device| (id.clone(), *device))).collect()
    }

    /// The streams of an ingress are gone: what it ordered is dropped.
    pub fn ingress_lost(&self, ingress: &NodeId) {
        self.list().iter().for_each(|model| model.tell(ModelMsg::IngressLost(ingress.clone())));
    }

    /// Hands an order of an ingress to the model that it concerns. One that cannot be handed over is answered as lost.
    pub fn order(&self, ingresses: &Ingresses, from: &NodeId, order: Notice) {
        match order {
            Notice::Generate(generate) => {
                let sink = Sink::new(ingresses.clone(), from.clone(), generate.request, generate.attempt);
                let Some(model) = self.get(&generate.model, generate.device) else {
                    return sink.fail(has_gone(&generate.model));
                };
                match model.cast(ModelMsg::Generate(from.clone(), generate)) {
                    Ok(()) => sink.finish(), // the model speaks for itself from here on
                    Err(_) => drop(sink),    // which says that the replica is gone
                }
            }
            // Whichever model has the request takes note: a node has few of them.
            Notice::Cancel { request, attempt } => {
                self.list().iter().for_each(|model| model.tell(ModelMsg::Cancel((from.clone(), request, attempt))));
            }
            Notice::Credit { request, attempt, until } => {
                self.list().iter().for_each(|model| model.tell(ModelMsg::Credit((from.clone(), request, attempt), until)));
            }
            Notice::Forget => self.ingress_lost(from),
            Notice::Summary(_) | Notice::Catalogue(_) | Notice::Announce => {} // concern the router
        }
    }

    /// Adds one.
    pub fn insert(&self, id: ModelId, device: DeviceId, address: Address<ModelMsg>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().insert(device, address);
    }

    /// Takes one away.
    pub fn remove(&self, id: &ModelId, device: DeviceId) {
        let mut models = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(replicas) = models.get_mut(id) else { return };
        replicas.remove(&device);
        if replicas.is_empty() {
            models.remove(id);
        }
    }
}

/// What whoever asks a replica hears that is no longer on this node: others may be, or it is loaded anew.
pub(crate) fn has_gone(model: &ModelId) -> RequestError {
    RequestError::soon(format!("the model '{model}' has just gone from this node"))
}

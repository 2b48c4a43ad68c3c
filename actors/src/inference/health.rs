//! How this node is, for those who watch it: what the view knows, and what its devices and replicas say when they are asked.

use std::time::Duration;

use futures::future::join_all;
use plexus_api::Gpu;
use plexus_api::service::{DeviceHealth, Health, HealthStatus, ReplicaHealth};
use plexus_engine::executor::DeviceDescription;
use plexus_types::{DeviceId, DeviceKind, DeviceReport, ModelState, NodeSummary, ReplicaReport, ReplicaState};

use super::{ACTOR_DEADLINE, ClusterInference};
use crate::device::{DeviceMsg, DeviceVitals};
use crate::model::ModelMsg;
use crate::streams::StreamsMsg;

/// Devices and replicas answer from memory; whoever watches a node does not wait for one that hangs.
const VITALS_DEADLINE: Duration = Duration::from_millis(500);

impl ClusterInference {
    pub(super) async fn own_health(&self) -> Health {
        let NodeSummary { devices, replicas, .. } = self.view.read().own_shown();
        let (streams, devices, replicas) = tokio::join!(
            self.streams.call(StreamsMsg::Count, ACTOR_DEADLINE),
            join_all(devices.into_iter().map(|report| self.device_health(report))),
            join_all(replicas.into_iter().map(|report| self.replica_health(report))),
        );
        let view = self.view.read();
        let models = view.models();
        let models_loaded = models.iter().filter(|model| model.loaded).count();
        let loading = models.iter().flat_map(|model| &model.locations).any(|location| location.state == ReplicaState::Loading);
        let loading = loading || view.is_preloading();
        let loadable = models.iter().any(|model| model.state == ModelState::Unloaded);
        let status = match (view.own().draining, models_loaded) {
            (true, _) => HealthStatus::Draining,
            (false, 1..) => HealthStatus::Ok,
            (false, 0) if loading => HealthStatus::Loading,
            (false, 0) if loadable => HealthStatus::Ok,
            (false, 0) => HealthStatus::Unavailable,
        };
        Health {
            status,
            node: view.me().name.clone(),
            nodes_up: view.n_up(),
            models_loaded,
            streams: streams.unwrap_or(0),
            uptime_s: self.started.elapsed().as_secs(),
            activation: view.activation(),
            devices,
            replicas,
        }
    }

    async fn device_health(&self, report: DeviceReport) -> DeviceHealth {
        let vitals = self.vitals(report.id).await.filter(|vitals| vitals.description.is_some());
        DeviceHealth { report, utilization_pct: vitals.map(|vitals| percent(vitals.utilization)) }
    }

    async fn replica_health(&self, report: ReplicaReport) -> ReplicaHealth {
        let vitals = match self.models.get(&report.model, report.device) {
            Some(replica) => replica.call(ModelMsg::Vitals, VITALS_DEADLINE).await.ok(),
            None => None,
        };
        ReplicaHealth { report, vitals }
    }

    /// What a device says of itself; absent if it does not answer.
    async fn vitals(&self, device: DeviceId) -> Option<DeviceVitals> {
        self.devices.get(device)?.call(DeviceMsg::Vitals, VITALS_DEADLINE).await.ok()
    }

    pub(super) async fn own_gpus(&self) -> Vec<Gpu> {
        let gpus = self.devices.ids().filter(|id| id.kind == DeviceKind::Cuda);
        join_all(gpus.map(|id| async move { gpu(id, self.vitals(id).await.and_then(|vitals| vitals.description)) })).await
    }
}

/// With one digit behind the point.
fn percent(share: f32) -> f32 {
    (share * 1000.0).round() / 10.0
}

/// A GPU, as far as it is known.
fn gpu(id: DeviceId, description: Option<DeviceDescription>) -> Gpu {
    let facts = description.as_ref().and_then(|description| description.gpu.clone());
    let capability = facts.as_ref().and_then(|facts| facts.compute_capability);
    Gpu {
        index: id.ordinal,
        name: description.map(|description| description.name),
        vram_total_mb: facts.map(|facts| facts.memory.0 >> 20),
        compute_capability: capability.map(|(major, minor)| format!("{major}.{minor}")),
    }
}

#[cfg(test)]
mod tests {
    use plexus_engine::executor::GpuDescription;
    use plexus_types::Bytes;

    use super::*;

    #[test]
    fn of_a_gpu_is_told_what_is_known() {
        // CX-45
        let id: DeviceId = "cuda-1".parse().unwrap();
        let unknown = Gpu { index: 1, name: None, vram_total_mb: None, compute_capability: None };
        assert_eq!(gpu(id, None), unknown, "it is being opened");
        let facts = GpuDescription { memory: Bytes::mib(81_559), compute_capability: Some((9, 0)) };
        let open = DeviceDescription { id, name: "A GPU".into(), memory_total: Bytes::mib(1), gpu: Some(facts) };
        let known = Gpu { index: 1, name: Some("A GPU".into()), vram_total_mb: Some(81_559), compute_capability: Some("9.0".into()) };
        assert_eq!(gpu(id, Some(open)), known);
    }

    #[test]
    fn a_share_is_told_to_a_tenth_of_a_percent() {
        assert_eq!([0.0, 0.123_456, 1.0].map(percent), [0.0, 12.3, 100.0]);
    }
}

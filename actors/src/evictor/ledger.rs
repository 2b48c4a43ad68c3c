//! Who was promised which memory: exact sums per device, never a count of models.

use std::collections::BTreeMap;

use plexus_types::{Bytes, DeviceId, DeviceKind, DeviceReport, ModelId};

/// Memory of the devices of one node and what was promised of it.
#[derive(Debug, Default)]
pub struct Ledger {
    devices: BTreeMap<DeviceId, Account>,
}

#[derive(Debug, Default)]
struct Account {
    name: String,
    total: Bytes,
    promised: BTreeMap<ModelId, (Lease, Bytes)>,
}

/// One promise: told apart from an earlier one to the same model, so that what an earlier life of a model returns late is not the later one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease(pub u64);

/// No device has room.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{needed} needed, {}", describe(.available))]
pub struct NoRoom {
    /// Memory that was asked for.
    pub needed: Bytes,
    /// What each device has left.
    pub available: Vec<(DeviceId, Bytes)>,
}

fn describe(available: &[(DeviceId, Bytes)]) -> String {
    if available.is_empty() {
        return "but no such device is open".to_owned();
    }
    let parts: Vec<String> = available.iter().map(|(device, free)| format!("{free} available on {device}")).collect();
    parts.join(", ")
}

impl Ledger {
    /// A device was opened. What was promised on it before is kept: the models are told by their own means if it is void.
    pub fn open(&mut self, id: DeviceId, name: String, total: Bytes) {
        let account = self.devices.entry(id).or_default();
        account.name = name;
        account.total = total;
    }

    /// What a device has left.
    pub fn free(&self, id: DeviceId) -> Option<Bytes> {
        self.devices.get(&id).map(Account::free)
    }

    /// Devices that a model may go to, the best first: GPUs before the CPU, then the one with most room.
    pub fn choices(&self, wanted: Option<DeviceId>) -> Vec<(DeviceId, Bytes)> {
        let mut choices: Vec<(DeviceId, Bytes)> = self
            .devices
            .iter()
            .filter(|(id, _)| wanted.is_none_or(|wanted| wanted == **id))
            .map(|(id, account)| (*id, account.free()))
            .collect();
        choices.sort_by_key(|(id, free)| (id.kind != DeviceKind::Cuda, std::cmp::Reverse(*free), *id));
        choices
    }

    /// Promises memory of one device to a model, in place of what it was promised there before.
    ///
    /// Errors: [`NoRoom`]; the ledger is then as it was.
    pub fn promise(&mut self, device: DeviceId, model: &ModelId, lease: Lease, needed: Bytes) -> Result<(), NoRoom> {
        let no_room = |available| NoRoom { needed, available };
        let account = self.devices.get_mut(&device).ok_or_else(|| no_room(Vec::new()))?;
        let before = account.promised.remove(model);
        let free = account.free();
        if needed > free {
            account.promised.extend(before.map(|promise| (model.clone(), promise)));
            return Err(no_room(vec![(device, free)]));
        }
        account.promised.insert(model.clone(), (lease, needed));
        Ok(())
    }

    /// Takes a promise back. One that was replaced since is left alone.
    pub fn release(&mut self, device: DeviceId, model: &ModelId, lease: Lease) {
        if let Some(account) = self.devices.get_mut(&device)
            && account.promised.get(model).is_some_and(|(current, _)| *current == lease)
        {
            account.promised.remove(model);
        }
    }

    /// The devices, for the summary of the node.
    pub fn report(&self) -> Vec<DeviceReport> {
        let report = |(id, account): (&DeviceId, &Account)| DeviceReport {
            id: *id,
            name: account.name.clone(),
            memory_total: account.total,
            memory_used: account.used(),
        };
        self.devices.iter().map(report).collect()
    }
}

impl Account {
    fn used(&self) -> Bytes {
        self.promised.values().map(|(_, bytes)| *bytes).sum()
    }

    fn free(&self) -> Bytes {
        self.total.saturating_sub(self.used())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cpu() -> DeviceId {
        "cpu-0".parse().unwrap()
    }

    fn ledger(total: u64) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.open(cpu(), "test".into(), Bytes(total));
        ledger
    }

    #[test]
    fn a_load_that_cannot_fit_is_refused_with_needed_and_available_bytes() {
        // CX-53
        let mut ledger = ledger(100 << 20);
        ledger.promise(cpu(), &"a".parse().unwrap(), Lease(1), Bytes::mib(60)).unwrap();
        let refused = ledger.promise(cpu(), &"b".parse().unwrap(), Lease(1), Bytes::mib(50)).unwrap_err();
        assert_eq!(refused.to_string(), "50.0 MiB needed, 40.0 MiB available on cpu-0");
        assert_eq!(ledger.free(cpu()), Some(Bytes::mib(40)), "a refusal promises nothing");
    }

    #[test]
    fn a_model_that_asks_again_replaces_its_former_promise() {
        let mut ledger = ledger(100);
        let model: ModelId = "a".parse().unwrap();
        ledger.promise(cpu(), &model, Lease(1), Bytes(60)).unwrap();
        ledger.promise(cpu(), &model, Lease(1), Bytes(80)).unwrap();
        assert_eq!(ledger.free(cpu()), Some(Bytes(20)));
        assert!(ledger.promise(cpu(), &model, Lease(1), Bytes(101)).is_err());
        assert_eq!(ledger.free(cpu()), Some(Bytes(20)), "the former promise holds");
    }

    #[test]
    fn what_an_earlier_life_returns_late_is_not_the_later_ones() {
        let mut ledger = ledger(100);
        let model: ModelId = "a".parse().unwrap();
        ledger.promise(cpu(), &model, Lease(1), Bytes(60)).unwrap();
        ledger.promise(cpu(), &model, Lease(2), Bytes(50)).unwrap();
        ledger.release(cpu(), &model, Lease(1));
        assert_eq!(ledger.free(cpu()), Some(Bytes(50)));
        ledger.release(cpu(), &model, Lease(2));
        assert_eq!(ledger.free(cpu()), Some(Bytes(100)));
    }

    #[test]
    fn gpus_are_chosen_before_the_cpu_and_the_roomier_first() {
        let mut ledger = ledger(1000);
        ledger.open("cuda-0".parse().unwrap(), "g".into(), Bytes(10));
        ledger.open("cuda-1".parse().unwrap(), "g".into(), Bytes(20));
        let order: Vec<String> = ledger.choices(None).iter().map(|(id, _)| id.to_string()).collect();
        assert_eq!(order, ["cuda-1", "cuda-0", "cpu-0"]);
        assert_eq!(ledger.choices(Some(cpu())).len(), 1);
    }

    proptest! {
        #[test]
        fn promises_never_exceed_the_device(steps in proptest::collection::vec((0u8..4, 0u64..50, any::<bool>()), 0..60)) {
            let mut ledger = ledger(100);
            for (model, bytes, release) in steps {
                let model: ModelId = format!("m{model}").parse().unwrap();
                if release { ledger.release(cpu(), &model, Lease(1)) } else { let _refused = ledger.promise(cpu(), &model, Lease(1), Bytes(bytes)); }
                let report = &ledger.report()[0];
                prop_assert!(report.memory_used <= report.memory_total);
                prop_assert_eq!(ledger.free(cpu()).unwrap() + report.memory_used, report.memory_total);
            }
        }
    }
}

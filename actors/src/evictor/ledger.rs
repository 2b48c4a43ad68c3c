//! Who was promised which memory: exact sums per device, never a count of models.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use plexus_types::{Bytes, DeviceId, DeviceReport, ModelId};
use tokio::time::Instant;

use super::plan::Occupant;

/// Memory of the devices of one node and what was promised of it.
#[derive(Debug, Default)]
pub struct Ledger {
    devices: BTreeMap<DeviceId, Account>,
}

#[derive(Debug, Default)]
struct Account {
    name: String,
    /// Absent until the device has said how large it is.
    total: Option<Bytes>,
    /// By model, and of a model by age: an earlier life of it may hold memory yet when the next one comes.
    residents: BTreeMap<(ModelId, Lease), Resident>,
}

/// One promise: told apart from an earlier one to the same model, so that what an earlier life of a model returns late is not the later one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lease(pub u64);

/// A model that was promised memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// Which promise.
    pub lease: Lease,
    /// How much.
    pub bytes: Bytes,
    /// Its class.
    pub class: u32,
    /// It goes by hand only.
    pub pinned: bool,
    /// Since when nobody uses it, or from when on that counts; absent while it has requests, or is being loaded.
    pub idle_since: Option<Instant>,
}

/// A promise that was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{needed} needed, {available} available on {device}")]
pub struct Exceeds {
    /// Where.
    pub device: DeviceId,
    /// Memory that was asked for.
    pub needed: Bytes,
    /// What the device has left; none if it is not open.
    pub available: Bytes,
}

impl Ledger {
    /// A device was opened. What was promised on it before is kept: the models are told by their own means if it is void.
    pub fn open(&mut self, id: DeviceId, name: String, total: Bytes) {
        let account = self.devices.entry(id).or_default();
        account.name = name;
        account.total = Some(total);
    }

    /// The devices that are open.
    pub fn devices(&self) -> impl Iterator<Item = DeviceId> {
        self.devices.keys().copied()
    }

    /// All memory of a device; absent if it is not open.
    pub fn total(&self, id: DeviceId) -> Option<Bytes> {
        self.devices.get(&id).and_then(|account| account.total)
    }

    /// What a device has left.
    pub fn free(&self, id: DeviceId) -> Option<Bytes> {
        self.devices.get(&id).filter(|account| account.total.is_some()).map(Account::free)
    }

    /// Promises memory of one device to a model, in place of what it was promised there by the same lease before. What an earlier life of it was
    /// promised counts until that returns it: its load may still be under way.
    ///
    /// Errors: [`Exceeds`]; the ledger is then as it was.
    pub fn promise(&mut self, device: DeviceId, model: &ModelId, resident: Resident) -> Result<(), Exceeds> {
        let needed = resident.bytes;
        let account = self.devices.get_mut(&device).ok_or(Exceeds { device, needed, available: Bytes(0) })?;
        let key = (model.clone(), resident.lease);
        let before = account.residents.remove(&key);
        let available = account.free();
        if needed > available {
            account.residents.extend(before.map(|resident| (key, resident)));
            return Err(Exceeds { device, needed, available });
        }
        account.residents.insert(key, resident);
        Ok(())
    }

    /// Notes what a model holds already, however much there is: what is so cannot be refused.
    pub fn hold(&mut self, device: DeviceId, model: &ModelId, resident: Resident) {
        self.devices.entry(device).or_default().residents.insert((model.clone(), resident.lease), resident);
    }

    /// Takes a promise back, and leaves those to other lives of the model alone. True if there was one.
    pub fn release(&mut self, device: DeviceId, model: &ModelId, lease: Lease) -> bool {
        let account = self.devices.get_mut(&device);
        account.is_some_and(|account| account.residents.remove(&(model.clone(), lease)).is_some())
    }

    /// A resident: of several lives of a model the latest.
    pub fn resident(&self, device: DeviceId, model: &ModelId) -> Option<&Resident> {
        let residents = &self.devices.get(&device)?.residents;
        residents.range(lives_of(model)).next_back().map(|(_, resident)| resident)
    }

    /// The same, to note what changed.
    pub fn resident_mut(&mut self, device: DeviceId, model: &ModelId) -> Option<&mut Resident> {
        let residents = &mut self.devices.get_mut(&device)?.residents;
        residents.range_mut(lives_of(model)).next_back().map(|(_, resident)| resident)
    }

    /// Every resident of every device.
    pub fn residents(&self) -> impl Iterator<Item = (DeviceId, &ModelId, &Resident)> {
        self.devices.iter().flat_map(|(id, account)| account.residents.iter().map(|((model, _), resident)| (*id, model, resident)))
    }

    /// The residents of a device as [`super::plan::plan_eviction`] sees them, but for `without`, which may come or not.
    pub fn occupants(&self, device: DeviceId, without: &ModelId, now: Instant) -> Vec<Occupant> {
        let Some(account) = self.devices.get(&device) else { return Vec::new() };
        let others = account.residents.iter().filter(|((model, _), _)| model != without);
        others.map(|((model, _), resident)| resident.occupant(model, now)).collect()
    }

    /// The same for a life of a model that asks for its memory: what earlier lives of it still hold is in use until they return it.
    pub fn occupants_beside(&self, device: DeviceId, model: &ModelId, lease: Lease, now: Instant) -> Vec<Occupant> {
        let mut occupants = self.occupants(device, model, now);
        let account = self.devices.get(&device);
        let lives = account.into_iter().flat_map(|account| account.residents.range(lives_of(model)));
        let earlier = lives.filter(|((_, life), _)| *life != lease).map(|(_, resident)| resident.occupant(model, now));
        occupants.extend(earlier.map(|occupant| Occupant { idle: None, ..occupant }));
        occupants
    }

    /// The devices, for the summary of the node.
    pub fn report(&self) -> Vec<DeviceReport> {
        let report = |(id, account): (&DeviceId, &Account)| {
            let memory_total = account.total?;
            Some(DeviceReport { id: *id, name: account.name.clone(), memory_total, memory_used: account.used() })
        };
        self.devices.iter().filter_map(report).collect()
    }
}

/// Where a model is among the residents, whichever life of it.
fn lives_of(model: &ModelId) -> RangeInclusive<(ModelId, Lease)> {
    (model.clone(), Lease(0))..=(model.clone(), Lease(u64::MAX))
}

impl Resident {
    /// How long nobody has used it; absent while somebody does.
    pub fn idle(&self, now: Instant) -> Option<Duration> {
        self.idle_since.and_then(|since| now.checked_duration_since(since))
    }

    fn occupant(&self, model: &ModelId, now: Instant) -> Occupant {
        Occupant { model: model.clone(), bytes: self.bytes, class: self.class, pinned: self.pinned, idle: self.idle(now) }
    }
}

impl Account {
    fn used(&self) -> Bytes {
        self.residents.values().map(|resident| resident.bytes).sum()
    }

    fn free(&self) -> Bytes {
        self.total.unwrap_or_default().saturating_sub(self.used())
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

    fn promised(lease: u64, bytes: u64) -> Resident {
        Resident { lease: Lease(lease), bytes: Bytes(bytes), class: 100, pinned: false, idle_since: None }
    }

    #[test]
    fn a_promise_beyond_the_device_is_refused_with_needed_and_available_bytes() {
        // CX-53
        let mut ledger = ledger(100 << 20);
        ledger.promise(cpu(), &"a".parse().unwrap(), promised(1, 60 << 20)).unwrap();
        let refused = ledger.promise(cpu(), &"b".parse().unwrap(), promised(2, 50 << 20)).unwrap_err();
        assert_eq!(refused.to_string(), "50.0 MiB needed, 40.0 MiB available on cpu-0");
        assert_eq!(ledger.free(cpu()), Some(Bytes::mib(40)), "a refusal promises nothing");
    }

    #[test]
    fn a_model_that_asks_again_replaces_its_former_promise() {
        let mut ledger = ledger(100);
        let model: ModelId = "a".parse().unwrap();
        ledger.promise(cpu(), &model, promised(1, 60)).unwrap();
        ledger.promise(cpu(), &model, promised(1, 80)).unwrap();
        assert_eq!(ledger.free(cpu()), Some(Bytes(20)));
        assert!(ledger.promise(cpu(), &model, promised(1, 101)).is_err());
        assert_eq!(ledger.free(cpu()), Some(Bytes(20)), "the former promise holds");
    }

    #[test]
    fn what_an_earlier_life_returns_late_is_not_the_later_ones() {
        let mut ledger = ledger(100);
        let model: ModelId = "a".parse().unwrap();
        ledger.promise(cpu(), &model, promised(1, 60)).unwrap();
        assert!(ledger.promise(cpu(), &model, promised(2, 50)).is_err(), "the earlier life still holds its memory");
        ledger.promise(cpu(), &model, promised(2, 30)).unwrap();
        assert_eq!(ledger.resident(cpu(), &model).map(|resident| resident.lease), Some(Lease(2)));
        assert!(ledger.release(cpu(), &model, Lease(1)));
        assert_eq!(ledger.free(cpu()), Some(Bytes(70)));
        assert!(!ledger.release(cpu(), &model, Lease(1)));
        assert!(ledger.release(cpu(), &model, Lease(2)));
        assert_eq!(ledger.free(cpu()), Some(Bytes(100)));
    }

    proptest! {
        #[test]
        fn promises_never_exceed_the_device(steps in proptest::collection::vec((0u8..4, 0u64..50, any::<bool>()), 0..60)) {
            let mut ledger = ledger(100);
            for (model, bytes, release) in steps {
                let model: ModelId = format!("m{model}").parse().unwrap();
                if release { ledger.release(cpu(), &model, Lease(1)); } else { let _refused = ledger.promise(cpu(), &model, promised(1, bytes)); }
                let report = &ledger.report()[0];
                prop_assert!(report.memory_used <= report.memory_total);
                prop_assert_eq!(ledger.free(cpu()).unwrap() + report.memory_used, report.memory_total);
            }
        }
    }
}

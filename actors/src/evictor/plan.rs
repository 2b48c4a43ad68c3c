//! How large a model's context and KV pool become on a device, and which residents go for it: pure functions of sums and ages.

use std::cmp::Reverse;
use std::time::Duration;

use plexus_engine::executor::KvPlan;
use plexus_types::{Bytes, Footprint, ModelId};

/// Tokens in a KV block: small enough that little is wasted at a sequence's end, large enough that tables stay short.
pub const BLOCK_LEN: u32 = 16;
/// A context shorter than this serves nobody: the load is refused instead.
const CONTEXT_MIN: u32 = 256;
/// Residents go for a context of so many tokens, and not for a longer one that nobody asked for.
const CONTEXT_GOAL: u32 = 8192;
/// Share of the room left by the weights that a model's KV pool may take beyond its goal, so that other models find room too.
const POOL_SHARE: f64 = 0.25;

/// What a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Its weights, its keys and values, and what its steps work in.
    pub footprint: Footprint,
    /// Tokens that it was made for, or fewer if the profile says so.
    pub context_length: u32,
    /// Does the profile ask for this context by number?
    pub context_wanted: bool,
    /// Most requests at a time.
    pub running_max: u32,
}

impl Needs {
    /// Memory with a context of so many tokens.
    fn with_context(&self, tokens: u32) -> Bytes {
        let kv = u64::from(tokens.div_ceil(BLOCK_LEN)).saturating_mul(self.per_block());
        Bytes(self.resident().0.saturating_add(kv))
    }

    /// Bytes of the keys and values in a block.
    pub fn per_block(&self) -> u64 {
        self.footprint.kv_per_token.0.saturating_mul(u64::from(BLOCK_LEN))
    }

    /// Memory without any context.
    fn resident(&self) -> Bytes {
        Bytes(self.footprint.weights.0.saturating_add(self.footprint.working.0))
    }

    fn goal_tokens(&self) -> u32 {
        if self.context_wanted { self.context_length } else { self.context_length.min(CONTEXT_GOAL) }
    }

    /// The least memory with which it can serve.
    pub fn least(&self) -> Bytes {
        self.with_context(self.context_length.min(CONTEXT_MIN))
    }

    /// The memory that room is made for on a device of `total` bytes: a context of good length, or what there is.
    pub fn goal(&self, total: Bytes) -> Bytes {
        self.with_context(self.goal_tokens()).min(total).max(self.least())
    }

    /// Memory that it takes by a plan.
    pub fn bytes(&self, plan: &Plan) -> Bytes {
        Bytes(self.resident().0.saturating_add(u64::from(plan.kv.n_blocks).saturating_mul(self.per_block())))
    }
}

/// The outcome for one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// The KV pool.
    pub kv: KvPlan,
    /// Tokens that a context holds: never more than the pool.
    pub context_length: u32,
}

/// Plans a model on a device with `free` bytes: room for every request of the batch at full context if a quarter of the free memory allows it,
/// else as much as that, but at least one context of good length; a shorter one if even that does not fit (CX-30).
///
/// `Err`: the bytes that the smallest useful plan needs.
pub fn plan(needs: &Needs, free: Bytes) -> Result<Plan, Bytes> {
    let blocks_of = |tokens: u32| u64::from(tokens.div_ceil(BLOCK_LEN));
    if needs.least() > free {
        return Err(needs.least());
    }
    let room = free.saturating_sub(needs.resident()).0;
    let fit = |bytes: u64| bytes.checked_div(needs.per_block()).unwrap_or(u64::MAX);
    let all_contexts = blocks_of(needs.context_length) * u64::from(needs.running_max.max(1));
    let share = fit((room as f64 * POOL_SHARE) as u64);
    let goal = blocks_of(needs.goal_tokens());
    let n_blocks = all_contexts.min(share).max(goal).min(fit(room)).min(u64::from(u32::MAX / BLOCK_LEN)) as u32;
    let context_length = needs.context_length.min(n_blocks * BLOCK_LEN);
    Ok(Plan { kv: KvPlan { n_blocks, block_len: BLOCK_LEN }, context_length })
}

/// Who goes first when room is needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EvictionStrategy {
    /// Whoever was used least recently, among those that may go.
    #[default]
    Lru,
    /// The lowest class first; in a class, whoever was used least recently.
    Priority,
}

/// How room is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EvictionPolicy {
    /// Who goes first.
    pub strategy: EvictionStrategy,
    /// A model that was used within this time stays.
    pub keep_warm: Duration,
}

/// A resident of a device, in the eyes of whoever needs room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occupant {
    /// Which model.
    pub model: ModelId,
    /// What it was promised.
    pub bytes: Bytes,
    /// Its class.
    pub class: u32,
    /// It goes by hand only.
    pub pinned: bool,
    /// How long nobody has used it; absent while it has requests, or is being loaded.
    pub idle: Option<Duration>,
}

impl EvictionPolicy {
    /// The class of a resident, where the strategy heeds that.
    pub fn heeded(&self, class: u32) -> u32 {
        if self.strategy == EvictionStrategy::Priority { class } else { 0 }
    }
}

/// Why an occupant does not go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stays {
    /// By hand only.
    #[error("pinned")]
    Pinned,
    /// It is of a higher class (CX-26).
    #[error("of the higher class {0}")]
    HigherClass(u32),
    /// It has requests, or is being loaded.
    #[error("in use")]
    InUse,
    /// It stays for so long after its last use.
    #[error("kept warm for {} s after its last use", .0.as_secs())]
    Warm(Duration),
}

/// Room on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// Who has to go, the first to go first; none if it is free.
    pub victims: Vec<ModelId>,
    /// What is free once they are gone.
    pub free: Bytes,
}

/// There is no room, whoever may go goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRoom {
    /// Memory that was asked for.
    pub needed: Bytes,
    /// What would be free if all went that may.
    pub available: Bytes,
    /// All memory of the device.
    pub total: Bytes,
    /// Who stays, and why.
    pub stays: Vec<(ModelId, Stays)>,
}

impl NoRoom {
    /// May there be room before long, when those that are in use no longer are?
    pub fn may_pass(&self) -> bool {
        self.needed <= self.total && self.stays.iter().any(|(_, why)| matches!(why, Stays::InUse | Stays::Warm(_)))
    }
}

impl std::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} needed, {} available", self.needed, self.available)?;
        if self.stays.is_empty() {
            return Ok(());
        }
        let stays: Vec<String> = self.stays.iter().map(|(model, why)| format!("'{model}' is {why}")).collect();
        write!(f, " ({})", stays.join(", "))
    }
}

/// Finds room for a model of `class` on a device of `total` bytes with these occupants.
///
/// Nobody goes while there is room. Only idle models that are not pinned go, of the same class or below (CX-26, CX-43), in the order of the
/// strategy; and of those only as many as are needed. Fewer go, for a shorter context, where the goal cannot be reached.
pub fn plan_eviction(total: Bytes, occupants: &[Occupant], needs: &Needs, class: u32, policy: &EvictionPolicy) -> Result<Room, NoRoom> {
    let used: Bytes = occupants.iter().map(|occupant| occupant.bytes).sum();
    let free = total.saturating_sub(used);
    let goal = needs.goal(total);
    if goal <= free {
        return Ok(Room { victims: Vec::new(), free });
    }
    let mut displaceable: Vec<(&Occupant, Duration)> = Vec::new();
    let mut stays = Vec::new();
    for occupant in occupants {
        match (may_go(occupant, class, policy), occupant.idle) {
            (Ok(()), Some(idle)) => displaceable.push((occupant, idle)),
            (Ok(()), None) => stays.push((occupant.model.clone(), Stays::InUse)),
            (Err(why), _) => stays.push((occupant.model.clone(), why)),
        }
    }
    displaceable.sort_by_key(|(occupant, idle)| (policy.heeded(occupant.class), Reverse(*idle), occupant.model.clone()));
    let most = free.0 + displaceable.iter().map(|(occupant, _)| occupant.bytes.0).sum::<u64>();
    let needed = if goal.0 <= most { goal } else { needs.least() };
    if needed.0 > most {
        return Err(NoRoom { needed, available: Bytes(most), total, stays });
    }
    let mut victims: Vec<&Occupant> = Vec::new();
    let mut room = free;
    for (occupant, _) in &displaceable {
        if room >= needed {
            break;
        }
        room = room + occupant.bytes;
        victims.push(occupant);
    }
    // Whoever is worth most stays after all, if the others make room enough.
    for i in (0..victims.len()).rev() {
        if room.saturating_sub(victims[i].bytes) >= needed {
            room = room - victims.remove(i).bytes;
        }
    }
    Ok(Room { victims: victims.into_iter().map(|victim| victim.model.clone()).collect(), free: room })
}

fn may_go(occupant: &Occupant, class: u32, policy: &EvictionPolicy) -> Result<(), Stays> {
    if occupant.pinned {
        return Err(Stays::Pinned);
    }
    if occupant.class > class {
        return Err(Stays::HigherClass(occupant.class));
    }
    match occupant.idle {
        None => Err(Stays::InUse),
        Some(idle) if idle < policy.keep_warm => Err(Stays::Warm(policy.keep_warm)),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn needs() -> Needs {
        let footprint = Footprint { weights: Bytes(900_000), kv_per_token: Bytes(1_000), working: Bytes(100_000) };
        Needs { footprint, context_length: 1024, context_wanted: false, running_max: 4 }
    }

    /// Needs of so many bytes, with a context that costs nothing.
    fn plain(bytes: u64) -> Needs {
        let footprint = Footprint { weights: Bytes(bytes), ..Footprint::default() };
        Needs { footprint, ..needs() }
    }

    fn occupant(model: &str, bytes: u64, class: u32, idle_s: Option<u64>) -> Occupant {
        Occupant { model: model.parse().unwrap(), bytes: Bytes(bytes), class, pinned: false, idle: idle_s.map(Duration::from_secs) }
    }

    fn victims(occupants: &[Occupant], bytes: u64, class: u32, strategy: EvictionStrategy) -> Result<Vec<String>, NoRoom> {
        let policy = EvictionPolicy { strategy, ..EvictionPolicy::default() };
        let room = plan_eviction(Bytes(100), occupants, &plain(bytes), class, &policy)?;
        Ok(room.victims.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn with_much_room_every_request_has_a_full_context() {
        let plan = plan(&needs(), Bytes(1_000_000_000)).unwrap();
        assert_eq!((plan.context_length, plan.kv.n_blocks), (1024, 4 * 64));
    }

    #[test]
    fn with_little_room_the_context_is_shortened_before_the_load_is_refused() {
        // CX-30, CX-53
        let plan_small = plan(&needs(), Bytes(1_000_000 + 512 * 1_000)).unwrap();
        assert_eq!((plan_small.context_length, plan_small.kv.n_blocks), (512, 32));
        assert_eq!(plan(&needs(), Bytes(1_000_000 + 200 * 1_000)), Err(Bytes(1_256_000)));
    }

    #[test]
    fn a_long_context_is_a_reason_to_evict_only_if_the_owner_asked_for_it() {
        let long = Needs { context_length: 100_000, ..needs() };
        assert_eq!(long.goal(Bytes(1 << 40)), Bytes(1_000_000 + 8_192_000));
        assert_eq!(Needs { context_wanted: true, ..long }.goal(Bytes(1 << 40)), Bytes(1_000_000 + 100_000_000));
        assert_eq!(long.goal(Bytes(3_000_000)), Bytes(3_000_000), "what there is, if that serves");
    }

    #[test]
    fn nobody_goes_while_there_is_room() {
        // CX-25
        assert_eq!(victims(&[occupant("a", 60, 100, Some(9))], 40, 100, EvictionStrategy::Lru), Ok(vec![]));
    }

    #[test]
    fn who_was_used_least_recently_goes_first_and_no_more_go_than_needed() {
        // CX-43
        let three = [occupant("new", 30, 100, Some(1)), occupant("old", 30, 100, Some(9)), occupant("older", 30, 100, Some(99))];
        assert_eq!(victims(&three, 40, 100, EvictionStrategy::Lru), Ok(vec!["older".into()]));
        assert_eq!(victims(&three, 60, 100, EvictionStrategy::Lru), Ok(vec!["older".into(), "old".into()]));
        let small_first = [occupant("tiny", 5, 100, Some(99)), occupant("big", 90, 100, Some(1))];
        assert_eq!(victims(&small_first, 80, 100, EvictionStrategy::Lru), Ok(vec!["big".into()]), "the small one need not go");
    }

    #[test]
    fn a_model_displaces_its_own_class_and_below_in_both_directions_and_none_above() {
        // CX-26
        let resident = |class| [occupant("other", 100, class, Some(1))];
        assert!(victims(&resident(100), 50, 100, EvictionStrategy::Lru).is_ok(), "equal rank is symmetric: two models can alternate");
        assert!(victims(&resident(50), 50, 100, EvictionStrategy::Lru).is_ok());
        let refused = victims(&resident(101), 50, 100, EvictionStrategy::Lru).unwrap_err();
        assert_eq!(refused.to_string(), "50 B needed, 0 B available ('other' is of the higher class 101)");
        assert!(!refused.may_pass(), "waiting does not help");
    }

    #[test]
    fn pinned_running_and_warm_models_are_never_victims() {
        // CX-43
        let pinned = Occupant { pinned: true, ..occupant("p", 50, 1, Some(999)) };
        let refused = victims(&[pinned, occupant("busy", 50, 1, None)], 50, 100, EvictionStrategy::Lru).unwrap_err();
        assert_eq!(refused.to_string(), "50 B needed, 0 B available ('p' is pinned, 'busy' is in use)");
        assert!(refused.may_pass(), "the busy one may end");
        let policy = EvictionPolicy { keep_warm: Duration::from_secs(10), ..EvictionPolicy::default() };
        assert!(plan_eviction(Bytes(100), &[occupant("w", 90, 1, Some(9))], &plain(50), 100, &policy).is_err());
        assert!(plan_eviction(Bytes(100), &[occupant("w", 90, 1, Some(10))], &plain(50), 100, &policy).is_ok());
    }

    #[test]
    fn by_priority_the_lowest_class_goes_first_however_recently_it_was_used() {
        // CX-02
        let two = [occupant("low", 50, 10, Some(1)), occupant("high", 50, 90, Some(99))];
        assert_eq!(victims(&two, 50, 100, EvictionStrategy::Priority), Ok(vec!["low".into()]));
        assert_eq!(victims(&two, 50, 100, EvictionStrategy::Lru), Ok(vec!["high".into()]));
    }

    proptest! {
        #[test]
        fn a_plan_fits_the_device_and_holds_its_own_context(
            weights in 0u64..1 << 40, kv in 1u64..1 << 20, context in 1u32..1 << 20, running in 1u32..64, free in 0u64..1 << 42,
            context_wanted in any::<bool>(),
        ) {
            let footprint = Footprint { weights: Bytes(weights), kv_per_token: Bytes(kv), working: Bytes(weights / 10) };
            let needs = Needs { footprint, context_length: context, context_wanted, running_max: running };
            match plan(&needs, Bytes(free)) {
                Ok(plan) => {
                    let pool = plan.kv.n_blocks * plan.kv.block_len;
                    prop_assert!(needs.bytes(&plan) <= Bytes(free));
                    prop_assert!(plan.context_length <= pool && plan.context_length <= context && plan.context_length > 0);
                }
                Err(least) => prop_assert!(least > Bytes(free)),
            }
        }

        #[test]
        fn victims_may_go_are_all_needed_and_make_room(
            residents in proptest::collection::vec((0u64..40, 0u32..3, any::<bool>(), proptest::option::of(0u64..9)), 0..6),
            bytes in 0u64..120, class in 0u32..3, by_priority in any::<bool>(),
        ) {
            let strategy = if by_priority { EvictionStrategy::Priority } else { EvictionStrategy::Lru };
            let policy = EvictionPolicy { strategy, keep_warm: Duration::from_secs(2) };
            let occupants: Vec<Occupant> = residents.iter().enumerate()
                .map(|(i, (bytes, class, pinned, idle))| Occupant { pinned: *pinned, ..occupant(&format!("m{i}"), *bytes, *class, *idle) })
                .collect();
            let total = Bytes(occupants.iter().map(|occupant| occupant.bytes.0).sum::<u64>() + 10);
            let needs = plain(bytes);
            let bytes_of = |model: &ModelId| occupants.iter().find(|occupant| occupant.model == *model).unwrap().bytes;
            match plan_eviction(total, &occupants, &needs, class, &policy) {
                Ok(room) => {
                    prop_assert!(room.free >= needs.least());
                    prop_assert_eq!(room.free, Bytes(10) + room.victims.iter().map(bytes_of).sum());
                    for victim in &room.victims {
                        let occupant = occupants.iter().find(|occupant| occupant.model == *victim).unwrap();
                        prop_assert!(may_go(occupant, class, &policy).is_ok());
                        prop_assert!(room.free.saturating_sub(occupant.bytes) < needs.least(), "{} need not go", victim);
                    }
                }
                Err(refused) => {
                    let gone: Bytes = occupants.iter().filter(|one| may_go(one, class, &policy).is_ok()).map(|one| one.bytes).sum();
                    prop_assert!(needs.least() > Bytes(10) + gone);
                    prop_assert_eq!(refused.available, Bytes(10) + gone);
                }
            }
        }
    }
}

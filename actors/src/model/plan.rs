//! How large a model's context and KV pool become on a device: a pure function of its files, its profile and the room there is.

use plexus_engine::executor::KvPlan;
use plexus_types::Bytes;

/// Tokens in a KV block: small enough that little is wasted at a sequence's end, large enough that tables stay short.
pub const BLOCK_LEN: u32 = 16;
/// A context shorter than this serves nobody: the load is refused instead.
const CONTEXT_MIN: u32 = 256;
/// Share of the room left by the weights that a model's KV pool may take beyond one context, so that other models find room too.
const POOL_SHARE: f64 = 0.25;

/// What a model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Its weights, resident.
    pub weights: Bytes,
    /// Keys and values of one token.
    pub kv_per_token: Bytes,
    /// Tokens that it was made for, or fewer if the profile says so.
    pub context_length: u32,
    /// Most requests at a time.
    pub running_max: u32,
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
/// else as much as that, but at least one full context; a shorter context if even that does not fit (CX-30).
///
/// `Err`: the bytes that the smallest useful plan needs.
pub fn plan(needs: &Needs, free: Bytes) -> Result<Plan, Bytes> {
    let per_block = Bytes(needs.kv_per_token.0 * u64::from(BLOCK_LEN));
    let blocks_of = |tokens: u32| u64::from(tokens.div_ceil(BLOCK_LEN));
    let shortest = needs.context_length.min(CONTEXT_MIN);
    let least = Bytes(needs.weights.0 + blocks_of(shortest) * per_block.0);
    if least > free {
        return Err(least);
    }
    let room = (free - needs.weights).0;
    let fit = |bytes: u64| bytes.checked_div(per_block.0).unwrap_or(u64::MAX);
    let one_context = blocks_of(needs.context_length);
    let all_contexts = one_context * u64::from(needs.running_max.max(1));
    let share = fit((room as f64 * POOL_SHARE) as u64);
    let n_blocks = all_contexts.min(share).max(one_context).min(fit(room)).min(u64::from(u32::MAX / BLOCK_LEN)) as u32;
    let context_length = needs.context_length.min(n_blocks * BLOCK_LEN);
    Ok(Plan { kv: KvPlan { n_blocks, block_len: BLOCK_LEN }, context_length })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn needs() -> Needs {
        Needs { weights: Bytes(1_000_000), kv_per_token: Bytes(1_000), context_length: 1024, running_max: 4 }
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

    proptest! {
        #[test]
        fn a_plan_fits_the_device_and_holds_its_own_context(
            weights in 0u64..1 << 40, kv in 1u64..1 << 20, context in 1u32..1 << 20, running in 1u32..64, free in 0u64..1 << 42,
        ) {
            let needs = Needs { weights: Bytes(weights), kv_per_token: Bytes(kv), context_length: context, running_max: running };
            match plan(&needs, Bytes(free)) {
                Ok(plan) => {
                    let pool = u64::from(plan.kv.n_blocks) * u64::from(plan.kv.block_len);
                    prop_assert!(weights + pool * kv <= free);
                    prop_assert!(u64::from(plan.context_length) <= pool && plan.context_length <= context && plan.context_length > 0);
                }
                Err(least) => prop_assert!(least > Bytes(free)),
            }
        }
    }
}

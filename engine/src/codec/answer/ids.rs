//! The ids of calls.

const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What tells the answers of a conversation apart: the seed, and the prompt, which no other turn has.
pub(in crate::codec) fn answer_key(seed: u64, prompt: &[u32]) -> u64 {
    prompt.iter().fold(mix(seed), |key, id| mix(key ^ u64::from(*id)))
}

/// The id of a call: a function of the answer's key and of its index, so that a replica that continues an answer names its calls alike.
pub(super) fn call_id(key: u64, index: u32) -> String {
    format!("call_{}", letters(key ^ (u64::from(index) + 1).wrapping_mul(0xD1B5_4A32_D192_ED03), 24))
}

/// An id of nine letters and digits, as Mistral's templates want it; one that is so already stays.
pub(in crate::codec) fn nine_letters(id: &str) -> String {
    if id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return id.to_owned();
    }
    letters(id.bytes().fold(mix(id.len() as u64), |key, byte| mix(key ^ u64::from(byte))), 9)
}

fn letters(key: u64, n: usize) -> String {
    let mut state = key;
    let mut next = || {
        state = mix(state);
        char::from(ALPHABET[(state >> 32) as usize % ALPHABET.len()])
    };
    (0..n).map(|_| next()).collect()
}

/// SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_by_seed_prompt_and_index_and_repeat_otherwise() {
        let key = answer_key(7, &[1, 2]);
        assert_eq!(call_id(key, 0), call_id(answer_key(7, &[1, 2]), 0));
        assert_eq!(call_id(key, 0).len(), "call_".len() + 24);
        let others =
            [call_id(key, 1), call_id(answer_key(8, &[1, 2]), 0), call_id(answer_key(7, &[1, 3]), 0), call_id(answer_key(7, &[1]), 0)];
        assert!(others.iter().all(|other| *other != call_id(key, 0)));
    }

    #[test]
    fn other_ids_become_nine_letters_and_nine_letters_stay() {
        assert_eq!(nine_letters("abcDEF123"), "abcDEF123");
        let made = nine_letters("call_0123456789");
        assert!(made.len() == 9 && made == nine_letters("call_0123456789") && made != nine_letters("call_0123456780"));
    }
}

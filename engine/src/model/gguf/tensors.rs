//! Tensor names of GGUF files, in our own words. Source of the names: the table of tensor names of the `gguf` Python package, 0.19.

use crate::model::config::Family;

/// Read with the configuration, not as weights.
const OF_THE_CONFIGURATION: [&str; 3] = ["rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"];

/// Is it read with the configuration?
pub(super) fn is_of_the_configuration(name: &str) -> bool {
    OF_THE_CONFIGURATION.contains(&name)
}

/// Our own name; none for a foreign tensor, which keeps its own, so that the check names it. Several tensors fused into one have the name
/// `qkv`, `gate_up`, `experts.gate` and so on.
pub(super) fn tensor_name(name: &str) -> Option<String> {
    let whole = match name {
        "token_embd.weight" => "embedding",
        "output_norm.weight" => "norm",
        "output_norm.bias" => "norm.bias",
        "output.weight" => "head",
        _ => "",
    };
    if !whole.is_empty() {
        return Some(whole.to_owned());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let end = match kind {
        "weight" => "",
        "bias" => ".bias",
        _ => return None,
    };
    let part = match part {
        "attn_norm" => "attention_norm",
        "attn_q" => "q",
        "attn_k" => "k",
        "attn_v" => "v",
        "attn_qkv" => "qkv",
        "attn_output" => "o",
        "attn_q_norm" => "q_norm",
        "attn_k_norm" => "k_norm",
        "post_attention_norm" => "attention_post_norm",
        "ffn_norm" => "ffn_norm",
        "post_ffw_norm" => "ffn_post_norm",
        "ffn_gate" => "gate",
        "ffn_up" => "up",
        "ffn_down" => "down",
        "ffn_gate_inp" => "router",
        "ffn_gate_exps" => "experts.gate",
        "ffn_up_exps" => "experts.up",
        "ffn_down_exps" => "experts.down",
        "ffn_gate_up_exps" => "experts.gate_up",
        "ffn_gate_inp_shexp" => "shared_router",
        "ffn_gate_shexp" => "shared.gate",
        "ffn_up_shexp" => "shared.up",
        "ffn_down_shexp" => "shared.down",
        _ => {
            // Before experts were merged, each had a tensor of its own.
            let (part, expert) = part.rsplit_once('.')?;
            let part = part.strip_prefix("ffn_").filter(|part| matches!(*part, "gate" | "up" | "down"))?;
            let expert: usize = expert.parse().ok()?;
            return Some(format!("layers.{layer}.experts.{expert}.{part}{end}"));
        }
    };
    Some(format!("layers.{layer}.{part}{end}"))
}

/// Are query and key rows interleaved, so that neighbours are turned together, where the family turns halves?
pub(super) fn interleaved(family: Family) -> bool {
    matches!(family, Family::Llama | Family::SmolLm3 | Family::Granite)
}

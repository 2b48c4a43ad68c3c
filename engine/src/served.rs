//! What this build serves, for those who ask before they bring a model.

use plexus_kernels::Format;

use crate::embed;
use crate::model::hf;

/// The families of models, as `model_type` in `config.json` names them: decoders, then encoders.
pub fn families() -> Vec<&'static str> {
    hf::config::FAMILIES.into_iter().chain(embed::files::FAMILIES).collect()
}

/// The formats that weights may have in files: all of them in GGUF, the first three in safetensors.
pub fn weight_formats() -> Vec<&'static str> {
    Format::ALL.map(Format::name).to_vec()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    #[test]
    fn each_family_that_is_told_is_taken() {
        // CX-45
        for name in families() {
            let decoder = hf::config::family(Path::new("config.json"), &json!({"model_type": name})).is_ok();
            assert_ne!(decoder, embed::files::EncoderFamily::of(name).is_some(), "{name}");
        }
    }

    #[test]
    fn safetensors_have_the_first_three_formats() {
        assert_eq!(weight_formats()[..3], ["F32", "F16", "BF16"]);
    }
}

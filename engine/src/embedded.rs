//! The demonstration model inside the binary, so that a node answers without a download.
//!
//! Pip is ours: trained from scratch on synthetic dialogues. `engine/assets/pip/MODEL_CARD.md` says what it can do and how it was
//! made, `tools/demo-model/` makes it again.

/// Weights (Q8_0), tokenizer and chat template.
pub(crate) const PIP_GGUF: &[u8] = include_bytes!("../assets/pip/pip-q8_0.gguf");

/// How to sample.
pub(crate) const PIP_GENERATION_CONFIG: &str = include_str!("../assets/pip/generation_config.json");

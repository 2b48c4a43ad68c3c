//! Texts to vectors.

use serde::{Deserialize, Serialize};

use crate::ModelId;

/// What a model is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// It continues text.
    #[default]
    Generate,
    /// It gives a vector for a text.
    Embed,
}

/// Some texts to embed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbedRequest {
    /// The model asked for.
    pub model: ModelId,
    /// The texts; at least one.
    pub inputs: Vec<EmbedInput>,
    /// Keep only so many numbers of each vector, which is then scaled to length 1 again; absent: all.
    pub dimensions: Option<u32>,
    /// Who asks, as in [`crate::GenerateRequest::principal`].
    pub principal: Option<u64>,
    /// Where each text stands among those that the client sent, counted from 0, for errors to say so. Empty if it sent one alone.
    pub indices: Vec<u32>,
}

impl EmbedRequest {
    /// What the client calls the text at a place of [`Self::inputs`].
    pub fn name(&self, at: usize) -> String {
        self.indices.get(at).map_or_else(|| "input".to_owned(), |index| format!("input[{index}]"))
    }

    /// How long its texts are together, bytes; token ids count nothing.
    pub fn text_len(&self) -> u64 {
        self.inputs.iter().map(|input| if let EmbedInput::Text(text) = input { text.len() as u64 } else { 0 }).sum()
    }
}

/// One text to embed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EmbedInput {
    /// Text; the tokenizer adds what the model wants around it.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<u32>),
}

/// The vectors of an [`EmbedRequest`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Embeddings {
    /// One for each input, in order; of length 1.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs.
    pub prompt_tokens: u32,
}

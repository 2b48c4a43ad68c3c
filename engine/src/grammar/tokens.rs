//! A model's vocabulary as the grammar library wants it.

use std::sync::Arc;

use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::codec::Tokenizer;

/// Text whose tokens must spell it exactly where forced text is to be split as the model's own tokenizer splits it.
const PROBE: &str = "{\"name\": \"value\", \"n\": [1, 2.5, true]}";

/// What every token stands for.
pub(crate) struct TokenTable {
    /// `[vocab_size]`: the bytes of each token; none for ids that stand for nothing.
    pub(crate) texts: Vec<Vec<u8>>,
    /// Names of the tokens that are not text, by id.
    pub(crate) control: Vec<(u32, String)>,
    /// Tokens that end an answer, in order.
    pub(crate) stop_ids: Arc<[u32]>,
    /// Splits text.
    pub(crate) tokenizer: Arc<Tokenizer>,
}

impl TokenTable {
    /// Errors: the model has no token that ends an answer, or more tokens than the library takes.
    pub(super) fn into_env(mut self) -> Result<TokEnv, String> {
        const TOKENS_MAX: usize = 1 << 21; // nodes of the trie are addressed with 22 bits
        let n = self.texts.len();
        if n > TOKENS_MAX {
            return Err(format!("it has {n} tokens; at most {TOKENS_MAX} are taken"));
        }
        let stop_ids: Vec<u32> = self.stop_ids.iter().copied().filter(|id| (*id as usize) < n).collect();
        let Some(first) = stop_ids.first() else { return Err("it has no token that ends an answer".into()) };
        // A lone first byte of the marker would pass for the beginning of every control token.
        self.texts.iter_mut().filter(|text| text.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER)).for_each(Vec::clear);
        for (id, name) in &self.control {
            if let Some(text) = self.texts.get_mut(*id as usize) {
                *text = [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat();
            }
        }
        let trie = TokTrie::from(&TokRxInfo::new(n as u32, *first), &self.texts).with_eos_tokens(&stop_ids);
        let mut tokens = Tokens { trie, tokenizer: self.tokenizer, spells_exactly: false };
        tokens.spells_exactly = tokens.trie.decode_raw(&tokens.split(PROBE)) == PROBE.as_bytes();
        Ok(Arc::new(tokens))
    }
}

/// The vocabulary as a trie, and the tokenizer for text that a grammar forces.
struct Tokens {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
    /// The tokens of a text spell it, without a space before or the like.
    spells_exactly: bool,
}

impl Tokens {
    fn split(&self, text: &str) -> Vec<TokenId> {
        self.tokenizer.encode(text, false).unwrap_or_else(|_| self.trie.greedy_tokenize(text.as_bytes()))
    }
}

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        if self.spells_exactly {
            self.trie.tokenize_with_greedy_fallback(bytes, |text| self.split(text))
        } else {
            self.trie.greedy_tokenize(bytes)
        }
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.spells_exactly
    }
}

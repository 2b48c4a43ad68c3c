//! A model of byte-pair encoding read from a `tokenizer.json`, token by token: no tree of it is ever in memory.

use std::fmt;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Bpe, Options};
use crate::model::Texts;

impl<'de> Deserialize<'de> for Bpe {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ModelVisitor)
    }
}

struct ModelVisitor;

impl<'de> Visitor<'de> for ModelVisitor {
    type Value = Bpe;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tokenizer model of the kind BPE")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Bpe, A::Error> {
        let mut options = Options::default();
        let (mut vocab, mut merges) = (None, None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "unk_token" => options.unknown = map.next_value()?,
                "fuse_unk" => options.fuse_unknown = map.next_value::<Option<bool>>()?.unwrap_or(false),
                "byte_fallback" => options.byte_fallback = map.next_value::<Option<bool>>()?.unwrap_or(false),
                "ignore_merges" => options.ignore_merges = map.next_value::<Option<bool>>()?.unwrap_or(false),
                "vocab" => vocab = Some(map.next_value_seed(VocabSeed)?),
                "merges" => merges = Some(map.next_value_seed(MergesSeed)?),
                _ => drop(map.next_value::<IgnoredAny>()?), // `check_model` has looked at what must not be ignored
            }
        }
        let (texts, ids) = vocab.ok_or_else(|| A::Error::custom("it has no vocab"))?;
        let pairs = merges.ok_or_else(|| A::Error::custom("it has no merges"))?;
        let (texts, ids) = by_id(texts, ids).ok_or_else(too_long)?;
        let mut bpe = Bpe::with_ids(texts, Some(ids), options);
        if bpe.by_text.len() != bpe.texts.len() {
            return Err(A::Error::custom("its vocab has a token twice"));
        }
        let (lefts, rights) = (pairs.iter().step_by(2), pairs.iter().skip(1).step_by(2));
        bpe.merge_texts(&lefts.zip(rights).collect::<Vec<_>>()).map_err(A::Error::custom)?;
        Ok(bpe)
    }
}

fn too_long<E: Error>() -> E {
    E::custom("its texts are longer than 4 GiB")
}

/// Tokens in the order of their ids.
fn by_id(texts: Texts, ids: Vec<u32>) -> Option<(Texts, Box<[u32]>)> {
    if ids.is_sorted() {
        return Some((texts, ids.into()));
    }
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|index| ids[*index as usize]);
    let mut sorted = Texts::with_capacity(texts.len());
    order.iter().try_for_each(|index| sorted.push(texts.get(*index as usize)?))?;
    sorted.shrink();
    Some((sorted, order.iter().map(|index| ids[*index as usize]).collect()))
}

/// An object of tokens and their ids, in the order of the file.
struct VocabSeed;

impl<'de> DeserializeSeed<'de> for VocabSeed {
    type Value = (Texts, Vec<u32>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for VocabSeed {
    type Value = (Texts, Vec<u32>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tokens and their ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut texts, mut ids) = (Texts::default(), Vec::new());
        while map.next_key_seed(TextSeed(&mut texts))?.is_some() {
            ids.push(map.next_value()?);
        }
        texts.shrink();
        Ok((texts, ids))
    }
}

/// Merges, one after the other, each as two texts.
struct MergesSeed;

impl<'de> DeserializeSeed<'de> for MergesSeed {
    type Value = Texts;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Texts, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for MergesSeed {
    type Value = Texts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of merges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Texts, A::Error> {
        let mut texts = Texts::default();
        while seq.next_element_seed(MergeSeed(&mut texts))?.is_some() {}
        Ok(texts)
    }
}

/// A merge: a list of two texts, or one text with a space between them.
struct MergeSeed<'a>(&'a mut Texts);

impl<'de> DeserializeSeed<'de> for MergeSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MergeSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a merge of two tokens")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        match text.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => self.0.push(left).and_then(|()| self.0.push(right)).ok_or_else(too_long),
            _ => Err(E::custom(format!("the merge {text:?} is not two tokens with a space between them"))),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let two = seq.next_element_seed(TextSeed(self.0))?.is_some() && seq.next_element_seed(TextSeed(self.0))?.is_some();
        match seq.next_element::<IgnoredAny>()? {
            None if two => Ok(()),
            _ => Err(A::Error::custom("a merge is not a list of two tokens")),
        }
    }
}

/// One text, added to the others.
struct TextSeed<'a>(&'a mut Texts);

impl<'de> DeserializeSeed<'de> for TextSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for TextSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.push(text).ok_or_else(too_long)
    }
}

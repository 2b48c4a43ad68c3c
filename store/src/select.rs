//! Which files of a repository or folder make up one model.

use std::collections::BTreeMap;

use crate::names::{GgufName, has_extension, split_number};

/// A model in GGUF: one file, or all parts of a split one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GgufSet {
    /// With its folder, without the number of the part and the extension.
    pub(crate) stem: String,
    /// How it is quantized, as its name says.
    pub(crate) tag: Option<String>,
    /// Names in the order of the parts; never empty.
    pub(crate) files: Vec<String>,
    /// Are all parts there?
    pub(crate) whole: bool,
}

/// Why no model can be told from the names of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unclear {
    /// No GGUF file has the tag; these there are.
    NoQuant(Vec<String>),
    /// Several GGUF files could be meant.
    Which(Vec<String>),
    /// This is missing.
    Missing(String),
}

/// All models in GGUF among these names, in their order.
pub(crate) fn gguf_sets<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<GgufSet> {
    let mut sets: BTreeMap<(&str, u32), BTreeMap<u32, &str>> = BTreeMap::new();
    for name in names {
        if let Some(parsed) = GgufName::parse(name) {
            let (index, count) = parsed.part.unwrap_or((1, 0)); // 0: not split
            sets.entry((parsed.stem, count)).or_default().insert(index, name);
        }
    }
    let set = |((stem, count), parts): ((&str, u32), BTreeMap<u32, &str>)| GgufSet {
        stem: stem.to_owned(),
        tag: GgufName { stem, part: None }.tag().map(str::to_owned),
        whole: parts.len() as u32 == count.max(1),
        files: parts.into_values().map(str::to_owned).collect(),
    };
    sets.into_iter().map(set).collect()
}

/// The files that a model needs: with `quant` the GGUF file of that tag; else the safetensors with what belongs to them, or the only GGUF file.
///
/// Names are relative, with `/`. The weights come last, and of a split GGUF file the first part comes first.
pub(crate) fn select(names: &[&str], quant: Option<&str>) -> Result<Vec<String>, Unclear> {
    let sets = gguf_sets(names.iter().copied());
    if let Some(quant) = quant {
        return by_tag(sets, quant).and_then(whole);
    }
    let has = |name: &str| names.contains(&name);
    let weights = weights_of(names);
    if has("config.json") && !weights.is_empty() {
        let mut files: Vec<String> = names.iter().copied().filter(|name| is_description(name)).map(str::to_owned).collect();
        files.extend(weights.into_iter().map(str::to_owned));
        return Ok(files);
    }
    match sets.as_slice() {
        [] if weights.is_empty() => Err(Unclear::Missing("it has neither .gguf nor .safetensors files".to_owned())),
        [] => Err(Unclear::Missing("config.json is missing".to_owned())),
        [set] => whole(set.clone()),
        several => Err(Unclear::Which(tags(several))),
    }
}

fn by_tag(sets: Vec<GgufSet>, quant: &str) -> Result<GgufSet, Unclear> {
    let tag_is = |set: &GgufSet, wanted: fn(&str) -> &str| set.tag.as_deref().is_some_and(|tag| wanted(tag).eq_ignore_ascii_case(quant));
    // `Q4_K_XL` may be written for `UD-Q4_K_XL`, unless there are both.
    let plain: fn(&str) -> &str = |tag| tag;
    let short: fn(&str) -> &str = |tag| tag.get(3..).filter(|_| tag[..3].eq_ignore_ascii_case("ud-")).unwrap_or(tag);
    for wanted in [plain, short] {
        let mut found: Vec<GgufSet> = sets.iter().filter(|set| tag_is(set, wanted)).cloned().collect();
        match found.len() {
            0 => {}
            1 => return Ok(found.remove(0)),
            _ => return Err(Unclear::Which(found.into_iter().map(|set| set.stem).collect())),
        }
    }
    Err(Unclear::NoQuant(tags(&sets)))
}

fn whole(set: GgufSet) -> Result<Vec<String>, Unclear> {
    if set.whole { Ok(set.files) } else { Err(Unclear::Missing(format!("parts of {} are missing", set.stem))) }
}

/// What the sets are asked for by.
fn tags(sets: &[GgufSet]) -> Vec<String> {
    sets.iter().map(|set| set.tag.clone().unwrap_or_else(|| set.stem.clone())).collect()
}

/// The safetensors that an engine opens: one file if there is one, else the shards of the index, else all in the outermost folder; and those of
/// the layers that a sentence-transformers model puts behind it.
fn weights_of<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let safetensors = || names.iter().copied().filter(|name| has_extension(name, "safetensors"));
    let is_outermost = |name: &&str| !name.contains('/');
    let is_shard = |name: &&str| split_number(&name[..name.len() - ".safetensors".len()]).is_some_and(|(stem, _)| stem == "model");
    let single: Vec<&str> = safetensors().filter(|name| *name == "model.safetensors").collect();
    let shards: Vec<&str> = safetensors().filter(is_shard).collect();
    let mut weights = match (single.is_empty(), shards.is_empty()) {
        (false, _) => single,
        (true, false) => shards,
        (true, true) => safetensors().filter(is_outermost).collect(),
    };
    if !weights.is_empty() {
        weights.extend(safetensors().filter(|name| is_layer(name)));
    }
    weights
}

/// `1_Pooling/config.json`: a file of a layer that sentence-transformers numbers.
fn is_layer(name: &str) -> bool {
    let Some((folder, file)) = name.split_once('/') else { return false };
    let Some((number, kind)) = folder.split_once('_') else { return false };
    !file.contains('/') && !kind.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}

/// Does this file belong to the weights in safetensors?
fn is_description(name: &str) -> bool {
    let plain = [
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "model.safetensors.index.json",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    ];
    plain.contains(&name)
        || (!name.contains('/') && (name.starts_with("tokenizer") || name.starts_with("chat_template")))
        || (is_layer(name) && name.ends_with("/config.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantization_is_found_by_its_tag_with_all_its_parts() {
        let names = [
            "README.md",
            "Q/m-Q8_0-00002-of-00002.gguf",
            "Q/m-Q8_0-00001-of-00002.gguf",
            "m-UD-Q4_K_XL.gguf",
            "m-Q5_K_M.gguf",
            "m-UD-Q5_K_M.gguf",
            "mmproj-F16.gguf",
        ];
        let two = ["Q/m-Q8_0-00001-of-00002.gguf", "Q/m-Q8_0-00002-of-00002.gguf"].map(str::to_owned).to_vec();
        assert_eq!(select(&names, Some("q8_0")), Ok(two));
        assert_eq!(select(&names, Some("Q4_K_XL")), Ok(vec!["m-UD-Q4_K_XL.gguf".to_owned()]));
        assert_eq!(select(&names, Some("Q5_K_M")), Ok(vec!["m-Q5_K_M.gguf".to_owned()]));
        let has = ["Q8_0", "Q5_K_M", "UD-Q4_K_XL", "UD-Q5_K_M"].map(str::to_owned).to_vec();
        assert_eq!(select(&names, Some("F16")), Err(Unclear::NoQuant(has.clone())));
        assert_eq!(select(&names, None), Err(Unclear::Which(has)));
    }

    #[test]
    fn a_model_in_safetensors_is_taken_without_what_else_lies_there() {
        let names = [
            ".gitattributes",
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "original/consolidated.00.pth",
            "onnx/model.onnx",
            "openvino/config.json",
            "1_Pooling/config.json",
            "2_Dense/model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
            "chat_template.jinja",
        ];
        let wanted = [
            "config.json",
            "model.safetensors.index.json",
            "1_Pooling/config.json",
            "tokenizer.json",
            "chat_template.jinja",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "2_Dense/model.safetensors",
        ];
        assert_eq!(select(&names, None), Ok(wanted.map(str::to_owned).to_vec()));
    }

    #[test]
    fn what_is_no_model_is_told_by_what_is_missing() {
        for (names, missing) in [
            (&["pytorch_model.bin", "config.json"][..], "it has neither .gguf nor .safetensors files"),
            (&["model.safetensors"], "config.json is missing"),
            (&["a-00001-of-00002.gguf"], "parts of a are missing"),
        ] {
            assert_eq!(select(names, None), Err(Unclear::Missing(missing.to_owned())));
        }
    }
}

//! What the name of a file tells, and which names are safe.

/// Deepest a file of a model may lie in its folder.
const DEPTH_MAX: usize = 3;

/// Is this a name relative to a folder that cannot lead out of it, on any system? Parts are divided by `/`.
pub(crate) fn is_plain(name: &str) -> bool {
    let part_ok = |part: &str| {
        (1..=240).contains(&part.len()) && part != "." && part != ".." && !part.contains(['\\', ':']) && !part.chars().any(char::is_control)
    };
    name.split('/').count() <= DEPTH_MAX && name.split('/').all(part_ok)
}

/// Ends a name in this, in whatever case?
pub(crate) fn has_extension(name: &str, extension: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(stem, found)| !stem.is_empty() && found.eq_ignore_ascii_case(extension))
}

/// The name of a GGUF file, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GgufName<'a> {
    /// Without the number of the part and the extension; with its folder.
    pub(crate) stem: &'a str,
    /// Which part of how many, counted from 1; absent: the only one.
    pub(crate) part: Option<(u32, u32)>,
}

impl<'a> GgufName<'a> {
    /// `None` for what is no language model's file: other extensions, projectors for images, and importance matrices.
    pub(crate) fn parse(name: &'a str) -> Option<Self> {
        if !has_extension(name, "gguf") {
            return None;
        }
        let file = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
        if file.contains("mmproj") || file.starts_with("imatrix") {
            return None;
        }
        let stem = &name[..name.len() - ".gguf".len()];
        Some(match split_number(stem) {
            Some((stem, part)) => Self { stem, part: Some(part) },
            None => Self { stem, part: None },
        })
    }

    /// The tag that says how it is quantized, such as `Q4_K_M`, `UD-Q4_K_XL` or `BF16`.
    pub(crate) fn tag(&self) -> Option<&'a str> {
        let file = self.stem.rsplit('/').next().unwrap_or(self.stem);
        let mut found = None;
        let mut start = 0;
        let mut before = None;
        for part in file.split(['-', '.']) {
            if is_quant(part) {
                let from = before.filter(|&(_, text): &(usize, &str)| text.eq_ignore_ascii_case("ud")).map_or(start, |(at, _)| at);
                found = Some(&file[from..start + part.len()]);
            }
            before = Some((start, part));
            start += part.len() + 1;
        }
        found
    }
}

/// `model-00002-of-00003` is `model` and (2, 3).
pub(crate) fn split_number(stem: &str) -> Option<(&str, (u32, u32))> {
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (rest, index) = rest.rsplit_once('-')?;
    let number = |text: &str| (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?;
    let (index, count) = (number(index)?, number(count)?);
    (!rest.is_empty() && (1..=count).contains(&index)).then_some((rest, (index, count)))
}

/// Is this part of a name how quantizations are called?
fn is_quant(part: &str) -> bool {
    let part = part.to_ascii_uppercase();
    let digit_after = |start: &str| part.strip_prefix(start).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    matches!(part.as_str(), "F16" | "F32" | "BF16" | "FP16" | "FP32") || ["Q", "IQ", "TQ", "MXFP", "NVFP"].into_iter().any(digit_after)
}

/// Writes what an address cannot hold as `%` and two digits.
pub(crate) fn encoded(text: &str, keep_slashes: bool) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') || (keep_slashes && byte == b'/') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The opposite. `None` for what [`encoded`] never writes.
pub(crate) fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_gguf_files_are_taken_apart() {
        for (name, stem, part, tag) in [
            ("Qwen3-0.6B-Q8_0.gguf", "Qwen3-0.6B-Q8_0", None, Some("Q8_0")),
            ("tinyllama.Q4_K_M.gguf", "tinyllama.Q4_K_M", None, Some("Q4_K_M")),
            ("gemma-2-2b-it-q4_0.GGUF", "gemma-2-2b-it-q4_0", None, Some("q4_0")),
            ("Q/m-UD-IQ2_XXS-00002-of-00003.gguf", "Q/m-UD-IQ2_XXS", Some((2, 3)), Some("UD-IQ2_XXS")),
            ("gpt-oss-20b-mxfp4.gguf", "gpt-oss-20b-mxfp4", None, Some("mxfp4")),
            ("model.gguf", "model", None, None),
            ("m-00004-of-00003.gguf", "m-00004-of-00003", None, None),
        ] {
            let parsed = GgufName::parse(name).expect(name);
            assert_eq!((parsed.stem, parsed.part, parsed.tag()), (stem, part, tag), "{name}");
        }
        for name in ["mmproj-F16.gguf", "x-mmproj-model-f16.gguf", "imatrix.gguf", "a.bin", ".gguf", "gguf"] {
            assert_eq!(GgufName::parse(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn addresses_are_read_as_they_are_written(text in "\\PC{0,40}") {
            prop_assert_eq!(decoded(&encoded(&text, false)), Some(text));
        }

        #[test]
        fn no_address_is_too_odd_to_be_read(text in "[%0-9a-gü]{0,12}") {
            let _read = decoded(&text);
        }
    }

    #[test]
    fn names_that_lead_out_of_a_folder_are_not_plain() {
        for name in ["config.json", "1_Pooling/config.json", "a/b/c", "..a", "ü.gguf"] {
            assert!(is_plain(name), "{name:?}");
        }
        for name in ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "a/b/c/d", "a\\b", "c:d", "a\0", "a\nb"] {
            assert!(!is_plain(name), "{name:?}");
        }
    }
}

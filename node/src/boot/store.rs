//! Where models' files are kept and come from: the configuration first, then what Hugging Face's own tools agreed on.

use std::path::{Path, PathBuf};

use plexus_store::{DEFAULT_ENDPOINT, StoreConfig, Token};

use crate::config::StoreSection;

/// The store of the node whose folder is `folder`. `variable` reads the environment.
pub(super) fn config(section: &StoreSection, folder: PathBuf, variable: impl Fn(&str) -> Option<String>) -> StoreConfig {
    let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    let home = std::env::home_dir().unwrap_or_default();
    let hugging_face = variable("HF_HOME").map_or_else(|| home.join(".cache").join("huggingface"), PathBuf::from);
    // CX-52
    let caches = [
        section.hf_cache.clone(),
        variable("HF_HUB_CACHE").map(PathBuf::from),
        variable("HF_HOME").map(|home| Path::new(&home).join("hub")),
        Some(hugging_face.join("hub")),
    ];
    let mut hub_caches: Vec<PathBuf> = caches.into_iter().flatten().collect();
    hub_caches.dedup();
    let token = variable(&section.auth_env).or_else(|| variable("HF_TOKEN"));
    let switched_on = |value: String| matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
    let endpoint = section.endpoint.clone().or_else(|| variable("HF_ENDPOINT"));
    StoreConfig {
        hub_caches,
        endpoint: endpoint.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
        token: token.as_deref().and_then(Token::new),
        token_file: Some(variable("HF_TOKEN_PATH").map_or_else(|| hugging_face.join("token"), PathBuf::from)),
        offline: section.offline || variable("HF_HUB_OFFLINE").is_some_and(switched_on),
        ..StoreConfig::new(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(section: &StoreSection, variables: &[(&str, &str)]) -> StoreConfig {
        let value = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        config(section, "/data/store".into(), value)
    }

    // CX-52
    #[test]
    fn caches_are_looked_through_in_the_order_of_hugging_face() {
        let section = StoreSection { hf_cache: Some("/mine".into()), ..StoreSection::default() };
        let config = with(&section, &[("HF_HUB_CACHE", "/hub"), ("HF_HOME", "/home-of-hf")]);
        assert_eq!(config.hub_caches, ["/mine", "/hub", "/home-of-hf/hub"].map(PathBuf::from));
        let usual = with(&StoreSection::default(), &[]);
        assert!(usual.hub_caches[0].ends_with(".cache/huggingface/hub"), "{:?}", usual.hub_caches);
    }

    #[test]
    fn a_mirror_and_its_token_are_those_of_the_configuration_before_those_of_hugging_face() {
        let section =
            StoreSection { endpoint: Some("http://mirror:8080".into()), auth_env: "MIRROR_TOKEN".into(), ..StoreSection::default() };
        let config = with(&section, &[("MIRROR_TOKEN", "one"), ("HF_TOKEN", "two"), ("HF_ENDPOINT", "http://other")]);
        assert_eq!(config.endpoint, "http://mirror:8080");
        assert_eq!(config.token, Token::new("one"));
        let config = with(&StoreSection::default(), &[("HF_TOKEN", "two"), ("HF_ENDPOINT", "http://other"), ("HF_HUB_OFFLINE", "1")]);
        assert_eq!((config.endpoint.as_str(), config.token, config.offline), ("http://other", Token::new("two"), true));
    }
}

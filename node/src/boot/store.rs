//! Where models' files are kept and come from: the configuration first, then what Hugging Face's own tools agreed on.

use std::path::{Path, PathBuf};

use plexus_store::{DEFAULT_ENDPOINT, StoreConfig, Token};
use tracing::warn;

use crate::config::{BadHub, BadValue, ConfigError, Origin, StoreSection, hub_address};

/// The store of the node whose folder is `folder`. `variable` reads the environment.
pub(super) fn config(
    section: &StoreSection,
    folder: PathBuf,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<StoreConfig, ConfigError> {
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
    let switched_on = |value: String| matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
    let theirs = variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
    let endpoint = section.endpoint.clone().unwrap_or_else(|| theirs.clone());
    hub_address(&endpoint).map_err(|BadHub { value, problem, remedy }| BadValue {
        key: "store.endpoint".to_owned(),
        value,
        origin: Origin::Variable("HF_ENDPOINT".to_owned()), // that of the file was looked at before
        problem: problem.to_owned(),
        remedy: remedy.to_owned(),
    })?;
    // A user's own token is for the hub that Hugging Face's tools would show it to. Any other is shown what `auth_env` names, and nothing else.
    let is_theirs = [DEFAULT_ENDPOINT, &theirs].iter().any(|known| known.trim_end_matches('/') == endpoint.trim_end_matches('/'));
    let (token, token_file) = match section.auth_env.as_deref() {
        None | Some("HF_TOKEN") if is_theirs => {
            let login = variable("HF_TOKEN_PATH").map_or_else(|| hugging_face.join("token"), PathBuf::from);
            (variable("HF_TOKEN"), Some(login))
        }
        None => (None, None),
        Some(name) => {
            let token = variable(name);
            if token.is_none() {
                warn!(variable = name, endpoint, "the variable that store.auth_env names is not set, so the hub is asked without a token");
            }
            (token, None)
        }
    };
    Ok(StoreConfig {
        hub_caches,
        endpoint,
        token: token.as_deref().and_then(Token::new),
        token_file,
        offline: section.offline || variable("HF_HUB_OFFLINE").is_some_and(switched_on),
        ..StoreConfig::new(folder)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(section: &StoreSection, variables: &[(&str, &str)]) -> StoreConfig {
        let value = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        config(section, "/data/store".into(), value).unwrap()
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
    fn a_users_own_token_is_shown_to_hugging_face_and_to_nobody_else() {
        let own = [("HF_TOKEN", "own"), ("HF_TOKEN_PATH", "/login")];
        let shown = |endpoint: Option<&str>, auth_env: Option<&str>, more: &[(&str, &str)]| {
            let section =
                StoreSection { endpoint: endpoint.map(str::to_owned), auth_env: auth_env.map(str::to_owned), ..StoreSection::default() };
            let config = with(&section, &[&own, more].concat());
            (config.token, config.token_file)
        };
        let (token, login) = (Token::new("own"), Some(PathBuf::from("/login")));
        for auth_env in [None, Some("HF_TOKEN")] {
            assert_eq!(shown(None, auth_env, &[]), (token.clone(), login.clone()));
            assert_eq!(shown(Some("https://huggingface.co/"), auth_env, &[]), (token.clone(), login.clone()));
            let known = [("HF_ENDPOINT", "http://mirror")];
            assert_eq!(shown(Some("http://mirror/"), auth_env, &known), (token.clone(), login.clone()), "as Hugging Face's tools do");
        }
        assert_eq!(shown(Some("http://mirror"), None, &[]), (None, None));
        assert_eq!(shown(Some("http://mirror"), Some("MIRROR_TOKEN"), &[]), (None, None), "that it is not set changes nothing");
        assert_eq!(shown(None, Some("MIRROR_TOKEN"), &[]), (None, None));
        assert_eq!(shown(Some("http://mirror"), Some("MIRROR_TOKEN"), &[("MIRROR_TOKEN", "one")]), (Token::new("one"), None));
        assert_eq!(shown(Some("http://mirror"), Some("HF_TOKEN"), &[]), (token, None), "whoever writes this means it");
    }

    #[test]
    fn an_address_in_the_environment_holds_no_password_either() {
        let config = |address: &str| {
            let value = |name: &str| (name == "HF_ENDPOINT").then(|| address.to_owned());
            config(&StoreSection::default(), "/data/store".into(), value).map(|config| config.endpoint)
        };
        let refused = config("https://me:hunter2@mirror").unwrap_err().to_string();
        assert!(refused.contains("HF_ENDPOINT") && refused.contains("store.auth_env") && !refused.contains("hunter2"), "{refused}");
        assert!(config("mirror").unwrap_err().to_string().contains("\"mirror\""));
        assert_eq!(config("https://mirror").unwrap(), "https://mirror");
    }

    #[test]
    fn a_mirror_and_its_token_are_those_of_the_configuration_before_those_of_hugging_face() {
        let section =
            StoreSection { endpoint: Some("http://mirror:8080".into()), auth_env: Some("MIRROR_TOKEN".into()), ..StoreSection::default() };
        let config = with(&section, &[("MIRROR_TOKEN", "one"), ("HF_TOKEN", "two"), ("HF_ENDPOINT", "http://other")]);
        assert_eq!(config.endpoint, "http://mirror:8080");
        assert_eq!(config.token, Token::new("one"));
        let config = with(&StoreSection::default(), &[("HF_TOKEN", "two"), ("HF_ENDPOINT", "http://other"), ("HF_HUB_OFFLINE", "1")]);
        assert_eq!((config.endpoint.as_str(), config.token, config.offline), ("http://other", Token::new("two"), true));
    }
}

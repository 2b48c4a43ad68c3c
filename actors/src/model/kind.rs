//! What a model is for, against what it is asked for.

use plexus_types::{ModelId, ModelKind, RequestError};

/// Refuses what a model of this `kind` was not made for.
pub(crate) fn check_kind(model: &ModelId, kind: ModelKind, asked_for: ModelKind) -> Result<(), RequestError> {
    let message = match (kind, asked_for) {
        (ModelKind::Generate, ModelKind::Generate) | (ModelKind::Embed, ModelKind::Embed) => return Ok(()),
        (ModelKind::Embed, ModelKind::Generate) => {
            format!("the model '{model}' embeds texts and does not answer: use /v1/embeddings, or another model")
        }
        (ModelKind::Generate, ModelKind::Embed) => {
            format!("the model '{model}' answers and does not embed: choose a model of kind \"embed\"")
        }
    };
    Err(RequestError::WrongModality { message, param: Some("model".to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_asked_for_what_it_was_made_for() {
        let model = "m".parse().unwrap();
        for kind in [ModelKind::Generate, ModelKind::Embed] {
            for asked_for in [ModelKind::Generate, ModelKind::Embed] {
                assert_eq!(check_kind(&model, kind, asked_for).is_ok(), kind == asked_for);
            }
        }
    }
}

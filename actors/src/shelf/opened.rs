//! A model's files, opened: what they say without their weights.

use std::io;

use plexus_engine::codec::Codec;
use plexus_engine::draft::check_pair;
use plexus_engine::error::EngineError;
use plexus_engine::model::ModelFiles;
use plexus_store::Stamp;
use plexus_types::{Footprint, ModelFacts, ModelProfile, ModelSource, chain};

use super::Shelf;

/// A model's files and those of its draft model, opened and checked: nothing but headers and vocabularies is read. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The model's own.
    pub files: ModelFiles,
    /// Those of its draft model.
    pub draft: Option<ModelFiles>,
}

/// Tells whether a model's files, and those of its draft model, are the same as before, without reading them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fingerprint([Option<Stamp>; 2]);

/// Why files were not opened, in words for their owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The disk did not give them: a later try may succeed.
    #[error("{0}")]
    Unreadable(String),
    /// They are not here, or are nothing that this engine serves.
    #[error("{0}")]
    Refused(String),
}

impl OpenError {
    /// The same, with more said.
    fn map(self, more: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::Unreadable(why) => Self::Unreadable(more(why)),
            Self::Refused(why) => Self::Refused(more(why)),
        }
    }
}

impl From<EngineError> for OpenError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Io { .. } => Self::Unreadable(chain(&error)),
            _ => Self::Refused(chain(&error)),
        }
    }
}

impl Opened {
    /// The model's vocabulary and template.
    pub fn codec(&self) -> &Codec {
        &self.files.codec
    }

    /// How many matrices stay in more bits than the profile says, and how many there are.
    pub fn too_narrow(&self) -> (usize, usize) {
        self.files.too_narrow()
    }

    /// What they say, both models together.
    pub fn facts(&self) -> ModelFacts {
        let mut facts = self.files.facts();
        if let Some(draft) = self.draft.as_ref().map(ModelFiles::facts) {
            let both = |a: Footprint, b: Footprint| Footprint {
                weights: a.weights + b.weights,
                kv_per_token: a.kv_per_token + b.kv_per_token,
                working: a.working + b.working,
            };
            (facts.cpu, facts.cuda) = (both(facts.cpu, draft.cpu), both(facts.cuda, draft.cuda));
            facts.file_bytes = facts.file_bytes + draft.file_bytes;
        }
        facts
    }
}

impl Shelf {
    /// Opens a model's files, as its profile wants them held. Blocks.
    ///
    /// Errors: what is wrong with them, in words for their owner.
    pub fn open(&self, profile: &ModelProfile) -> Result<Opened, OpenError> {
        let open = |source: &ModelSource| {
            let path = self.locate(source).ok_or_else(|| OpenError::Refused(format!("{source} is not on this node")))?;
            let files = ModelFiles::open(&path)?;
            // The profile's, and not what there is room for: a replica with less memory gives the same tokens.
            Ok::<_, OpenError>(match profile.context_length {
                Some(tokens) => files.with_context_length(tokens),
                None => files,
            })
        };
        let files = open(&profile.source)?;
        let files = match profile.quant {
            Some(quant) => files.quantized(quant)?,
            None => files,
        };
        let open_draft = |source: &ModelSource| {
            let draft = open(source)?;
            check_pair(&files, &draft)?;
            Ok::<_, OpenError>(draft)
        };
        let named = |source: &ModelSource, why: String| format!("draft = \"{source}\": {why}; choose another, or leave draft out");
        let draft = profile.draft.as_ref().map(|source| open_draft(source).map_err(|error| error.map(|why| named(source, why))));
        let draft = draft.transpose()?;
        Ok(Opened { files, draft })
    }

    /// The same, with what they say and hold: of files that were not replaced meanwhile.
    ///
    /// Errors: as [`Shelf::open`], and if they were.
    pub fn told_of(&self, profile: &ModelProfile, opened: Opened, print: Fingerprint) -> Result<(ModelFacts, Opened), OpenError> {
        let unreadable = |error: io::Error| OpenError::Unreadable(error.to_string());
        let digest = self.store.digest(&profile.source).map_err(unreadable)?;
        if self.fingerprint(profile).map_err(unreadable)? != print {
            return Err(OpenError::Unreadable("its files were replaced while they were opened".into()));
        }
        Ok((ModelFacts { digest, is_copy: self.store.is_copy(&profile.source), ..opened.facts() }, opened))
    }

    /// The fingerprint of a model's files as they are now. Looks at the disk.
    ///
    /// Errors: what the disk says if it cannot tell.
    pub fn fingerprint(&self, profile: &ModelProfile) -> io::Result<Fingerprint> {
        let draft = profile.draft.as_ref().map(|source| self.store.stamp(source)).transpose()?.flatten();
        Ok(Fingerprint([self.store.stamp(&profile.source)?, draft]))
    }
}

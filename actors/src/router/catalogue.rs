//! The catalogues of all nodes as one: pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use plexus_types::{
    Catalogue, CatalogueEntry, FilesDigest, FilesFetch, FilesState, ModelFacts, ModelId, ModelProfile, ModelSource, NodeId, NodeName,
};

/// What the cluster lists, as one node sees it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MergedCatalogue {
    /// By id.
    pub models: BTreeMap<ModelId, MergedModel>,
    /// Further names.
    pub aliases: BTreeMap<ModelId, ModelId>,
    /// Contradictions, and what counts, each in a sentence.
    pub conflicts: Vec<String>,
}

/// A model that some node lists, or has found.
#[derive(Debug, Clone, PartialEq)]
pub struct MergedModel {
    /// How it is to be served.
    pub profile: ModelProfile,
    /// What its files say, if some node has them: those that count.
    pub facts: Option<ModelFacts>,
    /// What those hold, in short; absent where nothing was compared.
    pub digest: Option<FilesDigest>,
    /// The nodes that list it, with the files that each has.
    pub on: BTreeMap<NodeId, CatalogueEntry>,
}

impl MergedModel {
    /// Its files on a node.
    pub fn files(&self, node: &NodeId) -> &FilesState {
        self.on.get(node).map_or(&FilesState::Absent, |entry| &entry.files)
    }

    /// Tokens that it holds where it has all the memory that it wants; absent while no node knows its files.
    pub fn context_length(&self) -> Option<u32> {
        let made_for = self.facts.as_ref()?.context_length;
        Some(self.profile.context_length.map_or(made_for, |wanted| wanted.min(made_for)))
    }

    /// The nodes that have its files.
    pub fn holders(&self) -> impl Iterator<Item = &NodeId> {
        self.on.keys().filter(|node| self.usable(node).is_some())
    }

    /// Are files with this digest those that count, as far as it is known?
    pub fn fits(&self, digest: Option<FilesDigest>) -> bool {
        digest.zip(self.digest).is_none_or(|(digest, counts)| digest == counts)
    }

    /// May a node be asked for these files of it? Not for its own, if it has others than count: what came would have to be thrown away.
    pub fn may_give(&self, node: &NodeId, source: &ModelSource) -> bool {
        self.on.get(node).is_none_or(|entry| match &entry.files {
            FilesState::Present(facts) => entry.profile.source != *source || self.fits(facts.digest),
            FilesState::Unknown | FilesState::Absent | FilesState::Fetching(_) | FilesState::Refused(_) => true,
        })
    }

    /// How far its files are on a node that fetches them.
    pub fn fetch(&self, node: &NodeId) -> Option<&FilesFetch> {
        match self.files(node) {
            FilesState::Fetching(fetch) => Some(fetch),
            _ => None,
        }
    }

    /// The nodes that fetch its files, and how far those are.
    pub fn fetches(&self) -> impl Iterator<Item = (&NodeId, &FilesFetch)> {
        self.on.keys().filter_map(|node| Some((node, self.fetch(node)?)))
    }

    /// What its files on a node say, if they are there and count.
    pub fn usable(&self, node: &NodeId) -> Option<&ModelFacts> {
        match self.files(node) {
            FilesState::Present(facts) if self.fits(facts.digest) => Some(facts),
            _ => None,
        }
    }
}

/// Listed before found, the newer file, the greater text.
type Rank = (bool, u64, String);

/// Merges what nodes list. Of two entries for one id the one in the newer file counts, and one that is listed before one that was only found;
/// of two files of one time, the entry that is greater as text, so that all nodes agree. Of nodes that have different files for one id, those of one
/// count.
pub fn merge<'a>(catalogues: impl Iterator<Item = (&'a NodeId, &'a Catalogue)>) -> MergedCatalogue {
    let mut merged = MergedCatalogue::default();
    let mut ranks: BTreeMap<ModelId, (Rank, NodeName)> = BTreeMap::new();
    let mut files: BTreeMap<&ModelId, Vec<Files<'_>>> = BTreeMap::new();
    let mut alias_ranks: BTreeMap<ModelId, (u64, NodeName)> = BTreeMap::new();
    let mut named_by: BTreeMap<&ModelId, BTreeSet<&NodeName>> = BTreeMap::new();
    for (node, catalogue) in catalogues {
        for entry in &catalogue.entries {
            let id = &entry.profile.id;
            let rank = (!entry.found, catalogue.modified_ms, format!("{:?}", entry.profile));
            let model = merged.models.entry(id.clone()).or_insert_with(|| MergedModel {
                profile: entry.profile.clone(),
                facts: None,
                digest: None,
                on: BTreeMap::new(),
            });
            if let FilesState::Present(facts) = &entry.files {
                files.entry(id).or_default().push(Files { node: &node.name, rank: rank.clone(), facts });
            }
            model.on.insert(node.clone(), entry.clone());
            if let Some((known, from)) = ranks.get(id) {
                let (winner, loser) = if rank > *known { (&node.name, from) } else { (from, &node.name) };
                // Files that were only found lie where they lie.
                if known.0 && rank.0 && known.2 != rank.2 {
                    merged.conflicts.push(format!(
                        "the model '{id}' is listed differently on '{winner}' and '{loser}' ({}): '{winner}' counts, {}",
                        model.profile.differences(&entry.profile).join(", "),
                        why(known.1 == rank.1)
                    ));
                }
                if rank <= *known {
                    continue;
                }
                model.profile = entry.profile.clone();
            }
            ranks.insert(id.clone(), (rank, node.name.clone()));
        }
        for (alias, target) in &catalogue.aliases {
            named_by.entry(alias).or_default().insert(&node.name);
            let newer = alias_ranks.get(alias).is_none_or(|known| (catalogue.modified_ms, &node.name) > (known.0, &known.1));
            if let Some(known) = merged.aliases.get(alias).filter(|known| *known != target) {
                let counts = if newer { target } else { known };
                let tie = alias_ranks.get(alias).is_some_and(|known| known.0 == catalogue.modified_ms);
                merged
                    .conflicts
                    .push(format!("the alias '{alias}' stands for '{known}' and for '{target}': '{counts}' counts, {}", why(tie)));
            }
            if newer {
                alias_ranks.insert(alias.clone(), (catalogue.modified_ms, node.name.clone()));
                merged.aliases.insert(alias.clone(), target.clone());
            }
        }
    }
    let hidden = named_by.iter().filter_map(|(alias, from)| {
        let (model, target) = (merged.models.get(*alias)?, merged.aliases.get(*alias)?);
        let listed_by: BTreeSet<&NodeName> = model.on.keys().map(|node| &node.name).collect();
        Some(format!(
            "the alias '{alias}' of '{target}', in [aliases] on {}, is hidden: there is a model '{alias}' on {}, which is what clients get by \
             that name; rename the alias, or give that model another id",
            quoted(from),
            quoted(&listed_by)
        ))
    });
    let hidden: Vec<String> = hidden.collect();
    merged.conflicts.extend(hidden);
    for (id, files) in files {
        let Some(model) = merged.models.get_mut(id) else { continue };
        let Some(counts) = files.iter().min_by_key(|files| files.precedence()) else { continue };
        (model.facts, model.digest) = (Some(counts.facts.clone()), counts.facts.digest);
        let others = files.iter().filter(|files| !files.facts.is_copy && !model.fits(files.facts.digest));
        let mut others: Vec<&NodeName> = others.map(|files| files.node).collect();
        others.sort();
        merged.conflicts.extend(others.into_iter().map(|other| {
            let counts = counts.node;
            format!(
                "the files of the model '{id}' on '{other}' are not those on '{counts}', which count: put the same on both, or list those on \
                 '{other}' under another id"
            )
        }));
    }
    merged
}

/// The files of a model on a node.
struct Files<'a> {
    node: &'a NodeName,
    rank: Rank,
    facts: &'a ModelFacts,
}

impl Files<'_> {
    /// Whose files count, the least first: who has them where their source says, before who has a copy from others; then as entries count; then by
    /// name. The same at every node, whatever the order in which they were heard of.
    fn precedence(&self) -> (bool, Reverse<&Rank>, &NodeName) {
        (self.facts.is_copy, Reverse(&self.rank), self.node)
    }
}

/// `'a', 'b'`
fn quoted(nodes: &BTreeSet<&NodeName>) -> String {
    nodes.iter().map(|node| format!("'{node}'")).collect::<Vec<_>>().join(", ")
}

/// Why one of two entries counts.
fn why(same_age: bool) -> &'static str {
    if same_age { "chosen alike by all nodes, for both files are of the same time: make them agree" } else { "its file is newer" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        format!("{name}#1").parse().unwrap()
    }

    fn listing(modified_ms: u64, id: &str, priority: u32, found: bool) -> Catalogue {
        let profile =
            ModelProfile { residency_priority: priority, ..ModelProfile::new(id.parse().unwrap(), "embedded:pip".parse().unwrap()) };
        let entries = vec![CatalogueEntry { profile, found, files: FilesState::Absent }];
        Catalogue { modified_ms, entries, ..Catalogue::default() }
    }

    fn merged(catalogues: &[(&str, Catalogue)]) -> MergedCatalogue {
        let named: Vec<(NodeId, &Catalogue)> = catalogues.iter().map(|(name, catalogue)| (node(name), catalogue)).collect();
        merge(named.iter().map(|(node, catalogue)| (node, *catalogue)))
    }

    #[test]
    fn different_catalogues_merge() {
        let merged = merged(&[("a", listing(1, "x", 100, false)), ("b", listing(2, "y", 100, false))]);
        assert_eq!(merged.models.keys().map(ToString::to_string).collect::<Vec<_>>(), ["x", "y"]);
        assert!(merged.conflicts.is_empty());
    }

    #[test]
    fn of_two_entries_the_one_in_the_newer_file_counts_and_the_conflict_is_told() {
        for order in [["a", "b"], ["b", "a"]] {
            let times = |name: &str| if name == "a" { listing(1, "x", 5, false) } else { listing(2, "x", 7, false) };
            let merged = merged(&order.map(|name| (name, times(name))));
            assert_eq!(merged.models[&"x".parse().unwrap()].profile.residency_priority, 7);
            assert_eq!(merged.conflicts.len(), 1, "{:?}", merged.conflicts);
            let expected = "the model 'x' is listed differently on 'b' and 'a' (residency_priority): 'b' counts, its file is newer";
            assert_eq!(merged.conflicts[0], expected);
        }
    }

    #[test]
    fn the_same_entry_everywhere_and_what_was_only_found_are_no_conflicts() {
        let same = merged(&[("a", listing(1, "x", 5, false)), ("b", listing(2, "x", 5, false))]);
        assert!(same.conflicts.is_empty());
        let found = merged(&[("a", listing(1, "x", 5, false)), ("b", listing(2, "x", 100, true))]);
        assert!(found.conflicts.is_empty());
        assert_eq!(found.models[&"x".parse().unwrap()].profile.residency_priority, 5, "what is listed counts before what was found");
    }

    #[test]
    fn an_alias_with_two_meanings_is_told_and_the_newer_file_counts() {
        // CX-27
        let with_alias = |modified_ms, target: &str| {
            let aliases = BTreeMap::from([("small".parse().unwrap(), target.parse().unwrap())]);
            Catalogue { modified_ms, aliases, ..Catalogue::default() }
        };
        let merged = merged(&[("a", with_alias(9, "new")), ("b", with_alias(2, "old"))]);
        assert_eq!(merged.aliases[&"small".parse().unwrap()].as_str(), "new");
        assert_eq!(merged.conflicts.len(), 1);
        assert!(merged.conflicts[0].contains("'new' counts, its file is newer"), "{}", merged.conflicts[0]);
    }

    #[test]
    fn an_alias_that_a_model_of_another_node_hides_is_told_with_both_nodes_and_the_remedy() {
        // CX-27
        let aliases = BTreeMap::from([("x".parse().unwrap(), "y".parse().unwrap())]);
        let naming = Catalogue { aliases, ..listing(9, "y", 5, false) };
        for found in [false, true] {
            let merged = merged(&[("a", naming.clone()), ("b", listing(2, "x", 5, found)), ("c", listing(2, "x", 5, found))]);
            let expected = "the alias 'x' of 'y', in [aliases] on 'a', is hidden: there is a model 'x' on 'b', 'c', which is what clients get by \
                            that name; rename the alias, or give that model another id";
            assert_eq!(merged.conflicts, [expected]);
        }
        assert!(merged(&[("a", naming), ("b", listing(2, "z", 5, false))]).conflicts.is_empty());
    }

    #[test]
    fn of_files_of_one_time_neither_is_called_newer() {
        let entries = |priority| listing(3, "x", priority, false);
        let alias = |target: &str| {
            let aliases = BTreeMap::from([("small".parse().unwrap(), target.parse().unwrap())]);
            Catalogue { modified_ms: 3, aliases, ..Catalogue::default() }
        };
        for [one, other] in [[entries(5), entries(7)], [alias("x"), alias("y")]] {
            let merged = merged(&[("a", one), ("b", other)]);
            let [conflict] = &merged.conflicts[..] else { panic!("{:?}", merged.conflicts) };
            assert!(conflict.contains("of the same time") && !conflict.contains("newer"), "{conflict}");
        }
    }

    /// What a node lists at this time, and has of it: files that hold something with this digest.
    fn holding(modified_ms: u64, digest: u8, is_copy: bool) -> Catalogue {
        let mut catalogue = listing(modified_ms, "x", 5, false);
        let facts = ModelFacts { digest: Some(FilesDigest::new([digest; 16])), is_copy, ..crate::evictor::core::tests::facts(40) };
        catalogue.entries[0].files = FilesState::Present(facts);
        catalogue
    }

    fn counts(merged: &MergedCatalogue) -> Option<FilesDigest> {
        merged.models[&"x".parse().unwrap()].digest
    }

    #[test]
    fn of_different_files_those_of_the_newer_listing_count_then_of_the_first_name_and_the_conflict_is_told() {
        for order in [["a", "b"], ["b", "a"]] {
            let newer = |name: &str| if name == "a" { holding(1, 1, false) } else { holding(2, 2, false) };
            let merged_newer = merged(&order.map(|name| (name, newer(name))));
            assert_eq!(counts(&merged_newer), Some(FilesDigest::new([2; 16])));
            let expected = "the files of the model 'x' on 'a' are not those on 'b', which count: put the same on both, or list those on 'a' under \
                            another id";
            assert_eq!(merged_newer.conflicts, [expected]);
            let same_age = |name: &str| if name == "a" { holding(1, 1, false) } else { holding(1, 2, false) };
            assert_eq!(counts(&merged(&order.map(|name| (name, same_age(name))))), Some(FilesDigest::new([1; 16])));
        }
    }

    #[test]
    fn who_has_the_files_where_they_lie_counts_before_who_has_a_copy_and_an_old_copy_is_no_conflict() {
        for order in [["a", "b"], ["b", "a"]] {
            let holds = |name: &str| if name == "a" { holding(9, 1, true) } else { holding(1, 2, false) };
            let merged = merged(&order.map(|name| (name, holds(name))));
            assert_eq!(counts(&merged), Some(FilesDigest::new([2; 16])));
            assert!(merged.conflicts.iter().all(|told| !told.contains("the files of")), "{:?}", merged.conflicts);
            let model = &merged.models[&"x".parse().unwrap()];
            assert_eq!(model.holders().map(|node| node.name.to_string()).collect::<Vec<_>>(), ["b"], "nobody fetches from a");
        }
        let copies = merged(&[("a", holding(1, 1, true))]);
        assert_eq!(counts(&copies), Some(FilesDigest::new([1; 16])), "a copy is better than nothing");
    }

    #[test]
    fn equal_files_are_no_conflict_and_what_was_not_compared_fits() {
        let same = merged(&[("a", holding(1, 1, false)), ("b", holding(1, 1, false))]);
        assert!(same.conflicts.is_empty(), "{:?}", same.conflicts);
        let model = &same.models[&"x".parse().unwrap()];
        assert!(model.fits(None) && model.fits(model.digest) && !model.fits(Some(FilesDigest::new([2; 16]))));
    }

    #[test]
    fn who_has_other_files_than_count_is_not_asked_for_them() {
        let (counting, other, copy) = (holding(3, 1, false), holding(2, 2, false), holding(1, 2, true));
        let merged = merged(&[("a", counting), ("b", other), ("c", copy), ("d", listing(1, "x", 1, false))]);
        let model = &merged.models[&"x".parse().unwrap()];
        let asked = |source: &ModelSource| ["a", "b", "c", "d"].map(|name| model.may_give(&node(name), source));
        assert_eq!(asked(&model.profile.source), [true, false, false, true], "whoever has none may get them");
        assert_eq!(asked(&"hf:org/other".parse().unwrap()), [true; 4], "of others nothing is known");
    }
}

//! The pages about models: what there is, and why it is where it is.

use comfy_table::Cell;
use plexus_types::{Bytes, Explanation};

use super::sheet::{Sheet, paragraph};
use super::{Look, Mood, fine, known, loading, number, state_cell};
use crate::client::{ModelEntry, ModelPlace};
use crate::commands::terminal::harmless;

/// The merged catalogue: one line per replica, the model's name on the first; then why models failed.
pub(crate) fn models_page(models: &[ModelEntry], look: Look) -> String {
    let mut table =
        Sheet::new(look, &["MODEL", "STATUS", "WHERE", "CONTEXT", "MEMORY", "CAPABILITIES"]).spare(&["CAPABILITIES", "CONTEXT"]);
    for model in models {
        let capabilities = Cell::new(harmless(&model.capabilities.join(", ")));
        if let Some(target) = &model.alias_of {
            // Both names together have room above the row, if not in it.
            let (id, other_name) = match look.width {
                Some(_) => (format!("{} = {target}", model.id), "alias".to_owned()),
                None => (model.id.clone(), format!("alias of {target}")),
            };
            table.add_row(vec![Cell::new(id), Cell::new(other_name), Cell::new("-"), number("-"), number("-"), capabilities]);
            continue;
        }
        let status = state_cell(status(model), &mood(&model.status));
        let context = number(known(model.max_model_len));
        let mut places: Vec<(Cell, Cell)> = model.locations.iter().map(|at| (place(model, at), memory(at))).collect();
        // Where it failed is not where it will be.
        if places.is_empty() || model.status == "unloaded" {
            let able = match &model.feasible_on[..] {
                [] => "-".to_owned(),
                [first, second, more @ ..] if look.width.is_some() && more.len() > 1 => {
                    format!("on demand: {first}, {second} and {} more", more.len())
                }
                nodes => format!("on demand: {}", nodes.join(", ")),
            };
            places.insert(0, (Cell::new(able), number("-")));
        }
        let mut places = places.into_iter();
        let mut row = vec![Cell::new(&model.id), status];
        row.extend(places.next().map(|(at, memory)| [at, context, memory, capabilities]).into_iter().flatten());
        table.add_row(row);
        for (at, memory) in places {
            table.add_row(vec![Cell::new(""), Cell::new(""), at, Cell::new(""), memory]);
        }
    }
    // What is said of a model is not said again of its other names.
    let is_told = |model: &ModelEntry| model.alias_of.as_ref().is_some_and(|target| models.iter().any(|other| other.id == *target));
    let own = || models.iter().filter(|model| !is_told(model));
    let warnings = own().filter_map(|model| model.warning.as_ref()).map(|warning| format!("warning: {}", harmless(warning)));
    let below = warnings.chain(own().flat_map(reasons));
    [table.text()].into_iter().chain(below.map(|text| paragraph(&text, look))).collect::<Vec<_>>().join("\n\n")
}

/// Why a model failed; from whom its files come; and where it failed, if it is to be had elsewhere.
fn reasons(model: &ModelEntry) -> Vec<String> {
    if let Some(why) = &model.reason {
        return vec![format!("{} failed: {}", model.id, harmless(why))];
    }
    if let Some(fetch) = &model.fetch {
        return vec![harmless(&format!("{}: its files are being fetched from {}{}", model.id, fetch.from, fetch.and_failure()))];
    }
    let failed = model.locations.iter().filter_map(|at| Some((at, at.reason.as_ref()?)));
    failed.map(|(at, why)| format!("{} failed on {}/{}: {}", model.id, at.node, at.device, harmless(why))).collect()
}

fn status(model: &ModelEntry) -> String {
    model.progress.map_or_else(|| model.status.clone(), loading)
}

fn mood(status: &str) -> Mood {
    match status {
        "loaded" | "unloaded" => Mood::Good,
        "failed" => Mood::Bad,
        _ => Mood::Passing,
    }
}

/// A replica, with its state where that is not the model's.
fn place(model: &ModelEntry, at: &ModelPlace) -> Cell {
    let ModelPlace { node, device, status, pinned, .. } = at;
    let state = if *status == model.status { String::new() } else { format!(" {status}") };
    let pinned = if *pinned { " pinned" } else { "" };
    Cell::new(format!("{node}/{device}{state}{pinned}"))
}

fn memory(at: &ModelPlace) -> Cell {
    number(if at.memory_bytes == 0 { "-".to_owned() } else { Bytes(at.memory_bytes).to_string() })
}

/// What was decided of a model or a request, and every place that was considered; the chosen one is marked.
pub(crate) fn explanation_page(explanation: &Explanation, look: Look) -> String {
    let Explanation { model, decision, considered, age } = explanation;
    let when = if age.is_zero() { String::new() } else { format!(", {} ago", fine(*age)) };
    let head = harmless(&format!("{model}: {decision}{when}"));
    if considered.is_empty() {
        return paragraph(&head, look);
    }
    let mut table = Sheet::new(look, &["", "PLACE", "VERDICT"]).wordy();
    for place in considered {
        let mark = if place.chosen { state_cell("*", &Mood::Good) } else { Cell::new("") };
        table.add_row(vec![mark, Cell::new(&place.place), Cell::new(harmless(&place.verdict))]);
    }
    format!("{}\n\n{}", paragraph(&head, look), table.text())
}

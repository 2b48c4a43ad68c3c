//! The pages about models: what there is, and why it is where it is.

use comfy_table::Cell;
use plexus_types::{Bytes, Explanation};

use super::{Look, Mood, fine, known, loading, number, state_cell};
use crate::client::{ModelEntry, ModelPlace};
use crate::commands::terminal::harmless;

/// The merged catalogue: one line per replica, the model's name on the first; then why models failed.
pub(crate) fn models_page(models: &[ModelEntry], look: Look) -> String {
    let mut table = look.table(&["MODEL", "STATUS", "WHERE", "CONTEXT", "MEMORY", "CAPABILITIES"]);
    for model in models {
        let capabilities = Cell::new(harmless(&model.capabilities.join(", ")));
        if let Some(target) = &model.alias_of {
            let other_name = Cell::new(format!("alias of {target}"));
            table.add_row(vec![Cell::new(&model.id), other_name, Cell::new("-"), number("-"), number("-"), capabilities]);
            continue;
        }
        let status = state_cell(status(model), &mood(&model.status));
        let context = number(known(model.max_model_len));
        let mut places: Vec<(Cell, Cell)> = model.locations.iter().map(|at| (place(model, at), memory(at))).collect();
        // Where it failed is not where it will be.
        if places.is_empty() || model.status == "unloaded" {
            let able = match &model.feasible_on[..] {
                [] => "-".to_owned(),
                nodes => format!("on demand: {}", nodes.join(", ")),
            };
            places.insert(0, (Cell::new(able), number("-")));
        }
        let mut places = places.into_iter();
        table.add_row(
            [Cell::new(&model.id), status]
                .into_iter()
                .chain(places.next().map(|(at, memory)| [at, context, memory, capabilities]).into_iter().flatten()),
        );
        for (at, memory) in places {
            table.add_row(vec![Cell::new(""), Cell::new(""), at, Cell::new(""), memory]);
        }
    }
    let own = || models.iter().filter(|model| model.alias_of.is_none());
    let warnings = own().filter_map(|model| model.warning.as_ref()).map(|warning| format!("warning: {}", harmless(warning)));
    let below = warnings.chain(own().flat_map(reasons));
    [table.trim_fmt()].into_iter().chain(below).collect::<Vec<_>>().join("\n\n")
}

/// Why a model failed; from whom its files come; and where it failed, if it is to be had elsewhere.
fn reasons(model: &ModelEntry) -> Vec<String> {
    if let Some(why) = &model.reason {
        return vec![format!("{} failed: {}", model.id, harmless(why))];
    }
    if let Some(fetch) = &model.fetch {
        let failure = fetch.failure.as_ref().map_or_else(String::new, |why| format!("; the last try failed: {why}"));
        return vec![harmless(&format!("{}: its files are being fetched from {}{failure}", model.id, fetch.from))];
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
        return head;
    }
    let mut table = look.table(&["", "PLACE", "VERDICT"]);
    for place in considered {
        let mark = if place.chosen { state_cell("*", &Mood::Good) } else { Cell::new("") };
        table.add_row(vec![mark, Cell::new(&place.place), Cell::new(harmless(&place.verdict))]);
    }
    format!("{head}\n\n{}", table.trim_fmt())
}

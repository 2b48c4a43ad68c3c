//! What one rendering may make and visit.

use std::cell::{Cell, RefCell};

use minijinja::tests::is_sameas;
use minijinja::value::{Enumerator, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Bytes for a rendering, however little it is given.
const BASE: u64 = 64 << 20;
/// Further bytes for each that it is given: templates look at a message some ten times and copy it a few times.
const FOR_EACH_BYTE: u64 = 64;
/// Bytes for a rendering, however much it is given.
const MOST: u64 = 1 << 30;
/// What a value takes besides its text: its place in a list, its separators when it is printed.
pub(super) const NODE: u64 = 32;
/// What it costs to visit a value.
const VISIT: u64 = 4;
/// The digits of the largest floating-point number.
const FLOAT: u64 = 330;
/// How deep values may be nested: everything that visits them goes down, dropping them too. JSON is read to half of this.
const MAX_DEPTH: usize = 256;
/// Namespaces of a rendering; templates have one or two.
const MAX_NAMESPACES: usize = 64;
/// Attributes of a namespace, which copies all their names to say how many they are. Templates have up to twenty.
pub(super) const MAX_ATTRIBUTES: usize = 64;

thread_local! {
    /// Bytes left. A rendering has its thread for itself.
    static LEFT: Cell<u64> = const { Cell::new(0) };
    static NAMESPACES: RefCell<Vec<Value>> = const { RefCell::new(Vec::new()) };
}

/// Starts a rendering that is given `variables`.
pub(super) fn begin(variables: &Value) -> Result<(), Error> {
    LEFT.set(u64::MAX);
    let given = weigh(variables)?;
    LEFT.set(BASE.saturating_add(given.saturating_mul(FOR_EACH_BYTE)).min(MOST));
    Ok(())
}

/// Bytes that may still be made.
pub(in crate::codec) fn left() -> u64 {
    LEFT.get()
}

/// Takes bytes, before they are made or visited.
pub(in crate::codec) fn charge(bytes: u64) -> Result<(), Error> {
    let left = LEFT.get().checked_sub(bytes).ok_or_else(|| refused("it makes more text than its conversation can need"))?;
    LEFT.set(left);
    Ok(())
}

/// Takes what it costs to visit or copy all of a value, and returns it: about the bytes that it has when it is written.
pub(in crate::codec) fn weigh(value: &Value) -> Result<u64, Error> {
    walk(value, 0, &mut |value| match value.kind() {
        ValueKind::String => NODE + value.as_str().map_or(0, str::len) as u64,
        ValueKind::Number if !value.is_integer() => FLOAT,
        _ => NODE,
    })
}

/// Takes a little for each value within `value`, and refuses what is nested too deep or holds a namespace, which could come to hold itself.
pub(super) fn visit(value: &Value) -> Result<(), Error> {
    walk(value, 0, &mut |_| VISIT).map(|_| ())
}

fn walk(value: &Value, depth: usize, cost: &mut dyn FnMut(&Value) -> u64) -> Result<u64, Error> {
    if depth > MAX_DEPTH {
        return Err(refused("it nests values too deep"));
    }
    let mut sum = cost(value);
    charge(sum)?;
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                sum += walk(&item, depth + 1, cost)?;
            }
        }
        ValueKind::Map => {
            // The engine's own objects name what they have. A loop keeps values that it does not show: a chain of loops would have no bound.
            if value.as_object().is_some_and(|object| matches!(object.enumerate(), Enumerator::Str(_))) {
                return Err(refused("it uses a loop or a macro as a value"));
            }
            if NAMESPACES.with_borrow(|known| known.iter().any(|namespace| is_sameas(namespace, value))) {
                return Err(refused("it uses a namespace as a value"));
            }
            for key in value.try_iter()? {
                sum += walk(&key, depth + 1, cost)?;
                sum += walk(&value.get_item(&key)?, depth + 1, cost)?;
            }
        }
        _ => {}
    }
    Ok(sum)
}

/// Remembers a namespace that was made.
pub(super) fn remember(namespace: Value) -> Result<Value, Error> {
    NAMESPACES.with_borrow_mut(|known| {
        if known.len() == MAX_NAMESPACES {
            return Err(refused("it makes too many namespaces"));
        }
        known.push(namespace.clone());
        Ok(namespace)
    })
}

/// Values of a list, characters of a text.
pub(super) fn count(value: &Value) -> u64 {
    match value.as_str() {
        Some(text) => text.len() as u64,
        None => value.len().unwrap_or(0) as u64,
    }
}

/// A list that would be made while it is read, made at once: a chain of such lists would be nested without a bound. Others as they are.
pub(super) fn made(value: Value) -> Result<Value, Error> {
    if value.kind() != ValueKind::Iterable {
        return Ok(value);
    }
    let mut items = Vec::new();
    for item in value.try_iter()?.checked() {
        charge(NODE)?;
        items.push(item?);
    }
    Ok(Value::from(items))
}

pub(super) fn refused(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

//! Instructions that pay for the one behind them.
//!
//! A guard is a filter, of a name in parentheses that no template can write behind a bar (and `map` refuses): it takes the operands from
//! the stack, charges, and gives them back in a list that is unpacked again.

use std::collections::BTreeSet;

use minijinja::machinery::{Instruction, Instructions};
use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error};

use super::allowance::{MAX_ATTRIBUTES, NODE, charge, count, made, refused, visit, weigh};

/// Filters are looked up by their name each time.
const UNCACHED: u8 = u8::MAX;

/// Adds the guards to an environment.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    type Guard = fn(&[Value]) -> Result<(), Error>;
    let guards: [(&str, Guard); 7] =
        [("(+)", sum), ("(*)", product), ("(~)", joined), ("(==)", compared), ("(in)", contained), ("([])", item), ("({})", keys)];
    for (name, guard) in guards {
        environment.add_filter(name, move |operands: Rest<ValueOrKwargs>| {
            let mut operands = operands.into_values();
            guard(&operands)?;
            operands.reverse();
            Ok::<_, Error>(Value::from(operands))
        });
    }
    environment.add_filter("([:])", slice);
    environment.add_filter("(made)", made);
    environment.add_filter("(built)", |value: Value| visit(&value).map(|()| value));
    environment.add_filter("(iterated)", |value: Value| {
        let cost = if value.as_str().is_some() { count(&value) } else { count(&value) / 16 };
        charge(1 + cost).map(|()| value)
    });
}

/// `plain` with guards. Errors: an instruction that cannot be guarded.
pub(super) fn guarded<'source>(plain: &Instructions<'source>, source: &'source str) -> Result<Instructions<'source>, Error> {
    let mut plain_ones: Vec<Instruction<'source>> = (0..).map_while(|at| plain.get(at).cloned()).collect();
    let targets: BTreeSet<u32> = plain_ones.iter_mut().filter_map(|instruction| target(instruction).copied()).collect();
    let mut out: Vec<(u32, Instruction<'source>)> = Vec::with_capacity(2 * plain_ones.len());
    let mut places = Vec::with_capacity(plain_ones.len() + 1);
    let mut attributes = BTreeSet::new();
    for (at, instruction) in (0u32..).zip(&plain_ones) {
        places.push(out.len() as u32);
        // The right operand, where it is a constant that is no list: nothing to pay for.
        let constant = match at.checked_sub(1).map(|before| &plain_ones[before as usize]) {
            Some(Instruction::LoadConst(value)) if !targets.contains(&at) && value.as_object().is_none() => Some(value),
            _ => None,
        };
        let pays = |name, n: u16| vec![Instruction::ApplyFilter(name, Some(n), UNCACHED), Instruction::UnpackList(usize::from(n))];
        let (before, after): (Vec<Instruction<'source>>, Option<&'static str>) = match instruction {
            Instruction::EmitRaw(text) => {
                // What is printed is paid for; raw text would not be.
                out.push((at, Instruction::LoadConst(Value::from(*text))));
                out.push((at, Instruction::Emit));
                continue;
            }
            Instruction::Add => (pays("(+)", 2), Some("(made)")),
            Instruction::Mul => (pays("(*)", 2), Some("(made)")),
            Instruction::StringConcat => (pays("(~)", 2), None),
            Instruction::Eq | Instruction::Ne | Instruction::Gt | Instruction::Gte | Instruction::Lt | Instruction::Lte => {
                (if constant.is_some() { Vec::new() } else { pays("(==)", 2) }, None)
            }
            Instruction::In => (pays("(in)", 2), None),
            Instruction::GetItem => (if constant.is_some_and(|key| !key.is_number()) { Vec::new() } else { pays("([])", 2) }, None),
            Instruction::Slice => {
                out.push((at, Instruction::ApplyFilter("([:])", Some(4), UNCACHED)));
                continue;
            }
            Instruction::BuildMap(n) => {
                let n = u16::try_from(2 * n).map_err(|_| refused("it writes a mapping that is too long"))?;
                (pays("({})", n), Some("(built)"))
            }
            Instruction::BuildList(_) | Instruction::BuildTuple(_) => (Vec::new(), Some("(built)")),
            Instruction::SetAttr(name) => {
                attributes.insert(name);
                if attributes.len() > MAX_ATTRIBUTES {
                    return Err(refused("its namespaces have too many attributes"));
                }
                let built = Instruction::ApplyFilter("(built)", Some(1), UNCACHED);
                (vec![Instruction::Swap, built, Instruction::Swap], None)
            }
            Instruction::PushLoop(_) => (vec![Instruction::ApplyFilter("(iterated)", Some(1), UNCACHED)], None),
            Instruction::CompareAndPreserve(_) => ([pays("(==)", 2), pays("(in)", 2)].concat(), None), // one of both
            Instruction::CallMethod("changed", _) => return Err(refused("it asks what changed in a loop, which is not supported")),
            Instruction::UnpackLists(_) | Instruction::MergeKwargs(_) => {
                return Err(refused("it passes arguments with * or **, which is not supported"));
            }
            Instruction::CallBlock(_) | Instruction::LoadBlocks | Instruction::Include(_) | Instruction::ExportLocals => {
                return Err(refused("it uses blocks or other templates, which is not supported"));
            }
            Instruction::PushAutoEscape => return Err(refused("it uses autoescape, which is not supported")),
            _ => (Vec::new(), None),
        };
        out.extend(before.into_iter().chain([instruction.clone()]).map(|instruction| (at, instruction)));
        out.extend(after.map(|name| (at, Instruction::ApplyFilter(name, Some(1), UNCACHED))));
    }
    places.push(out.len() as u32);
    let mut guarded = Instructions::new(plain.name(), source);
    for (at, mut instruction) in out {
        if let Some(target) = target(&mut instruction) {
            *target = places.get(*target as usize).copied().ok_or_else(|| refused("it jumps out of itself"))?;
        }
        guarded.add_with_line(instruction, plain.get_line(at).unwrap_or(0) as u16);
    }
    Ok(guarded)
}

/// Where an instruction may go on.
fn target<'a>(instruction: &'a mut Instruction<'_>) -> Option<&'a mut u32> {
    match instruction {
        Instruction::Iterate(target)
        | Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::BuildMacro(_, target, _) => Some(target),
        _ => None,
    }
}

/// Bytes of a value that is written into a text.
fn written(value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => charge(text.len() as u64),
        None => weigh(value).and_then(|weight| charge(3 * weight)), // letters that are escaped
    }
}

fn sum(operands: &[Value]) -> Result<(), Error> {
    operands.iter().try_for_each(|operand| charge(count(operand).saturating_mul(if operand.as_str().is_some() { 1 } else { NODE })))
}

fn product(operands: &[Value]) -> Result<(), Error> {
    let [left, right] = operands else { return Ok(()) };
    let (repeated, times) = if left.is_number() { (right, left) } else { (left, right) };
    if repeated.is_number() {
        return Ok(());
    }
    let each = if repeated.as_str().is_some() { 1 } else { NODE };
    charge(count(repeated).saturating_mul(each).saturating_mul(times.as_usize().unwrap_or(0) as u64))
}

fn joined(operands: &[Value]) -> Result<(), Error> {
    operands.iter().try_for_each(written)
}

fn compared(operands: &[Value]) -> Result<(), Error> {
    let [left, right] = operands else { return Ok(()) };
    match (left.as_str(), right.as_str()) {
        (Some(left), Some(right)) => charge(1 + left.len().min(right.len()) as u64 / 16),
        _ if left.as_object().is_some() && right.as_object().is_some() => weigh(left).and_then(|_| weigh(right)).map(|_| ()),
        _ => Ok(()),
    }
}

fn contained(operands: &[Value]) -> Result<(), Error> {
    let [needle, container] = operands else { return Ok(()) };
    let weight = match needle.as_str() {
        Some(text) => 1 + text.len() as u64 / 16,
        None => weigh(needle)?,
    };
    match container.kind() {
        ValueKind::String => charge(1 + count(container) / 16),
        ValueKind::Map => charge(weight),
        _ if needle.as_object().is_some() => weigh(container).and_then(|_| charge(weight.saturating_mul(count(container)))),
        _ => charge(weight.saturating_mul(count(container))),
    }
}

fn item(operands: &[Value]) -> Result<(), Error> {
    let [container, key] = operands else { return Ok(()) };
    if key.as_object().is_some() {
        return Err(refused("it uses a list or a mapping as a key"));
    }
    match container.kind() {
        ValueKind::String => charge(count(container)),
        ValueKind::Iterable => charge(count(container).saturating_mul(NODE)),
        _ => charge(1 + key.as_str().map_or(0, str::len) as u64 / 16),
    }
}

/// A slice as Python makes it; the engine's own takes one value too many where it goes backwards to a given end.
fn slice(value: Value, from: Option<i64>, to: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let step = i128::from(step.unwrap_or(1));
    if step == 0 {
        return Err(refused("it slices by steps of 0"));
    }
    charge(count(&value).saturating_mul(NODE / 4))?;
    let letters: Vec<char> = value.as_str().map(|text| text.chars().collect()).unwrap_or_default();
    let items: Vec<Value> = match value.kind() {
        ValueKind::String => Vec::new(),
        ValueKind::Seq | ValueKind::Iterable => value.try_iter()?.collect(),
        _ => return Err(refused("it slices what is neither text nor a list")),
    };
    let len = (letters.len() + items.len()) as i128;
    let (low, high) = if step < 0 { (-1, len - 1) } else { (0, len) };
    let place = |at: i64| (i128::from(at) + if at < 0 { len } else { 0 }).clamp(low, high);
    let mut at = from.map_or(if step < 0 { high } else { low }, place);
    let end = to.map_or(if step < 0 { low } else { high }, place);
    let mut chosen = Vec::new();
    while if step < 0 { at > end } else { at < end } {
        chosen.push(at as usize);
        at += step;
    }
    if value.as_str().is_some() {
        return Ok(Value::from(chosen.into_iter().map(|at| letters[at]).collect::<String>()));
    }
    Ok(Value::from_iter(chosen.into_iter().map(|at| items[at].clone())))
}

fn keys(operands: &[Value]) -> Result<(), Error> {
    let mut keys = operands.iter().step_by(2);
    if keys.any(|key| key.as_object().is_some()) { Err(refused("it uses a list or a mapping as a key")) } else { Ok(()) }
}

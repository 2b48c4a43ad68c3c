//! The filters, tests, functions and methods of chat templates, each with its price.

use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, filters, functions, tests};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::allowance::{MAX_ATTRIBUTES, NODE, charge, count, made, refused, remember, visit, weigh};
use crate::codec::python;

/// What a call costs, by its arguments; the first is what the filter is applied to.
type Price = fn(&[Value]) -> Result<(), Error>;

/// Adds them to an environment.
pub(super) fn add_to(environment: &mut Environment<'static>) {
    let known: [(&'static str, Price, Value); 38] = [
        ("abs", looks, Value::from_function(filters::abs)),
        ("bool", looks, Value::from_function(filters::bool)),
        ("count", looks, Value::from_function(filters::length)),
        ("d", looks, Value::from_function(filters::default)),
        ("default", looks, Value::from_function(filters::default)),
        ("first", looks, Value::from_function(filters::first)),
        ("float", whole, Value::from_function(filters::float)),
        ("int", whole, Value::from_function(filters::int)),
        ("last", looks, Value::from_function(filters::last)),
        ("length", looks, Value::from_function(filters::length)),
        ("round", looks, Value::from_function(filters::round)),
        ("attr", key, Value::from_function(filters::attr)),
        ("items", items, Value::from_function(filters::items)),
        ("list", items, Value::from_function(filters::list)),
        ("map", mapped, Value::from_function(filters::map)),
        ("reject", items, Value::from_function(filters::reject)),
        ("rejectattr", items, Value::from_function(filters::rejectattr)),
        ("select", items, Value::from_function(filters::select)),
        ("selectattr", items, Value::from_function(filters::selectattr)),
        ("capitalize", whole, Value::from_function(filters::capitalize)),
        ("e", escaped, Value::from_function(filters::escape)),
        ("escape", escaped, Value::from_function(filters::escape)),
        ("lower", whole, Value::from_function(filters::lower)),
        ("safe", whole, Value::from_function(filters::safe)),
        ("string", whole, Value::from_function(filters::string)),
        ("title", whole, Value::from_function(filters::title)),
        ("trim", trimmed, Value::from_function(filters::trim)),
        ("upper", whole, Value::from_function(filters::upper)),
        ("dictsort", sorted, Value::from_function(filters::dictsort)),
        ("max", sorted, Value::from_function(filters::max)),
        ("min", sorted, Value::from_function(filters::min)),
        ("reverse", sorted, Value::from_function(filters::reverse)),
        ("sort", sorted, Value::from_function(filters::sort)),
        ("unique", sorted, Value::from_function(filters::unique)),
        ("indent", indented, Value::from_function(filters::indent)),
        ("join", joined, Value::from_function(filters::join)),
        ("replace", replaced, Value::from_function(filters::replace)),
        ("split", split, Value::from_function(filters::split)),
    ];
    for (name, price, filter) in known {
        environment.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            price(&args)?;
            made(filter.call(state, &args)?)
        });
    }
    let known: [(&'static str, Price, Value); 41] = [
        ("boolean", looks, Value::from_function(tests::is_boolean)),
        ("callable", looks, Value::from_function(|value: Value| value.kind() == ValueKind::Plain)),
        ("defined", looks, Value::from_function(tests::is_defined)),
        ("divisibleby", looks, Value::from_function(tests::is_divisibleby)),
        ("even", looks, Value::from_function(tests::is_even)),
        ("false", looks, Value::from_function(tests::is_false)),
        ("filter", looks, Value::from_function(tests::is_filter)),
        ("float", looks, Value::from_function(tests::is_float)),
        ("int", looks, Value::from_function(tests::is_integer)),
        ("integer", looks, Value::from_function(tests::is_integer)),
        ("iterable", looks, Value::from_function(is_iterable)),
        ("mapping", looks, Value::from_function(tests::is_mapping)),
        ("none", looks, Value::from_function(tests::is_none)),
        ("number", looks, Value::from_function(tests::is_number)),
        ("odd", looks, Value::from_function(tests::is_odd)),
        ("sameas", whole, Value::from_function(tests::is_sameas)),
        ("sequence", looks, Value::from_function(is_iterable)), // texts and mappings, too: they have a length and places
        ("string", looks, Value::from_function(tests::is_string)),
        ("test", looks, Value::from_function(tests::is_test)),
        ("true", looks, Value::from_function(tests::is_true)),
        ("undefined", looks, Value::from_function(tests::is_undefined)),
        ("endingwith", whole, Value::from_function(tests::is_endingwith)),
        ("lower", whole, Value::from_function(tests::is_lower)),
        ("startingwith", whole, Value::from_function(tests::is_startingwith)),
        ("upper", whole, Value::from_function(tests::is_upper)),
        ("in", contained, Value::from_function(tests::is_in)),
        ("==", whole, Value::from_function(tests::is_eq)),
        ("eq", whole, Value::from_function(tests::is_eq)),
        ("equalto", whole, Value::from_function(tests::is_eq)),
        ("!=", whole, Value::from_function(tests::is_ne)),
        ("ne", whole, Value::from_function(tests::is_ne)),
        ("<", whole, Value::from_function(tests::is_lt)),
        ("lt", whole, Value::from_function(tests::is_lt)),
        ("lessthan", whole, Value::from_function(tests::is_lt)),
        ("<=", whole, Value::from_function(tests::is_le)),
        ("le", whole, Value::from_function(tests::is_le)),
        (">", whole, Value::from_function(tests::is_gt)),
        ("gt", whole, Value::from_function(tests::is_gt)),
        ("greaterthan", whole, Value::from_function(tests::is_gt)),
        (">=", whole, Value::from_function(tests::is_ge)),
        ("ge", whole, Value::from_function(tests::is_ge)),
    ];
    for (name, price, test) in known {
        environment.add_test(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            price(&args)?;
            test.call(state, &args).map(|value| value.is_true())
        });
    }
    environment.add_function("range", functions::range); // bounded by itself, and made while it is read
    for (name, function) in [("dict", Value::from_function(functions::dict)), ("namespace", Value::from_function(functions::namespace))] {
        environment.add_function(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            args.iter().try_for_each(|arg| charge(count(arg).saturating_mul(NODE)).and_then(|()| visit(arg)))?;
            match name {
                "namespace" if args.iter().any(|arg| count(arg) > MAX_ATTRIBUTES as u64) => {
                    Err(refused("its namespaces have too many attributes"))
                }
                "namespace" => remember(function.call(state, &args)?),
                _ => function.call(state, &args),
            }
        });
    }
    environment.set_unknown_method_callback(method);
}

/// As in Jinja, which finds nothing to iterate in none.
fn is_iterable(value: Value) -> bool {
    !value.is_none() && tests::is_iterable(&value)
}

/// The methods of Python's texts, lists and mappings.
fn method(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.kind(), method) {
        (ValueKind::String, "join") => joined(&[args.first().cloned().unwrap_or_default(), value.clone()])?,
        (ValueKind::String, _) => {
            let all: Vec<Value> = [value].into_iter().chain(args).cloned().collect();
            match method {
                "replace" => replaced(&all)?,
                "split" | "rsplit" => split(&all)?,
                "splitlines" => split(&[value.clone(), Value::from("\n")])?,
                "format" => formatted(&all)?,
                "strip" | "lstrip" | "rstrip" => trimmed(&all)?,
                _ => whole(&all)?,
            }
        }
        (ValueKind::Map, "get") => key(&[value.clone(), args.first().cloned().unwrap_or_default()])?,
        (ValueKind::Map, _) => charge(count(value).saturating_mul(2 * NODE))?,
        _ => contained(&[args.first().cloned().unwrap_or_default(), value.clone()])?,
    }
    if let Some(text) = value.as_str()
        && let Some(made) = python::text_method(text, method, args)?
    {
        return Ok(made);
    }
    made(unknown_method_callback(state, value, method, args)?)
}

/// Looks at a value only: at the letters of a text, as to count them; a list that is made while it is read is read.
fn looks(args: &[Value]) -> Result<(), Error> {
    args.iter().try_for_each(|arg| match arg.kind() {
        ValueKind::Iterable => charge(1 + count(arg).saturating_mul(NODE)),
        ValueKind::String => charge(1 + count(arg) / 16),
        _ => charge(1),
    })
}

/// Reads all of everything, and writes up to four times as much.
fn whole(args: &[Value]) -> Result<(), Error> {
    args.iter().try_for_each(|arg| match arg.as_str() {
        Some(text) => charge(text.len() as u64),
        None => weigh(arg).and_then(|weight| charge(3 * weight)),
    })
}

/// Writes up to six letters for one.
fn escaped(args: &[Value]) -> Result<(), Error> {
    (0..6).try_for_each(|_| whole(args))
}

/// Reads the values of a list, not what is in them.
fn items(args: &[Value]) -> Result<(), Error> {
    read(args, 1)
}

/// The same, and for each value so many times the arguments, as the path of an attribute.
fn read(args: &[Value], times: u64) -> Result<(), Error> {
    let n = args.first().map_or(0, count);
    charge(n.saturating_mul(2 * NODE))?;
    args.iter().skip(1).try_for_each(|arg| weigh(arg).and_then(|weight| charge(n.saturating_mul(weight).saturating_mul(times))))
}

/// The same for a filter that applies another, which must not be a guard.
fn mapped(args: &[Value]) -> Result<(), Error> {
    if args.get(1).and_then(Value::as_str).is_some_and(|name| name.contains('(')) {
        return Err(refused("it maps with what is no filter"));
    }
    items(args)
}

/// Compares the values of a list with each other, perhaps by attributes, each of which is kept and has a name of a few letters.
fn sorted(args: &[Value]) -> Result<(), Error> {
    read(args, NODE / 2)?;
    let weight = args.first().map_or(Ok(0), weigh)?;
    let n = args.first().map_or(0, count);
    charge(weight.saturating_mul(u64::from(n.checked_ilog2().unwrap_or(0)) / 4))
}

fn key(args: &[Value]) -> Result<(), Error> {
    match args.get(1) {
        Some(key) if key.as_object().is_some() => Err(refused("it uses a list or a mapping as a key")),
        _ => charge(1 + args.get(1).map_or(0, count)),
    }
}

fn contained(args: &[Value]) -> Result<(), Error> {
    let n = args.iter().map(count).max().unwrap_or(0);
    let weight = args.first().map_or(Ok(0), weigh)?;
    whole(args)?;
    charge(weight.saturating_mul(n / 16))
}

/// The text of an argument.
fn text(value: Option<&Value>) -> String {
    value.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned)).unwrap_or_default()
}

/// Looks for each letter at the ends of a text among others.
fn trimmed(args: &[Value]) -> Result<(), Error> {
    whole(args)?;
    charge(args.first().map_or(0, count).saturating_mul(args.get(1).map_or(0, count)) / 16)
}

fn replaced(args: &[Value]) -> Result<(), Error> {
    whole(args)?;
    let (value, from, to) = (text(args.first()), text(args.get(1)), text(args.get(2)));
    let times = if from.is_empty() { value.len() + 1 } else { value.matches(&from).count() };
    charge((times as u64).saturating_mul(to.len() as u64))
}

fn joined(args: &[Value]) -> Result<(), Error> {
    whole(args)?;
    let between: u64 = args.iter().skip(1).map(weigh).sum::<Result<u64, Error>>()?;
    charge(args.first().map_or(0, count).saturating_mul(between))
}

fn split(args: &[Value]) -> Result<(), Error> {
    whole(args)?;
    let (value, by) = (text(args.first()), args.get(1).filter(|by| by.as_str().is_some()));
    let pieces = match by {
        Some(by) => value.matches(&text(Some(by))).count() + 1,
        None => value.split_whitespace().count() + 1,
    };
    charge((pieces as u64).saturating_mul(NODE))
}

fn indented(args: &[Value]) -> Result<(), Error> {
    whole(args)?;
    let lines = text(args.first()).matches('\n').count() as u64 + 1;
    let named = |arg: &Value| if arg.kind() == ValueKind::Map { arg.get_attr("width").unwrap_or_default() } else { arg.clone() };
    let width = args.iter().skip(1).map(|arg| named(arg).as_usize().unwrap_or(0) as u64).max().unwrap_or(0).max(4);
    charge((lines + 1).saturating_mul(width))
}

/// `"{}".format(x)`: any number in the text may be a width, and each brace may be one of the values.
fn formatted(args: &[Value]) -> Result<(), Error> {
    whole(args)?;
    let pattern = text(args.first());
    let mut inside = false;
    let mut letters = pattern.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '{' if inside => return Err(refused("it formats with a width that is a value")),
            '{' if letters.next_if_eq(&'{').is_none() => inside = true,
            '}' => inside = false,
            _ => {}
        }
    }
    let widths = pattern.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let widths = widths.fold(0u64, |sum, digits| sum.saturating_add(digits.parse().unwrap_or(u64::MAX)));
    let values: u64 = args.iter().skip(1).map(weigh).sum::<Result<u64, Error>>()?;
    charge(widths.saturating_mul(4))?;
    charge((pattern.matches('{').count() as u64).saturating_mul(values))
}

use std::time::{Duration, Instant};

use minijinja::value::Serde;
use serde_json::json;

use super::*;

fn render(source: &str) -> Result<String, String> {
    let sandbox = crate::codec::template::sandbox().unwrap();
    sandbox.check(source)?;
    let variables = json!({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a\nb"}], "x": [1, 2]});
    sandbox.render(source, Value::from(Serde(variables))).map_err(|error| format!("{error:#}"))
}

/// A loop that goes on for as long as it may.
fn repeated(body: &str) -> String {
    format!("{{% set ns = namespace(x='ab', l=[1, 2], m={{}}) %}}{{% for i in range(100000) %}}{body}{{% endfor %}}{{{{ ns.x | length }}}}")
}

/// Templates that would take memory or time without a bound, or the stack.
pub(super) fn hostile() -> Vec<String> {
    let mut all: Vec<String> = [
        r#"{{ "a\nb" | indent(1000000000000000) }}"#,
        r#"{{ "a\nb" | indent(width=1000000000000000) }}"#,
        "{% set n = 100000000 %}{{ 'a' * n ~ 'b' * n ~ 'c' * n ~ 'd' * n ~ 'e' * n ~ 'f' * n ~ 'g' * n ~ 'h' * n }}",
        "{{ 'a' * 10**8 }}",
        "{{ ('a' ~ 'a') * 100000000 }}",
        "{{ 'a' * 1000 * 1000 * 1000 }}",
        "{{ [1] * 100000000 }}",
        "{% set n = 100000000 %}{{ ([1] * n) | join('xxxxxxxxxxxxxxxxxxxxx') }}",
        "{% set n = 100000000 %}{{ ([1] * n) | list | length }}",
        "{% set n = 100000000 %}{{ ((1, 2) * n) | length }}",
        "{% set n = 60000000 %}{{ ('a' * n) | replace('a', 'a' * n) }}",
        "{% set n = 60000000 %}{{ ('a' * n).replace('', 'a' * n) }}",
        "{% set n = 60000000 %}{{ ('a' * n).split('a') | length }}",
        "{{ '{:1000000000000}'.format('a') }}",
        "{{ '{:{}}'.format('a', 1000000000000) }}",
        "{{ '%1000000000s' | format('a') }}",
        "{{ 'a' | center(1000000000000) }}",
        "{{ [1] | batch(1000000000000, 'x') | list }}",
        "{{ [1] | slice(1000000000000, 'x') | list }}",
        "{{ [1] | sum(start='a') }}",
        "{{ debug() }}",
        "{% autoescape true %}{{ messages }}{% endautoescape %}",
        "{% set ns = namespace() %}{% set ns.ns = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.l = [ns] %}{{ ns.l }}",
        "{% macro m(x) %}{{ m(x ~ x) }}{% endmacro %}{{ m('aa') }}",
        "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m('aa') }}",
        "{% macro f() %}{{ caller() ~ caller() }}{% endmacro %}{% macro m() %}{% call f() %}{{ m() }}{% endcall %}{% endmacro %}{{ m() }}",
        "{% set n = 20000000 %}{{ ('a' * n).strip('b' * n ~ 'a') }}",
        "{% set n = 20000000 %}{{ ('a' * n) | trim('b' * n ~ 'a') }}",
        "{% for i in [[1]] recursive %}{{ loop([i, i]) }}{% endfor %}",
        "{{ dict(**x) }}",
        "{{ range(*x, *x) }}",
        "{% include 'chat' %}",
        "{% for i in x %}{% if loop.changed(i) %}{{ i }}{% endif %}{% endfor %}",
        "{% for i in x %}{{ [1] | map('default', loop) | list }}{% endfor %}",
        "{{ [1] | map('(+)', 1) | list }}",
        "{{ [[1]] | map('map', ' ( + ) ', 1) | list }}",
        "{% set n = 1000000 %}{% set path = 'a' * n %}{% set n = 100000 %}{{ (x * n) | map(attribute=path) | list | length }}",
        "{% set n = 1000000 %}{% set path = 'a' * n %}{% set n = 100000 %}{{ (x * n) | unique(attribute=path) | list | length }}",
        "{% set n = 1000000 %}{% set paths = 'a,' * n %}{% set n = 100000 %}{{ (x * n) | sort(attribute=paths) | length }}",
        "{% set n = 1000000 %}{{ (x * n) | tojson(separators=('a' * n, ':')) }}",
        "{{ x | tojson(indent=1000000000000) }}",
        "{% for i in range(100000) %}{% if range(100000)[99999] %}{% endif %}{% endfor %}",
        "{% for i in range(100000) %}{% if range(100000) | last %}{% endif %}{% endfor %}",
        "{{ ('a' ~ 'b') * (100000000) }}",
        "{{ ('a' and 'b') * 100000000 }}",
    ]
    .map(str::to_owned)
    .into();
    let loops = [
        "{% set ns.x = ns.x ~ ns.x %}",
        "{% set ns.x = ns.x + ns.x %}",
        "{% set ns.x = ns.x * 2 %}",
        "{% set ns.x = ns.x ~ 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' %}",
        "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}",
        "{% set ns.x = [ns.x, ns.x] | join(ns.x) %}",
        "{% set ns.x = ns.x | replace('a', ns.x) %}",
        "{% set ns.x = ns.x.replace('a', ns.x) %}",
        "{% set ns.x = ns.x.join([ns.x, ns.x]) %}",
        "{% set ns.x = '{0}{0}'.format(ns.x) %}",
        "{% set ns.x = [ns.x, ns.x] | string %}",
        "{% set ns.x = [ns.x, ns.x] | tojson %}",
        "{% set ns.x = ns.x | escape | string ~ '&' %}",
        "{% set ns.l = ns.l + ns.l %}",
        "{% set ns.l = ns.l * 2 %}",
        "{% set ns.l = ns.l + [ns.x * 100000] %}",
        "{% set ns.l = ns.l + [ns.l] %}",
        "{% set ns.l = [ns.l, ns.l] %}",
        "{% set ns.l = [ns.l, ns.l] %}{% if ns.l == [ns.l[0], ns.l[0]] %}{% endif %}",
        "{% set ns.l = [ns.l] %}",
        "{% set ns.l = (ns.l, ns.l) %}",
        "{% set ns.m = {'a': ns.m} %}",
        "{% set ns.m = dict(a=ns.m) %}",
        "{% set ns.m = {'a': ns.m}.items() | list %}",
        "{% set ns.m = {ns.l: 1} %}",
        "{% set ns.l = ns.l[0:] %}{% set ns.l = ns.l | reverse %}{% set ns.l = ns.l + ns.l %}",
        "{% set ns.x = [ns.x, ns.x] | map('upper') | join %}",
        "{% set ns.x = ns.x | list | join(ns.x) %}",
        "{% set ns.q = namespace(a=ns) %}",
        "{% for j in range(9) %}{% for y in [ns.l] %}{% set ns.l = loop %}{% break %}{% endfor %}{% endfor %}",
        "{% if ns.l <= ns.l + ns.l <= ns.l %}{% endif %}{% set ns.l = ns.l + ns.l %}",
        "{% set ns.x = ns.x if ns.x | length > 9999999 else ns.x ~ ns.x %}\
         {% for a in range(100000) %}{% if ns.x is iterable %}{% endif %}{% endfor %}",
        "{% set ns.x = ns.x * 3 %}{% for a in range(100000) %}{% if ns.x in ns.x ~ 'b' %}{% endif %}{% endfor %}",
        "{% for a in 'b' * 9999 %}{% for c in 'b' * a %}{% endfor %}{% endfor %}",
    ];
    all.extend(loops.into_iter().map(repeated));
    let kib = |text: &str, n: usize| text.repeat(n);
    all.push(format!(
        "{{% set ns = namespace(x='') %}}{{% for i in range(100000) %}}{{% set x %}}{}{{% endset %}}{{% endfor %}}",
        kib("a", 100_000)
    ));
    all.push(format!("{{{{ messages{} }}}}", kib(".a", 30_000)));
    all.push(format!("{{{{ 'a'{} }}}}", kib("|upper", 30_000)));
    all.push(format!("{{{{ 'a'{} }}}}", kib(" ~ 'a'", 30_000)));
    all.push(format!("{{{{ {}1{} }}}}", kib("(", 30_000), kib(")", 30_000)));
    all.push(format!("{{{{ {}1{} }}}}", kib("[", 30_000), kib("]", 30_000)));
    all.push(format!("{{{{ {}1 }}}}", kib("not ", 30_000)));
    all.push(format!("{{{{ {}1 }}}}", kib("-", 30_000)));
    all.push(format!("{{{{ {}1 }}}}", kib("1 if ", 30_000)));
    all.push(format!("{{{{ 1000 * 'a' '{}' }}}}", kib("b", 100_000)));
    all.push(format!("{{{{ '{}' 'a' * 1000 }}}}", kib("b", 100_000)));
    all.push(format!("{}{}{}", kib("{% macro m() %}", 100), kib("{{ z }}", 20_000), kib("{% endmacro %}", 100)));
    all.push(format!("{}{}{}", kib("{% call m() %}", 100), kib("{{ z }}", 20_000), kib("{% endcall %}", 100)));
    let attributes: String = (0..9000).map(|i| format!("{{% set ns.a{i} = 1 %}}")).collect();
    all.push(format!("{{% set ns = namespace() %}}{attributes}{{% for i in range(100000) %}}{{% if ns %}}{{% endif %}}{{% endfor %}}"));
    let attributes: String = (0..300).map(|i| format!("'a{i}': 1,")).collect();
    all.push(format!("{{% set ns = namespace({{{attributes}}}) %}}{{{{ ns | length }}}}"));
    all.push(format!("{{% if a %}}{}{{% endif %}}", kib("{% elif a %}", 10_000)));
    all.push(format!("{}{}", kib("{% if a %}", 10_000), kib("{% endif %}", 10_000)));
    all.push(kib("a", 300_000));
    all
}

#[test]
fn templates_that_would_take_all_memory_or_time_end_with_an_error() {
    for source in hostile() {
        let start = Instant::now();
        let shown: String = source.chars().take(200).collect();
        let result = render(&source);
        assert!(result.is_err(), "{shown} gave {} bytes", result.unwrap().len());
        assert!(start.elapsed() < Duration::from_secs(60), "{shown} took {:?}", start.elapsed());
    }
}

#[test]
fn what_templates_do_gives_what_it_should() {
    let cases = [
        ("{{ 1 + 2 }} {{ 'a' + 'b' }} {{ [1] + [2, 3] }} {{ 2 * 3 }} {{ 'ab' * x[1] }} {{ '-' * 5 }}", "3 ab [1, 2, 3] 6 abab -----"),
        ("{{ 'a' ~ 1 ~ none }} {{ 'abc'[1:] }} {{ 'abc'[::-1] }} {{ x[:-1] }} {{ (x + [3])[::2] }}", "a1None bc cba [1] [1, 3]"),
        ("{{ 'a' in 'cat' }} {{ 3 in x }} {{ 'role' in messages[0] }} {{ 3 not in x }}", "True False True True"),
        ("{{ x == [1, 2] }} {{ 1 < 2 }} {{ 'b' >= 'c' }} {{ 1 != 1 }} {{ ('a' if x else 'b') == 'a' }}", "True True False False True"),
        ("{{ {'a': 1, 'b': x}['b'][0] }} {{ messages[0]['role'] }} {{ messages[-1].content[0] }} {{ x[7] is defined }}", "1 user a False"),
        ("{% for m in messages if m.role == 'user' %}{{ loop.index }}{{ m.content }}{% else %}-{% endfor %}", "1hi"),
        (
            "{% set n = namespace(x=0, y=[]) %}{% for i in range(3) %}{% set n.x = n.x + i %}{% set n.y = n.y + [i] %}{% endfor %}\
             {{ n.x }} {{ n.y }}",
            "3 [0, 1, 2]",
        ),
        ("{% macro m(a, b=2) %}<{{ a }}{{ b }}{% if a %}{{ m(a - 1) }}{% endif %}>{% endmacro %}{{ m(1, b=3) }}", "<13<02>>"),
        ("{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}a{% endcall %}", "[a]"),
        (
            "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{% for k, v in {'b': 2} | items %}{{ k }}{{ v }}{% endfor %}",
            "a1b2",
        ),
        ("{% set a, b = x %}{{ a }}{{ b }}{% set c %}q{{ a }}{% endset %}{{ c }}", "12q1"),
        ("{{ 'a,b'.split(',')[-1] }} {{ ' a '.strip() }} {{ 'a\nb' | indent(2) }} {{ 'aXa' | replace('a', 'b') }}", "b a a\n  b bXb"),
        ("{{ '{} {:>3}'.format('a', 7) }} {{ ['a', 'b'] | join('+') }} {{ '-'.join(['a', 'b']) }}", "a   7 a+b a-b"),
        (
            "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | map(attribute='role') | join(' ') }}",
            "1 user assistant",
        ),
        ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "02"),
        ("{% for i in [[1, [2]]] recursive %}{% if i is number %}{{ i }}{% else %}({{ loop(i) }}){% endif %}{% endfor %}", "(1(2))"),
        ("{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ x[0] <= 1 < x[1] }} {{ 1 in x in [x] }} {{ 1 == 1 != 2 }}", "True False True True True"),
        ("{{ 'abcdef'[:0:-1] }} {{ 'abcdef'[4:1:-2] }} {{ 'abc'[-9:2] }} {{ 'abc'[9:] }}|{{ 'abc'[0:5:-1] }}", "fedcb ec ab |"),
        ("{{ (x + [3, 4])[:0:-1] }} {{ (x + [3])[-1:-3:-1] }} {{ x[5:] }} {{ x[-5::9223372036854775807] }}", "[4, 3, 2] [3, 2] [] [1]"),
        ("{{ '-' * (x[1] + 1) }} {{ (x[0] + 1) * 'ab' }} {{ '=' * x | length }} {{ '+' * (x[1]) }}", "--- abab == ++"),
        (
            "{{ 'abc' is sequence }} {{ {} is sequence }} {{ none is sequence }} {{ 1 is sequence }} {{ x is sequence }}",
            "True True False False True",
        ),
        ("{{ range is callable }} {{ x is callable }} {{ strftime_now is defined }}", "True False True"),
        ("{{ 'abc'.removeprefix('ab') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.removesuffix('x') }}", "c ab abc"),
        ("{{ 'a-b-c'.rsplit('-', 1) }} {{ 'a-b-c'.partition('-') }}", "['a-b', 'c'] ('a', '-', 'b-c')"),
        ("{{ 'a-b-c'.rpartition('-')[0] }} {{ 'abc'.rpartition('-')[2] }} {{ 'abc'.partition('-')[0] }}", "a-b abc abc"),
        ("{{ [messages[1], true, none, 'a'] }}", r"[{'role': 'assistant', 'content': 'a\nb'}, True, None, 'a']"),
        (
            "{{ messages[0] | string }} {{ x ~ true }} {{ 0.00001 }} {{ 1e16 }} {{ 1.0 }}",
            "{'role': 'user', 'content': 'hi'} [1, 2]True 1e-05 1e+16 1.0",
        ),
        ("{{ 'x' if x is iterable and none is not iterable }} {{ no.get if no }}{{ no | default('d') }} {{ x is not none }}", "x d True"),
    ];
    for (source, text) in cases {
        assert_eq!(render(source).as_deref(), Ok(text), "{source}");
    }
}

#[test]
fn expressions_give_what_transformers_gives() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/jinja/golden.json");
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let sandbox = crate::codec::template::sandbox().unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 150, "{}", cases.len());
    for case in cases {
        let source = case[0].as_str().unwrap();
        let rendered = sandbox.check(source).and_then(|()| {
            let variables = Value::from(Serde(golden["variables"].clone()));
            sandbox.render(source, variables).map_err(|error| format!("{error:#}"))
        });
        assert_eq!(rendered.as_deref().ok(), case[1].as_str(), "{source}: {rendered:?}");
    }
}

#[test]
fn what_is_refused_is_said_by_its_name() {
    for (source, reason) in [
        ("{{ 'a' | center(9) }}", "center"),
        ("{% for i in x %}{{ [loop] }}{% endfor %}", "a loop or a macro as a value"),
        ("{{ dict(**x) }}", "with * or **"),
        ("{{ 'a' * 100000 }}", "multiplies constants"),
        ("{{ 'a' | indent(10000000000) }}", "more text than its conversation can need"),
    ] {
        let said = render(source).unwrap_err();
        assert!(said.contains(reason), "{said:?} does not say {reason:?}");
    }
}

#[test]
fn json_is_written_as_the_template_wants_it() {
    for (arguments, text) in [
        ("", r#"{"b": [1, {}, []], "a": {"é": 1e-05}}"#),
        ("separators=(',', ':')", r#"{"b":[1,{},[]],"a":{"é":1e-05}}"#),
        ("sort_keys=true", r#"{"a": {"é": 1e-05}, "b": [1, {}, []]}"#),
        ("ensure_ascii=false", r#"{"b": [1, {}, []], "a": {"é": 1e-05}}"#),
        ("ensure_ascii=true", r#"{"b": [1, {}, []], "a": {"\u00e9": 1e-05}}"#),
        ("true", r#"{"b": [1, {}, []], "a": {"\u00e9": 1e-05}}"#),
        ("indent=none", r#"{"b": [1, {}, []], "a": {"é": 1e-05}}"#),
        ("indent=1", "{\n \"b\": [\n  1,\n  {},\n  []\n ],\n \"a\": {\n  \"é\": 1e-05\n }\n}"),
        ("indent='\t', separators=(';', '=')", "{\n\t\"b\"=[\n\t\t1;\n\t\t{};\n\t\t[]\n\t];\n\t\"a\"={\n\t\t\"é\"=1e-05\n\t}\n}"),
        ("false, 0", "{\n\"b\": [\n1,\n{},\n[]\n],\n\"a\": {\n\"é\": 1e-05\n}\n}"),
    ] {
        let source = format!("{{{{ {{'b': [1, {{}}, []], 'a': {{'é': 0.00001}}}} | tojson({arguments}) }}}}");
        assert_eq!(render(&source).as_deref(), Ok(text), "{arguments}");
    }
    assert!(render("{{ x | tojson(colour=1) }}").is_err());
    assert!(render("{{ x | tojson(separators=(1, 2)) }}").is_err());
}

#[test]
fn a_long_conversation_has_enough_of_everything() {
    let sandbox = crate::codec::template::sandbox().unwrap();
    let messages: Vec<_> = (0..2000).map(|i| json!({"role": "user", "content": "word ".repeat(i % 400)})).collect();
    let source = "{% set ns = namespace(text='', kept=[]) %}{% for m in messages %}{% set c = m.content.strip() | replace('wo', 'WO') %}\
        {% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}\
        {% if loop.index0 < 20 %}{% set ns.text = ns.text ~ c %}{% endif %}\
        {% set ns.kept = ns.kept + [m] %}<|{{ m['role'] + '|>' + c }}{% endfor %}{{ ns.kept | length }}";
    sandbox.check(source).unwrap();
    let text = sandbox.render(source, Value::from(Serde(json!({"messages": messages})))).unwrap();
    assert!(text.ends_with("2000") && text.len() > 1_000_000, "{}", text.len());
}

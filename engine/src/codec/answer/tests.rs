//! Every format, read character by character and at once.

use plexus_types::Delta;
use proptest::prelude::*;
use serde_json::json;

use super::format::Objects;
use super::*;

/// A format as [`AnswerFormat::detect`] finds it in a template that holds `marks`, of which those in `controls` are control tokens.
fn format(marks: &str, controls: &[&str]) -> Arc<AnswerFormat> {
    let kind = |token: &str| {
        if controls.contains(&token) {
            TokenKind::Control
        } else if marks.contains(token) {
            TokenKind::Visible
        } else {
            TokenKind::Absent
        }
    };
    Arc::new(AnswerFormat::detect(marks, kind))
}

const HERMES: &str = "<think> </think> <tool_call> </tool_call>";
const CODER: &str = "<tool_call> <function=f> <parameter=x> </parameter> </function> </tool_call>";
const GLM: &str = "<think> </think> <tool_call> <arg_key> </arg_key> <arg_value> </arg_value> </tool_call>";
const GLM_LINES: &str = "<|observation|>";
const LLAMA: &str = "<|python_tag|> {\"name\": function name, \"parameters\": dictionary of argument name and its value}";
const MISTRAL: &str = "[TOOL_CALLS] [THINK] [/THINK]";
const MISTRAL_NEW: &str = "[TOOL_CALLS] [CALL_ID] [ARGS]";
const DEEPSEEK: &str = "<think> </think> <｜tool▁calls▁begin｜> <｜tool▁call▁begin｜>";
const KIMI: &str = "<|tool_calls_section_begin|>";
const GRANITE: &str = "<|tool_call|>";
const HARMONY: &str = "<|start|> <|channel|> <|message|>";

fn controls_of(marks: &str) -> Vec<&'static str> {
    match marks {
        LLAMA => vec!["<|python_tag|>"],
        MISTRAL | MISTRAL_NEW => vec!["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"],
        DEEPSEEK => {
            vec!["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"]
        }
        KIMI => vec![
            "<|tool_calls_section_begin|>",
            "<|tool_calls_section_end|>",
            "<|tool_call_begin|>",
            "<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
        ],
        GRANITE => vec!["<|tool_call|>"],
        HARMONY => harmony::MARKS.to_vec(),
        _ => Vec::new(),
    }
}

fn tools() -> Vec<Tool> {
    let schema = json!({"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}, "place": {"type": ["object", "null"]},
    }});
    ["get_weather", "get_time"].map(|name| Tool { name: name.into(), description: None, parameters: Some(schema.to_string()) }).into()
}

fn answering() -> Answering {
    Answering { tools: tools(), single_call: false, forced: false, in_reasoning: false, in_text: false, key: 7 }
}

/// One piece of an answer: letters, or a control token.
fn pieces<'a>(marks: &str, text: &'a str) -> Vec<(&'a str, bool)> {
    let controls = controls_of(marks);
    let (mut pieces, mut rest) = (Vec::new(), text);
    while let Some((start, control)) =
        controls.iter().filter_map(|control| rest.find(control).map(|start| (start, *control))).min_by_key(|(start, _)| *start)
    {
        pieces.push((&rest[..start], false));
        pieces.push((&rest[start..start + control.len()], true));
        rest = &rest[start + control.len()..];
    }
    pieces.push((rest, false));
    pieces
}

/// What an answer is taken apart to when its letters come `step` at a time.
fn parse_by(marks: &str, text: &str, answering: Answering, step: usize, end: End) -> Vec<Delta> {
    let format = format(marks, &controls_of(marks));
    let mut parser = AnswerParser::new(Arc::clone(&format), answering);
    let mut found = Vec::new();
    for (piece, is_control) in pieces(marks, text) {
        if is_control {
            if let Some(seen) = format.seen_control(piece) {
                found.extend(parser.push_control(&seen));
            }
            continue;
        }
        let letters: Vec<char> = piece.chars().collect();
        for chunk in letters.chunks(step) {
            found.extend(parser.push(&chunk.iter().collect::<String>()));
        }
    }
    found.extend(parser.finish(end));
    let mut joined = Vec::new();
    found.into_iter().for_each(|delta| delta.join(&mut joined));
    joined
}

/// The same in short words: `T:` text, `R:` reasoning, `C:` a call, `A:` its arguments. It does not depend on how the text comes.
fn parse(marks: &str, text: &str) -> Vec<String> {
    parse_with(marks, text, answering(), End::Stopped)
}

fn parse_with(marks: &str, text: &str, answering: Answering, end: End) -> Vec<String> {
    let whole = parse_by(marks, text, answering.clone(), usize::MAX, end);
    for step in [1, 2, 3, 7] {
        assert_eq!(parse_by(marks, text, answering.clone(), step, end), whole, "{step} letters at a time");
    }
    let short = |delta: Delta| match delta {
        Delta::Text(text) => format!("T:{text}"),
        Delta::Reasoning(text) => format!("R:{text}"),
        Delta::ToolCall { name, .. } => format!("C:{name}"),
        Delta::ToolArguments { json, .. } => format!("A:{json}"),
    };
    whole.into_iter().map(short).collect()
}

#[test]
fn hermes_calls_are_found_beside_text_and_reasoning() {
    // CX-78, CX-79
    let text = "<think>\nParis?\n</think>\n\nLet me look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n\
                </tool_call>\n<tool_call>\n{\"name\": \"get_time\", \"arguments\": {}}\n</tool_call>";
    let found = ["R:Paris?", "T:Let me look.", "C:get_weather", "A:{\"city\": \"Paris\"}", "C:get_time", "A:{}"];
    assert_eq!(parse(HERMES, text), found);
}

#[test]
fn a_call_s_name_comes_before_its_arguments_and_these_come_piece_by_piece() {
    let format = format(HERMES, &[]);
    let mut parser = AnswerParser::new(format, answering());
    assert_eq!(parser.push("<tool_call>{\"name\": \"f\", \"arguments\":"), []);
    let begun = parser.push(" {\"a\": \"so ");
    assert!(matches!(&begun[0], Delta::ToolCall { index: 0, name, id } if name == "f" && id.len() == 29), "{begun:?}");
    assert_eq!(begun[1], Delta::ToolArguments { index: 0, json: "{\"a\": \"so ".into() });
    assert_eq!(parser.push("on"), [Delta::ToolArguments { index: 0, json: "on".into() }]);
}

#[test]
fn what_only_looks_like_a_call_is_text() {
    for text in
        ["<tool_call>nothing</tool_call> more", "a <tool_call>\n{\"city\": 1}\n</tool_call>", "<tool_call>", "see <tool_ca", "<", "a \n"]
    {
        assert_eq!(parse(HERMES, text), [format!("T:{text}")]);
    }
    let second = "<tool_call>no <tool_call>{\"name\": \"f\"}</tool_call>";
    assert_eq!(parse(HERMES, second), ["T:<tool_call>no", "C:f", "A:{}"]);
}

#[test]
fn without_tools_calls_stay_text_and_reasoning_is_still_found() {
    let without = Answering { tools: Vec::new(), ..answering() };
    let text = "<think>x</think>a\n<tool_call>{\"name\": \"f\"}</tool_call>";
    assert_eq!(parse_with(HERMES, text, without.clone(), End::Stopped), ["R:x", "T:a\n<tool_call>{\"name\": \"f\"}</tool_call>"]);
    assert_eq!(parse_with(LLAMA, "{\"name\": \"get_time\"}", without, End::Stopped), ["T:{\"name\": \"get_time\"}"]);
}

#[test]
fn sloppy_calls_are_understood() {
    let call = ["C:f", "A:{\"a\": 1}"];
    assert_eq!(parse(HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}</tool_call>"), call);
    assert_eq!(parse(HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}"), call);
    assert_eq!(parse(HERMES, "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\"}</tool_call>"), call);
    assert_eq!(parse(HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\", \"id\": 3}</tool_call>"), call);
    assert_eq!(
        parse(HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}}</tool_call>b"),
        ["C:f", "A:{\"a\": \"</tool_call>\"}", "T:b"]
    );
}

#[test]
fn a_call_that_is_cut_off_is_not_made_whole() {
    let cut = |marks, text| parse_with(marks, text, answering(), End::Cut);
    assert_eq!(cut(HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b"), ["C:f", "A:{\"a\": \"b"]);
    assert_eq!(cut(CODER, "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n"), ["C:f", "A:{\"x\": 1"]);
    assert_eq!(cut(CODER, "<tool_call>\n<function=get_time>\n<parameter=city>\nPar"), ["C:get_time", "A:{\"city\": \"Par"]);
    assert_eq!(cut(HERMES, "<think>so "), ["R:so "]);
}

#[test]
fn the_beginning_of_a_call_that_is_cut_off_is_no_text() {
    let cut = |marks, text, forced| parse_with(marks, text, Answering { forced, ..answering() }, End::Cut);
    let nothing: [&str; 0] = [];
    for (marks, text) in [
        (HERMES, "<tool_call>"),
        (HERMES, "<tool_call>\n{\"name\":"),
        (CODER, "<tool_call>\n<function=get_"),
        (LLAMA, "<|python_tag|>{\"name\": \"get"),
        (MISTRAL, "[TOOL_CALLS][{\"name\""),
        (MISTRAL_NEW, "[TOOL_CALLS]get_w"),
        (DEEPSEEK, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_"),
        (HARMONY, "<|channel|>commentary to=functions.get"),
    ] {
        for forced in [false, true] {
            assert_eq!(cut(marks, text, forced), nothing, "{text}");
        }
    }
    let list = r#"[TOOL_CALLS][{"name": "get_time", "arguments": {}}, {"name":"#;
    assert_eq!(cut(MISTRAL, list, false), ["C:get_time", "A:{}"]);
    let spoken = "Let me look.\n<tool_call>\n{\"name\"";
    assert_eq!(cut(HERMES, spoken, false), ["T:Let me look."]);
    // Without a mark, or with half a one, only who knows that a call must come can tell it from text.
    for (marks, text) in [(HERMES, "<tool_ca"), (LLAMA, "{\"name\": \"get"), (GLM_LINES, "get_wea"), (HERMES, "\n")] {
        assert_eq!(cut(marks, text, true), nothing, "{text}");
        assert_eq!(cut(marks, text, false), [format!("T:{text}")]);
    }
    assert_eq!(cut(HERMES, "<think>hm</think>\n\n<tool", true), ["R:hm"]);
    assert_eq!(cut(HERMES, "<think>hm", true), ["R:hm"]);
}

#[test]
fn a_prompt_that_has_begun_the_text_is_continued() {
    let begun = Answering { in_text: true, ..answering() };
    for (marks, text) in
        [(HERMES, " is <think>"), (LLAMA, "{\"name\": \"get_time\", \"parameters\": {}}"), (HARMONY, " is Oslo."), (HERMES, "\n")]
    {
        assert_eq!(parse_with(marks, text, begun.clone(), End::Stopped), [format!("T:{text}")]);
    }
    let called = "so <tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    assert_eq!(parse_with(HERMES, called, begun.clone(), End::Stopped), ["T:so", "C:f", "A:{}"]);
    let forced = parse_with(LLAMA, "{\"name\": \"get_time\", \"parameters\": {}}", Answering { forced: true, ..begun }, End::Stopped);
    assert_eq!(forced, ["C:get_time", "A:{}"]);
}

#[test]
fn a_prompt_that_opened_the_reasoning_is_continued() {
    let opened = Answering { in_reasoning: true, ..answering() };
    assert_eq!(parse_with(HERMES, "\nwell <b\n</think>\n\nyes", opened.clone(), End::Stopped), ["R:well <b", "T:yes"]);
    assert_eq!(parse_with(HERMES, "all of it", opened, End::Stopped), ["R:all of it"]);
    assert_eq!(parse(HERMES, "yes </think> no <think>"), ["T:yes </think> no <think>"]);
}

#[test]
fn arguments_in_tags_have_the_types_of_the_tool_s_schema() {
    let value = |name: &str, value: &str| format!("<parameter={name}>\n{value}\n</parameter>\n");
    let text = "<tool_call>\n<function=get_weather>\n".to_owned()
        + &value("city", "5\n\"x\"")
        + &value("days", "3")
        + &value("unit", "C")
        + &value("place", "null")
        + &value("other", "[1, 2]")
        + &value("word", "two words")
        + "</function>\n</tool_call>";
    let arguments = r#"A:{"city": "5\n\"x\"", "days": 3, "unit": "C", "place": null, "other": [1, 2], "word": "two words"}"#;
    assert_eq!(parse(CODER, &text), ["C:get_weather", arguments]);
    assert_eq!(parse(CODER, "ok <function=get_time>\n</function>\n</tool_call> done"), ["T:ok", "C:get_time", "A:{}", "T:done"]);
    assert_eq!(parse(CODER, "<function=a b> c"), ["T:<function=a b> c"]);
}

#[test]
fn glm_calls_are_found_with_line_breaks_and_without() {
    let broken = "<think>a</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n\
                  <arg_value>3</arg_value>\n</tool_call>";
    let found = ["R:a", "C:get_weather", "A:{\"city\": \"Paris\", \"days\": 3}"];
    assert_eq!(parse(GLM, broken), found);
    assert_eq!(parse(GLM, &broken.replace('\n', "")), found);
    assert_eq!(parse(GLM, "<tool_call>get_time</tool_call>"), ["C:get_time", "A:{}"]);
}

#[test]
fn a_bare_object_is_a_call_only_if_it_names_a_tool() {
    let call = r#"{"name": "get_time", "parameters": {"city": "Oslo"}}"#;
    assert_eq!(parse(LLAMA, call), ["C:get_time", "A:{\"city\": \"Oslo\"}"]);
    assert_eq!(parse(LLAMA, &format!("<|python_tag|>{call}; {call}")).len(), 4);
    for text in [r#"{"name": "Mia", "age": 7}"#, "{}", r#"say {"name": "get_time", "parameters": {}}"#, "{ is a brace"] {
        assert_eq!(parse(LLAMA, text), [format!("T:{text}")]);
    }
    // A control token never reaches the client, whatever follows it.
    assert_eq!(parse(LLAMA, "<|python_tag|>print(1)"), ["T:print(1)"]);
}

#[test]
fn mistral_calls_are_found_in_a_list_and_by_name() {
    let list =
        r#"[TOOL_CALLS][{"name": "get_time", "arguments": {"city": "Oslo"}}, {"name": "get_weather", "arguments": {}, "id": "abc"}]"#;
    assert_eq!(parse(MISTRAL, list), ["C:get_time", "A:{\"city\": \"Oslo\"}", "C:get_weather", "A:{}"]);
    let named = r#"[TOOL_CALLS]get_time[ARGS]{"city": "Oslo"}[TOOL_CALLS]get_weather[CALL_ID]123456789[ARGS]{}"#;
    assert_eq!(parse(MISTRAL_NEW, named), ["C:get_time", "A:{\"city\": \"Oslo\"}", "C:get_weather", "A:{}"]);
    assert_eq!(parse(MISTRAL, named)[..2], ["C:get_time", "A:{\"city\": \"Oslo\"}"]);
    assert_eq!(parse(MISTRAL, "[THINK]hm[/THINK]ok"), ["R:hm", "T:ok"]);
}

#[test]
fn the_letters_of_a_control_token_are_no_mark() {
    let format = format(MISTRAL, &controls_of(MISTRAL));
    let mut parser = AnswerParser::new(format, answering());
    assert_eq!(Delta::text_of(&parser.push("[TOOL_CALLS][{")), "[TOOL_CALLS][{");
    assert_eq!(Delta::text_of(&parser.push("\u{FDD0}[TOOL_CALLS]\u{FDD1}")), "\u{FFFD}[TOOL_CALLS]\u{FFFD}");
}

#[test]
fn deepseek_and_kimi_calls_are_found() {
    let old = "<think>\nhm\n</think>\n\nok<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{\"city\": \"Oslo\"}\n```\
               <｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    assert_eq!(parse(DEEPSEEK, old), ["R:hm", "T:ok", "C:get_time", "A:{\"city\": \"Oslo\"}", "C:get_weather", "A:{}"]);
    let new = "<think>hm<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{\"city\": \"Oslo\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    assert_eq!(parse(DEEPSEEK, new), ["R:hm", "C:get_time", "A:{\"city\": \"Oslo\"}"]);
    let kimi = "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_time:0<|tool_call_argument_begin|>{\"a\": 1}<|tool_call_end|>\
                <|tool_call_begin|>functions.get_time:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>";
    assert_eq!(parse(KIMI, kimi), ["C:get_time", "A:{\"a\": 1}", "C:get_time", "A:{}"]);
}

#[test]
fn a_list_behind_one_mark_is_found() {
    let text = r#"<|tool_call|>[{"name": "get_time", "arguments": {"city": "Oslo"}}]"#;
    assert_eq!(parse(GRANITE, text), ["C:get_time", "A:{\"city\": \"Oslo\"}"]);
}

#[test]
fn harmony_channels_become_reasoning_calls_and_text() {
    let text = "<|channel|>analysis<|message|>Need it.<|end|><|start|>assistant<|channel|>commentary<|message|>One moment.<|end|>\
                <|start|>assistant<|channel|>commentary to=functions.get_time <|constrain|>json<|message|>{\"city\": \"Oslo\"}<|call|>";
    assert_eq!(parse(HARMONY, text), ["R:Need it.", "T:One moment.", "C:get_time", "A:{\"city\": \"Oslo\"}"]);
    let role = "<|channel|>analysis<|message|>a<|end|><|start|>assistant to=functions.get_time<|channel|>commentary json<|message|>{}";
    assert_eq!(parse(HARMONY, role), ["R:a", "C:get_time", "A:{}"]);
    let last = "<|channel|>analysis<|message|>2+2<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>";
    assert_eq!(parse(HARMONY, last), ["R:2+2", "T:It is 4."]);
    assert_eq!(parse(HARMONY, "plain words"), ["T:plain words"]);
}

#[test]
fn nothing_follows_the_first_call_where_one_was_asked_for() {
    let single = Answering { single_call: true, ..answering() };
    let call = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    assert_eq!(parse_with(HERMES, &format!("a{call}{call}b"), single.clone(), End::Stopped), ["T:a", "C:f", "A:{}"]);
    let list = r#"[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]"#;
    assert_eq!(parse_with(MISTRAL, list, single, End::Stopped), ["C:f", "A:{}"]);
}

#[test]
fn formats_are_told_from_templates() {
    let calls = |marks: &str| format(marks, &controls_of(marks)).calls.clone();
    assert!(matches!(calls(HERMES), Some(Calls::Objects(Objects { bare: false, list: false, .. }))));
    assert!(matches!(calls(CODER), Some(Calls::Tagged(_))));
    assert!(matches!(calls(GLM), Some(Calls::Tagged(_))));
    assert!(matches!(calls(LLAMA), Some(Calls::Objects(Objects { bare: true, .. }))));
    assert!(matches!(calls(MISTRAL), Some(Calls::Objects(Objects { list: true, .. }))));
    assert!(matches!(calls(MISTRAL_NEW), Some(Calls::Named(_))));
    assert!(matches!(calls(DEEPSEEK), Some(Calls::Named(_))));
    assert!(matches!(calls(KIMI), Some(Calls::Named(_))));
    assert!(matches!(calls(HARMONY), Some(Calls::Harmony)));
    assert_eq!(*format("{{ messages }}", &[]), AnswerFormat::default());
}

/// Texts made of what formats are made of, in any order.
fn noise() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("<tool_call>"),
        Just("</tool_call>"),
        Just("<think>"),
        Just("</think>"),
        Just("{\"name\": \"get_time\""),
        Just(", \"arguments\": "),
        Just("{\"a\": 1}"),
        Just("}"),
        Just("<function=f>"),
        Just("<parameter=x>"),
        Just("</parameter>"),
        Just("</function>"),
        Just("\n"),
        Just("get_time"),
        Just("<arg_key>"),
        Just("</arg_key>"),
        Just("<arg_value>"),
        Just("</arg_value>"),
        Just("[TOOL_CALLS]"),
        Just("[ARGS]"),
        Just("["),
        Just("]"),
        Just("\""),
        Just("é"),
        Just(" "),
        Just("<|channel|>"),
        Just("<|message|>"),
        Just("<|end|>"),
        Just("final"),
        Just("to=functions.f"),
        Just("<｜tool▁calls▁begin｜>"),
        Just("<｜tool▁call▁begin｜>"),
        Just("<｜tool▁sep｜>"),
        Just("<｜tool▁call▁end｜>"),
    ];
    prop::collection::vec(part, 0..14).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn deltas_do_not_depend_on_how_the_text_comes(text in noise(), which in 0usize..10, single in any::<bool>(), cut in any::<bool>()) {
        let marks = [HERMES, CODER, GLM, LLAMA, MISTRAL, MISTRAL_NEW, DEEPSEEK, KIMI, GRANITE, HARMONY][which];
        let answering = Answering { single_call: single, ..answering() };
        parse_with(marks, &text, answering, if cut { End::Cut } else { End::Stopped });
    }

    #[test]
    fn text_without_a_call_is_kept_to_the_letter(text in "[a-z{}<>\\[\\]\"/ \n]{0,40}", which in 0usize..10) {
        let marks = [HERMES, CODER, GLM, LLAMA, MISTRAL, MISTRAL_NEW, DEEPSEEK, KIMI, GRANITE, HARMONY][which];
        let expected = if text.is_empty() || (marks == HARMONY && text.trim().is_empty()) { vec![] } else { vec![format!("T:{text}")] };
        prop_assert_eq!(parse(marks, &text), expected);
    }
}

#[test]
fn a_name_on_its_own_line_before_an_object_is_a_call_of_that_tool_alone() {
    let call = "get_weather\n{\"city\": \"Paris\", \"days\": 2}";
    assert_eq!(parse(GLM_LINES, call), ["C:get_weather", "A:{\"city\": \"Paris\", \"days\": 2}"]);
    let two = format!("\n{call}\nget_time\n{{}}");
    assert_eq!(parse(GLM_LINES, &two), ["C:get_weather", "A:{\"city\": \"Paris\", \"days\": 2}", "C:get_time", "A:{}"]);
    for text in ["get_weather", "get_weather\nis a tool.", "get_weatherx\n{}", "say\n{}", "I call get_time\n{}", "get_weather {}"] {
        assert_eq!(parse(GLM_LINES, text), [format!("T:{text}")], "{text}");
    }
}

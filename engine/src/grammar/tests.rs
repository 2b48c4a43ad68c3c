//! What grammars allow, and what is said of those that cannot be used.

use plexus_types::{Constraint, Prompt};
use serde_json::Value;

use crate::codec::Codec;
use crate::model::{ModelFiles, ModelPath};

fn codec() -> std::sync::Arc<Codec> {
    ModelFiles::open(&ModelPath::Embedded).unwrap().codec
}

#[test]
fn json_may_be_laid_out_as_formatters_do_it_and_no_further() {
    let codec = codec();
    let allowed = |text: &str| {
        let grammar = codec.grammar(&Constraint::JsonObject, "response_format").unwrap();
        let ids = codec.encode(&Prompt::Text(text.to_owned())).unwrap();
        assert_eq!(codec.decode(&ids), text);
        grammar.masks(&ids).wait().unwrap().len() == ids.len() + 1
    };
    let value: Value = serde_json::from_str(r#"{"a":{"b":[1,{"c":null}]},"d":" x "}"#).unwrap();
    let pretty = serde_json::to_string_pretty(&value).unwrap();
    let wide = pretty.replace("  ", "    ");
    for text in
        [&value.to_string(), &pretty, &pretty.replace("  ", "\t"), &pretty.replace('\n', "\r\n"), &wide, r#"{ "a" : 1 , "b" : [ ] }"#]
    {
        assert!(allowed(text), "{text}");
    }
    for text in ["{  \"a\": 1}", "{\n\n\"a\": 1}", "{\"a\":\t1}", &format!("{{\n{}\"a\": 1}}", " ".repeat(21))] {
        assert!(!allowed(text), "{text:?}");
    }
}

#[test]
fn what_cannot_be_followed_is_refused_with_a_remedy() {
    let codec = codec();
    let refusal = |constraint| codec.grammar(&constraint, "response_format").unwrap_err().to_string();
    let unique = refusal(Constraint::JsonSchema(r#"{"type": "array", "uniqueItems": true}"#.into()));
    assert!(
        unique.contains("uniqueItems") && unique.ends_with("these keywords cannot be followed; leave them out of the schema"),
        "{unique}"
    );
    let impossible = refusal(Constraint::Regex(r"[^\s\S]".into()));
    assert_eq!(impossible, "response_format cannot be used: no text follows it; loosen it");
}

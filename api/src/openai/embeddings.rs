//! `POST /v1/embeddings`: texts or tokens in, vectors of length 1 out.

use axum::extract::{Extension, Request, State};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use plexus_types::{EmbedInput, EmbedRequest, Embeddings, RequestError};
use serde::{Deserialize, Serialize};

use super::input::{self, Input};
use crate::Shared;
use crate::answer::Served;
use crate::body;
use crate::dialect::Exchange;
use crate::failure::Failure;
use crate::generate::mark_served;
use crate::params;
use crate::service::Embedded;
use crate::wire::TextOr;

/// Most inputs of one request, the vendor's own limit.
const INPUTS_MAX: usize = 2048;

/// `POST /v1/embeddings`
pub(crate) async fn embeddings(State(api): State<Shared>, Extension(exchange): Extension<Exchange>, request: Request) -> Response {
    let embed = async {
        let (mut request, format) = translate(&body::read(&api.config, request).await?)?;
        request.principal = exchange.principal;
        tracing::Span::current().record("model", request.model.as_str());
        let model = request.model.to_string();
        tracing::Span::current().record("request_id", tracing::field::display(exchange.id));
        Ok::<_, Failure>((model, format, api.inference.embed(exchange.id, request).await?))
    };
    match embed.await {
        Ok((model, format, Embedded { embeddings, node, route })) => {
            let mut response = exchange.json(StatusCode::OK, &reply(&model, format, &embeddings));
            mark_served(&mut response, Some(&Served { node, route }));
            response
        }
        Err(failure) => exchange.unanswered(&failure),
    }
}

#[derive(Debug, Deserialize)]
struct EmbeddingBody {
    model: Option<String>,
    input: Option<TextOr<input::Element>>,
    encoding_format: Option<String>,
    dimensions: Option<i64>,
}

/// How the numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// A JSON array.
    Float,
    /// The base64 text of their bytes, four for each, the lowest first.
    Base64,
}

fn translate(json: &[u8]) -> Result<(EmbedRequest, Format), Failure> {
    let body: EmbeddingBody = body::parse(json)?;
    let model = params::model(body.model)?;
    let inputs = input::read("input", body.input)?;
    params::at_most("input", inputs.len(), INPUTS_MAX)?;
    let inputs = inputs.into_iter().map(|input| match input {
        Input::Text(text) => EmbedInput::Text(text),
        Input::Tokens(ids) => EmbedInput::Tokens(ids),
    });
    let dimensions = body.dimensions.map(|dimensions| match u32::try_from(dimensions) {
        Ok(dimensions @ 1..) => Ok(dimensions),
        _ => Err(params::out_of_range("dimensions", dimensions, "at least 1, and at most the width of the model's vectors")),
    });
    let request =
        EmbedRequest { model, inputs: inputs.collect(), dimensions: dimensions.transpose()?, principal: None, indices: Vec::new() };
    Ok((request, format(body.encoding_format.as_deref())?))
}

fn format(word: Option<&str>) -> Result<Format, RequestError> {
    match word {
        None | Some("float") => Ok(Format::Float),
        Some("base64") => Ok(Format::Base64),
        Some(word) => {
            let word: String = word.chars().take(80).collect();
            Err(params::out_of_range("encoding_format", format!("{word:?}"), "\"float\" or \"base64\""))
        }
    }
}

#[derive(Debug, Serialize)]
struct Reply<'a> {
    object: &'static str,
    data: Vec<Item<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct Item<'a> {
    object: &'static str,
    index: usize,
    embedding: Vector<'a>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Vector<'a> {
    Float(&'a [f32]),
    Base64(String),
}

/// Nothing is generated: all tokens are those of the inputs.
#[derive(Debug, Serialize)]
struct Usage {
    prompt_tokens: u32,
    total_tokens: u32,
}

fn reply<'a>(model: &'a str, format: Format, embeddings: &'a Embeddings) -> Reply<'a> {
    let vector = |numbers: &'a [f32]| match format {
        Format::Float => Vector::Float(numbers),
        Format::Base64 => Vector::Base64(STANDARD.encode(numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>())),
    };
    let items = embeddings.vectors.iter().enumerate();
    let data = items.map(|(index, numbers)| Item { object: "embedding", index, embedding: vector(numbers) }).collect();
    let tokens = embeddings.prompt_tokens;
    Reply { object: "list", data, model, usage: Usage { prompt_tokens: tokens, total_tokens: tokens } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &str) -> Result<(EmbedRequest, Format), Failure> {
        translate(format!(r#"{{"model":"m",{fields}}}"#).as_bytes())
    }

    #[test]
    fn inputs_are_texts_or_tokens_one_or_several() {
        let text = |text: &str| EmbedInput::Text(text.to_owned());
        for (json, expected) in [
            (r#""a""#, vec![text("a")]),
            (r#"["a","b"]"#, vec![text("a"), text("b")]),
            ("[1,2]", vec![EmbedInput::Tokens(vec![1, 2])]),
            ("[[1],[2]]", vec![EmbedInput::Tokens(vec![1]), EmbedInput::Tokens(vec![2])]),
        ] {
            assert_eq!(read(&format!(r#""input":{json}"#)).unwrap().0.inputs, expected, "{json}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        let many = format!(r#""input":[{}]"#, vec!["\"a\""; INPUTS_MAX + 1].join(","));
        for (fields, expected) in [
            (r#""user":"u""#, "input"),
            (r#""input":"""#, "input"),
            (r#""input":["a",""]"#, "input[1]"),
            (r#""input":[[1],[2],[]]"#, "input[2]"),
            (r#""input":[""]"#, "input"),
            (r#""input":["a",1]"#, "input"),
            (many.as_str(), "input"),
            (r#""input":"a","encoding_format":"hex""#, "encoding_format"),
            (r#""input":"a","dimensions":0"#, "dimensions"),
        ] {
            match read(fields) {
                Err(Failure::Request(RequestError::Invalid { param, message })) => {
                    assert!(param.as_deref() == Some(expected) && message.contains(expected), "{param:?}: {message}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn base64_is_of_the_numbers_bytes_the_lowest_first() {
        let embeddings = Embeddings { vectors: vec![vec![1.0, -0.5]], prompt_tokens: 3 };
        let json = serde_json::to_value(reply("m", Format::Base64, &embeddings)).unwrap();
        let bytes = STANDARD.decode(json["data"][0]["embedding"].as_str().unwrap()).unwrap();
        assert_eq!(bytes, [0x00, 0x00, 0x80, 0x3F, 0x00, 0x00, 0x00, 0xBF]);
    }
}

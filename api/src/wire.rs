//! Pieces of JSON that several dialects spell alike.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// A text, or an array of `T`. Not an untagged enum, whose errors name neither the place nor the value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TextOr<T> {
    Text(String),
    Many(Vec<T>),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = TextOr<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<TextOr<T>, E> {
                Ok(TextOr::Text(text.to_owned()))
            }
            fn visit_string<E: Error>(self, text: String) -> Result<TextOr<T>, E> {
                Ok(TextOr::Text(text))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<TextOr<T>, A::Error> {
                let mut many = Vec::with_capacity(items.size_hint().unwrap_or(0).min(1024));
                while let Some(item) = items.next_element()? {
                    many.push(item);
                }
                Ok(TextOr::Many(many))
            }
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}

/// A JSON object. A derived `Deserialize` takes an array of a structure's fields, too, in an order that only the source tells.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members)).map(Object)
            }
        }
        deserializer.deserialize_map(Members(PhantomData))
    }
}

/// JSON text of a value that is JSON text already in one spelling (`"{\"a\":1}"`) and plain JSON in another (`{"a":1}`).
pub(crate) fn json_text(value: Option<Value>) -> String {
    match value {
        Some(Value::String(text)) => text,
        None | Some(Value::Null) => "{}".to_owned(),
        Some(value) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_or_an_array_is_read_and_nothing_else() {
        let read = |json: &str| serde_json::from_str::<TextOr<u32>>(json);
        assert_eq!(read(r#""a""#).unwrap(), TextOr::Text("a".to_owned()));
        assert_eq!(read("[1,2]").unwrap(), TextOr::Many(vec![1, 2]));
        for bad in ["1", "{}", "null", "[\"a\"]"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_object_is_read_by_its_names_alone() {
        #[derive(Debug, PartialEq, serde::Deserialize)]
        struct Pair {
            a: u32,
            b: Option<u32>,
        }
        let read = |json: &str| serde_json::from_str::<Object<Pair>>(json);
        assert_eq!(read(r#"{"b":2,"c":3,"a":1}"#).unwrap(), Object(Pair { a: 1, b: Some(2) }));
        for bad in ["[1,2]", "[]", "1", "null"] {
            assert!(read(bad).unwrap_err().to_string().contains("expected an object"), "{bad}");
        }
    }
}

//! From a [`Node`] to a typed object, noting where it does not fit and which fields nobody knows.
//!
//! Follows what Kubernetes' JSON decoder accepts: numbers as quantities, null as an absent value. Must not
//! know any particular type; those bring their field names along.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Visitor};

use crate::document::{At, Entry, Node, Value, number};

/// A field that does not fit, and where.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TypeError {
    pub(super) path: String,
    pub(super) at: At,
    pub(super) message: String,
    located: bool,
}

/// A field that the type does not have.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct UnknownField {
    pub(super) path: String,
    pub(super) at: At,
    /// The field of the type that is spelled most alike, if one is near.
    pub(super) near: Option<&'static str>,
}

/// The object, and the fields of the document that it has no place for: those before it where one does not fit. Of a
/// `secret` document no value is ever repeated in an error.
pub(super) fn read<T: DeserializeOwned>(node: &Node, secret: bool) -> (Result<T, TypeError>, Vec<UnknownField>) {
    let shared = Shared { unknown: RefCell::new(Vec::new()), secret };
    let root = NodeDe { node, path: String::new(), shared: &shared, quantity: false };
    let object = T::deserialize(root);
    (object, shared.unknown.into_inner())
}

/// What all values of one document share while it is read.
struct Shared {
    unknown: RefCell<Vec<UnknownField>>,
    secret: bool,
}

impl fmt::Display for TypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for TypeError {}

impl de::Error for TypeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        TypeError { path: String::new(), at: At::default(), message: message.to_string(), located: false }
    }
}

struct NodeDe<'a> {
    node: &'a Node,
    path: String,
    shared: &'a Shared,
    /// Inside a quantity, where a number is as good as a string.
    quantity: bool,
}

impl NodeDe<'_> {
    fn mismatch(&self, expected: &str) -> TypeError {
        let plain = matches!(self.node.value, Value::Bool(_) | Value::Int(_) | Value::Float(_));
        let hint = if plain && expected == "a string" { "; quote it to make it a string" } else { "" };
        let found = if self.shared.secret { self.node.kind().to_owned() } else { self.node.describe() };
        let message = format!("expected {expected}, found {found}{hint}");
        TypeError { path: self.path.clone(), at: self.node.at, message, located: true }
    }

    /// Gives an error that a visitor raised this node's place, unless it has a nearer one.
    fn locate(path: &str, at: At, error: TypeError) -> TypeError {
        if error.located { error } else { TypeError { path: path.to_owned(), at, located: true, ..error } }
    }

    fn integer<'de, V: Visitor<'de>>(
        self,
        expected: &str,
        min: i128,
        max: i128,
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        let value = match self.node.value {
            Value::Int(value) => value,
            Value::Float(value) if value.fract() == 0.0 && value.abs() < 9e15 => value as i128,
            _ => return Err(self.mismatch(expected)),
        };
        if value < min || value > max {
            return Err(self.mismatch(expected));
        }
        let (path, at) = (self.path, self.node.at);
        let result = match i64::try_from(value) {
            Ok(value) => visitor.visit_i64(value),
            Err(_) => visitor.visit_u64(u64::try_from(value).unwrap_or(u64::MAX)),
        };
        result.map_err(|error| Self::locate(&path, at, error))
    }
}

macro_rules! integers {
    ($($method:ident $type:ty, $words:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
            self.integer($words, <$type>::MIN.into(), <$type>::MAX.into(), visitor)
        }
    )*};
}

impl<'de> de::Deserializer<'de> for NodeDe<'_> {
    type Error = TypeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        let (path, at) = (self.path.clone(), self.node.at);
        let result = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => match i64::try_from(*value) {
                Ok(value) => visitor.visit_i64(value),
                Err(_) => visitor.visit_u64(u64::try_from(*value).unwrap_or(u64::MAX)),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(text) => visitor.visit_str(text),
            Value::Seq(_) => return self.deserialize_seq(visitor),
            Value::Map(_) => return self.deserialize_map(visitor),
        };
        result.map_err(|error| NodeDe::locate(&path, at, error))
    }

    integers! {
        deserialize_i8 i8, "an 8-bit integer";
        deserialize_i16 i16, "a 16-bit integer";
        deserialize_i32 i32, "a 32-bit integer";
        deserialize_i64 i64, "a 64-bit integer";
        deserialize_u8 u8, "an unsigned 8-bit integer";
        deserialize_u16 u16, "an unsigned 16-bit integer";
        deserialize_u32 u32, "an unsigned 32-bit integer";
        deserialize_u64 u64, "an unsigned 64-bit integer";
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match self.node.value {
            Value::Float(value) => visitor.visit_f64(value),
            Value::Int(value) => visitor.visit_f64(value as f64),
            _ => Err(self.mismatch("a number")),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match self.node.value {
            Value::Bool(value) => visitor.visit_bool(value),
            _ => Err(self.mismatch("a boolean")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        let expected = (&visitor as &dyn de::Expected).to_string();
        let result = match &self.node.value {
            Value::String(text) => visitor.visit_str(text),
            Value::Null => visitor.visit_str(""),
            Value::Int(value) if self.quantity => visitor.visit_str(&value.to_string()),
            Value::Float(value) if self.quantity => visitor.visit_str(&number(*value)),
            _ if self.quantity => return Err(self.mismatch("a quantity")),
            _ => return Err(self.mismatch("a string")),
        };
        result.map_err(|error: TypeError| {
            let message = format!("expected {expected}: {}", error.message);
            NodeDe::locate(&self.path, self.node.at, TypeError { message, ..error })
        })
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        if self.node.value == Value::Null {
            return visitor.visit_none();
        }
        let (path, at) = (self.path.clone(), self.node.at);
        visitor.visit_some(self).map_err(|error| NodeDe::locate(&path, at, error))
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        self.quantity = name == "Quantity";
        let (path, at) = (self.path.clone(), self.node.at);
        visitor.visit_newtype_struct(self).map_err(|error| NodeDe::locate(&path, at, error))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match &self.node.value {
            Value::Seq(items) => visitor.visit_seq(Items { items: items.iter(), index: 0, of: &self }),
            Value::Null => visitor.visit_seq(Items { items: [].iter(), index: 0, of: &self }),
            _ => Err(self.mismatch("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        match &self.node.value {
            Value::Map(entries) => visitor.visit_map(Fields::of(&self, entries, None)),
            Value::Null => visitor.visit_map(Fields::of(&self, &[], None)),
            _ => Err(self.mismatch("a map")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TypeError> {
        match &self.node.value {
            Value::Map(entries) => visitor.visit_map(Fields::of(&self, entries, Some(fields))),
            // As in Go, a null leaves an object empty; what must not be empty is for the validation to say.
            Value::Null => visitor.visit_map(Fields::of(&self, &[], Some(fields))),
            _ => Err(self.mismatch(&format!("a map with the fields of {name}"))),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TypeError> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit_struct tuple tuple_struct enum identifier
    }
}

struct Items<'a, 'b> {
    items: std::slice::Iter<'a, Node>,
    index: usize,
    of: &'b NodeDe<'a>,
}

impl<'de> de::SeqAccess<'de> for Items<'_, '_> {
    type Error = TypeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, TypeError> {
        let Some(node) = self.items.next() else { return Ok(None) };
        let path = format!("{}[{}]", self.of.path, self.index);
        self.index += 1;
        seed.deserialize(NodeDe { node, path, shared: self.of.shared, quantity: false }).map(Some)
    }
}

struct Fields<'a, 'b> {
    entries: std::slice::Iter<'a, Entry>,
    value: Option<&'a Entry>,
    of: &'b NodeDe<'a>,
    /// The names of the type's fields; `None` for a map with keys of the user's.
    known: Option<&'static [&'static str]>,
}

impl<'a, 'b> Fields<'a, 'b> {
    fn of(of: &'b NodeDe<'a>, entries: &'a [Entry], known: Option<&'static [&'static str]>) -> Self {
        Fields { entries: entries.iter(), value: None, of, known }
    }

    fn path(&self, key: &str) -> String {
        match (self.known, self.of.path.is_empty()) {
            (Some(_), true) => key.to_owned(),
            (Some(_), false) => format!("{}.{key}", self.of.path),
            (None, _) => format!("{}[{key}]", self.of.path),
        }
    }
}

impl<'de> de::MapAccess<'de> for Fields<'_, '_> {
    type Error = TypeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, TypeError> {
        while let Some(entry) = self.entries.next() {
            if let Some(known) = self.known
                && !known.contains(&entry.key.as_str())
            {
                let near = nearest(&entry.key, known);
                let path = self.path(&entry.key);
                if entry.node.value != Value::Null {
                    self.of.shared.unknown.borrow_mut().push(UnknownField { path, at: entry.at, near });
                }
                continue;
            }
            self.value = Some(entry);
            let key: de::value::StrDeserializer<'_, TypeError> = entry.key.as_str().into_deserializer();
            return seed.deserialize(key).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, TypeError> {
        let Some(entry) = self.value.take() else {
            return Err(de::Error::custom("a value was read before its key"));
        };
        let path = self.path(&entry.key);
        seed.deserialize(NodeDe { node: &entry.node, path, shared: self.of.shared, quantity: false })
    }
}

/// The name that is spelled most like `word`, if it is near enough to be meant.
fn nearest(word: &str, names: &'static [&'static str]) -> Option<&'static str> {
    let lower = word.to_lowercase();
    names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), *name))
        .min()
        .filter(|(distance, _)| *distance <= word.chars().count().max(3) / 3)
        .map(|(_, name)| name)
}

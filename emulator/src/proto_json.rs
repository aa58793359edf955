//! JSON as Google's front end reads it: checked against a schema, then in one canonical form.

use serde_json::{Map, Value};

use crate::response::Refusal;
use crate::rpc_error::violation;

/// A field of a message.
pub(crate) struct Field {
    name: &'static str,
    kind: Kind,
    is_list: bool,
}

pub(crate) enum Kind {
    Text,
    Bool,
    Int32,
    Float,
    /// Its values; their numbers are their positions.
    Enum(&'static [&'static str]),
    Message(&'static [Field]),
    /// A value that the emulator does not read.
    Any,
}

/// How liberal the reader is.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Dialect {
    /// A message: also `snake_case` names, numbers in strings, enums by number, one element for a
    /// list.
    Proto,
    /// Free JSON that the service reads itself.
    Exact,
}

impl Field {
    pub const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, is_list: false }
    }

    pub const fn list(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, is_list: true }
    }

    fn is_named(&self, key: &str, dialect: Dialect) -> bool {
        self.name == key || dialect == Dialect::Proto && snake(self.name) == key
    }

    fn read(&self, value: &Value, at: &str, dialect: Dialect) -> Result<Value, Refusal> {
        let one = std::slice::from_ref(value);
        let elements = match value.as_array() {
            _ if !self.is_list => return self.kind.read(value, at, dialect),
            Some(elements) => elements,
            None if dialect == Dialect::Proto => one,
            None => return Err(wrong_type(at, "TYPE_LIST", value)),
        };
        let elements = elements.iter().enumerate();
        elements
            .map(|(index, element)| self.kind.read(element, &format!("{at}[{index}]"), dialect))
            .collect()
    }
}

impl Kind {
    fn read(&self, value: &Value, at: &str, dialect: Dialect) -> Result<Value, Refusal> {
        let (read, expected) = match self {
            Self::Message(fields) => return message(value, fields, at, dialect),
            Self::Any => return Ok(value.clone()),
            Self::Text => (value.as_str().map(Value::from), "TYPE_STRING"),
            Self::Bool => (value.as_bool().map(Value::from), "TYPE_BOOL"),
            Self::Int32 => {
                let whole = number(value, dialect).filter(|number| number.fract() == 0.0);
                let whole = whole.filter(|number| INT32.contains(number));
                (whole.map(|number| Value::from(number as i32)), "TYPE_INT32")
            }
            Self::Float => (number(value, dialect).map(Value::from), "TYPE_FLOAT"),
            Self::Enum(values) => (enum_value(value, values, dialect), ENUM),
        };
        read.ok_or_else(|| wrong_type(at, expected, value))
    }
}

/// Reads a message: refuses unknown fields and wrong types, and leaves out what is null.
pub(crate) fn message(
    value: &Value,
    fields: &'static [Field],
    at: &str,
    dialect: Dialect,
) -> Result<Value, Refusal> {
    let Some(object) = value.as_object() else {
        let description = format!("Invalid value at '{at}': an object is expected.");
        return Err(violation(at, &description).into());
    };
    let mut read = Map::new();
    for (key, value) in object {
        let field = fields.iter().find(|field| field.is_named(key, dialect));
        let field = field.ok_or_else(|| unknown_name(key, at))?;
        if !value.is_null() {
            let path = [at, &snake(field.name)].map(str::to_owned);
            let path = path.into_iter().filter(|step| !step.is_empty()).collect::<Vec<_>>();
            let value = field.read(value, &path.join("."), dialect)?;
            read.insert(field.name.to_owned(), value);
        }
    }
    Ok(Value::Object(read))
}

fn number(value: &Value, dialect: Dialect) -> Option<f64> {
    let text = value.as_str().filter(|_| dialect == Dialect::Proto);
    value.as_f64().or_else(|| text?.parse().ok()).filter(|number| number.is_finite())
}

fn enum_value(value: &Value, values: &[&str], dialect: Dialect) -> Option<Value> {
    let number = value.as_u64().filter(|_| dialect == Dialect::Proto);
    let by_number = number.and_then(|number| values.get(usize::try_from(number).ok()?));
    let by_name = value.as_str().and_then(|name| values.iter().find(|known| **known == name));
    by_name.or(by_number).map(|name| Value::from(*name))
}

fn unknown_name(key: &str, at: &str) -> Refusal {
    let place = if at.is_empty() { String::new() } else { format!(" at '{at}'") };
    let description =
        format!("Invalid JSON payload received. Unknown name \"{key}\"{place}: Cannot find field.");
    violation(at, &description).into()
}

fn wrong_type(at: &str, expected: &str, value: &Value) -> Refusal {
    violation(at, &format!("Invalid value at '{at}' ({expected}), {value}")).into()
}

/// `imageConfig` becomes `image_config`.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for char in name.chars() {
        if char.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(char.to_ascii_lowercase());
    }
    snake
}

const INT32: std::ops::RangeInclusive<f64> = i32::MIN as f64..=i32::MAX as f64;
const ENUM: &str = "type.googleapis.com/google.cloud.aiplatform.v1.Enum";

//! Checks a value against a JSON Schema: as much of the language as schemars writes for lifemon's
//! own types, and stricter in one point: a field that the schema does not name is an error.

use serde_json::{Map, Value};

/// Claims that a value is what the schema of this text says.
///
/// # Panics
/// When it is not; the message has the place.
#[track_caller]
pub fn assert_is(value: &Value, schema: &str) {
    let root: Value = serde_json::from_str(schema).expect("a schema is JSON");
    if let Err(error) = check(value, &root, &root, "") {
        panic!("{error} in {value}");
    }
}

fn check(value: &Value, schema: &Value, root: &Value, at: &str) -> Result<(), String> {
    let Value::Object(schema) = schema else {
        return if schema == &Value::Bool(false) {
            Err(format!("{at}: nothing may be here"))
        } else {
            Ok(())
        };
    };
    if let Some(name) = schema.get("$ref") {
        let name = name.as_str().unwrap_or_default();
        let pointer = name.trim_start_matches('#');
        let target = root
            .pointer(pointer)
            .ok_or_else(|| format!("{at}: no {name}"))?;
        check(value, target, root, at)?;
    }
    for word in ["anyOf", "oneOf"] {
        if let Some(Value::Array(choices)) = schema.get(word) {
            let errors: Vec<_> = choices
                .iter()
                .filter_map(|choice| check(value, choice, root, at).err())
                .collect();
            if errors.len() == choices.len() {
                return Err(format!("{at}: none of {word}: {}", errors.join("; ")));
            }
        }
    }
    if let Some(wanted) = schema.get("const")
        && wanted != value
    {
        return Err(format!("{at}: {value} is not {wanted}"));
    }
    if let Some(Value::Array(allowed)) = schema.get("enum")
        && !allowed.contains(value)
    {
        return Err(format!("{at}: {value} is none of {allowed:?}"));
    }
    check_type(value, schema, at)?;
    match value {
        Value::Array(list) => {
            let items = schema.get("items").unwrap_or(&Value::Bool(true));
            for (index, item) in list.iter().enumerate() {
                check(item, items, root, &format!("{at}[{index}]"))?;
            }
            Ok(())
        }
        Value::Object(fields) => check_fields(fields, schema, root, at),
        _ => Ok(()),
    }
}

fn check_type(value: &Value, schema: &Map<String, Value>, at: &str) -> Result<(), String> {
    let is_a = |word: &Value| match word.as_str().unwrap_or_default() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        _ => false,
    };
    let fits = match schema.get("type") {
        None => true,
        Some(Value::Array(words)) => words.iter().any(is_a),
        Some(word) => is_a(word),
    };
    if fits {
        Ok(())
    } else {
        Err(format!("{at}: {value} is no {}", schema["type"]))
    }
}

fn check_fields(
    fields: &Map<String, Value>,
    schema: &Map<String, Value>,
    root: &Value,
    at: &str,
) -> Result<(), String> {
    let required = schema.get("required").and_then(Value::as_array);
    for name in required.into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            return Err(format!("{at}: {name} is missing"));
        }
    }
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        let others = schema.get("additionalProperties");
        for (name, value) in others.iter().flat_map(|_| fields) {
            check(
                value,
                others.unwrap_or(&Value::Null),
                root,
                &format!("{at}.{name}"),
            )?;
        }
        return Ok(());
    };
    for (name, value) in fields {
        let Some(property) = properties.get(name) else {
            return Err(format!("{at}: {name} is not in the schema"));
        };
        check(value, property, root, &format!("{at}.{name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SCHEMA: &str = r##"{
        "type": "object", "required": ["a"],
        "properties": {
            "a": {"type": "integer"},
            "b": {"anyOf": [{"$ref": "#/$defs/B"}, {"type": "null"}]},
            "c": {"type": "array", "items": {"const": "x"}}
        },
        "$defs": {"B": {"type": ["string", "null"]}}
    }"##;

    #[test]
    fn what_fits_fits_and_what_does_not_is_named() {
        let schema = serde_json::from_str(SCHEMA).unwrap();
        let check = |value: Value| check(&value, &schema, &schema, "");
        assert_eq!(check(json!({"a": 1, "b": "x", "c": ["x", "x"]})), Ok(()));
        assert_eq!(check(json!({"a": 1, "b": null})), Ok(()));
        for (wrong, word) in [
            (json!({}), "missing"),
            (json!({"a": 1.5}), "integer"),
            (json!({"a": 1, "b": 2}), "none of"),
            (json!({"a": 1, "c": ["y"]}), "c[0]"),
            (json!({"a": 1, "d": 2}), "not in the schema"),
        ] {
            let error = check(wrong).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}

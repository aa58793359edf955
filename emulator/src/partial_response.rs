//! Partial responses: the query parameter `fields`.

use serde_json::{Map, Value};

/// Keeps the fields that a mask names, such as `items(name,metadata/key),nextPageToken`.
pub(crate) fn select(value: &Value, mask: &str) -> Value {
    match value {
        Value::Array(items) => items.iter().map(|item| select(item, mask)).collect(),
        Value::Object(fields) => {
            let mut selected = Map::new();
            for path in split(mask) {
                let (name, below) = first_step(path);
                for (key, field) in fields.iter().filter(|(key, _)| name == "*" || *key == name) {
                    let part = below.map_or_else(|| field.clone(), |mask| select(field, mask));
                    add(&mut selected, key, part);
                }
            }
            Value::Object(selected)
        }
        scalar => scalar.clone(),
    }
}

/// Splits at the commas that are not in parentheses.
fn split(mask: &str) -> Vec<&str> {
    let mut depth = 0;
    let is_separator = |char: char| {
        match char {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        char == ',' && depth == 0
    };
    mask.split(is_separator).map(str::trim).filter(|path| !path.is_empty()).collect()
}

/// A path's first name and the mask for what is below it.
fn first_step(path: &str) -> (&str, Option<&str>) {
    match path.find(['/', '(']) {
        None => (path, None),
        Some(end) if path[end..].starts_with('/') => (&path[..end], Some(&path[end + 1..])),
        Some(end) => (&path[..end], Some(path[end + 1..].trim_end_matches(')'))),
    }
}

fn add(fields: &mut Map<String, Value>, key: &str, part: Value) {
    match (fields.get_mut(key), part) {
        (Some(Value::Object(known)), Value::Object(more)) => known.extend(more),
        (_, part) => {
            fields.insert(key.to_owned(), part);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_mask_keeps_what_it_names() {
        let list = json!({
            "kind": "storage#objects",
            "items": [{"name": "a", "size": "1", "metadata": {"model": "m", "key": "k"}}],
            "nextPageToken": "t",
        });
        let selected = select(&list, "items(name,metadata/model),nextPageToken");
        let expected =
            json!({"items": [{"name": "a", "metadata": {"model": "m"}}], "nextPageToken": "t"});
        assert_eq!(selected, expected);
        assert_eq!(select(&list, "items/size"), json!({"items": [{"size": "1"}]}));
        assert_eq!(select(&list, "*"), list);
    }
}

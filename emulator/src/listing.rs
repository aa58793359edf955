//! `objects.list`: prefixes, delimiters, ranges, globs and pages.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use serde_json::{Value, json};

/// The parameters of a list request.
pub(crate) struct Listing<'a> {
    delimiter: Option<&'a str>,
    prefix: &'a str,
    start_offset: &'a str,
    end_offset: Option<&'a str>,
    match_glob: Option<&'a str>,
    include_trailing_delimiter: bool,
    page_size: usize,
    /// The last name or prefix of the page before.
    after: Option<String>,
}

impl<'a> Listing<'a> {
    /// Reads the parameters from a query; the error is the invalid parameter.
    pub fn from_query(query: &'a BTreeMap<String, String>) -> Result<Self, &'static str> {
        let text = |name: &str| query.get(name).map(String::as_str).filter(|text| !text.is_empty());
        let page = match text("maxResults") {
            None => MOST_RESULTS,
            Some(number) => number.parse::<usize>().map_err(|_| "maxResults")?.min(MOST_RESULTS),
        };
        let after = text("pageToken").map(|token| read_page_token(token).ok_or("pageToken"));
        Ok(Self {
            delimiter: text("delimiter"),
            prefix: text("prefix").unwrap_or_default(),
            start_offset: text("startOffset").unwrap_or_default(),
            end_offset: text("endOffset"),
            match_glob: text("matchGlob"),
            include_trailing_delimiter: text("includeTrailingDelimiter") == Some("true"),
            page_size: page.max(1),
            after: after.transpose()?,
        })
    }

    pub fn prefix(&self) -> &str {
        self.prefix
    }

    /// The response for the objects with the prefix, which are in the order of their names.
    pub fn page(&self, objects: Vec<Value>) -> Value {
        let (mut items, mut prefixes) = (Vec::new(), BTreeSet::new());
        let (mut last, mut is_cut) = (String::new(), false);
        for object in objects {
            let name = object["name"].as_str().unwrap_or_default();
            if !self.includes(name) {
                continue;
            }
            let group = self.group(name);
            let entry = group.unwrap_or(name);
            if self.after.as_deref().is_some_and(|after| entry <= after) {
                continue;
            }
            let is_new = group.is_none_or(|group| !prefixes.contains(group));
            if is_new && items.len() + prefixes.len() >= self.page_size {
                is_cut = true;
                break;
            }
            last = entry.to_owned();
            let is_folder = self.include_trailing_delimiter && group == Some(name);
            prefixes.extend(group.map(str::to_owned));
            if group.is_none() || is_folder {
                items.push(object);
            }
        }
        response(items, prefixes, is_cut.then(|| page_token(&last)))
    }

    fn includes(&self, name: &str) -> bool {
        name >= self.start_offset
            && self.end_offset.is_none_or(|end| name < end)
            && self.match_glob.is_none_or(|glob| matches_glob(glob, name))
    }

    /// The name up to the delimiter behind the prefix.
    fn group<'n>(&self, name: &'n str) -> Option<&'n str> {
        let delimiter = self.delimiter?;
        let rest = &name[self.prefix.len()..];
        let end = self.prefix.len() + rest.find(delimiter)? + delimiter.len();
        Some(&name[..end])
    }
}

fn response(items: Vec<Value>, prefixes: BTreeSet<String>, page_token: Option<String>) -> Value {
    let mut body = json!({"kind": "storage#objects"});
    if !items.is_empty() {
        body["items"] = items.into();
    }
    if !prefixes.is_empty() {
        body["prefixes"] = json!(prefixes);
    }
    if let Some(token) = page_token {
        body["nextPageToken"] = token.into();
    }
    body
}

fn page_token(last: &str) -> String {
    URL_SAFE.encode(last)
}

fn read_page_token(token: &str) -> Option<String> {
    String::from_utf8(URL_SAFE.decode(token).ok()?).ok()
}

/// `*` and `?` stop at `/`, `**` does not; `[abc]`, `[!abc]` and `{one,two}` are alternatives.
fn matches_glob(glob: &str, name: &str) -> bool {
    if let Some((before, rest)) = glob.split_once('{')
        && let Some((alternatives, after)) = rest.split_once('}')
    {
        let mut globs = alternatives.split(',').map(|one| format!("{before}{one}{after}"));
        return globs.any(|glob| matches_glob(&glob, name));
    }
    let Some(symbol) = glob.chars().next() else {
        return name.is_empty();
    };
    let (rest, next) = (&glob[symbol.len_utf8()..], name.chars().next());
    let after_next = next.map_or("", |next| &name[next.len_utf8()..]);
    match symbol {
        '*' if rest.starts_with('*') => {
            let rest = &rest[1..];
            let skips_folder = rest.strip_prefix('/').is_some_and(|rest| matches_glob(rest, name));
            skips_folder
                || matches_glob(rest, name)
                || next.is_some() && matches_glob(glob, after_next)
        }
        '*' => {
            matches_glob(rest, name)
                || next.is_some_and(|next| next != '/') && matches_glob(glob, after_next)
        }
        '?' => next.is_some_and(|next| next != '/') && matches_glob(rest, after_next),
        '[' if rest.contains(']') => {
            let (set, rest) = rest.split_once(']').unwrap_or_default();
            let (set, wanted) = set.strip_prefix('!').map_or((set, true), |set| (set, false));
            next.is_some_and(|next| set.contains(next) == wanted) && matches_glob(rest, after_next)
        }
        literal => next == Some(literal) && matches_glob(rest, after_next),
    }
}

const MOST_RESULTS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn page(query: &[(&str, &str)]) -> Value {
        let query = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let query = query.collect();
        let listing = Listing::from_query(&query).expect("valid parameters");
        let names = ["a.png", "b/", "b/1.png", "b/c/2.png", "d/3.jpg"];
        let objects = names.iter().filter(|name| name.starts_with(listing.prefix()));
        listing.page(objects.map(|name| json!({"name": name})).collect())
    }

    fn names(page: &Value) -> Vec<&str> {
        page["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|item| item["name"].as_str())
            .collect()
    }

    #[test]
    fn a_delimiter_groups_names() {
        let root = page(&[("delimiter", "/")]);
        assert_eq!((names(&root), &root["prefixes"]), (vec!["a.png"], &json!(["b/", "d/"])));
        let below = page(&[("delimiter", "/"), ("prefix", "b/")]);
        assert_eq!((names(&below), &below["prefixes"]), (vec!["b/", "b/1.png"], &json!(["b/c/"])));
        let with_folders = page(&[("delimiter", "/"), ("includeTrailingDelimiter", "true")]);
        assert_eq!(names(&with_folders), ["a.png", "b/"]);
    }

    #[test]
    fn pages_hold_everything_once() {
        for delimiter in ["", "/"] {
            let (mut token, mut seen) = (String::new(), Vec::new());
            loop {
                let page =
                    page(&[("maxResults", "1"), ("pageToken", &token), ("delimiter", delimiter)]);
                seen.extend(names(&page).into_iter().map(str::to_owned));
                seen.extend(
                    page["prefixes"].as_array().into_iter().flatten().map(Value::to_string),
                );
                match page["nextPageToken"].as_str() {
                    Some(next) => token = next.to_owned(),
                    None => break,
                }
            }
            assert_eq!(seen.len(), if delimiter.is_empty() { 5 } else { 3 }, "{seen:?}");
        }
    }

    #[test]
    fn names_are_selected_by_range_and_glob() {
        assert_eq!(
            names(&page(&[("startOffset", "b/1"), ("endOffset", "d")])),
            ["b/1.png", "b/c/2.png"]
        );
        for (glob, expected) in [
            ("*.png", vec!["a.png"]),
            ("**.png", vec!["a.png", "b/1.png", "b/c/2.png"]),
            ("**/[12].png", vec!["b/1.png", "b/c/2.png"]),
            ("?/?.{jpg,gif}", vec!["d/3.jpg"]),
            ("[!a]/*", vec!["b/", "b/1.png", "d/3.jpg"]),
        ] {
            assert_eq!(names(&page(&[("matchGlob", glob)])), expected, "{glob}");
        }
    }
}

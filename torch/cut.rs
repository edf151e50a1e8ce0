//! Writes the text of the part that is compiled for one torch: the functions of torch-sys's C++ half that the
//! library calls, with the helpers that they call.

use std::collections::{BTreeMap, BTreeSet};

/// A function of a C++ file in the style of torch-sys: it begins in column 0 and ends with a brace there.
struct Function {
    name: String,
    /// `template <…>` and a line break, or nothing.
    template: String,
    text: String,
}

/// The functions of a C++ text, in their order.
fn functions(text: &str) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    let mut template = "";
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        if line.starts_with("namespace {") {
            // Classes of torch-sys that read and write Rust streams.
            while at < lines.len() && !lines[at].starts_with('}') {
                at += 1;
            }
        } else if line.starts_with("template") && !line.contains('(') {
            template = line;
        } else if let Some(last) = definition(&lines[at..]) {
            let body = lines[at..=at + last].join("\n");
            found.extend(name(&body).map(|name| Function {
                name,
                template: match template {
                    "" => String::new(),
                    template => format!("{template}\n"),
                },
                text: body.clone(),
            }));
            template = "";
            at += last;
        } else {
            template = "";
        }
        at += 1;
    }
    found
}

/// How many lines after the first the function ends that begins here, where one does.
fn definition(lines: &[&str]) -> Option<usize> {
    let first = lines.first()?;
    let begins = first.starts_with(|c: char| c.is_ascii_alphabetic()) && first.contains('(');
    if !begins || first.starts_with("typedef") {
        return None;
    }
    let opening = lines
        .iter()
        .position(|line| line.contains('{') || line.ends_with(';'))?;
    let line = lines[opening];
    if !line.contains('{') {
        return None;
    }
    if line.matches('{').count() == line.matches('}').count() {
        return Some(opening);
    }
    let closing = lines[opening..].iter().position(|line| *line == "}")?;
    Some(opening + closing)
}

/// The word before the first parenthesis.
fn name(function: &str) -> Option<String> {
    let head = &function[..function.find('(')?];
    let start = head
        .rfind(|c: char| !c.is_alphanumeric() && c != '_')
        .map_or(0, |at| at + 1);
    Some(head[start..].to_string())
}

/// The words of a text.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .collect()
}

/// `part` with its line `FUNCTIONS` replaced by `used`, which are functions of `sources`, and their helpers.
pub fn cut(part: &str, sources: &[String], used: &BTreeSet<String>) -> Result<String, String> {
    let all: Vec<Function> = sources.iter().flat_map(|text| functions(text)).collect();
    let by_name: BTreeMap<&str, &Function> = all.iter().map(|f| (f.name.as_str(), f)).collect();
    let unknown: Vec<&String> = used
        .iter()
        .filter(|n| !by_name.contains_key(n.as_str()))
        .collect();
    if !unknown.is_empty() {
        return Err(format!("torch-sys has no function {unknown:?}"));
    }
    let mut taken: BTreeSet<&str> = used.iter().map(String::as_str).collect();
    loop {
        let called: BTreeSet<&str> = taken
            .iter()
            .flat_map(|name| words(&by_name[name].text))
            .filter(|word| by_name.contains_key(word) && !taken.contains(word))
            .collect();
        if called.is_empty() {
            break;
        }
        taken.extend(called);
    }
    let chosen: String = all
        .iter()
        .filter(|f| taken.contains(f.name.as_str()))
        .map(|f| match used.contains(&f.name) {
            true => format!("extern \"C\" {}\n\n", f.text),
            false => format!("{}static {}\n\n", f.template, f.text),
        })
        .collect();
    Ok(part.replacen("FUNCTIONS\n", &chosen, 1))
}

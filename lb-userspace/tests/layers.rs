//! Who may depend on whom, read off the sources: a module that reaches for another layer fails here.

use std::{collections::BTreeSet, fs, path::Path};

/// A module of the crate, what of the crate it may use, and what of other crates it must not.
struct Layer {
    module: &'static str,
    may_use: &'static [&'static str],
    must_not_name: &'static [&'static str],
}

const LAYERS: &[Layer] = &[
    Layer {
        module: "step",
        may_use: &["step"],
        must_not_name: &["tokio", "aya"],
    },
    Layer {
        module: "model",
        may_use: &["model"],
        must_not_name: &[
            "tokio",
            "aya",
            "std::fs",
            "std::net::Tcp",
            "SystemTime",
            "Instant::now",
        ],
    },
    Layer {
        module: "config",
        may_use: &["config", "model"],
        must_not_name: &["tokio", "aya"],
    },
    Layer {
        module: "datapath",
        may_use: &["datapath", "model", "step"],
        must_not_name: &["axum", "hyper"],
    },
    Layer {
        module: "api",
        may_use: &["datapath", "model"],
        must_not_name: &["tokio", "axum", "hyper"],
    },
    Layer {
        module: "daemon",
        may_use: &["api", "config", "daemon", "datapath", "model", "step"],
        must_not_name: &["clap", "comfy_table", "indicatif"],
    },
    Layer {
        module: "cli",
        // `daemon` and `datapath` for `ebb run` and `ebb pass`, which are started here and do their work there.
        may_use: &["api", "cli", "config", "daemon", "datapath", "model"],
        must_not_name: &["aya::"],
    },
];

/// Files of the command line that may reach beyond the API.
const CLI_ADAPTERS: &[&str] = &["decap.rs", "adapters.rs", "mod.rs"];

fn sources(directory: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(directory).expect("a source directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            found.push((path.display().to_string(), text));
        }
    }
}

fn files_of(module: &str) -> Vec<(String, String)> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let single = source.join(format!("{module}.rs"));
    if single.exists() {
        let text = fs::read_to_string(&single).expect("a source file");
        found.push((single.display().to_string(), text));
    }
    if source.join(module).is_dir() {
        sources(&source.join(module), &mut found);
    }
    assert!(!found.is_empty(), "module {module} has no source");
    found
}

/// Modules of the crate that a file names after `crate::`, comments left out.
fn used(text: &str) -> BTreeSet<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let preceded = code[..at].chars().next_back();
        if preceded.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = code[at + "crate::".len()..].trim_start();
        if let Some(list) = rest.strip_prefix('{') {
            names.extend(top_level_names(list));
        } else {
            names.insert(first_name(rest));
        }
    }
    names
}

/// The first names of a braced list's items, nested lists skipped.
fn top_level_names(list: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0;
    let mut item = String::new();
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(first_name(&std::mem::take(&mut item))),
            c if depth == 0 => item.push(c),
            _ => {}
        }
    }
    names.push(first_name(&item));
    names.retain(|name| !name.is_empty());
    names
}

fn first_name(text: &str) -> String {
    text.trim_start()
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

#[test]
fn every_module_uses_only_the_layers_below_it() {
    let modules: BTreeSet<&str> = LAYERS.iter().map(|layer| layer.module).collect();
    let mut wrong = Vec::new();
    for layer in LAYERS {
        for (file, text) in files_of(layer.module) {
            for name in used(&text) {
                if modules.contains(name.as_str()) && !layer.may_use.contains(&name.as_str()) {
                    wrong.push(format!("{file}: {} must not use {name}", layer.module));
                }
            }
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for line in code
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
            {
                for word in layer
                    .must_not_name
                    .iter()
                    .filter(|word| line.contains(*word))
                {
                    wrong.push(format!(
                        "{file}: {} must not name {word}: {line}",
                        layer.module
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_adapters_of_the_command_line_reach_beyond_the_api() {
    for (file, text) in files_of("cli") {
        let name = Path::new(&file)
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let beyond: Vec<String> = used(&text)
            .into_iter()
            .filter(|name| name == "daemon" || name == "datapath")
            .collect();
        assert!(
            beyond.is_empty() || CLI_ADAPTERS.contains(&name),
            "{file} uses {beyond:?}"
        );
    }
}

#[test]
fn names_are_found_in_every_form() {
    let text = "use crate::{a::{b, c}, d,\n e::f};\nlet x = crate::g::h();\n// crate::no\nuse lb_crate::not;";
    let found: Vec<String> = used(text).into_iter().collect();
    assert_eq!(found, ["a", "d", "e", "g"]);
}

//! Role: how the files of this workspace hang together.
//! Invariants: no circle of files: whoever reads a file, and then what it needs, never comes back to it. A module and
//! those within it are one place, and need each other as they like · no wing of the data plane needs one above it · the
//! runtime is named in two of them alone · the code map names every file of the product, and
//! none that is gone; what it says a file has is in that file, and a section that a file refers to exists.
//! See: ARCHITECTURE.md "Crates and arrows".

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const CRATES: [&str; 9] =
    ["proto", "proto/manual", "dataplane", "control", "agent", "client", "tokengen", "loadtest", "bench"];

/// A crate's files by the path of their module; the root's is empty.
type Modules = BTreeMap<Vec<String>, PathBuf>;
/// Which module needs which.
type Arrows = BTreeMap<Vec<String>, BTreeSet<Vec<String>>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it stands in the workspace").to_owned()
}

fn find_modules(dir: &Path, at: &[String], found: &mut Modules) {
    for entry in fs::read_dir(dir).expect("it can be listed").flatten() {
        let path = entry.path();
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a plain name").to_owned();
        let module = || at.iter().cloned().chain([name.clone()]).collect::<Vec<_>>();
        if path.is_dir() {
            // Programs of their own are not of the crate that they use.
            if name != "bin" {
                find_modules(&path, &module(), found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let module = if ["lib", "mod"].contains(&&*name) { at.to_vec() } else { module() };
            if !module.iter().any(|part| part == "tests") && name != "main" {
                found.insert(module, path);
            }
        }
    }
}

/// What counts of a file: neither comments nor what only its tests need.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("it can be read");
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Every path that begins with one of `crate`, `super` and `self`, or stands in a `use`; braces are taken apart.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find(|c: char| c.is_alphabetic() || c == '_') {
        let before = rest[..at].chars().next_back();
        let word_ends =
            rest[at..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len() - at);
        let word = &rest[at..at + word_ends];
        let behind = &rest[at + word_ends..];
        let begins = !matches!(before, Some(':' | '.' | '\''));
        if begins && word == "use" {
            let statement = behind.split(';').next().unwrap_or_default();
            spread(statement, &[], &mut found);
            rest = &behind[statement.len()..];
        } else if begins && ["crate", "super", "self"].contains(&word) && behind.starts_with("::") {
            let path_ends = rest[at..]
                .find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
                .unwrap_or(rest.len() - at);
            found.push(rest[at..at + path_ends].split("::").map(str::to_owned).collect());
            rest = &rest[at + path_ends..];
        } else {
            rest = behind;
        }
    }
    found
}

/// `a::{b, c::{d, e}}` is three paths.
fn spread(tree: &str, before: &[String], found: &mut Vec<Vec<String>>) {
    let (head, braces) = tree.split_once('{').map_or((tree, None), |(head, rest)| (head, Some(rest)));
    let head = head.split(" as ").next().unwrap_or_default();
    let parts = head.split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned);
    let path: Vec<_> = before.iter().cloned().chain(parts).collect();
    let Some(inside) = braces.and_then(|rest| rest.rsplit_once('}')).map(|(inside, _)| inside) else {
        return found.push(path);
    };
    let (mut depth, mut begin) = (0, 0);
    for (at, c) in inside.char_indices().chain([(inside.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !inside[begin..at].trim().is_empty() {
                    spread(&inside[begin..at], &path, found);
                }
                begin = at + 1;
            }
            _ => {}
        }
    }
}

/// The file of this crate that a path in `from` reaches into, if it does.
fn reached(path: &[String], from: &[String], modules: &Modules) -> Option<Vec<String>> {
    let mut at = from.to_vec();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => (at, rest) = (Vec::new(), &path[1..]),
        "self" => rest = &path[1..],
        "super" => {
            while rest.first().is_some_and(|part| part == "super") {
                at.pop();
                rest = &rest[1..];
            }
        }
        // By the name of a child.
        first => {
            let child: Vec<_> = from.iter().cloned().chain([first.to_owned()]).collect();
            modules.get(&child)?;
        }
    }
    for part in rest {
        at.push(part.clone());
        if !modules.contains_key(&at) {
            at.pop();
            break;
        }
    }
    modules.contains_key(&at).then_some(at)
}

fn arrows(modules: &Modules) -> Arrows {
    let needs = |(module, path): (&Vec<String>, &PathBuf)| {
        let paths = paths(&code(path));
        let reached = paths.iter().filter_map(|path| reached(path, module, modules));
        let elsewhere = reached.filter(|other| !is_within(other, module) && !is_within(module, other));
        (module.clone(), elsewhere.collect())
    };
    modules.iter().map(needs).collect()
}

/// The crate's root stands for itself alone.
fn is_within(inner: &[String], outer: &[String]) -> bool {
    inner == outer || (!outer.is_empty() && inner.starts_with(outer))
}

/// All that can be come to from `from`.
fn behind<'a>(from: &'a [String], arrows: &'a Arrows) -> BTreeSet<&'a Vec<String>> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(module) = next.pop() {
        for other in arrows.get(module).into_iter().flatten() {
            if seen.insert(other) {
                next.push(other);
            }
        }
    }
    seen
}

/// Files that need each other, with what each needs of the others.
fn circles(arrows: &Arrows) -> BTreeSet<String> {
    let behind: BTreeMap<_, _> = arrows.keys().map(|module| (module, behind(module, arrows))).collect();
    let name = |module: &Vec<String>| if module.is_empty() { "lib".into() } else { module.join("::") };
    let circle = |module: &Vec<String>| {
        let round = |other: &&Vec<String>| behind[module].contains(other) && behind[other].contains(module);
        let members: Vec<_> = behind.keys().copied().filter(round).collect();
        let lines = members.iter().map(|member| {
            let needs = arrows[*member].iter().filter(|other| members.contains(other)).map(name);
            format!("\n    {} -> {}", name(member), needs.collect::<Vec<_>>().join(", "))
        });
        (!members.is_empty()).then(|| lines.collect::<String>())
    };
    arrows.keys().filter_map(circle).collect()
}

#[test]
fn no_circle_of_files() {
    let mut found = String::new();
    for name in CRATES {
        let mut modules = Modules::new();
        find_modules(&root().join(name).join("src"), &[], &mut modules);
        for circle in circles(&arrows(&modules)) {
            found += &format!("\n  {name}:{circle}");
        }
    }
    assert!(found.is_empty(), "files that need each other:{found}");
}

/// The data plane's wings, from the bottom up.
const WINGS: [&str; 8] = ["run", "net", "tls", "transport", "tunnel", "peer", "relay", "gateway"];

#[test]
fn no_wing_of_the_data_plane_needs_one_above_it() {
    let mut modules = Modules::new();
    find_modules(&root().join("dataplane/src"), &[], &mut modules);
    let height =
        |module: &[String]| WINGS.iter().position(|wing| module.first().is_some_and(|name| name == wing));
    let mut found = Vec::new();
    for (module, needs) in arrows(&modules) {
        let up = needs.iter().filter(|other| height(other) > height(&module) && !module.is_empty());
        found.extend(up.map(|other| format!("{} -> {}", module.join("::"), other.join("::"))));
    }
    assert!(found.is_empty(), "needs a wing above: {found:#?}");
    let all: BTreeSet<_> = modules.keys().filter_map(|module| module.first()).collect();
    assert_eq!(all.len(), WINGS.len(), "{all:?}");
}

#[test]
fn the_runtime_is_named_where_threads_and_sockets_are_alone() {
    let mut found = Vec::new();
    for name in ["proto", "proto/manual", "dataplane", "control", "agent", "client", "tokengen"] {
        let mut modules = Modules::new();
        find_modules(&root().join(name).join("src"), &[], &mut modules);
        let may = |module: &[String]| {
            name == "dataplane" && module.first().is_some_and(|wing| wing == "run" || wing == "net")
        };
        let named = modules.iter().filter(|(module, path)| !may(module) && code(path).contains("monoio"));
        found.extend(named.map(|(_, path)| path.clone()));
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// `a/{b,c}.rs` is two files.
fn alternatives(path: &str) -> Vec<String> {
    match path.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?))) {
        Some((before, (names, behind))) => {
            names.split(',').map(|name| format!("{before}{}{behind}", name.trim())).collect()
        }
        None => vec![path.to_owned()],
    }
}

#[test]
fn the_code_map_names_every_file_of_the_product() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("it can be read");
    let named = map.split('`').skip(1).step_by(2).filter(|words| words.ends_with(".rs"));
    let named: BTreeSet<_> = named.flat_map(alternatives).collect();
    let mut missing = Vec::new();
    for name in ["proto", "proto/manual", "dataplane", "control", "agent", "client", "tokengen"] {
        let mut modules = Modules::new();
        find_modules(&root().join(name).join("src"), &[], &mut modules);
        for path in modules.values() {
            let file = path.strip_prefix(root()).expect("within it");
            // A wing's, a crate's, and what only tests have.
            let is_roof = ["mod.rs", "lib.rs", "kit.rs", "fixture.rs", "oracle.rs", "far_end.rs"]
                .iter()
                .any(|end| file.ends_with(end));
            if !is_roof && !named.iter().any(|name| file.ends_with(name)) {
                missing.push(file.to_owned());
            }
        }
    }
    assert!(missing.is_empty(), "the code map of ARCHITECTURE.md does not say what is in {missing:#?}");
}

#[test]
fn every_file_of_the_code_map_is_there() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("it can be read");
    let named = map.split('`').skip(1).step_by(2).filter(|words| words.contains("/src/"));
    let named: Vec<_> = named.flat_map(alternatives).collect();
    assert!(named.len() > 40, "the code map was not found: {named:?}");
    let gone: Vec<_> = named.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(gone.is_empty(), "ARCHITECTURE.md names files that are not there: {gone:?}");
}

/// The functions and constants that the map names in brackets behind a file: the file's last part of a path, and the name.
fn named_within(map: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    for row in map.lines() {
        let mut file = None;
        let words: Vec<_> = row.split('`').collect();
        for (before, word) in words.windows(2).step_by(2).map(|pair| (pair[0], pair[1])) {
            let is_in_brackets = before == " (" || before == ", " && file.is_some();
            if word.ends_with(".rs") {
                file = Some((word, true));
            } else if let Some((file, true)) = file
                && is_in_brackets
            {
                found.push((file, word));
            } else {
                file = None;
            }
        }
    }
    found
}

#[test]
fn what_the_code_map_says_a_file_has_is_there() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("it can be read");
    let map =
        &map[map.find("## Code map").expect("it has one")..map.find("## Invariants").expect("and these")];
    let mut files = Vec::new();
    for name in CRATES {
        let mut modules = Modules::new();
        find_modules(&root().join(name).join("src"), &[], &mut modules);
        files.extend(modules.into_values().filter_map(|path| {
            let text = fs::read_to_string(&path).ok()?;
            Some((path, text))
        }));
    }
    let named = named_within(map);
    assert!(named.len() > 10, "{named:?}");
    let has = |(name, within): &(&str, &str)| {
        let is_item = |text: &str| {
            ["fn", "const", "struct", "enum", "trait"]
                .iter()
                .any(|kind| text.contains(&format!("{kind} {within}")))
        };
        files.iter().any(|(path, text)| path.ends_with(name) && is_item(text))
    };
    let gone: Vec<_> = named.iter().filter(|row| !has(row)).collect();
    assert!(gone.is_empty(), "the code map names what is not there: {gone:?}");
}

/// The documents that a file's `See:` refers to, with the sections of each.
fn references(text: &str) -> Vec<(String, String)> {
    let Some((_, see)) = text.split_once("//! See:") else { return Vec::new() };
    let lines = see.lines().enumerate().take_while(|(at, line)| *at == 0 || line.starts_with("//! "));
    let words: Vec<_> = lines.map(|(_, line)| line.trim_start_matches("//! ")).collect();
    let mut found = Vec::new();
    for part in words.join(" ").split(';') {
        let Some(at) = part
            .find("README")
            .or_else(|| part.find("ARCHITECTURE"))
            .or_else(|| part.find(" docs/").map(|at| at + 1))
        else {
            continue;
        };
        let name = part[at..].split([' ', ',']).next().unwrap_or_default().trim_end_matches('.').to_owned();
        let sections: Vec<_> = part.split('"').skip(1).step_by(2).collect();
        found.extend(sections.iter().map(|section| (name.clone(), (*section).to_owned())));
        if sections.is_empty() {
            found.push((name, String::new()));
        }
    }
    found
}

/// All sources below a folder, programs and tests as well.
fn every_file(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("it can be listed").flatten().map(|entry| entry.path());
    let files = |path: PathBuf| match path.extension() {
        _ if path.is_dir() => every_file(&path),
        Some(extension) if extension == "rs" => vec![path],
        _ => Vec::new(),
    };
    entries.flat_map(files).collect()
}

#[test]
fn every_section_that_a_file_refers_to_exists() {
    let files = CRATES.iter().flat_map(|name| every_file(&root().join(name)));
    let (mut count, mut gone) = (0, Vec::new());
    for path in files {
        let text = fs::read_to_string(&path).expect("it can be read");
        for (document, section) in references(&text) {
            count += 1;
            let known = fs::read_to_string(root().join(&document)).is_ok_and(|text| {
                section.is_empty()
                    || text.contains(&format!("**{section}"))
                    || text.lines().any(|line| {
                        line.starts_with('#') && line.trim_start_matches('#').trim().starts_with(&section)
                    })
            });
            if !known {
                gone.push(format!("{}: {document} \"{section}\"", path.display()));
            }
        }
    }
    assert!(count > 40, "only {count} were found");
    assert!(gone.is_empty(), "these are not there: {gone:#?}");
}

#[test]
fn paths_are_found_in_uses_and_in_the_code() {
    let code = "use crate::{a::{B, c::D}, e};\nuse std::fmt;\nfn f(x: super::G) -> crate::h::I { self::j::k(x.self_) }";
    let found: Vec<_> = paths(code).into_iter().map(|path| path.join("::")).collect();
    let expected =
        ["crate::a::B", "crate::a::c::D", "crate::e", "std::fmt", "super::G", "crate::h::I", "self::j::k"];
    assert_eq!(found, expected);
}

#[test]
fn a_circle_is_seen_through_other_files_and_a_chain_is_none() {
    let arrows = |of: &[(&str, &[&str])]| -> Arrows {
        let module = |name: &&str| vec![(*name).to_owned()];
        of.iter().map(|(from, to)| (module(from), to.iter().map(module).collect())).collect()
    };
    let chain = arrows(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])]);
    assert!(circles(&chain).is_empty());
    let circle = arrows(&[("a", &["b"]), ("b", &["c"]), ("c", &["a", "d"]), ("d", &[])]);
    let found = circles(&circle);
    assert_eq!(
        found.iter().map(String::as_str).collect::<Vec<_>>(),
        ["\n    a -> b\n    b -> c\n    c -> a"]
    );
}

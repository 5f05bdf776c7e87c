//! Files that cannot be read, and text that nobody would write: always an error, never a panic.

use std::{fs, path::Path};

use proptest::prelude::*;

use super::{super::load, check};

const EXAMPLE: &str = include_str!("../../../../docs/ebb.example.toml");

#[test]
fn files_that_cannot_be_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = directory.path().join("none.toml");
    for (path, words) in [
        (missing.as_path(), "no such file"),
        (directory.path(), "it is a directory"),
    ] {
        let error = load(path).expect_err("cannot be read");
        assert_eq!((error.problems.len(), error.problems[0].line), (1, 0));
        let shown = error.to_string();
        assert!(
            shown.starts_with(&format!(
                "{}: error: cannot read the configuration: ",
                path.display()
            )),
            "{shown}"
        );
        assert!(
            shown.contains(words) && !shown.contains("os error"),
            "{shown}"
        );
    }
}

#[test]
fn a_file_that_is_not_text() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ebb.toml");
    fs::write(&path, b"interfaces = [\"eth0\"]\n# \xc3\xa9 \xff\n").expect("written");
    let error = load(&path).expect_err("not UTF-8");
    let problem = &error.problems[0];
    assert_eq!((problem.line, problem.column), (2, 5), "{error}");
    assert!(problem.message.contains("UTF-8"), "{error}");
}

#[test]
fn a_file_without_an_end() {
    let error = load(Path::new("/dev/zero")).expect_err("too large");
    assert!(error.to_string().contains("larger than 16 MiB"), "{error}");
}

#[test]
fn a_file_is_read_as_it_is_parsed() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ebb.toml");
    fs::write(&path, EXAMPLE).expect("written");
    assert_eq!(load(&path), check(EXAMPLE));
}

/// What every error must be, whatever the text was.
fn sound(text: &str) -> Result<(), TestCaseError> {
    let Err(error) = check(text) else {
        return Ok(());
    };
    prop_assert!(!error.problems.is_empty());
    let lines = u32::try_from(text.split('\n').count()).unwrap_or(u32::MAX);
    for problem in &error.problems {
        prop_assert!((1..=lines).contains(&problem.line), "{error}");
        prop_assert!(problem.column >= 1);
        let hint = problem.hint.as_deref();
        prop_assert!(!problem.message.contains(char::is_control), "{error}");
        prop_assert!(
            hint.is_some_and(|hint| !hint.contains(char::is_control)),
            "{error}"
        );
    }
    let places: Vec<_> = error
        .problems
        .iter()
        .map(|problem| (problem.line, problem.column))
        .collect();
    prop_assert!(places.is_sorted(), "{error}");
    Ok(())
}

/// Pieces that reach deeper than random characters do.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<char>().prop_map(String::from),
        "[\\[\\]{}=.,\"'\\\\#\n\t 0-9a-z:/*-]{0,4}",
        proptest::sample::select(EXAMPLE.split_inclusive([' ', '\n']).collect::<Vec<_>>())
            .prop_map(str::to_owned),
        proptest::sample::select(vec![
            "[service.",
            "[[",
            "\"\"\"",
            "1e400",
            "-0",
            "0x",
            "99999999999999999999",
            "::",
            "1979-05-27"
        ])
        .prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text(text in any::<String>()) {
        sound(&text)?;
    }

    #[test]
    fn pieces_of_files(pieces in proptest::collection::vec(piece(), 0..60)) {
        sound(&pieces.concat())?;
    }

    /// Pieces of the example taken out and others put in, at any place.
    #[test]
    fn mutated_example(edits in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..12, piece()), 1..6)) {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        for (at, removed, inserted) in edits {
            let at = at.index(text.len() + 1);
            let end = (at + removed).min(text.len());
            text.splice(at..end, inserted.chars());
        }
        sound(&text.into_iter().collect::<String>())?;
    }

    /// Any text as the value of each key that takes one.
    #[test]
    fn any_value(value in "[0-9a-z.:/\\[\\]* µ-]{0,12}|\\PC{0,8}", key in 0_usize..8) {
        let keys = ["listen", "forward", "idle_timeout", "drain.timeout", "active_pool", "health", "health.readiness.http", "pool.p.backends.a"];
        let value = serde_json::to_string(&value).unwrap_or_default();
        sound(&format!("interfaces = [{value}]\n[service.web]\n{} = {value}\n", keys[key]))?;
    }
}

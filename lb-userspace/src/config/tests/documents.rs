//! What the documents say about configurations is true.

use super::check;

const DOCUMENT: &str = include_str!("../../../../docs/configuration.md");
const EXAMPLE: &str = include_str!("../../../../docs/ebb.example.toml");

#[test]
fn the_example_is_valid() {
    let spec = check(EXAMPLE).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        spec.services.keys().collect::<Vec<_>>(),
        ["dns", "far", "games", "mail", "web", "web3", "web6"]
    );
    assert_eq!(
        spec.services["mail"].pools["main"].backends["m1"]
            .address
            .port(),
        25
    );
}

/// Complete files are those that name interfaces; the others are pieces.
#[test]
fn complete_files_in_the_document_are_valid() {
    let files: Vec<&str> = DOCUMENT
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .filter(|file| file.contains("interfaces ="))
        .collect();
    assert!(!files.is_empty());
    for file in files {
        check(file).unwrap_or_else(|error| panic!("{error}\n{file}"));
    }
}

/// The keys that a file may have are those that the validator lists when it meets one it does not know.
#[test]
fn every_key_is_documented() {
    let text = "interfaces = [\"eth0\"]\n??? = 0\ncapacity.??? = 0\nclients.??? = 0\nshare.listen = \"10.0.0.1:9651\"\nshare.peers = [\"10.0.0.2:9651\"]\nshare.??? = 0\n[service.web]\n??? = 0\nlisten = \"203.0.113.10:443\"\n\
                drain.??? = 0\nhealth.readiness = { http = \"/\", ??? = 0 }\nhealth.??? = 0\n\
                pool.blue = { ??? = 0, backends = { b1 = { address = \"10.0.0.1:80\", ??? = 0 } } }\n"
        .replace("???", "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq");
    let error = check(&text).expect_err("unknown keys");
    assert_eq!(error.problems.len(), 10, "{error}");
    for problem in &error.problems {
        let hint = problem.hint.as_deref().unwrap_or_default();
        let keys = hint
            .strip_prefix("known keys are ")
            .unwrap_or_else(|| panic!("no keys in {hint:?}"));
        for key in keys.split(", ") {
            assert!(
                DOCUMENT.contains(key),
                "{key} is not in docs/configuration.md"
            );
        }
    }
}

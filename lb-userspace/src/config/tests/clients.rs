//! `[clients]` and the limits of new flows.

use std::{fs, path::Path};

use super::check;
use crate::{
    config::parse,
    model::spec::{ClientAction, Prefix},
};

fn prefix(text: &str) -> Prefix {
    text.parse().expect(text)
}

#[test]
fn prefixes_are_read_from_lists_and_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("bad");
    fs::write(
        &file,
        "# bad ones\n198.51.100.0/24\n\n2001:db8:bad::/48 # more\n",
    )
    .expect("a file");
    let text = format!(
        "interfaces = [\"eth0\"]\nnew_flows_per_core = 7\n[clients]\ndeny = [\"203.0.113.0/25\"]\n\
         allow = [\"198.51.100.7\"]\ndeny_file = {:?}\n",
        file.to_str().expect("text")
    );
    let spec = check(&text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(spec.new_flows_per_core, 7);
    let rules: Vec<_> = spec.clients.0.into_iter().collect();
    assert_eq!(
        rules,
        [
            (prefix("198.51.100.0/24"), ClientAction::Deny),
            (prefix("198.51.100.7/32"), ClientAction::Allow),
            (prefix("203.0.113.0/25"), ClientAction::Deny),
            (prefix("2001:db8:bad::/48"), ClientAction::Deny),
        ]
    );
}

#[test]
#[rustfmt::skip] // A row a line.
fn wrong_prefixes_are_refused_in_their_places() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("bad");
    fs::write(&file, "10.0.0.0/8\n10.0.0.0/33\n").expect("a file");
    let filed = format!("deny_file = {:?}", file.to_str().expect("text"));
    let rows = [
        ("deny = [\"10.0.0.1/8\"]", "3:9", "bits set behind"),
        ("deny = [\"10.0.0.0/8\", \"x\"]", "3:23", "not an address"),
        ("deny = [\"::/129\"]", "3:9", "longer than the address"),
        ("deny = [\"10.0.0.0/+8\"]", "3:9", "not an address"),
        ("deny = 1", "3:8", "must be a list"),
        ("deny = [\"10.0.0.0/8\"]\nallow = [\"10.0.0.0/8\"]", "4:10", "both denied and allowed"),
        ("deny_file = \"clients\"", "3:13", "not an absolute path"),
        ("deny_file = \"/nonexistent/clients\"", "3:13", "there is no such file"),
        (filed.as_str(), "3:13", "bad:2: client `10.0.0.0/33`"),
    ];
    for (lines, place, words) in rows {
        let text = format!("interfaces = [\"eth0\"]\n[clients]\n{lines}\n");
        let error = parse(Path::new("f"), &text).expect_err(lines);
        assert_eq!(error.problems.len(), 1, "{error}");
        let problem = &error.problems[0];
        assert_eq!(format!("{}:{}", problem.line, problem.column), place, "{error}");
        assert!(problem.message.contains(words), "{error}");
    }
}

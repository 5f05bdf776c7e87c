use proptest::prelude::*;

use super::*;

fn wish(text: &str) -> Option<Wish> {
    line(text.as_bytes()).wish
}

#[test]
fn words_of_an_agent() {
    let rows = [
        ("drain\n", Some(Wish::Drain), None),
        ("DRAIN", Some(Wish::Drain), None),
        ("maint\n", Some(Wish::Drain), None),
        ("ready\r\ndrain\n", Some(Wish::Ready), None),
        ("up, ready\n", Some(Wish::Ready), Some((true, "up"))),
        ("\tdown\tdrain\n", Some(Wish::Drain), Some((false, "down"))),
        ("failed", None, Some((false, "failed"))),
        ("fail", None, Some((false, "failed"))),
        ("stopped#drain ready\n", None, Some((false, "stopped"))),
        ("drain ready\n", Some(Wish::Ready), None),
        ("\ndrain", None, None),
        ("", None, None),
    ];
    for (text, wish, works) in rows {
        let found = line(text.as_bytes());
        assert_eq!((found.wish, found.works), (wish, works), "{text:?}");
        assert!(found.unknown.is_empty(), "{text:?}");
    }
    let found = line(b"down # new release \r\n");
    assert_eq!(found.note.as_deref(), Some("new release"));
}

#[test]
fn what_is_not_understood_is_named_and_the_rest_counts() {
    let found = line(b"75% maxconn:30 drain up drainn\n");
    assert_eq!(found.unknown, ["75%", "maxconn:30", "drainn"]);
    assert_eq!(found.wish, Some(Wish::Drain));
    // A word cut off is another word.
    assert_eq!(wish("drai"), None);
    assert_eq!(wish("drain\0junk"), Some(Wish::Drain));
}

proptest! {
    #[test]
    fn any_bytes_are_a_line(bytes in prop::collection::vec(any::<u8>(), 0..2 * LINE_MAX)) {
        let found = line(&bytes);
        prop_assert!(found.unknown.len() <= UNKNOWN_MAX);
        prop_assert!(found.unknown.iter().all(|word| word.chars().count() <= WORD_MAX));
    }

    /// Of each kind of word the last one counts, wherever others stand in between.
    #[test]
    fn the_last_word_of_each_kind_counts(
        words in prop::collection::vec(
            prop::sample::select(vec!["drain", "maint", "ready", "up", "down", "stopped", "x", "50%"]), 0..12),
        between in prop::sample::select(vec![" ", "\t", ",", ", "]),
        upper: bool,
    ) {
        let mut text = words.join(between) + "\n";
        if upper {
            text.make_ascii_uppercase();
        }
        let found = line(text.as_bytes());
        let last = |kind: &[&str]| words.iter().rev().find(|word| kind.contains(word)).copied();
        let asked = last(&["drain", "maint", "ready"]).map(|word| if word == "ready" { Wish::Ready } else { Wish::Drain });
        prop_assert_eq!(found.wish, asked);
        prop_assert_eq!(found.works.map(|(_, word)| word), last(&["up", "down", "stopped"]));
    }
}
